"""Class tables: from a list, a text file, JSON, a folder of class folders, or ImageNet-1k's, which ships."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from vitedge.data.images import ImageSet
from vitedge.errors import ModelError, UsageError
from vitedge.formats.artifact import MANIFEST
from vitedge.formats.model_folder import ClassLabel, Model, class_table, replace_record

IMAGENET_1K = "imagenet-1k"

_FIX = (
    'give a text file with a name (or "0 name", or folder, tab, name) a line, JSON (a list of names, {"0": name, …}, a '
    "list of {id, folder, name}, or a config.json with id2label), a folder of class folders, or "
    f"{IMAGENET_1K}"
)
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")
_NUMBERED = re.compile(r"(\d+)[\s:,;]\s*(\S.*)")  # "0 cat", "0: cat", "0<tab>cat"


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class in a table; a source without folders leaves them to :func:`_with_folders`."""

    id: int
    name: str
    folder: str | None = None


def imagenet_1k() -> tuple[ClassLabel, ...]:
    """Return ImageNet-1k's classes in the usual order: folder is the WordNet id, name WordNet's words for it."""
    lines = (Path(__file__).parent / "imagenet_1k.txt").read_text(encoding="utf-8").splitlines()
    folders, names = zip(*(line.split("\t") for line in lines), strict=True)
    return class_table(names, folders)


def read_labels(
    labels: str | Path | Sequence[str], count: int, action: str, *, folders: Sequence[str | None] = ()
) -> tuple[ClassLabel, ...]:
    """Read the class table of a model with ``count`` classes.

    Args:
        labels: a list of names in the order of the logits; ``"imagenet-1k"``; or a path: a text file with a name a line
            ("0 name" in any order, or folder, tab, name), a JSON list of names, a JSON object from id to name, one that
            holds such an object as ``id2label``, a JSON list of ``{"id", "folder", "name"}`` in any order, or a folder
            of class folders, sorted.
        count: the model's classes.
        action: for error texts.
        folders: what class folders are called in data sets, where the labels name no folders; None, or nothing: as the
            classes.

    Raises:
        UsageError: no such file.
        ModelError: unreadable, another number of classes than the model has, or names that are empty or there twice.
    """
    if not isinstance(labels, str | Path):
        rows, where = _in_order(labels), "the list"
    elif str(labels) == IMAGENET_1K:
        rows, where = [_Row(label.id, label.name, label.folder) for label in imagenet_1k()], IMAGENET_1K
    else:
        rows, where = _from_path(Path(labels), action), Path(labels).name
    if len(rows) != count:
        reason = f"{where} has {len(rows)} class names; the model has {count} classes"
        raise ModelError(action, reason, "give one name a class, in the order of the logits")
    rows = sorted(rows, key=lambda row: row.id)
    if [row.id for row in rows] != list(range(count)):
        raise ModelError(action, f"the ids in {where} aren't 0, 1, 2, …, {count - 1}", _FIX)
    refuse_empty([row.name for row in rows], where, action)
    return _with_folders(rows, folders, where, action)


def refuse_empty(names: Sequence[str], where: str, action: str) -> None:
    """Refuse names without a letter.

    Raises:
        ModelError: the id of the first one.
    """
    if empty := [index for index, name in enumerate(names) if not name.strip()]:
        reason = f"{where} gives class {empty[0]} an empty name"
        raise ModelError(action, reason, "name every class: --labels FOLDER|FILE")


def label(model: Model, labels: str | Path | Sequence[str]) -> Model:
    """Name the classes of a model folder, in place; graph, weights and preprocessing don't change.

    Class folders that the model was trained on keep their names, unless the labels name folders.

    Args:
        model: opened; it isn't changed, the folder is.
        labels: as :func:`read_labels` takes them.

    Raises:
        UsageError, ModelError: as :func:`read_labels`.
        ResourceError: ``model.json`` can't be written.
    """
    record, action = model.record, f"label the model {model.path}"
    folders = trained_folders(record.classes, record.training)
    classes = read_labels(labels, len(record.classes), action, folders=folders)
    return replace_record(model, msgspec.structs.replace(record, classes=classes), action)


def trained_folders(classes: Sequence[ClassLabel] | None, training: Mapping[str, Any] | None) -> list[str | None]:
    """Return the class folders that a model was trained on; none where that isn't known."""
    return [] if training is None else [each.folder for each in classes or ()]


