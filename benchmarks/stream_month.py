"""Half an hour of faults of every kind, at random, against a stream of five sources and six sinks.

::

    python benchmarks/stream_month.py --minutes 30 --out benchmarks/results/stream_month.json
    python benchmarks/stream_month.py --minutes 1 --seed 7

A film that repeats, MJPEG over HTTP, RTSP, MPEG-TS and a snapshot address go through one engine to JSON Lines, a table
and JPEG files on a small disk, events in a file, a webhook and a real MQTT broker. Meanwhile, drawn from a seeded
generator: cameras die, hang, hang up, stall, send damaged frames or another size; readers are killed and stopped; the
broker and the webhook's receiver die or hang, and return; the disk fills and is emptied; files are rotated by
truncation; the wall clock jumps by up to a day, back or forward, in every process of the stream.

Then everything is mended, and the stream is stopped. What must hold: each captured frame and each item of every sink is
counted once; labels enter and leave alternately, and each that entered left; MQTT keeps no label, and ``online`` is 0;
every source gave frames; the upper 95 % bound of the slope of the engine's own memory over the second half (as in
``stream_soak.py``) is within its bound, if the run took twenty minutes or more. Exit code 1: something doesn't hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.stream_soak import ALLOWED_MB_H, Memory, theil_sen
from tests.disks import fill, small_disk
from tests.streaming.levels import session
from tests.streaming.mosquitto import Mosquitto
from tests.streaming.publisher import Publisher, film
from vitedge.core.isolation import run_isolated
from vitedge.streaming import capture
from vitedge.streaming.delivery import delivering
from vitedge.streaming.engine import Engine
from vitedge.streaming.mqtt import MqttSink
from vitedge.streaming.records import Event, FrameRecord, Item
from vitedge.streaming.run import line_sinks
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.sink import QueuedSink
from vitedge.streaming.uri import parse_sources

CAMERAS = {"mjpeg": "http", "rtsp": "rtsp", "mpegts": "tcp", "snapshot": "http+snapshot"}
DISK_PAGES = 512  # 2 MB, which records fill within a minute
PAUSE_S = (0.2, 2.0)  # between two faults
LASTS_S = (0.5, 8.0)  # a fault that something ends
RECOVERY_S = 60.0  # at the end: for broker, receiver and cameras to be connected again
PERIOD_S = 0.5
LEAST_S = 1200.0  # until a slope says something
CLOCK = "import mmap,struct,time; _f=open({path!r},'r+b'); _m=mmap.mmap(_f.fileno(),8); _n=time.time_ns; \
time.time_ns=lambda: _n()+struct.unpack('q',_m)[0]; time.time=lambda: time.time_ns()/1e9; "


class Audit(QueuedSink):
    """Whether labels enter and leave alternately; it keeps one label a source, and counts."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.held: dict[str, str | None] = {}
        self.violations = 0
        super().__init__("audit", (FrameRecord, Event), 1 << 20)

    def write(self, item: Item, picture: Any) -> None:
        """See the base."""
        if isinstance(item, FrameRecord):
            self.counts["frames"] += 1
            return
        assert isinstance(item, Event)
        self.counts[item.kind] += 1
        self.counts["events"] += 1
        if item.kind in ("enter", "exit"):
            right = (None if item.kind == "enter" else item.label) == self.held.get(item.source)
            self.violations += not right
            self.held[item.source] = item.label if item.kind == "enter" else None


# --- what a stream depends on, and what can happen to it


class Clock:
    """The wall clock of this process and of the readers, which jumps."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)
        self._child, self._real = CLOCK.format(path=str(path)), (time.time, time.time_ns)

    def __enter__(self) -> Clock:
        real_ns = self._real[1]
        time.time_ns = lambda: real_ns() + struct.unpack("q", self._offset)[0]  # type: ignore[assignment]
        time.time = lambda: time.time_ns() / 1e9  # type: ignore[assignment]
        self._command, capture._CHILD = (
            capture._CHILD,
            self._child.replace("{", "{{").replace("}", "}}") + capture._CHILD,
        )
        return self

    def __exit__(self, *_: object) -> None:
        time.time, time.time_ns = self._real  # type: ignore[assignment]
        capture._CHILD = self._command

    def jump(self, seconds: float) -> None:
        """From now on it's so much later than it really is."""
        self._offset[:] = struct.pack("q", round(seconds * 1e9))


