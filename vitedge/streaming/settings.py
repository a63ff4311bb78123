"""Settings of a stream: the same names on the command line, in a TOML file and in Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_args, get_type_hints

from msgspec import Meta

from vitedge.core.options import Flag, filled, from_file, time_flag
from vitedge.core.schema import Record
from vitedge.errors import UsageError, nearest

Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Transport = Literal["tcp", "udp"]
Side = Annotated[int, Meta(ge=1, le=16384)]
PAGE = "127.0.0.1:8042"
ACTION = "classify a stream"
FRAMES, CONNECTION, LABELS, OUTPUT, RUNNING = "Frames", "Connection", "Labels", "Output", "Running"


class StreamSettings(Record, rename="kebab"):
    """Settings of a stream; in a TOML file a name has hyphens, in Python underscores."""

    artifact: str | None = None
    source: tuple[str, ...] = ()
    policy: Annotated[
        str | None,
        Flag(
            "Frames to classify: latest, every or every:N.",
            unit="policy",
            default="latest for live sources, every for files",
            group=FRAMES,
        ),
    ] = None
    every: Annotated[
        Annotated[int, Meta(ge=1)], Flag("Classify one frame out of this number.", unit="frames", group=FRAMES)
    ] = 1
    crop: Annotated[
        str | None,
        Flag(
            "Region to classify, in pixels, or each number with a % sign.", unit="left,top,width,height", group=FRAMES
        ),
    ] = None
    flip: Annotated[
        str,
        Flag(
            "Turn or mirror after the rotation that the stream asks for: none, counterclockwise, rotate-180, "
            "clockwise, horizontal, vertical, upper-right-diagonal, upper-left-diagonal.",
            names=("--flip", "--input-flip"),
            unit="flip",
            group=FRAMES,
        ),
    ] = "none"
    stream: Annotated[
        Annotated[int, Meta(ge=0, le=9999)] | None,
        Flag(
            "Video stream to read, by its number among all streams, as ffprobe shows it.",
            unit="number",
            default="as players choose",
            group=FRAMES,
        ),
    ] = None
    input_loop: Annotated[
        Annotated[int, Meta(ge=-1)],
        Flag("Further passes over a file; -1 repeats it forever.", unit="passes", group=FRAMES),
    ] = 0
    input_width: Annotated[Side | None, Flag("Width to request from a camera.", unit="pixels", group=FRAMES)] = None
    input_height: Annotated[Side | None, Flag("Height to request from a camera.", unit="pixels", group=FRAMES)] = None
    input_rate: Annotated[
        Annotated[float, Meta(ge=0.01, le=1000)] | None,
        Flag("Frame rate to request from a camera, or to play pictures at.", unit="frames per second", group=FRAMES),
    ] = None
    input_codec: Annotated[
        str | None, Flag("Codec to request from a V4L2 camera: mjpeg, h264, yuyv422.", unit="codec", group=FRAMES)
    ] = None
    hwaccel: Annotated[
        str | None,
        Flag("Hardware that decodes: cuda, vaapi, qsv, …; an error where it can't.", unit="name", group=FRAMES),
    ] = None
    credentials: Annotated[
        str | None,
        Flag("A file, or env:NAME, with user:password or lines as in .netrc.", unit="path", group=CONNECTION),
    ] = None
    allow_other_hosts: Annotated[
        bool,
        Flag("Follow redirects and playlists to other hosts, too; they don't get the password.", group=CONNECTION),
    ] = False
    rtsp_transport: Annotated[
        Transport, Flag("How RTSP cameras send their packets: tcp or udp.", unit="transport", group=CONNECTION)
    ] = "tcp"
    poll: Annotated[
        Annotated[float, Meta(ge=0.001, le=100)],
        Flag(
            "How often the picture of an http+snapshot:// source is asked for.",
            unit="pictures per second",
            group=CONNECTION,
        ),
    ] = 1.0
    connect_timeout: Annotated[
        Annotated[float, Meta(ge=0.1, le=3600)],
        time_flag("Longest time to wait for a connection.", group=CONNECTION),
    ] = 5.0
    stall_timeout: Annotated[
        Annotated[float, Meta(ge=0.1, le=3600)],
        time_flag("Longest time without a frame before reconnecting.", group=CONNECTION),
    ] = 10.0
    backoff_min: Annotated[
        Annotated[float, Meta(ge=0.01, le=3600)],
        time_flag("Pause before the first attempt to reconnect.", group=CONNECTION),
    ] = 1.0
    backoff_max: Annotated[
        Annotated[float, Meta(ge=0.01, le=3600)],
        time_flag("Longest pause between attempts to reconnect.", group=CONNECTION),
    ] = 30.0
    retries: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Flag(
            "Consecutive failures after which a source is given up.", unit="failures", default="never", group=CONNECTION
        ),
    ] = None
    gap: Annotated[
        Annotated[float, Meta(ge=0.001, le=3600)],
        time_flag("Time without a frame after which the label leaves and smoothing begins again.", group=CONNECTION),
    ] = 0.5
    top_k: Annotated[
        Annotated[int, Meta(ge=1, le=100)],
        Flag("Number of classes in a record.", names=("--top-k", "-k"), unit="classes", group=LABELS),
    ] = 5
    threshold: Annotated[
        Fraction, Flag("Least probability at which a label appears.", unit="probability", group=LABELS)
    ] = 0.0
    exit_threshold: Annotated[
        Fraction | None,
        Flag("Least probability at which a label stays.", unit="probability", default="--threshold", group=LABELS),
    ] = None
    smoothing: Annotated[
        Seconds, time_flag("Time constant of the smoothing over frames; 0 smooths nothing.", group=LABELS)
    ] = 0.0
    switch_after: Annotated[
        Seconds, time_flag("Time that a new label must lead before it replaces the old one.", group=LABELS)
    ] = 0.0
    json: Annotated[
        str | None, Flag("Write records as JSON Lines to a file, or to stdout with -.", unit="path", group=OUTPUT)
    ] = None
    csv: Annotated[
        str | None, Flag("Write records as a table to a file, or to stdout with -.", unit="path", group=OUTPUT)
    ] = None
    events: Annotated[
        str | None, Flag("Write events as JSON Lines to a file, or to stdout with -.", unit="path", group=OUTPUT)
    ] = None
    video: Annotated[str | None, Flag("Write a video with the labels drawn in.", unit="path", group=OUTPUT)] = None
    snapshot_on: Annotated[
        tuple[str, str] | None,
        Flag(
            "Keep a JPEG with the label whenever an event happens (enter, exit, lost, …), in a folder.",
            unit="event> <folder",
            group=OUTPUT,
        ),
    ] = None
    snapshot_count: Annotated[
        Annotated[int, Meta(ge=1)],
        Flag("Number of snapshots that are kept; the oldest ones are removed.", unit="pictures", group=OUTPUT),
    ] = 1000
    snapshot_days: Annotated[
        Annotated[float, Meta(ge=0.01, le=36_500)],
        Flag("Time for which snapshots are kept.", unit="days", group=OUTPUT),
    ] = 30.0
    webhook: Annotated[str | None, Flag("Send events as JSON by HTTP POST.", unit="url", group=OUTPUT)] = None
    mqtt: Annotated[
        str | None, Flag("Publish labels and events to mqtt://HOST:PORT/TOPIC.", unit="url", group=OUTPUT)
    ] = None
    mqtt_publish: Annotated[
        Literal["labels", "events", "records"],
        Flag(
            "Messages to publish: labels with their probabilities; events, too; or a record of every frame, too.",
            group=OUTPUT,
        ),
    ] = "events"
    mqtt_discovery: Annotated[
        bool, Flag("Announce each source to Home Assistant, by MQTT discovery.", group=OUTPUT)
    ] = False
    metrics: Annotated[
        str | None, Flag("Serve Prometheus metrics and the health check at HOST:PORT.", unit="host:port", group=OUTPUT)
    ] = None
    record: Annotated[
        str | None,
        Flag(
            "Keep frames and arrival times in a folder, to replay them with `vitedge bench --replay`.",
            unit="path",
            group=OUTPUT,
        ),
    ] = None
    headless: Annotated[bool, Flag("Serve no live page.", group=OUTPUT)] = False
    page: Annotated[str, Flag("Address of the live page.", unit="host:port", group=OUTPUT)] = PAGE
    token: Annotated[
        str | None,
        Flag("A file, or env:NAME, with the token that viewers on other machines need.", unit="path", group=OUTPUT),
    ] = None
    duration: Annotated[Seconds | None, time_flag("Stop after this time.", group=RUNNING)] = None
    threads: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Flag("Number of compute threads; 0 uses all physical cores.", default="the target's", group=RUNNING),
    ] = None
    device: Annotated[
        str | None, Flag("Device, by its name in the runtime.", default="the target's", unit="name", group=RUNNING)
    ] = None
    quiet: Annotated[bool, Flag("Write nothing to stderr but errors.", names=("--quiet", "-q"), group=RUNNING)] = False

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            UsageError: it does.
        """
        from vitedge.streaming.view import parse_crop, parse_flip

        parse_policy(self.policy)
        parse_flip(self.flip)
        if self.snapshot_on is not None:
            parse_event(self.snapshot_on[0])
        if self.crop is not None:
            parse_crop(self.crop)
        if self.exit_threshold is not None and self.exit_threshold > self.threshold:
            raise UsageError(
                ACTION,
                f"--exit-threshold {self.exit_threshold:g} is above --threshold {self.threshold:g}",
                "lower --exit-threshold, or raise --threshold",
            )
        if self.backoff_min > self.backoff_max:
            raise UsageError(ACTION, "--backoff-min is above --backoff-max", "correct one of them")
        if self.mqtt is None and (self.mqtt_discovery or self.mqtt_publish != "events"):
            raise UsageError(
                ACTION, "an MQTT option is given without a broker's address", "add --mqtt mqtt://HOST/TOPIC"
            )
        if (self.input_width is None) != (self.input_height is None):
            raise UsageError(ACTION, "a picture's size needs width and height", "give --input-width and --input-height")
        if len([target for target in (self.json, self.csv, self.events) if target == "-"]) > 1:
            raise UsageError(ACTION, "two outputs would share stdout", "send one of them to a file")

    def newest_only(self, live: bool) -> bool:
        """Whether a source's newest frame replaces one that still waits."""
        return live if self.policy is None else self.policy == "latest"

    def silence_s(self, kind: str) -> float:
        """Return the seconds without a frame after which a source of this kind counts as lost."""
        return self.stall_timeout + (1 / self.poll if kind == "polled" else 0)

    @property
    def one_of(self) -> int:
        """One of this many frames is classified."""
        return max(self.every, parse_policy(self.policy))

    @property
    def camera(self) -> dict[str, str]:
        """The settings that a camera is asked for."""
        camera = {
            "width": self.input_width,
            "height": self.input_height,
            "rate": self.input_rate,
            "codec": self.input_codec,
        }
        return {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in camera.items() if value}


