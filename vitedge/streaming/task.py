"""What a reader is told to do."""

from __future__ import annotations

from vitedge.core.schema import Record
from vitedge.data.preprocessing import Preprocessing
from vitedge.streaming.uri import Credentials, Kind


class Task(Record):
    """One connection of one source, as it goes to the reader over a pipe. It holds the password: never print it."""

    name: str
    kind: Kind
    live: bool
    targets: tuple[str, ...]
    user: str | None
    password: str | None
    artifact: str  # name
    preprocessing: Preprocessing
    turn: tuple[int, bool]
    crop: tuple[float, float, float, float, bool] | None
    newest_only: bool  # the policy ``latest``
    every: int  # of so many frames, one is passed on
    loops: int  # further passes over a file; -1: endless
    gap_s: float
    connect_s: float
    stall_s: float
    hardware: str | None
    camera: dict[str, str]  # width, height, rate, codec, where they're wished for
    record: str | None  # the clip's path
    memory: int  # file descriptors
    filled: int
    emptied: int

    def __repr__(self) -> str:
        return f"Task({self.name!r})"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be in any text."""
        return () if self.password is None else Credentials(self.user or "", self.password).secrets

    @property
    def urls(self) -> tuple[str, ...]:
        """The targets, with user and password where they have them."""
        if self.user is None:
            return self.targets
        return tuple(Credentials(self.user, self.password or "").in_url(target) for target in self.targets)
