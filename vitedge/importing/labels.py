"""Class names from a list, a text file, JSON or a folder of class folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from vitedge.errors import ModelError, UsageError
from vitedge.images import ImageSet
from vitedge.model_folder import ClassLabel, class_table


def read_labels(labels: str | Path | Sequence[str], count: int, asked: str) -> tuple[ClassLabel, ...]:
    """The class table from a list, a text file, a JSON file or a folder of class folders.

    Raises:
        UsageError: no such file.
        ModelError: unreadable, or another number of names than the model has classes.
    """
    names, where = (list(labels), "the list") if not isinstance(labels, str | Path) else _names(Path(labels), asked)
    if len(names) != count:
        true = f"{where} has {len(names)} class names; the model has {count} classes"
        raise ModelError(asked, true, "give one name a class, in the order of the logits")
    return class_table(names, [name if names.count(name) == 1 else None for name in names])


def _names(path: Path, asked: str) -> tuple[list[str], str]:
    fix = "give a text file with a name a line, a JSON list or {id: name}, or a folder of class folders"
    if path.is_dir():
        return list(ImageSet.open(path, asked=asked).classes), f"{path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return [line.strip() for line in text.strip().splitlines()], path.name
        data = msgspec.json.decode(text, type=list[str] | dict[int, str])
    except FileNotFoundError as error:
        raise UsageError(asked, f"the labels {path} don't exist", fix) from error
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
        raise ModelError(asked, f"the labels {path.name} can't be read: {error}", fix) from error
    if isinstance(data, list):
        return data, path.name
    if sorted(data) != list(range(len(data))):
        raise ModelError(asked, f"the ids in {path.name} aren't 0, 1, 2, …, {len(data) - 1}", fix)
    return [data[index] for index in range(len(data))], path.name
