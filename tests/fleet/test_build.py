"""Choices among candidates: measured once on each kind of board, and taken by the others of the kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.command import vitedge
from tests.fleet import faults
from tests.fleet.boards import Desk


@pytest.mark.slow
def test_boards_of_one_kind_share_a_choice(desk: Desk, small_model: Path, small_data: Path) -> None:
    import vitedge as api

    carrier = desk.laptop / "carrier"
    how = {"data": small_data, "num_samples": 8, "with_candidates": True, "max_drop": 100.0}
    api.export(small_model, "onnxruntime", "auto", carrier, **how)  # type: ignore[arg-type]
    boards = desk.add("first"), desk.add("second")
    done = vitedge("fleet", "build", carrier, "-q")
    assert done.code == 0, done.err
    rows = faults.rows(Path("fleet-results"))
    assert [(row["board"], row["state"]) for row in rows] == [("first", "done"), ("second", "done")]
    told = [json.loads((Path("fleet-results") / row["result"]).read_text()) for row in rows]
    assert [row["latency_p50_ms"] for row in told[0]] == [row["latency_p50_ms"] for row in told[1]], "measured once"
    (choice,) = (desk.laptop / "carrier.choices").iterdir()
    there = [list((board.home / "fleet" / "artifacts").glob(f"*.choices/{choice.name}")) for board in boards]
    assert [len(each) for each in there] == [0, 1]
    assert vitedge("fleet", "push", carrier, "-q").code == 0
    assert list((boards[0].home / "fleet" / "artifacts").glob(f"*.choices/{choice.name}"))
    again = vitedge("fleet", "--on", "first", "build", carrier, "--overwrite", "-q")
    assert again.code == 0, again.err
    newest = json.loads((Path("fleet-results") / faults.rows(Path("fleet-results"))[0]["result"]).read_text())
    assert newest != told[0], "measured anew"


@pytest.mark.slow
def test_a_choice_beside_the_artifact_is_taken_on_machines_of_its_kind_alone(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitedge as api
    from vitedge.formats.artifact import Artifact
    from vitedge.runtimes import choice

    carrier = tmp_path / "carrier"
    how = {"data": small_data, "num_samples": 8, "with_candidates": True, "max_drop": 100.0}
    api.export(small_model, "onnxruntime", "auto", carrier, **how)  # type: ignore[arg-type]
    opened = Artifact.open(carrier)
    timed = [
        choice.Timed(
            artifact=place, precision="int8", latency_p50_ms=1, latency_p95_ms=1, top1_drop_pp=None, chosen=place != "."
        )
        for place in (".", choice.folders(opened)[0])
    ]
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "one"))
    choice.write_choice(opened, tuple(timed), "choose")
    choice.export_choice(opened, tmp_path / "carrier.choices", "choose")
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "other"))
    assert choice.open_artifact(carrier).path.parent.name == "candidates"
    monkeypatch.setattr(choice, "hardware_description", lambda target: "another processor")
    assert choice.open_artifact(carrier).path == carrier
    shutil.rmtree(tmp_path / "carrier.choices")
    monkeypatch.undo()
