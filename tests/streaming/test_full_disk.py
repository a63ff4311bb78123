"""A disk that is full, or fills up, under a recording, a video, lines: the stream goes on, and losses are counted."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarking.nulls import null_artifact
from tests.disks import PAGE, fill, small_disk
from tests.streaming.items import event, record, until
from tests.streaming.levels import Ran, run, session
from vitedge.formats.clip import Clip
from vitedge.streaming.outputs import CsvLines, JsonLines
from vitedge.streaming.records import Event, FrameRecord
from vitedge.streaming.video import VideoSink

FULL = os.strerror(errno.ENOSPC)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", pages=16) as folder:
        yield folder


def never() -> None:
    raise AssertionError("stdout is open")


def pictures_in(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def show(sink: VideoSink, numbers: range) -> None:
    """Pictures that need some space, one after another."""
    import numpy as np

    draw = np.random.default_rng(numbers.start)
    for number in numbers:
        sink.put(record(number), draw.integers(0, 256, (64, 96, 3), dtype=np.uint8))
        if number % 10 == 9:
            until(lambda: not sink._items)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_video_on_a_full_disk_loses_pictures_and_nothing_else(suffix: str, disk: Path) -> None:
    pytest.importorskip("av", reason="videos need the extra 'stream'")
    filler = fill(disk)
    path = disk / f"v{suffix}"
    sink = VideoSink(path, ("door",))
    show(sink, range(100))
    assert not path.exists(), "a file without a picture would look like a video"
    filler.unlink()
    show(sink, range(100, 170))
    sink.close(20)
    assert 60 <= sink.dropped < 170 and sink.written + sink.dropped == 170
    assert sink.error == f"{FULL}: free space there"
    assert pictures_in(path) == sink.written


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_video_whose_disk_fills_up_holds_what_counts_as_written(suffix: str, disk: Path) -> None:
    pytest.importorskip("av", reason="videos need the extra 'stream'")
    path = disk / f"v{suffix}"
    sink = VideoSink(path, ("door",))
    show(sink, range(150))
    sink.close(20)
    assert 0 < sink.written < 150 and sink.written + sink.dropped == 150 and sink.error
    assert pictures_in(path) == sink.written


def test_recording_on_a_full_disk_neither_ends_a_connection_nor_a_frame(disk: Path, tmp_path: Path) -> None:
    filler = fill(disk)

    def some(ran: Ran) -> bool:
        if len(ran.records) == 60 and filler.exists():
            filler.unlink()
        return bool(filler.exists() is False and (disk / "test.clip").exists() and len(ran.records) > 200)

    with session(tmp_path) as opened:
        ran = run(opened, "test://?pattern=steps&rate=100", until=some, record=str(disk), policy="every")
    assert ran.final is not None and ran.final.sources[0].connections == 1 and not ran.events("lost")
    assert ran.counts.classified == len(ran.records) and ran.counts.complete
    (sink,) = ran.final.sinks
    assert sink.name == "record" and sink.error == f"{FULL}: free space there"
    assert sink.dropped >= 60 and sink.written + sink.dropped >= ran.counts.classified
    clip = Clip(disk / "test.clip")
    assert len(clip) == sink.written > 0 and not clip.truncated


def test_a_clip_of_something_else_is_said_and_the_stream_goes_on(tmp_path: Path) -> None:
    (tmp_path / "test.clip").write_bytes(b"not a clip")
    with session(tmp_path) as opened:
        ran = run(opened, "test://?pattern=steps&live=0&frames=30", record=str(tmp_path))
    assert ran.final is not None and ran.counts.classified == 30 and ran.final.sources[0].state == "ended"
    assert [(sink.written, sink.dropped) for sink in ran.final.sinks] == [(0, 30)]
    assert "clip" in (ran.final.sinks[0].error or "") and (tmp_path / "test.clip").read_bytes() == b"not a clip"


@pytest.mark.parametrize("full_at_first", [False, True])
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_lines_are_whole_or_lost(kind: str, full_at_first: bool, disk: Path) -> None:
    fillers = [fill(disk)] if full_at_first else []
    path = disk / "lines"
    sink = CsvLines("csv", str(path), never) if kind == "csv" else JsonLines("json", str(path), (FrameRecord,), never)
    count = 1000
    for number in range(count):
        sink.put(record(number), None)
    until(lambda: sink.error and not sink._items)
    for filler in fillers:
        filler.unlink()
    sink.put(record(count), None)
    sink.close(20)
    assert sink.dropped and sink.error == f"{FULL}: free space there"
    assert sink.written + sink.dropped == count + 1 and (sink.written == 1 or not full_at_first)
    lines = path.read_text().splitlines()
    if kind == "csv":
        assert lines[0].startswith("source,") and all(line.count(",") == lines[0].count(",") for line in lines)
        lines = lines[1:]
    else:
        assert all(json.loads(line)["type"] == "frame" for line in lines)
    assert len(lines) == sink.written > 0


def test_a_named_pipe_takes_lines(tmp_path: Path) -> None:
    """What has no end to go back to isn't treated as a file."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonLines("events", str(path), (Event,), never)
    sink.put(event(1), None)
    sink.close(20)
    assert json.loads(os.read(reading, PAGE))["sequence"] == 1
    os.close(reading)


def test_the_command_line_goes_on_and_says_what_was_lost(disk: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos need the extra 'stream'")
    artifact = null_artifact(tmp_path / "null").path
    (disk / "clips").mkdir()
    fill(disk)
    outputs = [
        "--record",
        str(disk / "clips"),
        "--video",
        str(disk / "v.mp4"),
        "--events",
        str(disk / "e"),
        "--json",
        "-",
    ]
    source = "cam=test://?live=0&frames=60"
    command = [sys.executable, "-m", "vitedge", "stream", str(artifact), source, "--headless", "--json", "-", *outputs]
    with (disk / "stdout").open("wb") as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "cam: 60 captured = 60 classified" in done.stderr and "lost:" not in done.stderr
    for name, lost in (("json", "60"), ("events", r"\d"), ("video", r"\d\d"), ("record", "60")):
        assert re.search(rf"^{name}: {lost}.* dropped \({FULL}: free space there\)$", done.stderr, 8), name
    assert (disk / "stdout").read_bytes() == (disk / "e").read_bytes() == b"" and not (disk / "v.mp4").exists()


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    sink = JsonLines("json", str(tmp_path / "records.jsonl"), (FrameRecord,), never)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        for number in range(20):
            sink.put(record(number), None)
        sink.close(20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == list(range(len(lines)))
    assert 0 < sink.written == len(lines) < 20 and sink.dropped == 20 - len(lines)
    assert sink.error == f"{os.strerror(errno.EFBIG)}: free space there"
