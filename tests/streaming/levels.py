"""A session that tells the greys of :mod:`tests.streaming.publisher` apart, and runs of an engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarking.nulls import NAMES, null_artifact
from vitedge.formats.artifact import Artifact
from vitedge.runtimes.base import Stages
from vitedge.runtimes.session import Session
from vitedge.streaming.engine import Engine
from vitedge.streaming.records import Event, FrameRecord, Item, Status
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.uri import parse_sources


class Levels:
    """A backend whose answer is the nearest of six greys; 12 for it, 0 for the others."""

    info: Mapping[str, Any] = {"runtime": "levels", "version": "1", "device": "cpu", "threads": 1}
    slots = 1

    def __init__(self, batch: int = 1, wait_s: float = 0.0) -> None:
        self.batch, self._wait_s = batch, wait_s

    def infer(self, images: Any) -> tuple[Any, Stages]:
        time.sleep(self._wait_s)
        level = np.clip(np.round((images[:, 4, 4].mean(axis=1) - 20) / 42), 0, 5).astype(int)
        return 12 * np.eye(len(NAMES), dtype=np.float32)[level], Stages(None, None, None)

    def close(self) -> None: ...


def session(folder: Path, *, batch: int = 1, wait_s: float = 0.0) -> Session:
    path = folder / f"levels-{batch}"
    artifact = Artifact.open(path) if path.exists() else null_artifact(path, batch=batch)
    return Session(artifact, Levels(batch, wait_s))  # type: ignore[arg-type]


FAST = {"connect_timeout": 8.0, "stall_timeout": 1.0, "backoff_min": 0.05, "backoff_max": 0.2}


class Ran:
    """What an engine said."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.final: Status | None = None

    @property
    def records(self) -> list[FrameRecord]:
        return [item for item in self.items if isinstance(item, FrameRecord)]

    def events(self, *kinds: str) -> list[Event]:
        return [item for item in self.items if isinstance(item, Event) and (not kinds or item.kind in kinds)]

    @property
    def counts(self) -> Any:
        assert self.final is not None
        return self.final.sources[0].counts


def run(
    opened: Session,
    *sources: str,
    until: Callable[[Ran], bool] = lambda ran: False,
    most_s: float = 60.0,
    sinks: Any = (),
    at_record: Callable[[Engine, FrameRecord], None] | None = None,
    **settings: Any,
) -> Ran:
    """Run an engine until ``until`` holds, or the sources end; a minute at most."""
    chosen = StreamSettings(source=sources, **{**FAST, **settings})
    ran = Ran()
    engine = Engine(opened, parse_sources(chosen.source, chosen.credentials), chosen, sinks)
    deadline = time.monotonic() + most_s
    for item in engine.items():
        ran.items.append(item)
        if isinstance(item, FrameRecord) and at_record:
            at_record(engine, item)
        if until(ran) or time.monotonic() > deadline:
            engine.stop()
    ran.final = engine.final
    assert time.monotonic() < deadline + 10, "it went on for too long"
    return ran


def level_of(record: FrameRecord) -> int:
    """What the session said."""
    return NAMES.index(record.raw[0].label)
