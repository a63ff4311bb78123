"""``vitedge classify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import OUTPUT, Device, Json, NoBuild, Quiet, Threads
from vitedge.cli.records import takes_records
from vitedge.evaluation.options import EngineOptions, refuse_unused
from vitedge.runtimes.options import TOP_K


@takes_records("classify pictures")
def classify(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    picture: Annotated[
        list[str],
        typer.Argument(help="Pictures, or folders and archives of them; with --engine, paths and addresses of shards."),
    ],
    *,
    engine: EngineOptions,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=100, help="Number of classes to show.")] = TOP_K,
    threads: Threads = None,
    device: Device = None,
    no_build: NoBuild = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep the answers in --answers; only the missing shards are classified.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the answers in --answers.", rich_help_panel=OUTPUT)
    ] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Classify pictures with an artifact, in its runtime on this machine; exit with 3 when some can't be read.

    **Examples**

    `vitedge classify artifact/ photo.jpg`

    `vitedge classify artifact/ holiday/ --top-k 1 --json labels.json`

    `vitedge classify artifact/ gs://bucket/photos --engine ray --answers answers/`
    """
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.errors import UsageError
    from vitedge.reporting import measured, terminal
    from vitedge.reporting.outcome import refuse_unreadable
    from vitedge.runtimes.options import OpenOptions

    action = "classify pictures"
    refuse_unused(engine, {}, action)
    options = OpenOptions(device=device, threads=threads, build=not no_build)
    if engine.engine is not None:
        with bars(quiet=quiet) as progress:
            shards = api.classify_shards(
                artifact,
                picture,
                engine,
                options,
                top_k=top_k,
                resume=resume,
                overwrite=overwrite,
                progress=progress,
            )
        terminal.emit(shards, json, measured.show_classified_shards)
        refuse_unreadable(shards.examples, shards.unreadable, shards.pictures)
        return
    if resume or overwrite:
        flag = "--resume" if resume else "--overwrite"
        raise UsageError(action, f"{flag} is about the answers of an engine", f"add --engine ray, or omit {flag}")
    with bars(quiet=quiet) as progress:
        answers = api.classify(artifact, picture, options, top_k=top_k, progress=progress)
    terminal.emit(answers, json, measured.show_classified)
    unreadable = [entry.picture for entry in answers if entry.problem]
    refuse_unreadable(unreadable, len(unreadable), len(answers))
