"""What INT8 loses by the number of calibration pictures: the default recipe on a few of them, and on many.

    python benchmarks/calibration_size.py embedded MODEL --data TRAIN --test TEST [--limit N] [--out FILE]

TRAIN and TEST have one folder a class. For every number of pictures and every seed the default recipe observes so many
pictures of TRAIN, drawn by the seed, and the artifact is compared with the float32 graph on the pictures of TEST: top-1
drop with its paired 95 % interval, and mean KL. `python benchmarks/tables.py` writes the table of
docs/quantization-results.md from `--out benchmarks/results/calibration_size.json`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hard_cases import executed, fidelity_of, line, summary
from msgspec.structs import replace
from peer_bars import environment, open_model, write

import vitedge
from vitedge.data.embedded import open_images
from vitedge.data.images import ImageSet
from vitedge.formats.model_folder import Model
from vitedge.formats.recipe import load_recipe
from vitedge.graph.surgery import load
from vitedge.runtimes.interpreter import run_graph

ACTION = "measure the number of calibration pictures"
TARGETS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
COUNTS = (4, 8, 16, 32, 64, 128, 256, 512)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="+", help="embedded, or a model folder")
    parser.add_argument("--data", required=True, type=Path, help="pictures to calibrate on")
    parser.add_argument("--test", required=True, help="labelled pictures to compare on")
    parser.add_argument("--limit", type=int, help="the first so many of a seeded order of TEST")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    where, rows = environment(("onnxruntime", "openvino"), threads=1), list[dict[str, Any]]()
    images = open_images(arguments.test, action=ACTION)
    order = images.order(1)[: arguments.limit]
    details: dict[str, Any] = {"data": images.source.name, "pictures": len(order), "rows": rows}
    for name in arguments.models:
        with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
            for row in measure(open_model(name, Path(folder)), images, order, arguments, Path(folder)):
                rows.append(row)
                if arguments.out:  # as far as it got
                    write(arguments.out, where, (), details)
    return 0


def measure(
    model: Model, images: ImageSet, order: list[int], arguments: argparse.Namespace, folder: Path
) -> Iterator[dict[str, Any]]:
    """One row for every number, seed and target."""
    recipe, record = load_recipe("default"), model.record
    labels = images.labels([each.folder for each in record.classes], action=ACTION)[order]
    pictures = np.stack([record.preprocessing.apply(images.read(index)) for index in order])
    exact = run_graph(load(model.onnx_path), pictures, optimized=True)
    float32 = 100 * float((exact.argmax(1) == labels).mean())
    print(f"{record.name}: float32 has {float32:.2f} % of {len(pictures)} pictures right", flush=True)
    for count in map(int, arguments.counts.split(",")):
        for seed in range(arguments.seeds):
            drawn = replace(recipe, observe=replace(recipe.observe, seed=seed))
            for target in arguments.targets.split(","):
                artifact = vitedge.export(
                    model,
                    target,
                    "int8",
                    folder / "artifact",
                    recipe=drawn,
                    data=arguments.data,
                    num_samples=count,
                    held_out="held-out",
                    overwrite=True,
                )
                found = fidelity_of(exact, executed(artifact)(pictures), labels, images, order, model)
                print(f"{record.name:20s}{target:12s}{count:5d}{seed:3d}{line(found)}", flush=True)
                yield {
                    "model": record.name,
                    "float32_top1_percent": float32,
                    "target": target,
                    "count": count,
                    "seed": seed,
                    **summary(found),
                }


if __name__ == "__main__":
    sys.exit(main())
