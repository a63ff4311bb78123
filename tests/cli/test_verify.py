from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarking.nulls import null_artifact
from tests.cli.command import fails, vitedge


def test_whole_artifact(tmp_path: Path) -> None:
    artifact = null_artifact(tmp_path / "a")
    done = vitedge("verify", artifact.path)
    assert done.code == 0, done.err
    assert done.out.count("✓") >= 4 and "✗" not in done.out
    checks = json.loads(vitedge("verify", artifact.path, "--json", "-").out)
    assert checks[0] == {"name": "digests", "ok": True, "detail": "10 files are what was written"}
    assert vitedge("verify", artifact.path, "--json", tmp_path / "c.json").code == 0
    assert json.loads((tmp_path / "c.json").read_text()) == checks


def test_failed_check_is_shown_and_exits_with_7(tmp_path: Path) -> None:
    artifact = null_artifact(tmp_path / "a", shift=1)
    done = vitedge("verify", artifact.path)
    assert done.code == 7 and "✗" in done.out
    assert done.error[0] == f"verify the artifact {artifact.path}" and done.error[1] == "failed: golden logits"


def test_no_artifact(tmp_path: Path) -> None:
    assert "no such folder" in fails(2, "verify", tmp_path / "none")[1]
    (tmp_path / "empty").mkdir()
    assert "manifest.json can't be read" in fails(3, "verify", tmp_path / "empty")[1]
