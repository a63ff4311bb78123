"""Prepare the model to shrink: with fewer logits where not all classes are needed, or for smaller pictures."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from vitedge.core.files import read_whole, resource_errors
from vitedge.errors import ModelError, UsageError, nearest
from vitedge.formats.architecture import ViTConfig
from vitedge.formats.model_folder import MODEL_ONNX, ClassLabel, Model, ModelRecord, class_numbers, write_model
from vitedge.graph.adapting import with_classes, with_resolution
from vitedge.graph.author import author_vit, contract_of
from vitedge.graph.authored import read_authored
from vitedge.graph.checkpoint import Arrays, resized_config
from vitedge.graph.surgery import load, to_bytes


@contextlib.contextmanager
def of_classes(model: Model, classes: str | None, action: str) -> Iterator[Model]:
    """Provide the model with the logits of the named classes only, in a temporary folder.

    Each logit is what it was. What only the others used costs nothing from then on, and is what goes first.

    Args:
        model: a plain ViT.
        classes: a text file, one name or class folder a line; None: all, so the model itself.
        action: for error texts.

    Raises:
        UsageError: no such file, or a class that the model doesn't have.
        ModelError: it isn't a plain ViT.
    """
    if classes is None:
        yield model
        return
    kept, record = wanted(Path(classes), model.record.classes, action), model.record
    config = architecture_of(record, action, "only a plain ViT can leave out classes", "--classes")
    config, every = read_authored(load(model.onnx_path), config, record.preprocessing)
    config, needed = with_classes(config, {**every}, kept)
    labels = tuple(replace(record.classes[index], id=number) for number, index in enumerate(kept))
    with _written(replace(record, classes=labels), config, needed, action) as fewer:
        yield fewer


@contextlib.contextmanager
def at_size(model: Model, size: tuple[int, int], action: str) -> Iterator[Model]:
    """Provide the model for pictures of (height, width) pixels, in a temporary folder.

    A learned position embedding is resized once, as timm and ``train --image-size`` resize it
    (:func:`vitedge.graph.adapting.with_resolution`); the preprocessing makes pictures of this size.

    Raises:
        ModelError: as :func:`sized`.
    """
    record = model.record
    sized(record, size, action)
    assert record.architecture is not None
    config, every = read_authored(load(model.onnx_path), record.architecture, record.preprocessing)
    config, arrays = with_resolution(config, {**every}, size)
    smaller = replace(record, preprocessing=replace(record.preprocessing, size=size))
    with _written(smaller, config, arrays, action) as written:
        yield written


def sized(record: ModelRecord, size: tuple[int, int], action: str) -> ViTConfig:
    """Return the architecture for pictures of another size.

    Raises:
        ModelError: it isn't a plain ViT, or its stem doesn't divide this size.
    """
    config = architecture_of(record, action, "only a plain ViT's input size can be changed", "--resolutions")
    return resized_config(config, size, action)


def architecture_of(record: ModelRecord, action: str, why: str, option: str) -> ViTConfig:
    """Return the architecture of a plain ViT.

    Raises:
        ModelError: the model isn't a plain ViT, which the option needs.
    """
    if record.architecture is None:
        raise ModelError(action, f"the model isn't a plain ViT, and {why}", f"leave out {option}")
    return record.architecture


@contextlib.contextmanager
def _written(record: ModelRecord, config: ViTConfig, arrays: Arrays, action: str) -> Iterator[Model]:
    """Write a model with these parameters into a temporary folder."""
    graph = author_vit(config, arrays, **contract_of(record.preprocessing), name=record.name)
    with resource_errors(action), tempfile.TemporaryDirectory(prefix="vitedge-shrink-") as folder:
        record = replace(record, architecture=config)
        yield write_model(Path(folder) / "model", record, {MODEL_ONNX: to_bytes(graph)})


def wanted(path: Path, labels: Sequence[ClassLabel], action: str) -> list[int]:
    """Return the numbers of the classes that a text file names, in the model's order.

    Raises:
        UsageError: it can't be read, names none, or one that the model doesn't have.
    """
    try:
        lines = read_whole(path, follow_links=True).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it isn't text"
        raise UsageError(action, f"{path} can't be read: {reason}", "name a text file, one class a line") from error
    named = [line.strip() for line in lines if line.strip()]
    ids = class_numbers(labels)
    unknown = [name for name in named if name not in ids]
    if unknown or not named:
        what = f"the model has no class '{unknown[0]}'{nearest(unknown[0], ids)}" if unknown else "it names no class"
        raise UsageError(action, f"{path}: {what}", "list them with: vitedge inspect MODEL --json")
    return sorted({ids[name] for name in named})
