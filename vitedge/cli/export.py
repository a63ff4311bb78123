"""``vitedge export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Json, Quiet
from vitedge.cli.records import takes_records
from vitedge.exporting.options import ExportOptions, chosen_precision


@takes_records("export a model")
def export(
    model: Annotated[Path, typer.Argument(help="Model folder that `vitedge import` or `vitedge train` wrote.")],
    target: Annotated[
        list[str],
        typer.Option("--target", "-t", help="Name or TOML file of the target; repeat the option for several."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Artifact folder to write; of several targets, the folder around them.")
    ],
    *,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            "-p",
            help="Precision that the target offers: fp32, fp16, int8, …; auto: the first that holds the budget.",
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Short for --precision int8.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Short for --precision fp16.")] = False,
    options: ExportOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Describe the export, and stop before any work.")] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Quantize and export a model for one or more targets.

    **Examples**

    `vitedge export model/ --target openvino --precision int8 --data images/ --out artifact/`

    `vitedge export model/ --target onnxruntime --precision auto --max-drop 0.5 --data images/ --out artifact/`

    `vitedge export model/ --target onnxruntime --int8 --autotune --data images/ --out artifact/`

    `vitedge export model/ --target onnxruntime --int8 --explain --data images/ --out artifact/`

    `vitedge export model/ --target raspberry-pi-5 --int8 --with-candidates --data images/ --out artifact/`

    `vitedge export model/ -t jetson-orin-nano -t raspberry-pi-5 --int8 --data images/ --out boards/`
    """
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.reporting import terminal

    wish = chosen_precision(precision, int8=int8, half=half)
    folders = [out] if len(target) == 1 else [out / f"{Path(name).stem}-{wish}" for name in target]
    plans = [
        api.plan_export(
            model,
            name,
            wish,
            folder,
            options,
        )
        for name, folder in zip(target, folders, strict=True)
    ]
    if dry_run:
        terminal.emit([api.summary(plan) for plan in plans], json, terminal.show_plans)
        return
    with bars(quiet=quiet) as progress:
        artifacts = [api.carry_out(plan, progress) for plan in plans]
    rows = [api.summary(artifact) for artifact in artifacts]
    if options.explain:
        explanations = [api.explain_export(plan, artifact) for plan, artifact in zip(plans, artifacts, strict=True)]
        rows = [row | explanation for row, explanation in zip(rows, explanations, strict=True)]
    terminal.emit(rows, json, terminal.show_exports)
