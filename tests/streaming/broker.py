"""A small MQTT 3.1.1 broker for one client after another: it acknowledges and keeps what is published."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import NamedTuple


class Published(NamedTuple):
    topic: str
    payload: bytes
    qos: int
    retained: bool


class Broker:
    """Listens on loopback; ``refuse`` is the return code of CONNACK (5: not authorized)."""

    def __init__(self, port: int = 0, refuse: int = 0, *, acknowledges: bool = True) -> None:
        self._listening = socket.create_server(("127.0.0.1", port))
        self.port = self._listening.getsockname()[1]
        self.connects: list[bytes] = []
        self.published: list[Published] = []
        self._refuse, self._acknowledges = refuse, acknowledges
        self._clients: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up and stop listening."""
        with contextlib.suppress(OSError):  # a second time
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._clients.append(client)
                with client, contextlib.suppress(OSError, EOFError):
                    self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        while True:
            head = _exactly(client, 1)[0]
            body = _exactly(client, _length(client))
            kind = head >> 4
            if kind == 1:  # CONNECT
                self.connects.append(body)
                client.sendall(bytes((0x20, 2, 0, self._refuse)))
                if self._refuse:
                    return
            elif kind == 3:  # PUBLISH
                qos, end = head >> 1 & 3, 2 + int.from_bytes(body[:2], "big")
                topic, rest = body[2:end].decode(), body[end:]
                if qos:
                    number, rest = rest[:2], rest[2:]
                    if self._acknowledges:
                        client.sendall(b"\x40\x02" + number)  # PUBACK
                self.published.append(Published(topic, rest, qos, bool(head & 1)))
            elif kind == 12:  # PINGREQ
                client.sendall(b"\xd0\x00")
            elif kind == 14:  # DISCONNECT
                return


def _exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = client.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _length(client: socket.socket) -> int:
    """The remaining length: seven bits a byte, the lowest first."""
    value, shift = 0, 0
    while True:
        byte = _exactly(client, 1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
        shift += 7
