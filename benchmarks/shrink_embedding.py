"""What fewer channels of the embedding cost, by three ways, on pictures that nothing was chosen by.

    python benchmarks/shrink_embedding.py DATA [--model embedded] [--calibration PICTURES] [--limit N] [--out FILE]

======  ==========================================================================================
cut     the channels that vary most behind the LayerNorms stay as they are
turned  the channels are turned, and the directions that vary least and are looked at least left out
fitted  `vitedge.shrinking.shrink`: turned, and the layers that read the embedding are fitted
======  ==========================================================================================

Exits with 7 where fitting doesn't lose least at every width.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from peer_bars import Bar, decoded, environment, open_model, write
from shrink_accuracy import divergence

from vitedge.data.embedded import open_images
from vitedge.graph.surgery import load, macs
from vitedge.graph.unused_tokens import rows_computed
from vitedge.runtimes.interpreter import run_graph
from vitedge.shrinking.activations import Activations
from vitedge.shrinking.embedding import NAME, Directions, Embedding, embedding_of, normalised
from vitedge.shrinking.rewrite import Rewriter
from vitedge.shrinking.shrink import batch_of, shrink

ACTION = "shrink a model's embedding"
FRACTIONS = (0.92, 0.84, 0.75, 0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", help="pictures to compare on, or the name of embedded ones")
    parser.add_argument("--model", default="embedded", help="or a model folder")
    parser.add_argument("--calibration", default="calibration", help="pictures to shrink by")
    parser.add_argument("--count", type=int, default=1000, help="of them")
    parser.add_argument("--limit", type=int, help="the first so many of a seeded order of DATA")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        model = open_model(arguments.model, Path(folder))
        graph = load(model.onnx_path)
    pictures = decoded(model, open_images(arguments.data, action=ACTION), arguments.limit)
    seen = decoded(model, open_images(arguments.calibration, action=ACTION), arguments.count)
    found = embedding_of(graph)
    assert found is not None, "the model has no embedding that could become narrower"
    exact = run_graph(graph, pictures, optimized=True)
    print(f"{model.record.name}: {len(pictures)} pictures; shrunk by {len(seen)}")
    print(f"{'channels':>8}{'MACs':>7}  {'way':<8}{'mean KL':>10}{'flips':>8}")
    rows, bars = list[dict[str, Any]](), list[Bar]()
    for width in (int(fraction * found.width) // 8 * 8 for fraction in FRACTIONS):
        lost = dict[str, float]()
        for way, narrow in ways(graph, found, width, seen):
            logits = run_graph(narrow, pictures, optimized=True)
            flips = 100 * float((logits.argmax(1) != exact.argmax(1)).mean())
            left, lost[way] = sum(macs(narrow).values()) / sum(macs(graph).values()), divergence(exact, logits)
            print(f"{width:>8}{left:>7.1%}  {way:<8}{lost[way]:>10.5f}{flips:>7.2f}%", flush=True)
            rows.append({"width": width, "macs": left, "way": way, "mean_kl": lost[way], "flips_percent": flips})
        others = min(lost["cut"], lost["turned"])
        bars.append(Bar(f"KL at {width} channels over the better other", lost["fitted"] / others, 1, at_least=False))
    if arguments.out is not None:
        details = {"model": model.record.name, "pictures": len(pictures), "shrunk_by": len(seen), "rows": rows}
        write(arguments.out, environment(["onnxruntime", "numpy"], 0), bars, details)
    return 0 if all(bar.met for bar in bars) else 7


def ways(
    graph: onnx.ModelProto, found: Embedding, width: int, seen: NDArray[np.uint8]
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The graph with so many channels by each way."""
    batches = list(Activations(graph, seen, batch_of(seen)).run(graph, found.tensors))
    spread = np.sum(
        [np.square(normalised(values[name])).mean(axis=0) for values in batches for name in found.tensors], axis=0
    )
    chosen = np.sort(np.argsort(-spread)[:width])
    yield "cut", rewritten(graph, found, np.eye(found.width)[:, chosen])
    yield "turned", rewritten(graph, found, Directions(found, batches, rows_computed(graph)).basis(width))
    yield "fitted", shrink(graph, {NAME: width}, seen).model


def rewritten(graph: onnx.ModelProto, found: Embedding, basis: NDArray[np.float64]) -> onnx.ModelProto:
    """The graph whose embedding has the channels of a basis [channels, fewer]."""
    rewriter = Rewriter(graph)
    rewriter.embedding(found, basis)
    return rewriter.finished()


if __name__ == "__main__":
    sys.exit(main())
