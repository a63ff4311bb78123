"""MQTT discovery: the messages that announce a source's sensors (home-assistant.io/integrations/mqtt)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from vitedge._version import __version__

PREFIX = "homeassistant"  # Home Assistant's default
URL = "https://github.com/vitedge/vitedge"


def discovery(topic: str, level: str, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the retained messages that announce a source: a sensor for its label and one for its probability.

    Args:
        topic: that everything is published below.
        level: of the source in topics.
        source: its name, which the device gets.

    Yields:
        (topic, configuration of a sensor). An empty payload renders as None, which Home Assistant shows as unknown.
    """
    digest = hashlib.sha256(f"{topic}/{level}".encode()).hexdigest()[:8]
    identity = f"vitedge_{re.sub(r'[^a-zA-Z0-9_-]', '_', f'{topic}_{level}')[:64]}_{digest}"
    shared = {
        "availability_topic": f"{topic}/online",
        "payload_available": "1",
        "payload_not_available": "0",
        "qos": 1,
        "device": {"identifiers": [identity], "name": source, "manufacturer": "vitedge", "sw_version": __version__},
        "origin": {"name": "vitedge", "sw_version": __version__, "support_url": URL},
    }
    sensors: dict[str, dict[str, Any]] = {
        "label": {"name": "Label", "icon": "mdi:tag-outline", "value_template": "{{ value or None }}"},
        "probability": {
            "name": "Probability",
            "icon": "mdi:percent-outline",
            "unit_of_measurement": "%",
            "state_class": "measurement",
            "value_template": "{{ (value | float * 100) | round | int if value else None }}",
        },
    }
    for name, own in sensors.items():
        state = {"unique_id": f"{identity}_{name}", "state_topic": f"{topic}/{level}/{name}"}
        yield f"{PREFIX}/sensor/{identity}/{name}/config", own | state | shared
