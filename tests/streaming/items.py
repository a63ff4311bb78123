"""Records, events and statuses as an engine would make them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitedge.streaming.records import (
    Event,
    FrameCounts,
    FrameRecord,
    Percentiles,
    Score,
    SinkStatus,
    SourceStatus,
    Status,
)

AGES = Percentiles(count=100, p50_ms=8.0, p95_ms=12.0, p99_ms=20.0, max_ms=31.0)
TIME = "2026-01-02T03:04:05.678Z"


def record(sequence: int, source: str = "door", **changed: Any) -> FrameRecord:
    scores = (Score(label="cat", probability=0.75), Score(label="dog", probability=0.25))
    values: dict[str, Any] = {
        "source": source,
        "sequence": sequence,
        "connection": 0,
        "presentation_s": sequence / 30,
        "time": TIME,
        "monotonic_ns": time.monotonic_ns(),
        "age_ms": 12.5,
        "dropped": 0,
        "gap": sequence == 0,
        "width": 640,
        "height": 360,
        "label": "cat",
        "probability": 0.75,
        "raw": scores,
        "smoothed": scores,
    }
    return FrameRecord(**{**values, **changed})


def event(number: int, kind: str = "enter", source: str = "door", **changed: Any) -> Event:
    values: dict[str, Any] = {"label": "cat", "probability": 0.75} | changed
    return Event(source=source, kind=kind, time=TIME, monotonic_ns=number, sequence=number, **values)  # type: ignore[arg-type]


def source_status(name: str = "door", **changed: Any) -> SourceStatus:
    values: dict[str, Any] = {
        "name": name,
        "uri": "rtsp://10.0.0.5/main",
        "live": True,
        "state": "connected",
        "reason": None,
        "state_s": 3.0,
        "retry_s": None,
        "connections": 2,
        "gaps": 1,
        "counts": FrameCounts(captured=100, classified=90, skipped=4, dropped=5, corrupt=1),
        "width": 640,
        "height": 360,
        "codec": "h264",
        "captured_hz": 30.0,
        "classified_hz": 27.0,
        "age": AGES,
        "silent_s": 0.01,
        "label": "cat",
        "probability": 0.75,
        "smoothed": (Score(label="cat", probability=0.75),),
    }
    return SourceStatus(**{**values, **changed})


def status(*sources: SourceStatus, **changed: Any) -> Status:
    values: dict[str, Any] = {
        "time": TIME,
        "monotonic_ns": time.monotonic_ns(),
        "uptime_s": 3725.0,
        "artifact": "pets",
        "precision": "int8",
        "runtime": "onnxruntime 1.23",
        "device": "cpu",
        "sources": sources or (source_status(),),
        "sinks": (SinkStatus(name="json", written=90, dropped=0, error=None),),
        "inference": AGES,
        "temperature_c": 61.0,
        "power_w": None,
        "clock_mhz": 1500.0,
        "throttled": False,
    }
    return Status(**{**values, **changed})


def picture(value: int = 128, width: int = 64, height: int = 36) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def until(holds: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for a condition; its value once it's true."""
    end = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return value
