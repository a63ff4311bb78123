"""``vitedge export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Json, Quiet


def export(
    model: Annotated[Path, typer.Argument(help="A model folder, as `vitedge import` or `vitedge train` writes it.")],
    target: Annotated[
        list[str], typer.Option("--target", "-t", help="A target's name, or a TOML file. Repeat it for several.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The artifact folder to write; with several targets, their parent.")
    ],
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", "-p", help="fp32, fp16, int8, … as the target offers; auto: what holds the budget."
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="A spelling of --precision int8.")] = False,
    half: Annotated[bool, typer.Option("--half", help="A spelling of --precision fp16.")] = False,
    recipe: Annotated[str, typer.Option("--recipe", help="How to calibrate; see `vitedge recipes`.")] = "default",
    data: Annotated[
        str | None,
        typer.Option("--data", help="Calibration images: a folder or archive. The embedded model has its own."),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option("--num-samples", min=1, help="Calibration images, instead of the recipe's number.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", min=0.0, help="Points of top-1 that may be lost; layers go back to float for it."),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option("--min-agreement", min=0.0, max=100.0, help="Per cent of pictures that float32 calls the same."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", help="Pictures that judge the loss [what calibration leaves of --data]."),
    ] = None,
    autotune: Annotated[
        bool,
        typer.Option("--autotune", help="Build all candidates, measure them here, and keep the fastest that fits."),
    ] = False,
    with_candidates: Annotated[
        bool,
        typer.Option("--with-candidates", help="The others travel along: `vitedge build` chooses on the device."),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Say why it's as fast and as exact as it is, layer by layer; draw OUT.selection.svg."
        ),
    ] = False,
    batch: Annotated[int | None, typer.Option("--batch", "-b", min=1, max=1024, help="Pictures per inference.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing artifact.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and stop.")] = False,
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
            recipe=recipe,
            data=data,
            num_samples=num_samples,
            held_out=held_out,
            max_drop=max_drop,
            min_agreement=min_agreement,
            autotune=autotune,
            with_candidates=with_candidates,
            explain=explain,
            batch=batch,
            overwrite=overwrite,
        )
        for name, folder in zip(target, folders, strict=True)
    ]
    if dry_run:
        terminal.emit([api.summary(plan) for plan in plans], json, terminal.show_plans)
        return
    with bars(quiet=quiet) as progress:
        artifacts = [api.carry_out(plan, progress) for plan in plans]
    rows = [api.summary(artifact) for artifact in artifacts]
    if explain:
        explanations = [api.explain_export(plan, artifact) for plan, artifact in zip(plans, artifacts, strict=True)]
        rows = [row | explanation for row, explanation in zip(rows, explanations, strict=True)]
    terminal.emit(rows, json, terminal.show_exports)


def chosen_precision(precision: str | None, *, int8: bool, half: bool) -> str:
    """One precision from ``--precision`` and its spellings.

    Raises:
        UsageError: none, or several that differ.
    """
    from vitedge.errors import UsageError, nearest
    from vitedge.exporting.options import PRECISIONS as precisions

    wishes = {wish for wish, given in ((precision, precision), ("int8", int8), ("fp16", half)) if given}
    action = f"export in precision {' and '.join(sorted(map(str, wishes))) or '(none)'}"
    if len(wishes) != 1:
        raise UsageError(action, "one precision is needed", f"choose: --precision {'|'.join(precisions)}")
    wish = str(wishes.pop())
    if wish not in precisions:
        raise UsageError(
            action,
            f"no precision has this name{nearest(wish, precisions)}",
            f"choose: --precision {'|'.join(precisions)}",
        )
    return wish
