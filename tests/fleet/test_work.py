"""Verbs on boards: pushed by digest, run under the board's lock, brought back, recorded, never done twice."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import fails, vitedge
from tests.fleet import faults
from tests.fleet.boards import Desk

QUICK = ("--duration", "0.1", "--warmup", "0.05", "--percentile", "50.0")


def ledger(out: str = "fleet-results") -> list[dict[str, Any]]:
    connection = sqlite3.connect(Path(out) / "ledger.db")
    connection.row_factory = sqlite3.Row
    rows = [dict(row) for row in connection.execute("SELECT * FROM outcomes ORDER BY board, rowid")]
    connection.close()
    return rows


def test_two_boards_from_push_to_report(desk: Desk, artifacts: Path) -> None:
    boards = desk.add("nuc"), desk.add("pi5")
    done = vitedge("fleet", "push", artifacts / "one", artifacts / "two", "-q")
    assert done.code == 0, done.err
    assert done.out.count("new") == 4
    again = vitedge("fleet", "push", artifacts / "one", artifacts / "two", "-q")
    assert again.out.count("was there") == 4 and again.out.count("nothing") == 2
    for board in boards:
        assert (board.home / "fleet" / "current" / "one" / "manifest.json").is_file()

    done = vitedge("fleet", "bench", artifacts / "one", *QUICK, "-q")
    assert done.code == 0, done.err
    rows = ledger()
    assert [(row["board"], row["verb"], row["state"], row["code"]) for row in rows] == [
        ("nuc", "bench", "done", 0),
        ("pi5", "bench", "done", 0),
    ]
    assert "onnxruntime=" in rows[0]["versions"] and rows[0]["rules"] == " ".join(QUICK)
    results = [json.loads((Path("fleet-results") / row["result"]).read_text()) for row in rows]
    assert all(result["rows"][0]["subject"]["digest"] == rows[0]["subject"] for result in results)

    jobs = {board.name: sorted((board.home / "fleet" / "jobs").iterdir()) for board in boards}
    reason = fails(2, "fleet", "--on", "nuc", "bench", artifacts / "one", *QUICK, "-q")[1]
    assert reason == "fleet-results/ledger.db already has 1 of these 1 jobs on nuc"
    done = vitedge("fleet", "bench", artifacts / "one", artifacts / "two", *QUICK, "-q", "--resume")
    assert done.code == 0, done.err
    for board in boards:
        now = sorted((board.home / "fleet" / "jobs").iterdir())
        assert set(jobs[board.name]) < set(now) and len(now) == 2, "what was done isn't done again"
    pytest.importorskip("jinja2")
    done = vitedge("fleet", "report", "--page", "report.md")
    assert done.code == 0, done.err
    text = Path("report.md").read_text()
    assert "on nuc: " in text and "on pi5: " in text, "one decision for each board, equal though they are"
    assert vitedge("fleet", "status").out.count("done") == 4


def test_other_options_are_other_work_and_overwrite_does_it_again(desk: Desk, artifacts: Path) -> None:
    board = desk.add("nuc", venv=str(desk.folder / "nuc" / "stub"))
    faults.stub(board, 0)
    for options in (QUICK, (*QUICK, "--threads", "1"), (*QUICK, "--overwrite")):
        done = vitedge("fleet", "bench", artifacts / "one", *options, "-q")
        assert done.code == 0, done.err
    rows = ledger()
    assert [(row["rules"].count("--threads"), row["generation"]) for row in rows] == [(0, 1), (1, 0)]
    assert len(list((board.home / "fleet" / "jobs").iterdir())) == 3


@pytest.mark.slow
def test_verify_eval_compare_and_run(desk: Desk, artifacts: Path, small_data: Path) -> None:
    desk.add("nuc")
    one, two = artifacts / "one", artifacts / "two"
    assert vitedge("fleet", "verify", one, "-q").code == 0
    done = vitedge("fleet", "bench", one, two, *QUICK, "--together", "-q")
    assert done.code == 0, done.err
    done = vitedge("fleet", "eval", one, "--data", small_data, "-q")
    assert done.code == 0, done.err
    how = ("--duration", "0.1", "--rounds", "10", "--max-slowdown", "9999", "--data", small_data, "-q")
    done = vitedge("fleet", "compare", one, two, *how)
    assert done.code == 0, done.err
    done = vitedge("fleet", "run", "-q", "--", "inspect", one)
    assert done.code == 0, done.err
    found = {row["verb"]: Path("fleet-results") / row["result"] for row in ledger()}
    checks = json.loads(found["verify"].read_text())
    assert checks and all(check["ok"] for check in checks)
    assert json.loads(found["eval"].read_text())["rows"][0]["accuracy"]["rank"]
    assert len(json.loads(found["bench"].read_text())["rows"]) == 2
    assert len(json.loads(found["compare"].read_text())["rows"]) == 2
    assert "logits" in found["run"].read_text() or "ant" in found["run"].read_text()


def test_artifacts_go_to_boards_of_their_target(desk: Desk, artifacts: Path) -> None:
    first = desk.add("nuc", target="x86-server")
    second = desk.add("any")
    third = desk.add("pi5", target="raspberry-pi-5")
    done = vitedge("fleet", "push", artifacts / "one", artifacts / "two", "-q")
    assert done.code == 2
    assert done.error[1] == "the board's target is raspberry-pi-5; these artifacts are for onnxruntime, x86-server"
    assert sorted(path.name for path in (first.home / "fleet" / "current").iterdir()) == ["two"]
    assert sorted(path.name for path in (second.home / "fleet" / "current").iterdir()) == ["one", "two"]
    assert not list((third.home / "fleet" / "current").iterdir())


def test_what_fails_on_a_board_is_said_and_the_others_go_on(desk: Desk, artifacts: Path) -> None:
    desk.add("nuc")
    desk.add("away").stop_server()
    done = vitedge("fleet", "verify", artifacts / "one", "-q", "--threads", "1")
    assert done.code == 5
    assert done.error[0] == "reach away"
    assert [(row["board"], row["state"]) for row in ledger()] == [("nuc", "done")]
    assert "reach away: " in vitedge("fleet", "status").out
    desk.boards["away"].start()
    done = vitedge("fleet", "verify", artifacts / "one", "-q", "--threads", "1", "--resume")
    assert done.code == 0, done.err
    assert [(row["board"], row["state"]) for row in ledger()] == [("away", "done"), ("nuc", "done")]
    _, reason, _ = fails(7, "fleet", "--on", "nuc", "run", "-q", "--", "bench", "nowhere")
    assert "there is no such folder" in reason


def test_a_job_goes_on_without_us_and_is_collected(desk: Desk, artifacts: Path) -> None:
    board = desk.add("nuc", venv=str(desk.folder / "nuc" / "stub"))
    faults.stub(board, 0)
    faults.hold(board)
    one, two = artifacts / "one", artifacts / "two"
    done = vitedge("fleet", "bench", one, two, *QUICK, "--detach", "-q")
    assert done.code == 0, done.err
    assert [row["state"] for row in ledger()] == ["running", "running"]
    with contextlib.closing(sqlite3.connect("fleet-results/ledger.db")) as connection, connection:
        connection.execute("UPDATE outcomes SET state = 'planned' WHERE artifacts = 'one'")  # stopped before it's told
    board.stop_server()  # nobody is connected now, nor can be
    board.start()
    faults.begun(board)
    faults.release(board)
    faults.until_true(lambda: vitedge("fleet", "collect").out.count("done") == 2)
    rows = ledger()
    assert [row["state"] for row in rows] == ["done", "done"]
    assert sorted((row["started_ns"], row["ended_ns"]) for row in rows)[1][0] >= min(row["ended_ns"] for row in rows)
    assert all((Path("fleet-results") / row["result"]).is_file() for row in rows)


def test_what_lies_beside_an_artifact_travels_with_every_change(desk: Desk, artifacts: Path) -> None:
    board, beside = desk.add("nuc"), desk.laptop / "one.choices"
    shutil.copytree(artifacts / "one", desk.laptop / "one")
    beside.mkdir()
    for content in ("1.25", "1.75"):  # of one length
        (beside / "choice.json").write_text(content)
        done = vitedge("fleet", "push", "one", "-q")
        assert done.code == 0, done.err
        assert (board.home / "fleet" / "current" / "one.choices" / "choice.json").read_text() == content
        assert len(list((board.home / "fleet" / "artifacts").iterdir())) == 2, "nothing earlier is left"


def test_a_damaged_artifact_stays_here(desk: Desk, artifacts: Path) -> None:
    desk.add("nuc")
    copy = desk.laptop / "copy"
    shutil.copytree(artifacts / "one", copy)
    graph = next(copy.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    assert graph.name in fails(3, "fleet", "push", copy, "-q")[1]
