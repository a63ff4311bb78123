"""Tar shards in the layout of webdataset: ``0001.jpg`` beside ``0001.cls`` or ``0001.json``, in numbered archives.

A source is a folder of such archives, one of them, or a range of them: ``train-{0000..0146}.tar``. What belongs
together has one name up to its first dot. ``.cls`` holds the class: its number or its name. ``.json`` holds it under
``cls``, ``class`` or ``label``. Where classes are numbers, ``classes.txt`` beside the shards names them, one a line;
without it a number is its class's name.

Only headers and labels are read here; a picture is read later, by its place in the archive.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from vitedge.data.picture_names import is_picture
from vitedge.errors import ImageError, UsageError

CLASSES = "classes.txt"
LABEL_KEYS = ("cls", "class", "label")
MAX_LABEL_BYTES = 1 << 20
MAX_SHARDS = 1_000_000
LABELS = "give each picture a .cls or .json file of the same name that holds its class"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Sample:
    """One picture of a shard."""

    shard: Path
    member: str  # "0042.jpg"
    offset: int  # of its bytes in the shard
    size: int
    label: str  # empty: it has none


def shard_files(source: Path) -> list[Path]:
    """Return the archives that ``source`` stands for; empty when it's something else."""
    if names := in_range(source.name):
        return [source.with_name(name) for name in names]
    if os.path.isdir(source):  # noqa: PTH112 - Path.is_dir raises for names that are too long
        files = sorted(path for path in source.iterdir() if not path.name.startswith("."))
        tars = [path for path in files if path.suffix.lower() == ".tar" and path.is_file()]
        return tars if {path.name for path in files} <= {path.name for path in tars} | {CLASSES} else []
    return [source] if source.suffix.lower() == ".tar" and _holds_labels(source) else []


def in_range(name: str) -> list[str]:
    """Return the names that ``train-{0000..0146}.tar`` stands for; none when it's one name."""
    match = _RANGE.search(name)
    if match is None:
        return []
    first, last = match.groups()
    numbers = range(int(first), min(int(last) + 1, int(first) + MAX_SHARDS))
    return [f"{name[: match.start()]}{number:0{len(first)}d}{name[match.end() :]}" for number in numbers]


def read_shards(shards: Sequence[Path], action: str) -> tuple[list[Sample], tuple[str, ...]]:
    """Return all samples, and the classes in the order of their ids.

    Args:
        shards: the archives.
        action: for error texts.

    Raises:
        UsageError: a shard is missing.
        ImageError: a shard that can't be read, or a picture without a class.
    """
    samples: list[Sample] = []
    for shard in shards:
        samples += read_shard(shard, action)
    return _named(samples, shards[0].parent / CLASSES, action)


def read_shard(shard: Path, action: str, *, labelled: bool = True) -> list[Sample]:
    """Return the samples of one archive.

    Args:
        shard: the archive.
        action: for error texts.
        labelled: refuse pictures without a class; else their label is empty.

    Raises:
        UsageError: it's missing.
        ImageError: it can't be read, or a picture has no class.
    """
    try:
        return list(_samples(shard, action, labelled))
    except FileNotFoundError as error:
        raise UsageError(action, f"the shard {shard} doesn't exist", "correct the range, or copy it") from error
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
        raise ImageError(action, f"{shard}: {type(error).__name__}: {error}", "make the shard again") from error


def class_names(table: bytes) -> tuple[str, ...]:
    """Return the names in :data:`CLASSES`, in the order of the classes' numbers.

    Raises:
        UnicodeDecodeError: it isn't text.
    """
    return tuple(line.strip() for line in table.decode("utf-8").strip().splitlines())


def class_of(label: str, names: Sequence[str], action: str) -> str:
    """Return the class of a picture, without knowing the other shards; ``names`` are those of numbers, if any.

    Raises:
        ImageError: a number that ``names`` hasn't.
    """
    if not label.isdecimal():
        return label
    if names and int(label) >= len(names):
        reason = f"there is a class number {label}; {CLASSES} names {len(names)} classes"
        raise ImageError(action, reason, f"name every class in {CLASSES}")
    return names[int(label)] if names else str(int(label))


def _named(samples: list[Sample], table: Path, action: str) -> tuple[list[Sample], tuple[str, ...]]:
    """Turn numbers into ids, named by ``table`` where there is one; names are sorted."""
    labels = {sample.label for sample in samples}
    if not all(label.isdecimal() for label in labels):
        return samples, tuple(sorted(labels))
    ids = sorted(map(int, labels))
    try:
        names = class_names(table.read_bytes())
    except FileNotFoundError:
        names = tuple(map(str, range(len(ids))))
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(
            action, f"{table} can't be read: {error}", "give a UTF-8 text file, one name a line"
        ) from error
    if len(set(names)) != len(names) or (ids and ids[-1] >= len(names)):
        raise ImageError(
            action,
            f"the shards' {len(ids)} classes go up to number {ids[-1]}; that isn't a number of {len(names)} "
            "different classes",
            f"number them 0, 1, 2, …, or name every class in {CLASSES}",
        )
    return [replace(sample, label=names[int(sample.label)]) for sample in samples], names


def _samples(shard: Path, action: str, labelled: bool) -> Iterator[Sample]:
    pictures: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    with tarfile.open(shard, "r:") as tar:
        for info in tar:
            key, extension = _parts(info.name)
            if not info.isreg() or info.issparse():
                continue
            if is_picture(info.name):
                if key in pictures:
                    raise ImageError(action, f"{shard.name} holds two pictures named '{key}'", "rename one")
                pictures[key] = info
            elif extension in ("cls", "json") and info.size <= MAX_LABEL_BYTES and key not in labels:
                stream = tar.extractfile(info)
                text = stream.read().decode() if stream else ""
                label = _label(text, extension)
                if label is not None:
                    labels[key] = label
    for key, info in pictures.items():
        if labelled and key not in labels:
            raise ImageError(action, f"{info.name} in {shard.name} has no class", LABELS)
        yield Sample(shard, info.name, info.offset_data, info.size, labels.get(key, ""))


def _label(text: str, extension: str) -> str | None:
    if extension == "cls":
        return text.strip() or None
    data = json.loads(text)
    values = [data[key] for key in LABEL_KEYS if key in data] if isinstance(data, dict) else []
    label = next((value for value in values if isinstance(value, str | int) and not isinstance(value, bool)), None)
    return None if label is None else str(label).strip() or None


def _parts(name: str) -> tuple[str, str]:
    """Return ("folder/0001", "jpg") of ``folder/0001.jpg``: key, and lower-case extension from the first dot on."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.parent / stem), extension.lower()


def _holds_labels(path: Path) -> bool:
    """Whether a .tar has a label among its first files, so that it's a shard rather than an archive of folders."""
    try:
        with tarfile.open(path, "r:") as tar:
            return any(_parts(info.name)[1] in ("cls", "json") for info, _ in zip(tar, range(16), strict=False))
    except (tarfile.TarError, OSError, EOFError, ValueError):
        return False
