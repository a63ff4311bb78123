"""However a stream ends, every label that entered leaves, in every sink, and the frame counts are complete."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.streaming.items import event, until
from tests.streaming.levels import Ran, run, session
from tests.streaming.publisher import Publisher
from vitedge.streaming import engine, webhook
from vitedge.streaming.records import Event, FrameRecord, Item
from vitedge.streaming.sink import QueuedSink
from vitedge.streaming.webhook import WebhookSink

PATIENCE_S = 200.0  # a busy machine may take long to start a reader


class Kept(QueuedSink):
    """The events that reached it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        super().__init__("kept", (Event,))

    def write(self, item: Item, picture: Any) -> None:
        assert isinstance(item, Event)
        self.events.append(item)


class Hangs(QueuedSink):
    """Delivers nothing, and doesn't end."""

    def __init__(self) -> None:
        super().__init__("hangs", (Event,))

    def write(self, item: Item, picture: Any) -> None:
        time.sleep(3600)


def held(ran: Ran) -> bool:
    return any(record.label for record in ran.records)


def by_stop(folder: Path, sinks: Any, patch: pytest.MonkeyPatch) -> Ran:
    with session(folder) as opened:
        return run(opened, "test://?pattern=steps", until=held, sinks=sinks, most_s=PATIENCE_S)


def by_duration(folder: Path, sinks: Any, patch: pytest.MonkeyPatch) -> Ran:
    clock = SimpleNamespace(monotonic=time.monotonic, monotonic_ns=time.monotonic_ns, time_ns=time.time_ns)
    patch.setattr(engine, "time", clock)

    def later(_: Any, record: FrameRecord) -> None:
        if record.label:
            clock.monotonic = lambda: time.monotonic() + 1e6

    with session(folder) as opened:
        return run(opened, "test://?pattern=steps", sinks=sinks, at_record=later, duration=1e6, most_s=PATIENCE_S)


def by_the_end_of_a_file(folder: Path, sinks: Any, patch: pytest.MonkeyPatch) -> Ran:
    with session(folder) as opened:
        return run(opened, "test://?pattern=steps&live=0&frames=9", sinks=sinks, most_s=PATIENCE_S)


def by_loss(folder: Path, sinks: Any, patch: pytest.MonkeyPatch) -> Ran:
    pytest.importorskip("av", reason="network cameras need the extra 'stream'")
    patient = {"connect_timeout": 60.0, "stall_timeout": 60.0}
    with session(folder) as opened, Publisher("mjpeg", fault="hangup", times=1000, after=60) as camera:
        return run(opened, f"http://127.0.0.1:{camera.port}/", sinks=sinks, retries=0, most_s=PATIENCE_S, **patient)


@pytest.mark.parametrize("ends", [by_stop, by_duration, by_the_end_of_a_file, by_loss])
def test_every_label_that_entered_leaves(
    ends: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept()
    ran = ends(tmp_path, [kept], monkeypatch)
    entered = [event.label for event in kept.events if event.kind == "enter"]
    assert entered and entered == [event.label for event in kept.events if event.kind == "exit"]
    assert kept.events == ran.events() or kept.events[:-1] == ran.events()  # the last one, when nobody reads on
    assert ran.final is not None and ran.counts.complete and ran.final.sources[0].label is None


def test_a_sink_that_hangs_takes_no_time_from_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others say their last words while the engine waits for the first one, which uses up all of the time."""
    monkeypatch.setattr(engine, "DRAIN_S", 1.0)
    kept, finished = Kept(), []

    def finish() -> None:
        time.sleep(0.4)
        finished.append(True)

    monkeypatch.setattr(kept, "finish", finish)
    hanging = Hangs()
    by_stop(tmp_path, [hanging, kept], monkeypatch)
    assert finished and kept.events[-1].kind == "exit" and kept.dropped == 0
    assert hanging.written == 0 and hanging.dropped == len(kept.events)


def test_an_item_that_is_given_up_is_counted_once_though_it_arrives_later() -> None:
    kept, arrives = Kept(), threading.Event()
    write = kept.write
    kept.write = lambda item, picture: (arrives.wait(), write(item, picture))  # type: ignore[method-assign]
    kept.put(event(0), None)
    kept.put(event(1), None)
    until(lambda: len(kept._items) == 1)
    kept.close(0.05)
    arrives.set()
    kept._thread.join()
    assert len(kept.events) == 1 and (kept.written, kept.dropped) == (0, 2)


def test_an_event_that_waits_for_the_webhook_is_tried_once_more_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.streaming.test_delivery import Receiver

    monkeypatch.setattr(webhook, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(webhook, "LONGEST_PAUSE_S", 3600.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
    sink = WebhookSink(f"http://127.0.0.1:{port}/")
    sink.put(event(0, "exit"), None)
    until(lambda: sink.error)
    receiver = Receiver(port=port)
    sink.close(10)
    receiver.close()
    assert [body["kind"] for body in receiver.bodies] == ["exit"] and (sink.written, sink.dropped) == (1, 0)
