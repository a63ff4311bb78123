"""How close does `vitedge eval` come to a loop that finds its pictures decoded?

    python benchmarks/eval_throughput.py DATA [--limit 600] [--rounds 3] [--workers N] [--threads N]

DATA is a folder or archive of labelled pictures (CIFAR-10's test set for the published figure). The model is a
ViT-Ti/16 at 224×224 with random weights, float32 on ONNX Runtime: what it answers doesn't matter, what it costs does.
In each round both take a turn: eval's decoding and inference of the encoded files, and the same session over uint8
arrays that were decoded beforehand. Threads (0 workers) are shown beside processes, for the default was chosen between
them. The aim is 0.85 of the loop's images a second. Reading the digests and opening the session are in neither time;
starting the processes is in eval's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from random_models import random_model

from vitedge import api
from vitedge.data.images import ImageSet
from vitedge.device.hardware import processor
from vitedge.evaluation.decoding import decoded
from vitedge.runtimes.session import Session

CHUNK = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--limit", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="0 is threads")
    parser.add_argument("--threads", type=int, help="of the runtime")
    arguments = parser.parse_args()
    images = ImageSet.open(arguments.data)
    images = images.subset(sorted(images.order(0)[: arguments.limit]))
    with tempfile.TemporaryDirectory() as folder:
        model = random_model("vit_tiny_patch16_224", Path(folder) / "model", images.classes)
        artifact = api.export(model, "onnxruntime", "fp32", Path(folder) / "artifact")
        contract = artifact.manifest.preprocessing
        frames = [np.array(frame) for ready in decoded(images, [contract], CHUNK) for frame in ready.frames[contract]]
        with api.open(artifact, threads=arguments.threads) as session:
            warm = [frames[0]] * 8
            list(session.map_batches(warm))
            loops: list[float] = []
            evals: dict[int, list[float]] = {workers: [] for workers in arguments.workers}
            for _ in range(arguments.rounds):
                loops.append(rate(session, frames))
                for workers, found in evals.items():
                    found.append(eval_rate(session, images, workers))
    print(f"{processor().model}, {len(frames)} pictures, the best of {arguments.rounds} rounds")
    print(f"decoded beforehand   {max(loops):6.1f} images/s")
    for workers, found in evals.items():
        share = max(found) / max(loops)
        paired = statistics.median(ours / loop for ours, loop in zip(found, loops, strict=True))
        name = f"{workers} processes" if workers else "threads"
        print(f"decoding, {name:<11}{max(found):6.1f} images/s, {share:.3f} of it (median of the rounds {paired:.3f})")


def rate(session: Session, frames: list[np.ndarray]) -> float:
    start = time.perf_counter()
    list(session.map_batches(frames))
    return len(frames) / (time.perf_counter() - start)


def eval_rate(session: Session, images: ImageSet, workers: int) -> float:
    """What eval does of each chunk: decode it, run it."""
    start, count = time.perf_counter(), 0
    contract = session.artifact.manifest.preprocessing
    for ready in decoded(images, [contract], CHUNK, workers=workers):
        count += len(list(session.map_batches(ready.frames[contract])))
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
