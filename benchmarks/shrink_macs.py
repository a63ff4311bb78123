"""What `vitedge shrink --macs 0.6` costs in accuracy, as anybody would call it: one-shot, by pictures without labels.

    python benchmarks/shrink_macs.py embedded MODEL... --data TRAIN --test TEST [--macs 0.6] [--out FILE]

The fraction is that of all multiply-accumulates, a convolutional stem's among them. TRAIN has the pictures to shrink
by, and TEST labelled ones that nothing was chosen by. Exits with 7 where a model loses more than 0.7 points of TEST.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hard_cases import fidelity_of, line, summary
from peer_bars import Bar, environment, open_model, write

import vitedge
from vitedge.data.embedded import open_images
from vitedge.graph.surgery import load, macs
from vitedge.runtimes.interpreter import run_graph

ACTION = "shrink a model"
ALLOWED = 0.7  # points


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="+", help="embedded, or a model folder")
    parser.add_argument("--data", required=True, help="pictures to shrink by")
    parser.add_argument("--test", required=True, help="labelled pictures, one folder a class")
    parser.add_argument("--macs", type=float, default=0.6)
    parser.add_argument("--limit", type=int, help="the first so many of a seeded order of TEST")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    images = open_images(arguments.test, action=ACTION)
    order = images.order(1)[: arguments.limit]
    rows, bars = list[dict[str, Any]](), list[Bar]()
    for name in arguments.models:
        with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
            whole = open_model(name, Path(folder))
            small = vitedge.shrink(
                whole, "onnxruntime", Path(folder) / "small", macs=arguments.macs, data=arguments.data
            )
            graphs = [load(model.onnx_path) for model in (whole, small)]
        pictures = np.stack([whole.record.preprocessing.apply(images.read(index)) for index in order])
        labels = images.labels([each.folder for each in whole.record.classes], action=ACTION)[order]
        exact, narrow = (run_graph(graph, pictures, optimized=True) for graph in graphs)
        found = fidelity_of(exact, narrow, labels, images, order, whole)
        full, left = (sum(macs(graph).values()) for graph in graphs)
        print(f"{whole.record.name:24s}{left / full:7.1%} of {full / 1e6:.0f} MMACs{line(found)}", flush=True)
        top1 = 100 * float((exact.argmax(1) == labels).mean())
        row = {"model": whole.record.name, "macs": full, "left": left / full, "top1_percent": top1, **summary(found)}
        rows.append(row)
        lost, low, high = (row[key] for key in ("lost_pts", "low_pts", "high_pts"))
        what = f"{whole.record.name}: points at {arguments.macs:.0%} of the multiply-accumulates"
        bars.append(Bar(what, lost, ALLOWED, at_least=False, low=low, high=high))
    if arguments.out is not None:
        write(arguments.out, environment(["onnxruntime"], 0), bars, {"pictures": len(order), "rows": rows})
    return 0 if all(bar.met for bar in bars) else 7


if __name__ == "__main__":
    sys.exit(main())
