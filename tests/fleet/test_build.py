"""Choices among candidates: measured once on each kind of board, and taken by the others of the kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import vitedge
from tests.fleet import faults
from tests.fleet.boards import Desk
from vitedge.core.files import sha256
from vitedge.formats.engines import INDEX, index


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


def built(boards: int) -> list[dict[str, Any]]:
    """What ``vitedge build`` said on each board."""
    rows = [row for row in faults.rows(Path("fleet-results")) if row["verb"] == "build"]
    assert [row["state"] for row in rows] == ["done"] * boards
    return [json.loads((Path("fleet-results") / row["result"]).read_text())[0] for row in rows]


@pytest.mark.slow
def test_an_engine_is_built_once_copied_to_equal_boards_and_refused_elsewhere(desk: Desk, small_model: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    import vitedge as api

    made = api.export(small_model, "tensorrt-rtx", "fp16", desk.laptop / "rtx")
    engines, boards = desk.laptop / "rtx.engines", [desk.add("first"), desk.add("second")]
    done = vitedge("fleet", "build", made.path, "--sm", "8.6", "-q")
    assert done.code == 0, done.err
    told = built(2)
    there = boards[1].home / "fleet" / "artifacts" / f"{made.digest}.engines"
    assert [row["built"] for row in told] == [True, False] and told[1]["folder"] == str(there)
    (listed,) = index(engines).engines
    plan = (engines / listed.file).read_bytes()
    assert sha256(plan) == listed.engine and (there / listed.file).read_bytes() == plan
    assert not list(boards[1].home.glob("cache/**/*.plan")), "it has built none"

    (engines / INDEX).write_text((engines / INDEX).read_text().replace(f'"{listed.version}"', '"1.0.9"'))
    desk.add("third")
    done = vitedge("fleet", "--on", "third", "build", made.path, "--sm", "8.6", "-q")
    assert done.code == 0, done.err
    refusal = f"the engine that is there was built for something else: version 1.0.9, here {listed.version}"
    assert built(3)[2]["built"]
    assert ("third", f"build rtx built again: {refusal}") in [
        each[::2] for each in api.fleet_outcomes("fleet-results")[1]
    ]
    assert [one.version for one in index(engines).engines] == ["1.0.9", listed.version], "each has its own"

    (engines / index(engines).engines[1].file).write_bytes(b"another engine")
    (desk.add("fourth").home / "fleet").mkdir()
    done = vitedge("fleet", "--on", "fourth", "build", made.path, "--sm", "8.6", "-q")
    assert done.code == 0, done.err
    assert "isn't what was written" in built(4)[1]["because"]


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
