"""Does INT8 cost a shrunk model more than the whole one? Each against its own float32, on ONNX Runtime and OpenVINO.

    python benchmarks/shrink_int8.py [--model embedded] [--data held-out] [--calibration calibration] [--out FILE]

The model is shrunk to 70 % and 60 % of its blocks' multiply-accumulates, and to 84 % of its embedding alone. Each is
exported in INT8 like the whole one, by the same calibration pictures. What counts is the mean KL divergence of the
artifact's answers from the float32 graph's of the same model. Exits with 7 where a shrunk model's is more than 1.25
times the whole one's: it has fewer channels for the same information.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from peer_bars import Bar, decoded, environment, open_model, write
from shrink_accuracy import block_macs, divergence, weighed, widths_at

import vitedge
from vitedge.data.embedded import open_images
from vitedge.formats.model_folder import Model, write_model
from vitedge.graph.surgery import load
from vitedge.runtimes.interpreter import run_graph
from vitedge.shrinking.components import components
from vitedge.shrinking.embedding import NAME
from vitedge.shrinking.files import model_files
from vitedge.shrinking.shrink import shrink

ASKED = "shrink a model"
TARGETS, FRACTIONS, EMBEDDING, MARGIN = ("onnxruntime", "openvino"), (0.7, 0.6), 0.84, 1.25
WHOLE = "whole"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="embedded", help="or a model folder")
    parser.add_argument("--data", default="held-out", help="pictures to compare on, or the name of embedded ones")
    parser.add_argument("--calibration", default="calibration", help="pictures to shrink and to calibrate by")
    parser.add_argument("--count", type=int, default=300, help="of them to shrink by; adjusted from 1,000 on")
    parser.add_argument("--limit", type=int, default=1000, help="pictures to compare on")
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        whole = open_model(arguments.model, Path(folder))
        pictures = decoded(whole, open_images(arguments.data, action=ASKED), arguments.limit)
        seen = decoded(whole, open_images(arguments.calibration, action=ASKED), arguments.count)
        models = {WHOLE: whole, **dict(shrunk(whole, seen, Path(folder)))}
        rows = [
            row(name, model, target, pictures, arguments, Path(folder))
            for target in arguments.targets
            for name, model in models.items()
        ]
    bars = []
    print(f"{'target':<14}{'blocks MACs':>12}{'KL':>11}{'times':>8}{'flips':>8}   ({len(pictures)} pictures)")
    for each in rows:
        base = next(other for other in rows if other["target"] == each["target"] and other["model"] == WHOLE)
        times = each["mean_kl"] / base["mean_kl"]
        print(
            f"{each['target']:<14}{each['model']:>12}{each['mean_kl']:>11.6f}{times:>8.2f}{each['flips_percent']:>7.2f}%"
        )
        if each is not base:
            bars.append(Bar(f"{each['target']}, {each['model']}: KL, times", times, MARGIN, at_least=False))
    if arguments.out is not None:
        details = {"model": arguments.model, "data": arguments.data, "pictures": len(pictures), "rows": rows}
        write(arguments.out, environment(["onnxruntime", "openvino"], 0), bars, details)
    return 0 if all(bar.met for bar in bars) else 7


def shrunk(whole: Model, seen: NDArray[np.uint8], folder: Path) -> Iterator[tuple[str, Model]]:
    """Model folders at the fractions of the blocks' multiply-accumulates; with "E", of a narrower embedding alone."""
    graph = load(whole.onnx_path)
    errors, work = weighed(graph, seen)
    embedding = next(each.width for each in components(graph) if each.name == NAME)
    ways = [(widths_at(graph, errors, work, fraction), "") for fraction in FRACTIONS]
    ways.append(({NAME: int(EMBEDDING * embedding) // 8 * 8}, " E"))
    for widths, which in ways:
        narrow = shrink(graph, widths, seen, adjust=True).model
        files, architecture = model_files(narrow, whole.record)
        record = replace(whole.record, architecture=architecture, accuracy=None)
        left = f"{block_macs(narrow) / block_macs(graph):.1%}{which}"
        yield left, write_model(folder / left, record, files)


def row(
    name: str, model: Model, target: str, pictures: NDArray[np.uint8], arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """A model in INT8 against itself in float32."""
    exact = run_graph(load(model.onnx_path), pictures, optimized=True)
    given = {} if arguments.model == "embedded" else {"data": arguments.calibration}
    artifact = vitedge.export(model, target, "int8", folder / f"{name}-{target}", **given)
    with vitedge.open(artifact) as session:
        logits = np.stack(list(session.map_batches(pictures)))
    return {
        "target": target,
        "model": name,
        "mean_kl": divergence(exact, logits),
        "flips_percent": 100 * float((logits.argmax(1) != exact.argmax(1)).mean()),
    }


if __name__ == "__main__":
    sys.exit(main())
