"""Why FFmpeg can't open a file or an address, where it says the same of everything. In the reader's process alone."""

from __future__ import annotations

import http.client
import ssl
import struct
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from vitedge.data.file_kinds import is_web_page

PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}
_HEAD = 4096  # bytes of an answer that are looked at


class Answer(NamedTuple):
    """What a web server answers."""

    status: int
    content_type: str  # in lower case, without parameters
    location: str  # of a redirect, absolute
    head: bytes  # its first bytes

    @property
    def holds_pictures(self) -> bool:
        """Whether it's JPEG pictures, in whatever wrapping."""
        return self.content_type in ("multipart/x-mixed-replace", "image/jpeg") and b"\xff\xd8\xff" in self.head


def ask(url: str, timeout_s: float) -> Answer | None:
    """GET an address without following redirects; None: it can't be reached.

    Args:
        url: http or https, without credentials: they're never sent.
        timeout_s: for each step.
    """
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        # Nothing is sent that must be kept, and FFmpeg, which is asked to read it, doesn't verify certificates either.
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        answer = connection.getresponse()
        kind = answer.getheader("Content-Type", "").partition(";")[0].strip().lower()
        location = answer.getheader("Location") or ""
        head = answer.read1(_HEAD)
        while len(head) < _HEAD and b"\xff\xd8\xff" not in head and (piece := answer.read1(_HEAD - len(head))):
            head += piece
        return Answer(answer.status, kind, location and urljoin(url, location), head)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def cause_in_answer(answer: Answer | None) -> str | None:
    """Why an answer is no video, if that can be told."""
    if answer is None:
        return None
    if answer.content_type == "text/html" or is_web_page(answer.head):
        return "it answers with a web page, not with a video: a login page, or another path is the camera's"
    if answer.status == 200 and not answer.head:
        return "it answers with nothing"
    return None


def cause_in_file(path: Path) -> str | None:
    """Why a file is no video, if that can be told."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if not head:
                return "the file is empty"
            if is_web_page(head):
                return "it's a web page (HTML) that was saved as a video"
            if head[4:8] == b"ftyp" and b"moov" not in _boxes(path):
                return "it's an MP4 file without its index (moov): it was cut off, or is still being written"
    except OSError:
        pass
    return None


def _boxes(path: Path) -> set[bytes]:
    """Types of an MP4 file's outermost boxes (ISO 14496-12, 4.2)."""
    types: set[bytes] = set()
    at, end = 0, path.stat().st_size
    with path.open("rb") as file:
        while at + 8 <= end:
            file.seek(at)
            head = file.read(16)
            size, kind = struct.unpack(">I4s", head[:8])
            if size == 1 and len(head) == 16:  # a 64-bit size follows
                size = struct.unpack(">Q", head[8:])[0]
            types.add(kind)
            if size < 8:  # 0: to the end of the file
                break
            at += size
    return types


def same_server(url: str, location: str) -> bool:
    """Whether a redirect stays where it was: the same scheme, host and port, or from http to https of that host."""
    here, there = urlsplit(url), urlsplit(location)
    if (here.scheme, here.hostname) == ("http", there.hostname) and there.scheme == "https":
        return there.port in (None, 443)
    ports = (here.port or PORTS.get(here.scheme), there.port or PORTS.get(there.scheme))
    return (here.scheme, here.hostname) == (there.scheme, there.hostname) and ports[0] == ports[1]
