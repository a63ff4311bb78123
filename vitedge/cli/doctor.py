"""``vitedge doctor``."""

from __future__ import annotations

from vitedge.cli.options import Json


def doctor(
    json: Json = None,
) -> None:
    """Describe this machine and list what it can run: instructions, cores, memory, runtimes, GPU, cameras, targets.

    Values that can't be read are called unknown, and broken runtimes are named; the command itself always finishes.

    **Examples**

    `vitedge doctor`

    `vitedge doctor --json - > machine.json`
    """
    from vitedge import api
    from vitedge.reporting import terminal

    terminal.emit(api.examine(), json, terminal.show_doctor)
