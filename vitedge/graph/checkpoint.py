"""A published model, read and checked, and the functions that the readers of every layout share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError, NotInstalledError, UsageError
from vitedge.formats.architecture import ConvStem, PatchStem, ViTConfig
from vitedge.formats.model_folder import MODEL_WEIGHTS, ClassLabel, ModelRecord
from vitedge.graph.merging import MERGED
from vitedge.graph.positions import resize_patches, resize_positions

T = TypeVar("T")
Arrays = dict[str, NDArray[np.generic]]

CONFIG_JSON = "config.json"
MAX_BYTES = 1 << 31
TO_ONNX = "export the model to ONNX and import that"


@dataclass(frozen=True)
class Checkpoint:
    """A published model, read and checked: enough to author its graph."""

    kind: Literal["timm", "huggingface", "vitedge"]
    name: str
    config: ViTConfig
    arrays: Arrays  # our parameter names
    preprocessing: Preprocessing
    classes: tuple[ClassLabel, ...] | None  # None: the source names none
    licence: str | None
    details: dict[str, Any] = field(default_factory=dict)
    record: ModelRecord | None = None  # of a model folder of ours


def resized(
    config: ViTConfig,
    arrays: Arrays,
    image_size: tuple[int, int],
    action: str,
    *,
    patch_size: int | None = None,
    antialias: bool = True,
) -> tuple[ViTConfig, Arrays, dict[str, str]]:
    """Return the same model for another image or patch size, and a description of the change.

    The position embedding is resized as :func:`~vitedge.graph.positions.resize_positions` does, the patch projection
    as :func:`~vitedge.graph.positions.resize_patches`; a rotary embedding follows from the new grid.

    Args:
        config: as published.
        arrays: likewise; they aren't changed.
        image_size: (height, width), pixels.
        action: for error texts.
        patch_size: side in pixels; None keeps it.
        antialias: of the position embedding, when it shrinks.

    Raises:
        ModelError: the size isn't made of whole patches, or the model has a convolutional stem.
    """
    done: dict[str, str] = {}
    arrays = dict(arrays)
    stem = config.stem
    if patch_size is not None and patch_size != stem.stride:
        if not isinstance(stem, PatchStem):
            raise ModelError(action, "a convolutional stem has no patch size to change", "leave the patch size out")
        arrays["patch_embed.proj.weight"] = resize_patches(arrays["patch_embed.proj.weight"], patch_size)
        done["patch_projection"] = f"resized from {stem.patch_size} to {patch_size} pixels"
        stem = PatchStem(patch_size=patch_size)
    new = resized_config(config, image_size, action, stem=stem)
    if new.grid != config.grid and config.position_embedding == "learned":
        prefix = config.prefix_tokens if config.position_embedding_covers_prefix else 0
        positions = resize_positions(arrays["pos_embed"], config.grid, new.grid, prefix, antialias=antialias)
        arrays["pos_embed"] = positions
        old = "×".join(map(str, config.grid))
        done["position_embedding"] = f"resized from {old} to {new.grid[0]}×{new.grid[1]} patches"
    return new, arrays, done


def resized_config(
    config: ViTConfig, image_size: tuple[int, int], action: str, *, stem: PatchStem | ConvStem | None = None
) -> ViTConfig:
    """Return the architecture for another image size and perhaps another stem.

    Raises:
        ModelError: the size isn't made of whole patches, or of too many.
    """
    stem = stem or config.stem
    try:
        new = replace(config, image_size=image_size, stem=stem)
    except ValueError as error:
        hint = f"choose a multiple of {stem.stride}"
        raise ModelError(action, f"{image_size[0]}×{image_size[1]} pixels: {error}", hint) from error
    if new.grid != config.grid and config.merges:
        raise ModelError(action, MERGED, "start from the whole model that it was shrunk from")
    if new.grid != config.grid and config.position_embedding == "learned" and max(new.grid) > 1024:
        raise ModelError(action, f"{new.grid[0]}×{new.grid[1]} patches are too many", "choose a smaller size")
    return new


def contract_from(published: Mapping[str, Any], given: Mapping[str, Any], file: str, action: str) -> Preprocessing:
    """Return the source's preprocessing, with the caller's fields in place of its own.

    Raises:
        UsageError: a field of the caller's that can't be kept.
        ModelError: one of the source's.
    """
    try:
        msgspec.convert({"size": (1, 1), **given}, Preprocessing)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(action, f"the preprocessing is wrong: {error}", "run: vitedge import --help") from error
    hint = "give that value yourself; run: vitedge import --help"
    try:
        return msgspec.convert({**published, **given}, Preprocessing)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ModelError(action, f"the preprocessing in {file} can't be kept: {error}", hint) from error


def taken_defaults(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return, for ``origin.details``, the fields that come from a library's defaults and not from the caller."""
    taken = {name: value for name, value in defaults.items() if name not in given}
    return {"preprocessing_defaults": taken} if taken.keys() - {"from"} else {}


