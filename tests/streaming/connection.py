"""One connection of a source, as its reader has it, in the test's own process."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple

from vitedge.data.preprocessing import Preprocessing
from vitedge.streaming.openers import captured
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.task import Task
from vitedge.streaming.uri import parse_sources

MANIFEST = SimpleNamespace(name="levels", preprocessing=Preprocessing(size=(8, 8)))


class Seen(NamedTuple):
    """What came of it."""

    levels: list[int | None]  # the grey of each frame, by tests.streaming.publisher; None: a corrupt one
    times: list[float | None]
    codec: str
    finite: bool


def connect(source: str, frames: int = 12, **settings: Any) -> Seen:
    """The first frames.

    Raises:
        Failure: it can't be opened, or goes no further.
    """
    chosen = StreamSettings(source=(source,), **{"connect_timeout": 20.0, "stall_timeout": 20.0, **settings})
    (parsed,) = parse_sources(chosen.source, chosen.credentials)
    artifact: Any = SimpleNamespace(manifest=MANIFEST)
    task = Task.of(parsed, chosen, artifact, memory=-1, filled=-1, emptied=-1)
    opened: list[tuple[str, bool]] = []
    with closing(captured(Task.decode(task.encode()), lambda *what: opened.append(what), print)) as all_frames:
        first = list(islice(all_frames, frames))
    (codec, finite) = opened[0] if len(opened) == 1 else ("", False)
    return Seen([_level(frame.content) for frame in first], [frame.presentation_s for frame in first], codec, finite)


def _level(content: Any) -> int | None:
    if content is None:
        return None
    return round((float(content.to_ndarray(format="rgb24")[4, 4].mean()) - 20) / 42)
