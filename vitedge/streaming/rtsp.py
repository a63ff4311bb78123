"""Where an RTSP server redirects to. FFmpeg would follow, and give the password to whoever asks for it there."""

from __future__ import annotations

import base64
import socket
import ssl
import urllib.request
from types import SimpleNamespace
from typing import BinaryIO
from urllib.parse import urlsplit

from vitedge.streaming.address import Credentials
from vitedge.streaming.causes import PORTS

_MOST_LINE, _MOST_LINES = 4096, 100


def redirect_of(url: str, credentials: Credentials, timeout_s: float) -> str | None:
    """The location that DESCRIBE is redirected to (RFC 2326, 10.2 and 11.3); None: nowhere, or that can't be learnt.

    Args:
        url: without credentials.
        credentials: given to this server alone, as it asks for them.
        timeout_s: for each step.
    """
    parts = urlsplit(url)
    try:
        address = parts.hostname or "", parts.port or PORTS[parts.scheme]
        with socket.create_connection(address, timeout_s) as plain, _secured(plain, parts.scheme) as connection:
            status, headers = _describe(connection, url, "")
            if status == 401:
                challenge = headers.get("www-authenticate", "")
                status, headers = _describe(connection, url, _authorization(challenge, url, credentials))
            return headers.get("location") if 300 <= status < 400 else None
    except (OSError, ValueError, IndexError):
        return None


def _describe(connection: socket.socket, url: str, authorization: str) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to DESCRIBE."""
    head = f"DESCRIBE {url} RTSP/1.0\r\nCSeq: {2 if authorization else 1}\r\nAccept: application/sdp\r\n"
    connection.sendall(f"{head}{authorization}\r\n".encode())
    with connection.makefile("rb") as answer:
        return _answer(answer)


def _secured(connection: socket.socket, scheme: str) -> socket.socket:
    if scheme != "rtsps":
        return connection
    # FFmpeg, which is asked to read it, doesn't verify certificates either.
    return ssl._create_unverified_context().wrap_socket(connection)


def _answer(lines: BinaryIO) -> tuple[int, dict[str, str]]:
    """Status and headers; a body isn't read."""
    status = int(lines.readline(_MOST_LINE).split()[1])
    headers: dict[str, str] = {}
    for _ in range(_MOST_LINES):
        name, colon, value = lines.readline(_MOST_LINE).decode("latin-1").partition(":")
        if not colon:
            break
        headers.setdefault(name.strip().lower(), value.strip())
    return status, headers


def _authorization(challenge: str, url: str, credentials: Credentials) -> str:
    """The header that answers a challenge of Basic or Digest (RFC 7617, RFC 7616)."""
    scheme, _, rest = challenge.partition(" ")
    user, password = credentials.user, credentials.password
    if scheme.lower() == "basic":
        return f"Authorization: Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}\r\n"
    if scheme.lower() != "digest":
        raise ValueError(scheme)
    digest = urllib.request.AbstractDigestAuthHandler(_Known(user, password))
    request = SimpleNamespace(full_url=url, selector=url, data=None, get_method=lambda: "DESCRIBE")
    fields = urllib.request.parse_keqv_list(urllib.request.parse_http_list(rest))
    answer = digest.get_authorization(request, fields)  # type: ignore[arg-type]
    return f"Authorization: Digest {answer}\r\n"


class _Known(urllib.request.HTTPPasswordMgr):
    """One name and password for everything: whom they're for is known already."""

    def __init__(self, user: str, password: str) -> None:
        super().__init__()
        self._pair = user, password

    def find_user_password(self, realm: str, authuri: str) -> tuple[str, str]:
        """See the base."""
        return self._pair
