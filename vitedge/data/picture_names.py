"""Names of pictures in a data set: which files are pictures, their classes, and the keys that order goes by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def is_picture(name: str) -> bool:
    """Whether a file has a picture's suffix, and isn't hidden or in a macOS archive's own folder."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(is_hidden(part) for part in path.parts)


def is_hidden(part: str) -> bool:
    """Whether a file or folder of this name, without its path, isn't part of a data set."""
    return part.startswith(".") or part == "__MACOSX"


def class_folders(names: Sequence[str]) -> list[str | None]:
    """Return the class folder of each picture: the first that not all have in common ("train/" isn't a class).

    None for all where some picture lies in no folder.
    """
    parts = [PurePosixPath(name).parts for name in names]
    depth = 0
    while all(len(part) > depth + 2 for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    return [part[depth] for part in parts] if all(len(part) >= depth + 2 for part in parts) else [None] * len(parts)


def keys(names: Sequence[str], labels: Sequence[str] | None = None) -> list[str]:
    """Return each picture's path below the folders that all have in common, led by its class where ``labels`` has it.

    So the same files have the same keys however they are packed.
    """
    relative = _below_common_folders(names)
    if labels is None:
        return relative
    pairs = zip(relative, labels, strict=True)
    return _below_common_folders([key if key.startswith(f"{label}/") else f"{label}/{key}" for key, label in pairs])


def _below_common_folders(names: Sequence[str]) -> list[str]:
    parts = [PurePosixPath(name).parts for name in names]
    first, last = min(parts, default=()), max(parts, default=())  # what these two have in common, all have
    depth = 0
    while depth < min(len(first), len(last)) - 1 and first[depth] == last[depth]:
        depth += 1
    return ["/".join(part[depth:]) for part in parts]
