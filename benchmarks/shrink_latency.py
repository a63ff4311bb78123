"""Does `vitedge shrink` meet the budget that it's given, at what loss? INT8, ONNX Runtime and OpenVINO.

    python benchmarks/shrink_latency.py MODEL --data PICTURES --held-out LABELLED [--speedup 1.5]
        [--finetuned 2.0 --finetune EPOCHS [--labelled PICTURES]] [--threads 2] [--out FILE]

MODEL is a folder of `vitedge train`, or `embedded`. For every target and speed-up it is shrunk by the unlabelled
pictures (for `--finetuned` also trained with the whole model as teacher, by them or by labelled ones), and exported in
INT8 like the whole one. Then both artifacts are measured again, interleaved in a run of their own, and evaluated on the
held-out pictures.
Exits with 7 where a bar is missed: the measured speed-up within 2 % of the budget (medians), at most 0.5 points of
top-1 below the whole INT8 artifact, and at most 30 minutes for shrinking with training.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import vitedge
from vitedge.comparison.options import PairedConfig
from vitedge.core.progress import bars
from vitedge.device.hardware import processor
from vitedge.runtimes.options import OpenOptions
from vitedge.shrinking.shrinkage import shrinkage_of

PRECISION = "int8"
MET, MOST_LOST_PP, MOST_MINUTES = 0.02, 0.5, 30


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="unlabelled pictures")
    parser.add_argument("--held-out", required=True, help="labelled pictures that the model wasn't trained on")
    parser.add_argument("--speedup", type=float, nargs="*", default=[1.5], help="without training")
    parser.add_argument("--finetuned", type=float, nargs="*", default=[], help="with repair by training")
    parser.add_argument("--finetune", type=int, default=4, help="epochs of that")
    parser.add_argument("--labelled", help="labelled pictures to train on; without, those of --data")
    parser.add_argument("--targets", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--threads", type=int, default=2, help="of each session; training takes all cores")
    parser.add_argument("--limit", type=int, help="labelled pictures to compare on")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model: Any = Path(arguments.model)
        if arguments.model == "embedded":
            model = vitedge.import_model("embedded", Path(folder) / "embedded")
        rows = [
            row(model, target, speedup, epochs, arguments, Path(folder))
            for target in arguments.targets
            for speedups, epochs in ((arguments.speedup, None), (arguments.finetuned, arguments.finetune))
            for speedup in speedups
        ]
    print(f"{'target':<14}{'epochs':>6}{'budget':>8}{'medians':>10}{'fastest':>10}{'MACs':>7}{'top-1 drop (pp)':>26}")
    for each in rows:
        drop = "{drop_pp:.2f} ({low_pp:.2f} to {high_pp:.2f})".format(**each)
        figures = f"{each['budget']:>8.2f}{each['median']:>10.3f}{each['fastest']:>10.3f}{each['macs']:>7.0%}"
        print(f"{each['target']:<14}{each['epochs'] or 0:>6}{figures}{drop:>26}  {'' if passed(each) else 'missed'}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"precision": PRECISION, "rows": rows}, indent=1) + "\n")
    return 0 if all(passed(each) for each in rows) else 7


def passed(row: dict[str, Any]) -> bool:
    """Whether a row holds every bar."""
    quick = row["epochs"] is None or row["shrinking_s"] <= 60 * MOST_MINUTES
    return quick and abs(row["median"] / row["budget"] - 1) <= MET and row["drop_pp"] <= MOST_LOST_PP


def row(
    model: Any, target: str, speedup: float, epochs: int | None, arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """One budget on one target: what was asked, what was measured, what it lost."""
    place = folder / f"{target}-{speedup}-{epochs}"
    place.mkdir()
    asked: Any = {"speedup": speedup, "precision": PRECISION, "threads": arguments.threads}
    if epochs is not None:
        asked |= {"finetune": epochs, "labelled": arguments.labelled}
    start = time.perf_counter()
    with bars() as progress:
        shrunk = vitedge.shrink(model, target, place / "small", data=arguments.data, progress=progress, **asked)
    shrinking_s = time.perf_counter() - start
    done = shrinkage_of(shrunk.record.origin)
    assert done is not None
    whole, small = (
        vitedge.export(each, target, PRECISION, place / name, data=arguments.data)
        for each, name in ((model, "whole-int8"), (shrunk, "small-int8"))
    )
    options = OpenOptions(threads=arguments.threads)
    how = {"data": arguments.held_out, "limit": arguments.limit, "config": PairedConfig(duration_s=10)}
    _, (compared,) = vitedge.compare(whole, [small], options=options, **how)
    median, fastest, lost = compared.median_ratio, compared.best_case_ratio, compared.accuracy
    assert median is not None and fastest is not None and lost is not None
    return {
        "processor": processor().model,
        "threads": arguments.threads,
        "target": target,
        "budget": speedup,
        "epochs": epochs,
        "labelled": epochs is not None and arguments.labelled is not None,
        "shrinking_s": shrinking_s,
        "median": 1 / median.value,
        "fastest": 1 / fastest.value,
        "said": done.speedup,
        "macs": done.macs_after / done.macs_before,
        "drop_pp": lost.top1_drop_pp,
        "low_pp": lost.low_pp,
        "high_pp": lost.high_pp,
        "images": lost.images,
        "removed": [[each.component, each.before, each.after] for each in done.removed],
    }


if __name__ == "__main__":
    sys.exit(main())
