"""Does `vitedge bench` find the latency that other tools find on the same artifact?

    python benchmarks/agreement.py [MODEL] [--rounds 10] [--seconds 3] [--threads 1] [--out FILE]

Two pairs, each interleaved in blocks of so many seconds, in a seeded random order within each round:

- OpenVINO: our load generator and `benchmark_app -hint none -api sync -nireq 1 -nstreams 1`, started anew each time,
  with the artifact's own options; its median is the one it prints.
- ONNX Runtime: our load generator and a bare loop around `InferenceSession.run`, with the same options.

Without MODEL, a ViT-Ti/16 at 224 pixels with random weights is exported in float32: latency doesn't depend on their
values. Prints both medians (of the rounds' medians), their ratio with the rounds' spread, and whether it's within 3 %;
exits with 7 when one isn't. On a machine with other load medians scatter; the fastest inferences of all are shown, too.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from random_models import random_model

from vitedge import api
from vitedge.benchmarking.load import Workload
from vitedge.benchmarking.scenarios import quiet
from vitedge.device.hardware import processor
from vitedge.formats.artifact import Artifact
from vitedge.formats.samples import Rules
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.session import Session, open_session

ALLOWED = 0.03
MODEL = "vit_tiny_patch16_224"
Turn = Callable[[], tuple[float, float]]  # one turn; its median and its fastest, in milliseconds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", help="a model folder")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("openvino", "onnxruntime"), help="one of the two pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    options = OpenOptions(threads=arguments.threads)
    found: dict[str, Any] = {}
    print(f"{processor().model}, {arguments.threads} threads, {arguments.rounds} rounds of {arguments.seconds:g} s")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(arguments.model) if arguments.model else random_model(MODEL, Path(folder) / "model")
        for runtime, other in (("openvino", benchmark_app), ("onnxruntime", bare_loop)):
            if arguments.only not in (None, runtime):
                continue
            artifact = api.export(model, runtime, "fp32", Path(folder) / runtime)
            with open_session(artifact, options) as session:
                turns = {
                    "ours": ours(session, arguments.seconds),
                    "theirs": other(artifact, session, arguments.seconds),
                }
                rounds = interleaved(turns, arguments.rounds, arguments.seed)
            found[runtime] = rounds
            show(runtime, other.__name__, rounds)
    if arguments.out:
        arguments.out.write_text(json.dumps({"arguments": {**vars(arguments), "out": ""}, **found}, default=str))
    return 0 if all(abs(ratio(rounds) - 1) <= ALLOWED for rounds in found.values()) else 7


def interleaved(turns: dict[str, Turn], rounds: int, seed: int) -> list[dict[str, tuple[float, float]]]:
    """By round: (median, fastest) in milliseconds."""
    order, found = random.Random(seed), []
    for number in range(rounds):
        names = order.sample(sorted(turns), len(turns))
        found.append({name: turns[name]() for name in names})
        print(f"\r{number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print("\r", end="", file=sys.stderr)
    return found


def ratio(rounds: list[dict[str, tuple[float, float]]]) -> float:
    """Ours over theirs, the median of the rounds' ratios: what slows a round slows both."""
    return median(turn["ours"][0] / turn["theirs"][0] for turn in rounds)


def show(runtime: str, other: str, rounds: list[dict[str, tuple[float, float]]]) -> None:
    ratios = sorted(turn["ours"][0] / turn["theirs"][0] for turn in rounds)
    word = "within" if abs(ratio(rounds) - 1) <= ALLOWED else "NOT within"
    fastest = [min(turn[name][1] for turn in rounds) for name in ("ours", "theirs")]
    print(
        f"{runtime:<12} ours {median(turn['ours'][0] for turn in rounds):.3f} ms, "
        f"{other.replace('_', ' ')} {median(turn['theirs'][0] for turn in rounds):.3f} ms, "
        f"ratio {ratio(rounds):.4f} ({ratios[0]:.3f} … {ratios[-1]:.3f}), {word} {ALLOWED:.0%}; "
        f"fastest {fastest[0]:.3f} and {fastest[1]:.3f} ms, ratio {fastest[0] / fastest[1]:.4f}"
    )


