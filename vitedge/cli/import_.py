"""``vitedge import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Json, Quiet
from vitedge.cli.records import takes_records
from vitedge.importing.options import ImportOptions


@takes_records("import a model")
def import_(
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    source: Annotated[
        str | None,
        typer.Argument(
            help="A timm or Hugging Face folder, a checkpoint (.pth, .pt, .ckpt, .bin, .safetensors), "
            "`hub:<org>/<name>[@revision]`, an ONNX file, a folder of `vitedge train`, or `embedded`."
        ),
    ] = None,
    *,
    options: ImportOptions,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Bring a published ViT, a torch module or an ONNX file into a model folder, and compare its logits.

    **Examples**

    `vitedge import vit_tiny_patch16_224/ --out model/`

    `vitedge import hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k --out model/`

    `vitedge import model_best.pth.tar --arch vit_tiny_patch16_224 --num-classes 5 --labels names.txt --out model/`

    `vitedge import classifier.onnx --labels names.txt --size 224 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --out model/`

    `vitedge import --factory my_models:small_swin --weights swin.safetensors --size 224 --mean … --std … --out model/`
    """
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.reporting import terminal

    with bars(quiet=quiet) as progress:
        model = api.import_model(source, out, options, progress=progress)
    terminal.emit([api.summary(model)], json, terminal.show_models)
