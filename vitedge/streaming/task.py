"""The task of a reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vitedge.core.schema import Record
from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.clip import SUFFIX
from vitedge.streaming.address import Credentials
from vitedge.streaming.settings import StreamSettings, Transport
from vitedge.streaming.uri import Kind, Source
from vitedge.streaming.view import parse_crop, parse_flip

if TYPE_CHECKING:
    from vitedge.formats.artifact import Artifact


class Task(Record):
    """One connection of one source, as it goes to the reader over a pipe. It holds the password: never print it."""

    name: str
    kind: Kind
    live: bool
    targets: tuple[str, ...]
    user: str | None
    password: str | None
    artifact: str  # name
    preprocessing: Preprocessing
    turn: tuple[int, bool]
    crop: tuple[float, float, float, float, bool] | None
    newest_only: bool  # the policy ``latest``
    every: int  # one of this many frames is passed on
    loops: int  # further passes over a file; -1: endless
    gap_s: float
    connect_s: float
    stall_s: float
    stream: int | None  # of a container, as it counts them
    hardware: str | None
    transport: Transport  # of RTSP
    poll_hz: float  # snapshots a second
    other_hosts: bool  # whether redirects and playlists may lead to other hosts
    camera: dict[str, str]  # width, height, rate, codec, where the settings name them
    record: str | None  # the clip's path
    memory: int  # file descriptors
    filled: int
    emptied: int

    def encode(self) -> bytes:
        """Encode as one line; file names in any encoding survive, which msgspec's own JSON doesn't take."""
        return json.dumps(msgspec.to_builtins(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Task:
        """Decode a line of :meth:`encode`."""
        return msgspec.convert(json.loads(line), cls)

    @classmethod
    def of(
        cls, source: Source, settings: StreamSettings, artifact: Artifact, *, memory: int, filled: int, emptied: int
    ) -> Task:
        """Return the next connection of a source.

        Args:
            source: what is opened.
            settings: how.
            artifact: what frames are prepared for.
            memory: file descriptor of the block that reader and engine share.
            filled: eventfd that the reader writes to, for a frame or a change.
            emptied: eventfd that the engine writes to, for a buffer that is free again.
        """
        secret = source.credentials
        record = None
        if settings.record is not None:
            safe = "".join(sign if sign.isalnum() or sign in "-._" else "_" for sign in source.name)
            record = str(Path(settings.record) / f"{safe}{SUFFIX}")
        return cls(
            name=source.name,
            kind=source.kind,
            live=source.live,
            targets=source.targets,
            user=secret.user if secret else None,
            password=secret.password if secret else None,
            artifact=artifact.manifest.name,
            preprocessing=artifact.manifest.preprocessing,
            turn=parse_flip(settings.flip),
            crop=None if settings.crop is None else parse_crop(settings.crop),
            newest_only=settings.newest_only(source.live),
            every=settings.one_of,
            loops=settings.input_loop,
            gap_s=settings.gap,
            connect_s=settings.connect_timeout,
            stall_s=settings.silence_s(source.kind),
            stream=settings.stream,
            hardware=settings.hwaccel,
            transport=settings.rtsp_transport,
            poll_hz=settings.poll,
            other_hosts=settings.allow_other_hosts,
            camera=settings.camera,
            record=record,
            memory=memory,
            filled=filled,
            emptied=emptied,
        )

    def __repr__(self) -> str:
        return f"Task({self.name!r})"

    @property
    def credentials(self) -> Credentials | None:
        """User name and password; None: none."""
        return None if self.user is None else Credentials(self.user, self.password or "")

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts that no message may contain."""
        return () if self.credentials is None else self.credentials.secrets

    @property
    def urls(self) -> tuple[str, ...]:
        """The targets, with user and password where they have them."""
        credentials = self.credentials
        return self.targets if credentials is None else tuple(map(credentials.in_url, self.targets))
