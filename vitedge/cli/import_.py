"""``vitedge import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_(
    out: Annotated[Path, typer.Option("--out", "-o", help="The model folder to write.")],
    source: Annotated[
        str | None,
        typer.Argument(help="A timm folder, an ONNX file, a folder of `vitedge train`, or `embedded`."),
    ] = None,
    factory: Annotated[
        str | None,
        typer.Option("--factory", help="Instead of a source: package.module:function, which returns a torch module."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="A state dict to load into the factory's module: safetensors.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Permit pickled --weights (.pt); tensors alone are read from them.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Class names: a text file (one a line), JSON, or a folder of class folders."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", help="The model's input, HEIGHT or HEIGHTxWIDTH, where the source doesn't say."),
    ] = None,
    resize: Annotated[str | None, typer.Option("--resize", help="shortest, squash or pad.")] = None,
    interpolation: Annotated[
        str | None,
        typer.Option("--interpolation", help="nearest, box, bilinear, hamming, bicubic or lanczos."),
    ] = None,
    crop_fraction: Annotated[
        float | None,
        typer.Option("--crop-fraction", help="Part of the resized picture that the centre crop keeps, 0 to 1."),
    ] = None,
    mean: Annotated[str | None, typer.Option("--mean", help="Three numbers: 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option("--std", help="Three numbers: 0.229,0.224,0.225.")] = None,
    rescale: Annotated[
        float | None,
        typer.Option("--rescale", help="Factor on the 0–255 values before mean and std, usually 1/255."),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option("--activation", help="From logits to probabilities: softmax, sigmoid or none."),
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="The model's licence.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model folder.")] = False,
    json: Annotated[str | None, typer.Option("--json", help="Write JSON to a file, or to stdout with -.")] = None,
) -> None:
    """Bring a published ViT, a torch module or an ONNX file into a model folder, proving that nothing changed.

    **Examples**

    `vitedge import vit_tiny_patch16_224/ --out model/`

    `vitedge import classifier.onnx --labels names.txt --size 224 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --out model/`

    `vitedge import --factory my_models:small_swin --weights swin.safetensors --size 224 --mean … --std … --out model/`
    """
    from vitedge import importing, pipeline
    from vitedge.reporting import terminal

    chosen = importing.chosen_source(source, factory, weights, allow_pickle=allow_pickle)

    overrides = importing.preprocessing_options(
        size=size,
        resize=resize,
        interpolation=interpolation,
        crop_fraction=crop_fraction,
        mean=mean,
        std=std,
        rescale=rescale,
        activation=activation,
    )
    model = pipeline.import_model(
        chosen, out, labels=labels, preprocessing=overrides, licence=licence, overwrite=overwrite
    )
    terminal.emit([importing.summary(model)], json, terminal.show_models)
