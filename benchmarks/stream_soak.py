"""Does a stream leak? Reconnects by the thousand and hours of frames, with a leak planted to prove that it would show.

::

    python benchmarks/stream_soak.py --reconnects 1000         # hang-ups, back-off shortened
    python benchmarks/stream_soak.py --minutes 30              # four sources: RTSP, MPEG-TS, MJPEG, test://
    python benchmarks/stream_soak.py --minutes 2 --leak 64     # a sink that leaks 64 MB an hour: it must be caught

Twice a second, while every source is connected: the proportional set size of this process and its readers
(``/proc/*/smaps_rollup``), file descriptors and threads of this process. The verdict is the upper 95 % bound of the
Theil–Sen slope of the second half (P. K. Sen, JASA 63, 1968), which single outliers don't move. Exit code 1: it leaks.
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

from tests.camera.levels import session
from tests.camera.publisher import Publisher
from vitedge.camera.engine import Engine
from vitedge.camera.records import FrameRecord, Item
from vitedge.camera.settings import Settings
from vitedge.camera.sink import QueuedSink
from vitedge.camera.uri import parse_sources

ALLOWED_MB_H = 4.0
PERIOD_S = 0.5


class Sample(NamedTuple):
    at_s: float
    pss_mb: float
    descriptors: int
    threads: int


class Slope(NamedTuple):
    mb_h: float
    lower_mb_h: float
    upper_mb_h: float


class Leak(QueuedSink):
    """Keeps so many megabytes an hour for ever."""

    def __init__(self, mb_h: float) -> None:
        self._rate, self._kept, self._begin = mb_h * 1e6 / 3600, bytearray(), time.monotonic()
        super().__init__("leak", (FrameRecord,))

    def write(self, item: Item, picture: Any) -> None:
        missing = int((time.monotonic() - self._begin) * self._rate) - len(self._kept)
        self._kept += os.urandom(max(0, missing))


def theil_sen(samples: Sequence[Sample], confidence: float = 0.95) -> Slope:
    """Median of all pairwise slopes, with Sen's interval from Kendall's variance."""
    slopes = sorted(
        (later.pss_mb - sooner.pss_mb) / (later.at_s - sooner.at_s) * 3600
        for index, sooner in enumerate(samples)
        for later in samples[index + 1 :]
    )
    count = len(samples)
    if count < 4:
        raise SystemExit(f"{count} samples are too few for a slope")
    spread = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, math.floor((len(slopes) - spread) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + spread) / 2))
    return Slope(median(slopes), slopes[low], slopes[high])


def pss_mb() -> float:
    """Proportional set size of this process and everything it started, megabytes."""
    total = 0.0
    for process in [os.getpid(), *_children(os.getpid())]:
        with contextlib.suppress(OSError, StopIteration):
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1]) * 1024 / 1e6
    return total


def _children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                if b"vitedge.camera.reader" in command:  # a publisher isn't ours
                    found += [child, *_children(child)]
    return found


def soak(
    sources: Sequence[str], *, seconds: float = math.inf, reconnects: int | None = None, leak_mb_h: float = 0.0
) -> dict[str, Any]:
    """Run until the time is over or so many connections ended; samples, slope, books, and the verdict."""
    settings = Settings(source=tuple(sources), backoff_min=0.02, backoff_max=0.05, policy="latest")
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder, session(Path(folder)) as opened:
        engine = Engine(opened, parse_sources(settings.source), settings, [Leak(leak_mb_h)] if leak_mb_h else [])
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=[engine, samples, over], daemon=True)
        watcher.start()
        begin, lost = time.monotonic(), 0
        for item in engine.items():
            lost += getattr(item, "kind", "") == "lost"
            if time.monotonic() - begin > seconds or (reconnects is not None and lost >= reconnects):
                engine.stop()
        over.set()
        watcher.join()
    assert engine.final is not None
    half = samples[len(samples) // 2 :]
    slope = theil_sen(half)
    steady = (
        max(half, key=lambda one: one.descriptors).descriptors - min(half, key=lambda one: one.descriptors).descriptors
    )
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "reconnects": lost,
        "frames": sum(source.books.classified for source in engine.final.sources),
        "balanced": all(source.books.balanced for source in engine.final.sources),
        "samples": len(samples),
        "pss_mb": [round(one.pss_mb, 2) for one in (half[0], half[-1])],
        "slope_mb_h": slope._asdict(),
        "descriptors_moved": steady,
        "threads": sorted({one.threads for one in half}),
        "leaks": slope.lower_mb_h > 0 and slope.upper_mb_h > ALLOWED_MB_H,
        "within_bound": slope.upper_mb_h <= ALLOWED_MB_H,
    }


def _watch(engine: Engine, samples: list[Sample], over: threading.Event) -> None:
    begin = time.monotonic()
    while not over.wait(PERIOD_S):
        states = [lane.capture.state for lane in engine._lanes]
        if states and all(state == "connected" for state in states):
            descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            found = Sample(time.monotonic() - begin, pss_mb(), descriptors, threading.active_count())
            if all(lane.capture.state == "connected" for lane in engine._lanes):
                samples.append(found)


@contextlib.contextmanager
def four_sources(frames: int) -> Any:
    """RTSP, MPEG-TS and MJPEG from their own processes, and a pattern."""
    with contextlib.ExitStack() as stack:
        urls = ["test://?pattern=steps&rate=25"]
        for kind, scheme in (("rtsp", "rtsp"), ("mpegts", "tcp"), ("mjpeg", "http")):
            camera = stack.enter_context(Publisher(kind, frames=frames))
            urls.append(f"{kind}={scheme}://127.0.0.1:{camera.port}/main")
        yield urls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reconnects", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--leak", type=float, default=0.0, metavar="MB_H")
    wish = parser.parse_args()
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
