"""Wheels for another machine: resolved and downloaded here for its architecture, Python and C library.

The environment markers of every wheel are evaluated as they are there, and ``constraints.txt`` pins the versions, so
nothing has to be tried out. pip downloads; it can't resolve for another machine, as it evaluates markers for this one.
"""

from __future__ import annotations

import email.parser
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vitedge._version import __version__
from vitedge.core.environment import for_children
from vitedge.core.paths import shipped_file
from vitedge.core.schema import Record
from vitedge.errors import InputError, NotInstalledError, ResourceError, UsageError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ACTION = "prepare wheels for the boards"
OLDEST_GLIBC = 17  # 2.17: manylinux2014
CONSTRAINTS = "constraints.txt"


class Machine(Record):
    """The properties of a board's Python that decide which wheels fit."""

    arch: str  # "aarch64"
    python: str  # "3.11.2"
    glibc: str  # "2.36"

    @property
    def markers(self) -> dict[str, str]:
        """The environment for evaluating markers."""
        return {
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": self.arch,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": self.python,
            "python_version": ".".join(self.python.split(".")[:2]),
            "sys_platform": "linux",
        }

    @property
    def pip_options(self) -> list[str]:
        """The options that make pip download for it."""
        version = self.markers["python_version"]
        newest = int(self.glibc.split(".")[1])
        platforms = [f"manylinux_2_{minor}_{self.arch}" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
        options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
        options += [word for abi in (f"cp{version.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)]
        return options + [word for each in (*platforms, f"manylinux2014_{self.arch}") for word in ("--platform", each)]


#: What a Python answers to be described as a :class:`Machine`.
DESCRIBE = (
    "import json, platform; print(json.dumps({'arch': platform.machine(), 'python': platform.python_version(),"
    " 'glibc': platform.libc_ver()[1]}))"
)


def described(answer: bytes, board: str) -> Machine:
    """Parse the machine that :data:`DESCRIBE` printed.

    Raises:
        UsageError: wheels can't be had for it.
    """
    machine = msgspec.json.decode(answer, type=Machine)
    if tuple(map(int, machine.python.split(".")[:2])) < (3, 10):
        reason = f"its Python is {machine.python}; vitedge needs 3.10 or newer"
        raise UsageError(f"install on {board}", reason, "name another 'python' for it in the inventory")
    if not machine.glibc:
        raise UsageError(
            f"install on {board}", "it has no GNU C library, which the wheels need", "install vitedge there by hand"
        )
    return machine


def own_wheel(folder: Path, given: str | None) -> Path:
    """Return vitedge's own wheel: the given one, or one built from the running checkout, or downloaded.

    Raises:
        UsageError: there is no such file.
        ResourceError: it can't be made or had.
    """
    if given is not None:
        if not Path(given).is_file():
            raise UsageError(ACTION, f"there is no file {given}", "build one: python -m build --wheel")
        return Path(given)
    checkout = Path(__file__).resolve().parent.parent.parent
    if (checkout / "pyproject.toml").is_file():
        _pip(["wheel", "--no-deps", "-w", str(folder), str(checkout)])
    else:
        _pip(["download", "--no-deps", "-d", str(folder), f"vitedge=={__version__}"])
    return next(folder.glob("vitedge-*.whl"))


def resolve(wheel: Path, extras: Iterable[str], machine: Machine, folder: Path) -> list[Path]:
    """Return all wheels that vitedge with these extras needs on a machine, pip's own among them.

    Args:
        wheel: vitedge's own.
        extras: of vitedge.
        machine: that they are for.
        folder: to download to; what is there isn't downloaded again.

    Raises:
        ResourceError: one can't be had.
        InputError: not a wheel.
        NotInstalledError: packaging is missing.
    """
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ModuleNotFoundError as error:
        raise NotInstalledError.for_extra(ACTION, "packaging", "fleet") from error
    pins = _pins(machine)
    wheels = {"vitedge": wheel}
    seen: dict[str, set[str]] = {}
    todo = [Requirement(f"vitedge[{','.join(extras)}]"), Requirement("pip")]
    while todo:
        names = {canonicalize_name(each.name) for each in todo}
        lacking = [each for each in todo if canonicalize_name(each.name) not in wheels]
        wheels |= _download(lacking, pins, machine, folder)
        following: list[Requirement] = []
        for each in todo:
            name = canonicalize_name(each.name)
            new = ({""} | each.extras) - seen.setdefault(name, set())
            seen[name] |= new
            following += needed(wheels[name], new, machine)
        todo = [
            each
            for each in following
            if canonicalize_name(each.name) not in seen or each.extras - seen[canonicalize_name(each.name)]
        ]
        assert names <= seen.keys()
    return sorted(wheels.values())


def _pins(machine: Machine) -> dict[str, str]:
    """Return the tested version of each package on this Python, by its canonical name."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = shipped_file(CONSTRAINTS).read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {
        canonicalize_name(each.name): str(each.specifier)
        for each in pinned
        if each.marker is None or each.marker.evaluate({**machine.markers, "extra": ""})
    }


def needed(wheel: Path, extras: Iterable[str], machine: Machine) -> list[Requirement]:
    """Return the requirements in a wheel's metadata that apply to a machine.

    Raises:
        InputError: it isn't a wheel.
    """
    from packaging.requirements import Requirement

    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
            metadata = email.parser.Parser().parsestr(archive.read(name).decode())
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        raise InputError(ACTION, f"{wheel} isn't a wheel", "build one: python -m build --wheel") from error
    found = [Requirement(text) for text in metadata.get_all("Requires-Dist") or ()]
    return [
        each
        for each in found
        if each.marker is None or any(each.marker.evaluate({**machine.markers, "extra": extra}) for extra in extras)
    ]


def _download(
    wanted: Iterable[Requirement], pins: Mapping[str, str], machine: Machine, folder: Path
) -> dict[str, Path]:
    """Download wheels; return them by canonical name."""
    from packaging.utils import canonicalize_name, parse_wheel_filename

    words = {canonicalize_name(each.name): f"{each.name}{each.specifier}" for each in wanted}
    words = {name: f"{name}{pins[name]}" if name in pins else word for name, word in words.items()}
    if words:
        _pip(["download", "--no-deps", *machine.pip_options, "-d", str(folder), *words.values()])
    there = {parse_wheel_filename(path.name)[0]: path for path in sorted(folder.glob("*.whl"))}
    return {name: there[canonicalize_name(name)] for name in words}


def _pip(arguments: list[str]) -> None:
    """Run pip.

    Raises:
        ResourceError: it fails.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    own = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}  # an index may want a password
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**for_children(), **own})
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = errors[-1] if errors else f"pip ended with {done.returncode}"
        raise ResourceError(ACTION, reason, "check that this machine reaches its package index, or use: --wheel FILE")
