"""Class tables: from a list, a text file, JSON, a folder of class folders, or ImageNet-1k's, which ships."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from vitedge.data.images import ImageSet
from vitedge.errors import ModelError, UsageError
from vitedge.formats.model_folder import ClassLabel, class_table

IMAGENET_1K = "imagenet-1k"

_FIX = (
    'give a text file with a name (or folder, tab, name) a line, JSON (a list of names, {"0": name, …} or a list of '
    f"{{id, folder, name}}), a folder of class folders, or {IMAGENET_1K}"
)


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class in a JSON table."""

    id: int
    name: str
    folder: str | None = None


def imagenet_1k() -> tuple[ClassLabel, ...]:
    """ImageNet-1k's classes in the usual order: the folder is the WordNet id, the name WordNet's words for it."""
    return _from_lines((Path(__file__).parent / "imagenet_1k.txt").read_text(encoding="utf-8"))


def read_labels(labels: str | Path | Sequence[str], count: int, action: str) -> tuple[ClassLabel, ...]:
    """The class table of a model with ``count`` classes.

    Args:
        labels: a list of names in the order of the logits; ``"imagenet-1k"``; or a path: a text file with a name a line
            (or folder, tab, name), a JSON list of names, a JSON object from id to name, a JSON list of
            ``{"id", "folder", "name"}`` in any order, or a folder of class folders, sorted.
        count: the model's classes.
        action: for error texts.

    Raises:
        UsageError: no such file.
        ModelError: unreadable, or another number of classes than the model has.
    """
    if not isinstance(labels, str | Path):
        table, where = _named(list(labels)), "the list"
    elif str(labels) == IMAGENET_1K:
        table, where = imagenet_1k(), IMAGENET_1K
    else:
        table, where = _from_path(Path(labels), action), Path(labels).name
    if len(table) != count:
        reason = f"{where} has {len(table)} class names; the model has {count} classes"
        raise ModelError(action, reason, "give one name a class, in the order of the logits")
    return table


def recognise_imagenet(classes: tuple[ClassLabel, ...] | None, count: int, tag: str) -> tuple[ClassLabel, ...] | None:
    """What the source names, with ImageNet-1k's folders or names where the classes are plainly those.

    Args:
        classes: the source's own; None where it names none.
        count: the model's classes.
        tag: timm's, such as ``augreg2_in21k_ft_in1k``: what it was trained on last stands at its end.
    """
    if count != 1000:
        return classes
    imagenet = imagenet_1k()
    if classes is None:
        return imagenet if tag.endswith("in1k") else None
    same = sum(_first(ours.name) == _first(theirs.name) for ours, theirs in zip(imagenet, classes, strict=True))
    if same < 990:  # publishers spell a few of them differently
        return classes
    return tuple(
        ClassLabel(id=ours.id, folder=ours.folder, name=theirs.name)
        for ours, theirs in zip(imagenet, classes, strict=True)
    )


def _first(name: str) -> str:
    return name.split(",")[0].strip().replace("_", " ").lower()


def _named(names: Sequence[str]) -> tuple[ClassLabel, ...]:
    """Names are folders too, where they are unique."""
    return class_table(names, [name if names.count(name) == 1 else None for name in names])


def _from_lines(text: str) -> tuple[ClassLabel, ...]:
    rows = [line.strip().split("\t") for line in text.strip().splitlines()]
    if all(len(row) == 2 for row in rows):
        return class_table([name for _, name in rows], [folder for folder, _ in rows])
    return _named(["\t".join(row) for row in rows])


def _from_path(path: Path, action: str) -> tuple[ClassLabel, ...]:
    if path.is_dir():
        folders = list(ImageSet.open(path, action=action).classes)
        by_folder = {label.folder: label.name for label in imagenet_1k()}
        return class_table([by_folder.get(folder, folder) for folder in folders], folders)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return _from_lines(text)
        data = msgspec.json.decode(text, type=list[str | _Row] | dict[int, str])
    except FileNotFoundError as error:
        raise UsageError(action, f"the labels {path} don't exist", _FIX) from error
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
        raise ModelError(action, f"the labels {path.name} can't be read: {error}", _FIX) from error
    if isinstance(data, dict):
        data = [_Row(id=index, name=name) for index, name in data.items()]
    if all(isinstance(item, str) for item in data):
        return _named([item for item in data if isinstance(item, str)])
    rows = sorted((item for item in data if isinstance(item, _Row)), key=lambda row: row.id)
    if [row.id for row in rows] != list(range(len(data))):
        raise ModelError(action, f"the ids in {path.name} aren't 0, 1, 2, …, {len(data) - 1}", _FIX)
    names = [row.name for row in rows]
    unique = [row.folder or (row.name if names.count(row.name) == 1 else None) for row in rows]
    return class_table(names, unique)
