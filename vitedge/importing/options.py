"""Options of an import: the origin of a torch module, and values that complete the source's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import msgspec
from msgspec import Meta

from vitedge.core.options import Flag
from vitedge.core.schema import Record
from vitedge.errors import UsageError

if TYPE_CHECKING:
    from vitedge.graph.state_dicts import Choice

MODULE, CHECKPOINT, MODEL, PICTURES, VALUES = (
    "Torch module",
    "Checkpoint",
    "Model",
    "Preprocessing: pictures",
    "Preprocessing: values",
)


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``HEIGHT`` or ``HEIGHTxWIDTH`` in pixels.

    Raises:
        UsageError: neither.
    """
    sides = text.lower().replace("×", "x").split("x")
    if not all(side.strip().isdecimal() for side in sides) or len(sides) > 2:
        raise UsageError("set the input size", f"'{text}' isn't HEIGHT or HEIGHTxWIDTH", "write, say, --size 224")
    return int(sides[0]), int(sides[-1])


def parse_three(text: str) -> tuple[float, ...]:
    """Parse three numbers with commas between; integers stay integers.

    Raises:
        UsageError: others.
    """
    try:
        first, second, third = (int(part) if part.strip().isdecimal() else float(part) for part in text.split(","))
    except ValueError as error:
        hint = "write, say, 0.5,0.5,0.5"
        raise UsageError("read three numbers", f"'{text}' isn't three numbers with commas between", hint) from error
    return first, second, third


