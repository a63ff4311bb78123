"""What is said of each board, and where boards differ."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.cli.command import fails, vitedge
from tests.fleet.boards import Desk
from vitedge.fleet.doctor import BoardState, differences


def test_a_table_of_what_each_board_is_and_can_run(desk: Desk) -> None:
    desk.add("nuc", labels=["desk"])
    away = desk.add("pi5", labels=["arm"])
    away.stop_server()
    (desk.boards["nuc"].home / "clock" / "shift").write_text("86400")
    done = vitedge("fleet", "doctor", "--json", "boards.json")
    assert done.code == 5
    assert done.error[:2] == ["examine the boards", "1 of 2 can't be used: pi5"]
    assert "Connect call failed" in done.out and "ssh -p" in done.out
    assert re.search(r"clocks that are off\s+nuc +86,\d+ s ahead", done.out)
    nuc, pi5 = json.loads((desk.laptop / "boards.json").read_text())
    assert nuc["problem"] is None and {"vitedge", "onnxruntime"} <= nuc["versions"].keys()
    assert "onnxruntime" in nuc["targets"] and nuc["cores"] and nuc["disk_mb"] and nuc["kind"]
    assert pi5["problem"] and not pi5["versions"]


def test_a_board_without_vitedge_says_what_installs_it(desk: Desk, artifacts: Path) -> None:
    desk.add("nuc", venv=None, python=getattr(sys, "_base_executable", sys.executable))
    done = vitedge("fleet", "doctor")
    assert done.code == 5
    assert f"the board has no {desk.boards['nuc'].home}/fleet/venv/bin/vitedge; run: vitedge fleet install" in done.out
    assert fails(8, "fleet", "verify", artifacts / "one", "-q")[2] == "run: vitedge fleet install"


def test_versions_that_differ_are_named_with_their_boards() -> None:
    states = [
        BoardState(name="a", python="3.11.7", versions={"onnxruntime": "1.31.1", "vitedge": "0.1.0"}),
        BoardState(name="b", python="3.11.7", versions={"onnxruntime": "1.32.0", "vitedge": "0.1.0"}),
        BoardState(name="c", python="3.11.7", versions={"onnxruntime": "1.31.1", "vitedge": "0.1.0"}),
        BoardState(name="d", problem="away"),
    ]
    assert differences(states) == ["onnxruntime: 1.31.1 on a, c; 1.32.0 on b"]
    assert differences(states[:1]) == []


def test_without_asyncssh_the_extra_is_named(artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)  # type: ignore[arg-type]
    (tmp_path / "fleet.toml").write_text('[boards.nuc]\nhost = "127.0.0.1"\n')
    monkeypatch.chdir(tmp_path)
    _, reason, hint = fails(8, "fleet", "push", artifacts / "one", "-q")
    assert reason == "the package 'asyncssh' is not installed"
    assert "fleet]" in hint
