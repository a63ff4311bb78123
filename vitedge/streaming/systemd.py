"""Notify systemd units of ``Type=notify`` with a watchdog (``sd_notify(3)``): a datagram to $NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from vitedge.streaming.records import Item, Status
from vitedge.streaming.sink import QueuedSink

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SystemdSink(QueuedSink):
    """Reports readiness with the first status; each further one resets the watchdog and reports the sources' states."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._first = True
        super().__init__("systemd", (Status,), 2)

    def write(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class."""
        assert isinstance(item, Status)
        states = ", ".join(f"{source.name} {source.state} {source.classified_hz:.1f}/s" for source in item.sources)
        self._tell(f"{'READY=1' if self._first else 'WATCHDOG=1'}\nSTATUS={states}")
        self._first = False

    def finish(self) -> None:
        """See the base class."""
        self._tell("STOPPING=1")

    def _tell(self, text: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(1)
            sender.sendto(text.encode(), self._address)


def systemd_sinks() -> list[SystemdSink]:
    """Return one sink, where a service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    return [SystemdSink(address)] if address else []
