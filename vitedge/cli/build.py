"""``vitedge build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import OUTPUT, Json, Overwrite, Quiet, time_option

ENGINES = "Engines"
CHOICE = "Choice among candidates"


def build(
    artifact: Annotated[
        list[Path], typer.Argument(help="Artifacts for TensorRT or TensorRT-RTX, or one with candidates.")
    ],
    sm: Annotated[
        list[str] | None,
        typer.Option(
            "--sm",
            help="Compute capability for TensorRT-RTX to build for, as 8.9; repeat the option for several.",
            rich_help_panel=ENGINES,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder to write the engines to as well; with --autotune, the chosen artifact.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    autotune: Annotated[
        bool,
        typer.Option(
            "--autotune",
            help="Measure several artifacts of one model; keep the fastest within budget.",
            rich_help_panel=CHOICE,
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Labelled pictures for measuring the accuracy of the candidates.", rich_help_panel=CHOICE
        ),
    ] = None,
    duration: Annotated[
        float | None,
        time_option(
            "--duration", "Shortest measurement of each candidate: 30, 90s, 10m [default: the target's].", CHOICE
        ),
    ] = None,
    choices: Annotated[
        Path | None,
        typer.Option(
            "--choices",
            help="Folder to write the choice among candidates to as well, for machines of the same kind; called "
            "ARTIFACT.choices it's found beside the artifact.",
        ),
    ] = None,
    engines: Annotated[
        Path | None,
        typer.Option(
            "--engines",
            help="Folder to write the engines that this device built to as well, for equal devices; called "
            "ARTIFACT.engines it's found beside the artifact.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Explain what the engines do: types, reformats, fused attention.")
    ] = False,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            "--optimization-level",
            min=0,
            max=5,
            help="Builder optimization level of TensorRT [default: 3].",
            rich_help_panel=ENGINES,
        ),
    ] = None,
    workspace_mb: Annotated[
        int | None,
        typer.Option("--workspace-mb", min=1, help="Largest workspace of a layer, in MiB.", rich_help_panel=ENGINES),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="List the engines that would be built, with their memory and earlier build times; build nothing.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Build the engines of an artifact on the device, before they are first needed; choose among its candidates.

    The engines go to this device's cache, where opening the artifact finds them. TensorRT builds for the GPU of this
    machine; TensorRT-RTX builds ahead of time, without a GPU, for the GPUs that the target names. A folder that --out
    writes as ARTIFACT.engines is found beside the artifact. With --overwrite, engines for other GPUs in it stay, so
    that one folder serves several devices.

    The candidates of an artifact that was exported --with-candidates are measured here, interleaved, with any runtime.
    From then on, opening the artifact opens the fastest one within the budget, on this machine with this version of
    the runtime; --overwrite measures again.

    **Examples**

    `vitedge build artifact/`

    `vitedge build artifact/ --dry-run`

    `vitedge build artifact/ --sm 8.9 --sm 12.0 --out artifact.engines`

    `vitedge build fp16/ int8/ --autotune --data labelled/ --out best/`

    `vitedge build fp16/ int8/ --explain`
    """
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.reporting import built, terminal
    from vitedge.runtimes.options import OpenOptions

    given = {"optimization_level": optimization_level, "workspace_mb": workspace_mb}
    options = {name: value for name, value in given.items() if value is not None}
    if dry_run:
        terminal.emit(api.plan_build(artifact, sms=sm or (), options=options), json, built.show_planned)
        return
    with bars(quiet=quiet) as progress:
        if autotune or not explain:
            rows = api.build(
                artifact,
                sms=sm or (),
                out=out,
                autotune=autotune,
                data=data,
                duration_s=duration,
                choices=choices,
                engines=engines,
                options=options,
                overwrite=overwrite,
                progress=progress,
            )
            terminal.emit(rows, None if explain else json, built.show_build)
        if explain:
            explained, compared = api.explain_engines(artifact, OpenOptions(options=options), progress=progress)
            terminal.emit({"engines": explained, "compared": compared}, json, built.show_explained)
