"""An emulated aarch64 board: its Python runs the agent and vitedge itself. Times mean nothing there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import vitedge
from tests.conftest import ROOT
from tests.contract.elsewhere import pinned
from tests.fleet import faults
from tests.fleet.boards import Desk
from vitedge import __version__

NAMES = ("onnxruntime", "numpy", "pillow", "msgspec", "typer", "rich", "click", "shellingham", "markdown-it-py")
MORE = ("mdurl", "pygments", "annotated-doc")
HOME = Path.home()  # before a test has another one


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_aarch64_board_beside_an_x86_one(desk: Desk, artifacts: Path) -> None:
    tool = Path(os.environ.get("VITEDGE_AARCH64_PYTHON") or ROOT.parent / "shared" / "tools" / "aarch64-python")
    if not tool.is_file():
        pytest.skip("no aarch64-python at hand (set VITEDGE_AARCH64_PYTHON)")
    pins = pinned((*NAMES, *MORE), "3.11")
    wheels = " ".join(f"{name}=={pins[name]}" if name in pins else name for name in (*NAMES, *MORE))
    environment = {**os.environ, "HOME": str(HOME)}
    ready = subprocess.run(
        [tool, "--with", wheels, "-c", ""], capture_output=True, text=True, env=environment, check=False
    )
    if ready.returncode:
        pytest.skip(f"aarch64-python can't be set up here: {ready.stderr.strip()[-200:]}")
    installed = desk.folder / "installed"
    record = installed / f"vitedge-{__version__}.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text(f"Metadata-Version: 2.1\nName: vitedge\nVersion: {__version__}\n")
    board = desk.add("arm", venv=str(desk.folder / "environment"))
    programs = desk.folder / "environment" / "bin"
    programs.mkdir(parents=True)
    cache = os.environ.get("XDG_CACHE_HOME") or HOME / ".cache"
    start = f"env XDG_CACHE_HOME={cache} AARCH64_PATH={ROOT}:{installed} {tool}"
    for name, arguments in {"python": "", "vitedge": "-m vitedge"}.items():
        program = programs / name
        program.write_text(f"#!/bin/sh\nexec {start} --with '{wheels}' {arguments} \"$@\"\n")
        program.chmod(0o755)
    desk.add("nuc")
    done = vitedge("fleet", "doctor", "--json", "-")
    assert done.code == 0, done.err
    arm, nuc = json.loads(done.out)
    assert (arm["arch"], nuc["arch"]) == ("aarch64", "x86_64")
    assert "vitedge" in arm["versions"] and arm["disk_mb"] and arm["memory_mb"]
    assert arm["kind"] != nuc["kind"]
    done = vitedge("fleet", "push", artifacts / "one", "-q")
    assert done.code == 0 and done.out.count("new") == 2
    done = vitedge("fleet", "run", "-q", "--", "inspect", artifacts / "one")
    assert done.code == 0, done.err
    rows = {row["board"]: row for row in faults.rows(Path("fleet-results"))}
    told = [(Path("fleet-results") / row["result"]).read_text() for row in rows.values()]
    assert told[0] and told[0].replace(str(board.home), "") == told[1].replace(str(desk.boards["nuc"].home), "")
