"""No benchmark: keeps the logs of `vitedge train`'s runs in one file, with commands, operations and hours.

    python benchmarks/training_log.py MODEL ... --out benchmarks/results/embedded_training.json

MODELs are the folders of the runs in their order. Operations are those of the layers: two a multiply-accumulate, and
the backward pass is twice the forward one; a teacher's aren't counted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from peer_bars import portable

from vitedge.formats.model_folder import Model


def run(folder: str) -> dict[str, Any]:
    """A run's command, cost, and figures by epoch."""
    model = Model.open(folder)
    training = model.record.training
    assert training is not None
    epochs = [json.loads(line) for line in (model.path / "metrics.jsonl").read_text().splitlines()]
    return {
        "command": portable(training["command"]),
        "operations": 6 * training["macs"] * training["training_images"] * len(epochs),
        "hours": round(training["wall_time_s"] / 3600, 2),
        "steps": training["steps"],
        "best_epoch": training["best_epoch"],
        "precision": training["precision"],
        "processor": training["cpu"],
        "threads": training["threads"],
        "epochs": epochs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = [run(folder) for folder in arguments.models]
    arguments.out.write_text(json.dumps(runs, indent=1) + "\n")
    for each in runs:
        print(f"{each['operations'] / 1e15:.2f}e15 operations, {each['hours']} hours: {each['command']}")


if __name__ == "__main__":
    main()
