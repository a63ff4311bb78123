"""Parse sources that users type into what readers open. The grammar is that of jetson-inference.

=================================  =======================================================================
``0``, ``/dev/video0``             a V4L2 camera; also ``/dev/v4l/by-id/…`` and ``v4l2:///dev/video0``
``csi://0``                        a CSI camera through the system's GStreamer
``rtsp://``, ``rtsps://``          a network camera, over TCP or UDP
``http://``, ``https://``          MJPEG or HLS (live), or a video file (by its suffix)
``http+snapshot://``               a JPEG picture that is asked for at a rate; also ``https+snapshot://``
``rtp:// udp:// tcp:// srt://``    whatever FFmpeg reads there, live
``clip.mp4``                       a video file
``folder/``                        its pictures, in the order of their names
``"parts/*.mp4"``                  a quoted pattern of pictures or videos, in the order of their names
``test://``                        a generated picture with known labels and times (:mod:`vitedge.streaming.pattern`)
``NAME=SOURCE``                    any of them under a name of your own
=================================  =======================================================================

User name and password are taken out of a URL at once; what is left can be shown. They reach the reader over a pipe.
"""

from __future__ import annotations

import glob
import netrc
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from vitedge.core.environment import secret
from vitedge.core.schema import readable
from vitedge.data.picture_names import SUFFIXES as PICTURE_SUFFIXES
from vitedge.errors import StreamError, UsageError, nearest
from vitedge.streaming.address import ESCAPES, IN_PATH, Credentials, shown, split_url

Kind = Literal["camera", "csi", "network", "polled", "videos", "pictures", "test"]

VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".flv", ".ts", ".m2ts", ".mpg", ".mpeg", ".wmv")
RTSP = ("rtsp", "rtsps")
NETWORK = (*RTSP, "http", "https", "rtp", "udp", "tcp", "srt", "rtmp")
LONGEST_URL = 4096  # FFmpeg's buffers
LONGEST_RTSP_PATH, LONGEST_RTSP_PASSWORD = 2047, 127  # FFmpeg cuts off what is longer; the latter with user name
SNAPSHOT = "+snapshot"
SCHEMES = (*NETWORK, f"http{SNAPSHOT}", f"https{SNAPSHOT}", "v4l2", "csi", "file", "test")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9_-]{1,64})=(?P<uri>.+)", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """One source, ready to be opened by a reader."""

    name: str  # in every record
    uri: str  # for people: without credentials and query values
    kind: Kind
    live: bool  # its end means reconnecting
    targets: tuple[str, ...] = field(repr=False)  # opened one after another; a query may hold a token
    credentials: Credentials | None = None


def parse_source(text: str, credentials: Credentials | None = None) -> Source:
    """Parse one source.

    Args:
        text: as in this module's table.
        credentials: for a network source that has none of its own.

    Raises:
        UsageError: a scheme or spelling that isn't in the table.
        StreamError: a file or folder that isn't there.
    """
    named = _NAMED.fullmatch(text)
    if named and (_URL.match(named["uri"]) or not os.path.lexists(text)):
        return replace(parse_source(named["uri"], credentials), name=named["name"])
    if text.isdecimal():
        text = f"/dev/video{int(text)}"
    url = _URL.fullmatch(text)
    if url is None:
        return _local(text)
    scheme, rest = url["scheme"].lower(), url["rest"]
    if scheme == "file":
        return _local(unquote(rest))
    if scheme == "v4l2":
        return _camera("/dev/video" + rest if rest.isdecimal() else rest)
    if scheme == "csi":
        if not rest.isdecimal():
            raise _misspelt(text, "a CSI camera is named by its number", "write, for example: csi://0")
        return Source(f"csi{rest}", f"csi://{rest}", "csi", True, (rest,))
    if scheme == "test":
        from vitedge.streaming.pattern import parse_pattern

        live = parse_pattern(rest).live
        return Source("test", text, "test", live, (rest,))
    if scheme.removesuffix(SNAPSHOT) in (("http", "https") if scheme.endswith(SNAPSHOT) else NETWORK):
        return _network(scheme, rest, credentials)
    raise _misspelt(text, f"no source begins with {scheme}://{nearest(scheme, SCHEMES)}", "see: vitedge stream --help")


def parse_sources(texts: Sequence[str], credentials: str | None = None) -> list[Source]:
    """Parse several sources, and give each a name of its own.

    Args:
        texts: sources.
        credentials: the option ``--credentials``: a file, or ``env:NAME``.

    Raises:
        UsageError: none, or one that isn't in the table; credentials that can't be read, or are too long.
        StreamError: a file or folder that isn't there.
    """
    if not texts:
        raise UsageError("classify a stream", "no source is given", "name one, for example: test://")
    by_host = read_credentials(credentials) if credentials else {}
    sources: list[Source] = []
    for text in texts:
        source = parse_source(text)
        if source.kind in ("network", "polled") and source.credentials is None:
            host = urlsplit(source.targets[0]).hostname or ""
            source = replace(source, credentials=by_host.get(host, by_host.get("")))
        _refuse_long_password(source)
        sources.append(source)
    names: set[str] = set()
    for index, source in enumerate(sources):
        name, number = source.name, 1
        while name in names:
            number += 1
            name = f"{source.name}-{number}"
        names.add(name)
        sources[index] = replace(source, name=readable(name))
    return sources


def _refuse_long_password(source: Source) -> None:
    if source.credentials is None or source.uri.partition("://")[0] not in RTSP:
        return
    length = len(source.credentials.in_url("rtsp://")) - len("rtsp://@")
    if length > LONGEST_RTSP_PASSWORD:
        raise UsageError(
            f"classify the stream {source.uri}",
            f"user name and password have {length} characters in the address, and FFmpeg would cut off the end",
            f"shorten the password: together they may have {LONGEST_RTSP_PASSWORD}",
        )


def read_credentials(where: str) -> Mapping[str, Credentials]:
    """Read user names and passwords by host; the key ``""`` applies to every other host.

    Args:
        where: a file, or ``env:NAME`` for an environment variable. Either holds one line ``user:password``, or netrc's
            ``machine HOST login USER password PASSWORD``.

    Raises:
        UsageError: nothing there, or neither form; the content is never shown.
    """
    action = f"read the credentials from {where}"
    if where.startswith("env:"):
        text = secret(where.removeprefix("env:"), action, "set it to user:password")
    else:
        try:
            text = Path(where).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it isn't a text file"
            raise UsageError(action, f"{reason}", "name a readable file, or env:NAME") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) == 1 and not lines[0].lstrip().startswith(("machine ", "default ")):
        user, colon, password = lines[0].strip().partition(":")
        if colon:
            return {"": Credentials(user, password)}
    elif lines:
        try:
            return _from_netrc(text)
        except netrc.NetrcParseError:
            pass
    raise UsageError(
        action,
        "it is neither user:password nor the lines of a .netrc file",
        "write one line user:password, or lines as in a .netrc file",
    )


def _from_netrc(text: str) -> Mapping[str, Credentials]:
    descriptor = os.memfd_create("credentials")  # the parser takes a file's name, and nothing may reach a disk
    try:
        os.write(descriptor, text.encode())
        hosts = netrc.netrc(f"/proc/self/fd/{descriptor}").hosts
    finally:
        os.close(descriptor)
    return {
        "" if host == "default" else host: Credentials(login or "", password or "")
        for host, (login, _, password) in hosts.items()
    }


def _misspelt(text: str, reason: str, hint: str) -> UsageError:
    return UsageError(f"classify the stream {shown(text)}", reason, hint)


def _camera(path: str) -> Source:
    return Source(Path(path).name, path, "camera", True, (path,))


def _local(text: str) -> Source:
    action = f"classify the stream {shown(text)}"
    path = Path(text)
    if text.startswith("/dev/"):
        return _camera(text)
    if os.path.isdir(text):  # noqa: PTH112 - as below
        from vitedge.data.images import ImageSet

        images = ImageSet.open(path, action=action)
        files = tuple(str(path / record.name) for record in images.records)
        return Source(path.resolve().name or text, text, "pictures", False, files)
    if os.path.exists(text):  # noqa: PTH110 - Path.exists raises for names that are too long
        return Source(path.name, text, _kind([text]), False, (text,))
    if any(sign in text for sign in "*?["):
        paths = tuple(sorted(name for name in glob.glob(text) if Path(name).is_file()))  # noqa: PTH207 - may be absolute
        if not paths:
            raise StreamError(
                action, "no file matches this pattern", "correct the pattern, and quote it against the shell"
            )
        return Source(text, text, _kind(paths), False, paths)
    raise StreamError(action, "there is no such file, folder or camera", "see the sources: vitedge stream --help")


def _kind(files: Sequence[str]) -> Kind:
    return "pictures" if all(Path(name).suffix.lower() in PICTURE_SUFFIXES for name in files) else "videos"


def _network(scheme: str, rest: str, credentials: Credentials | None) -> Source:
    hint = f"{ESCAPES}, or use: --credentials FILE"
    _, host, path, own = split_url(f"{scheme}://{rest}", f"classify the stream {scheme}://***", hint)
    try:
        parts = urlsplit(f"{scheme}://{host}{path}")
        named, _ = parts.hostname, parts.port
    except ValueError:
        raise _misspelt(f"{scheme}://{host}", "the host or port is invalid", "write scheme://host:port/path") from None
    if not named:
        host = f"0.0.0.0{host}"  # jetson-inference writes rtp://@:1234 for a port of this machine
    polled = scheme.endswith(SNAPSHOT)
    live = scheme not in ("http", "https") or Path(parts.path).suffix.lower() not in VIDEO_SUFFIXES
    public = IN_PATH.sub(r"\1…", parts.path)
    uri = f"{scheme}://{host}{public}" + (f"?{_without_values(parts.query)}" if parts.query else "")
    target = f"{scheme.removesuffix(SNAPSHOT)}://{host}{path}"
    for part, length, longest in (
        ("address", len(target), LONGEST_URL),
        ("path", len(path) if scheme in RTSP else 0, LONGEST_RTSP_PATH),
    ):
        if length > longest:
            reason = f"its {part} has {length:,} characters, and FFmpeg would cut off the end"
            raise UsageError(f"classify the stream {scheme}://{host}/…", reason, f"use one of at most {longest:,}")
    kind: Kind = "polled" if polled else "network"
    return Source(f"{host}{public}".rstrip("/"), uri, kind, live, (target,), own or credentials)


def _without_values(query: str) -> str:
    return "&".join(re.sub(r"=.*", "=…", part) for part in query.split("&"))
