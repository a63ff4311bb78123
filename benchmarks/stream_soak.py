"""Does a stream leak? Reconnects by the thousand, hours of frames, and frames as fast as they come.

::

    python benchmarks/stream_soak.py --reconnects 1000         # hang-ups, back-off shortened
    python benchmarks/stream_soak.py --minutes 30              # four sources: RTSP, MPEG-TS, MJPEG, test://
    python benchmarks/stream_soak.py --minutes 2 --leak 64     # a sink that leaks 64 MB an hour: it must be caught
    python benchmarks/stream_soak.py --frames 100000           # of each kind in turn, an hour's worth in a minute

Twice a second, while every source is connected: the proportional set size of this process and its readers
(``/proc/*/smaps_rollup``), file descriptors and threads of this process. The verdict is the upper 95 % bound of the
Theil–Sen slope of the second half (P. K. Sen, JASA 63, 1968), which single outliers don't move. Exit code 1: it leaks.

Proportional memory also moves when *other* processes that map the same libraries come and go, by megabytes. Measure
where no others run from the same environment; the part that is these processes' own (anonymous and shared memory) is
given besides; nobody else can move it, and a leak of it is one whatever the other says.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist, median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.streaming.levels import session
from tests.streaming.publisher import Publisher
from vitedge.streaming.engine import Engine
from vitedge.streaming.records import FrameRecord, Item
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.sink import QueuedSink
from vitedge.streaming.uri import parse_sources

ALLOWED_MB_H = 4.0
#: A frame. At 25 frames a second this is the above.
ALLOWED_BYTES = ALLOWED_MB_H * 1e6 / 3600 / 25
PERIOD_S = 0.5


class Memory(NamedTuple):
    """What processes hold, megabytes."""

    pss_mb: float  # proportional set size
    own_mb: float  # of which anonymous and shared memory: the rest are pages of files

    @classmethod
    def of(cls, process: int) -> Memory:
        """Of one process; zeros when it has just ended."""
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            return cls(0.0, 0.0)
        mb = {name: int(value.split()[0]) * 1024 / 1e6 for name, _, value in (line.partition(":") for line in lines)}
        return cls(mb["Pss"], mb["Pss_Anon"] + mb["Pss_Shmem"])


class Sample(NamedTuple):
    at_s: float
    memory: dict[str, Memory]  # of this process and of each source's reader
    descriptors: int
    threads: int

    @classmethod
    def of(cls, row: Sequence[Any]) -> Sample:
        """From the JSON of one."""
        at_s, memory, *rest = row
        return cls(at_s, {name: Memory(*one) for name, one in memory.items()}, *rest)

    @property
    def pss_mb(self) -> float:
        """Of all processes."""
        return sum(one.pss_mb for one in self.memory.values())

    @property
    def own_mb(self) -> float:
        """Of all processes."""
        return sum(one.own_mb for one in self.memory.values())


class Slope(NamedTuple):
    median: float
    lower: float
    upper: float


class Leak(QueuedSink):
    """Keeps so many megabytes an hour for ever."""

    def __init__(self, mb_h: float) -> None:
        self._rate, self._kept, self._begin = mb_h * 1e6 / 3600, bytearray(), time.monotonic()
        super().__init__("leak", (FrameRecord,))

    def write(self, item: Item, picture: Any) -> None:
        missing = int((time.monotonic() - self._begin) * self._rate) - len(self._kept)
        self._kept += os.urandom(max(0, missing))


def theil_sen(points: Sequence[tuple[float, float]], confidence: float = 0.95) -> Slope:
    """Median of all pairwise slopes of points (x, y), with Sen's interval from Kendall's variance."""
    slopes = sorted(
        (y - before) / (x - earlier)
        for index, (earlier, before) in enumerate(points)
        for x, y in points[index + 1 :]
        if x > earlier
    )
    count = len(points)
    if count < 4 or not slopes:
        raise SystemExit(f"{count} samples are too few for a slope")
    spread = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, math.floor((len(slopes) - spread) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + spread) / 2))
    return Slope(median(slopes), slopes[low], slopes[high])


def soak(
    sources: Sequence[str], *, seconds: float = math.inf, reconnects: int | None = None, leak_mb_h: float = 0.0
) -> dict[str, Any]:
    """Run until the time is over or so many connections ended; samples, slope, frame counts, and the verdict."""
    settings = StreamSettings(source=tuple(sources), backoff_min=0.02, backoff_max=0.05, policy="latest")
    with tempfile.TemporaryDirectory() as folder, session(Path(folder)) as opened, _Kept() as kept:
        engine = Engine(opened, parse_sources(settings.source), settings, [Leak(leak_mb_h)] if leak_mb_h else [])
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=[engine, kept, over], daemon=True)
        watcher.start()
        begin, lost = time.monotonic(), 0
        for item in engine.items():
            lost += getattr(item, "kind", "") == "lost"
            if time.monotonic() - begin > seconds or (reconnects is not None and lost >= reconnects):
                over.set()  # what is let go at the end isn't a sample
                engine.stop()
        over.set()
        watcher.join()
        samples = [Sample.of(row) for row in kept.rows()]
    assert engine.final is not None
    half = samples[len(samples) // 2 :]
    slope = theil_sen([(one.at_s / 3600, one.pss_mb) for one in half])
    own = theil_sen([(one.at_s / 3600, one.own_mb) for one in half])
    descriptors = [one.descriptors for one in half]
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "reconnects": lost,
        "frames": sum(source.counts.classified for source in engine.final.sources),
        "balanced": all(source.counts.complete for source in engine.final.sources),
        "samples": len(samples),
        "pss_mb": [round(one.pss_mb, 2) for one in (half[0], half[-1])],
        "slope_mb_h": slope._asdict(),
        "own_slope_mb_h": own._asdict(),
        "own_mb": {name: [round(one.memory[name].own_mb, 2) for one in (half[0], half[-1])] for name in half[0].memory},
        "descriptors_moved": max(descriptors) - min(descriptors),
        "threads": sorted({one.threads for one in half}),
        "leaks": any(one.lower > 0 and one.upper > ALLOWED_MB_H for one in (slope, own)),
        "within_bound": slope.upper <= ALLOWED_MB_H,
    }


class _Kept:
    """Samples, in a file: a list of them would grow by megabytes an hour itself, in the process that is measured."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+")  # noqa: SIM115

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, row: Sequence[Any]) -> None:
        self._file.write(json.dumps(row) + "\n")

    def rows(self) -> list[list[Any]]:
        self._file.seek(0)
        return [json.loads(line) for line in self._file]


