"""Tables of a fleet: its boards, what was pushed, and the outcomes in its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vitedge.fleet.doctor import BoardState, differences
from vitedge.fleet.install import Installed
from vitedge.fleet.ledger import Outcome
from vitedge.fleet.push import Pushed
from vitedge.formats.result import Result, read_result
from vitedge.reporting.rows import machine_name
from vitedge.reporting.terminal import BAD, GOOD, QUIET, UNSURE, facts, megabytes, show, table, text

if TYPE_CHECKING:
    from rich.console import RenderableType

STATES = {"done": GOOD, "running": UNSURE, "planned": QUIET}
CLOCK_S = 5.0  # a clock that is further off is reported


def show_boards(states: Sequence[BoardState]) -> None:
    """Print one line for each board, then problems, and differing versions."""
    sound = [state for state in states if state.problem is None]
    rows = [
        (
            state.name,
            state.machine,
            state.arch,
            state.cores,
            state.memory_mb,
            state.disk_mb,
            " ".join(f"{name} {version}" for name, version in state.versions.items()),
            len(state.targets),
            state.holder or "",
        )
        for state in sound
    ]
    columns = ("board", "machine", "arch", ">cores", ">memory MB", ">disk MB", "versions", ">targets", "in use by")
    parts: list[RenderableType | None] = [table(columns, rows) if rows else None]
    wrong = [state for state in states if state.problem is not None]
    parts += [
        facts([(state.name, text(f"{state.problem}; {state.hint}", BAD)) for state in wrong], "not usable")
    ] * bool(wrong)
    differing = [tuple(line.split(": ", 1)) for line in differences(states)]
    clocks = [
        (state.name, f"{abs(state.clock_s):,.0f} s {'ahead' if state.clock_s > 0 else 'behind'}")
        for state in states
        if state.clock_s is not None and abs(state.clock_s) > CLOCK_S
    ]
    for title, pairs in (("versions that differ, and numbers with them", differing), ("clocks that are off", clocks)):
        parts += [facts([(name, value) for name, value in pairs], title)] if pairs else []
    show(*parts)


def results_of(outcomes: Sequence[Outcome], folder: Path) -> list[Result]:
    """Return the results of measurements, with each board's name before its machine's, so that equal boards differ.

    Raises:
        ArtifactError: one of them isn't a result.
    """
    named = []
    for outcome in outcomes:
        if outcome.result and outcome.result.startswith("results/"):
            result = read_result(folder / outcome.result)
            where = result.environment
            boards_name = f"{outcome.board}: {machine_name(where)}"
            where = replace(
                where,
                processor=replace(where.processor, model=boards_name, physical_cores=None),
                board=replace(where.board, model=boards_name),
            )
            named.append(replace(result, environment=where))
    return named


def show_pushed(rows: Sequence[Pushed]) -> None:
    """Print which folders were sent to which board, and how many bytes."""
    cells = [
        (row.board, row.name, row.digest[:12], megabytes(row.total_bytes), "new" if row.fresh else "was there")
        for row in rows
    ]
    sent = {row.board: f"{megabytes(row.sent_bytes)} MB" if row.sent_bytes else "nothing" for row in rows}
    show(table(("board", "artifact", "digest", ">MB", ""), cells), facts(sent.items(), "sent"))


def show_installed(rows: Sequence[Installed]) -> None:
    """Print what was installed on each board."""
    cells = [
        (row.board, row.version, row.python, row.wheels, megabytes(row.sent_bytes), row.environment) for row in rows
    ]
    show(table(("board", "installed", "Python", ">wheels", ">MB sent", "environment"), cells))


def show_outcomes(rows: Sequence[Outcome]) -> None:
    """Print the outcomes of each board."""
    cells = [
        (row.board, row.verb, row.artifacts, text(row.state, STATES.get(row.state, BAD)), row.result or row.detail)
        for row in rows
    ]
    show(table(("board", "verb", "artifact", "state", "result, or why there is none"), cells))


def show_events(events: Sequence[tuple[str, str, str]]) -> None:
    """Print the events of each board."""
    if events:
        show(table(("board", "event"), [(board, event) for board, _, event in events]))
