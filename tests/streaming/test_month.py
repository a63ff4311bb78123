"""``benchmarks/stream_month.py`` in short: a minute of faults of every kind."""

from __future__ import annotations

import pytest

from benchmarks.stream_month import month
from tests.streaming import mosquitto
from tests.streaming.publisher import ENCODER, encodes

pytest.importorskip("paho.mqtt", reason="MQTT needs the extra 'stream'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(mosquitto.PROGRAM is None, reason="the broker mosquitto isn't installed"),
    pytest.mark.skipif(not encodes(), reason=f"this PyAV has no {ENCODER}"),
]


def test_a_minute_of_bad_luck() -> None:
    found = month(60, seed=1)
    assert found["passed"], found
    assert len(found["faults"]) > 10 and found["sources"]["rtsp"]["connections"] > 1
    assert found["descriptors"][1] - found["descriptors"][0] < 20 and found["own_mb"][1] < 100, found
