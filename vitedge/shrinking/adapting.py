"""The model to shrink with fewer logits, where not all of its classes are needed, or for smaller pictures."""

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
    """The model whose logits are those of the named classes alone, in a folder of its own while it's needed.

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
    config = architecture_of(record, action, "whose classes alone can be left out", "--classes")
    config, every = read_authored(load(model.onnx_path), config, record.preprocessing)
    config, needed = with_classes(config, {**every}, kept)
    labels = tuple(replace(record.classes[index], id=number) for number, index in enumerate(kept))
    with _written(replace(record, classes=labels), config, needed, action) as fewer:
        yield fewer


@contextlib.contextmanager
def at_size(model: Model, size: tuple[int, int], action: str) -> Iterator[Model]:
    """The model for pictures of (height, width) pixels, in a folder of its own while it's needed.

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
    """The architecture for pictures of another size.

    Raises:
        ModelError: it isn't a plain ViT, or its stem doesn't divide this size.
    """
    config = architecture_of(record, action, "whose input size alone can be changed", "--resolutions")
    return resized_config(config, size, action)


def architecture_of(record: ModelRecord, action: str, why: str, option: str) -> ViTConfig:
    """A plain ViT's.

    Raises:
        ModelError: it isn't one, which an option needs.
    """
    if record.architecture is None:
        raise ModelError(action, f"it isn't a plain ViT, {why}", f"leave out {option}")
    return record.architecture


@contextlib.contextmanager
def _written(record: ModelRecord, config: ViTConfig, arrays: Arrays, action: str) -> Iterator[Model]:
    """A model of these parameters, in a folder of its own."""
    graph = author_vit(config, arrays, **contract_of(record.preprocessing), name=record.name)
    with resource_errors(action), tempfile.TemporaryDirectory(prefix="vitedge-shrink-") as folder:
        record = replace(record, architecture=config)
        yield write_model(Path(folder) / "model", record, {MODEL_ONNX: to_bytes(graph)})


def wanted(path: Path, labels: Sequence[ClassLabel], action: str) -> list[int]:
    """Numbers of the classes that a text file names, in the model's order.

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
