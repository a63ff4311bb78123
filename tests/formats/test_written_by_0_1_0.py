"""Files that version 0.1.0 wrote open, verify, compare and report: what a user holds keeps its meaning.

``written/0.1.0.zip`` has a random ViT's model folder, its INT8 artifacts for three runtimes (their golden pictures
once, for all), and results of ``bench`` and ``eval`` over the artifacts for ONNX Runtime.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

import vitedge
from tests.cli.command import vitedge as run
from vitedge import runtimes
from vitedge.formats.artifact import Artifact
from vitedge.formats.model_folder import Model
from vitedge.formats.result import read_result
from vitedge.runtimes.base import OpenOptions

ARTIFACTS = ("onnxruntime-int8", "openvino-int8", "tensorrt-int8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    with zipfile.ZipFile(Path(__file__).parent / "written" / "0.1.0.zip") as archive:
        archive.extractall(folder)
    for name in ARTIFACTS:
        for picture in (folder / "golden").glob("*.png"):
            (folder / name / "golden" / picture.name).write_bytes(picture.read_bytes())
    return folder


def test_the_model_opens_and_exports(written: Path, tmp_path: Path) -> None:
    assert Model.open(written / "model").record.vitedge_version == "0.1.0"
    made = vitedge.export(written / "model", "onnxruntime", "fp32", tmp_path / "artifact")
    assert all(check.ok for check in vitedge.verify(made, OpenOptions(threads=1)))


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_opens_with_what_its_manifest_says(written: Path, name: str) -> None:
    artifact, manifest = Artifact.open(written / name), json.loads((written / name / "manifest.json").read_text())
    assert artifact.manifest.vitedge_version == manifest["vitedge_version"] == "0.1.0"
    assert artifact.manifest.precision == manifest["precision"] == "int8"
    assert [layer.name for layer in artifact.manifest.layers] == [layer["name"] for layer in manifest["layers"]]
    done = run("inspect", written / name)
    assert done.code == 0 and manifest["form"] in done.out


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_verifies(written: Path, name: str) -> None:
    runtime = name.removesuffix("-int8")
    if runtime != "tensorrt" and runtimes.installed(runtime) is None:
        pytest.skip(f"{runtime} isn't installed")
    checks = vitedge.verify(written / name, OpenOptions(threads=1))
    assert not [check for check in checks if check.ok is False]
    assert {check.name for check in checks if check.ok} >= {"digests", "preprocessing"}


@pytest.mark.parametrize("name", ["bench.json", "eval.json"])
def test_a_result_reads_reports_and_is_inspected(written: Path, name: str, tmp_path: Path) -> None:
    result, text = read_result(written / name), json.loads((written / name).read_text())
    assert [row.subject.digest for row in result.rows] == [row["subject"]["digest"] for row in text["rows"]]
    for out in ("report.html", "report.md", "report.csv"):
        assert run("report", written / name, "--out", tmp_path / out).code == 0
        assert "onnxruntime" in (tmp_path / out).read_text() and "int8" in (tmp_path / out).read_text()
    assert run("inspect", written / name).code == 0


def test_rows_of_a_result_are_compared(written: Path) -> None:
    done = run("compare", written / "eval.json", "--json", "-")
    assert done.code in (0, 7), done.err  # 20 pictures decide nothing
    (comparison,) = json.loads(done.out)
    assert comparison["candidate"] == "onnxruntime int8" and comparison["accuracy"]["images"] == 20
    assert -5.0 in comparison["accuracy"].values()
