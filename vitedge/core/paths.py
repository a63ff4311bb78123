"""Find the data folders ``targets/`` and ``calibration/``: in a wheel, in a checkout, in the user's own folder.

In a wheel they lie inside the package; in a checkout (and an editable install) beside it. The user's own files in
``$XDG_CONFIG_HOME/vitedge/<kind>`` come first, so that a board can be added without touching an installed package.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from vitedge.errors import UsageError, nearest

Kind = Literal["targets", "calibration"]
_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_folder(kind: Kind) -> Path:
    """Return the folder of this kind that came with vitedge."""
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def shipped_file(name: str) -> Path:
    """Return a file at the top of the checkout, which the wheel carries inside the package."""
    inside = _PACKAGE / name
    return inside if inside.is_file() else _PACKAGE.parent / name


def _home() -> Path:
    """Return the user's home; without one, a folder that can't exist, so that nothing is found or kept there."""
    try:
        return Path.home()
    except RuntimeError:  # no $HOME, and no entry in /etc/passwd
        return Path("/dev/null")


def user_folder(kind: Kind) -> Path:
    """Return the user's own folder of this kind; it need not exist."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or _home() / ".config") / "vitedge" / kind


def cache_folder() -> Path:
    """Return the folder for derived data (statistics, engines, compiled blobs): ``$VITEDGE_CACHE`` or the XDG cache."""
    if own := os.environ.get("VITEDGE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "vitedge"


@contextlib.contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Provide ``path`` for libraries that take UTF-8 names only: unchanged, or through a temporary link."""
    if _is_utf8(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        link = Path(folder) / "link"
        if _is_utf8(Path(path.name)):  # what lies beside it is found too
            link.symlink_to(path.parent.absolute())
            yield link / path.name
        else:
            link.symlink_to(path.absolute())
            yield link


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # bytes that Python keeps as lone surrogates
        return False
    return True


def names(kind: Kind) -> dict[str, Path]:
    """Return every TOML file of this kind by its stem; the user's own file wins over a shipped one of the same name."""
    files: dict[str, Path] = {}
    for folder in (shipped_folder(kind), user_folder(kind)):
        if folder.is_dir():
            files.update({path.stem: path for path in sorted(folder.glob("*.toml"))})
    return dict(sorted(files.items()))


def find(kind: Kind, name: str) -> Path:
    """Find the TOML file called ``name``, or the path itself when ``name`` ends in ``.toml``.

    Raises:
        UsageError: nothing has this name; the nearest name is given.
    """
    word, verb = {"targets": ("target", "targets"), "calibration": ("recipe", "recipes")}[kind]
    if name.endswith(".toml"):
        if not os.path.isfile(name):  # noqa: PTH113 - Path.is_file raises for names that are too long
            raise UsageError(f"{word} '{name}'", "there is no such file", f"run: vitedge {verb}")
        return Path(name)
    files = names(kind)
    if name not in files:
        raise UsageError(f"{word} '{name}'", f"no {word} has this name{nearest(name, files)}", f"run: vitedge {verb}")
    return files[name]
