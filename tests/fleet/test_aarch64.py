"""An emulated aarch64 board: its Python runs the agent and vitedge itself. Times mean nothing there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.cli.command import vitedge
from tests.fleet import emulated, faults
from tests.fleet.boards import Desk

T = TypeVar("T")


def emulation(make: Callable[[Path], T], folder: Path) -> T:
    """What ``make`` makes there; the test is skipped where nothing can be emulated."""
    try:
        return make(folder)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_aarch64_board_beside_an_x86_one(desk: Desk, artifacts: Path) -> None:
    board = desk.add("arm", venv=emulation(emulated.environment, desk.folder / "environment"))
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
    quick = ("--duration", "0.1", "--warmup", "0.05", "--percentile", "50.0")
    done = vitedge("fleet", "bench", artifacts / "one", *quick, "--out", "measured", "-q")
    assert done.code == 0, done.err
    results = [json.loads(path.read_text()) for path in sorted(Path("measured").glob("results/*/bench-one-*.json"))]
    assert [result["circumstances"]["processor"]["architecture"] for result in results] == ["aarch64", "x86_64"]
    assert all(result["rows"][0]["latency"] for result in results)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_aarch64_board_gets_vitedge_from_wheels_of_its_own(desk: Desk, artifacts: Path) -> None:
    board = desk.add("arm", venv=None, python=str(emulation(emulated.interpreter, desk.folder / "emulated")))
    done = vitedge("fleet", "install", "-q")
    assert done.code == 0, done.err
    assert "vitedge 0." in done.out
    environment = board.home / "fleet" / "venv"
    asked = [f"{environment}/bin/python", "-c", "import numpy, platform; print(platform.machine(), numpy.__file__)"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, cwd="/").stdout
    assert said.startswith(f"aarch64 {environment}/")
    done = vitedge("fleet", "verify", artifacts / "one", "-q")
    assert done.code == 0, done.err
