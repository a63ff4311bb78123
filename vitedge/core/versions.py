"""Compare versions as numbers, and with the newest that this release was tested with.

What was tested stands in ``constraints.txt``, which ``.ci/constraints`` writes; it travels in the wheel. The README's
commands and the tests install exactly those versions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TypeVar

from vitedge.core.paths import shipped_file

T = TypeVar("T")
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[^\s;]+)")


def release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, without zeros at the end: "10.3.0.dev1" is (10, 3). May be empty."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in match[0].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def older(version: str, than: str) -> bool:
    """Compare versions by their leading numbers: "10.3" is older than "10.13"."""
    return release(version) < release(than)


def as_of(since: Mapping[str, T], version: str, default: T) -> T:
    """Return the value for a version: the one of the newest entry that is no newer than it.

    Args:
        since: values by the version that brought them.
        version: "1.23".
        default: before the first.
    """
    held = [name for name in since if not older(version, name)]
    return since[max(held, key=release)] if held else default


@functools.cache
def _tested() -> dict[str, str]:
    """Return the newest tested version of every package; packages are listed more than once where Pythons differ."""
    newest: dict[str, str] = {}
    for pin in map(_PIN.match, shipped_file("constraints.txt").read_text(encoding="utf-8").splitlines()):
        if pin is not None and older(newest.get(pin["name"], ""), pin["version"]):
            newest[pin["name"]] = pin["version"]
    return newest


def newest_tested(package: str) -> str | None:
    """Return the newest version of a package, by its name on the index, that this release was tested with, or None."""
    return _tested().get(package)


def newer_than_tested(name: str, version: str, tested_version: str | None) -> str:
    """Return a sentence where a version is newer than any tested one; empty where it isn't, or none was tested.

    Args:
        name: what users call the package, "ONNX Runtime".
        version: the one that is here.
        tested_version: see :func:`newest_tested`.
    """
    if tested_version is None or not older(tested_version, version):
        return ""
    return f"{name} {version} is newer than what this release was tested with, {tested_version}"
