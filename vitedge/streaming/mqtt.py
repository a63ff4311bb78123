"""Publish labels, events and records to an MQTT broker. While it's away, records are dropped, and events wait.

============================  ===  ========  ==============================================
topic                         QoS  retained  payload
============================  ===  ========  ==============================================
``TOPIC/online``                1  yes       ``1`` while the stream runs, else ``0``
``TOPIC/SOURCE/label``          1  yes       the label that holds; empty: unknown
``TOPIC/SOURCE/probability``    1  yes       its probability, 0 to 1; empty: unknown
``TOPIC/SOURCE/event``          1  no        an event
``TOPIC/SOURCE/frame``          0  no        a record, as in the JSON Lines
============================  ===  ========  ==============================================

Label and probability are a state, not a queue: with every connection they're told anew, so that neither a broker that
forgot them nor a stream that was killed before leaves something else there.
"""

from __future__ import annotations

import contextlib
import math
import re
import socket
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from vitedge.errors import NotInstalledError, UsageError
from vitedge.streaming.address import from_environment, split_url
from vitedge.streaming.home_assistant import discovery
from vitedge.streaming.records import Event, FrameRecord, Item, Status
from vitedge.streaming.sink import QueuedSink

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PATIENCE_S = 10.0  # for a message to leave, or to be acknowledged
ENDING_S, LAST_PATIENCE_S = 2.0, 0.5  # for all messages at the end, and for each of them after that
FOLLOW_S = 10.0  # between two updates of the present label's probability
WAITING = 2000
KEEP_ALIVE_S = 30

#: Each level publishes more than the one before: the state, events, a record of every frame.
Level = Literal["labels", "events", "records"]


class LabelState(NamedTuple):
    """The state of a source."""

    label: str = ""
    probability: str = ""


