"""``vitedge fleet``: the verbs of other files on every board of an inventory."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge.cli.fleet_verbs import VERBS, on_boards
from vitedge.cli.options import Json, Overwrite, Quiet
from vitedge.cli.parsing import Verb, Verbs
from vitedge.cli.records import as_command, takes_records
from vitedge.errors import printable
from vitedge.fleet.options import OUT, Keeping, Selection

Artifacts = Annotated[list[Path], typer.Argument(help="Artifact folders.")]
Out = Annotated[str, typer.Option("--out", "-o", help="Folder with the ledger and the results.")]
_selected: list[tuple[Selection, bool]] = []  # by the options before the verb


@takes_records("select boards")
def fleet(*, selection: Selection, quiet: Quiet = False) -> None:
    """Work on all boards of an inventory at once, over SSH: the same verbs, one report.

    The inventory, `fleet.toml`, names each board's host as `ssh` does; OpenSSH's own configuration, keys, agents and
    known hosts are used. Artifacts are sent by digest, one job at a time runs on a board, and a ledger in `--out` keeps
    all finished work: after an interruption `--resume` does the missing work.

    **Examples**

    `vitedge fleet doctor`

    `vitedge fleet push fp32/ int8/`

    `vitedge fleet --on arm bench fp32/ int8/ --duration 10`

    `vitedge fleet report`
    """
    _selected.append((selection, quiet))


def doctor(json: Json = None) -> None:
    """List the boards: hardware, targets, free space, who measures there, and versions that differ.

    **Examples**

    `vitedge fleet doctor`

    `vitedge fleet --on arm doctor --json boards.json`
    """
    from vitedge.errors import ResourceError
    from vitedge.reporting import fleet as tables
    from vitedge.reporting import terminal

    states = _fleet().doctor()
    terminal.emit(states, json, tables.show_boards)
    wrong = [state.name for state in states if state.problem is not None]
    if wrong:
        raise ResourceError(
            "examine the boards", f"{len(wrong)} of {len(states)} can't be used: {', '.join(wrong)}", "see above"
        )


def push(
    artifact: Artifacts,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Send artifacts to the boards: only missing files are sent, and an artifact appears as a whole or not at all.

    A file is identified by its digest and checked on arrival; an interrupted push continues where it ended. On the
    board an artifact lies in `FOLDER/artifacts/DIGEST`, and the link `FOLDER/current/NAME` leads to it.

    **Examples**

    `vitedge fleet push fp32/ int8/`
    """
    from vitedge.core.progress import bars
    from vitedge.reporting import fleet as tables
    from vitedge.reporting import terminal

    boards = _fleet()
    with bars(quiet=quiet) as progress:
        pushed, refused = boards.push(artifact, progress)
    terminal.emit(pushed, json, tables.show_pushed)
    _raise_refused("push to the boards", refused)


