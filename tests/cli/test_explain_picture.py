from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarking.nulls import NAMES, coloured, null_artifact
from tests.cli.command import fails, vitedge


def test_a_model_and_an_artifact(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    done = vitedge(
        "explain-picture", small_model, small_data / "bee" / "3.png", "--class", "bee", "-o", tmp_path / "m.png"
    )
    assert done.code == 0, done.err
    assert "bee" in done.out and "lowers the probability most" in done.out and "comes from the patch in row" in done.out
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "one.png").write_bytes(coloured(1))
    artifact = null_artifact(tmp_path / "artifact").path
    done = vitedge("explain-picture", artifact, tmp_path / "one.png")
    assert "patch in row 1, column 1" in done.out and "none: an artifact doesn't output its attention" in done.out
    alone = vitedge("explain-picture", artifact, tmp_path / "one.png", "--json", "-", "--threads", 1)
    found = json.loads(alone.out)
    assert found["label"] == NAMES[1] and found["rollout"] is None and found["occlusion"][1] == [0, 0]


@pytest.mark.parametrize("picture", [b"no picture", None])
def test_broken_and_missing_pictures(picture: bytes | None, small_model: Path, tmp_path: Path) -> None:
    if picture is not None:
        (tmp_path / "p.png").write_bytes(picture)
    action, _, _ = fails(3, "explain-picture", small_model, tmp_path / "p.png", "--out", tmp_path / "m.png")
    assert "p.png" in action and not (tmp_path / "m.png").exists()


def test_only_a_picture_is_replaced(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "m.png").write_text("notes")
    command = ("explain-picture", small_model, small_data / "bee" / "3.png", "--out", tmp_path / "m.png")
    assert "already exists" in fails(2, *command)[1]
    assert "isn't a PNG picture" in fails(2, *command, "--overwrite")[1]
    assert (tmp_path / "m.png").read_text() == "notes"
    assert "no such folder" in fails(2, "explain-picture", tmp_path / "none", small_data / "bee" / "3.png")[1]
