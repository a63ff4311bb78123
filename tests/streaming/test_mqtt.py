"""What a real broker keeps of a stream: labels, probabilities, whether it runs, and what Home Assistant finds."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarking.nulls import null_artifact
from tests.streaming import mosquitto
from tests.streaming.items import event, record, source_status, status, until
from vitedge.errors import UsageError
from vitedge.streaming import mqtt
from vitedge.streaming.mqtt import MqttSink

pytest.importorskip("paho.mqtt", reason="MQTT needs the extra 'stream'")
pytestmark = pytest.mark.skipif(mosquitto.PROGRAM is None, reason="the broker mosquitto isn't installed")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[mosquitto.Mosquitto]:
    with mosquitto.Mosquitto(tmp_path / "broker") as running:
        yield running


def connected(broker: mosquitto.Mosquitto, *arguments: Any, **keywords: Any) -> MqttSink:
    sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/t", *arguments, **keywords)
    until(sink._client.is_connected)
    return sink


def stream(broker: mosquitto.Mosquitto, tmp_path: Path, *options: str) -> subprocess.Popen[bytes]:
    path = tmp_path / "null"
    artifact = path if path.exists() else null_artifact(path).path
    command = [sys.executable, "-m", "vitedge", "stream", str(artifact), "cam=test://", "--headless", "--quiet"]
    command += ["--mqtt", f"mqtt://127.0.0.1:{broker.port}/t", "--json", "/dev/null", *options]
    return subprocess.Popen(command)


def test_a_label_does_not_outlive_its_stream(broker: mosquitto.Mosquitto, tmp_path: Path) -> None:
    """Though the webhook's receiver, which has the same time for its last words, never answers."""
    events = tmp_path / "events.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with stream(broker, tmp_path, "--webhook", url, "--events", str(events)) as running:
            until(lambda: broker.retained("t/#").get("t/cam/label"))
            running.terminate()
    assert running.returncode == 0
    assert broker.retained("t/#") == {"t/online": b"0"}
    last = json.loads(events.read_text().splitlines()[-1])
    assert (last["kind"], last["text"]) == ("exit", "the stream was stopped")


def test_the_label_of_a_killed_stream_goes_with_the_next_start(broker: mosquitto.Mosquitto, tmp_path: Path) -> None:
    with stream(broker, tmp_path) as running:
        until(lambda: broker.retained("t/#").get("t/cam/label"))
        running.send_signal(signal.SIGKILL)
    until(lambda: broker.retained("t/#")["t/online"] == b"0")  # the will
    assert broker.retained("t/#").keys() == {"t/online", "t/cam/label", "t/cam/probability"}
    sink = connected(broker, sources=("cam",))
    sink.put(status(source_status("cam", label=None)), None)
    until(lambda: broker.retained("t/#") == {"t/online": b"1"})
    sink.close(5)


def test_a_broker_that_forgot_everything_is_told_again(tmp_path: Path) -> None:
    with mosquitto.Mosquitto(tmp_path / "broker") as broker:
        sink = connected(broker, announce=True, sources=("cam",))
        sink.put(event(0, source="cam"), None)
        until(lambda: sink.written == 1)
        broker.kill()
        until(lambda: not sink._client.is_connected())
        (tmp_path / "broker" / "mosquitto.db").unlink(missing_ok=True)
        broker.start()
        until(sink._client.is_connected)
        sink.put(status(source_status("cam")), None)
        until(lambda: broker.retained("t/#").get("t/cam/probability"))
        assert broker.retained("t/#") == {"t/online": b"1", "t/cam/label": b"cat", "t/cam/probability": b"0.75"}
        assert len(broker.retained("homeassistant/#")) == 2
        sink.close(5)


@pytest.mark.parametrize(("level", "topics"), [("labels", ""), ("events", "event"), ("records", "event frame")])
def test_a_level_publishes_so_much(level: Any, topics: str, broker: mosquitto.Mosquitto) -> None:
    from paho.mqtt import client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    heard: list[str] = []
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda _client, _data, message: heard.append(message.topic)
    client.on_subscribe = lambda *_: heard.append("subscribed")
    client.on_connect = lambda *_: client.subscribe("t/#", 1) and None
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    until(lambda: "subscribed" in heard)
    sink = connected(broker, level, sources=("door",))
    for number in range(20):
        sink.put(record(number), None)
    for kind in ("connected", "enter", "lost", "exit"):
        sink.put(event(1, kind), None)
    sink.put(status(), None)
    sink.close(5)
    until(lambda: heard.count("t/online") == 2)
    client.disconnect()
    client.loop_stop()
    told = {topic.split("/")[-1] for topic in heard[1:]}
    assert told == {"online", "label", "probability", *topics.split()}
    assert sink.written == {"labels": 2, "events": 4, "records": 24}[level] and sink.dropped == 0


def test_the_probability_of_a_label_that_holds_follows(
    broker: mosquitto.Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = connected(broker, sources=("door",))
    sink.put(event(0), None)
    until(lambda: sink.written == 1)
    sink.put(status(source_status(probability=0.9)), None)
    until(lambda: broker.retained("t/#")["t/door/probability"] == b"0.90")
    sink.put(status(source_status(probability=0.5)), None)
    assert sink._current["door"].probability == "0.90", "it doesn't follow at once"
    monkeypatch.setattr(mqtt, "FOLLOW_S", 0.0)
    sink._follow_at = 0.0
    sink.put(status(source_status(probability=0.5)), None)
    until(lambda: broker.retained("t/#")["t/door/probability"] == b"0.50")
    sink.close(5)


def test_home_assistant_finds_a_sensor_for_label_and_probability(broker: mosquitto.Mosquitto) -> None:
    jinja2 = pytest.importorskip("jinja2", reason="the templates need the extra 'report'")
    sources = ("door", "10.0.0.5:554/main", "garten tür")
    sink = connected(broker, "labels", announce=True, sources=sources)
    sink.put(event(0, source=sources[1]), None)
    until(lambda: sink.written == 1)
    announced = {topic: json.loads(payload) for topic, payload in broker.retained("homeassistant/#").items()}
    kept = broker.retained("t/#")
    assert len(announced) == 6 and len({sensor["unique_id"] for sensor in announced.values()}) == 6
    shown = {}
    for topic, sensor in announced.items():
        prefix, component, node, entity, last = topic.split("/")
        assert (prefix, component, last) == ("homeassistant", "sensor", "config")
        assert all(sign.isascii() and (sign.isalnum() or sign in "_-") for sign in node + entity)
        availability = kept[sensor["availability_topic"]].decode()
        assert (availability, sensor["payload_available"], sensor["payload_not_available"]) == ("1", "1", "0")
        template = jinja2.Environment().from_string(sensor["value_template"])  # as Home Assistant renders it
        value = kept.get(sensor["state_topic"], b"").decode()
        shown[sensor["device"]["name"], sensor["name"]] = template.render(value=value)
    assert shown[sources[1], "Label"] == "cat" and shown[sources[1], "Probability"] == "75"
    assert shown["door", "Label"] == shown["garten tür", "Probability"] == "None", "Home Assistant's word for unknown"
    sink.close(5)
    assert len(broker.retained("homeassistant/#")) == 6, "the sensors stay, as not available"


def test_sources_that_would_share_a_topic_are_refused() -> None:
    with pytest.raises(UsageError, match="share a topic"):
        MqttSink("mqtt://127.0.0.1:1/t", sources=("a/b", "a-b"))
