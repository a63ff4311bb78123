"""Few-shot: twenty pictures of each digit, from the embedded model and from scratch, by one and the same command.

    python benchmarks/few_shot.py [--folder FOLDER] [--seeds 1] [--epochs 3] [--threads 2]

The data is scikit-learn's ``load_digits`` (8×8 grey pictures of handwritten digits; ``vitedge[dev]`` brings it). A seed
draws twenty pictures of each digit to train with; all others are the test set, which is evaluated once, when
training is over. The two runs of a seed differ in where the weights start and in nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from vitedge.training.zoo import EMBEDDED

SHOTS = 20
COMMAND = [
    *("--batch-size", "16", "--optimizer", "adamw", "--lr", "0.001", "--layer-decay", "0.75", "--ema", "0.9"),
    *("--no-flip", "--crop-padding", "2"),
]
STARTS = {"embedded": ["--init-from", "embedded"], "scratch": ["--model", EMBEDDED]}


def write_digits(folder: Path, seed: int) -> None:
    """``folder/train`` with twenty PNG files a digit, and ``folder/test`` with the others."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it ships no types

    digits = load_digits()
    counts = dict.fromkeys(range(10), 0)
    for index in np.random.default_rng(seed).permutation(len(digits.target)):
        digit = int(digits.target[index])
        part = folder / ("train" if counts[digit] < SHOTS else "test") / str(digit)
        counts[digit] += 1
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 255 / 16).round().astype(np.uint8)).save(part / f"{index}.png")


def measure(folder: Path, seed: int, epochs: int, threads: int) -> dict[str, dict[str, float]]:
    """Test top-1 (percent) and seconds of the command from each start."""
    data = folder / f"digits-{seed}"
    if not data.exists():
        write_digits(data, seed)
    found = {}
    for name, start in STARTS.items():
        out = folder / f"{name}-{seed}"
        command = [sys.executable, "-m", "vitedge", "train", str(data / "train"), *start, "--out", str(out)]
        command += [*COMMAND, "--test", str(data / "test"), "--seed", str(seed), "--threads", str(threads)]
        command += ["--epochs", str(epochs)]
        began = time.monotonic()
        subprocess.run([*command, "--overwrite"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        accuracy = json.loads((out / "model.json").read_text())["accuracy"]["test"]
        found[name] = {
            "top1_percent": round(accuracy["top1_percent"], 2),
            "images": accuracy["images"],
            "seconds": round(time.monotonic() - began, 1),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep data and models here")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for seed in range(arguments.seeds):
            found = measure(folder, seed, arguments.epochs, arguments.threads)
            gain = found["embedded"]["top1_percent"] - found["scratch"]["top1_percent"]
            print(json.dumps({"seed": seed, **found, "points": round(gain, 2)}), flush=True)


if __name__ == "__main__":
    main()
