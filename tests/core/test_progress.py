"""Progress: through a pipe a line now and then, nothing where it isn't wanted."""

from __future__ import annotations

import threading
import time

import pytest

from vitedge.core import progress


def test_long_work_through_a_pipe_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.01)
    told, until = "", time.monotonic() + 30
    with progress.bars() as show:
        show("measure", 1_200, 5_000)
        while "\n" not in told and time.monotonic() < until:  # within one long step
            time.sleep(0.01)
            told += capsys.readouterr().err
    assert told.startswith("measure: 1,200 of 5,000, ")
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


@pytest.mark.parametrize("quiet", [False, True])
def test_short_work_and_quiet_work_say_nothing(quiet: bool, capsys: pytest.CaptureFixture) -> None:
    with progress.bars(quiet=quiet) as show:
        for done in range(100):
            show("measure", done, 100)
    assert capsys.readouterr().err == ""


def test_a_reader_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def __init__(self) -> None:
            self.asked = threading.Event()

        def isatty(self) -> bool:
            return False

        def write(self, _: str) -> None:
            self.asked.set()
            raise BrokenPipeError

    gone = Gone()
    monkeypatch.setattr(progress, "EVERY_S", 0.01)
    monkeypatch.setattr("sys.stderr", gone)
    with progress.bars() as show:
        show("measure", 1, 2)
        assert gone.asked.wait(30)
