from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarking.nulls import NAMES, coloured, null_artifact
from tests.cli.command import fails, vitedge
from vitedge.formats.artifact import Artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return null_artifact(tmp_path_factory.mktemp("artifact") / "a")


def test_pictures_and_folders(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for number in range(3):
        (tmp_path / "folder" / f"{number}.png").write_bytes(coloured(number))
    (tmp_path / "one.png").write_bytes(coloured(4))
    done = vitedge("classify", artifact.path, tmp_path / "folder", tmp_path / "one.png")
    assert done.code == 0, done.err
    assert [line.split()[:2] for line in done.out.splitlines()[2:]] == [
        ["0.png", NAMES[0]],
        ["1.png", NAMES[1]],
        ["2.png", NAMES[2]],
        ["one.png", NAMES[4]],
    ]
    found = json.loads(vitedge("classify", artifact.path, tmp_path / "one.png", "-k", 2, "--json", "-").out)
    assert [answer["label"] for answer in found[0]["answers"]] == [NAMES[4], NAMES[0]]
    assert 0 < found[0]["answers"][0]["probability"] < 1


def test_broken_pictures(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(coloured(1))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    done = vitedge("classify", artifact.path, tmp_path)
    assert done.code == 3 and "1 can't be read: bad.png" in done.err
    assert NAMES[1] in done.out and "bad.png" in done.out
    assert "bad.png" in fails(3, "classify", artifact.path, tmp_path / "bad.png")[0]
    assert "doesn't exist" in fails(2, "classify", artifact.path, tmp_path / "none.png")[1]
