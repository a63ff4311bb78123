"""transformers' image processors: read the preprocessing in a checkpoint's folder as fields of the contract.

The rule is what ``AutoImageProcessor`` of transformers 5 makes of the same folder. Its classes have defaults of their
own, which stand for every key that a file leaves out or sets to null; whatever is taken from them is reported. What a
contract can't express, and what nothing says, is asked for, unless the caller has said it already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitedge.errors import UsageError
from vitedge.graph.checkpoint import flags, read_json

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # newer folders hold the image processor inside this one
ASKED = ("resize", "interpolation", "crop_fraction", "mean", "std")  # what no model can be used without

_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers


@dataclass(frozen=True)
class _Kind:
    """The defaults of an image processor's class."""

    size: int | Mapping[str, int]  # a number: the shortest edge
    resample: int = 3
    crop_size: int | None = None
    crops: bool = False
    mean: tuple[float, ...] = _HALF
    std: tuple[float, ...] = _HALF
    squares: bool = True  # what a single number means: both sides, or the shortest edge


_KINDS = {
    "ViT": _Kind({"height": 224, "width": 224}, resample=2),
    "DeiT": _Kind({"height": 256, "width": 256}, crop_size=224, crops=True),
    "Beit": _Kind({"height": 224, "width": 224}, crop_size=224),
    "Siglip": _Kind({"height": 224, "width": 224}, squares=False),
    "Pvt": _Kind({"height": 224, "width": 224}, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "Bit": _Kind(224, crop_size=224, crops=True, mean=_CLIP_MEAN, std=_CLIP_STD, squares=False),
    "CLIP": _Kind(224, crop_size=224, crops=True, mean=_CLIP_MEAN, std=_CLIP_STD, squares=False),
    "Levit": _Kind(224, crop_size=224, crops=True, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, squares=False),
    "ConvNext": _Kind(384, squares=False),
    "MobileNetV1": _Kind(256, resample=2, crop_size=224, crops=True, squares=False),
    "MobileNetV2": _Kind(256, resample=2, crop_size=224, crops=True, squares=False),
}
_BY_MODEL = {"vit": "ViT", "deit": "DeiT", "dinov2": "Bit"}  # where the file names no class; other models have none
_EXAMPLE = {
    "ViT": ("ViTImageProcessor's defaults", "squash", "bilinear", 1, _HALF, _HALF),
    "DeiT": ("the published DeiT's", "squash", "bicubic", 0.875, _IMAGENET_MEAN, _IMAGENET_STD),
    "Bit": ("the published DINOv2's", "shortest", "bicubic", 0.875, _IMAGENET_MEAN, _IMAGENET_STD),
}


class _Unclear(Exception):
    """The reason why the file doesn't say how pictures are brought to the model's size."""


@dataclass
class _Settings:
    """The file's values, and the class's defaults for keys that the file leaves out."""

    values: Mapping[str, Any]
    kind: _Kind
    defaulted: set[str] = field(default_factory=set)  # keys for which the class spoke

    def get(self, key: str, default: Any) -> Any:
        if self.values.get(key) is not None:
            return self.values[key]
        self.defaulted.add(key)
        return default


def read_preprocessing(
    folder: Path, model: str, image_size: tuple[int, int], given: Mapping[str, Any], action: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the contract's fields that the folder gives, and those of them that the class's defaults fill.

    Args:
        folder: the checkpoint's.
        model: its architecture: "vit", "deit", "dinov2" or "dinov2_with_registers".
        image_size: (height, width) that its weights are for, pixels.
        given: fields that the caller says; they are no more asked for.
        action: for error texts.

    Returns:
        The fields, and ``{"from": the class's name, field: value, …}``, empty where the file says all.

    Raises:
        ModelError: a malformed file.
        UsageError: it leaves open how pictures are prepared, and so does the caller.
    """
    values = _values(folder, action)
    like = _BY_MODEL.get(model, "Bit")
    if values is None:
        _ask(f"there is no {PREPROCESSOR}, which says how its pictures are prepared", ASKED, like, given, action)
        return {"size": image_size}, {}
    named = values.get("image_processor_type") or values.get("feature_extractor_type")
    name = _class_name(named) if named else _BY_MODEL.get(model, "")
    if name not in _KINDS:
        unknown = f"the image processor '{str(named)[:60]}' isn't known here"
        _ask(unknown if named else f"{PREPROCESSOR} names no image processor", ASKED, like, given, action)
        return {"size": image_size}, {}
    settings = _Settings(values, _KINDS[name])
    fields: dict[str, Any] = {"size": image_size}
    try:
        fields |= _geometry(settings, name)
    except _Unclear as unclear:
        _ask(f"{PREPROCESSOR} {unclear}", ("resize", "crop_fraction"), like, given, action)
    fields |= _interpolation(settings, like, given, action) | _values_of_pixels(settings, like, given, action)
    return fields, _defaults(settings, fields, f"{name}ImageProcessor of transformers", bool(named))


def _values(folder: Path, action: str) -> dict[str, Any] | None:
    """Return the image processor's dictionary, from whichever file has it."""
    if (folder / PROCESSOR).is_file():
        inside = read_json(folder / PROCESSOR, dict[str, Any], action).get("image_processor")
        if isinstance(inside, dict):
            return inside
    return read_json(folder / PREPROCESSOR, dict[str, Any], action) if (folder / PREPROCESSOR).is_file() else None


def _class_name(named: object) -> str:
    name = str(named)
    for end in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(end)
    return name


def _ask(reason: str, wanted: tuple[str, ...], like: str, given: Mapping[str, Any], action: str) -> None:
    """Ask for the needed fields that the caller hasn't given, with an example that can be typed.

    Raises:
        UsageError: any is missing.
    """
    missing = [name for name in wanted if name not in given]
    if not missing:
        return
    whose, *values = _EXAMPLE[like]
    example = {name: value for name, value in zip(ASKED, values, strict=True) if name in missing}
    asked = ", ".join(flags(dict.fromkeys(missing)))
    hint = f"give what it was trained with; {whose} are {' '.join(flags(example))}"
    if len(missing) == len(ASKED):
        hint += f"; or copy the {PREPROCESSOR} of the model that was fine-tuned into the folder"
    raise UsageError(action, f"{reason}; missing: {asked}", hint)


def _interpolation(settings: _Settings, like: str, given: Mapping[str, Any], action: str) -> dict[str, Any]:
    resample = settings.get("resample", settings.kind.resample)
    if isinstance(resample, int) and 0 <= resample < len(_RESAMPLE):
        return {"interpolation": _RESAMPLE[resample]}
    _ask(
        f"{PREPROCESSOR} has resample {resample!r}, which is none of Pillow's", ("interpolation",), like, given, action
    )
    return {}


def _values_of_pixels(settings: _Settings, like: str, given: Mapping[str, Any], action: str) -> dict[str, Any]:
    """Return rescale, mean and std."""
    fields: dict[str, Any] = {"rescale": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if settings.get("do_rescale", True):
        fields["rescale"] = settings.get("rescale_factor", 1 / 255)
    if settings.get("do_normalize", True):
        for name in ("mean", "std"):
            value = settings.get(f"image_{name}", getattr(settings.kind, name))
            three = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
            if len(three) != 3 or not all(isinstance(number, int | float) for number in three):
                reason = f"{PREPROCESSOR} has image_{name} {value!r}, which isn't three numbers"
                _ask(reason, (name,), like, given, action)
            else:
                fields[name] = three
    return fields


def _geometry(settings: _Settings, name: str) -> dict[str, Any]:
    """Return size, resize and crop.

    Raises:
        _Unclear: the contract can't express it.
    """
    if not settings.get("do_resize", True):
        raise _Unclear("leaves pictures at their own size (do_resize is false)")
    size = _sides(settings.get("size", settings.kind.size), settings.kind.squares, "size")
    edge = size[0] if len(size) == 1 else None
    fields: dict[str, Any] = {"crop_rounding": "round", "crop_offset": "floor"}
    if name == "ConvNext":
        if edge is None:
            raise _Unclear("has a size without shortest_edge, which ConvNextImageProcessor doesn't take")
        if edge >= 384:
            return {**fields, "size": (edge, edge), "resize": "squash", "crop_fraction": 1.0}
        fraction = settings.get("crop_pct", 224 / 256)
        return {
            **fields,
            "size": (edge, edge),
            "resize": "shortest",
            "crop_fraction": fraction,
            "crop_rounding": "floor",
        }
    if name == "Levit" and edge is not None:
        edge = int(256 / 224 * edge)
    resized = (edge, edge) if edge is not None else (size[0], size[-1])
    cropped = resized
    if settings.get("do_center_crop", settings.kind.crops):
        crop = _sides(settings.get("crop_size", settings.kind.crop_size), True, "crop_size")
        cropped = (crop[0], crop[-1])
    elif edge is not None:
        raise _Unclear(f"makes pictures of no fixed size (shortest_edge {edge} without a crop)")
    uneven = cropped[0] * resized[1] != cropped[1] * resized[0]
    if uneven or cropped[0] > resized[0]:
        raise _Unclear(f"cuts {cropped[0]}×{cropped[1]} from {resized[0]}×{resized[1]} pixels, which isn't offered")
    how = "squash" if edge is None else "shortest"
    return {**fields, "size": cropped, "resize": how, "crop_fraction": cropped[0] / resized[0]}


def _sides(value: object, squares: bool, key: str) -> tuple[int, ...]:
    """Return (height, width), or (shortest edge,).

    Raises:
        _Unclear: neither.
    """
    if isinstance(value, Mapping):
        value = {name: pixels for name, pixels in value.items() if pixels is not None}
        sides: tuple[Any, ...] = tuple(value.get(name) for name in ("height", "width"))
        if value.keys() == {"shortest_edge"}:
            sides = (value["shortest_edge"],)
    else:
        sides = tuple(value) if isinstance(value, list | tuple) else (value,) * (2 if squares else 1)
    if len(sides) > 2 or not all(type(pixels) is int and 0 < pixels <= 4096 for pixels in sides):
        raise _Unclear(f"has {key} {value!r}, which isn't height and width, or shortest_edge")
    return sides


_FIELDS = {
    "size": "size",
    "resample": "interpolation",
    "do_center_crop": "crop_fraction",
    "crop_size": "crop_fraction",
    "crop_pct": "crop_fraction",
    "rescale_factor": "rescale",
    "image_mean": "mean",
    "image_std": "std",
}


def _defaults(settings: _Settings, fields: Mapping[str, Any], whose: str, named: bool) -> dict[str, Any]:
    """Return the fields that the class's defaults filled, and the class's name."""
    names = {_FIELDS[key] for key in settings.defaulted if key in _FIELDS}
    if "size" in names or (not named and not isinstance(settings.values.get("size"), dict)):
        names.add("resize")
    if fields.get("crop_fraction") == 1.0:
        names.discard("crop_fraction")
    taken = {name: value for name, value in fields.items() if name in names}
    return {"from": whose, **taken} if taken else {}