# --- whoever measures ------------------------------------------------------------------------------------------------


def ours(session: Session, seconds: float) -> Turn:
    """Our load generator, one block a turn."""
    artifact = session.artifact
    frames = np.stack([image[None] for image in artifact.array("golden/inputs.npy")])
    measured = Workload(
        session,
        frames,
        preprocess=lambda index: frames[index, 0],
        postprocess=lambda logits: [session.predictions(row) for row in logits],
    )
    rules = Rules(
        scenario="single",
        warmup_s=1.0,
        min_duration_s=seconds,
        min_samples=1,
        percentile=50,
        block_s=seconds,
        settle=2,
        seed=0,
        pictures="golden",
    )
    measured.warm_up(rules)

    def turn() -> tuple[float, float]:
        measured.run_block(rules)
        block = measured.samples().block_latencies()[-1]
        return median(block) / 1e6, min(block) / 1e6

    return turn


def benchmark_app(artifact: Artifact, session: Session, seconds: float) -> Turn:
    """OpenVINO's own, in a process of its own, with the options that our session has."""
    command = shutil.which("benchmark_app") or str(Path(sys.executable).with_name("benchmark_app"))
    kept = ("INFERENCE_PRECISION_HINT", "ENABLE_CPU_PINNING", "EXECUTION_MODE_HINT")
    config = artifact.path.parent / "benchmark_app.json"
    settings = {key: str(value).upper() if isinstance(value, bool) else value for key, value in session.info.items()}
    config.write_text(json.dumps({"CPU": {key: settings[key] for key in kept if key in settings}}))
    words = [
        "-hint",
        "none",
        "-api",
        "sync",
        "-nireq",
        "1",
        "-nstreams",
        "1",
        "-nthreads",
        str(session.info["threads"]),
    ]
    call = [command, "-m", str(artifact.graph_path), "-d", "CPU", *words, "-t", str(max(1, round(seconds)))]

    def turn() -> tuple[float, float]:
        done = subprocess.run([*call, "-load_config", str(config)], capture_output=True, text=True, check=False)
        matches = [re.search(rf"{word}:\s+([\d.]+) (ms|us)", done.stdout) for word in ("Median", "Min")]
        if None in matches:
            raise SystemExit(f"benchmark_app gave no median:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        median_ms, fastest = (float(match[1]) / (1000 if match[2] == "us" else 1) for match in matches if match)
        return median_ms, fastest

    return turn


def bare_loop(artifact: Artifact, session: Session, seconds: float) -> Turn:
    """ONNX Runtime as its documentation calls it: a dictionary in, an array out."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = int(session.info["threads"]), 1
    for key, value in artifact.manifest.runtime_options.items():
        if "." in key:
            settings.add_session_config_entry(key, str(int(value)) if isinstance(value, bool) else str(value))
    bare = onnxruntime.InferenceSession(str(artifact.graph_path), settings, providers=["CPUExecutionProvider"])
    images = [image[None] for image in artifact.array("golden/inputs.npy")]
    for image in images:
        bare.run(None, {"image": image})

    def turn() -> tuple[float, float]:
        for _ in range(2):
            bare.run(None, {"image": images[0]})
        taken, until = [], time.perf_counter_ns() + int(seconds * 1e9)
        with quiet():
            while time.perf_counter_ns() < until:
                image = images[len(taken) % len(images)]
                start = time.perf_counter_ns()
                bare.run(None, {"image": image})
                taken.append(time.perf_counter_ns() - start)
        return median(taken) / 1e6, min(taken) / 1e6

    return turn


if __name__ == "__main__":
    sys.exit(main())
