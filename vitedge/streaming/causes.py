"""Find the reason why a file or an address can't be opened, where FFmpeg's messages don't tell. In the reader only."""

from __future__ import annotations

import struct
from pathlib import Path
from urllib.parse import urlsplit

from vitedge.data.file_kinds import is_web_page
from vitedge.streaming.address import redact

PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}
UNAUTHORIZED = "it wants a name and a password, or others than these (401)"


class Failure(Exception):
    """A source can't be opened, or failed later; the text is for people and holds no credentials."""


class Unavailable(Failure):
    """A source can't be reached now: another attempt may succeed."""


def cause_in_answer(content_type: str, head: bytes) -> str | None:
    """Return the reason why an HTTP answer is no video; None where it's unknown.

    Args:
        content_type: in lower case, without parameters.
        head: the answer's first bytes; none: it has none.
    """
    if content_type == "text/html" or is_web_page(head):
        return "it answers with a web page, not with a video: a login page, or another path is the camera's"
    return None if head else "it answers with nothing"


def cause_in_file(path: Path) -> str | None:
    """Return the reason why a file is no video; None where it's unknown."""
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
    """Return the types of an MP4 file's outermost boxes (ISO 14496-12, 4.2)."""
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
    """Whether a redirect goes to the same scheme, host and port, or from http to https of that host."""
    here, there = urlsplit(url), urlsplit(location)
    if (here.scheme, here.hostname) == ("http", there.hostname) and there.scheme == "https":
        return there.port in (None, 443)
    ports = (here.port or PORTS.get(here.scheme), there.port or PORTS.get(there.scheme))
    return (here.scheme, here.hostname) == (there.scheme, there.hostname) and ports[0] == ports[1]


def refuse_elsewhere(url: str, location: str, *, other_hosts: bool) -> None:
    """Follow a redirect, or an address in a playlist, only to the same host and protocol.

    Args:
        url: what was asked.
        location: where it leads.
        other_hosts: whether other hosts are allowed, too.

    Raises:
        Failure: it leads elsewhere.
    """
    here, there = urlsplit(url), urlsplit(location)
    if not there.hostname or there.scheme.removesuffix("s") != here.scheme.removesuffix("s"):
        raise Failure(f"it leads to {_elsewhere(location)}, which isn't an address of {here.scheme}")
    if there.hostname != here.hostname and not other_hosts:
        raise Failure(f"it leads to another host, {_elsewhere(location)}: name that one, or use --allow-other-hosts")


def _elsewhere(location: str) -> str:
    return redact(location.partition("?")[0])
