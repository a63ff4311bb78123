"""Does `vitedge bench` find the latency that other tools find on the same artifact?

    python benchmarks/agreement.py [MODEL] [--openings 8] [--rounds 4] [--seconds 3] [--threads 1]
        [--only PAIR …] [--out FILE]

Three pairs, each interleaved in turns of so many seconds, in a seeded random order within each round. Both are opened
anew several times: two openings of one artifact differ by 1 to 3 %, because their memory lies elsewhere.

- OpenVINO: our load generator and `benchmark_app -hint none -api sync -nireq 1 -nstreams 1`, started anew each time,
  with the artifact's own options; its median is the one it prints.
- OpenVINO: our session and a bare `InferRequest`, with the same options.
- ONNX Runtime: our session and a bare `InferenceSession.run`, with the same options.

The last two are held against each other by processor time per inference: of all threads of this process, over a turn's
inferences. Another process on the machine moves latencies, and hardly that. Latencies are shown beside it.

Without MODEL, a ViT-Ti/16 at 224 pixels with random weights is exported in float32: latency doesn't depend on their
values. Prints both figures (medians of the rounds), their ratio (the median of the rounds' ratios) with the rounds'
spread, and whether it's within 3 % (`benchmark_app`) or 1 % (bare calls); exits with 7 when one isn't.
"""

from __future__ import annotations

import argparse
import json
import math
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
from typing import TYPE_CHECKING, Any, NamedTuple

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

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL = "vit_tiny_patch16_224"
PAIRS = {  # (runtime, how far apart: a fraction)
    "benchmark_app": ("openvino", 0.03),
    "bare request": ("openvino", 0.01),
    "bare run": ("onnxruntime", 0.01),
}


class Turn(NamedTuple):
    """What one turn took, milliseconds an inference."""

    cpu_ms: float  # of all threads; NaN where another process did the work
    median_ms: float
    fastest_ms: float


