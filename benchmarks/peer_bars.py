"""What the scripts that hold INT8 against other quantizers share: models, races in turns, bars, circumstances.

from peer_bars import Bar, circumstances, open_model, race, speedup, write
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitedge import embedded
from vitedge.hardware import processor
from vitedge.model_folder import Model, ModelRecord, Origin, class_table, write_model
from vitedge.pipeline import import_model

#: Models of the bars by the name of their rows; "embedded" comes with vitedge, the others get random weights, on
#: whose values latency doesn't depend.
MODELS = {"embedded": "embedded", "ViT-Ti/16": "vit_tiny_patch16_224", "ViT-S/16": "vit_small_patch16_224"}
RESAMPLES, CONFIDENCE = 2000, 0.95
Rounds = dict[str, list[list[int]]]  # by contender and round: nanoseconds of each inference


def open_model(name: str, folder: Path) -> Model:
    """One of :data:`MODELS`, written into ``folder`` where it isn't there yet, or a model folder by its path."""
    if name not in MODELS:
        return Model.open(name)
    out = folder / MODELS[name]
    if out.exists():
        return Model.open(out)
    return import_model("embedded", out) if name == "embedded" else _random_model(MODELS[name], out)


def _random_model(name: str, out: Path) -> Model:
    from vitedge.graph.author import author_vit, expected_parameters
    from vitedge.models.zoo import zoo_config
    from vitedge.preprocessing import Preprocessing

    config, generator = zoo_config(name, num_classes=1000), np.random.default_rng(0)
    arrays = {}
    for key, shape in expected_parameters(config):
        gain = key.endswith(("weight", "gamma")) and len(shape) == 1
        spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        arrays[key] = (gain + spread * generator.standard_normal(shape)).astype(np.float32)
    preprocessing = Preprocessing(size=(224, 224))
    graph = author_vit(config, arrays, mean=preprocessing.mean, std=preprocessing.std, name=name)
    record = ModelRecord(
        name=name,
        classes=class_table([f"class {number}" for number in range(1000)]),
        preprocessing=preprocessing,
        origin=Origin(kind="train", source="random weights"),
        architecture=config,
    )
    return write_model(out, record, {"model.onnx": graph.SerializeToString(deterministic=True)})


def frames(model: Model, name: embedded.Pictures, count: int) -> NDArray[np.uint8]:
    """The first of the embedded pictures as the model takes them, uint8 [count, h, w, 3]."""
    images = embedded.pictures(name)
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
    """Everybody in turns within one process: each round in another order, two inferences to settle, ``turn`` timed.

    Where neighbours take the processor away, ``clock=time.thread_time_ns`` and one thread tell what the work itself
    takes.
    """
    found: Rounds = {name: [] for name in calls}
    order = random.Random(seed)
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for name in order.sample(sorted(calls), len(calls)):
                taken = []
                for _ in range(turn + 2):
                    start = clock()
                    calls[name]()
                    taken.append(clock() - start)
                found[name].append(taken[2:])
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    finally:
        gc.enable()
    print("\r" + " " * 24 + "\r", end="", file=sys.stderr)
    return found


@dataclass(frozen=True)
class Ratio:
    """How many times as fast, with the 95 % interval of a bootstrap over rounds."""

    value: float
    low: float
    high: float


def typical(rounds: Sequence[Sequence[int]]) -> float:
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


# --- fidelity --------------------------------------------------------------------------------------------------------


def divergence(exact: NDArray[Any], found: NDArray[Any]) -> NDArray[np.float64]:
    """KL(softmax exact ‖ softmax found) of each row of logits [n, classes], in nats: float64 [n]."""
    p, q = (_log_softmax(np.asarray(values, np.float64)) for values in (exact, found))
    return np.asarray((np.exp(p) * (p - q)).sum(axis=1))


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


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


def circumstances(packages: Sequence[str], threads: int) -> dict[str, Any]:
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
    path.write_text(json.dumps({"circumstances": where, "bars": judged, **details}, indent=1) + "\n")
