"""``vitedge eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import OUTPUT, Device, Json, NoBuild, Overwrite, Quiet, ResultOut, Threads
from vitedge.cli.records import takes_records
from vitedge.evaluation.options import EngineOptions, refuse_unused

PICTURES = "Pictures"


@takes_records("evaluate accuracy")
def eval_(
    artifact: Annotated[list[Path], typer.Argument(help="Artifact folders; all answer in one pass over the images.")],
    *,
    engine: EngineOptions,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Labelled images: a folder or archive with one sub-folder a class. "
            "The embedded model has its own: held-out, display.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Number of images to evaluate, the same ones on every machine.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    threads: Threads = None,
    device: Device = None,
    no_build: NoBuild = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            max=64,
            help="Number of processes that decode images [default: one for each core, none for few images].",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    out: ResultOut = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from the partial result in --out, or from the answers in --answers.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    json: Json = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure the accuracy of one or more artifacts on labelled images, paired with the float32 one among them.

    Top-1 and top-5 with intervals, the difference with McNemar's exact test, flips, and calibration of the
    probabilities. Images that an artifact was calibrated on are refused. With --out, the evaluation so far is written
    every few seconds and marked partial, and --resume continues a run that was stopped or killed.

    With --engine, a cluster evaluates any number of images at any address, and --resume continues from the answers in
    --answers.

    **Examples**

    `vitedge eval float/ int8/ --data labelled/ --out accuracy.json`

    `vitedge eval float/ int8/ --data labelled/ --out accuracy.json --resume`

    `vitedge eval artifact/ --data test.tar.gz --limit 1000`

    `vitedge eval int8/ --data 's3://bucket/val-{000..127}.tar' --engine ray --answers answers/ --out accuracy.json`
    """
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.reporting.outcome import keeper, result_to, resumable
    from vitedge.runtimes.options import OpenOptions

    action = "evaluate accuracy"
    refuse_unused(engine, {"--limit": limit, "--workers": workers}, action)
    options = OpenOptions(device=device, threads=threads, build=not no_build)
    earlier = resumable(out, wanted=resume and not (engine.engine and out is None), action=action)
    with result_to(out, json, overwrite=overwrite or earlier is not None, action=action, resumes=True) as deliver:
        with bars(quiet=quiet) as progress:
            if engine.engine is not None:
                result = api.evaluate_shards(
                    artifact,
                    data,
                    engine,
                    options,
                    earlier=earlier,
                    resume=resume,
                    overwrite=overwrite,
                    progress=progress,
                )
            else:
                result = api.evaluate(
                    artifact,
                    data,
                    options,
                    limit=limit,
                    workers=workers,
                    resume=earlier,
                    keep=keeper(out),
                    progress=progress,
                )
        deliver(result)
