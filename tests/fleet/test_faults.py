"""Connections drop, boards lose power, disks fill, clocks jump: nothing is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.command import fails, vitedge
from tests.disks import PAGE, fill, small_disk
from tests.fleet import faults
from tests.fleet.boards import Desk, FakeBoard
from vitedge.fleet.connection import Link
from vitedge.fleet.inventory import read_inventory
from vitedge.fleet.push import data_package, push


def stubbed(desk: Desk, name: str, seconds: float, **entry: object) -> FakeBoard:
    """A board whose vitedge is a stub that takes so long."""
    board = desk.add(name, venv=str(desk.folder / name / "stub"), **entry)
    faults.stub(board, seconds)
    return board


def held(desk: Desk, **entry: object) -> FakeBoard:
    """A board whose next job lasts until it's released."""
    board = stubbed(desk, "nuc", 0, **entry)
    faults.hold(board)
    return board


def waits(board: FakeBoard) -> bool:
    """Whether a job waits there for another one."""
    return any('"waiting"' in path.read_text() for path in (board.home / "fleet" / "jobs").glob("*/status"))


def events(out: str = "fleet-results") -> list[str]:
    with contextlib.closing(sqlite3.connect(Path(out) / "ledger.db")) as connection:
        return [text for (text,) in connection.execute("SELECT event FROM events ORDER BY number")]


def background(desk: Desk, *arguments: object) -> subprocess.Popen[bytes]:
    with (desk.laptop / "log").open("ab") as log:
        return subprocess.Popen(faults.command(*arguments), cwd=desk.laptop, stdout=log, stderr=log)


def test_who_measures_is_said_and_waited_for(desk: Desk, artifacts: Path) -> None:
    """The lock is held by the job, not by the connection, and is free when the job ends."""
    board = held(desk)
    first = background(desk, "bench", artifacts / "one", "--out", "theirs", "-q")
    faults.begun(board)
    first.kill()  # their laptop closes; the job goes on
    first.wait()
    done = vitedge("fleet", "bench", artifacts / "two", "-q")
    assert done.code == 5
    assert "somebody else measures there: " in done.out and "bench one, since" in done.out
    waiting = background(desk, "bench", artifacts / "two", "-q", "--resume", "--wait")
    faults.until_true(lambda: waits(board))
    faults.release(board)
    assert waiting.wait(200) == 0
    assert vitedge("fleet", "bench", artifacts / "one", "--out", "theirs", "--resume", "-q").code == 0
    assert faults.measured(board).total() == 2, "the job that went on was collected, not repeated"


def test_a_stop_leaves_the_boards_at_work(desk: Desk, artifacts: Path) -> None:
    board = held(desk)
    running = background(desk, "bench", artifacts / "one", "-q")
    faults.begun(board)
    running.send_signal(signal.SIGINT)
    assert running.wait(200) == 130
    said = (desk.laptop / "log").read_text()
    assert "jobs on the boards go on" in said and "vitedge fleet collect" in said and "Traceback" not in said
    faults.release(board)
    faults.until_true(lambda: "done" in vitedge("fleet", "collect").out)
    assert [row["state"] for row in faults.rows(Path("fleet-results"))] == ["done"]
    assert set(faults.measured(board).values()) == {1}


def test_power_that_is_cut_while_measuring(desk: Desk, artifacts: Path) -> None:
    board = held(desk)
    running = background(desk, "bench", artifacts / "one", "-q")
    faults.begun(board)
    board.cut_power()
    time.sleep(0.5)
    board.start()
    assert running.wait(200) == 0, (desk.laptop / "log").read_text()
    assert any(text.startswith("connection lost") for text in events())
    assert any("is started again: its processes were killed before it was done" in text for text in events())
    assert set(faults.measured(board).values()) == {1}


def test_a_full_disk_is_an_outcome_and_resume_goes_on(desk: Desk, artifacts: Path) -> None:
    with small_disk(desk.folder / "disk", 12_000) as disk:
        board = held(desk, folder=f"{disk}/fleet")
        running = background(desk, "bench", artifacts / "one", "-q")
        faults.begun(board)
        filler = fill(disk)
        faults.release(board)
        assert running.wait(200) == 5
        (row,) = faults.rows(Path("fleet-results"))
        assert row["state"] == "interrupted" and row["detail"] == "the board's disk is full: 0.0 MB are free"
        assert any("disk is full" in text for text in events())
        assert "0.0 MB are free there" in fails(5, "fleet", "bench", artifacts / "two", "-q", "--out", "more")[1]
        filler.unlink()
        assert vitedge("fleet", "bench", artifacts / "one", "-q", "--resume").code == 0
        assert set(faults.measured(board).values()) == {1}