def open_to_label(path: str | Path) -> Model:
    """Open a model folder whose classes are to be named.

    Raises:
        UsageError: an artifact, which never changes.
        UsageError, ModelError: as :meth:`~vitedge.formats.model_folder.Model.open`.
    """
    if (Path(path) / MANIFEST).is_file():
        reason = "it's an artifact, which never changes; its class names are those of its model"
        raise UsageError(f"label the model {path}", reason, "label the model folder, then export again")
    return Model.open(path)


def recognise_imagenet(classes: tuple[ClassLabel, ...] | None, count: int, tag: str) -> tuple[ClassLabel, ...] | None:
    """Return the source's classes, with ImageNet-1k's folders or names where the classes clearly are ImageNet's.

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


def _with_folders(
    rows: Sequence[_Row], folders: Sequence[str | None], where: str, action: str
) -> tuple[ClassLabel, ...]:
    """Return the table with a folder for every class: the rows' own, else ``folders``, else the names.

    Raises:
        ModelError: a name, or a folder, that is there twice.
    """
    names = [row.name for row in rows]
    if any(row.folder is not None for row in rows):
        own = [row.folder or row.name for row in rows]
        _refuse_twice(own, where, "class folders", action)
        return class_table(names, own)
    table = class_table(names, [folder or name for folder, name in zip_longest(folders, names)])
    imagenet = recognise_imagenet(table, len(rows), "")
    if imagenet is not None and imagenet != table:  # its names, two of which occur twice
        return imagenet
    _refuse_twice(names, where, "class names", action)
    return table


def _refuse_twice(names: Sequence[str], where: str, what: str, action: str) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        ids = [index for index, name in enumerate(names) if name == twice[0]]
        reason = f"{where} has {what} twice: '{twice[0]}' for classes {' and '.join(map(str, ids[:2]))}"
        raise ModelError(action, reason, "give every class a name of its own, or a table of folder, tab, name")


def _in_order(names: Iterable[str]) -> list[_Row]:
    return [_Row(index, name) for index, name in enumerate(names)]


def _from_path(path: Path, action: str) -> list[_Row]:
    if path.is_dir() or path.suffix.lower() in _ARCHIVES:
        folders = ImageSet.open(path, action=action).classes
        if not folders:
            raise UsageError(action, f"{path} has no class folders", _FIX)
        by_folder = {label.folder: label.name for label in imagenet_1k()}
        return [_Row(index, by_folder.get(folder, folder), folder) for index, folder in enumerate(folders)]
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return _from_lines(text.splitlines(), path.name, action)
        return _from_json(msgspec.json.decode(text), path.name, action)
    except FileNotFoundError as error:
        raise UsageError(action, f"the labels {path} don't exist", _FIX) from error
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
        raise ModelError(action, f"the labels {path.name} can't be read: {error}", _FIX) from error


def _from_lines(lines: list[str], where: str, action: str) -> list[_Row]:
    """Parse names in order, numbered names in any order, or folder, tab, name."""
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    lines = [line.strip() for line in lines]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    rows = [_Row(int(match[1]), match[2].strip()) for match in numbered if match is not None]
    if lines and len(rows) == len(lines):
        ids = sorted(row.id for row in rows)
        if ids == list(range(len(ids))):
            return rows
        if ids == list(range(1, len(ids) + 1)):
            raise ModelError(action, f"{where} numbers the classes from 1", "number them from 0, as the logits are")
    parts = [line.split("\t") for line in lines]
    if all(len(part) == 2 for part in parts):
        return [_Row(index, name, folder) for index, (folder, name) in enumerate(parts)]
    return _in_order(lines)


def _from_json(data: Any, where: str, action: str) -> list[_Row]:
    """Parse JSON as :func:`read_labels` describes.

    Raises:
        msgspec.MsgspecError: something else.
        ModelError: a configuration that names no classes.
    """
    if isinstance(data, Mapping) and {"id2label", "architectures", "model_type"} & data.keys():
        data = data.get("id2label") or {}
        if all(name == f"LABEL_{index}" for index, name in data.items()):
            raise ModelError(action, f"the id2label of {where} names no classes", _FIX)
    table = msgspec.convert(data, list[str | _Row] | dict[int, str], str_keys=True)
    if isinstance(table, dict):
        return [_Row(index, name) for index, name in table.items()]
    return [_Row(index, row) if isinstance(row, str) else row for index, row in enumerate(table)]
