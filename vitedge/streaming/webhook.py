"""Send events by HTTP POST: one at a time, in order, tried again while the receiver is away."""

from __future__ import annotations

import base64
import http.client
import random
import ssl
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from vitedge._version import __version__
from vitedge.errors import UsageError
from vitedge.streaming.address import from_environment, split_url
from vitedge.streaming.records import Event, Item
from vitedge.streaming.sink import QueuedSink

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TIMEOUT_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
WAITING = 1000  # events


class Refused(Exception):
    """The receiver doesn't want this event; another attempt wouldn't help."""


class WebhookSink(QueuedSink):
    """POSTs each event as JSON. An answer of 200 to 299 is a success; 408, 429, 5xx and silence are tried again.

    Args:
        url: ``http://`` or ``https://``, with ``user:password@`` if need be, or ``env:NAME`` for a variable that holds
            it. Only scheme and host are ever shown: paths and queries of such addresses are secrets.

    Raises:
        UsageError: it isn't such a URL.
    """

    def __init__(self, url: str) -> None:
        action = "send events to the webhook"
        address = split_url(from_environment(url, action), action)
        text, user = address.url, address.credentials
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or any(sign in text for sign in " \r\n"):
            raise UsageError(action, "this isn't an HTTP address", "write https://HOST/PATH, or env:NAME")
        self._host, self._port, self._secure = parts.hostname, port, parts.scheme == "https"
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json", "User-Agent": f"vitedge/{__version__}"}
        if user is not None:
            pair = f"{user.user}:{user.password}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        self._connection: http.client.HTTPConnection | None = None
        super().__init__(f"webhook {parts.scheme}://{parts.hostname}", (Event,), WAITING)

    def write(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class. It returns when the event was taken; it raises when it's refused, or fails at the end."""
        body, pause, earlier_error, ending = msgspec.json.encode(item), FIRST_PAUSE_S, self.error, self._closing
        while True:
            try:
                self._post(body)
            except Refused:
                raise
            except (OSError, http.client.HTTPException) as error:
                self._hang_up()
                self.error = self.describe(error)
                if ending:
                    raise
                ending = not self._pause(pause * random.uniform(0.7, 1.3))
                pause = min(LONGEST_PAUSE_S, 2 * pause)
            else:
                self.error = earlier_error  # a failure that a retry repaired doesn't count
                return

    def finish(self) -> None:
        """See the base class."""
        self._hang_up()

    def describe(self, error: Exception) -> str:
        """See the base class."""
        if isinstance(error, (Refused, OSError)) and str(error):
            return str(getattr(error, "strerror", None) or error)
        return type(error).__name__

    def _post(self, body: bytes) -> None:
        if self._connection is None:
            if self._secure:
                context = ssl.create_default_context()
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=TIMEOUT_S, context=context
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        self._connection.request("POST", self._path, body, self._headers)
        answer = self._connection.getresponse()
        answer.read(1 << 16)
        if answer.will_close or answer.length:
            self._hang_up()
        if answer.status in (408, 429) or answer.status >= 500:
            raise OSError(f"answered {answer.status}")
        if not 200 <= answer.status < 300:  # redirections too: events are sent only to the given address
            raise Refused(f"answered {answer.status}")

    def _pause(self, seconds: float) -> bool:
        """Wait; return False where the stream is ending, so that the next attempt is the last."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._closing and (remaining := deadline - time.monotonic()) > 0:
                self._changed.wait(remaining)
            return not self._closing

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
