"""Jobs on one board: each is started once, followed across lost connections, and its result brought back."""

from __future__ import annotations

import contextlib
import getpass
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from vitedge.core.files import sha256, write_atomic
from vitedge.errors import ResourceError, UsageError, VitedgeError
from vitedge.fleet.agent import LIVE
from vitedge.fleet.connection import Link
from vitedge.fleet.doctor import held_by
from vitedge.fleet.ledger import DONE, FAILED, FINAL, LEDGER, OVERLAPPED, Ledger, Outcome
from vitedge.fleet.options import Keeping
from vitedge.fleet.push import Package, megabytes
from vitedge.formats.engines import INDEX

RESULT, CHOICES, ENGINES = "result.json", "choices", "engines"
#: Options that make a verb write its result into the job's folder, and resume an earlier attempt's.
OUTPUTS: Mapping[str, Sequence[str]] = {
    "bench": ("--out", RESULT, "--resume"),
    "eval": ("--out", RESULT, "--resume"),
    "compare": ("--out", RESULT, "--overwrite"),
    "build": ("--json", RESULT, "--choices", CHOICES, "--engines", ENGINES),
    "verify": ("--json", RESULT),
}
RESTARTS = 2  # of a job that ended without recording how, by one command
CLOCK_S = 2.0  # a clock that moved further than this is noted
FOLLOW_S = 5.0  # a request for a job's status waits this long for a change
SAID_FULL, FULL_BYTES = "No space left on device", 1 << 20


@dataclass(frozen=True)
class Work:
    """The work of a board with some artifacts.

    Args:
        verb: of vitedge; ``run`` for any command line of it.
        packages: the artifacts.
        arguments: the verb's options; one that names an upload stands for its place on the board.
        uploads: folders by the argument that names them.
    """

    verb: str
    packages: tuple[Package, ...]
    arguments: tuple[str, ...] = ()
    uploads: Mapping[str, Package] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The digest of the artifact, or of all of them together."""
        digests = [package.digest for package in self.packages]
        return digests[0] if len(digests) == 1 else sha256("\0".join(digests).encode())

    @property
    def names(self) -> str:
        """The artifacts' names."""
        return ", ".join(package.name for package in self.packages)

    @property
    def rules(self) -> str:
        """The options, with digests in place of local paths."""
        return " ".join(self.uploads[word].digest if word in self.uploads else word for word in self.arguments)

    def planned(self, board: str, versions: str) -> Outcome:
        """Return the work's row in the ledger before it starts."""
        return Outcome(
            board=board,
            verb=self.verb,
            subject=self.subject,
            versions=versions,
            rules=self.rules,
            artifacts=self.names,
        )

    def argv(self, places: Mapping[str, str]) -> list[str]:
        """Return the words after ``vitedge`` on the board; ``places`` are folders there by digest."""

        def there(word: str) -> str:
            if word not in self.uploads:
                return word
            package = self.uploads[word]
            return f"{places[package.digest]}/{package.within}".rstrip("/")

        words = [there(word) for word in self.arguments]
        if self.verb == "run":
            return words
        return [self.verb, *(places[package.digest] for package in self.packages), *words, *OUTPUTS[self.verb]]


def person() -> str:
    """Return user and machine, for the holder of a board's lock."""
    with contextlib.suppress(KeyError, OSError):  # no name for this user
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return socket.gethostname()


def missing(planned: Sequence[Outcome], ledger: Ledger, keeping: Keeping, board: str) -> list[Outcome]:
    """Return the planned work that has to be done, as it goes into the ledger: new, unfinished, or repeated.

    Raises:
        UsageError: some was begun before, and neither ``resume`` nor ``overwrite`` says what becomes of it.
    """
    left = []
    before = sum(ledger.find(outcome) is not None for outcome in planned)
    if before and not (keeping.resume or keeping.overwrite):
        reason = f"{Path(keeping.out) / LEDGER} already has {before} of these {len(planned)} jobs on {board}"
        hint = "add --resume to do the missing ones, --overwrite to do all again, or name another --out"
        raise UsageError(f"work on {board}", reason, hint)
    for outcome in planned:
        known = ledger.find(outcome)
        if known is None:
            left.append(ledger.write(outcome))
        elif keeping.overwrite or (not known.final and known.state == OVERLAPPED):
            left.append(ledger.write(replace(outcome, generation=known.generation + 1)))
        elif not known.final:
            left.append(known)
    return left


