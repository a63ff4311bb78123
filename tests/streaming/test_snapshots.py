"""Snapshots: a picture with its label when something happens, so many of them and for so long."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from PIL import Image

from tests.benchmarking.nulls import null_artifact
from tests.disks import fill, small_disk
from tests.streaming.items import event, picture, record, status, until
from tests.streaming.levels import Ran, run
from vitedge.errors import UsageError
from vitedge.runtimes.session import open_session
from vitedge.streaming.snapshots import SnapshotSink
from vitedge.streaming.source_state import iso

DAY_S = 86_400.0


def sink_in(folder: Path, kind: str = "enter", **bounds: Any) -> SnapshotSink:
    return SnapshotSink(kind, folder, **{"most": 100, "age_s": 1e5 * DAY_S, **bounds})


def enter(sink: SnapshotSink, number: int, at_s: float, source: str = "door", label: str = "cat") -> None:
    sink.put(record(number, source), picture(20 + number, 640, 360))
    sink.put(replace(event(number, source=source, label=label), time=iso(int(at_s * 1e9))), None)


def test_each_label_that_enters_has_its_picture(tmp_path: Path) -> None:
    shots = tmp_path / "shots"
    sink = sink_in(shots)

    def entered(ran: Ran) -> bool:
        return len(ran.events("enter")) >= 3

    with open_session(null_artifact(tmp_path / "null")) as opened:
        ran = run(opened, "cam=test://?pattern=steps&rate=50&hold=10", until=entered, sinks=[sink])
    labels = [str(each.label) for each in ran.events("enter")]
    names = sorted(path.name for path in shots.iterdir())
    assert [name.removesuffix(".jpg").split("_")[1:] for name in names] == [["cam", "enter", label] for label in labels]
    assert (sink.written, sink.dropped, sink.error) == (len(labels), 0, None)
    with Image.open(shots / names[0]) as image:
        assert image.format == "JPEG" and max(image.size) <= sink.picture_width


def test_the_label_is_drawn_into_the_picture_of_that_moment(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    enter(sink, 60, time.time())
    sink.put(record(61), picture(200, 640, 360))
    sink.close(10)
    (path,) = tmp_path.iterdir()
    with Image.open(path) as image:
        top, bottom = image.crop((0, 0, 640, 200)), image.crop((0, 260, 320, 360))
        assert all(abs(low - 80) < 4 and abs(high - 80) < 4 for low, high in top.convert("RGB").getextrema())
        assert bottom.convert("L").getextrema()[0] < 40 and bottom.convert("L").getextrema()[1] > 200


def test_no_more_than_so_many_and_none_too_old(tmp_path: Path) -> None:
    now = time.time()
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    earlier = sink_in(tmp_path, age_s=DAY_S)
    enter(earlier, 0, now - 2 * DAY_S)
    enter(earlier, 1, now - DAY_S / 2)
    earlier.close(10)
    assert len(list(tmp_path.iterdir())) == 2, "the one that is too old is gone"
    sink = sink_in(tmp_path, most=3)
    for number in range(5):
        enter(sink, number, now + number, source="a/b: ü", label="=x/../y")
    sink.close(10)
    assert sorted(path.name.partition("_")[2] for path in tmp_path.iterdir()) == ["", *["a-b--ü_enter_-x-..-y.jpg"] * 3]
    assert sink.written == 5 and (tmp_path / "holiday.jpg").read_bytes() == b"mine"


def test_what_is_too_old_goes_though_nothing_happens(tmp_path: Path) -> None:
    old = tmp_path / "2020-01-02T03-04-05.678Z_door_enter_cat.jpg"
    old.write_bytes(b"")
    sink = sink_in(tmp_path, age_s=DAY_S)
    sink.put(status(), None)
    until(lambda: not old.exists())
    sink.close(10)
    assert (sink.written, sink.dropped) == (0, 0)


def test_an_event_before_the_first_picture_gets_that(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    sink.put(event(0), None)
    sink.put(record(1), None)
    sink.put(record(2), picture())
    sink.close(10)
    assert sink.written == 1 and len(list(tmp_path.iterdir())) == 1


def test_other_events_have_the_last_picture(tmp_path: Path) -> None:
    sink = sink_in(tmp_path, "lost")
    enter(sink, 1, time.time())
    sink.put(event(2, "lost", label=None, probability=None), None)
    sink.close(10)
    assert [path.name.partition("_")[2] for path in tmp_path.iterdir()] == ["door_lost.jpg"]


def test_a_full_disk_costs_snapshots_and_leaves_no_halves(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", pages=16) as disk:
        filler = fill(disk)
        sink = sink_in(disk)
        enter(sink, 1, time.time())
        until(lambda: sink.dropped == 1)
        assert sink.error == f"{os.strerror(errno.ENOSPC)}: free space there" and list(disk.iterdir()) == [filler]
        filler.unlink()
        enter(sink, 2, time.time())
        sink.close(10)
        assert sink.written == 1 and len(list(disk.iterdir())) == 1


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nearest is 'enter'"):
        sink_in(tmp_path, "entr")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError):
        sink_in(tmp_path / "file")
