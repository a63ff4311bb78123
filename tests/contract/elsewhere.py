"""What it takes to run the contract suite in another interpreter: packages, and artifacts of the embedded model."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT
from vitedge import api
from vitedge.formats.artifact import Artifact


def artifacts_for(target: str, factory: pytest.TempPathFactory) -> list[Path]:
    """The embedded model for ``target`` in float32 and in INT8, exported once a test run."""
    folder = factory.getbasetemp() / "embedded"
    if not (folder / "model").exists():
        api.import_model("embedded", out=folder / "model")
    found = []
    for precision in ("fp32", "int8"):
        out = folder / f"{target}-{precision}"
        if not out.exists():
            api.export(folder / "model", target, precision, out, recipe="fast")
        found.append(Artifact.open(out).path)
    return found


def python_like_jetpack() -> str:
    """Python 3.10 where this machine has one with pip, else the running one."""
    command = ["python3.10", "-c", "import pip, sys; print(sys.executable)"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYENV_VERSION": "3.10"})
    except FileNotFoundError:
        return sys.executable
    return found.stdout.strip() if found.returncode == 0 else sys.executable


def pinned(names: Iterable[str], python: str) -> dict[str, str]:
    """The versions of constraints.txt for these packages and one Python, "3.11"; empty where the newest are tested."""
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#") or not line or "VITEDGE_NEWEST" in os.environ:
            continue
        pin, there = Requirement(line), {"python_version": python, "python_full_version": f"{python}.5"}
        if pin.name in names and (pin.marker is None or pin.marker.evaluate(there)):
            pins[pin.name] = str(pin.specifier).removeprefix("==")
    return pins


def installed_folder(python: str, packages: tuple[str, ...]) -> Path:
    """A folder with these packages for ``python``, installed once a machine; skips where pip can't bring them.

    Those that are named without a version are of the tested one.
    """
    version = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout
    pins = pinned(packages, ".".join(version.split()[-1].split(".")[:2]))
    packages = tuple(f"{name}=={pins[name]}" if name in pins else name for name in packages)
    key = hashlib.sha256("\0".join((version, *packages)).encode()).hexdigest()[:12]
    site = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitedge-tests" / key
    if not (site / "ready").exists():
        shutil.rmtree(site, ignore_errors=True)
        command = [python, "-m", "pip", "install", "-q", "--target", str(site), *packages]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        if done.returncode:
            pytest.skip(f"pip can't install {', '.join(packages)}: {done.stderr.strip().splitlines()[-1:]}")
        (site / "ready").write_text(version)
    return site