class Jobs:
    """The jobs of one board.

    Args:
        link: to the board, open.
        ledger: where outcomes are kept.
        folder: of the results.
        say: called with what happens.
    """

    def __init__(self, link: Link, ledger: Ledger, folder: Path, say: Callable[[str], None]) -> None:
        self.link, self.ledger, self.folder, self.say = link, ledger, folder, say

    async def do(self, outcome: Outcome, argv: Sequence[str], *, wait: bool, detach: bool) -> Outcome:
        """Start a job, or find it running or done; follow it to its end unless it's detached.

        Raises:
            VitedgeError: the board can't be reached; the ledger has it by then.
        """
        title, started = f"{outcome.verb} {outcome.artifacts}".strip(), 0
        attempt = outcome.attempt if outcome.state in ("running", "unreachable") else outcome.attempt + 1
        try:
            status = await self._start(outcome, max(1, attempt), argv, title, wait)
            while True:
                outcome = self.ledger.write(replace(outcome, state="running", attempt=status.get("attempt", 1)))
                if detach and status["state"] in LIVE:
                    return outcome
                status = await followed(self.link, outcome.job, status, title, self.say)
                again = status["state"] == "lost" or (
                    status["state"] == "done"
                    and status["code"] not in FINAL
                    and started == 0
                    and outcome.attempt > attempt
                )
                if not again or started >= RESTARTS:
                    return await self.finish(outcome, status)
                started += 1
                self._note(outcome, f"{title} is started again: {_why_lost(status)}")
                status = await self._start(outcome, outcome.attempt + 1, argv, title, wait)
        except VitedgeError as error:
            state = "unreachable" if error.action.startswith("reach ") else "interrupted"
            self.ledger.write(replace(outcome, state=state, detail=error.reason))
            self._note(outcome, f"{title}: {error.reason}")
            raise

    async def collect(self, outcome: Outcome) -> Outcome:
        """Bring back a job that was started before, if it has ended."""
        status = await self.link.ask("status", job=outcome.job)
        if status["state"] in LIVE or status["state"] == "none":
            return outcome
        return await self.finish(outcome, status)

    async def finish(self, outcome: Outcome, status: Mapping[str, Any]) -> Outcome:
        """Bring a job's result back and record how it ended."""
        facts = self.link.facts
        outcome = replace(
            outcome,
            attempt=status.get("attempt", outcome.attempt),
            code=status.get("code"),
            place=sha256(f"{facts['machine']} {self.link.board.lock}".encode())[:20],
            boot=status.get("boot", ""),
            started_ns=status.get("started_ns"),
            ended_ns=status.get("ended_ns"),
        )
        if status["state"] == "busy":
            held = held_by(status["holder"])
            return self._ended(replace(outcome, state="busy", detail=f"somebody else measures there: {held}"))
        if status["state"] != "done":
            return self._ended(replace(outcome, state="lost", detail=_why_lost(status)))
        if abs(jumped := status.get("clock_jump_s", 0)) > CLOCK_S:
            self._note(outcome, f"the board's clock moved by {jumped:+.0f} s while it ran")
        code, said = status["code"], last_error(status["stderr"])
        if code not in FINAL and (SAID_FULL in said or status["free"] < FULL_BYTES):  # where it can't even be said
            said = f"the board's disk is full: {megabytes(status['free'])} MB are free"
            self._note(outcome, said)
        name = await self._fetched(outcome) if code in (0, 7) else None
        if outcome.verb == "build" and code == 0:
            await self._fetch_folder(outcome, CHOICES, self.folder / CHOICES / outcome.subject)
            await self._fetch_folder(outcome, ENGINES, self.folder / ENGINES / outcome.subject / outcome.board)
            self._note_refused(outcome, name)
        state = DONE if code == 0 else FAILED if code in FINAL else "interrupted"
        return self._ended(replace(outcome, state=state, detail="" if code == 0 else said, result=name))

    async def _start(
        self, outcome: Outcome, attempt: int, argv: Sequence[str], title: str, wait: bool
    ) -> dict[str, Any]:
        return await self.link.ask(
            "start",
            job=outcome.job,
            attempt=attempt,
            argv=[*self.link.argv(), *argv],
            lock=self.link.board.lock,
            who=person(),
            what=title,
            wait=wait,
        )

    async def _fetched(self, outcome: Outcome) -> str:
        """Bring the result into the folder; return its name there."""
        source = "stdout" if outcome.verb == "run" else RESULT
        content = await self.link.fetch(f"jobs/{outcome.job}/{source}")
        ending = "txt" if outcome.verb == "run" else "json"
        kind = "results" if outcome.verb in ("bench", "eval", "compare") else "answers"
        plain = outcome.artifacts.replace(", ", "+")[:80] or "command"
        name = f"{kind}/{outcome.board}/{outcome.verb}-{plain}-{outcome.job[:8]}.{ending}"
        write_atomic(self.folder / name, content, f"keep the result of {outcome.board}")
        return name

    async def _fetch_folder(self, outcome: Outcome, name: str, into: Path) -> None:
        """Bring a build's files for boards of the same kind: choices, or engines, whose list comes last."""
        place = f"jobs/{outcome.job}/{name}"
        names = (await self.link.ask("list", name=place))["names"]
        for file in sorted(names, key=lambda each: each == INDEX):
            content = await self.link.fetch(f"{place}/{file}")
            write_atomic(into / file, content, f"keep the {name} of {outcome.board}")

    def _note_refused(self, outcome: Outcome, result: str | None) -> None:
        """Note which existing engines the board refused, and why."""
        rows = [] if result is None else json.loads((self.folder / result).read_bytes())
        for because in [row["because"] for row in rows if row.get("because")]:
            self._note(outcome, f"build {outcome.artifacts} built again: {because}")

    def _ended(self, outcome: Outcome) -> Outcome:
        recorded = self.ledger.record(outcome)
        done = f"{outcome.verb} {outcome.artifacts}: {recorded.state}"
        self.say(f"{done} ({recorded.detail})" if recorded.detail else done)
        return recorded

    def _note(self, outcome: Outcome, event: str) -> None:
        self.ledger.note(outcome.board, outcome.job, event)
        self.say(event)