Measure = Callable[[], Turn]
Round = dict[str, Turn]  # "ours" and "theirs"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", help="a model folder")
    parser.add_argument("--rounds", type=int, default=4, help="of each opening")
    parser.add_argument("--openings", type=int, default=8, help="how often both are opened anew")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=tuple(PAIRS), nargs="+", default=list(PAIRS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    options = OpenOptions(threads=arguments.threads)
    found: dict[str, list[Round]] = {}
    print(
        f"{processor().model}, {arguments.threads} threads, "
        f"{arguments.openings} openings of {arguments.rounds} rounds each"
    )
    with tempfile.TemporaryDirectory() as folder:
        model = Path(arguments.model) if arguments.model else random_model(MODEL, Path(folder) / "model")
        for name in arguments.only:
            runtime, allowed = PAIRS[name]
            out = Path(folder) / runtime
            artifact = Artifact.open(out) if out.exists() else api.export(model, runtime, "fp32", out)
            found[name] = []
            for opening in range(arguments.openings):
                with open_session(artifact, options) as session:
                    turns = pair(name, artifact, session, arguments.seconds)
                    found[name] += interleaved(turns, arguments.rounds, arguments.seed + opening)
            show(name, found[name], allowed)
    if arguments.out:
        circumstances = {"arguments": {**vars(arguments), "out": ""}, "processor": processor().model}
        as_dicts = {name: [{who: turn._asdict() for who, turn in each.items()} for each in rounds]
                    for name, rounds in found.items()}  # fmt: skip
        arguments.out.write_text(json.dumps({**circumstances, **as_dicts}, default=str))
    return 0 if all(agrees(rounds, PAIRS[name][1]) for name, rounds in found.items()) else 7


def pair(name: str, artifact: Artifact, session: Session, seconds: float) -> dict[str, Measure]:
    """Both sides of a pair, on the golden pictures."""
    if name == "benchmark_app":
        return {"ours": load_generator(session, seconds), "theirs": benchmark_app(artifact, session, seconds)}
    images = [np.ascontiguousarray(image[None]) for image in artifact.array("golden/inputs.npy")]
    bare = bare_request(artifact, session) if name == "bare request" else bare_run(artifact, session)
    return {"ours": loop(session.run_timed, images, seconds), "theirs": loop(bare, images, seconds)}


def interleaved(turns: dict[str, Measure], rounds: int, seed: int) -> list[Round]:
    """One turn of each, so many times."""
    order, found = random.Random(seed), []
    for number in range(rounds):
        names = order.sample(sorted(turns), len(turns))
        found.append({name: turns[name]() for name in names})
        print(f"\r{number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print("\r", end="", file=sys.stderr)
    return found


def ratios(rounds: list[Round]) -> list[float]:
    """Ours over theirs, round by round, sorted: what slows a round slows both."""
    field = "median_ms" if math.isnan(rounds[0]["ours"].cpu_ms) else "cpu_ms"
    return sorted(getattr(each["ours"], field) / getattr(each["theirs"], field) for each in rounds)


def agrees(rounds: list[Round], allowed: float) -> bool:
    """Whether the median ratio is near enough to one."""
    return abs(median(ratios(rounds)) - 1) <= allowed


def show(name: str, rounds: list[Round], allowed: float) -> None:
    found = ratios(rounds)
    print(
        f"{name:<13} ratio {median(found):.4f} ({found[0]:.3f} … {found[-1]:.3f}), "
        f"{'within' if agrees(rounds, allowed) else 'NOT within'} {allowed:.0%}"
    )
    for who in ("ours", "theirs"):
        turns = [each[who] for each in rounds]
        words = [
            f"{word} {median(getattr(turn, field) for turn in turns):.3f} ms"
            for word, field in (("processor time", "cpu_ms"), ("median", "median_ms"), ("fastest", "fastest_ms"))
            if not math.isnan(getattr(turns[0], field))
        ]
        print(f"    {who:<7} {', '.join(words)}")


# --- whoever measures ------------------------------------------------------------------------------------------------


def loop(call: Callable[[NDArray[np.uint8]], Any], images: list[NDArray[np.uint8]], seconds: float) -> Measure:
    """Call it on one image after the other."""

    def turn() -> Turn:
        for _ in range(3):
            call(images[0])
        taken: list[int] = []
        with quiet():
            before, until = time.process_time_ns(), time.perf_counter_ns() + int(seconds * 1e9)
            while time.perf_counter_ns() < until:
                image = images[len(taken) % len(images)]
                start = time.perf_counter_ns()
                call(image)
                taken.append(time.perf_counter_ns() - start)
            spent = time.process_time_ns() - before
        return Turn(spent / len(taken) / 1e6, median(taken) / 1e6, min(taken) / 1e6)

    return turn


def bare_request(artifact: Artifact, session: Session) -> Callable[[NDArray[np.uint8]], Any]:
    """OpenVINO as its documentation calls it for the least latency: one request, data copied into its own tensor."""
    import openvino

    core = openvino.Core()
    names = [str(name) for name in core.get_property("CPU", "SUPPORTED_PROPERTIES")]
    options = {key: value for key, value in session.info.items() if key in names}
    options["INFERENCE_NUM_THREADS"] = int(session.info["threads"])
    request = core.compile_model(core.read_model(artifact.graph_path), "CPU", options).create_infer_request()

    def call(image: NDArray[np.uint8]) -> Any:
        request.get_input_tensor().data[:] = image
        request.infer(share_outputs=True)
        return request.get_output_tensor().data.copy()

    return call


def bare_run(artifact: Artifact, session: Session) -> Callable[[NDArray[np.uint8]], Any]:
    """ONNX Runtime as its documentation calls it: a dictionary in, an array out."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = int(session.info["threads"]), 1
    for key, value in artifact.manifest.runtime_options.items():
        if "." in key:
            settings.add_session_config_entry(key, str(int(value)) if isinstance(value, bool) else str(value))
    bare = onnxruntime.InferenceSession(str(artifact.graph_path), settings, providers=["CPUExecutionProvider"])
    return lambda image: bare.run(None, {"image": image})


def load_generator(session: Session, seconds: float) -> Measure:
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

    def turn() -> Turn:
        measured.run_block(rules)
        block = measured.samples().block_latencies()[-1]
        return Turn(math.nan, median(block) / 1e6, min(block) / 1e6)

    return turn


def benchmark_app(artifact: Artifact, session: Session, seconds: float) -> Measure:
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

    def turn() -> Turn:
        done = subprocess.run([*call, "-load_config", str(config)], capture_output=True, text=True, check=False)
        matches = [re.search(rf"{word}:\s+([\d.]+) (ms|us)", done.stdout) for word in ("Median", "Min")]
        if None in matches:
            raise SystemExit(f"benchmark_app gave no median:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        median_ms, fastest = (float(match[1]) / (1000 if match[2] == "us" else 1) for match in matches if match)
        return Turn(math.nan, median_ms, fastest)

    return turn


if __name__ == "__main__":
    sys.exit(main())