class MqttSink(QueuedSink):
    """Publishes to ``mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC``, or ``mqtts://`` over TLS.

    Args:
        url: the address, or ``env:NAME`` for a variable that holds it. Only scheme and host are ever shown.
        level: how much is published.
        announce: publish what makes Home Assistant show the sources.
        sources: the sources' names.

    Raises:
        UsageError: it isn't such an address, or two sources would share their topics.
        NotInstalledError: paho-mqtt is missing.
    """

    uncounted = (Status,)

    def __init__(
        self, url: str, level: Level = "events", *, announce: bool = False, sources: tuple[str, ...] = ()
    ) -> None:
        action = "publish to the MQTT broker"
        address = split_url(from_environment(url, action), action)
        text, user = address.url, address.credentials
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        self._topic = unquote(parts.path).strip("/")
        wildcards = re.search(r"[+#\x00]", self._topic) or "#" in text
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or wildcards:
            raise UsageError(action, "this isn't an MQTT address", "write mqtt://HOST/TOPIC, or env:NAME")
        self._topic = self._topic or "vitedge"
        self._sources = {topic_level(source): source for source in sources}
        if len(self._sources) < len(sources):
            raise UsageError(
                action, f"two of {', '.join(sources)} would share a topic", "give each a name: NAME=SOURCE"
            )
        try:
            from paho.mqtt import client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise NotInstalledError.for_extra(action, "paho-mqtt", "stream") from error
        self._level, self._announce = level, announce
        self._current = dict.fromkeys(self._sources, LabelState())  # what the broker should keep, by topic level
        self._published: dict[str, LabelState] = {}  # the states published since it's connected
        self._follow_at, self._last_moment = 0.0, math.inf  # monotonic
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        if user is not None:
            self._client.username_pw_set(user.user, user.password)
        if parts.scheme == "mqtts":
            self._client.tls_set()
        self._client.will_set(f"{self._topic}/online", "0", qos=1, retain=True)
        self._client.reconnect_delay_set(1, 30)
        self._client.max_queued_messages_set(WAITING)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_connect_fail = self._failed
        self._client.connect_async(parts.hostname, port or (8883 if parts.scheme == "mqtts" else 1883), KEEP_ALIVE_S)
        self._client.loop_start()
        kinds = (Event, Status, FrameRecord) if level == "records" else (Event, Status)
        super().__init__(f"mqtt {parts.scheme}://{parts.hostname}", kinds, WAITING)

    def put(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class. A record that can't be sent now is dropped; a status says what has to be sent again."""
        if isinstance(item, FrameRecord) and self._level == "records" and not self._takes_records():
            self.dropped += 1
            return
        if isinstance(item, Event):
            if item.kind in ("enter", "exit"):
                label = item.label if item.kind == "enter" else None
                self._current[topic_level(item.source)] = _label_state(label, item.probability)
            elif self._level == "labels":
                return
        if isinstance(item, Status):
            self._follow(item)
            if self._items or self._current == self._published or not self._client.is_connected():
                return
        super().put(item, None)

    def _takes_records(self) -> bool:
        return self._client.is_connected() and len(self._items) < WAITING // 2  # the other half is for events

    def _follow(self, status: Status) -> None:
        """Publish the probabilities of the present labels from time to time."""
        if time.monotonic() < self._follow_at:
            return
        self._follow_at = time.monotonic() + FOLLOW_S
        for source in status.sources:
            if self._current.get(topic_level(source.name), LabelState()).label:
                self._current[topic_level(source.name)] = _label_state(source.label, source.probability)

    def write(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class. One message at a time: paho's own queue has no bound for a broker that doesn't read."""
        if isinstance(item, FrameRecord):
            if not self._client.is_connected():
                raise ConnectionError("the broker is away")
            self._publish(f"{topic_level(item.source)}/frame", msgspec.json.encode(item), 0)
            return
        if isinstance(item, Event):
            self._await_broker()
            if self._level != "labels":
                self._publish(f"{topic_level(item.source)}/event", msgspec.json.encode(item), 1)
            self._publish_labels()
            return
        with contextlib.suppress(ConnectionError, TimeoutError):  # the next status tries again
            self._publish_labels()

    def _await_broker(self) -> None:
        while not self._client.is_connected():
            with self._changed:
                if self._closing:
                    raise ConnectionError("the broker is away")
                self._changed.wait(0.2)

    def _publish_labels(self) -> None:
        """Publish the state of every source as retained messages."""
        for source, state in self._current.copy().items():
            published = self._published
            if published.get(source) != state:
                for name in LabelState._fields:
                    if source not in published or getattr(published[source], name) != getattr(state, name):
                        self._publish(f"{source}/{name}", getattr(state, name).encode(), 1, retain=True)
                published[source] = state

    def end(self) -> None:
        """See the base class."""
        self._last_moment = min(self._last_moment, time.monotonic() + ENDING_S)
        super().end()

    def finish(self) -> None:
        """See the base class. No goodbye after an unanswered last message: the broker then publishes the will."""
        try:
            if self._client.is_connected():
                self._publish_labels()
                self._publish("online", b"0", 1, retain=True)
        except (ConnectionError, TimeoutError):
            with contextlib.suppress(OSError, AttributeError):
                self._client.socket().shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
            raise
        finally:
            self._client.disconnect()
            self._client.loop_stop()

    def describe(self, error: Exception) -> str:
        """See the base class."""
        return str(error) if isinstance(error, (ConnectionError, TimeoutError)) else type(error).__name__

    def _publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False) -> None:
        from paho.mqtt.enums import MQTTErrorCode

        message = self._client.publish(f"{self._topic}/{topic}", payload, qos, retain)
        if qos and message.rc == MQTTErrorCode.MQTT_ERR_NO_CONN:  # paho keeps it, and sends it when it's connected
            message.rc = MQTTErrorCode.MQTT_ERR_SUCCESS
        if message.rc:
            raise ConnectionError("the broker went away")
        begin = time.monotonic()
        while not message.is_published():
            if not self._client.is_connected():
                if qos == 0:
                    raise ConnectionError("the broker went away")
                if not self._closing:
                    begin = time.monotonic()
            if time.monotonic() > min(begin + PATIENCE_S, max(self._last_moment, begin + LAST_PATIENCE_S)):
                raise TimeoutError("the broker doesn't take messages")
            message.wait_for_publish(0.2)

    # --- paho's thread

    def _connected(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.error = f"the broker refuses: {reason}"
            return
        self.error = None
        self._published = {}
        for level, source in self._sources.items() if self._announce else ():
            for topic, sensor in discovery(self._topic, level, source):
                client.publish(topic, msgspec.json.encode(sensor), 1, True)
        client.publish(f"{self._topic}/online", b"1", 1, True)

    def _disconnected(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.error = f"the broker went away: {reason}"

    def _failed(self, _client: Any, _data: Any) -> None:
        self.error = "the broker can't be reached"


def topic_level(source: str) -> str:
    """Return a source's name as one level of a topic, without the characters that have a meaning there."""
    return re.sub(r"[/+#\x00]", "-", source)


def _label_state(label: str | None, probability: float | None) -> LabelState:
    return LabelState() if label is None else LabelState(label, f"{probability or 0:.2f}")
