"""How much top-1 INT8 costs the embedded model at most: the upper 95 % bound of the paired drop, by runtime.

    python benchmarks/drop_bound.py DATA [--limit N] [--model embedded] [--recipe default] [--out FILE]

DATA has one folder a class: for the figure that counts CIFAR-10's 10,000 test pictures, which nothing was chosen by
(`held-out` while something is still being chosen). Every artifact is exported as users export it, with the embedded
calibration pictures. ONNX Runtime and OpenVINO run theirs; TensorRT's typed graph is interpreted. The float32 logits
are the canonical graph's. Exits with 7 where a bound is above 0.3 points.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from hard_cases import TARGETS, executed, fidelity_of, interpreted, line, summary
from peer_bars import Bar, environment, open_model, write

import vitedge
from vitedge.data.embedded import open_images
from vitedge.evaluation.evaluate import refuse_calibrated
from vitedge.graph.surgery import load
from vitedge.runtimes.interpreter import run_graph

ALLOWED = 0.3
ASKED = "bound the drop"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", help="labelled pictures, or the name of embedded ones")
    parser.add_argument("--limit", type=int, help="the first so many of a seeded order")
    parser.add_argument("--model", default="embedded", help="or a folder of the embedded architecture")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    images = open_images(arguments.data, action=ASKED)
    order = images.order(1)[: arguments.limit]
    wanted = set(order)
    digests = [images.digest(index) if index in wanted else None for index in range(len(images))]
    bars, rows = [], []
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        model = open_model(arguments.model, Path(folder))
        labels = images.labels([each.folder for each in model.record.classes], action=ASKED)[order]
        pictures = np.stack([model.record.preprocessing.apply(images.read(index)) for index in order])
        exact = run_graph(load(model.onnx_path), pictures, optimized=True)
        right = 100 * float((exact.argmax(1) == labels).mean())
        print(f"{len(pictures)} pictures of {images.source.name}, float32 has {right:.2f} % right")
        print(f"{'':28s}{'points lost (95 %)':>26s}{'flips':>9s}{'mean KL':>10s}")
        for target, name in TARGETS.items():
            artifact = vitedge.export(model, target, "int8", Path(folder) / target, recipe=arguments.recipe)
            refuse_calibrated(artifact, digests, images, ASKED)
            run = interpreted(artifact) if target == "tensorrt" else executed(artifact)
            found = fidelity_of(exact, run(pictures), labels, images, order, model)
            assert found.top1_drop is not None
            print(f"{name:28s}{line(found)}", flush=True)
            rows.append({"target": target, "form": artifact.manifest.variant, **summary(found)})
            upper = f"{name}: upper bound of the top-1 drop, pp"
            bars.append(Bar(upper, found.top1_drop.high, ALLOWED, at_least=False))
    for bar in bars:
        print(bar)
    if arguments.out:
        details = {"data": images.source.name, "pictures": len(pictures), "float32_top1_percent": right, "rows": rows}
        write(arguments.out, environment(("onnxruntime", "openvino"), threads=1), bars, details)
    return 0 if all(bar.met for bar in bars) else 7


if __name__ == "__main__":
    sys.exit(main())