class ImportOptions(Record):
    """Options of an import. None takes the value that the source itself has.

    An ONNX file with float input, or a torch module, needs at least ``mean`` and ``std``, and ``size`` where its input
    has none, unless its metadata says them. Another ``size`` of a published checkpoint resizes its position embedding,
    ``patch_size`` its patch projection.
    """

    factory: Annotated[
        str | None,
        Flag(
            "Function that returns a torch module, instead of a source.", unit="package.module:function", group=MODULE
        ),
    ] = None
    weights: Annotated[str | None, Flag("State dict to load into the factory's module.", unit="path", group=MODULE)] = (
        None
    )
    allow_pickle: Annotated[
        bool, Flag("Not needed any more: of pickled --weights (.pt) only the tensors are read.", group=MODULE)
    ] = False
    arch: Annotated[
        str | None,
        Flag("Name of the architecture in timm.", unit="name", default="as the checkpoint says", group=CHECKPOINT),
    ] = None
    num_classes: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Flag("Number of classes that the checkpoint's head must have.", default="any", group=CHECKPOINT),
    ] = None
    use_ema: Annotated[
        bool, Flag("Take the averaged weights (EMA) of a checkpoint that has both.", group=CHECKPOINT)
    ] = False
    weights_key: Annotated[
        str | None,
        Flag(
            "State dict to take of several in a checkpoint, or in --weights: state_dict_ema.",
            unit="key",
            default="the usual one",
            group=CHECKPOINT,
        ),
    ] = None
    labels: Annotated[
        str | tuple[str, ...] | None,
        Flag(
            "Class names: a folder of class folders (sorted), a text file (a name a line, or 0 name), JSON (a list, "
            "names by id, or a config.json with id2label), or imagenet-1k.",
            default="the source's own",
            group=MODEL,
        ),
    ] = None
    licence: Annotated[str | None, Flag("Licence of the model.", default="the source's own", group=MODEL)] = None
    images: Annotated[
        str | None,
        Flag("Pictures on which model and source are compared.", unit="path", default="embedded ones", group=MODEL),
    ] = None
    overwrite: Annotated[bool, Flag("Replace an existing model folder.", group=MODEL)] = False
    size: Annotated[
        tuple[int, int] | None,
        Flag(
            "Input size of the model in pixels, HEIGHT or HEIGHTxWIDTH; another size than a published checkpoint's "
            "resizes its position embedding.",
            ("--size", "--img-size"),
            unit="pixels",
            default="the source's own",
            parse=parse_size,
            group=PICTURES,
        ),
    ] = None
    patch_size: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Flag(
            "Patch size that a published checkpoint's patch projection is resized to.",
            unit="pixels",
            default="the source's own",
            group=PICTURES,
        ),
    ] = None
    resize: Annotated[str | None, Flag("How pictures are fitted: shortest, squash or pad.", group=PICTURES)] = None
    interpolation: Annotated[
        str | None,
        Flag("Resampling filter: nearest, box, bilinear, hamming, bicubic or lanczos.", group=PICTURES),
    ] = None
    antialias: Annotated[
        bool | None,
        Flag("Apply a low-pass filter when pictures shrink.", ("--antialias/--no-antialias",), group=PICTURES),
    ] = None
    crop_fraction: Annotated[
        float | None,
        Flag("Fraction of the resized picture that the centre crop keeps.", unit="0 to 1", group=PICTURES),
    ] = None
    crop_rounding: Annotated[
        str | None, Flag("Rounding of size / crop fraction: floor, round or ceil.", group=PICTURES)
    ] = None
    crop_offset: Annotated[
        str | None,
        Flag("Rounding of half of the removed border: round (torchvision) or floor (transformers).", group=PICTURES),
    ] = None
    fill: Annotated[
        tuple[int, int, int] | None,
        Flag("Colour around padded pictures: 0,0,0.", unit="red,green,blue", parse=parse_three, group=PICTURES),
    ] = None
    exif_orientation: Annotated[
        bool | None, Flag("Rotate pictures as their EXIF data says.", ("--exif/--no-exif",), group=PICTURES)
    ] = None
    alpha: Annotated[
        str | None,
        Flag(
            "Transparency: drop the channel, or composite over the fill colour.", unit="drop|composite", group=PICTURES
        ),
    ] = None
    sixteen_bit: Annotated[
        str | None, Flag("Treatment of 16-bit pictures: scale to 8 bits, or clip at 255.", group=PICTURES)
    ] = None
    channel_order: Annotated[
        str | None, Flag("Channel order that the model was trained with: rgb or bgr.", group=VALUES)
    ] = None
    rescale: Annotated[
        float | None,
        Flag("Factor on the 0–255 values before mean and std, usually 1/255.", group=VALUES),
    ] = None
    mean: Annotated[
        tuple[float, float, float] | None,
        Flag("Mean of each channel: 0.485,0.456,0.406.", unit="r,g,b", parse=parse_three, group=VALUES),
    ] = None
    std: Annotated[
        tuple[float, float, float] | None,
        Flag(
            "Standard deviation of each channel: 0.229,0.224,0.225.",
            unit="r,g,b",
            parse=parse_three,
            group=VALUES,
        ),
    ] = None
    activation: Annotated[
        str | None, Flag("Function from logits to probabilities: softmax, sigmoid or none.", group=VALUES)
    ] = None

    @property
    def choice(self) -> Choice:
        """The given fields of :class:`~vitedge.graph.state_dicts.Choice`.

        Raises:
            UsageError: two ways to choose one state dict.
        """
        from vitedge.graph.state_dicts import Choice

        if self.weights_key is not None and self.use_ema:
            raise UsageError("import a model", "--weights-key and --use-ema both choose", "give one of them")
        return Choice(self.arch, self.num_classes, self.weights_key, self.use_ema)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The given fields of :class:`~vitedge.data.preprocessing.Preprocessing`, and ``patch_size``."""
        others = {
            "factory",
            "weights",
            "allow_pickle",
            "labels",
            "licence",
            "images",
            "overwrite",
            "arch",
            "num_classes",
        }
        others |= {"use_ema", "weights_key"}
        fields = msgspec.structs.asdict(self)
        return {name: value for name, value in fields.items() if name not in others and value is not None}


class ImportFields(TypedDict, total=False):
    """The fields of :class:`ImportOptions` as keywords."""

    factory: str | None
    weights: str | Path | None
    allow_pickle: bool
    arch: str | None
    num_classes: int | None
    use_ema: bool
    weights_key: str | None
    labels: str | Path | Sequence[str] | None
    licence: str | None
    images: str | Path | None
    overwrite: bool
    size: tuple[int, int] | None
    patch_size: int | None
    resize: str | None
    interpolation: str | None
    antialias: bool | None
    crop_fraction: float | None
    crop_rounding: str | None
    crop_offset: str | None
    fill: tuple[int, int, int] | None
    exif_orientation: bool | None
    alpha: str | None
    sixteen_bit: str | None
    channel_order: str | None
    rescale: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    activation: str | None
