"""Find an RTSP server's redirect. FFmpeg would follow it anywhere, and send the password to any server that asks."""

from __future__ import annotations

import socket
import ssl
from typing import BinaryIO
from urllib.parse import urlsplit

from vitedge.streaming.address import Credentials
from vitedge.streaming.authentication import Authenticator
from vitedge.streaming.causes import PORTS

_MOST_LINE, _MOST_LINES = 4096, 100


def redirect_of(url: str, credentials: Credentials | None, timeout_s: float) -> str | None:
    """Return the location that DESCRIBE is redirected to (RFC 2326, 10.2 and 11.3); None: nowhere, or it's unknown.

    Args:
        url: without credentials.
        credentials: given to this server alone, as it asks for them; None: there are none.
        timeout_s: for each step.
    """
    parts = urlsplit(url)
    try:
        address = parts.hostname or "", parts.port or PORTS[parts.scheme]
        with socket.create_connection(address, timeout_s) as plain, _secured(plain, parts.scheme) as connection:
            status, headers = _describe(connection, url, None)
            if status == 401 and credentials is not None:
                authenticator = Authenticator(credentials)
                authenticator.challenge([headers.get("www-authenticate", "")])
                status, headers = _describe(connection, url, authenticator.header("DESCRIBE", url))
            return headers.get("location") if 300 <= status < 400 else None
    except (OSError, ValueError, IndexError):
        return None


def _describe(connection: socket.socket, url: str, authorization: str | None) -> tuple[int, dict[str, str]]:
    """Return status and headers of the answer to DESCRIBE."""
    head = f"DESCRIBE {url} RTSP/1.0\r\nCSeq: {2 if authorization else 1}\r\nAccept: application/sdp\r\n"
    connection.sendall(
        f"{head}Authorization: {authorization}\r\n\r\n".encode() if authorization else f"{head}\r\n".encode()
    )
    with connection.makefile("rb") as answer:
        return _answer(answer)


def _secured(connection: socket.socket, scheme: str) -> socket.socket:
    if scheme != "rtsps":
        return connection
    # FFmpeg, which is asked to read it, doesn't verify certificates either.
    return ssl._create_unverified_context().wrap_socket(connection)


def _answer(lines: BinaryIO) -> tuple[int, dict[str, str]]:
    """Read status and headers; a body isn't read."""
    status = int(lines.readline(_MOST_LINE).split()[1])
    headers: dict[str, str] = {}
    for _ in range(_MOST_LINES):
        name, colon, value = lines.readline(_MOST_LINE).decode("latin-1").partition(":")
        if not colon:
            break
        key, value = name.strip().lower(), value.strip()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return status, headers