def install(
    wheel: Annotated[
        Path | None,
        typer.Option("--wheel", help="Wheel of vitedge [default: made of the running one]."),
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Install this vitedge and a board's extras there; the board needs Python, and no internet.

    Wheels are resolved and downloaded here for the board's architecture, Python and C library, and sent. A new virtual
    environment replaces the earlier one when it is complete.

    **Examples**

    `vitedge fleet install`

    `vitedge fleet --on arm install --wheel dist/vitedge.whl`
    """
    from vitedge.reporting import fleet as tables
    from vitedge.reporting import terminal

    installed, refused = _fleet(quiet=quiet).install(wheel)
    terminal.emit(installed, json, tables.show_installed)
    _raise_refused("install on the boards", refused)


@takes_records("run a command on the boards")
def run(
    words: Annotated[
        list[str],
        typer.Argument(help="Verb and options of vitedge; an artifact folder here stands for its place on the board."),
    ],
    *,
    keeping: Keeping,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Run any vitedge command on each board, under its lock; its output comes back as a file.

    **Examples**

    `vitedge fleet run -- inspect int8/`

    `vitedge fleet --on pi5 run --detach -- bench int8/ --duration 1h`
    """
    from vitedge import api

    uploads = api.fleet_uploads(words)
    _work("run", (), words, keeping, uploads, json=json, quiet=quiet)


def collect(out: Out = OUT, json: Json = None) -> None:
    """Fetch the results of jobs that continued after `--detach`, an interruption or a lost connection.

    **Examples**

    `vitedge fleet collect`
    """
    from vitedge.reporting import fleet as tables
    from vitedge.reporting import terminal

    outcomes, refused = _fleet().collect(out)
    terminal.emit(outcomes, json, tables.show_outcomes)
    _raise_refused("collect from the boards", refused)


def status(out: Out = OUT, json: Json = None) -> None:
    """Show the ledger: finished and missing work on each board, the reasons, and the events.

    **Examples**

    `vitedge fleet status`
    """
    from vitedge import api
    from vitedge.reporting import fleet as tables
    from vitedge.reporting import terminal

    outcomes, events = api.fleet_outcomes(out)
    terminal.emit(outcomes, json, tables.show_outcomes)
    if json != "-":
        tables.show_events(events)


def report(
    out: Out = OUT,
    page: Annotated[Path, typer.Option("--page", help="File to write: .html, .md or .csv.")] = Path("report.html"),
    overwrite: Overwrite = False,
) -> None:
    """Make one report of the results of all boards.

    **Examples**

    `vitedge fleet report`

    `vitedge fleet report --page fleet.md`
    """
    from vitedge import api
    from vitedge.errors import UsageError
    from vitedge.reporting import delivery, fleet

    outcomes, _ = api.fleet_outcomes(out)
    results = fleet.results_of(outcomes, Path(out))
    if not results:
        raise UsageError("report on the boards", f"{out} has no result", "run: vitedge fleet bench ARTIFACT")
    delivery.show_report(api.report(results, out=page, overwrite=overwrite), None)


def application() -> typer.Typer:
    """The group of verbs."""
    app = typer.Typer(cls=Verbs, no_args_is_help=True, rich_markup_mode="markdown", help=fleet.__doc__)
    app.callback(help=fleet.__doc__)(as_command(fleet))
    ours = [as_command(command) for command in (doctor, install, push, run, collect, status, report)]
    for command in (*ours[:3], *(on_boards(verb, _work_of) for verb in VERBS), *ours[3:]):
        app.command(name=command.__name__.rstrip("_"), cls=Verb, help=command.__doc__)(command)
    return app


def _fleet(*, quiet: bool = False) -> Any:
    """Open the fleet of the selected boards."""
    from vitedge import api

    selection, silent = _selected[-1]
    password = (lambda board: getpass.getpass(f"password for {board}: ")) if selection.ask_password else None
    return api.open_fleet(selection, password=password, say=None if quiet or silent else _say)


def _work_of(verb: str, artifacts: Sequence[Path], arguments: Sequence[str], keeping: Keeping, **how: Any) -> None:
    """Run a verb of one machine on the boards."""
    from vitedge import api

    together = verb == "compare" or (verb == "build" and len(artifacts) > 1 and "--autotune" in arguments)
    _work(verb, artifacts, arguments, keeping, api.fleet_uploads(_data(arguments)), together=together, **how)


def _data(arguments: Sequence[str]) -> list[str]:
    """Return arguments that name local data."""
    return [value for option, value in pairwise(arguments) if option in ("--data", "--replay") and Path(value).exists()]


def _work(
    verb: str,
    artifacts: Sequence[Path],
    arguments: Sequence[str],
    keeping: Keeping,
    uploads: Mapping[str, Any],
    *,
    json: str | None,
    quiet: bool,
    together: bool = False,
) -> None:
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.reporting import fleet as tables
    from vitedge.reporting import terminal

    boards = _fleet(quiet=quiet)
    with bars(quiet=quiet) as progress:
        how = {"uploads": uploads, "together": together, "progress": progress}
        if verb == "build":
            outcomes, refused = boards.build(artifacts, arguments, keeping, **how)
        else:
            outcomes, refused = boards.work(verb, artifacts, arguments, keeping, **how)
    terminal.emit(outcomes, json, tables.show_outcomes)
    if error := api.fleet_problem(outcomes, refused):
        raise error


def _raise_refused(action: str, refused: Mapping[str, Exception]) -> None:
    """Print every board's reason for a failure.

    Raises:
        VitedgeError: one board's own error, or that of several.
    """
    from vitedge.errors import ResourceError

    if len(refused) == 1:
        raise next(iter(refused.values()))
    if refused:
        for board, error in refused.items():
            _say(board, str(error).replace("\n", ";"))
        raise ResourceError(action, f"{len(refused)} boards failed: {', '.join(refused)}", "see above; then repeat")


def _say(board: str, text: str) -> None:
    sys.stderr.write(f"{board}: {printable(text)}\n")
