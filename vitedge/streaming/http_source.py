"""Videos over HTTP: FFmpeg decodes, and our own client reads every byte. In the reader's process only."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

from vitedge.streaming.causes import Failure, Unavailable, cause_in_answer
from vitedge.streaming.http_client import Answer, Client, task_client
from vitedge.streaming.task import Task

_HEAD = 4096  # bytes that are enough to recognise an answer's kind
_ANYTHING = re.compile(rb"\S")
_MULTIPART = "multipart/x-mixed-replace"
_PART_END = re.compile(rb"\n\r?\n\s*\S|\xff\xd8")
#: A part's head as FFmpeg takes it.
_PART = re.compile(rb"(?i)\s*--[^\r\n]+\r\n(?:[^\r\n]+\r\n)*?content-type:[ \t]*image/jpeg[^\r\n]*\r\n")
_PLAYLISTS = ("application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl", "audio/x-mpegurl")


class HttpFile(io.RawIOBase):
    """An address as a file for FFmpeg, in which it may seek where the server supports range requests.

    Args:
        client: what asks.
        url: without credentials.
        begin: first byte, of a part.
        end: byte behind the part.
    """

    def __init__(self, client: Client, url: str, begin: int = 0, end: int | None = None) -> None:
        self._client, self._url, self._begin, self._end = client, url, begin, end
        self._answer = client.get(url) if begin == 0 and end is None else self._part(begin)
        self.name, self._at, self._ahead = url, 0, b""
        self._wanted = 0  # where FFmpeg reads next; it often seeks without reading
        self._size = self._answer.length

    def head(self, until: re.Pattern[bytes]) -> bytes:
        """Return the first bytes, up to enough to recognise their kind; they're read again later."""
        while len(self._ahead) < _HEAD and not until.search(self._ahead) and (data := self._answer.read(_HEAD)):
            self._ahead += data
        return self._ahead

    @property
    def content_type(self) -> str:
        """The content type in lower case, without parameters."""
        return self._answer.content_type

    @property
    def url(self) -> str:
        """The address after redirects."""
        return self._answer.url

    @property
    def size(self) -> int | None:
        """The size in bytes; None: unknown."""
        return self._size

    def read(self, size: int = -1) -> bytes:
        """See the base class: at most this many bytes, as soon as there are any."""
        if self._wanted != self._at:
            self._go(self._wanted)
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        data = data or self._answer.read(size)
        self._at = self._wanted = self._at + len(data)
        return data

    def _go(self, at: int) -> None:
        """Request the part that begins there."""
        self._answer.close()
        if at < (self._size or 0):  # behind the end the closed answer has nothing
            self._answer = self._part(self._begin + at)
        self._at, self._ahead = at, b""

    def _part(self, begin: int) -> Answer:
        """Return the part that begins at this byte of the address.

        Raises:
            Failure: the server sends no parts.
        """
        answer = self._client.get(self._url, f"bytes={begin}-{'' if self._end is None else self._end - 1}")
        if answer.status != 206:
            answer.close()
            raise Failure("its server doesn't support range requests, which this video needs")
        return answer

    def readable(self) -> bool:
        """See the base class."""
        return True

    def seekable(self) -> bool:
        """See the base class."""
        return self._size is not None and self._answer.seekable

    def tell(self) -> int:
        """See the base class."""
        return self._wanted

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See the base class."""
        self._wanted = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._wanted, io.SEEK_END: self._size or 0}[whence]
        return self._wanted

    def close(self) -> None:
        """See the base class."""
        self._answer.close()
        super().close()


class Opener(AbstractContextManager["Opener", None]):
    """Opens the addresses that FFmpeg asks for: the source itself, and those in its playlist.

    Args:
        task: what is opened.
        url: without credentials.

    Raises:
        Failure: the source can't be opened, or isn't a video.
    """

    def __init__(self, task: Task, url: str) -> None:
        self._client = task_client(task, url)
        self._refused: Failure | None = None
        self._first: HttpFile | None = HttpFile(self._client, url)
        self.url = self._first.url
        self._type = self._first.content_type
        self._head = self._first.head(_PART_END if self._type == _MULTIPART else _ANYTHING)
        reason = cause_in_answer(self._type, self._head)
        if reason is None and self._type == "image/jpeg" and self._first.size is not None:
            scheme = urlsplit(url).scheme
            reason = f"it answers with one picture: write {scheme}+snapshot:// in place of {scheme}://"
        if reason is not None:
            self._first.close()
            self._client.close()
            raise Failure(reason)

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def format(self) -> str | None:
        """FFmpeg's name of the format, where FFmpeg can't detect it; None: it can."""
        if self._type in _PLAYLISTS or self._head.startswith(b"#EXTM3U"):
            return "hls"
        if self._type == _MULTIPART and _PART.match(self._head):
            return "mpjpeg"
        # Pictures without a boundary before the first one, without any, or with headers that FFmpeg doesn't take.
        return "mjpeg" if self._type in (_MULTIPART, "image/jpeg") else None

    def __call__(self, url: str, flags: int, options: Mapping[str, Any]) -> io.IOBase:
        """See PyAV's ``io_open``."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        end = int(options.get("end_offset", 0)) or None
        try:
            if self._refused is not None:
                raise self._refused
            if url.startswith("crypto"):
                raise Failure("its segments are encrypted, which vitedge doesn't read")
            return HttpFile(self._client, url, int(options.get("offset", 0)), end)
        except Unavailable:
            return io.BytesIO()  # the segment is lost; the next one is requested
        except Failure as failure:
            self._refused = failure  # FFmpeg tries the next segment, and then the playlist; both are refused
            raise