def parse_policy(text: str | None) -> int:
    """Parse ``--policy``; return the N of which one frame is classified.

    Raises:
        UsageError: none of ``latest``, ``every``, ``every:N``.
    """
    if text in (None, "latest", "every"):
        return 1
    if match := re.fullmatch(r"every:([1-9]\d{0,8})", text or ""):
        return int(match[1])
    raise UsageError(
        f"use the policy '{text}'",
        f"there's no such policy{nearest(str(text), ('latest', 'every'))}",
        "use latest, every or every:N",
    )


def parse_event(text: str) -> None:
    """Refuse an unknown kind of event.

    Raises:
        UsageError: it isn't one of :class:`vitedge.streaming.records.Event`.
    """
    from vitedge.streaming.records import Event

    kinds = get_args(get_type_hints(Event)["kind"])
    if text not in kinds:
        reason = f"there's no such event{nearest(text, kinds)}"
        raise UsageError(f"keep a snapshot on '{text}'", reason, f"use {', '.join(kinds)}")


class StreamFields(TypedDict, total=False):
    """The fields of :class:`StreamSettings` as keywords, without artifact and sources."""

    policy: str | None
    every: int
    crop: str | None
    flip: str
    stream: int | None
    input_loop: int
    input_width: int | None
    input_height: int | None
    input_rate: float | None
    input_codec: str | None
    hwaccel: str | None
    credentials: str | Path | None
    allow_other_hosts: bool
    rtsp_transport: Transport
    poll: float
    connect_timeout: float
    stall_timeout: float
    backoff_min: float
    backoff_max: float
    retries: int | None
    gap: float
    top_k: int
    threshold: float
    exit_threshold: float | None
    smoothing: float
    switch_after: float
    json: str | Path | None
    csv: str | Path | None
    events: str | Path | None
    video: str | Path | None
    snapshot_on: tuple[str, str] | None
    snapshot_count: int
    snapshot_days: float
    webhook: str | None
    mqtt: str | None
    mqtt_publish: Literal["labels", "events", "records"]
    mqtt_discovery: bool
    metrics: str | None
    record: str | Path | None
    headless: bool
    page: str
    token: str | Path | None
    duration: float | None
    threads: int | None
    device: str | None
    quiet: bool


def read_settings(path: str | Path | None, fields: Mapping[str, Any]) -> StreamSettings:
    """Read settings from a TOML file, with ``fields`` in place of its own.

    Args:
        path: the file; None: the defaults.
        fields: by Python's names.

    Raises:
        UsageError: an unreadable file, an unknown key, a value that isn't possible.
    """
    return from_file(StreamSettings, path, fields, action=ACTION, verb="stream")


def merged(settings: StreamSettings, fields: Mapping[str, Any]) -> StreamSettings:
    """Return the settings with ``fields`` in place of their own.

    Raises:
        UsageError: an unknown name, a value that isn't possible.
    """
    return filled(StreamSettings, fields, settings, action=ACTION, verb="stream")
