"""Options for opening an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitedge.core.progress import Progress
from vitedge.formats.target import Option

TOP_K = 5  # classes that are returned for a picture


@dataclass(frozen=True)
class OpenOptions:
    """Options for opening a session; None takes the target's value."""

    device: str | None = None
    threads: int | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    build: bool = True  # where an engine is missing or doesn't fit, build it into the cache; else refuse
    progress: Progress | None = None  # of the build; None prints a few lines on a terminal
