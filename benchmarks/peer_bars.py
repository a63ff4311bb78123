"""What the scripts that hold INT8 against other quantizers share: models, variants, races, bars, the environment."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import logging
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from random_models import random_model

from vitedge import runtimes
from vitedge.api import import_model
from vitedge.data import embedded
from vitedge.data.images import ImageSet
from vitedge.device.hardware import processor
from vitedge.evaluation.fidelity import divergence
from vitedge.formats.model_folder import Model
from vitedge.formats.recipe import load_recipe
from vitedge.formats.target import Candidate, Target, load_target
from vitedge.graph.surgery import load
from vitedge.quantization.observe import observe
from vitedge.quantization.statistics import Statistics
from vitedge.runtimes.base import Lowered, Request

#: Models of the bars by the name of their rows; "embedded" comes with vitedge, the others get random weights, on
#: whose values latency doesn't depend.
MODELS = {"embedded": "embedded", "ViT-Ti/16": "vit_tiny_patch16_224", "ViT-S/16": "vit_small_patch16_224"}
CALIBRATED = 300
OURS, FLOAT, NNCF = "vitedge", "float32", "NNCF"
QUANTIZED = 5  # turns of the race for the time to quantize
SETTLE_NS, TURN_NS = 40_000_000, 80_000_000  # of a turn, where its inferences are short
RESAMPLES, CONFIDENCE = 2000, 0.95
Rounds = dict[str, list[list[int]]]  # by candidate and round: nanoseconds of each inference


def open_model(name: str, folder: Path) -> Model:
    """One of :data:`MODELS`, written into ``folder`` where it isn't there yet, or a model folder by its path."""
    if name not in MODELS:
        return Model.open(name)
    out = folder / MODELS[name]
    if out.exists():
        return Model.open(out)
    return import_model("embedded", out) if name == "embedded" else Model.open(random_model(MODELS[name], out))


def frames(model: Model, name: embedded.Pictures, count: int) -> NDArray[np.uint8]:
    """The first of the embedded pictures as the model takes them, uint8 [count, h, w, 3]."""
    return decoded(model, embedded.pictures(name), count)


def decoded(model: Model, images: ImageSet, count: int) -> NDArray[np.uint8]:
    """The first of any pictures as the model takes them, uint8 [count, h, w, 3], by a seeded order."""
    order = images.order(0)[:count]
    return np.stack([model.record.preprocessing.apply(images.read(index)) for index in order])


# --- timing ----------------------------------------------------------------------------------------------------------


