"""What ``import vitedge`` offers: every name, lazily, typed so that a misspelled option is caught before it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vitedge
from tests.conftest import ROOT
from vitedge import api, errors


@pytest.mark.parametrize("name", vitedge.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(vitedge, name) is not None
    assert name in dir(vitedge)


def test_every_function_and_error_is_offered() -> None:
    functions = {name for name, value in vars(api).items() if callable(value) and value.__module__ == api.__name__}
    assert {name for name in functions if not name.startswith("_")} <= set(vitedge.__all__)
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and (name.endswith("Error") or name == "Interrupted")
    }
    assert classes <= set(vitedge.__all__)


MISSPELLED = """
import vitedge
from vitedge import BenchConfig, ExportOptions, StreamSettings, TrainOptions

vitedge.import_model("a", "b", interpolaton="bicubic")
vitedge.train("a", TrainOptions(model="x", epoch=3), "b")
vitedge.train("a", TrainOptions(model="x"), "b", overwrit=True)
vitedge.export("a", "b", "int8", "c", num_sample=3)
vitedge.export("a", "b", "int8", "c", ExportOptions(num_samples="many"))
vitedge.bench(["a"], BenchConfig(duration=3))
vitedge.stream("a", "0", polcy="every")
vitedge.stream("a", "0", StreamSettings(top_n=3))
"""

CORRECT = """
from pathlib import Path

import vitedge
from vitedge import Artifact, BenchConfig, Model, Prediction, Result, Session, StreamSettings, TrainOptions

model: Model = vitedge.import_model("a", "b", interpolation="bicubic", size=(64, 64), labels=["cat", "dog"])
path: Path = vitedge.train("a", TrainOptions(model="x", epochs=3), "b", overwrite=True)
artifact: Artifact = vitedge.export(model, "b", "int8", "c", data=Path("d"), num_samples=3)
result: Result = vitedge.bench([artifact], BenchConfig(duration_s=3))
session: Session = vitedge.open(artifact)
predictions: list[Prediction] = session.classify(artifact.path and __import__("numpy").zeros((1, 1, 3)))
for record in vitedge.stream("a", "0", StreamSettings(top_k=3), policy="every"):
    print(record)
"""


def test_mypy_catches_a_misspelled_option(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "wrong.py").write_text(MISSPELLED)
    (tmp_path / "right.py").write_text(CORRECT)
    config = str(ROOT / "pyproject.toml")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--config-file", config, "wrong.py", "right.py"]
    environment = {"MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "snippets")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    places = [line.split(":")[:2] for line in done.stdout.splitlines() if ": error: " in line]
    assert places == [["wrong.py", str(line)] for line in range(5, 13)], done.stdout + done.stderr
