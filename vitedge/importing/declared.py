"""Read what exporters store beside an ONNX file's tensors: preprocessing, class names and licence.

- Ultralytics (``yolo…-cls.onnx``): ``task``, ``imgsz``, ``names`` and others in the metadata, as Python literals.
- ONNX's own image metadata (``Image.BitmapPixelFormat``, ``Image.NominalPixelRange``): Azure Custom Vision writes them
  there or into ``metadata_properties.json``, with ``cvexport.manifest`` and ``labels.txt`` beside it.
- ``labels.txt`` beside a file that lies alone, a name (or number and name) a line, as Teachable Machine has it.

What a file doesn't say and its exporter's own library does with it is a default; the rest is asked for.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from vitedge.errors import ModelError

if TYPE_CHECKING:
    import onnx

MANIFEST, PROPERTIES, LABELS = "cvexport.manifest", "metadata_properties.json", "labels.txt"
MAX_TEXT = 1 << 22  # of a file or a value, characters
OWN = {"resize": "shortest", "interpolation": "bicubic", "crop_fraction": 1.0}  # defaults of vitedge

#: Ranges of a tensor's values for a pixel p from 0 to 255: (p * rescale - mean) / std. ONNX's MetadataProps.md.
_RANGES = {
    "nominalrange_0_255": (1.0, 0.0, 1.0),
    "normalized_0_1": (1 / 255, 0.0, 1.0),
    "normalized_1_1": (1 / 255, 0.5, 0.5),
    "nominalrange_16_235": (219 / 255, -16.0, 1.0),
}
_FORMATS = {"rgb8": "rgb", "bgr8": "bgr", "rgba8": "rgb", "bgra8": "bgr"}


@dataclass(frozen=True)
class Declared:
    """The facts about an ONNX file that its graph doesn't hold."""

    said: Mapping[str, Any] = field(default_factory=dict)  # the contract's fields that the file says
    defaults: Mapping[str, Any] = field(default_factory=lambda: dict(OWN))  # and those that its library has
    whose: str = "vitedge"
    names: tuple[str, ...] | Path = ()  # of the classes, or the file that has them
    names_from: str = ""
    licence: str | None = None
    hint: str = ""  # for what is missing, where the exporter is known

    def fields(self, model: onnx.ModelProto) -> dict[str, Any]:
        """Return all fields of the contract; the size of the graph's input takes precedence over the metadata's."""
        sides = input_sides(model)
        return {**self.defaults, **self.said, **({"size": sides} if sides is not None else {})}

    def details(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return, for ``origin.details``, the fields left to a default, whose default, and who named the classes."""
        taken = {name: value for name, value in self.defaults.items() if name not in {*self.said, *given}}
        details: dict[str, Any] = {"class_names_from": self.names_from} if self.names else {}
        return {**details, **({"preprocessing_defaults": {"from": self.whose, **taken}} if taken else {})}


def input_sides(model: onnx.ModelProto) -> tuple[int, int] | None:
    """Return (height, width) of the graph's image input; None where they aren't fixed."""
    from vitedge.graph import surgery

    shapes = ([dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in surgery.inputs(model))
    shape = next(shapes, [])
    if len(shape) != 4:
        return None
    height, width = shape[2:] if shape[1] == 3 else shape[1:3]
    return (height, width) if height > 0 and width > 0 else None


def read_declared(
    path: Path, model: onnx.ModelProto, names: tuple[str, ...], action: str, *, named: bool = False
) -> Declared:
    """Read an ONNX file's metadata and the files beside it.

    Args:
        path: the ONNX file.
        model: its content.
        names: class names that its graph holds.
        action: for error texts.
        named: the caller names the classes; nobody else's names are read.

    Raises:
        ModelError: metadata of another task than classification, or that can't be read.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    beside = _beside(path, _manifest(path, action))
    image = _image_metadata(path, metadata, action)
    if "task" in metadata and metadata.get("author") == "Ultralytics":
        declared = _ultralytics(metadata, model, action)
    elif image is not None:
        declared = _custom_vision(image, action)
    else:
        declared = Declared(hint=_likely(model, names, beside))
    if named:
        return declared
    if "names" in metadata:
        return replace(declared, names=_names(metadata["names"], action), names_from="names in the metadata")
    if names:
        return replace(declared, names=names, names_from="the graph's class map")
    return replace(declared, names=beside, names_from=beside.name) if beside is not None else declared


def _ultralytics(metadata: Mapping[str, str], model: onnx.ModelProto, action: str) -> Declared:
    """Read ``ultralytics.data.augment.classify_transforms``: shortest side, centre crop, bilinear, values 0 to 1."""
    if metadata["task"] != "classify":
        reason = f"its metadata says task '{metadata['task'][:40]}'; a classifier is expected"
        raise ModelError(action, reason, "export a model of the task classify (yolo…-cls)")
    size = _literal(metadata.get("imgsz", ""))
    said: dict[str, Any] = {}
    if isinstance(size, int):
        said["size"] = (size, size)
    elif isinstance(size, list | tuple) and len(size) == 2:
        said["size"] = tuple(size)
    sides = input_sides(model) or said.get("size")
    squash = sides is not None and sides[0] != sides[1]
    values = {"rescale": 1 / 255, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return Declared(
        said=said,
        defaults={**OWN, "resize": "squash" if squash else "shortest", "interpolation": "bilinear", **values},
        whose="Ultralytics",
        licence=metadata.get("license", "").split(" License")[0] or None,
    )


def _names(text: str, action: str) -> tuple[str, ...]:
    """Read ``{0: 'cat', 1: 'dog'}`` or ``['cat', 'dog']``."""
    names = _literal(text)
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        reason = f"names in its metadata aren't those of classes 0, 1, 2, …: {text[:60]}"
        raise ModelError(action, reason, "name them yourself: --labels FILE")
    by_id = {str(key): str(name) for key, name in names.items()}
    return tuple(by_id[str(index)] for index in range(len(names)))


def _literal(text: str) -> object:
    """Return a Python literal's value; None for anything else."""
    try:
        return ast.literal_eval(text) if len(text) <= MAX_TEXT else None
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _image_metadata(path: Path, metadata: Mapping[str, str], action: str) -> dict[str, str] | None:
    """Return ONNX's image metadata with lower-case keys, from the file or beside it; None where there is none."""
    found = {key.lower(): value for key, value in metadata.items()}
    if "image.nominalpixelrange" not in found and (path.parent / PROPERTIES).is_file() and _alone(path):
        found |= {key.lower(): str(value) for key, value in _json(path.parent / PROPERTIES, action).items()}
    return found if {"image.nominalpixelrange", "image.bitmappixelformat"} & found.keys() else None


def _custom_vision(image: Mapping[str, str], action: str) -> Declared:
    """Read pixel format and range, then Custom Vision's own keys; its sample code resizes as Pillow does by default."""
    method = image.get("customvision.postprocess.method", "ClassificationMultiClass")
    if method != "ClassificationMultiClass":
        reason = f"its metadata says {method[:60]}; a classifier of one class a picture is expected"
        raise ModelError(action, reason, "train a classifier of the type Multiclass, and export that")
    gamma = image.get("image.colorspacegamma", "SRGB")
    pixel_format = image.get("image.bitmappixelformat", "Rgb8")
    pixel_range = image.get("image.nominalpixelrange", "Normalized_0_1")  # as the sample code has it
    if gamma.lower() != "srgb" or pixel_format.lower() not in _FORMATS or pixel_range.lower() not in _RANGES:
        return Declared(hint=f"its metadata says {pixel_format[:20]}, {gamma[:20]}, {pixel_range[:30]}")
    rescale, mean, std = _RANGES[pixel_range.lower()]
    more_mean = _three(image.get("customvision.preprocess.normalizemean", ""), 0.0)
    more_std = _three(image.get("customvision.preprocess.normalizestd", ""), 1.0)
    said: dict[str, Any] = {
        "channel_order": _FORMATS[pixel_format.lower()],
        "rescale": rescale,
        "mean": tuple(float(value) for value in mean + std * more_mean),
        "std": tuple(float(value) for value in std * more_std),
        **_crop(image),
    }
    return Declared(said=said, defaults={**OWN, "resize": "squash"}, whose="Custom Vision's sample code")


def _three(text: str, otherwise: float) -> Any:
    value = _literal(text)
    right = isinstance(value, list) and len(value) == 3 and all(isinstance(number, int | float) for number in value)
    return np.asarray(value if right else [otherwise] * 3, np.float64)


def _crop(image: Mapping[str, str]) -> dict[str, Any]:
    """Return a centre crop after resizing the shorter side, where the metadata has one."""
    sides = [_literal(image.get(f"customvision.preprocess.{name}", "")) for name in ("cropheight", "targetheight")]
    crop, target = (side if isinstance(side, int) else 0 for side in sides)
    shorter = image.get("customvision.preprocess.resizemethod", "").startswith("ByShorterSide")
    centre = image.get("customvision.preprocess.cropmethod") == "OneCropCenter"
    if not (shorter and centre and 0 < crop <= target):
        return {}
    return {"size": (crop, crop), "resize": "shortest", "crop_fraction": crop / target, "crop_rounding": "round"}


def _manifest(path: Path, action: str) -> dict[str, Any]:
    """Return Custom Vision's manifest beside the file, empty where there is none.

    Raises:
        ModelError: it isn't a classifier's.
    """
    if not (path.parent / MANIFEST).is_file() or not _alone(path):
        return {}
    manifest = _json(path.parent / MANIFEST, action)
    if str(manifest.get("DomainType") or "Classification") != "Classification":
        reason = f"{MANIFEST} says {str(manifest['DomainType'])[:40]}; a classifier is expected"
        raise ModelError(action, reason, "train a classifier, and export that")
    return manifest


def _beside(path: Path, manifest: Mapping[str, Any]) -> Path | None:
    """Return the file of class names that the manifest names, else ``labels.txt`` if it can only be this model's."""
    file = path.parent / Path(str(manifest.get("LabelFileName") or LABELS)).name
    return file if _alone(path) and file.is_file() and file.stat().st_size <= MAX_TEXT else None


def _alone(path: Path) -> bool:
    """Whether the files beside an ONNX file can only belong to it."""
    return len(list(path.parent.glob("*.onnx"))) == 1


def _json(path: Path, action: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes()[: MAX_TEXT + 1], type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        hint = "export the model again, or move the ONNX file to a folder of its own"
        raise ModelError(action, f"{path.name} beside it can't be read: {error}", hint) from error


def _likely(model: onnx.ModelProto, names: tuple[str, ...], beside: Path | None) -> str:
    """Return the usual values of exporters of such graphs, for the hint of a refusal."""
    if names:
        return "older exports of Custom Vision: --channel-order bgr --rescale 1 --mean 0,0,0 --std 1,1,1"
    if beside is not None and model.producer_name == "tf2onnx":
        values = "--resize shortest --interpolation lanczos --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"
        return f"Teachable Machine: {values}"
    return ""
