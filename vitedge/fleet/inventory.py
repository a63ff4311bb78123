"""``fleet.toml``: the boards, how to reach each, and the command that starts vitedge there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta, field
from msgspec.structs import replace

from vitedge.core.schema import Record, load_toml
from vitedge.errors import UsageError, nearest

FOLDER = "~/.cache/vitedge-fleet"
LOCK = "/var/tmp/vitedge-fleet.lock"  # one for all users of a board
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
EXAMPLE = '[boards.pi5]\\nhost = "pi5.local"'


class Board(Record):
    """One board. Values that aren't given come from OpenSSH's own configuration, or from the board itself."""

    host: str  # a name or address, or an alias of ~/.ssh/config
    name: str = ""  # of its table in the inventory
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    user: str | None = None
    jump: str | None = None  # host to go through: [user@]host[:port], several with commas
    target: str | None = None  # artifacts for other targets don't go there; None: all do
    python: str = "python3"  # on the board, for a new virtual environment
    venv: str | None = None  # virtual environment that has vitedge; None: FOLDER/venv
    command: str | None = None  # how vitedge is started where it's in no virtual environment: "docker exec … vitedge"
    folder: str = FOLDER  # on the board, for what is pushed and measured
    lock: str = LOCK
    labels: tuple[str, ...] = ()
    system_packages: bool = False  # the environment of `vitedge fleet install` sees them: JetPack's TensorRT
    extras: tuple[str, ...] = ("onnxruntime",)  # of vitedge, for `vitedge fleet install`

    @property
    def environment(self) -> str:
        """The virtual environment that has vitedge."""
        return self.venv or f"{self.folder}/venv"

    def argv(self, home: str) -> list[str]:
        """Return the command that starts vitedge there, before its verb; ``home`` replaces ``~``."""
        if self.command is not None:
            return [expanded(word, home) for word in shlex.split(self.command)]
        return [f"{expanded(self.environment, home)}/bin/vitedge"]


class Inventory(Record):
    """The contents of an inventory file: all boards by name."""

    boards: dict[str, Board] = field(default_factory=dict)


def expanded(path: str, home: str) -> str:
    """Return a path on a board with the home folder in place of ``~``."""
    return home + path[1:] if path == "~" or path.startswith("~/") else path


def read_inventory(path: str | Path, labels: Sequence[str] = ()) -> list[Board]:
    """Return the boards of an inventory, or those with one of some labels or names.

    Raises:
        UsageError: not such a file, no board in it, a name or an entry that can't be one, a label that none has.
    """
    path, action = Path(path), "read the inventory of boards"
    if not path.is_file():
        raise UsageError(action, f"there is no file {path}", f"write one: printf '{EXAMPLE}\\n' > {path}")
    boards = [replace(board, name=name) for name, board in load_toml(path, Inventory, action).boards.items()]
    if not boards:
        raise UsageError(action, f"{path} lists no board", f"add one: printf '{EXAMPLE}\\n' >> {path}")
    for board in boards:
        _check(board, path, action)
    known = {board.name for board in boards}.union(*(board.labels for board in boards))
    for label in labels:
        if label not in known:
            reason = f"no board of {path} has the name or label '{label}'{nearest(label, known)}"
            raise UsageError(action, reason, f"choose from: {', '.join(sorted(known))}")
    return [board for board in boards if not labels or {board.name, *board.labels} & set(labels)]


def _check(board: Board, path: Path, action: str) -> None:
    where = f"{path}: the board '{board.name}'"
    if not _NAME.fullmatch(board.name):
        raise UsageError(action, f"{where}: a name may have letters, digits, '-', '_' and '.'", "rename it")
    for value in (board.host, board.user or "", board.jump or ""):
        if re.search(r":[^@]*@", value):
            raise UsageError(action, f"{where} contains a password", "remove it, and add: --ask-password")
    if "@" in board.host or not board.host:
        raise UsageError(
            action, f"{where}: '{board.host}' isn't a host", 'write, for example: host = "board.local", user = "pi"'
        )
    if board.venv is not None and board.command is not None:
        raise UsageError(action, f"{where} has both 'venv' and 'command'", "keep the one that starts vitedge there")
