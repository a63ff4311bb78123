"""Presentation times: they rise for every container, and whatever its stamps do."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streaming.films import ffmpeg, film, needs_ffmpeg, rewrapped
from vitedge.streaming.frames import Frames
from vitedge.streaming.times import PresentationTimes

av = pytest.importorskip("av", reason="frames come from PyAV (pip install 'vitedge[stream]')")

WRAP = 1 << 33
FILMS: dict[str, tuple[str, ...]] = {
    "mp4": ("libx264", "-bf", "2"),
    "mkv": ("libx264", "-bf", "2"),
    "avi": ("libx264", "-bf", "2"),
    "xvid.avi": ("mpeg4", "-bf", "2"),
    "raw.avi": ("rawvideo",),
    "ts": ("mpeg2video", "-bf", "2"),
    "mpg": ("mpeg2video", "-bf", "2"),
    "m2v": ("mpeg2video", "-bf", "2"),
    "h264": ("libx264", "-bf", "2"),
    "flv": ("libx264", "-bf", "2"),
    "webm": ("libvpx",),
    "wmv": ("wmv2",),
    "mjpeg": ("mjpeg", "-pix_fmt", "yuvj420p"),
    "mov": ("prores", "-pix_fmt", "yuv422p10le"),
}


def frames(path: Path | str, *, live: bool = False, **options: str) -> list[Any]:
    with av.open(str(path), options=options) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        return list(Frames(container, stream, live=live, gap_s=0.5))


def rise(times: list[float]) -> bool:
    return all(later > earlier for earlier, later in pairwise(times))


@needs_ffmpeg
@pytest.mark.parametrize("kind", FILMS)
def test_times_rise_in_every_container(kind: str, tmp_path: Path) -> None:
    codec, *options = FILMS[kind]
    found = frames(film(tmp_path / f"film.{kind}", *options, seconds=0.8, codec=codec))
    times = [frame.presentation_s for frame in found]
    assert [time - times[0] for time in times] == [pytest.approx(number / 25, abs=0.0011) for number in range(20)]
    expected = {"h264": "rate", "avi": "dts", "xvid.avi": "dts", "raw.avi": "dts"}.get(kind, "pts")
    assert {frame.rule for frame in found} == {expected}


@needs_ffmpeg
def test_edit_lists_are_obeyed(tmp_path: Path) -> None:
    """A film cut without encoding begins at a key frame before the cut; its edit list hides what comes before."""
    long = film(tmp_path / "long.mp4", "-g", "10", "-bf", "2", seconds=2)
    cut = tmp_path / "cut.mp4"
    ffmpeg("-ss", "0.6", "-i", long, "-c", "copy", "-t", "1", cut)
    late = rewrapped(long, tmp_path / "late.mp4", "-output_ts_offset", "3")
    for path, first in ((cut, 0.0), (late, 3.0)):
        times = [frame.presentation_s for frame in frames(path)]
        assert rise(times) and times[0] == pytest.approx(first, abs=0.05)
        with av.open(str(path)) as container:
            assert len(times) == len(list(container.decode(video=0)))


@needs_ffmpeg
@pytest.mark.parametrize("corrected", ["0", "1"])
def test_a_transport_streams_stamps_begin_anew_after_26_hours(corrected: str, tmp_path: Path) -> None:
    """33 bits of 90 kHz: FFmpeg sees to the first wrap itself, unless it's told not to, and to no other."""
    path = film(tmp_path / "wraps.ts", "-bf", "2", "-output_ts_offset", f"{WRAP / 90000 - 2}", seconds=2)
    found = frames(path, correct_ts_overflow=corrected)
    times = [frame.presentation_s for frame in found]
    assert [later - earlier for earlier, later in pairwise(times)] == [pytest.approx(0.04, abs=0.001)] * 49
    assert {frame.rule for frame in found} == {"pts"} and not any(frame.jumped for frame in found)


