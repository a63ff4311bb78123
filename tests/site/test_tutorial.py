"""Pages and notebooks are those of their sources; the tutorial's whole story runs."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"


@pytest.fixture(scope="module")
def make() -> dict[str, Any]:
    return runpy.run_path(str(TUTORIALS / "_make.py"))


def test_page_and_notebook_are_those_of_the_source(make: dict[str, Any]) -> None:
    for path, text in make["made"]():
        assert path.read_text() == text, f"{path}: run: python docs/tutorials/_make.py"


def test_the_notebook_has_the_code_of_the_script(make: dict[str, Any]) -> None:
    notebook = json.loads((TUTORIALS / "build-a-vit.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    script = [line.split("  # noqa")[0] for line in (TUTORIALS / "build_a_vit.py").read_text().splitlines()]
    written = [line for line in script if line and not line.startswith("#")]
    lines = [line for text in code for line in text.splitlines() if line and not line.startswith("#")]
    assert lines == written[written.index("import argparse") :]


def test_the_source_runs_from_a_photograph_to_a_film(tmp_path: Path) -> None:
    for package in ("torch", "onnxruntime", "onnxscript", "av"):
        if find_spec(package) is None:
            pytest.skip(f"{package} isn't installed")
    command = [sys.executable, TUTORIALS / "build_a_vit.py", "--steps", "2", "--out", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for picture in ("patches.png", "positions.png", "attention.png"):
        assert (tmp_path / picture).stat().st_size > 1000
        assert (TUTORIALS / picture).is_file(), "the page shows it"
    assert "comes from the patch in row" in done.stdout, "the imported graph is a Vision Transformer"
