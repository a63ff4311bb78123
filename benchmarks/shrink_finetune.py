"""What a shrunk model learns from: the whole one's probabilities alone, or its features, too.

    python benchmarks/shrink_finetune.py [MODEL] [--data PICTURES] [--held-out LABELLED] [--macs 0.5] [--epochs 1 3]

The same shrunk model is trained on the same unlabelled pictures in the same order by both lessons, and compared with
the whole one on the hold-out pictures. Exits with 7 where features make the mean KL divergence worse.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from peer_bars import Bar, environment, open_model, write

import vitedge
from vitedge.shrinking import finetune
from vitedge.shrinking.shrinkage import shrinkage_of

LESSONS: tuple[Literal["soft", "both"], ...] = ("soft", "both")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="embedded", help="or a model folder")
    parser.add_argument("--data", help="unlabelled pictures")
    parser.add_argument("--held-out", help="pictures to compare on")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [
        row(arguments, lesson, epochs)
        for epochs in (None, *arguments.epochs)
        for lesson in LESSONS[: 2 if epochs else 1]
    ]
    print(f"{'lesson':<8}{'passes':>7}{'mean KL':>11}{'flips':>9}{'top-1 drop (pp)':>17}")
    for each in rows:
        drop = "" if each["drop_pp"] is None else f"{each['drop_pp']:.2f}"
        print(f"{each['lesson']:<8}{each['epochs']:>7}{each['mean_kl']:>11.6f}{each['flips_percent']:>8.2f}%{drop:>17}")
    by_place = {(each["lesson"], each["epochs"]): each["mean_kl"] for each in rows}
    bars = [
        Bar(
            f"KL of both over soft, {epochs} passes",
            by_place["both", epochs] / by_place["soft", epochs],
            1,
            at_least=False,
        )
        for epochs in arguments.epochs
    ]
    if arguments.out is not None:
        details = {"model": arguments.model, "macs": arguments.macs, "rows": rows}
        write(arguments.out, environment(["onnxruntime", "torch"], 0), bars, details)
    return 0 if all(bar.met for bar in bars) else 7


def row(arguments: argparse.Namespace, lesson: Literal["soft", "both"], epochs: int | None) -> dict[str, Any]:
    """The shrunk model, trained by a lesson or not at all, against the whole one."""
    finetune.LESSON = lesson
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(arguments.model, Path(folder))
        how = {"data": arguments.data, "held_out": arguments.held_out, "finetune": epochs}
        small = vitedge.shrink(model, "onnxruntime", Path(folder) / "small", macs=arguments.macs, **how)
    done = shrinkage_of(small.record.origin)
    assert done is not None and done.loss is not None
    return {
        "lesson": lesson if epochs else "none",
        "epochs": epochs or 0,
        "mean_kl": done.loss.divergence,
        "flips_percent": 100 * (1 - done.loss.agreement),
        "drop_pp": None if done.loss.top1_drop is None else done.loss.top1_drop.pp,
        "pictures": done.loss.pictures,
    }


if __name__ == "__main__":
    sys.exit(main())
