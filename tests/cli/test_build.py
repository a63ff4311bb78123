"""``vitedge build`` from its command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vitedge as package
from tests.cli.command import fails, vitedge
from vitedge import runtimes
from vitedge.building import choices, engines
from vitedge.device import hardware
from vitedge.formats.artifact import Artifact
from vitedge.reporting import built
from vitedge.runtimes._nvidia.explain import Explanation
from vitedge.runtimes.choice import Timed

RTX = runtimes.installed("tensorrt_rtx") is not None


@pytest.fixture(scope="module")
def artifact(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return package.export(small_model, "tensorrt-rtx", "fp16", tmp_path_factory.mktemp("build") / "artifact")


@pytest.mark.skipif(not RTX, reason='pip install "vitedge[tensorrt-rtx]" builds without a GPU')
def test_engines_ahead_of_time(artifact: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "artifact.engines"
    done = vitedge("build", artifact.path, "--sm", "8.9", "--out", out)
    assert done.code == 0, done.err
    assert "tensorrt_rtx" in done.out and "8.9" in done.out and str(out) in done.out
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".plan"]
    (row,) = json.loads(vitedge("build", artifact.path, "--sm", "8.9", "--json", "-").out)
    assert (row["sm"], row["built"], row["gpu"]) == ("8.9", False, None)
    assert "already exists" in fails(2, "build", artifact.path, "--sm", "8.9", "--out", out)[1]
    assert "8.7 isn't among" in fails(2, "build", artifact.path, "--sm", "8.7")[1]


@pytest.mark.skipif(not RTX or bool(hardware.gpus()), reason="TensorRT-RTX is needed, and no GPU")
def test_what_takes_a_gpu_says_so(artifact: Artifact) -> None:
    assert "no NVIDIA GPU answers here" in fails(5, "build", artifact.path, "--explain")[1]


@pytest.mark.skipif(runtimes.installed("tensorrt") is not None, reason="TensorRT is here")
def test_tensorrt_isnt_here(small_model: Path, tmp_path: Path) -> None:
    made = package.export(small_model, "tensorrt", "fp16", tmp_path / "artifact")
    assert fails(8, "build", made.path)[1] == "the package 'tensorrt' is not installed"


def test_wishes_that_contradict_themselves(artifact: Artifact, tmp_path: Path) -> None:
    twice = (artifact.path, artifact.path)
    assert "one folder is for one artifact" in fails(2, "build", *twice, "--out", tmp_path / "out")[1]
    assert "two or more artifacts of one model" in fails(2, "build", artifact.path, "--autotune")[1]
    assert "no such folder" in fails(2, "build", tmp_path / "none")[1]


def test_the_tables(monkeypatch: pytest.MonkeyPatch, artifact: Artifact, tmp_path: Path) -> None:
    """What ``--autotune`` and ``--explain`` print, of answers as a GPU would give them."""
    timed = [
        Timed(
            artifact="fp16", precision="fp16", latency_p50_ms=2.0, latency_p95_ms=2.1, top1_drop_pp=0.0, reason="1.33×"
        ),
        Timed(
            artifact="int8",
            precision="int8",
            latency_p50_ms=1.5,
            latency_p95_ms=1.6,
            top1_drop_pp=0.25,
            chosen=True,
            reason="the fastest within the budget",
        ),
    ]
    monkeypatch.setattr(choices, "autotune", lambda *args, **kwargs: timed)
    done = vitedge("build", artifact.path, artifact.path, "--autotune", "--json", tmp_path / "tuned.json")
    assert done.code == 0, done.err
    assert "+0.25" in done.out and "the fastest within the budget" in done.out
    assert [one["chosen"] for one in json.loads((tmp_path / "tuned.json").read_text())] == [False, True]

    one = Explanation(
        layers=3,
        type_fractions={"int8": 1.0},
        timed=True,
        planned={"int8": 2},
        obtained={"int8": 2},
        reformats=0,
        reformats_fraction=0.0,
        around_attention=0,
        attentions=2,
        fused=1,
        ns=1000,
    )
    answer: Any = ({"int8/": one}, ["int8/ is 4% slower than fp16/ here: two reformats."])
    monkeypatch.setattr(engines, "explain", lambda *args, **kwargs: answer)
    done = vitedge("build", artifact.path, "--explain")
    assert "1 of 2 attentions run as one fused kernel; the others are several kernels each." in done.out
    assert "int8/ is 4% slower than fp16/ here: two reformats." in done.out
    told = json.loads(vitedge("build", artifact.path, "--explain", "--json", "-").out)
    assert told["engines"]["int8/"]["fused"] == 1 and len(told["compared"]) == 1


@pytest.mark.skipif(not RTX, reason='pip install "vitedge[tensorrt-rtx]" builds without a GPU')
def test_a_dry_run(artifact: Artifact) -> None:
    vitedge("build", artifact.path, "--sm", "8.9")
    options = ("--sm", "8.9", "--sm", "12.0", "--dry-run")
    there, missing = json.loads(vitedge("build", artifact.path, *options, "--json", "-").out)
    assert (there["sm"], there["builds"]) == ("8.9", False)
    assert (missing["sm"], missing["builds"], missing["because"]) == ("12.0", True, "")
    (earlier,) = missing["earlier"]
    assert (earlier["sm"], missing["memory_mb"] > 0) == ("8.9", True)
    assert 50 < earlier["peak_mb"] < 50_000, "MiB of a process that has loaded TensorRT-RTX"
    done = vitedge("build", artifact.path, *options)
    assert "to be built" in done.out and "for SM 8.9 with tensorrt_rtx" in done.out and "there: " in done.out
    again = json.loads(vitedge("build", artifact.path, *options, "--json", "-").out)
    assert [row["builds"] for row in again] == [False, True]


def test_a_dry_run_where_nothing_is_built(small_model: Path, tmp_path: Path) -> None:
    made = package.export(small_model, "onnxruntime", "fp32", tmp_path / "artifact")
    assert "there is no engine to build" in fails(2, "build", made.path, "--dry-run")[1]


def test_a_rebuilt_engine_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "artifact": "a",
        "runtime": "tensorrt 10.7.0",
        "sm": "8.7",
        "gpu": "Orin",
        "bytes": 5_000_000,
        "built": True,
        "seconds": 61.2,
        "because": "the engine that is there was built for something else: version 10.3.0, here 10.7.0",
        "folder": "cache",
    }
    built.show_built([row])
    text = capsys.readouterr().out
    assert "61.2" in text and "SM 8.7: the engine that is there was built for something else" in text
    built.show_built([{**row, "built": False, "because": ""}, {**row, "built": False, "seconds": None}])
    text = capsys.readouterr().out
    assert "cached 61.2" in text and text.count("cached") == 2
