"""``vitedge train``."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Quiet
from vitedge.cli.records import takes_records
from vitedge.training.options import TrainOptions


@takes_records("train a model")
def train(
    data: Annotated[
        str, typer.Argument(help="Class folders (data/cat/1.jpg, …), a .zip or .tar of them, or tar shards.")
    ],
    out: Annotated[Path, typer.Option(help="Model folder to write; OUT.run beside it holds the checkpoint.")],
    *,
    options: TrainOptions,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from OUT.run/checkpoint.pt.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT and start over.")] = False,
    test: Annotated[str | None, typer.Option("--test", help="Class folders to evaluate once, at the end.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a compact Vision Transformer on class folders, from scratch or from a trained model.

    --resume continues a run that was stopped or killed, and ends with the same weights. Under torchrun, several
    processes share every step.

    **Examples**

    `vitedge train photos/ --model vit_edge_conv_32 --out model/ --epochs 30`

    `vitedge train photos/ --init-from embedded --out model/ --epochs 30 --layer-decay 0.75`

    `vitedge train photos/ --model vit_mini_patch4_32 --teacher big/ --out model/`

    `torchrun --nproc-per-node 2 -m vitedge train photos/ --model vit_edge_conv_32 --out model/ --device cuda`
    """
    from vitedge import api
    from vitedge.core.progress import bars

    first = os.environ.get("RANK", "0") == "0"  # only one of torchrun's processes prints
    with bars(quiet=quiet) as progress:
        if first and not quiet and sys.stderr.isatty():  # it takes seconds
            sys.stderr.write("starting torch\n")
        written = api.train(
            data,
            options,
            out,
            resume=resume,
            overwrite=overwrite,
            test=test,
            command=shlex.join(["vitedge", *sys.argv[1:]]),
            progress=progress,
        )
    if first:
        print(written)