class Camera:
    """A publisher on a port of its own, which can be replaced by one that behaves otherwise."""

    def __init__(self, kind: str) -> None:
        self.kind, self._publisher = kind, Publisher(kind, frames=1 << 30)
        self.port = self._publisher.port

    def restart(self, **behaviour: Any) -> None:
        """End it, and begin anew at once."""
        self.end()
        self._publisher = Publisher(self.kind, port=self.port, **{"frames": 1 << 30, **behaviour})

    def end(self) -> None:
        """End it."""
        self._publisher.__exit__()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._publisher._process.send_signal(number)


class Receiver:
    """The webhook's receiver in a process of its own; every event that it takes is a line of a file."""

    def __init__(self, log: Path) -> None:
        self._log, self.port = log, 0
        self.start()

    def start(self) -> None:
        """Begin to listen."""
        command = [sys.executable, __file__, "--receive", str(self._log), str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)


def receive(log: str, port: int) -> None:
    """Take events for ever."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with open(log, "ab") as file:  # noqa: PTH123
                file.write(body + b"\n")
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Answer)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


class Fault(NamedTuple):
    """Something that happens to something."""

    target: str  # one fault at a time
    name: str
    begin: Callable[[], Any]
    end: Callable[[], Any] | None = None  # what mends it; None: it mends itself


class FaultThread(threading.Thread):
    """Draws faults, begins and ends them."""

    def __init__(self, faults: list[Fault], seed: int) -> None:
        super().__init__(name="faults", daemon=True)
        self._faults, self._draw = faults, random.Random(seed)
        self._targets = sorted({fault.target for fault in faults})
        self._active: dict[str, tuple[float, Fault]] = {}
        self._over = threading.Event()
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """The thread."""
        while not self._over.wait(self._draw.uniform(*PAUSE_S)):
            self._mend(time.monotonic())
            target = self._draw.choice(self._targets)
            fault = self._draw.choice([fault for fault in self._faults if fault.target == target])
            if target in self._active:
                continue
            self.counts[f"{fault.target} {fault.name}"] += 1
            fault.begin()
            if fault.end:
                self._active[fault.target] = time.monotonic() + self._draw.uniform(*LASTS_S), fault

    def mend(self) -> None:
        """Draw no more, and mend everything."""
        self._over.set()
        self.join()
        self._mend(float("inf"))

    def _mend(self, until: float) -> None:
        for target, (due, fault) in list(self._active.items()):
            if due <= until:
                assert fault.end
                fault.end()
                del self._active[target]


def camera_faults(camera: Camera, draw: random.Random) -> Iterator[Fault]:
    """What happens to a camera."""
    for fault in ("hangup", "stall", "corrupt", "loss", "size") if camera.kind != "snapshot" else ():

        def misbehave(fault: str = fault) -> None:
            camera.restart(fault=fault, after=draw.randrange(5, 50), times=2)

        yield Fault(camera.kind, fault, misbehave)
    yield Fault(camera.kind, "away", camera.end, camera.restart)
    yield Fault(camera.kind, "hangs", lambda: camera.signal(signal.SIGSTOP), lambda: camera.signal(signal.SIGCONT))


def reader_faults(engine: Engine, draw: random.Random) -> Iterator[Fault]:
    """What happens to the processes that decode."""

    def strike(number: int) -> None:
        if engine._states and (reader := draw.choice(engine._states[1:]).capture._reader):  # the film isn't tried again
            with contextlib.suppress(ProcessLookupError):
                os.kill(reader.pid, number)

    yield Fault("reader", "killed", lambda: strike(signal.SIGKILL))
    yield Fault("reader", "stopped", lambda: strike(signal.SIGSTOP))


def server_faults(broker: Mosquitto, receiver: Receiver) -> Iterator[Fault]:
    """What happens to those who are told."""
    yield Fault("broker", "away", broker.kill, broker.start)
    yield Fault("broker", "hangs", lambda: broker.signal(signal.SIGSTOP), lambda: broker.signal(signal.SIGCONT))
    yield Fault("receiver", "away", receiver.end, receiver.start)
    yield Fault("receiver", "hangs", lambda: receiver.signal(signal.SIGSTOP), lambda: receiver.signal(signal.SIGCONT))


def disk_faults(disk: Path) -> Iterator[Fault]:
    """What happens to the disk."""

    def empty() -> None:
        (disk / "fill").unlink(missing_ok=True)
        for name in ("records.jsonl", "records.csv"):
            with contextlib.suppress(FileNotFoundError):
                os.truncate(disk / name, 0)

    yield Fault("disk", "full", lambda: fill(disk), empty)
    yield Fault("disk", "rotated", empty)


# --- a month


def month(seconds: float, seed: int) -> dict[str, Any]:
    """Run a stream among faults for so many seconds; what happened, and what holds."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        disk = stack.enter_context(small_disk(folder / "disk", DISK_PAGES))
        run_isolated(film, str(folder / "film.mp4"))
        cameras = [Camera(kind) for kind in CAMERAS]
        broker, receiver = Mosquitto(folder / "broker"), Receiver(folder / "received.jsonl")
        for process in (*cameras, receiver):
            stack.callback(process.end)
        stack.enter_context(broker)
        opened = stack.enter_context(session(folder, wait_s=0.02))  # the film is read as fast as this allows
        clock = stack.enter_context(Clock(folder / "clock"))
        settings = StreamSettings(
            source=(
                f"film={folder / 'film.mp4'}",
                *(f"{camera.kind}={CAMERAS[camera.kind]}://127.0.0.1:{camera.port}/main" for camera in cameras),
            ),
            input_loop=-1, poll=5.0, threshold=0.6, exit_threshold=0.4, smoothing=0.1,
            connect_timeout=5.0, stall_timeout=3.0, backoff_min=0.1, backoff_max=1.0,
            json=str(disk / "records.jsonl"), csv=str(disk / "records.csv"), events=str(folder / "events.jsonl"),
            webhook=f"http://127.0.0.1:{receiver.port}/", mqtt=f"mqtt://127.0.0.1:{broker.port}/t",
            mqtt_publish="records", mqtt_discovery=True, snapshot_on=("enter", str(disk / "shots")), snapshot_count=20,
            headless=True, quiet=True,
        )  # fmt: skip
        sources = parse_sources(settings.source)
        engine = Engine(opened, sources, settings)
        audit, sinks = Audit(), line_sinks(settings, engine.stop)
        sinks += delivering(settings, tuple(source.name for source in sources))
        engine.sinks = [audit, *sinks]
        draw = random.Random(seed + 1)
        faults = [fault for camera in cameras for fault in camera_faults(camera, draw)]
        for more in (reader_faults(engine, draw), server_faults(broker, receiver), disk_faults(disk)):
            faults += more
        faults.append(Fault("clock", "jumps", lambda: clock.jump(draw.uniform(-86_400, 86_400))))
        fault_thread = FaultThread(faults, seed)
        kept = stack.enter_context(tempfile.TemporaryFile("w+"))
        begin = time.monotonic()
        driver = threading.Thread(target=_drive, args=[engine, fault_thread, seconds, kept], daemon=True)
        driver.start()
        for _ in engine.items():
            pass
        driver.join()
        result = _outcome(engine, audit, sinks, broker, folder)
        kept.seek(0)
        samples = [json.loads(line) for line in kept]
    memory = _memory(samples, seconds)
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - begin, 1),
        "faults": dict(sorted(fault_thread.counts.items())),
        **result,
        **memory,
        "passed": all(result["holds"].values()) and memory["within_bound"],
    }


