"""What removing part of a model's blocks costs in accuracy, one-shot and by unlabelled pictures alone.

    python benchmarks/shrink_accuracy.py DATA [--model embedded] [--calibration PICTURES] [--limit N] [--out FILE]

DATA has labelled pictures, one folder a class, which nothing was chosen by: CIFAR-10's 10,000 test pictures for the
figure that counts (`held-out` while something is still being chosen). CALIBRATION has the pictures to shrink by; their
labels aren't read. For each fraction of the blocks' multiply-accumulates the widths are chosen by
`vitedge.shrinking.costs`, and the same widths are reached in five ways:

=============  ========================================================================================================
shrunk         each layer on what the narrower ones before it compute, its target what the original computes
adjusted       the same; then all weights of each branch by gradient descent, from 1,000 pictures on
apart          each layer as if it alone became narrower
uncompensated  the units that "shrunk" keeps, nothing made up for; of queries, keys and values the largest channels
magnitude      the units with the largest weights
=============  ========================================================================================================

Exits with 7 where 60 % of the blocks' multiply-accumulates cost more than 0.5 points, or 70 % more than 0.2.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from peer_bars import Bar, environment, open_model, write

from vitedge.core.activations import log_softmax
from vitedge.data.embedded import open_images
from vitedge.graph.surgery import load, macs
from vitedge.runtimes.interpreter import run_graph
from vitedge.shrinking.components import components, truncate
from vitedge.shrinking.costs import costs
from vitedge.shrinking.rewrite import Side, read_attention
from vitedge.shrinking.shrink import shrink
from vitedge.shrinking.structures import Attention, Pair, structures

ASKED = "shrink a model"
FRACTIONS = (0.7, 0.6, 0.5)
ALLOWED = {0.6: 0.5, 0.7: 0.2}  # points, by fraction of the blocks' multiply-accumulates
Widths = dict[str, int]
Table = Mapping[str, Mapping[int, float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", help="labelled pictures, or the name of embedded ones")
    parser.add_argument("--model", default="embedded", help="or a model folder")
    parser.add_argument(
        "--calibration", default="calibration", help="pictures to shrink by, or the name of embedded ones"
    )
    parser.add_argument("--count", type=int, default=300, help="of them")
    parser.add_argument("--limit", type=int, help="the first so many of a seeded order of DATA")
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=FRACTIONS, help="of the blocks' MACs that are left"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    images = open_images(arguments.data, action=ASKED)
    order = images.order(1)[: arguments.limit]
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        model = open_model(arguments.model, Path(folder))
        graph = load(model.onnx_path)
    apply = model.record.preprocessing.apply
    labels = images.labels([each.folder for each in model.record.classes], action=ASKED)[order]
    pictures = np.stack([apply(images.read(index)) for index in order])
    source = open_images(arguments.calibration, action=ASKED)
    seen = np.stack([apply(source.read(index)) for index in source.order(0)[: arguments.count]])
    exact = run_graph(graph, pictures, optimized=True)
    right = exact.argmax(1) == labels
    print(f"{model.record.name}: {len(pictures)} pictures, {100 * right.mean():.2f} % right; shrunk by {len(seen)}")
    start = time.perf_counter()
    table, work = weighed(graph, seen)
    weighing_s = time.perf_counter() - start
    print(f"{'':28s}{'points':>8s}{'flips':>9s}{'mean KL':>10s}   ({weighing_s:.0f} s to weigh)", flush=True)
    rows, bars = [], []
    for fraction in arguments.fractions:
        widths = widths_at(graph, table, work, fraction)
        for way, narrow, seconds in ways(graph, widths, seen):
            logits = run_graph(narrow, pictures, optimized=True)
            found = {
                "points": 100 * float(right.mean() - (logits.argmax(1) == labels).mean()),
                "flips_percent": 100 * float((logits.argmax(1) != exact.argmax(1)).mean()),
                "mean_kl": divergence(exact, logits),
            }
            left = block_macs(narrow) / block_macs(graph)
            print(
                f"{left:6.1%} {way:20s}{found['points']:8.2f}{found['flips_percent']:8.2f}%{found['mean_kl']:10.5f}",
                flush=True,
            )
            rows.append({"block_macs": left, "way": way, "seconds": seconds, **found, "widths": widths})
            if way == "shrunk" and fraction in ALLOWED:
                bars.append(Bar(f"points at {fraction:.0%}", found["points"], ALLOWED[fraction], at_least=False))
    if arguments.out is not None:
        details = {
            "model": model.record.name,
            "data": arguments.data,
            "pictures": len(pictures),
            "top1_percent": 100 * float(right.mean()),
            "shrunk_by": len(seen),
            "weighing_s": weighing_s,
            "rows": rows,
        }
        write(arguments.out, environment(["onnxruntime", "numpy"], 0), bars, details)
    return 0 if all(bar.met for bar in bars) else 7


def block_macs(graph: onnx.ModelProto) -> int:
    """Multiply-accumulates of the blocks at batch 1, attention's products included."""
    return sum(count for name, count in macs(graph).items() if name.startswith("blocks."))


