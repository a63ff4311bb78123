"""``vitedge doctor``."""

from __future__ import annotations

from vitedge.cli.options import Json


def doctor(
    json: Json = None,
) -> None:
    """Say what this machine is and what it can run: instructions, cores, memory, runtimes, GPU, cameras, targets.

    What can't be read is called unknown, and a broken runtime is named: the doctor itself always finishes.

    **Examples**

    `vitedge doctor`

    `vitedge doctor --json - > machine.json`
    """
    from vitedge import api
    from vitedge.reporting import terminal

    terminal.emit(api.examine(), json, terminal.show_doctor)
