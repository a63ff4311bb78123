"""Films as people have them: with covers, several streams, damaged, cut, or not what their names say."""

from __future__ import annotations

import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarking.nulls import null_artifact
from tests.cli.command import vitedge
from tests.streaming.films import count, ffmpeg, film, needs_ffmpeg, rewrapped
from tests.streaming.levels import run, session
from vitedge.errors import InputError, UsageError
from vitedge.runtimes.session import Session
from vitedge.streaming import capture
from vitedge.streaming.container import FilmIndex, NoFilm, choose_stream
from vitedge.streaming.frames import Frames
from vitedge.streaming.outputs import describe_event, summary_lines
from vitedge.streaming.records import FrameRecord
from vitedge.streaming.run import check, refuse_failed
from vitedge.streaming.settings import StreamSettings

av = pytest.importorskip("av", reason="frames come from PyAV (pip install 'vitedge[stream]')")
pytestmark = needs_ffmpeg


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Session]:
    with session(tmp_path) as one:
        yield one


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty frames with B-frames, a key frame every twenty."""
    folder = tmp_path_factory.mktemp("films")
    return film(folder / "plain.mp4", "-g", "20", "-bf", "2", "-movflags", "+faststart", seconds=2, size="320x240")


# --- which stream


def cover(path: Path) -> Path:
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x64", "-frames:v", 1, path)
    return path


def boxes(data: bytes, at: int = 0) -> Iterator[tuple[bytes, bytes]]:
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at : at + size]
        at += size


def with_cover_first(source: Path, folder: Path) -> Path:
    """An MP4 film whose tags, and so its cover, come before its tracks, as drones write them."""
    made = folder / "cover.mp4"
    ffmpeg("-i", source, "-i", cover(folder / "cover.jpg"), "-map", 0, "-map", 1, "-c", "copy",
           "-disposition:v:1", "attached_pic", made)  # fmt: skip
    parts = []
    for kind, box in boxes(made.read_bytes()):
        if kind == b"moov":
            order = {b"mvhd": 0, b"udta": 1}
            inner = sorted(boxes(box, 8), key=lambda part: order.get(part[0], 2))
            box = box[:8] + b"".join(content for _, content in inner)
        parts.append(box)
    path = folder / "coverfirst.mp4"
    path.write_bytes(b"".join(parts))
    return path


def chosen(path: Path, index: int | None = None) -> int:
    with av.open(str(path)) as container:
        return choose_stream(container, index).index


def test_a_cover_picture_is_never_the_film(plain: Path, tmp_path: Path, opened: Session) -> None:
    path = with_cover_first(plain, tmp_path)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mjpeg"
    ran = run(opened, str(path))
    assert ran.counts.captured == ran.counts.classified == 50
    with pytest.raises(NoFilm, match=r"stream 0 is no video; its video streams are: 1 \(h264, 320×240\)"):
        chosen(path, 0)


def test_the_stream_that_players_choose_or_the_one_that_is_named(plain: Path, tmp_path: Path) -> None:
    small = film(tmp_path / "small.mp4", seconds=1)
    path = tmp_path / "two.mkv"
    ffmpeg("-i", small, "-i", plain, "-map", 0, "-map", 1, "-c", "copy",
           "-disposition:v:0", 0, "-disposition:v:1", "default", path)  # fmt: skip
    assert chosen(path) == 1 and chosen(path, 0) == 0
    with pytest.raises(NoFilm, match=r"0 \(h264, 96×64\), 1 \(h264, 320×240\)"):
        chosen(path, 2)


def test_a_file_without_a_film_says_what_it_holds(tmp_path: Path, plain: Path) -> None:
    sound = tmp_path / "sound.wav"
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", sound)
    song = tmp_path / "song.mp3"
    ffmpeg("-i", sound, "-i", cover(tmp_path / "cover.jpg"), "-map", 0, "-map", 1, "-c:v", "copy",
           "-disposition:v:0", "attached_pic", song)  # fmt: skip
    artifact = null_artifact(tmp_path / "artifact").path
    for path, words in ((sound, "it has only sound, no video"), (song, "it has only a cover picture, no video")):
        done = vitedge("stream", artifact, path, "--headless", "-q")
        assert done.code == 3 and words in done.err, done.err
    done = vitedge("stream", artifact, plain, "--headless", "-q", "--stream", 7)
    assert done.code == 3 and "stream 7 is no video; its video streams are: 0 (h264, 320×240)" in done.err
    with pytest.raises(UsageError, match="no source here has several streams"):
        check(StreamSettings(source=("test://",), stream=1))


# --- every frame


def decoded(path: Path) -> tuple[list[Any], Frames, str | None]:
    with av.open(str(path)) as container:
        stream = choose_stream(container)
        stream.thread_type = "AUTO"
        index, reading = FilmIndex.of(container, stream), Frames(container, stream, live=False, gap_s=0.5)
        found = list(reading)
        return found, reading, index.shortfall(reading)


def cut(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


def zeroed(data: bytes) -> bytes:
    """A card whose last blocks read as zeros; what an index at the end says remains."""
    start, end = len(data) * 7 // 10, len(data) * 95 // 100
    return data[:start] + bytes(end - start) + data[end:]


def noisy(data: bytes) -> bytes:
    draw, broken = np.random.default_rng(len(data)), bytearray(data)
    for place in draw.integers(len(data) // 4, len(data) * 9 // 10, 40):
        broken[place] ^= int(draw.integers(1, 256))
    return bytes(broken)


@pytest.fixture(scope="module")
def wholes(plain: Path) -> dict[str, Path]:
    """The same film in several containers, and others in codecs of their own."""
    folder, options = plain.parent, {"mp4": ("-movflags", "+faststart")}
    containers = {kind: rewrapped(plain, folder / f"whole.{kind}", *options.get(kind, ())) for kind in CONTAINERS}
    fast = ("-g", "20", "-deadline", "realtime", "-cpu-used", "8")
    return containers | {
        "mpeg4.avi": film(folder / "whole.mpeg4.avi", "-g", "20", "-bf", "2", codec="mpeg4", size="320x240", seconds=2),
        "webm": film(folder / "whole.webm", *fast, codec="libvpx", size="320x240", seconds=2),
    }


CONTAINERS = ("mp4", "mkv", "avi", "ts", "h264")


@pytest.mark.parametrize("damage", [cut, zeroed, noisy])
@pytest.mark.parametrize("kind", [*CONTAINERS, "mpeg4.avi", "webm"])
def test_a_damaged_film_gives_every_frame_that_ffmpeg_decodes(
    kind: str, damage: Any, wholes: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / f"damaged.{kind}"
    path.write_bytes(damage(wholes[kind].read_bytes()))
    found, reading, missing = decoded(path)
    pictures = [frame for frame in found if frame.presentation_s is not None]
    assert len(pictures) == count(path)
    assert len(pictures) <= len(found) <= max(reading.packets, len(pictures))
    assert all(later.presentation_s > earlier.presentation_s for earlier, later in pairwise(pictures))
    if damage is cut:
        assert (missing is None) == (kind in ("ts", "h264")), "which have no index"


def test_no_decoder_thread_loses_what_follows_a_broken_packet(plain: Path, tmp_path: Path) -> None:
    """The last packets but one are broken: threads find that out when the end has been reached."""
    with av.open(str(plain)) as container:
        positions = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(plain.read_bytes())
    for position, size in positions[-3:-1]:
        data[position : position + size] = bytes(size)
    path = tmp_path / "broken.mp4"
    path.write_bytes(data)
    found, _, missing = decoded(path)
    assert len(found) == 50 and sum(frame.presentation_s is not None for frame in found) == count(path) == 48
    assert missing is None


def test_a_film_that_ends_before_its_index_says_so(plain: Path, tmp_path: Path, opened: Session) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(cut(plain.read_bytes()))
    ran = run(opened, str(path))
    (ended,) = ran.events("ended")
    assert ran.final is not None and ran.counts.complete and ran.final.sources[0].state == "ended"
    assert ended.text is not None and "ends before its index" in ended.text and "of 50 frames" in ended.text
    assert ended.text in describe_event(ended) and ended.text in summary_lines(ran.final)[0]
    whole = run(opened, str(plain))
    assert whole.final is not None and [event.text for event in whole.events("ended")] == [None]
    assert "ends before" not in summary_lines(whole.final)[0]


def test_of_several_films_the_one_that_ends_early_is_named(plain: Path, tmp_path: Path, opened: Session) -> None:
    (tmp_path / "1.mp4").write_bytes(cut(plain.read_bytes()))
    (tmp_path / "2.mp4").write_bytes(plain.read_bytes())
    ran = run(opened, f"{tmp_path}/*.mp4")
    (ended,) = ran.events("ended")
    assert ended.text is not None and ended.text.startswith("1.mp4: the film ends before its index")
    assert 50 < ran.counts.captured < 100 and ran.counts.complete


def test_a_last_picture_that_stays_is_no_early_end(tmp_path: Path) -> None:
    """A recording of a screen on which nothing moves any more."""
    path = tmp_path / "screen.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=0.4", "-c:v", "mjpeg", "-pix_fmt", "yuvj420p",
           "-bsf:v", r"setts=duration=if(eq(N\,9)\,5000\,DURATION)", path)  # fmt: skip
    with av.open(str(path)) as container:
        assert container.duration > 5_000_000
    found, _, missing = decoded(path)
    assert len(found) == 10 and missing is None


class Cutting(socketserver.StreamRequestHandler):
    """A server that hangs up in the middle of a file."""

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        data: bytes = self.server.data  # type: ignore[attr-defined]
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: %d\r\n\r\n" % len(data))
        self.wfile.write(data[: len(data) * 6 // 10])


def test_a_film_of_which_no_more_can_be_read_keeps_what_came(plain: Path, opened: Session) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Cutting) as server:
        server.data = plain.read_bytes()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ran = run(opened, f"http://127.0.0.1:{server.server_address[1]}/film.mp4")
        server.shutdown()
    (ended,) = ran.events("ended")
    assert ended.text is not None and ended.text.startswith("the film "), ended.text
    assert 25 <= ran.counts.captured < 50 and ran.counts.complete


def test_a_film_of_which_nothing_can_be_decoded_is_refused(plain: Path, tmp_path: Path) -> None:
    data = plain.read_bytes()
    start = data.index(b"mdat") + 4
    path = tmp_path / "zeros.mp4"
    path.write_bytes(data[:start] + bytes(len(data) - start))
    done = vitedge("stream", null_artifact(tmp_path / "artifact").path, path, "--headless", "-q")
    assert done.code == 3 and "all 50 frames are damaged" in done.err, done.err


def test_a_film_without_a_frame_is_refused_as_a_file(plain: Path, tmp_path: Path, opened: Session) -> None:
    path = tmp_path / "empty.mp4"
    ffmpeg("-i", plain, "-c", "copy", "-frames:v", 0, path)
    ran = run(opened, str(path))
    assert ran.final is not None
    with pytest.raises(InputError):
        refuse_failed(ran.final, stopped=False)


# --- times, live


def streamed(opened: Session, data: bytes) -> list[FrameRecord]:
    """The records of a camera's first connection, which sends so much."""

    class Camera(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(data)

    with socketserver.TCPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.server_address[1]}"
        ran = run(opened, address, policy="every", until=lambda ran: bool(ran.events("lost")))
        server.shutdown()
    assert ran.counts.complete
    return [record for record in ran.records if record.connection == 0]


