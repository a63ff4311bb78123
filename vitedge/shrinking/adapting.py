"""The model to shrink where not all of its classes are needed: the same one, with fewer logits."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from vitedge.core.files import read_whole, resource_errors
from vitedge.errors import ModelError, UsageError, nearest
from vitedge.formats.model_folder import MODEL_ONNX, ClassLabel, Model, class_numbers, write_model
from vitedge.graph.adapting import with_classes
from vitedge.graph.author import author_vit, contract_of
from vitedge.graph.authored import read_authored
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
    if record.architecture is None:
        raise ModelError(action, "it isn't a plain ViT, whose classes alone can be left out", "leave out --classes")
    config, every = read_authored(load(model.onnx_path), record.architecture, record.preprocessing)
    config, needed = with_classes(config, {**every}, kept)
    graph = author_vit(config, needed, **contract_of(record.preprocessing), name=record.name)
    labels = tuple(replace(record.classes[index], id=number) for number, index in enumerate(kept))
    with resource_errors(action), tempfile.TemporaryDirectory(prefix="vitedge-shrink-") as folder:
        fewer = replace(record, classes=labels, architecture=config)
        yield write_model(Path(folder) / "model", fewer, {MODEL_ONNX: to_bytes(graph)})


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
