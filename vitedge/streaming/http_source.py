"""Videos over HTTP: FFmpeg decodes, and every byte comes over our own client. In the reader's process alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

from vitedge.streaming.causes import Failure, Unavailable, cause_in_answer
from vitedge.streaming.http_client import Client, task_client
from vitedge.streaming.task import Task

_HEAD = 4096  # bytes at which the kind of an answer shows
_PLAYLISTS = ("application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl", "audio/x-mpegurl")


class HttpFile(io.RawIOBase):
    """An address as a file for FFmpeg, in which it may seek where the server sends parts.

    Args:
        client: what asks.
        url: without credentials.
        begin: first byte, of a part.
        end: byte behind the part.
    """

    def __init__(self, client: Client, url: str, begin: int = 0, end: int | None = None) -> None:
        self._client, self._url, self._begin, self._end = client, url, begin, end
        part = None if begin == 0 and end is None else _part(begin, end)
        self._answer = client.get(url, part)
        if part is not None and self._answer.status != 206:
            self._answer.close()
            raise Failure("its server doesn't send parts of a file")
        self.name, self._at, self._ahead = url, 0, b""
        self._size = self._answer.length

    def head(self) -> bytes:
        """The first bytes that are no line ends, without reading past them."""
        while len(self._ahead) < _HEAD and not self._ahead.strip() and (data := self._answer.read(_HEAD)):
            self._ahead += data
        return self._ahead

    @property
    def content_type(self) -> str:
        """In lower case, without parameters."""
        return self._answer.content_type

    @property
    def url(self) -> str:
        """Where redirects ended."""
        return self._answer.url

    @property
    def size(self) -> int | None:
        """Bytes; None: unknown."""
        return self._size

    def read(self, size: int = -1) -> bytes:
        """See the base: at most so many bytes, as soon as there are any."""
        if self._answer.closed:
            self._answer = self._client.get(self._url, _part(self._begin + self._at, self._end))
            if self._answer.status != 206:
                raise Failure("its server doesn't send parts of a file")
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        data = data or self._answer.read(size)
        self._at += len(data)
        return data

    def readable(self) -> bool:
        """See the base."""
        return True

    def seekable(self) -> bool:
        """See the base."""
        return self._size is not None and self._answer.seekable

    def tell(self) -> int:
        """See the base."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See the base. The next read asks for the part that begins there."""
        assert self._size is not None
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at != self._at:
            self._at, self._ahead = at, b""
            self._answer.close()
        return self._at

    def close(self) -> None:
        """See the base."""
        self._answer.close()
        super().close()


def _part(begin: int, end: int | None) -> str:
    return f"bytes={begin}-{'' if end is None else end - 1}"


class Opener(AbstractContextManager["Opener", None]):
    """Opens what FFmpeg asks for: the source itself, and what its playlist names.

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
        self._head, self._type = self._first.head(), self._first.content_type
        reason = cause_in_answer(self._type, self._head)
        if reason is None and self._type == "image/jpeg" and self._first.size is not None:
            reason = f"it answers with one picture: poll it as {urlsplit(url).scheme}+snapshot://"
        if reason is not None:
            self._first.close()
            self._client.close()
            raise Failure(reason)

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def format(self) -> str | None:
        """FFmpeg's name of what is sent, where it can't tell that by itself; None: it can."""
        if self._type in _PLAYLISTS or self._head.startswith(b"#EXTM3U"):
            return "hls"
        if self._type == "multipart/x-mixed-replace" and self._head.lstrip().startswith(b"--"):
            return "mpjpeg"
        # Pictures without a boundary before the first one, or without any.
        return "mjpeg" if self._type in ("multipart/x-mixed-replace", "image/jpeg") else None

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
            return io.BytesIO()  # a segment that is lost; the next one is asked for
        except Failure as failure:
            self._refused = failure  # FFmpeg tries the next segment, and then the playlist: neither is given
            raise