@needs_ffmpeg
def test_times_rise_over_stamps_that_repeat_and_over_two_streams_in_one_file(tmp_path: Path) -> None:
    good = film(tmp_path / "good.mkv", "-pix_fmt", "yuvj420p", codec="mjpeg")
    repeats = rewrapped(good, tmp_path / "repeats.mkv", "-bsf:v", r"setts=ts=if(between(N\,5\,8)\,200\,PTS)")
    found = frames(repeats)
    times = [frame.presentation_s for frame in found]
    assert len(times) == 25 and rise(times) and times[9:] == [pytest.approx(number / 25) for number in range(9, 25)]
    assert [number for number, frame in enumerate(found) if frame.rule == "rate"] == [6, 7, 8]
    one = film(tmp_path / "one.ts", "-bf", "2")
    (tmp_path / "two.ts").write_bytes(one.read_bytes() * 2)
    found = frames(tmp_path / "two.ts")
    assert len(found) == 50 and rise([frame.presentation_s for frame in found])
    assert sum(frame.jumped for frame in found) == 1


# --- stamps as they come


def shown(*stamps: int | None, rate: int | None = 25, format: str = "matroska,webm") -> list[tuple[float, str, bool]]:
    """Times of frames whose stamps are given in hundredths of a second."""
    times = PresentationTimes(format, Fraction(1, 100), None if rate is None else Fraction(rate))
    return [(round(at, 6), rule, jumped) for at, rule, jumped in (times.of(stamp) for stamp in stamps)]


def test_a_missing_stamp_is_the_frame_before_and_the_rate() -> None:
    assert shown(0, None, None, 12) == [(0, "pts", False), (0.04, "rate", False), (0.08, "rate", False),
                                        (0.12, "pts", False)]  # fmt: skip
    assert [at for at, *_ in shown(None, None, None, rate=50)] == [0, 0.02, 0.04]
    assert [at for at, *_ in shown(0, 10, 20, None, rate=None)] == [0, 0.1, 0.2, 0.3]
    assert [at for at, *_ in shown(None, None, rate=0)] == [0, 0.04], "no rate at all"


def test_a_repeated_or_early_stamp_lies_before_the_next_good_one() -> None:
    assert shown(0, 4, 4, 8) == [(0, "pts", False), (0.04, "pts", False), (0.06, "rate", False), (0.08, "pts", False)]
    assert shown(0, 4, 8, 16, 12, 20)[3:] == [(0.16, "pts", False), (0.18, "rate", False), (0.2, "pts", False)]


def test_a_stream_that_begins_anew_goes_on() -> None:
    found = shown(500, 504, 508, 0, 4, 8, 12)
    assert [at for at, *_ in found] == [5, 5.04, 5.08, 5.1, 5.14, 5.18, 5.22]
    assert [jumped for *_, jumped in found] == [False] * 3 + [True, False, False, False]
    assert {rule for _, rule, _ in found[4:]} == {"pts"}


def test_stamps_that_never_rise_are_replaced_by_the_rate() -> None:
    times = [at for at, *_ in shown(*[7] * 100)]
    assert rise(times) and times[-1] - times[-2] == pytest.approx(0.04)


@given(
    stamps=st.lists(st.none() | st.integers(-(1 << 33), 1 << 33), min_size=1, max_size=60),
    format=st.sampled_from(["mpegts", "matroska,webm", "flv"]),
    rate=st.none() | st.integers(1, 120),
)
def test_whatever_the_stamps_times_rise(stamps: list[int | None], format: str, rate: int | None) -> None:
    times = PresentationTimes(format, Fraction(1, 90000), None if rate is None else Fraction(rate))
    assert rise([round(times.of(stamp).at_s * 1e9) for stamp in stamps])


@given(start=st.integers(0, WRAP - 1))
@settings(max_examples=20)
def test_however_often_stamps_wrap_an_hour_is_an_hour(start: int) -> None:
    times = PresentationTimes("mpegts", Fraction(1, 90000), None)
    found = [times.of((start + hour * 3600 * 90000) % WRAP).at_s for hour in range(200)]
    assert [later - earlier for earlier, later in pairwise(found)] == [pytest.approx(3600)] * 199


def test_a_stamp_from_before_the_wrap_may_come_after_it() -> None:
    times = PresentationTimes("mpegts", Fraction(1, 90000), Fraction(25))
    found = [times.of(stamp % WRAP) for stamp in (WRAP - 3600, WRAP, WRAP - 900, WRAP + 3600)]
    assert [time.rule for time in found] == ["pts", "pts", "rate", "pts"] and not any(time.jumped for time in found)
    assert rise([time.at_s for time in found]) and found[3].at_s - found[0].at_s == pytest.approx(0.08)
