"""Records and events to an MQTT broker. Records are dropped while it's away; events wait, and reach it later.

========================  ===  ========  ==============================================
topic                     QoS  retained  payload
========================  ===  ========  ==============================================
``TOPIC/online``            1  yes       ``1`` while the stream runs, else ``0``
``TOPIC/SOURCE/frame``      0  no        a record, as in the JSON Lines
``TOPIC/SOURCE/event``      1  no        an event
``TOPIC/SOURCE/label``      1  yes       the label that holds; empty: unknown
========================  ===  ========  ==============================================
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec

from vitedge.errors import NotInstalledError, UsageError
from vitedge.streaming.address import from_environment, split_url
from vitedge.streaming.records import Event, FrameRecord, Item
from vitedge.streaming.sink import QueuedSink

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PATIENCE_S = 10.0  # for a message to leave, or to be acknowledged
WAITING = 2000
KEEP_ALIVE_S = 30


class MqttSink(QueuedSink):
    """Publishes to ``mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC``, or ``mqtts://`` over TLS.

    Args:
        url: the address, or ``env:NAME`` for a variable that holds it. Only scheme and host are ever shown.

    Raises:
        UsageError: it isn't such an address.
        NotInstalledError: paho-mqtt is missing.
    """

    def __init__(self, url: str) -> None:
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
            raise UsageError(action, "this isn't an address of MQTT", "write mqtt://HOST/TOPIC, or env:NAME")
        self._topic = self._topic or "vitedge"
        try:
            from paho.mqtt import client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise NotInstalledError.for_extra(action, "paho-mqtt", "stream") from error
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
        super().__init__(f"mqtt {parts.scheme}://{parts.hostname}", (FrameRecord, Event), WAITING)

    def put(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base. A record that can't leave now is worth nothing later."""
        if isinstance(item, FrameRecord) and not self._client.is_connected():
            self.dropped += 1
            return
        super().put(item, None)

    def write(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base. One message at a time: paho's own queue has no bound for a broker that doesn't read."""
        assert isinstance(item, (FrameRecord, Event))
        if isinstance(item, FrameRecord):
            if not self._client.is_connected():
                raise ConnectionError("the broker is away")
            self._publish(f"{topic_level(item.source)}/frame", msgspec.json.encode(item), 0)
            return
        while not self._client.is_connected():
            with self._changed:
                if self._closing:
                    raise ConnectionError("the broker is away")
                self._changed.wait(0.2)
        self._publish(f"{topic_level(item.source)}/event", msgspec.json.encode(item), 1)
        if item.kind in ("enter", "exit"):
            label = (item.label or "").encode() if item.kind == "enter" else b""
            self._publish(f"{topic_level(item.source)}/label", label, 1, retain=True)

    def finish(self) -> None:
        """See the base."""
        if self._client.is_connected():
            self._publish("online", b"0", 1, retain=True, patience_s=1.0)
        self._client.disconnect()
        self._client.loop_stop()

    def describe(self, error: Exception) -> str:
        """See the base."""
        return str(error) if isinstance(error, (ConnectionError, TimeoutError)) else type(error).__name__

    def _publish(
        self, topic: str, payload: bytes, qos: int, *, retain: bool = False, patience_s: float = PATIENCE_S
    ) -> None:
        message = self._client.publish(f"{self._topic}/{topic}", payload, qos, retain)
        deadline = time.monotonic() + patience_s
        while not message.is_published():
            if qos == 0 and not self._client.is_connected():
                raise ConnectionError("the broker went away")
            if time.monotonic() > deadline:
                raise TimeoutError("the broker doesn't take messages")
            message.wait_for_publish(0.2)

    # --- paho's thread

    def _connected(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.error = f"the broker refuses: {reason}"
            return
        self.error = None
        client.publish(f"{self._topic}/online", b"1", 1, True)

    def _disconnected(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.error = f"the broker went away: {reason}"

    def _failed(self, _client: Any, _data: Any) -> None:
        self.error = "the broker can't be reached"


def topic_level(source: str) -> str:
    """A source's name as one level of a topic: without the characters that mean something there."""
    return re.sub(r"[/+#\x00]", "-", source)
