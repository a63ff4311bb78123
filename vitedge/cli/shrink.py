"""``vitedge shrink``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Json, Quiet
from vitedge.cli.records import takes_records
from vitedge.shrinking.options import ShrinkOptions


@takes_records("shrink a model")
def shrink(
    model: Annotated[Path, typer.Argument(help="Model folder that `vitedge import` or `vitedge train` wrote.")],
    target: Annotated[
        str, typer.Option("--target", "-t", help="Name or TOML file of the target that the model is to be fast on.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Model folder to write.")] = None,
    *,
    options: ShrinkOptions,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Make a model narrower until it meets a budget of latency, at the least loss, without training or labels.

    It removes MLP units, channels of queries, keys and values, heads, branches, and channels of convolutions, chosen by
    the time that each saves on the target and the error that it adds. The remaining weights are fitted by least squares
    over the pictures. The result is a model folder like any other.

    **Examples**

    `vitedge shrink model/ --target onnxruntime --precision int8 --speedup 1.5 --data images/ --out small/`

    `vitedge shrink model/ --target onnxruntime --macs 0.6 --max-drop 1 --data images/ --out small/`

    `vitedge shrink model/ --target onnxruntime --speedup 2 --resolutions 160,192 --data images/ --out small/`

    `vitedge shrink model/ --target onnxruntime --speedup 2 --finetune 10 --data images/ --out small/`

    `vitedge shrink model/ --target onnxruntime --frontier --data images/ --out small`

    `vitedge shrink model/ --target raspberry-pi-5 --table table.json`

    `vitedge shrink model/ --target raspberry-pi-5 --table table.json --latency 20 --data images/ --out small/`
    """
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.reporting import shrunk, terminal

    action = f"shrink {model}"
    with bars(quiet=quiet) as progress:
        if options.table is not None and not options.budgets and not options.frontier:
            table = api.latency_table(model, target, options.table, options, progress=progress)
            terminal.emit(table, json, shrunk.show_table(options.table))
            return
        if out is None:
            raise shrunk.no_out(action)
        done = (
            None
            if options.frontier and not options.budgets
            else api.shrink(model, target, out, options, progress=progress)
        )
        curve = api.shrink_frontier(model, target, out, options, progress=progress) if options.frontier else None
    row = shrunk.summary(done, curve)
    terminal.emit(row, json, shrunk.show)
