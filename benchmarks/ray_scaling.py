"""Do two nodes answer twice as many pictures a second as one, and the same as one process?

    python benchmarks/ray_scaling.py DATA [--rounds 6] [--pictures 4000] [--shard 200] [--out FILE]

DATA is a folder of labelled pictures, or a tar archive of one (CIFAR-10's 10,000 test pictures for the published
figure). The model is the embedded one in INT8 on ONNX Runtime. A Ray cluster on this machine has a head without cores,
which serves the driver, and two nodes of one core each, whose processes are pinned to it. In each round one actor, and
then two, evaluate some of the pictures by `vitedge.evaluate_shards`; the rate is that between the first quarter of the
shards and the last one, without the start of the actors. The aim is 0.85 of twice one actor's rate. At last two actors
evaluate all pictures, and their columns and intervals are held against those of one process's `vitedge.evaluate`. Exits
with 7 where a bar isn't met.

Beside other programs the rates say nothing: they leave one actor more of its core than each of two. `--rounds 0`
measures none, and says whether the answers are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peer_bars import Bar, environment, open_model, write

import vitedge
from vitedge import EngineOptions, Result
from vitedge.core.intervals import wilson
from vitedge.data.images import ImageSet
from vitedge.evaluation import many
from vitedge.evaluation.statistics import top_k

AIM = 0.85
CORES = sorted(os.sched_getaffinity(0))[:2]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--pictures", type=int, default=4000, help="of each rate")
    parser.add_argument("--shard", type=int, default=200, help="pictures in a shard")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitedge-") as name, cluster() as address:
        folder = Path(name)
        data = unpacked(arguments.data, folder / "data")
        artifact = vitedge.export(open_model("embedded", folder), "onnxruntime", "int8", folder / "int8")
        some = subset(data, arguments.pictures, folder / "some")

        def run(data: Path, actors: int) -> tuple[float, Result]:
            answers = str(folder / f"answers-{time.monotonic_ns()}")
            engine = EngineOptions(
                engine="ray", answers=answers, address=address, actors=actors, shard_pictures=arguments.shard
            )
            return rate(artifact, data, engine)

        rounds: list[dict[str, float]] = []
        for _ in range(arguments.rounds):
            one, two = (run(some, actors)[0] for actors in (1, 2))
            print(f"one node {one:.0f} images/s, two nodes {two:.0f}, {two / one / 2:.3f} of twice one", flush=True)
            rounds.append({"one_node": one, "two_nodes": two, "of_twice_one": two / one / 2})
        _, result = run(data, 2)
        alone = vitedge.evaluate([artifact], data, vitedge.OpenOptions(threads=1))
    same = float(told(alone) == told(result))
    bars = [Bar("engine: columns, counts and intervals equal those of one process", same, 1)]
    if ratios := [each["of_twice_one"] for each in rounds]:
        what, median = "two nodes: images a second, of twice one node's", statistics.median(ratios)
        bars.append(Bar(what, median, AIM, low=min(ratios), high=max(ratios)))
    for bar in bars:
        print(bar)
    if arguments.out:
        details = {"pictures": arguments.pictures, "shard": arguments.shard}
        details |= {"rounds": rounds, "one_process": summary(alone), "engine": summary(result)}
        write(arguments.out, environment(("ray", "onnxruntime"), threads=1), bars, details)
    return 0 if all(bar.met for bar in bars) else 7


def unpacked(data: Path, folder: Path) -> Path:
    """The folder of pictures, taken out of an archive that holds it."""
    if data.is_dir():
        return data
    with tarfile.open(data) as archive:
        archive.extractall(folder, filter="data")
    (only,) = folder.iterdir()
    return only


def subset(data: Path, count: int, folder: Path) -> Path:
    """A folder of links to so many of the pictures, by a seeded draw."""
    images = ImageSet.open(data)
    for index in images.order(0)[:count]:
        path = folder / images.records[index].key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(Path(images.members[index]).resolve())
    return folder


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """The address of a head without cores and two pinned nodes of one core each."""
    os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    everywhere = os.sched_getaffinity(0)
    try:
        for core in CORES:
            os.sched_setaffinity(0, {core})
            made.add_node(num_cpus=1)
        os.sched_setaffinity(0, everywhere)
        yield str(made.address)
    finally:
        os.sched_setaffinity(0, everywhere)
        made.shutdown()


def rate(artifact: vitedge.Artifact, data: Path, engine: EngineOptions) -> tuple[float, Result]:
    """Images a second, from the first quarter of the shards on, and the result."""
    arrivals: list[float] = []
    run = many.ENGINES["ray"]

    def timed(*given: Any) -> Iterator[tuple[str, bytes]]:
        for answers in run(*given):
            arrivals.append(time.perf_counter())
            yield answers

    many.ENGINES["ray"] = timed
    try:
        result = vitedge.evaluate_shards([artifact], data, engine)
    finally:
        many.ENGINES["ray"] = run
    first = len(arrivals) // 4
    pictures = (len(arrivals) - 1 - first) * engine.shard_pictures
    return pictures / (arrivals[-1] - arrivals[first]), result


def told(result: Result) -> Mapping[str, Any]:
    """What both ways must tell alike: every column, and what follows from it."""
    (row,), data = result.rows, result.data
    assert row.accuracy is not None and row.accuracy.calibrated is not None and data is not None
    return {
        **summary(result),
        "columns": (data, row.accuracy.predicted, row.accuracy.rank),
        "bins": (row.accuracy.calibrated.count, row.accuracy.calibrated.correct),
    }


def summary(result: Result) -> dict[str, Any]:
    accuracy = result.rows[0].accuracy
    assert accuracy is not None
    pictures, right = len(accuracy.rank), top_k(accuracy, 1)
    return {"pictures": pictures, "top1": right, "top5": top_k(accuracy, 5), "interval": list(wilson(right, pictures))}


if __name__ == "__main__":
    sys.exit(main())
