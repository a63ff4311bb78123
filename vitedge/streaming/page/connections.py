"""Close idle connections: after a while, and at once when others need their place."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.h11_impl import H11Protocol


class LimitedConnection(H11Protocol):
    """A connection of the page's server.

    uvicorn waits for the first request for ever, and anew with every byte. Here a connection may be without a request
    in progress for :attr:`idle_s` seconds at most, however many bytes of one have come. When :attr:`most` connections
    are open, a new one takes the place of the one that has been idle for longest; if all have requests in progress,
    uvicorn answers the new one with 503 (its ``limit_concurrency``).
    """

    idle_s: ClassVar[float]
    most: ClassVar[int]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See :class:`asyncio.Protocol`."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._timer = self.loop.call_later(self.idle_s, self._expire)
        others = [each for each in cast("set[Any]", self.connections) if each is not self and each.idle]
        if len(self.connections) >= self.most and others:
            min(others, key=lambda each: each._idle_since).close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Handle the end of a response; uvicorn calls it."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """Whether no request is in progress: half a header isn't one yet."""
        return self.cycle is None or self.cycle.response_complete

    def close(self) -> None:
        """Close the connection, and stop counting it."""
        self.connections.discard(self)
        self.transport.abort()

    def _expire(self) -> None:
        left_s = self._idle_since + self.idle_s - self.loop.time() if self.idle else self.idle_s
        if left_s <= 0:
            self.close()
        else:
            self._timer = self.loop.call_later(left_s, self._expire)
