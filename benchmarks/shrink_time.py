"""What shrinking a ViT-S/16 at 224 pixels takes: minutes and memory, one-shot, with two threads.

    python benchmarks/shrink_time.py PICTURES [--model ViT-S/16] [--macs 0.6] [--out FILE]

The weights are random, as neither time nor memory depends on them. Exits with 7 where 300 pictures take 15 minutes or
8 GB and more.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from peer_bars import MODELS, Bar, environment, open_model, write

import vitedge

PICTURES, THREADS = 300, 2
MOST_MINUTES, MOST_GB = 15, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", help="pictures to shrink by")
    parser.add_argument("--model", default="ViT-S/16", help=f"{', '.join(MODELS)}, or a model folder")
    parser.add_argument("--macs", type=float, default=0.6)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        model = open_model(arguments.model, Path(folder))
        start = time.perf_counter()
        vitedge.shrink(
            model,
            "onnxruntime",
            Path(folder) / "small",
            macs=arguments.macs,
            data=arguments.data,
            num_samples=PICTURES,
            threads=THREADS,
        )
        minutes = (time.perf_counter() - start) / 60
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{model.record.name}: {minutes:.1f} minutes, {gigabytes:.1f} GB at most")
    bars = [
        Bar("minutes", minutes, MOST_MINUTES, at_least=False),
        Bar("gigabytes", gigabytes, MOST_GB, at_least=False),
    ]
    if arguments.out is not None:
        details = {"model": model.record.name, "pictures": PICTURES, "macs": arguments.macs, "data": arguments.data}
        write(arguments.out, environment(["onnxruntime", "numpy"], THREADS), bars, details)
    return 0 if all(bar.met for bar in bars) else 7


if __name__ == "__main__":
    sys.exit(main())