def race(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    turn: int = 8,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Rounds:
    """All interleaved within one process, each round in another order: inferences to settle, then at least ``turn``.

    Short inferences settle for a while, because the threads of the one before spin on and this one's are spread over
    the cores anew: eight inferences of two milliseconds took a third longer than sixty, and ranked otherwise. Where
    neighbours take the processor away, ``clock=time.thread_time_ns`` and one thread tell what the work itself takes.
    """
    found: Rounds = {name: [] for name in calls}
    order = random.Random(seed)
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for name in order.sample(sorted(calls), len(calls)):
                timed_from(calls[name], time.perf_counter_ns, 2, SETTLE_NS)
                found[name].append(timed_from(calls[name], clock, turn, TURN_NS))
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    finally:
        gc.enable()
    print("\r" + " " * 24 + "\r", end="", file=sys.stderr)
    return found


def timed_from(call: Callable[[], object], clock: Callable[[], int], least: int, least_ns: int) -> list[int]:
    """Nanoseconds of each of at least so many calls, for at least so long."""
    taken: list[int] = []
    began = time.perf_counter_ns()
    while len(taken) < least or time.perf_counter_ns() - began < least_ns:
        start = clock()
        call()
        taken.append(clock() - start)
    return taken


@dataclass(frozen=True)
class Ratio:
    """How many times as fast, with the 95 % interval of a bootstrap over rounds."""

    value: float
    low: float
    high: float


def median_ms(rounds: Sequence[Sequence[int]]) -> float:
    """Milliseconds: the median over rounds of each round's fastest inference (noise only adds time)."""
    return median(min(turn) for turn in rounds) / 1e6


def speedup(slow: Sequence[Sequence[int]], fast: Sequence[Sequence[int]], *, seed: int = 0) -> Ratio:
    """Ratio of the medians over rounds, ``slow`` over ``fast``; rounds are drawn again together, as they were run."""
    pairs = np.array([[min(a), min(b)] for a, b in zip(slow, fast, strict=True)], np.float64)
    drawn = pairs[np.random.default_rng(seed).integers(0, len(pairs), (RESAMPLES, len(pairs)))]
    ratios = np.median(drawn[:, :, 0], axis=1) / np.median(drawn[:, :, 1], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Ratio(float(np.median(pairs[:, 0]) / np.median(pairs[:, 1])), float(low), float(high))


# --- bars ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One line of what is demanded: a figure, and whether it reaches its bound (at least, or at most)."""

    what: str
    value: float
    bound: float
    at_least: bool = True
    low: float | None = None
    high: float | None = None

    @property
    def met(self) -> bool:
        """By the figure itself; the interval says how sure that is."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return (
            f"{'met    ' if self.met else 'NOT MET'} {self.what}: {self.value:.3g}{interval}, "
            f"{'at least' if self.at_least else 'at most'} {self.bound:.3g}"
        )


def environment(packages: Sequence[str], threads: int) -> dict[str, Any]:
    """Processor, instruction sets, versions, load and time: without them a figure means nothing."""
    cpu = processor()
    return {
        "processor": cpu.model,
        "isa": list(cpu.isa or ()),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("vitedge", *packages)},
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write(path: Path, where: Mapping[str, Any], bars: Sequence[Bar], details: Mapping[str, Any]) -> None:
    """The result file: circumstances, bars with their verdicts, and what they were taken from."""
    judged = [{**asdict(bar), "met": bar.met} for bar in bars]
    told = {name: portable(value) if isinstance(value, str) else value for name, value in details.items()}
    path.write_text(json.dumps({"circumstances": where, "bars": judged, **told}, indent=1) + "\n")


def portable(command: str) -> str:
    """The command, or path, with the last two parts of each absolute path."""
    return re.sub(r"/\S+/(?=[^/\s]+/[^/\s]+)", "", command)


# --- a script that races one runtime's candidates --------------------------------------------------------------------

Seconds = tuple[float, float]  # by the clock, and of processors
MeasureModel = Callable[[str, Model, argparse.Namespace, int], tuple[list[Bar], dict[str, Any]]]


def command_line(document: str | None, target: str) -> argparse.ArgumentParser:
    """The options that such scripts share."""
    parser = argparse.ArgumentParser(description=(document or "").split("\n")[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--calibrate", type=int, default=CALIBRATED)
    parser.add_argument("--evaluate", type=int, default=1000, help="pictures for the divergence; rare ones decide")
    parser.add_argument("--data", help="pictures for the divergence [the embedded held-out ones]")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", default=target)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--isa", help="what the target promises: avx2, avx512_vnni, …")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, and the processor time that it takes")
    parser.add_argument("--out", type=Path)
    return parser


def hold(arguments: argparse.Namespace, packages: Sequence[str], measure_model: MeasureModel) -> int:
    """Measure every model, print the bars, write the result file; 7 where a bar isn't met."""
    logging.disable(logging.WARNING)
    threads = 1 if arguments.cpu_time else arguments.threads
    where = environment(packages, threads)
    print(f"{where['processor']}, {' '.join(where['isa'])}; {where['versions']}; {threads} threads, batch 1")
    bars, details = list[Bar](), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            found, details[name] = measure_model(name, open_model(name, Path(folder)), arguments, threads)
            bars += found
    print(*bars, sep="\n")
    if arguments.out:
        where["clock"] = "processor time" if arguments.cpu_time else "latency"
        write(arguments.out, where, bars, {"models": details})
    return 0 if all(bar.met for bar in bars) else 7


def clock_of(arguments: argparse.Namespace) -> Callable[[], int]:
    """What a race is timed by."""
    return time.thread_time_ns if arguments.cpu_time else time.perf_counter_ns


def timed(make: Callable[[], Any]) -> tuple[Any, Seconds]:
    """What it makes, and how long that took."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = make()
    return made, (time.perf_counter() - wall, time.process_time() - cpu)


def lowering_of(
    model: Model, calibration: NDArray[np.uint8], arguments: argparse.Namespace
) -> tuple[Target, Callable[[Candidate], Lowered]]:
    """The target, and what lowers a candidate of it; the first quantized one observes, for all."""
    target, recipe, graph = load_target(arguments.target), load_recipe(arguments.recipe), load(model.onnx_path)
    if arguments.isa:
        target = replace(target, isa=arguments.isa)
    kept: list[Statistics] = []

    def lower(candidate: Candidate) -> Lowered:
        quantized = candidate.precision in ("int8", "fp8")
        if quantized and not kept:
            kept.append(observe(graph, calibration, recipe.observe, key="benchmark"))
        wish = Request(
            graph=graph,
            target=target,
            candidate=candidate,
            batch=1,
            preprocessing=model.record.preprocessing,
            classes=model.record.classes,
            recipe=recipe if quantized else None,
            statistics=kept[0] if quantized else None,
        )
        lowered: Lowered = runtimes.part(target.runtime, "lowering").lower(wish)
        return lowered

    return target, lower


def divergences(
    model: Model,
    logits: Mapping[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]],
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Mean KL from the float32 logits of each candidate, on pictures that calibrated nobody."""
    if arguments.data is None:
        pictures = frames(model, "held-out", arguments.evaluate)
    else:
        pictures = decoded(model, ImageSet.open(arguments.data, action="compare quantizers"), arguments.evaluate)
    exact = logits[FLOAT](pictures)
    return {label: float(divergence(exact, run(pictures)).mean()) for label, run in logits.items()}


def pictures(name: str, model: Model, arguments: argparse.Namespace, few: int) -> NDArray[np.uint8]:
    """What calibrates: as many as asked for, or ``few`` for ViT-S/16, of which only latency is asked."""
    return frames(model, "calibration", few if name == "ViT-S/16" else arguments.calibrate)


def contest(
    name: str,
    model: Model,
    calls: Mapping[str, Callable[[], object]],
    logits: Mapping[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]],
    seconds: Mapping[str, Seconds],
    calibrated: int,
    arguments: argparse.Namespace,
) -> tuple[Rounds, dict[str, float], dict[str, Any]]:
    """Race all candidates, see what each loses where weights are trained, print the table: (rounds, mean KL, rows)."""
    raced = race(calls, arguments.rounds, clock=clock_of(arguments))
    trained = name not in MODELS or name == "embedded"
    lost = divergences(model, logits, arguments) if trained else {}
    return raced, lost, table(name, raced, lost, seconds, calibrated)


def table(
    title: str, raced: Rounds, lost: Mapping[str, float], seconds: Mapping[str, Seconds], calibrated: int
) -> dict[str, Any]:
    """Print a row for each candidate; what the result file holds of them."""
    print(f"\n{title}: {calibrated} pictures calibrated")
    rows = {}
    for label, turns in raced.items():
        speed, (wall, cpu) = speedup(raced[FLOAT], turns), seconds.get(label, (0.0, 0.0))
        divergent = f"{lost[label]:11.3g}" if label in lost else ""
        print(
            f"{label:34s} {median_ms(turns):9.3f} ms {speed.value:6.2f}x [{speed.low:.2f}, {speed.high:.2f}]"
            f"{divergent}  made in {wall:6.1f} s ({cpu:.1f} s of processors)"
        )
        rows[label] = {"rounds_ns": turns, "mean_kl": lost.get(label), "made_s": wall, "made_cpu_s": cpu}
    return rows


def time_bar(
    name: str,
    model: Model,
    calibration: NDArray[np.uint8],
    nncf: Callable[[], object] | None,
    arguments: argparse.Namespace,
) -> Iterator[Bar]:
    """Seconds to quantize ViT-Ti/16 over NNCF's, the median of turns with the least and the largest.

    Interleaved, because a shared machine is a third slower in one minute than in the next.
    """
    if name != "ViT-Ti/16" or nncf is None:
        return
    at, what = (1, "processor seconds") if arguments.cpu_time else (0, "seconds")

    def quantize() -> None:
        target, lower = lowering_of(model, calibration, arguments)
        lower(target.candidates("int8")[0])

    ratios = []
    for _ in range(QUANTIZED):
        ours, theirs = timed(quantize)[1][at], timed(nncf)[1][at]
        print(f"{name}: quantized in {ours:.1f} s, by {NNCF} in {theirs:.1f} s")
        ratios.append(ours / theirs)
    low, high = min(ratios), max(ratios)
    yield Bar(f"{name}, {what} to quantize over {NNCF}'s", median(ratios), 1.0, at_least=False, low=low, high=high)
