"""``vitedge import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Json


def import_(
    out: Annotated[Path, typer.Option("--out", "-o", help="The model folder to write.")],
    source: Annotated[
        str | None,
        typer.Argument(
            help="A timm or Hugging Face folder, `hub:<org>/<name>[@revision]`, an ONNX file, "
            "a folder of `vitedge train`, or `embedded`."
        ),
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
        str | None,
        typer.Option(
            "--labels", help="Class names: a text file (one a line), JSON, a folder of class folders, or imagenet-1k."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Pictures to compare with the source on, instead of the embedded ones."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            help="The model's input, HEIGHT or HEIGHTxWIDTH: where the source doesn't say, or another one, for which "
            "a published checkpoint's position embedding is resized.",
        ),
    ] = None,
    patch_size: Annotated[
        int | None,
        typer.Option("--patch-size", min=1, help="Another patch size of a published checkpoint, pixels."),
    ] = None,
    resize: Annotated[str | None, typer.Option("--resize", help="shortest, squash or pad.")] = None,
    interpolation: Annotated[
        str | None,
        typer.Option("--interpolation", help="nearest, box, bilinear, hamming, bicubic or lanczos."),
    ] = None,
    antialias: Annotated[
        bool | None,
        typer.Option("--antialias/--no-antialias", help="Low-pass filter when pictures shrink."),
    ] = None,
    crop_fraction: Annotated[
        float | None,
        typer.Option("--crop-fraction", help="Part of the resized picture that the centre crop keeps, 0 to 1."),
    ] = None,
    crop_rounding: Annotated[
        str | None,
        typer.Option("--crop-rounding", help="Of size / crop fraction: floor, round or ceil."),
    ] = None,
    crop_offset: Annotated[
        str | None,
        typer.Option("--crop-offset", help="Of half of what is cut off: round (torchvision) or floor (transformers)."),
    ] = None,
    fill: Annotated[str | None, typer.Option("--fill", help="Colour around padded pictures: 0,0,0.")] = None,
    channel_order: Annotated[
        str | None,
        typer.Option("--channel-order", help="What the model was trained with: rgb or bgr."),
    ] = None,
    mean: Annotated[str | None, typer.Option("--mean", help="Three numbers: 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option("--std", help="Three numbers: 0.229,0.224,0.225.")] = None,
    rescale: Annotated[
        float | None,
        typer.Option("--rescale", help="Factor on the 0–255 values before mean and std, usually 1/255."),
    ] = None,
    exif: Annotated[
        bool | None,
        typer.Option("--exif/--no-exif", help="Turn pictures as their EXIF says."),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option("--alpha", help="Transparent pictures: drop the channel, or composite over the fill colour."),
    ] = None,
    sixteen_bit: Annotated[
        str | None,
        typer.Option("--sixteen-bit", help="16-bit pictures: scale to 8 bits, or clip at 255."),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option("--activation", help="From logits to probabilities: softmax, sigmoid or none."),
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="The model's licence.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model folder.")] = False,
    json: Json = None,
) -> None:
    """Bring a published ViT, a torch module or an ONNX file into a model folder, proving that nothing changed.

    **Examples**

    `vitedge import vit_tiny_patch16_224/ --out model/`

    `vitedge import hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k --out model/`

    `vitedge import classifier.onnx --labels names.txt --size 224 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --out model/`

    `vitedge import --factory my_models:small_swin --weights swin.safetensors --size 224 --mean … --std … --out model/`
    """
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.importing.options import preprocessing_options
    from vitedge.reporting import terminal

    overrides = preprocessing_options(
        size=size,
        resize=resize,
        patch_size=patch_size,
        interpolation=interpolation,
        antialias=antialias,
        crop_fraction=crop_fraction,
        crop_rounding=crop_rounding,
        crop_offset=crop_offset,
        fill=fill,
        channel_order=channel_order,
        mean=mean,
        std=std,
        rescale=rescale,
        exif_orientation=exif,
        alpha=alpha,
        sixteen_bit=sixteen_bit,
        activation=activation,
    )
    with bars() as progress:
        model = api.import_model(
            source,
            out,
            factory=factory,
            weights=weights,
            allow_pickle=allow_pickle,
            labels=labels,
            preprocessing=overrides,
            licence=licence,
            images=images,
            overwrite=overwrite,
            progress=progress,
        )
    terminal.emit([api.summary(model)], json, terminal.show_models)