def _watch(engine: Engine, kept: _Kept, over: threading.Event) -> None:
    begin = time.monotonic()
    while not over.wait(PERIOD_S):
        if memory := _memory(engine):
            descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            kept.append(Sample(time.monotonic() - begin, memory, descriptors, threading.active_count()))


def _memory(engine: Engine) -> dict[str, Memory] | None:
    """Of this process and every source's reader; None unless they're all connected."""
    found = {"engine": Memory.of(os.getpid())}
    for state in engine._states:
        reader = state.capture._reader
        found[state.source.name] = Memory.of(reader.pid) if reader is not None else Memory(0.0, 0.0)
    connected = bool(engine._states) and all(state.capture.state == "connected" for state in engine._states)
    return found if connected and all(one.own_mb for one in found.values()) else None


def hurry(kind: str, frames: int, *, rate: float = 0, sinks: Sequence[QueuedSink] = ()) -> dict[str, Any]:
    """So many frames of one source, faster than any camera's; ends when half as many were classified besides.

    Returns:
        What the reader's own memory grew by a frame that it captured, and the engine's by one that it classified, in
        bytes, over the second half; and how far the reader's rose above its first sample at most, megabytes.
    """
    names = {"mpegts": "tcp", "rtsp": "rtsp", "mjpeg": "http"}
    with contextlib.ExitStack() as stack:
        camera = stack.enter_context(Publisher(kind, frames=1 << 40, rate=rate, bits_s=800_000))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        opened = stack.enter_context(session(Path(folder)))
        kept = stack.enter_context(_Kept())
        settings = StreamSettings(source=(f"{kind}={names[kind]}://127.0.0.1:{camera.port}/main",), policy="latest")
        engine = Engine(opened, parse_sources(settings.source), settings, sinks)
        last = 0.0
        for _ in engine.items():
            if time.monotonic() - last < PERIOD_S / 5:
                continue
            last, counts = time.monotonic(), engine._states[0].capture.counts
            if memory := _memory(engine):
                kept.append([counts.captured, memory[kind].own_mb, counts.classified, memory["engine"].own_mb])
            if counts.captured >= frames and counts.classified >= frames / 2:
                engine.stop()
        rows = kept.rows()
    assert engine.final is not None
    reader = [(captured, own_mb * 1e6) for captured, own_mb, *_ in rows]
    engines = [(classified, own_mb * 1e6) for *_, classified, own_mb in rows]
    return {
        "kind": kind,
        "captured": engine.final.sources[0].counts.captured,
        "classified": engine.final.sources[0].counts.classified,
        "samples": len(reader),
        "reader_bytes_a_frame": theil_sen(_second_half(reader))._asdict(),
        "engine_bytes_a_frame": theil_sen(_second_half(engines))._asdict(),
        "reader_rose_mb": round(max(held for _, held in reader) / 1e6 - reader[0][1] / 1e6, 2),
    }


def _second_half(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if point[0] >= points[-1][0] / 2]


@contextlib.contextmanager
def four_sources(frames: int) -> Any:
    """RTSP, MPEG-TS and MJPEG from their own processes, and a pattern.

    The transport stream is stuffed to a camera's bit rate. FFmpeg keeps the first 5 MB of one (its ``probesize``) until
    they have all come, and the small pictures alone would take ten minutes for that.
    """
    with contextlib.ExitStack() as stack:
        urls = ["test://?pattern=steps&rate=25"]
        for kind, scheme in (("rtsp", "rtsp"), ("mpegts", "tcp"), ("mjpeg", "http")):
            camera = stack.enter_context(Publisher(kind, frames=frames, bits_s=4_000_000))
            urls.append(f"{kind}={scheme}://127.0.0.1:{camera.port}/main")
        yield urls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reconnects", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--leak", type=float, default=0.0, metavar="MB_H")
    wish = parser.parse_args()
    if wish.frames:
        kinds = [hurry(kind, wish.frames) for kind in ("rtsp", "mpegts", "mjpeg")]
        print(json.dumps(kinds, indent=2))
        return int(any(one["reader_bytes_a_frame"]["median"] > ALLOWED_BYTES for one in kinds))
    if wish.reconnects:
        found = soak(["test://?pattern=steps&rate=200&frames=60"], reconnects=wish.reconnects, leak_mb_h=wish.leak)
    else:
        minutes = wish.minutes or 1.0
        with four_sources(int(minutes * 60 * 25) + 1000) as urls:
            found = soak(urls, seconds=minutes * 60, leak_mb_h=wish.leak)
    print(json.dumps(found, indent=2))
    return 0 if found["within_bound"] and found["balanced"] else 1


if __name__ == "__main__":
    sys.exit(main())