def flags(fields: Mapping[str, Any]) -> list[str]:
    """Return fields as command-line options, ``--crop-fraction 0.9``; without a value where it's None."""
    texts = []
    for name, value in fields.items():
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        texts.append(f"--{name.replace('_', '-')}" + ("" if value is None else f" {text}"))
    return texts


def grid_of(positions: int, prefix: int, likely: list[tuple[int, int]]) -> tuple[tuple[int, int], bool] | None:
    """Return ((rows, columns), whether the prefix has positions too) of a learned embedding; None where nothing fits.

    Args:
        positions: its length.
        prefix: class, distillation and register tokens.
        likely: grids to try first; else a square is assumed, as timm does.
    """
    for grid in likely:
        if positions - grid[0] * grid[1] in (0, prefix):
            return grid, positions != grid[0] * grid[1] or prefix == 0
    for covered in (prefix, 0):
        side = math.isqrt(max(0, positions - covered))
        if side > 0 and side * side == positions - covered:
            return (side, side), covered == prefix
    return None


def shape_of(arrays: Mapping[str, NDArray[np.generic]], name: str, rank: int, action: str) -> tuple[int, ...]:
    """Return a tensor's shape.

    Raises:
        ModelError: no such tensor, or another number of axes.
    """
    hint = f"download the checkpoint again, or {TO_ONNX}"
    if name not in arrays:
        raise ModelError(action, f"tensor '{name}' is missing", hint)
    shape = arrays[name].shape
    if len(shape) != rank:
        raise ModelError(action, f"tensor '{name}': expected {rank} axes, received shape {list(shape)}", hint)
    return shape


def image_size_of(value: object, action: str, file: str = CONFIG_JSON) -> tuple[int, int]:
    """Return (height, width) from an integer or a pair.

    Raises:
        ModelError: something else, or out of range.
    """
    size = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(size) != 2 or not all(isinstance(pixels, int) and 0 < pixels <= 4096 for pixels in size):
        raise ModelError(action, f"the image size {value!r} isn't [height, width] in pixels", f"correct {file}")
    return size[0], size[1]


def read_json(path: Path, kind: type[T], action: str) -> T:
    """Read a published JSON file into ``kind``, which ignores keys that it doesn't know.

    Raises:
        ModelError: unreadable, or not what the format says.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        hint = f"name a folder that holds {CONFIG_JSON} and {MODEL_WEIGHTS}"
        raise ModelError(action, f"{path.name} can't be read: {error.strerror}", hint) from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ModelError(action, f"{path.name} isn't what was expected: {error}", "download it again") from error


def readme_licence(folder: Path) -> str | None:
    """Return ``license:`` from the front matter of the model card; for "other" its ``license_name``."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:8192]
    except OSError:
        return None
    front = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    if front is None:
        return None
    front_matter = dict(re.findall(r"^(license\w*):\s*[\"']?([\w.+-]+)", front[1], re.MULTILINE))
    licence = front_matter.get("license")
    return front_matter.get("license_name", licence) if licence == "other" else licence


def read_safetensors(path: Path) -> Arrays:
    """Read every tensor of a safetensors file; bfloat16 becomes float32, exactly.

    Raises:
        UsageError: no such file.
        ModelError: not a safetensors file, or a type that weights of a float model can't have.
    """
    action, hint = f"read the weights {path}", "export or download the safetensors file again"
    try:
        from safetensors import deserialize
    except ImportError as error:
        raise NotInstalledError.for_extra(action, "safetensors", "host") from error
    if not path.is_file():
        raise UsageError(action, "there is no such file", "name a folder that holds model.safetensors")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(action, "the file is larger than 2 GB", "vitedge is for compact models")
    arrays: Arrays = {}
    try:
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            kind, data = tensor["dtype"], tensor["data"]
            if kind == "BF16":  # the upper half of a float32
                values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data, _SAFETENSORS_TYPES[kind])
            arrays[name] = values.reshape(tensor["shape"])
    except KeyError as error:
        raise ModelError(action, f"a tensor is of type {error}, which float weights don't have", hint) from error
    except Exception as error:  # the library's errors have no public type
        raise ModelError(action, f"it is not a sound safetensors file: {error}", hint) from error
    return arrays


_SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}
