"""The ledger of work on boards: one SQLite file beside the results, consistent after any interruption.

A row is keyed by board, verb, artifact digest, versions on the board and rules (the verb's options), so work is done
once for each of these, and again when one changes. ``events`` has what happened on the way: connections that ended,
boards that were started again, full disks, clocks that jumped.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from vitedge.core.files import locked, resource_errors, sha256
from vitedge.core.schema import Record
from vitedge.errors import ArtifactError, ResourceError

LEDGER, SCHEMA = "ledger.db", 1
#: Exit codes that a repetition gives again: done, usage, bad artifact or data, result invalid, runtime not installed.
FINAL = (0, 2, 3, 7, 8)
DONE, FAILED, OVERLAPPED = "done", "failed", "overlapped"
#: Of a job that the board may know more about: a stop may come between its start there and the ledger's record.
UNKNOWN = ("planned", "running", "unreachable")


class Outcome(Record):
    """One row: the outcome of a verb for one artifact on one board."""

    board: str
    verb: str
    subject: str  # digest of the artifact, or of all of them together
    versions: str  # on the board
    rules: str  # the verb's options
    artifacts: str = ""  # names, for people
    generation: int = 0  # counted up where it's to be done from the beginning
    attempt: int = 0  # the last one that was started
    state: str = "planned"  # running, done, failed, interrupted, lost, busy, unreachable, overlapped
    code: int | None = None  # of the board's vitedge
    detail: str = ""  # why it isn't done
    result: str | None = None  # file in the results' folder
    place: str = ""  # machine and lock: what may run one job at a time
    boot: str = ""
    started_ns: int | None = None  # since the board was started
    ended_ns: int | None = None

    @property
    def job(self) -> str:
        """The job's name on the board, which is the same from every machine."""
        parts = (self.board, self.verb, self.subject, self.versions, self.rules, str(self.generation))
        return sha256("\0".join(parts).encode())[:20]

    @property
    def final(self) -> bool:
        """Whether repeating it would change nothing."""
        return self.state == DONE or (self.state == FAILED and self.code in FINAL)


KEY = ("board", "verb", "subject", "versions", "rules")
FIELDS = Outcome.__struct_fields__


class Ledger:
    """The ledger of a folder of results; one process at a time holds it (:func:`open_ledger`)."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def find(self, planned: Outcome) -> Outcome | None:
        """Return the recorded outcome of the same work."""
        where = " AND ".join(f"{name} = ?" for name in KEY)
        rows = self._select(f"WHERE {where}", *(getattr(planned, name) for name in KEY))
        return rows[0] if rows else None

    def rows(self) -> list[Outcome]:
        """Return all outcomes, by boards, in the order in which they were first planned."""
        return self._select("ORDER BY board, rowid")

    def write(self, outcome: Outcome) -> Outcome:
        """Store an outcome in place of an earlier one of the same work."""
        changed = ", ".join(f"{name} = excluded.{name}" for name in FIELDS if name not in KEY)
        marks = ", ".join("?" * len(FIELDS))
        statement = f"INSERT INTO outcomes ({', '.join(FIELDS)}) VALUES ({marks}) ON CONFLICT DO UPDATE SET {changed}"
        with self._connection:
            self._connection.execute(statement, [getattr(outcome, name) for name in FIELDS])
        return outcome

    def note(self, board: str, job: str, event: str) -> None:
        """Store an event."""
        with self._connection:
            self._connection.execute("INSERT INTO events (board, job, event) VALUES (?, ?, ?)", (board, job, event))

    def events(self) -> list[tuple[str, str, str]]:
        """Return (board, job, event), the oldest first."""
        return list(self._connection.execute("SELECT board, job, event FROM events ORDER BY number"))

    def record(self, outcome: Outcome) -> Outcome:
        """Store a finished outcome; where others ran on the board at the same time, none of them counts.

        A board's lock prevents this. Where somebody removed it, or measures by other means, the times tell.
        """
        others = [other for other in self.rows() if _overlap(outcome, other)]
        if not others:
            return self.write(outcome)
        for each in (outcome, *others):
            reason = "another job ran on the board at the same time: " + ", ".join(
                f"{other.verb} {other.artifacts}" for other in (outcome, *others) if other.job != each.job
            )
            self.write(replace(each, state=OVERLAPPED, detail=reason))
            self.note(each.board, each.job, reason)
        return replace(outcome, state=OVERLAPPED, detail="another job ran on the board at the same time")

    def _select(self, clause: str, *values: object) -> list[Outcome]:
        rows = self._connection.execute(f"SELECT {', '.join(FIELDS)} FROM outcomes {clause}", values)
        return [Outcome(**dict(zip(FIELDS, row, strict=True))) for row in rows]


def _overlap(one: Outcome, other: Outcome) -> bool:
    if one.job == other.job or (one.place, one.boot) != (other.place, other.boot):
        return False
    times = one.started_ns, one.ended_ns, other.started_ns, other.ended_ns
    if any(time is None for time in times):
        return False
    starts, ends, others_start, others_end = (time for time in times if time is not None)
    return starts < others_end and others_start < ends


@contextlib.contextmanager
def open_ledger(folder: Path, action: str) -> Iterator[Ledger]:
    """Open the ledger of a folder, for this process only.

    Raises:
        ResourceError: another process works with it, or it can't be written.
        ArtifactError: it isn't a ledger, or a newer vitedge wrote it.
    """
    path = folder / LEDGER
    with locked(path, action), resource_errors(action, folder):
        try:
            connection = sqlite3.connect(path)
            try:
                _prepare(connection, path, action)
                yield Ledger(connection)
            finally:
                connection.close()
        except sqlite3.OperationalError as error:
            hint = "free space or permit writing there, then repeat the command"
            raise ResourceError(action, f"{path} can't be written: {error}", hint) from error
        except sqlite3.DatabaseError as error:
            raise ArtifactError(action, f"{path} is damaged: {error}", "name another folder: --out FOLDER") from error


def _prepare(connection: sqlite3.Connection, path: Path, action: str) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        reason = f"{path} has schema version {version}; this vitedge reads up to {SCHEMA}"
        raise ArtifactError(action, reason, "use the vitedge that wrote it, or name another --out")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    with connection:
        key = ", ".join(KEY)
        connection.execute(f"CREATE TABLE IF NOT EXISTS outcomes ({', '.join(FIELDS)}, PRIMARY KEY ({key}))")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY AUTOINCREMENT, board, job, event)"
        )
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