def _drive(engine: Engine, faults: FaultThread, seconds: float, kept: Any) -> None:
    """Let faults happen for so long; then mend everything, wait until all is connected again, and stop."""
    begin = time.monotonic()
    faults.start()
    while (at_s := time.monotonic() - begin) < seconds:
        row = [at_s, Memory.of(os.getpid()).own_mb, len(os.listdir("/proc/self/fd")), threading.active_count()]  # noqa: PTH208
        kept.write(json.dumps(row) + "\n")
        time.sleep(PERIOD_S)
    faults.mend()
    deadline = time.monotonic() + RECOVERY_S
    while time.monotonic() < deadline and not _recovered(engine):
        time.sleep(PERIOD_S)
    engine.stop()


def _recovered(engine: Engine) -> bool:
    sinks = [sink for sink in engine.sinks if isinstance(sink, QueuedSink)]
    return (
        all(state.capture.state == "connected" for state in engine._states)
        and sum(len(sink._items) for sink in sinks) < 10
        and all(sink._client.is_connected() for sink in sinks if isinstance(sink, MqttSink))
    )


def _outcome(engine: Engine, audit: Audit, sinks: Any, broker: Mosquitto, folder: Path) -> dict[str, Any]:
    """What became of frames, items and labels."""
    assert engine.final is not None
    counts = audit.counts
    taken = {
        "json": counts["frames"],
        "csv": counts["frames"],
        "events": counts["events"],
        "webhook": counts["events"],
        "mqtt": counts["frames"] + counts["events"],
        "snapshots": counts["enter"],
    }
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    received = Counter(json.loads(line)["kind"] for line in (folder / "received.jsonl").read_text().splitlines())
    retained = broker.retained("t/#")
    sources = engine.final.sources
    return {
        "sources": {
            source.name: {"connections": source.connections, "gaps": source.gaps, **_fields(source.counts)}
            for source in sources
        },
        "events": dict(counts),
        "sinks": {sink.name.split()[0]: [sink.written, sink.dropped, sink.error] for sink in sinks},
        "received": dict(received),
        "retained": {topic: payload.decode() for topic, payload in retained.items()},
        "holds": {
            "every frame is counted once": all(source.counts.complete for source in sources),
            "every record is of a classified frame": counts["frames"] == sum(s.counts.classified for s in sources),
            "every item of a sink is counted once": all(
                sink.written + sink.dropped == taken[sink.name.split()[0]] for sink in sinks
            ),
            "labels enter and leave alternately": audit.violations == 0 and audit.dropped == 0,
            "every label that entered left": not any(audit.held.values()) and counts["enter"] == counts["exit"] > 0,
            "the events' file has every event": Counter(event["kind"] for event in events)
            == {kind: count for kind, count in counts.items() if kind not in ("frames", "events")},
            "the receiver has every event that counts as delivered": sum(received.values())
            >= next(sink.written for sink in sinks if sink.name.startswith("webhook")),
            "MQTT keeps no label, and online is 0": retained == {"t/online": b"0"},
            "every source gave frames": all(source.counts.classified for source in sources),
        },
    }


def _fields(counts: Any) -> dict[str, int]:
    return {name: getattr(counts, name) for name in counts.__struct_fields__}


def _memory(samples: list[list[float]], seconds: float) -> dict[str, Any]:
    """The slope of this process's own memory over the second half, when all that grows at first has grown."""
    half = samples[len(samples) // 2 :]
    slope = theil_sen([(at_s / 3600, own_mb) for at_s, own_mb, *_ in half])
    return {
        "samples": len(samples),
        "own_mb": [round(min(row[1] for row in half), 2), round(max(row[1] for row in half), 2)],
        "own_slope_mb_h": {name: round(value, 2) for name, value in slope._asdict().items()},
        "descriptors": [min(row[2] for row in half), max(row[2] for row in half)],
        "threads": [min(row[3] for row in half), max(row[3] for row in half)],
        "within_bound": seconds < LEAST_S or slope.upper <= ALLOWED_MB_H,
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--receive", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.receive:
        receive(arguments.receive[0], int(arguments.receive[1]))
    result = month(arguments.minutes * 60, arguments.seed)
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
