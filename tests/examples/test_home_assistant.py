"""Home Assistant's configuration of ``examples/home-assistant``, fed by a real stream through a real broker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmarking.nulls import null_artifact
from tests.conftest import ROOT
from tests.streaming import mosquitto
from tests.streaming.items import until

pytest.importorskip("paho.mqtt", reason="MQTT needs the extra 'stream'")
yaml = pytest.importorskip("yaml", reason="PyYAML isn't installed")
jinja2 = pytest.importorskip("jinja2", reason="the templates need the extra 'report'")
pytestmark = pytest.mark.skipif(mosquitto.PROGRAM is None, reason="the broker mosquitto isn't installed")

EXAMPLE = ROOT / "examples/home-assistant"
CONFIGURATION = yaml.safe_load((EXAMPLE / "configuration.yaml").read_text())


def rendered(template: str, **values: Any) -> str:
    """As Home Assistant renders it."""
    return str(jinja2.Environment().from_string(template).render(**values))


def test_sensor_and_automation_follow_the_stream(tmp_path: Path) -> None:
    from paho.mqtt import client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    (sensor,), (automation,) = CONFIGURATION["mqtt"]["binary_sensor"], CONFIGURATION["automation"]
    (trigger,), (condition,), (action,) = (automation[key] for key in ("triggers", "conditions", "actions"))
    heard: dict[str, list[str]] = {sensor["state_topic"]: [], sensor["availability_topic"]: [], trigger["topic"]: []}
    with mosquitto.Mosquitto(tmp_path / "broker") as broker:
        client = paho.Client(CallbackAPIVersion.VERSION2)
        ready: list[bool] = []
        client.on_message = lambda _client, _data, message: heard[message.topic].append(message.payload.decode())
        client.on_subscribe = lambda *_: ready.append(True)
        client.on_connect = lambda *_: client.subscribe([(topic, 1) for topic in heard]) and None
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        until(lambda: bool(ready))
        command = [sys.executable, "-m", "vitedge", "stream", str(null_artifact(tmp_path / "null").path)]
        command += ["gate=test://?pattern=steps&rate=3&hold=1", "--settings", str(EXAMPLE / "stream.toml")]
        command += ["--mqtt", f"mqtt://127.0.0.1:{broker.port}/vitedge", "--smoothing", "0", "--threshold", "0"]
        with subprocess.Popen([*command, "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as stream:
            try:
                # the label is a state, not a queue: one may pass unseen, and comes again
                until(lambda: "cat" in heard[sensor["state_topic"]] and len(heard[trigger["topic"]]) > 2)
            finally:
                stream.terminate()
        assert stream.returncode == 0
        until(lambda: heard[sensor["availability_topic"]][-1:] == [sensor["payload_not_available"]])
        client.disconnect()
        client.loop_stop()
        announced = [json.loads(payload) for payload in broker.retained("homeassistant/#").values()]
    assert {each["device"]["name"] for each in announced} == {"gate"}
    states = [rendered(sensor["value_template"], value=label) for label in heard[sensor["state_topic"]]]
    assert set(states) == {"ON", "OFF"} and states[-1] == "OFF"
    assert sensor["payload_available"] in heard[sensor["availability_topic"]]
    events = [json.loads(payload) for payload in heard[trigger["topic"]]]
    entered = [event for event in events if rendered(trigger["value_template"], value_json=event) == trigger["payload"]]
    assert {event["kind"] for event in entered} == {"enter"} and len(entered) > 1
    cats = [event for event in entered if rendered(condition, trigger=SimpleNamespace(payload_json=event)) == "True"]
    assert [event["label"] for event in cats] == ["cat"] * len(cats) and cats
    message = rendered(action["data"]["message"], trigger=SimpleNamespace(payload_json=cats[0]))
    assert message == f"A cat is at the gate ({round(cats[0]['probability'] * 100)} %)."
