"""A stream against a plain loop of decode, scale and inference, and its age at 30 frames a second.

::

    python benchmarks/stream_throughput.py ARTIFACT VIDEO [--rounds 3] [--threads N]

Both decode the same file with the same scaler and the same session options, in turns. The stream's time counts from its
first record to its last, as the loop's does: starting a reader is a matter of once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import av

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vitedge
from vitedge.streaming.records import percentiles
from vitedge.streaming.scale import scaler


def plain(artifact: str, video: str, threads: int | None) -> float:
    """Frames a second of one thing after the other."""
    with vitedge.open(artifact, threads=threads) as session, av.open(video) as container:
        scale = scaler(session.artifact.manifest.preprocessing)
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        count, begin = -1, 0.0
        for frame in container.decode(stream):
            session.predictions(session.run(scale(frame)[None])[0])
            count += 1
            begin = begin or time.perf_counter()
        return count / (time.perf_counter() - begin)


def streamed(artifact: str, video: str, threads: int | None) -> float:
    """Frames a second of ``vitedge.stream``."""
    count, begin, end = -1, 0.0, 0.0
    for _ in vitedge.stream(artifact, video, policy="every", threads=threads):
        end = time.perf_counter()
        count += 1
        begin = begin or end
    return count / (end - begin)


def age_at(artifact: str, rate: float, seconds: float, threads: int | None) -> dict[str, float]:
    """p99 of age on a live source, of inference alone, and the interval between frames: milliseconds."""
    ages = [
        record.age_ms
        for record in vitedge.stream(
            artifact, f"test://?rate={rate}&size=1280x720", duration=seconds, threads=threads, policy="latest"
        )
    ][int(rate) :]
    with vitedge.open(artifact, threads=threads) as session:
        import numpy as np

        image = np.zeros(session.input_shape, np.uint8)
        times = []
        for _ in range(200):
            start = time.perf_counter()
            session.run(image)
            times.append((time.perf_counter() - start) * 1e3)
    age, inference = percentiles(ages), percentiles(times)
    assert age is not None and inference is not None
    return {"age_p99_ms": age.p99_ms, "inference_p99_ms": inference.p99_ms, "interval_ms": 1000 / rate}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the live part")
    wish = parser.parse_args()
    loops, streams = [], []
    for _ in range(wish.rounds):
        loops.append(plain(wish.artifact, wish.video, wish.threads))
        streams.append(streamed(wish.artifact, wish.video, wish.threads))
    ratios = [stream / loop for stream, loop in zip(streams, loops, strict=True)]
    live = age_at(wish.artifact, 30.0, wish.seconds, wish.threads)
    found = {
        "plain_hz": [round(value, 1) for value in loops],
        "stream_hz": [round(value, 1) for value in streams],
        "ratio": round(median(ratios), 3),
        "live": {key: round(value, 2) for key, value in live.items()},
        "age_within_bound": live["age_p99_ms"] < live["interval_ms"] + live["inference_p99_ms"],
    }
    print(json.dumps(found, indent=2))
    return 0 if found["ratio"] >= 0.9 and found["age_within_bound"] else 1


if __name__ == "__main__":
    sys.exit(main())
