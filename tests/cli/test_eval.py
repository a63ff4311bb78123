from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import fails, vitedge
from tests.harness.nulls import labelled, null_artifact
from vitedge.artifact import Artifact
from vitedge.result import read_result


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return null_artifact(tmp_path_factory.mktemp("artifact") / "a")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("data") / "pictures")


def test_table_file_and_json_tell_the_same(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    done = vitedge("eval", artifact.path, "--data", data, "--out", tmp_path / "r.json")
    assert done.code == 0, done.err
    assert "70.00" in done.out and "60 images of pictures" in done.out and done.err == ""
    accuracy = read_result(tmp_path / "r.json").rows[0].accuracy
    assert accuracy is not None and sum(rank == 0 for rank in accuracy.rank) == 42
    printed = json.loads(vitedge("eval", artifact.path, artifact.path, "--data", data, "--limit", 9, "--json", "-").out)
    assert len(printed["rows"]) == 2 and len(printed["data"]["names"]) == 9


def test_refusals(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    _, true, fix = fails(2, "eval", artifact.path)
    assert "serve the embedded model alone" in true and "--data" in fix
    fails(2, "eval", artifact.path, "--data", "held-out")  # its folders aren't this model's classes
    (tmp_path / "r.json").write_text("mine")
    assert "already exists" in fails(2, "eval", artifact.path, "--data", data, "--out", tmp_path / "r.json")[1]
    assert vitedge("eval", artifact.path, "--data", data, "--out", tmp_path / "r.json", "--overwrite").code == 0


def test_pictures_of_a_hostile_folder(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "\x1b[31m<i>pictures"
    shutil.copytree(data, folder)
    done = vitedge("eval", artifact.path, "--data", folder)
    assert done.code == 0 and "\x1b" not in done.out and "<i>pictures" in done.out
