"""The soak of ``benchmarks/stream_soak.py`` in short: what doesn't leak passes, and a planted leak is caught."""

from __future__ import annotations

import os
import random
import sys
import types
from typing import Any

import pytest

from benchmarks.stream_soak import ALLOWED_BYTES, Memory, Sample, four_sources, hurry, soak, theil_sen
from tests.streaming.levels import session
from tests.streaming.publisher import ENCODER, encodes
from vitedge.streaming import capture
from vitedge.streaming.engine import Engine
from vitedge.streaming.records import Event, FrameRecord, Item
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.sink import QueuedSink
from vitedge.streaming.uri import parse_sources

needs_encoder = pytest.mark.skipif(not encodes(), reason=f"this PyAV has no {ENCODER}")
LEAK_MB_H = 3600.0  # a megabyte a second: so much shows in half a minute, whatever else the machine does


def test_the_slope_and_its_bounds() -> None:
    draw = random.Random(1)
    points = [(second, 50 + second * 7 + draw.gauss(0, 3.6)) for second in range(60)]
    points[7] = (7, 5000)  # one outlier doesn't move it
    slope = theil_sen(points)
    assert slope.lower < 7 < slope.upper and slope.median == pytest.approx(7, abs=0.5)


def test_a_sample_survives_its_file() -> None:
    sample = Sample(1.5, {"engine": Memory.of(os.getpid()), "gone": Memory(0.0, 0.0)}, 9, 3)
    assert Sample.of([*sample]) == sample and sample.pss_mb >= sample.own_mb > 1
    assert Memory.of(1 << 30) == Memory(0.0, 0.0), "no such process"


@needs_encoder
def test_four_sources_for_half_a_minute() -> None:
    with four_sources(frames=200) as urls:  # so each of them hangs up a few times
        found = soak(urls, seconds=30)
    assert found["balanced"] and found["frames"] > 100 and found["reconnects"] >= 3
    assert found["descriptors_moved"] <= 1 and len(found["threads"]) == 1
    assert found["own_slope_mb_h"]["lower"] < LEAK_MB_H / 10


def test_a_leaking_sink_is_caught() -> None:
    found = soak(["test://?pattern=steps&rate=25"], seconds=15, leak_mb_h=LEAK_MB_H)
    assert found["leaks"]
    assert found["own_slope_mb_h"]["median"] > LEAK_MB_H / 2


@needs_encoder
@pytest.mark.parametrize(
    "kind", ["mpegts", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("rtsp", "mjpeg"))]
)
def test_thousands_of_frames_leave_nothing_behind(kind: str) -> None:
    found = hurry(kind, 8000, rate=400)
    assert found["captured"] >= 8000 and found["classified"] >= 4000
    assert found["reader_bytes_a_frame"]["median"] < ALLOWED_BYTES, found
    assert found["engine_bytes_a_frame"]["median"] < ALLOWED_BYTES, found
    if kind == "mpegts":  # FFmpeg keeps what comes of a transport stream until it's 5 MB, and may keep less
        assert found["reader_rose_mb"] < 10


class Keeper(QueuedSink):
    """Keeps ten thousand bytes of every frame."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        super().__init__("keeper", (FrameRecord,))

    def write(self, item: Item, picture: Any) -> None:
        self._kept.append(os.urandom(10_000))


def test_a_sink_that_keeps_something_of_every_frame_is_caught() -> None:
    found = hurry("mjpeg", 1000, rate=400, sinks=[Keeper()])
    assert found["engine_bytes_a_frame"]["lower"] > 10 * ALLOWED_BYTES, found  # a busy machine drops for slow sinks


def test_reconnects_leave_nothing_behind(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that die at once; what is left is the engine's part of a reconnect."""
    monkeypatch.setattr(capture, "sys", types.SimpleNamespace(executable="/bin/true", path=sys.path))
    settings = StreamSettings(source=("test://?pattern=steps",), backoff_min=0.001, backoff_max=0.002)
    held: list[tuple[float, float]] = []
    with session(tmp_path) as opened:
        engine = Engine(opened, parse_sources(settings.source), settings)
        lost = 0
        for item in engine.items():
            if isinstance(item, Event) and item.kind == "lost":
                lost += 1
                if lost % 5 == 0:
                    held.append((lost, Memory.of(os.getpid()).own_mb * 1e6))
                if lost == 120:
                    engine.stop()
    assert theil_sen(held[len(held) // 2 :]).median < 1000, held  # bytes each: a megabyte in a thousand
