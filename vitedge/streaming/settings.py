"""How a stream runs: the same names on the command line, in a TOML file and in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vitedge.core.schema import Record, load_toml
from vitedge.errors import UsageError, nearest

Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Side = Annotated[int, Meta(ge=1, le=16384)]
PAGE = "127.0.0.1:8042"


class Settings(Record, rename="kebab"):
    """Every flag of ``vitedge stream``; in a TOML file a name has hyphens, in Python underscores."""

    artifact: str | None = None
    source: tuple[str, ...] = ()
    # which frames
    policy: str | None = None  # latest, every, every:N; None: latest for live sources, every for files
    every: Annotated[int, Meta(ge=1)] = 1
    crop: str | None = None
    flip: str = "none"
    input_loop: Annotated[int, Meta(ge=-1)] = 0
    input_width: Side | None = None
    input_height: Side | None = None
    input_rate: Annotated[float, Meta(ge=0.01, le=1000)] | None = None
    input_codec: str | None = None
    hwaccel: str | None = None
    # connecting
    credentials: str | None = None
    connect_timeout: Annotated[float, Meta(ge=0.1, le=3600)] = 5.0
    stall_timeout: Annotated[float, Meta(ge=0.1, le=3600)] = 10.0
    backoff_min: Annotated[float, Meta(ge=0.01, le=3600)] = 1.0
    backoff_max: Annotated[float, Meta(ge=0.01, le=3600)] = 30.0
    retries: Annotated[int, Meta(ge=0)] | None = None  # attempts in a row that may fail; None: for ever
    gap: Annotated[float, Meta(ge=0.001, le=3600)] = 0.5
    # labels
    top_k: Annotated[int, Meta(ge=1, le=100)] = 5
    threshold: Fraction = 0.0
    exit_threshold: Fraction | None = None  # None: the threshold
    smoothing: Seconds = 0.0
    switch_after: Seconds = 0.0
    # sinks
    json: str | None = None
    csv: str | None = None
    events: str | None = None
    video: str | None = None
    webhook: str | None = None
    mqtt: str | None = None
    metrics: str | None = None
    record: str | None = None
    headless: bool = False
    page: str = PAGE
    token: str | None = None
    # running
    duration: Seconds | None = None
    threads: Annotated[int, Meta(ge=0)] | None = None
    device: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageError: it does.
        """
        from vitedge.streaming.view import parse_crop, parse_flip

        action = "classify a stream"
        parse_policy(self.policy)
        parse_flip(self.flip)
        if self.crop is not None:
            parse_crop(self.crop)
        if self.exit_threshold is not None and self.exit_threshold > self.threshold:
            raise UsageError(
                action,
                f"a label would leave below {self.exit_threshold:g} that enters at {self.threshold:g}",
                "lower --exit-threshold, or raise --threshold",
            )
        if self.backoff_min > self.backoff_max:
            raise UsageError(action, "--backoff-min is above --backoff-max", "correct one of them")
        if (self.input_width is None) != (self.input_height is None):
            raise UsageError(action, "a picture's size needs both numbers", "give --input-width and --input-height")
        if len([target for target in (self.json, self.csv, self.events) if target == "-"]) > 1:
            raise UsageError(action, "two outputs would share stdout", "send one of them to a file")

    def newest_only(self, live: bool) -> bool:
        """Whether a source's newest frame replaces one that still waits."""
        return live if self.policy is None else self.policy == "latest"

    @property
    def one_of(self) -> int:
        """Of so many frames one is classified."""
        return max(self.every, parse_policy(self.policy))

    @property
    def camera(self) -> dict[str, str]:
        """What a camera is asked for."""
        camera = {
            "width": self.input_width,
            "height": self.input_height,
            "rate": self.input_rate,
            "codec": self.input_codec,
        }
        return {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in camera.items() if value}


def parse_policy(text: str | None) -> int:
    """The option ``--policy``: of so many frames one is passed on.

    Raises:
        UsageError: none of ``latest``, ``every``, ``every:N``.
    """
    if text in (None, "latest", "every"):
        return 1
    if match := re.fullmatch(r"every:([1-9]\d{0,8})", text or ""):
        return int(match[1])
    raise UsageError(
        f"policy '{text}'",
        f"there's no such policy{nearest(str(text), ('latest', 'every'))}",
        "use latest, every or every:N",
    )


def read_settings(path: str | Path | None, given: dict[str, Any]) -> Settings:
    """Settings of a TOML file, with what was given beside it put over them.

    Args:
        path: the file; None: all defaults.
        given: by Python's names; None: not given.

    Raises:
        UsageError: an unreadable file, an unknown key, a value that isn't possible.
    """
    settings = Settings() if path is None else load_toml(Path(path), Settings, "classify a stream")
    return merged(settings, given)


def merged(settings: Settings, given: dict[str, Any]) -> Settings:
    """The settings with others over them, by Python's names; None: not given.

    Raises:
        UsageError: an unknown name, a value that isn't possible.
    """
    action = "classify a stream"
    given = {name: value for name, value in given.items() if value is not None}
    unknown = [name for name in given if name not in Settings.__struct_fields__]
    if unknown:
        suggestion = nearest(unknown[0], Settings.__struct_fields__)
        raise UsageError(action, f"there is no setting '{unknown[0]}'{suggestion}", "see: vitedge stream --help")
    values = {**msgspec.structs.asdict(settings), **given}
    try:
        return msgspec.convert({name.replace("_", "-"): value for name, value in values.items()}, Settings)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        named = f"--{where.rstrip('`')}: " if where else ""
        raise UsageError(action, f"{named}{what or 'a value is wrong'}", "see: vitedge stream --help") from error
