"""Install vitedge on a board without internet: send wheels, and replace the virtual environment."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from vitedge.core.schema import Record
from vitedge.errors import ResourceError
from vitedge.fleet.connection import Link
from vitedge.fleet.inventory import Board, expanded
from vitedge.fleet.jobs import followed, last_error, person
from vitedge.fleet.push import data_package, push
from vitedge.fleet.wheels import DESCRIBE, Machine, described

#: What is done on the board: $1 is its Python, $2 the new environment, $3 the folder
#: of wheels, $4 an option of venv.
SCRIPT = """
set -e
$1 -m venv --without-pip --clear $4 "$2"
pip=$(echo "$3"/pip-*.whl)
"$2/bin/python" "$pip/pip" install --quiet --no-index --no-deps --no-compile "$3"/*.whl
"$2/bin/vitedge" --version
"""


class Installed(Record):
    """The result of an installation on one board."""

    board: str
    python: str
    wheels: int
    sent_bytes: int
    version: str  # as vitedge prints it there
    environment: str  # the virtual environment's folder there


async def machine_of(link: Link) -> Machine:
    """Return the properties of a board's Python that wheels have to fit.

    Raises:
        ResourceError: it can't be started.
        UsageError: there are no wheels for it.
    """
    await link.open()
    python = expanded(link.board.python, link.facts["home"])
    answer = await link.ask("call", 90, argv=[python, "-c", DESCRIBE], seconds=60)
    if answer["code"]:
        raise ResourceError(
            f"install on {link.board.name}", answer["stderr"].strip(), "name another 'python' for it in the inventory"
        )
    return described(answer["content"], link.board.name)


async def install(link: Link, machine: Machine, wheels: Path, say: Callable[[str], None]) -> Installed:
    """Send wheels, make a virtual environment of them, and replace the earlier one atomically.

    Args:
        link: to the board.
        machine: that the wheels are for.
        wheels: folder of all of them.
        say: called with what happens.

    Raises:
        ResourceError: somebody measures there, it fails, or the environment's place is taken by something else.
    """
    board, home = link.board, link.facts["home"]
    package = data_package(wheels)
    (pushed,) = await push(link, [package])
    place = f"{link.facts['folder']}/environments/{package.digest[:20]}"
    argv = ["sh", "-c", SCRIPT, "sh", expanded(board.python, home), place, pushed.path, _options(board)]
    status = await link.ask("status", job=f"install-{package.digest[:20]}")
    works = await link.ask("call", 90, argv=["sh", "-c", f"{shlex.quote(place)}/bin/vitedge --version"], seconds=60)
    if works["code"]:
        status = await link.ask(
            "start",
            job=f"install-{package.digest[:20]}",
            attempt=status.get("attempt", 0) + 1,
            argv=argv,
            lock=board.lock,
            who=person(),
            what="install vitedge",
            wait=True,
        )
        status = await followed(link, f"install-{package.digest[:20]}", status, "install", say)
        if status["state"] != "done" or status["code"]:
            raise ResourceError(
                f"install on {board.name}",
                last_error(status["stderr"]),
                "correct this on the board, then repeat the command",
            )
        works = await link.ask("call", 90, argv=[f"{place}/bin/vitedge", "--version"], seconds=60)
    await link.ask("link", link=expanded(board.environment, home), target=place)
    return Installed(
        board=board.name,
        python=machine.python,
        wheels=len(package.files),
        sent_bytes=pushed.sent_bytes,
        version=works["content"].decode().strip(),
        environment=expanded(board.environment, home),
    )


def _options(board: Board) -> str:
    return "--system-site-packages" if board.system_packages else "--symlinks"
