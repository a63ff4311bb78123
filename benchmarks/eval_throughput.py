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

from vitedge import pipeline
from vitedge.accuracy.decoding import decoded
from vitedge.architecture import PatchStem, ViTConfig
from vitedge.artifact import Artifact
from vitedge.graph.author import author_vit, expected_parameters
from vitedge.graph.surgery import to_bytes
from vitedge.hardware import processor
from vitedge.images import ImageSet
from vitedge.model_folder import ModelRecord, Origin, class_table, write_model
from vitedge.preprocessing import Preprocessing
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
        artifact = exported(Path(folder), images)
        contract = artifact.manifest.preprocessing
        frames = [np.array(frame) for ready in decoded(images, [contract], CHUNK) for frame in ready.frames[contract]]
        with pipeline.open(artifact, threads=arguments.threads) as session:
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


def exported(folder: Path, images: ImageSet) -> Artifact:
    """ViT-Ti/16 with random weights and the classes of the pictures."""
    config = ViTConfig(
        image_size=(224, 224),
        stem=PatchStem(patch_size=16),
        embed_dim=192,
        depth=12,
        num_heads=3,
        mlp_hidden=768,
        num_classes=len(images.classes),
    )
    draw = np.random.default_rng(0)
    arrays = {
        name: (draw.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)
        for name, shape in expected_parameters(config, folded_stem=False)
    }
    preprocessing = Preprocessing(size=(224, 224), crop_fraction=0.9)
    record = ModelRecord(
        name="vit-tiny",
        classes=class_table(list(images.classes)),
        preprocessing=preprocessing,
        origin=Origin(kind="onnx", source="random weights"),
        architecture=config,
    )
    graph = author_vit(config, arrays, mean=preprocessing.mean, std=preprocessing.std)
    model = write_model(folder / "model", record, {"model.onnx": to_bytes(graph)})
    return pipeline.export(model, "onnxruntime", "fp32", folder / "artifact")


if __name__ == "__main__":
    main()
