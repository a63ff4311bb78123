"""How an artifact is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitedge.core.progress import Progress
from vitedge.formats.target import Option

TOP_K = 5  # classes that are told of a picture


@dataclass(frozen=True)
class OpenOptions:
    """How a session is opened; None takes the target's."""

    device: str | None = None
    threads: int | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    build: bool = True  # where an engine is missing or doesn't fit, build it into the cache; else refuse
    progress: Progress | None = None  # of that; None says a few lines on a terminal
