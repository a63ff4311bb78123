"""The notebook of ``examples/notebook``: its code cells, run one after the other in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples/notebook/quantize.ipynb"
#: What a kernel does with the cells of a notebook, without Jupyter: all share one namespace.
KERNEL = """
import json, sys
for cell in json.load(sys.stdin)["cells"]:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]))
"""


def test_every_cell_runs(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "jinja2"):
        if find_spec(package) is None:
            pytest.skip(f"{package} isn't installed")
    with NOTEBOOK.open() as notebook:
        done = subprocess.run(
            [sys.executable, "-c", KERNEL],
            stdin=notebook,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("['airplane'") and lines[1].startswith("fp32: ") and lines[2].startswith("int8: ")
    assert lines[3].split()[1] == lines[4].split()[1], "both call the picture the same"
    assert (tmp_path / "quantized/report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("nbclient") is None or find_spec("ipykernel") is None,
    reason="Jupyter isn't installed; .ci/slow installs it",
)
def test_jupyter_runs_it(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "quantized/report.html").is_file()
