"""Files and patterns through the whole engine: order, times, policies, frame counts, several sources, recordings."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import vitedge
from tests.benchmarking.nulls import null_artifact
from tests.conftest import data_folder
from tests.streaming.levels import Ran, level_of, run, session
from tests.streaming.publisher import grey, level
from vitedge.benchmarking.options import BenchConfig
from vitedge.errors import InputError, StreamError, UsageError
from vitedge.formats.clip import Clip, ClipHeader, ClipWriter
from vitedge.runtimes.session import Session
from vitedge.streaming import replay as replay_module
from vitedge.streaming import shared
from vitedge.streaming.capture import TRANSITIONS, Capture
from vitedge.streaming.engine import Engine
from vitedge.streaming.openers import _failure_text
from vitedge.streaming.records import STATES, Event, FrameRecord, Item, Status
from vitedge.streaming.replay import open_replay
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.sink import QueuedSink
from vitedge.streaming.uri import parse_sources
from vitedge.streaming.video import CODECS

#: The first that this FFmpeg encodes with.
CODEC = next(name for name in CODECS if name in av.codecs_available)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Session]:
    with session(tmp_path) as one:
        yield one


def video(path: Path, frames: int = 30, *, codec: str = CODEC, rotate: int = 0, rate: int = 25) -> Path:
    """A video whose frame n is ``grey(n)``, brighter at its left upper corner's quarter when it's rotated."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size = 10
        for number in range(frames):
            picture = np.full((64, 96, 3), grey(number), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_every_frame_of_a_video_in_order_with_its_time(opened: Session, tmp_path: Path) -> None:
    ran = run(opened, str(video(tmp_path / "a.mp4")))
    assert [record.sequence for record in ran.records] == list(range(30))
    times = [record.presentation_s for record in ran.records]
    assert times == [pytest.approx(number / 25) for number in range(30)]
    assert [level_of(record) for record in ran.records] == [level(number) for number in range(30)]
    assert [record.gap for record in ran.records] == [True] + [False] * 29
    assert ran.counts.classified == 30 and ran.counts.complete
    assert (
        ran.final is not None
        and ran.final.sources[0].state == "ended"
        and ran.final.sources[0].codec in ("h264", CODEC)
    )


@pytest.mark.parametrize("name", ["car-detection.mp4"])
def test_the_real_video(name: str, opened: Session) -> None:
    path = data_folder("video") / name
    with av.open(str(path)) as container:
        expected = [frame.time for frame in container.decode(video=0)]
    ran = run(opened, str(path))
    assert len(ran.records) == 377 and ran.counts.complete
    assert [record.presentation_s for record in ran.records] == [pytest.approx(time) for time in expected]
    assert all(record.label is not None for record in ran.records)
    assert {(record.width, record.height) for record in ran.records} == {(768, 432)}


def test_policies(opened: Session, tmp_path: Path) -> None:
    path = str(video(tmp_path / "a.mp4"))
    third = run(opened, path, policy="every:3")
    assert [record.sequence for record in third.records] == list(range(0, 30, 3))
    assert third.counts.skipped == 20 and third.counts.dropped == 0 and third.counts.complete
    newest = run(opened, path, policy="latest")
    assert newest.counts.captured == 30 and newest.counts.complete
    assert newest.counts.classified + newest.counts.dropped == 30
    sequences = [record.sequence for record in newest.records]
    assert sequences == sorted(set(sequences)) and sequences[-1] == 29
    assert sum(record.dropped for record in newest.records) == newest.counts.dropped


def test_a_slow_model_gets_the_newest(tmp_path: Path) -> None:
    with session(tmp_path, wait_s=0.1) as slow:
        ran = run(slow, "test://?pattern=steps&rate=100&hold=7", until=lambda ran: len(ran.records) >= 8)
    assert ran.counts.dropped > 10 and ran.counts.complete
    for before, after in pairwise(ran.records):
        assert after.sequence - before.sequence == after.dropped + 1
        assert after.truth == f"step {after.sequence // 7 % 256}"


def test_passes_of_a_file_begin_anew(opened: Session, tmp_path: Path) -> None:
    ran = run(opened, str(video(tmp_path / "a.mp4", 6)), input_loop=2, smoothing=10.0)
    assert [record.sequence for record in ran.records] == list(range(18))
    assert [record.sequence for record in ran.records if record.gap] == [0, 6, 12]
    assert ran.final is not None and ran.final.sources[0].gaps == 2


def test_several_sources_share_a_session(tmp_path: Path) -> None:
    path = str(video(tmp_path / "a.mp4"))
    with session(tmp_path, batch=4) as four:
        ran = run(four, path, f"again={path}", "test://?pattern=steps&live=0&frames=9")
    assert {record.source for record in ran.records} == {"a.mp4", "again", "test"}
    for name, count in (("a.mp4", 30), ("again", 30), ("test", 9)):
        mine = [record for record in ran.records if record.source == name]
        assert [record.sequence for record in mine] == list(range(count))
        if name != "test":
            assert all(level_of(record) == level(record.sequence) for record in mine)
    assert ran.final is not None and all(source.counts.complete for source in ran.final.sources)


def test_pictures_in_the_order_of_their_names(opened: Session, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (20 + number, 20), (grey(number * 5),) * 3).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"no picture")
    ran = run(opened, str(folder), input_rate=2.0)
    assert [level_of(record) for record in ran.records] == [0, 1, 3, 4]
    assert [record.presentation_s for record in ran.records] == [0.0, 0.5, 1.5, 2.0]
    assert ran.counts.corrupt == 1 and ran.counts.complete
    by_pattern = run(opened, f"{folder}/[01].png")
    assert [record.presentation_s for record in by_pattern.records] == [None, None]


