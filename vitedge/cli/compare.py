"""``vitedge compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Device, Json, NoBuild, Overwrite, Quiet, ResultOut, Threads, time_option
from vitedge.comparison.options import ROUNDS, SLOWDOWN_PCT

ALLOWED = "Allowed differences"
ACCURACY = "Accuracy"
LATENCY = "Latency"


def compare(
    artifact: Annotated[
        list[Path],
        typer.Argument(
            help="The baseline and its candidates; or results: one with several rows, or an earlier and a later one."
        ),
    ],
    max_slowdown: Annotated[
        float,
        typer.Option(
            "--max-slowdown",
            min=-99,
            help="Largest allowed slow-down in percent; negative demands a speed-up.",
            rich_help_panel=ALLOWED,
        ),
    ] = SLOWDOWN_PCT,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            min=0,
            help="Largest allowed top-1 drop in pp [default: the target's budget].",
            rich_help_panel=ALLOWED,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Labelled images for comparing the accuracy of artifacts.", rich_help_panel=ACCURACY
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Number of images to compare on.", rich_help_panel=ACCURACY)
    ] = None,
    duration: Annotated[
        float | None,
        time_option(
            "--duration", "Shortest measurement of each artifact: 30, 90s, 10m [default: the target's].", LATENCY
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds",
            min=10,
            help="Interleaved blocks of each artifact; more of them narrow the interval.",
            rich_help_panel=LATENCY,
        ),
    ] = ROUNDS,
    threads: Threads = None,
    device: Device = None,
    no_build: NoBuild = False,
    out: ResultOut = None,
    json: Json = None,
    overwrite: Overwrite = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with 7 also for losses that can't be ruled out, and for invalid rows.",
            rich_help_panel=ALLOWED,
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Measure how much faster and how much less accurate a candidate is; exit with 7 when it's worse than allowed.

    Artifacts are interleaved within one run. The ratio of their times comes with a bootstrap interval, the difference
    of their accuracy with McNemar's exact test. The budgets are those of the candidate's target.

    **Examples**

    `vitedge compare float/ int8/ --data labelled/`

    `vitedge compare released/ new/ --max-slowdown 5 --max-drop 0.5 --data labelled/`

    `vitedge compare result.json`
    """
    from vitedge import api
    from vitedge.comparison.options import PairedConfig, Tolerance
    from vitedge.core.progress import bars
    from vitedge.errors import UsageError
    from vitedge.reporting import compared, terminal
    from vitedge.reporting.outcome import keeper, refuse_existing, refuse_worse
    from vitedge.runtimes.options import OpenOptions

    tolerance = Tolerance(max_slowdown_pct=max_slowdown, max_top1_drop_pp=max_drop)
    artifacts, results = api.comparable(artifact)
    refuse_existing([out], overwrite=overwrite, action="compare")
    if results:
        if data or duration or out or threads is not None or device:
            raise UsageError("compare results", "nothing is measured again", "omit the options of the measurement")
        comparisons = api.compare_results(results, tolerance)
    else:
        keep = keeper(out)
        options = OpenOptions(device=device, threads=threads, build=not no_build)
        with bars(quiet=quiet) as progress:
            result, comparisons = api.compare(
                artifacts[0],
                artifacts[1:],
                tolerance,
                options,
                config=PairedConfig(duration_s=duration, rounds=rounds),
                data=data,
                limit=limit,
                keep=keep,
                progress=progress,
            )
        if keep is not None:
            keep(result)
    terminal.emit(comparisons, json, compared.show_comparisons)
    refuse_worse(comparisons, strict=strict)
