"""``benchmarks/stream_month.py`` in short: a minute of faults of every kind."""

from __future__ import annotations

import pytest

from benchmarks.stream_month import month
from tests.streaming import mosquitto
from tests.streaming.publisher import ENCODER, encodes

pytest.importorskip("paho.mqtt", reason="MQTT needs the extra 'stream'")
pytestmark = [
    pytest.mark.skipif(mosquitto.PROGRAM is None, reason="the broker mosquitto isn't installed"),
    pytest.mark.skipif(not encodes(), reason=f"this PyAV has no {ENCODER}"),
]


def test_what_holds_after_a_minute_of_faults() -> None:
    result = month(60, seed=1)
    assert result["passed"], result
    assert len(result["faults"]) > 10 and result["sources"]["rtsp"]["connections"] > 1
    assert all(
        most - least < bound for (least, most), bound in ((result["descriptors"], 20), (result["own_mb"], 50))
    ), result