def test_crop_and_flip_and_the_streams_own_rotation(opened: Session, tmp_path: Path) -> None:
    upright = tmp_path / "halves.mkv"
    with av.open(str(upright), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p"
        picture = np.full((64, 96, 3), 20, np.uint8)
        picture[:, 48:] = 230  # the right half is the brightest
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert {level_of(record) for record in run(opened, str(upright), crop="50%,0%,50%,100%").records} == {5}
    assert {level_of(record) for record in run(opened, str(upright), crop="0,0,40,64").records} == {0}
    mirrored = run(opened, str(upright), crop="0,0,40,64", flip="horizontal")
    assert {level_of(record) for record in mirrored.records} == {5}
    turned = run(opened, str(upright), crop="0,0,64,40", flip="counterclockwise")  # right becomes top
    assert {level_of(record) for record in turned.records} == {5}
    assert {(record.width, record.height) for record in turned.records} == {(64, 96)}


def test_a_telephones_portrait_video_stands_upright(opened: Session, tmp_path: Path) -> None:
    """Its track header says: turn a quarter clockwise (ISO 14496-12, the matrix of ``tkhd``)."""
    path = tmp_path / "portrait.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODEC, rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        picture = np.full((64, 96, 3), 20, np.uint8)
        picture[:, 48:] = 230  # the right half, which becomes the lower one
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    start = data.index(b"tkhd")
    straight, clockwise = (struct.pack(">9i", *m, 1 << 30) for m in (
        (65536, 0, 0, 0, 65536, 0, 0, 0), (0, 65536, 0, -65536, 0, 0, 0, 0)))  # fmt: skip
    place = data.index(straight, start)
    path.write_bytes(data[:place] + clockwise + data[place + 36 :])
    for crop, expected in (("0%,50%,100%,50%", 5), ("0%,0%,100%,50%", 0)):
        records = run(opened, str(path), crop=crop).records
        assert {(record.width, record.height) for record in records} == {(64, 96)}
        assert {level_of(record) for record in records} == {expected}


def test_faults_of_a_pattern_are_counted(opened: Session) -> None:
    ran = run(opened, "test://?pattern=steps&live=0&frames=40&gap=10&corrupt=4&resize=25&hold=3")
    assert ran.counts.corrupt == 10 and ran.counts.classified == 30 and ran.counts.complete
    assert all(record.truth == f"step {record.sequence // 3}" for record in ran.records)
    assert len(ran.events("gap")) == 3 and len(ran.events("size")) == 1
    assert [record.sequence for record in ran.records if record.gap] == [0, 10, 20, 25, 30]


def test_unknown_until_it_is_sure(opened: Session) -> None:
    source = "test://?pattern=steps&live=0&frames=60&hold=60"
    ran = run(opened, source, switch_after=1.0, threshold=0.5)
    labels = [record.label for record in ran.records]
    assert labels[:30] == [None] * 30 and set(labels[31:]) == {"dog"}
    assert [event.kind for event in ran.events("enter", "exit")] == ["enter", "exit"]
    assert ran.events("enter")[0].presentation_s == pytest.approx(1.0, abs=0.05)


def test_a_silent_source_loses_its_label_beside_a_busy_one(opened: Session) -> None:
    ran = run(
        opened,
        "silent=test://?pattern=steps&stall=5&rate=50",
        "busy=test://?pattern=steps&rate=200",
        until=lambda ran: any(event.source == "silent" for event in ran.events("exit")),
        stall_timeout=30.0,
    )
    left = [event for event in ran.events("exit") if event.source == "silent"]
    assert [event.text for event in left] == ["no frames"]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and says nothing."""

    def log_message(self, *_: object) -> None:
        return


def test_hls_and_a_file_over_http(opened: Session, tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    with av.open(
        str(tmp_path / "a.m3u8"), "w", format="hls", options={"hls_time": "1", "hls_list_size": "0"}
    ) as container:
        stream = container.add_stream(CODEC, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), grey(number), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    port = server.server_port
    try:
        for name in ("a.m3u8", "a.mp4"):
            ran = run(opened, f"http://127.0.0.1:{port}/{name}", policy="every")
            assert [level_of(record) for record in ran.records] == [level(number) for number in range(30)]
            assert [event.kind for event in ran.events("connected", "lost", "ended")] == ["connected", "ended"]
    finally:
        server.shutdown()
        server.server_close()
        serving.join(10)


def test_a_sink_gets_pictures_only_when_it_wants_them(opened: Session, tmp_path: Path) -> None:
    class Wants(QueuedSink):
        pictures: list[Any]

        def __init__(self, width: int) -> None:
            self.picture_width, self.pictures = width, []
            super().__init__("wants", (FrameRecord,))

        def write(self, item: Item, picture: Any) -> None:
            self.pictures.append(picture)

    path = str(video(tmp_path / "a.mp4"))
    wants, not_now = Wants(48), Wants(0)
    run(opened, path, sinks=[wants, not_now])
    assert not_now.pictures == [None] * 30
    got = [picture for picture in wants.pictures if picture is not None]
    assert len(got) > 15 and not got[0].flags.writeable and {picture.shape for picture in got} == {(32, 48, 3)}
    for number, picture in enumerate(wants.pictures):
        assert picture is None or abs(int(picture.mean()) - grey(number)) < 3


def test_what_is_recorded_is_what_the_session_got_and_replays(opened: Session, tmp_path: Path) -> None:
    ran = run(opened, str(video(tmp_path / "a.mp4")), record=str(tmp_path))
    clip = Clip(tmp_path / "a.mp4.clip")
    assert len(clip) == 30 and clip.presentations_s == tuple(record.presentation_s for record in ran.records)
    assert [int(frame[4, 4].mean() - 20) // 40 for frame in clip] == [level(number) for number in range(30)]
    replay = open_replay(tmp_path)  # as --record named it
    assert replay.name == open_replay(clip.path).name
    assert replay.prepared and len(replay.pictures) == 30 and list(replay.times_ns) == sorted(replay.times_ns)
    artifact = null_artifact(tmp_path / "null")
    wish = BenchConfig(scenario="camera", duration_s=0.2, warmup_s=0.05, percentile=50, replay=str(clip.path))
    assert vitedge.bench([artifact], wish).rows[0].latency is not None


def test_a_clip_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path / "a.clip", ClipHeader(source="s", size=(64, 48), artifact="other"))
    for number in range(2):
        writer.append(np.zeros((1, 1, 3), np.uint8), sequence=number, arrival_ns=number, presentation_s=None)
    writer.close()
    artifact = null_artifact(tmp_path / "null")
    with pytest.raises(UsageError, match="its frames have 64 × 48 pixels"):
        vitedge.bench([artifact], BenchConfig(scenario="camera", replay=str(tmp_path / "a.clip")))


def test_no_more_of_a_clip_is_kept_in_memory_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ClipWriter(tmp_path / "a.clip", ClipHeader(source="s", size=(8, 8), artifact="a"))
    for number in range(5):
        writer.append(np.zeros((8, 8, 3), np.uint8), sequence=number, arrival_ns=number, presentation_s=None)
    writer.close()
    monkeypatch.setattr(replay_module, "MOST_BYTES", 8 * 8 * 3 * 3)
    replay = open_replay(tmp_path / "a.clip")
    assert len(replay.pictures) == 3 and "first 3 of 5 frames" in replay.name


def test_a_folder_of_several_clips_or_none_names_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no clip"):
        open_replay(tmp_path)
    for name in ("door.clip", "yard.clip"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=r"2 clips: door\.clip, yard\.clip(?s:.*)--replay .*door\.clip"):
        open_replay(tmp_path)


def test_descriptors_and_threads_come_back(opened: Session) -> None:
    source = "test://?pattern=steps&rate=500&frames=3"
    run(opened, source, until=lambda ran: len(ran.events("lost")) >= 1)
    descriptors, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())  # noqa: PTH208
    ran = run(opened, source, until=lambda ran: len(ran.events("lost")) >= 5)
    assert len(os.listdir("/proc/self/fd")) <= descriptors and set(threading.enumerate()) <= threads  # noqa: PTH208
    assert ran.final is not None and ran.final.sources[0].connections >= 5 and ran.counts.complete


# --- in Python


def test_the_generator(tmp_path: Path) -> None:
    artifact = null_artifact(tmp_path / "null")
    found = list(vitedge.stream(artifact, "test://?pattern=steps&live=0&frames=12&hold=1"))
    assert [record.label for record in found][:6] == ["ant", "bee", "cat", "dog", "eel", "fox"]
    endless = vitedge.stream(artifact, ["test://?pattern=steps", "b=test://?pattern=steps"], top_k=2)
    assert len(next(endless).raw) == 2
    endless.close()
    with pytest.raises(UsageError):
        next(vitedge.stream(artifact, "test://", colour="red"))
    with pytest.raises(StreamError):
        next(vitedge.stream(artifact, str(tmp_path / "none.mp4")))


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_is_refused(content: bytes, tmp_path: Path) -> None:
    artifact = null_artifact(tmp_path / "null")
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError) as refused:
        list(vitedge.stream(artifact, str(tmp_path / "a.mp4")))
    assert "a.mp4" in str(refused.value)


CAMERA = "rtsp://me:hush@cam/"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (av.error.ExitError(1, "Immediate exit requested", "rtsp://me:hush@cam/"), "silent for 5 s"),
        (
            av.error.HTTPUnauthorizedError(1, "401 of some wording", "rtsp://me:hush@cam/"),
            "it wants a name and a password",
        ),
        (
            av.error.FFmpegError(1, "words that no version has said yet", "rtsp://me:hush@cam/"),
            "words that no version has",
        ),
        (OSError(CAMERA), "OSError"),
    ],
)
def test_what_ffmpeg_says_without_the_address(error: Exception, words: str) -> None:
    text = _failure_text(error, "silent for 5 s")
    assert text.startswith(words) and "hush" not in text


def test_a_label_leaves_with_its_stream(opened: Session) -> None:
    """However it ends: stopped, or no longer read."""
    source = "test://?pattern=steps&rate=100&hold=1000"
    ran = run(opened, source, until=lambda ran: len(ran.records) >= 5)
    assert [event.text for event in ran.events("exit")] == ["the stream was stopped"]
    seen = Seen()
    settings = StreamSettings(source=(source,))
    items = Engine(opened, parse_sources(settings.source), settings, [seen]).items()
    while not seen.events("enter"):
        next(items)
    items.close()
    assert [event.text for event in seen.events("exit")] == ["the stream was stopped"]


class Seen(QueuedSink, Ran):
    """A sink that keeps everything."""

    def __init__(self) -> None:
        Ran.__init__(self)
        super().__init__("seen", (FrameRecord, Event, Status))

    def write(self, item: Item, picture: Any) -> None:
        self.items.append(item)


def test_mutated_videos_end_in_records_or_one_error(opened: Session, tmp_path: Path) -> None:
    data = video(tmp_path / "a.mkv", 12, codec="mpeg4").read_bytes()
    draw = np.random.default_rng(0)
    for number in range(4):
        mutated = bytearray(data)
        for place in draw.integers(0, len(data), 8):
            mutated[place] ^= int(draw.integers(1, 256))
        path = tmp_path / f"{number}.mkv"
        path.write_bytes(mutated if number else data[: len(data) // 2])
        ran = run(opened, str(path))
        assert ran.final is not None and ran.final.sources[0].state in ("ended", "failed") and ran.counts.complete


def test_the_table_of_states_has_no_dead_ends() -> None:
    reached, last = {"connecting"}, {"ended", "failed"}
    for (state, _), (following, _) in TRANSITIONS.items():
        assert state not in last, "nothing follows them"
        reached.add(following)
    assert reached == set(STATES)
    assert all((state, "closed") in TRANSITIONS for state in reached - last)
    assert all(
        (state, "lost") in TRANSITIONS and (state, "given up") in TRANSITIONS for state in ("connecting", "connected")
    )


def test_a_live_reader_that_was_asked_to_end_is_not_lost(opened: Session) -> None:
    url = "test://?pattern=steps&rate=100"
    capture = Capture(parse_sources([url])[0], StreamSettings(source=(url,)), opened.artifact)
    deadline = time.monotonic() + 60
    while not (connected := [change.state for change in capture.poll()]) and time.monotonic() < deadline:
        time.sleep(0.01)
    capture.stop()
    while capture._memory.state != shared.ENDED and time.monotonic() < deadline:
        time.sleep(0.01)
    while capture.take():
        capture.classified += 1
    assert connected == ["connected"] and not list(capture.poll())
    capture.close(time.monotonic() + 10)
    assert capture.state == "ended" and capture.counts.complete and capture.counts.captured
