"""Real sockets: publishers in their own processes, with the faults of real cameras."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.streaming.levels import Ran, level_of, run, session
from tests.streaming.publisher import ENCODER, RATE, Publisher, encodes, level
from vitedge.runtimes.session import Session
from vitedge.streaming.records import FrameRecord

pytestmark = pytest.mark.skipif(not encodes(), reason=f"this PyAV has no {ENCODER}, which these cameras encode with")

URL = {"mjpeg": "http", "mpegts": "tcp", "rtsp": "rtsp"}
AFTER = 15


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Session]:
    with session(tmp_path) as one:
        yield one


def enough(connections: int, number: int) -> object:
    """Until there are so many records over so many connections."""

    def holds(ran: Ran) -> bool:
        last = [record for record in ran.records if record.connection == connections - 1]
        return len(last) >= number

    return holds


def numbers(records: list[FrameRecord]) -> list[tuple[FrameRecord, int]]:
    """Each record and the number of its frame within its connection, which tells what it showed."""
    first: dict[int, int] = {}
    for record in records:
        first.setdefault(record.connection, record.sequence)
    return [(record, record.sequence - first[record.connection]) for record in records]


@pytest.mark.parametrize("kind", ["mjpeg", "mpegts", "rtsp"])
@pytest.mark.parametrize("fault", ["hangup", "stall"])
def test_it_resumes_by_itself(kind: str, fault: str, opened: Session) -> None:
    with Publisher(kind, fault=fault, after=AFTER) as camera:
        ran = run(opened, f"{URL[kind]}://127.0.0.1:{camera.port}/main", until=enough(2, 12), policy="every")  # type: ignore[arg-type]
    assert [event.kind for event in ran.events("connected", "lost")] == ["connected", "lost", "connected"]
    assert [record.gap for record, number in numbers(ran.records) if number == 0] == [True, True]
    assert all(level_of(record) == level(number) for record, number in numbers(ran.records))
    lost = ran.items.index(ran.events("lost")[0])
    assert any(event.kind == "exit" for event in ran.events() if ran.items.index(event) < lost)  # nothing outlives it
    assert ran.counts.complete and ran.counts.classified == len(ran.records)


@pytest.mark.parametrize("kind", ["mjpeg", "mpegts", "rtsp"])
def test_what_is_corrupt_is_counted_and_never_labelled(kind: str, opened: Session) -> None:
    with Publisher(kind, fault="corrupt", after=AFTER) as camera:
        ran = run(opened, f"{URL[kind]}://127.0.0.1:{camera.port}/main", until=enough(1, 35), policy="every")  # type: ignore[arg-type]
    assert ran.counts.corrupt >= 10 and ran.counts.complete
    seen = numbers(ran.records)
    assert all(level_of(record) == level(number) for record, number in seen)
    assert not [number for _, number in seen if AFTER <= number < AFTER + 10]
    assert max(number for _, number in seen) > AFTER + 10


@pytest.mark.parametrize("kind", ["mjpeg", "rtsp"])
def test_a_change_of_size_begins_anew(kind: str, opened: Session) -> None:
    with Publisher(kind, fault="size", after=AFTER) as camera:
        url = f"{URL[kind]}://127.0.0.1:{camera.port}/main"
        ran = run(opened, url, until=enough(1, 30), policy="every", smoothing=60.0)  # type: ignore[arg-type]
    changed = [record for record in ran.records if (record.width, record.height) == (64, 48)]
    assert changed and changed[0].gap and [event.text for event in ran.events("size")] == ["64×48"]
    assert changed[0].smoothed[0].label == changed[0].raw[0].label  # a minute's smoothing was forgotten
    assert len(ran.events("connected")) == 1 and ran.counts.complete


def test_a_hole_in_the_stream_is_a_gap(opened: Session) -> None:
    with Publisher("rtsp", fault="loss", after=AFTER) as camera:
        url = f"rtsp://127.0.0.1:{camera.port}/main"
        ran = run(opened, url, until=enough(1, 25), policy="every", stall_timeout=10.0)  # type: ignore[arg-type]
    gaps = [record for record in ran.records[1:] if record.gap]
    assert len(gaps) == 1 and len(ran.events("connected")) == 1
    times = [record.presentation_s for record in ran.records if record.presentation_s is not None]
    assert max(later - sooner for sooner, later in pairwise(times)) >= 2
    index = ran.records.index(gaps[0])
    # What was predicted from lost frames isn't believed; the next key frame is. The last before the hole came too late.
    assert level_of(gaps[0]) == level(AFTER + 2 * RATE + 5) and level_of(ran.records[index - 1]) == level(AFTER - 2)
    assert ran.counts.corrupt == 5
    forgotten = [event for event in ran.events("exit") if event.text == "no frames"]
    assert len(forgotten) == 1 and ran.items.index(forgotten[0]) < ran.items.index(gaps[0])
    assert ran.counts.complete


def test_vitedge_waits_where_a_camera_connects(opened: Session) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Publisher("mpegts-client", port=port, fault="hangup", after=AFTER):
        ran = run(opened, f"tcp://127.0.0.1:{port}?listen=1", until=enough(2, 10), policy="every")  # type: ignore[arg-type]
    assert all(level_of(record) == level(number) for record, number in numbers(ran.records))
    assert ran.counts.complete


def test_a_camera_that_refuses_is_asked_again(opened: Session) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ran = run(opened, f"rtsp://127.0.0.1:{port}/", until=lambda ran: len(ran.events("lost")) >= 3)
    lost = ran.events("lost")
    assert all(event.text and str(port) not in event.text and event.duration_s for event in lost)
    assert ran.final is not None and ran.final.sources[0].connections == 0 and ran.counts.complete


@pytest.mark.parametrize(
    ("kind", "where"), [("mjpeg", "url"), ("rtsp", "url"), ("rtsp", "file"), ("rtsp", "environment")]
)
def test_a_password_opens_the_door_and_is_seen_nowhere(
    kind: str, where: str, opened: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, spelled = "s3cr3t:/@#", "s3cr3t%3A%2F%40%23"
    with Publisher(kind, user="camera", password=secret) as camera:
        authority = f"camera:{spelled}@" if where == "url" else ""
        credentials = None
        if where == "file":
            credentials = str(tmp_path / "credentials")
            Path(credentials).write_text(f"camera:{secret}\n")
        elif where == "environment":
            credentials = "env:CAMERA_CREDENTIALS"
            monkeypatch.setenv("CAMERA_CREDENTIALS", f"camera:{secret}")
        seen: list[str] = []

        def look(engine: object, record: FrameRecord) -> None:
            seen.extend(processes())

        url = f"{URL[kind]}://{authority}127.0.0.1:{camera.port}/main"
        ran = run(opened, url, until=enough(1, 3), credentials=credentials, at_record=look)  # type: ignore[arg-type]
    assert len(ran.records) >= 3 and any("vitedge.streaming.reader" in text for text in seen)
    for text in (*seen, repr(ran.items), repr(ran.final)):
        assert "s3cr3t" not in text


@pytest.mark.parametrize("kind", ["mjpeg", "rtsp"])
def test_a_wrong_password_is_seen_nowhere(kind: str, opened: Session) -> None:
    with Publisher(kind, password="right") as camera:
        url = f"{URL[kind]}://camera:wr0ng@127.0.0.1:{camera.port}/main"
        ran = run(opened, url, until=lambda ran: len(ran.events("lost")) >= 2)
    assert all("name and a password" in (event.text or "") for event in ran.events("lost"))
    assert "wr0ng" not in repr(ran.items) + repr(ran.final) and ran.counts.complete


def test_every_frame_is_counted_when_a_reader_is_killed(opened: Session) -> None:
    killed: list[int] = []

    def kill(engine: object, record: FrameRecord) -> None:
        if record.sequence >= 10 and not killed:
            killed.extend(readers())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    source = "test://?pattern=steps&rate=200&hold=3"
    ran = run(opened, source, until=enough(2, 20), policy="latest", at_record=kill)  # type: ignore[arg-type]
    assert [event.text for event in ran.events("lost")] == ["the reader was killed by SIGKILL"]
    assert ran.counts.complete and ran.counts.classified == len(ran.records)
    sequences = [record.sequence for record in ran.records]
    assert sequences == sorted(set(sequences))


def test_a_reader_that_hangs_is_killed(opened: Session) -> None:
    ran = run(opened, "test://?pattern=steps&stall=5", until=enough(2, 3), policy="every")  # type: ignore[arg-type]
    assert [event.text for event in ran.events("lost")] == ["silent for 1 s"]
    assert ran.counts.complete and not readers()


def readers() -> list[int]:
    """This process's readers."""
    listings = [file.read_text() for file in Path("/proc/self/task").glob("*/children")]
    children = [int(word) for listing in listings for word in listing.split()]
    return [child for child in children if b"vitedge.streaming.reader" in _arguments(child)]


def _arguments(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def processes() -> list[str]:
    """Arguments and environment of this process's readers, as anybody on the machine may ask for them."""
    files = [Path(f"/proc/{process}/{name}") for process in readers() for name in ("cmdline", "environ")]
    found = []
    for file in files:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(file.read_bytes().decode(errors="replace"))
    return found