async def followed(
    link: Link, job: str, status: dict[str, Any], title: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Follow a job until it has ended, report whom it waits for, and return its status."""
    holder: Any = None
    while status["state"] in LIVE:
        if status["state"] == "waiting" and status.get("holder") != holder:
            holder = status.get("holder")
            say(f"{title} waits for {held_by(holder)}")
        status = await link.ask("status", job=job, seconds=FOLLOW_S, seen=status["state"])
    return status


def _why_lost(status: Mapping[str, Any]) -> str:
    if status.get("boot") and status["boot"] != status.get("now_boot"):
        return "the board restarted while it ran"
    if status["state"] == "lost":
        return "its processes were killed before it was done"
    return last_error(status.get("stderr", ""))


def last_error(stderr: str) -> str:
    """Return the error block at the end of vitedge's output, in one line."""
    _, found, block = stderr.rpartition("error: ")
    text = block if found else stderr
    return " · ".join(line.strip() for line in text.strip().splitlines()[-3:]) or "it printed no error"


def problem(outcomes: Sequence[Outcome], refused: Mapping[str, VitedgeError]) -> VitedgeError | None:
    """Return the error of a command over many boards; None where all is done, or still runs.

    Args:
        outcomes: of the work.
        refused: boards on which it couldn't go on, with the reason.
    """
    from vitedge.errors import InvalidResultError

    action = "work on the boards"
    if len(refused) == 1 and not any(not outcome.final for outcome in outcomes if outcome.board not in refused):
        return next(iter(refused.values()))
    unfinished = [outcome for outcome in outcomes if not outcome.final and outcome.state != "running"]
    if unfinished or refused:
        boards = sorted({outcome.board for outcome in unfinished} | set(refused))
        reason = f"{len(unfinished)} of {len(outcomes)} jobs aren't done, on {', '.join(boards)}; the table says why"
        return ResourceError(action, reason, "repeat the command with --resume")
    failed = [outcome for outcome in outcomes if outcome.state == FAILED]
    if failed:
        first = failed[0]
        reason = f"{len(failed)} of {len(outcomes)} jobs failed; {first.board}, {first.artifacts}: {first.detail}"
        return InvalidResultError(
            action, reason, "follow the hint in that error, then repeat with --resume or --overwrite"
        )
    return None
