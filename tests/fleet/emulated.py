"""An aarch64 board's Python under emulation, with vitedge. Times mean nothing there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.conftest import ROOT
from tests.contract.elsewhere import pinned
from vitedge import __version__

NAMES = (
    *("onnxruntime", "numpy", "pillow", "msgspec", "typer", "rich", "click", "shellingham", "markdown-it-py"),
    *("mdurl", "pygments", "annotated-doc"),
)
HOME = Path.home()  # before a test has another one


def interpreter(folder: Path) -> Path:
    """Make a Python that is emulated; its program. Virtual environments are made with it like with any other.

    The program is a script that gives its own name to the emulated Python (``qemu -0``). So processes that this starts
    as ``sys.executable`` are emulated as well, though the kernel can't start their program.

    Raises:
        RuntimeError: it can't be made here; says why.
    """
    python = Path(_output("import sys; print(sys.executable)").strip())
    sysroot = python.parents[3] / "sysroot-cortex-a76"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "lib" / "python3.11").symlink_to(python.parents[1] / "lib" / "python3.11")
    start = f'exec qemu-aarch64-static -cpu cortex-a76 -L {sysroot} -0 "$0" {python} "$@"'
    _program(folder / "bin" / "python3", start)
    return folder / "bin" / "python3"


def environment(folder: Path) -> str:
    """Make a virtual environment with an emulated Python, and vitedge as it is here; its place.

    Raises:
        RuntimeError: as :func:`interpreter`.
    """
    python, numpy = interpreter(folder / "emulated"), Path(_output("import numpy; print(numpy.__file__)").strip())
    site = folder / "lib" / "python3.11" / "site-packages"
    record = site / f"vitedge-{__version__}.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text(f"Metadata-Version: 2.1\nName: vitedge\nVersion: {__version__}\n")
    (site / "vitedge.pth").write_text(f"{numpy.parent.parent}\n{ROOT}\n")
    (folder / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(python)
    _program(folder / "bin" / "vitedge", f'exec {folder}/bin/python -m vitedge "$@"')
    return str(folder)


def _program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def _output(code: str) -> str:
    """What an emulated Python prints that has the wheels of vitedge's dependencies."""
    tool = Path(os.environ.get("VITEDGE_AARCH64_PYTHON") or ROOT.parent / "shared" / "tools" / "aarch64-python")
    if not tool.is_file():
        raise RuntimeError("no aarch64-python at hand (set VITEDGE_AARCH64_PYTHON)")
    pins = pinned(NAMES, "3.11")
    wheels = " ".join(f"{name}=={pins[name]}" if name in pins else name for name in NAMES)
    kept = {**os.environ, "HOME": str(HOME)}
    command = [tool, "--with", wheels, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=kept, check=False)
    if done.returncode:
        raise RuntimeError(f"aarch64-python can't be set up here: {done.stderr.strip()[-200:]}")
    return done.stdout
