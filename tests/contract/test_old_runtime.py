"""The contract suite with the oldest packages that are served: what pip resolves for Python 3.10 on JetPack 6."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.contract import portable
from tests.contract.elsewhere import artifacts_for, installed_folder, python_like_jetpack

PACKAGES = ("onnxruntime==1.23.2", "numpy==2.2.*", "msgspec", "pillow", "tomli; python_version < '3.11'")


def test_the_contract_with_the_oldest_runtime(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In an interpreter that sees these packages and nothing else: no onnx, no typer, no newer NumPy."""
    python = python_like_jetpack()
    site = installed_folder(python, PACKAGES)
    artifacts = artifacts_for("onnxruntime", tmp_path_factory)
    told = _run(python, site, "-c", "import numpy, onnxruntime; print(numpy.__version__, onnxruntime.__version__)")
    assert told.startswith("2.2.") and told.split()[1] == "1.23.2"
    assert "ModuleNotFoundError" in _run(python, site, "-c", "try: import onnx\nexcept Exception as e: print(repr(e))")
    lines = _run(python, site, portable.__file__, "--reopen", "3", *map(str, artifacts)).splitlines()
    assert lines[-1] == f"{len(artifacts) * len(portable.CHECKS)} checks, 0 failed"


def _run(python: str, site: Path, *arguments: str) -> str:
    done = subprocess.run(
        [python, "-S", *arguments], capture_output=True, text=True, timeout=300, env={"PYTHONPATH": str(site)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