def test_no_room_is_said_before_anything_is_sent(desk: Desk, artifacts: Path) -> None:
    with small_disk(desk.folder / "disk", (16 << 20) // PAGE) as disk:
        stubbed(desk, "nuc", 0, folder=f"{disk}/fleet")
        action, reason, _ = fails(5, "fleet", "push", artifacts / "one", "-q")
        assert action == "push to nuc" and "have to be sent" in reason
        assert not list((disk / "fleet" / "incoming").iterdir())


def test_a_clock_that_jumps_changes_nothing_and_is_noted(desk: Desk, artifacts: Path) -> None:
    board = held(desk)
    running = background(desk, "bench", artifacts / "one", "-q")
    faults.begun(board)
    (board.home / "clock" / "shift").write_text("-86400")
    faults.release(board)
    assert running.wait(200) == 0
    assert any("the board's clock moved by -86400 s" in text for text in events())


def test_a_push_goes_on_where_it_ended_and_is_checked(desk: Desk, tmp_path: Path) -> None:
    board = desk.add("nuc")
    (tmp_path / "data").mkdir()
    content = os.urandom(5 << 20)
    (tmp_path / "data" / "big.bin").write_bytes(content)
    package = data_package(tmp_path / "data")
    digest = package.files["big.bin"].sha256
    incoming = board.home / "fleet" / "incoming" / digest

    def sent() -> int:
        async def work() -> int:
            link = Link(read_inventory("fleet.toml")[0])
            try:
                (row,) = await push(link, [package])
                return row.sent_bytes
            finally:
                await link.close()

        size = asyncio.run(work())
        place = board.home / "fleet" / "files" / digest
        assert place.read_bytes() == content
        place.unlink()
        return size

    assert sent() == 5 << 20
    incoming.write_bytes(content[: 3 << 20])
    assert sent() == 2 << 20
    incoming.write_bytes(bytes(3 << 20))  # not what should be there: found when all has arrived, and sent again
    assert sent() == (2 << 20) + (5 << 20)


def test_a_planted_overlap_is_caught(desk: Desk, artifacts: Path) -> None:
    """Somebody removes the lock while a job runs: neither measurement counts, and both are made again."""
    board = held(desk)
    assert vitedge("fleet", "bench", artifacts / "one", "--detach", "-q").code == 0
    faults.begun(board)
    (board.home / "lock").unlink()
    done = vitedge("fleet", "bench", artifacts / "two", "-q")
    faults.release(board)
    faults.until_true(lambda: "running" not in vitedge("fleet", "collect").out)
    found = {row["artifacts"]: row for row in faults.rows(Path("fleet-results"))}
    assert {row["state"] for row in found.values()} == {"overlapped"}, done.out
    assert "another job ran on the board at the same time: bench two" in found["one"]["detail"]
    done = vitedge("fleet", "bench", artifacts / "one", artifacts / "two", "-q", "--resume")
    assert done.code == 0, done.err
    again = faults.rows(Path("fleet-results"))
    assert [(row["state"], row["generation"]) for row in again] == [("done", 1), ("done", 1)]
    assert faults.overlapping(again) == []


def test_a_fleet_under_seeded_faults_gives_what_it_gives_without(desk: Desk, artifacts: Path, tmp_path: Path) -> None:
    """The short form; benchmarks/fleet_faults.py has a hundred faults and the real vitedge."""
    for name in ("a", "b", "c", "d"):
        stubbed(desk, name, 0.15)
    six = faults.copies(artifacts / "one", tmp_path, 6)
    made, found, rounds = faults.campaign(
        desk, six, lambda number: ["--iterations", str(number + 1)], faults=5, seed=26, disks={}, pause_s=(0.3, 1.5)
    )
    assert made.total() == 5
    assert len(found) == 24 * rounds
    assert {(row["state"], row["code"]) for row in found} == {("done", 0)}
    assert faults.overlapping(found) == []
    for board in desk.boards.values():
        counted = faults.measured(board)
        assert len(counted) <= 6 * rounds and set(counted.values()) == {1}
    assert Counter(row["board"] for row in found) == dict.fromkeys("abcd", 6 * rounds)


def test_the_results_are_those_of_the_board(desk: Desk, artifacts: Path) -> None:
    stubbed(desk, "nuc", 0)
    assert vitedge("fleet", "bench", artifacts / "one", "-q").code == 0
    (row,) = faults.rows(Path("fleet-results"))
    assert json.loads((Path("fleet-results") / row["result"]).read_text())["artifact"].endswith(row["subject"])
    (desk.laptop / "fleet-results" / "ledger.db").unlink()
    assert vitedge("fleet", "bench", artifacts / "one", "-q").code == 0
    assert faults.measured(desk.boards["nuc"]).total() == 1, "a lost ledger is made again from what the board has"


@pytest.mark.parametrize("place", ["ledger.db", "result"])
def test_a_laptop_whose_disk_is_full(desk: Desk, artifacts: Path, place: str) -> None:
    stubbed(desk, "nuc", 0)
    with small_disk(desk.folder / "disk", 40) as disk:
        if place == "ledger.db":
            fill(disk)
            assert vitedge("fleet", "bench", artifacts / "one", "-q", "--out", disk / "out").code == 5
            (disk / "fill").unlink()
        done = vitedge("fleet", "bench", artifacts / "one", "-q", "--resume", "--out", disk / "out")
        assert done.code == 0, done.err