def weighed(graph: onnx.ModelProto, seen: NDArray[np.uint8]) -> tuple[Table, Table]:
    """The error that each width of the blocks' components adds, and the blocks' multiply-accumulates at it."""
    parts = (each for each in components(graph) if each.kind != "tokens")
    own = {each.name: each.offered for each in parts if each.name.startswith("blocks.")}
    work = {name: {width: block_macs(truncate(graph, {name: width})) for width in own[name]} for name in own}
    return costs(graph, seen, names=own), work


def widths_at(graph: onnx.ModelProto, table: Table, work: Table, fraction: float) -> Widths:
    """The widths of least error plus a price of multiply-accumulates, which is bisected until these are few enough.

    Args:
        graph: the whole model's.
        table: the error of each component's widths.
        work: the blocks' multiply-accumulates once one component alone has a width.
        fraction: of the blocks' multiply-accumulates that may be left.
    """

    def at(logarithm: float) -> Widths:
        price = np.exp(logarithm)
        return {
            name: min(work[name], key=lambda width, name=name: table[name][width] + price * work[name][width])  # type: ignore[misc]
            for name in work
        }

    low, high, least = -50.0, 10.0, fraction * block_macs(graph)
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if block_macs(truncate(graph, at(middle))) <= least else (middle, high)
    return at(high)


def ways(
    graph: onnx.ModelProto, widths: Widths, seen: NDArray[np.uint8]
) -> Iterator[tuple[str, onnx.ModelProto, float]]:
    """The graph at these widths by each way, and the seconds that it took."""
    start = time.perf_counter()
    shrunk = shrink(graph, widths, seen)
    yield "shrunk", shrunk.model, time.perf_counter() - start
    start = time.perf_counter()
    yield "adjusted", shrink(graph, widths, seen, adjust=True).model, time.perf_counter() - start
    start = time.perf_counter()
    yield "apart", shrink(graph, widths, seen, sequential=False).model, time.perf_counter() - start
    largest = by_magnitude(graph, widths)
    kept = {name: each.units for name, each in shrunk.kept.items() if each.units is not None}
    yield "uncompensated", truncate(graph, widths, {**largest, **kept}), 0.0
    yield "magnitude", truncate(graph, widths, largest), 0.0


def by_magnitude(graph: onnx.ModelProto, widths: Widths) -> dict[str, list[int]]:
    """The units of each component with the largest products of the norms of what makes and what reads them."""
    chosen = {}
    for structure in structures(graph):
        if isinstance(structure, Pair):
            made = np.square(structure.first.matrix).sum(axis=0).reshape(-1, structure.width).sum(axis=0)
            read = np.square(structure.second.matrix).reshape(structure.width, -1).sum(axis=1)
            sizes = {structure.name: made * read}
        elif isinstance(structure, Attention):
            weights = read_attention(structure)
            read = np.square(weights.projection).sum(axis=1).reshape(structure.heads, -1)
            values = squares(weights.value) * read
            queries = (squares(weights.query) * squares(weights.key)).sum(axis=0)
            queries = queries.reshape(2, -1).sum(axis=0) if structure.rotary is not None else queries
            name = structure.name
            sizes = {
                f"{name}.heads": values.sum(axis=1),
                f"{name}.value": values.sum(axis=0),
                f"{name}.query_key": queries,
            }
        else:
            continue
        for name, size in sizes.items():
            count = widths.get(name, structure.present()[name])
            count = count // 2 if len(size) < structure.present()[name] else count  # pairs
            chosen[name] = sorted(np.argsort(-size, kind="stable")[:count].tolist())
    return chosen


def squares(side: Side) -> NDArray[np.float64]:
    """Squared norms of every head's channels [heads, channels]."""
    return np.asarray(np.square(side.weight).sum(axis=0))


def divergence(exact: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Mean KL divergence of the softmax from the original's, nats."""
    p, q = log_softmax(exact.astype(np.float64)), log_softmax(logits.astype(np.float64))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


if __name__ == "__main__":
    sys.exit(main())
