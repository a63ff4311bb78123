"""The Python call and the command with the same options give the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import vitedge
from tests.cli.command import vitedge as run
from tests.reporting import results
from vitedge.building import engines
from vitedge.core.schema import encode_json
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import write_result
from vitedge.runtimes import choice


@pytest.fixture(scope="module")
def artifact(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return vitedge.export(small_model, "onnxruntime", "fp32", tmp_path_factory.mktemp("same") / "artifact")


def printed(*arguments: object) -> Any:
    """What a command prints as JSON."""
    done = run(*arguments, "--json", "-")
    assert done.code == 0, done.err
    return json.loads(done.out)


def as_json(value: object) -> Any:
    return json.loads(encode_json(value))


def test_export(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    options = ("--data", small_data, "--num-samples", 31, "--recipe", "fast", "--batch", 2)
    (row,) = printed("export", small_model, "-t", "onnxruntime", "--int8", *options, "--out", tmp_path / "a")
    made = vitedge.export(
        small_model, "onnxruntime", "int8", tmp_path / "b", data=small_data, num_samples=31, recipe="fast", batch=2
    )
    assert row["digest"] == made.digest
    assert {**row, "artifact": ""} == as_json({**vitedge.summary(made), "artifact": ""})


def test_a_planned_export(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    rows = printed(
        *("export", small_model, "-t", "onnxruntime", "--int8", "--data", small_data, "--num-samples", 9),
        *("--min-agreement", 80, "--dry-run", "--out", tmp_path / "a"),
    )
    plan = vitedge.plan_export(
        small_model, "onnxruntime", "int8", tmp_path / "a", data=small_data, num_samples=9, min_agreement=80
    )
    assert rows == as_json([vitedge.summary(plan)])


def test_label(small_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(small_model, tmp_path / "model")
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\nfour\nfive\n")
    rows = printed("label", model, "--labels", tmp_path / "names.txt")
    named = vitedge.label(shutil.copytree(small_model, model, dirs_exist_ok=True), tmp_path / "names.txt")
    assert rows == as_json([vitedge.summary(named)])
    assert [each.name for each in named.record.classes] == ["one", "two", "three", "four", "five"]


def test_build(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of every candidate, for the compute capabilities that are named."""

    def recorded(artifact: Artifact, *, sms: Any, options: Any, **_: object) -> list[dict[str, Any]]:
        found = {"runtime": "stand-in 1", "gpu": None, "bytes": 1, "built": True, "seconds": 0.0, "because": None}
        return [{"artifact": artifact.digest, "sm": sm, "options": dict(options), "folder": "x", **found} for sm in sms]

    monkeypatch.setattr(engines, "build", recorded)
    monkeypatch.setattr(choice, "candidates_of", lambda artifact: [artifact] * 4)
    monkeypatch.setattr(choice, "folders", lambda artifact: ["one", "two", "three"])
    rows = printed("build", artifact.path, "--sm", "8.9", "--workspace-mb", 64)
    assert len(rows) == 4
    assert rows == as_json(vitedge.build(artifact.path, sms=["8.9"], options={"workspace_mb": 64}))


def test_verify(artifact: Artifact) -> None:
    assert printed("verify", artifact.path) == as_json(vitedge.verify(artifact.path))


def test_eval(artifact: Artifact, small_data: Path) -> None:
    """Everything but how long it took."""

    def answers(result: Any) -> Any:
        (row,) = result["rows"]
        return {name: value for name, value in row["accuracy"].items() if name != "duration_ns"}, result["data"]

    result = printed("eval", artifact.path, "--data", small_data, "--limit", 20)
    assert answers(result) == answers(as_json(vitedge.evaluate([artifact], small_data, limit=20)))


def test_classify(artifact: Artifact, small_data: Path) -> None:
    answers = printed("classify", artifact.path, small_data / "bee", "--top-k", 2)
    assert answers == as_json(vitedge.classify(artifact, [small_data / "bee"], top_k=2))


def test_explain_picture(small_model: Path, small_data: Path) -> None:
    picture = small_data / "bee" / "3.png"
    explanation = printed("explain-picture", small_model, picture, "--class", "cat")
    assert explanation == as_json(vitedge.explain_picture(small_model, picture, class_name="cat"))


def test_compare(tmp_path: Path) -> None:
    write_result(results.demo(), tmp_path / "result.json")
    comparisons = vitedge.compare_results(
        [tmp_path / "result.json"], vitedge.Tolerance(max_slowdown_pct=900, max_top1_drop_pp=90)
    )
    done = run("compare", tmp_path / "result.json", "--max-slowdown", 900, "--max-drop", 90, "--json", "-")
    assert json.loads(done.out) == as_json(comparisons)


@pytest.mark.parametrize("format", ["html", "md", "csv"])
def test_report(tmp_path: Path, format: str) -> None:
    write_result(results.demo(), tmp_path / "result.json")
    assert run("report", tmp_path / "result.json", "--out", tmp_path / f"a.{format}").code == 0
    report = vitedge.report([tmp_path / "result.json"], out=tmp_path / f"b.{format}")
    assert (tmp_path / f"a.{format}").read_bytes() == report.content == (tmp_path / f"b.{format}").read_bytes()


def test_what_is_there() -> None:
    assert printed("targets") == as_json(vitedge.targets())
    assert printed("targets", "onnxruntime") == as_json(vitedge.target("onnxruntime"))
    assert printed("recipes") == as_json(vitedge.recipes())
    assert printed("recipes", "fast") == as_json(vitedge.recipe("fast"))


def test_inspect(artifact: Artifact) -> None:
    assert printed("inspect", artifact.path) == as_json(vitedge.inspect(artifact.path))