def test_a_camera_whose_stamps_wrap_has_no_gap(plain: Path, tmp_path: Path, opened: Session) -> None:
    path = rewrapped(plain, tmp_path / "wraps.ts", "-output_ts_offset", f"{(1 << 33) / 90000 - 2}")
    records = streamed(opened, path.read_bytes())
    times = [record.presentation_s or 0 for record in records]
    assert len(times) >= 45 and [record.gap for record in records] == [True] + [False] * (len(records) - 1)
    assert [later - earlier for earlier, later in pairwise(times)] == [pytest.approx(0.04, abs=1e-3)] * (len(times) - 1)
    assert {record.presentation_rule for record in records} == {"pts"}


def test_a_camera_that_begins_anew_has_a_gap_and_times_that_rise(tmp_path: Path, opened: Session) -> None:
    """It goes on in the middle of a group of pictures, so the first good frame comes later than the jump."""
    data = film(tmp_path / "camera.ts", "-g", "10", "-bf", "0", seconds=2).read_bytes()
    start = len(data) * 3 // 10 // 188 * 188
    records = streamed(opened, data + data[start:])
    times = [record.presentation_s or 0 for record in records]
    assert len(times) > 50 and all(later > earlier for earlier, later in pairwise(times))
    assert [number for number, record in enumerate(records) if record.gap][:2] == [0, 50]
    assert sum(record.gap for record in records) == 2


def test_the_systems_clock_may_jump(opened: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tenth time that it's read it's an hour back, or a day ahead, in the reader and in the engine."""
    jumping = (
        "import time; real = time.time_ns; reads = iter(range(10**9)); "
        "time.time_ns = lambda: real() + (-3600, 86400)[next(reads) // 10 % 2] * 10**9; "
    )
    monkeypatch.setattr(capture, "_CHILD", jumping + capture._CHILD)
    real, reads = time.time_ns, iter(range(10**9))
    monkeypatch.setattr(time, "time_ns", lambda: real() + (-3600, 86400)[next(reads) // 10 % 2] * 10**9)
    ran = run(opened, "test://?pattern=steps&rate=100&hold=1000", until=lambda ran: len(ran.records) >= 40, gap=30.0)
    assert len({record.time[:13] for record in ran.records}) > 1, "the wall clock jumped"
    assert all(0 <= record.age_ms < 30_000 for record in ran.records)
    assert [record.gap for record in ran.records] == [True] + [False] * (len(ran.records) - 1)
    assert len(ran.events("enter")) == 1 and ran.counts.complete
    arrivals = [record.monotonic_ns for record in ran.records]
    assert arrivals == sorted(arrivals)
