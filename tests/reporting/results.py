"""Results as bench, eval and verify write them, drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from vitedge.device import hardware
from vitedge.formats.budget import Budget
from vitedge.formats.result import (
    Accuracy,
    Audit,
    Block,
    Calibrated,
    Check,
    DataSet,
    Environment,
    Latency,
    Memory,
    ParserCheck,
    Reading,
    Result,
    Row,
    Rules,
    Samples,
    Subject,
    Warmup,
)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

LAPTOP = Environment(
    processor=hardware.Processor(
        model="AMD EPYC",
        architecture="x86_64",
        isa=("avx2",),
        logical_cores=2,
        physical_cores=2,
        allowed_cores=2,
        quota_cores=None,
        governor=None,
        max_mhz=None,
    ),
    board=hardware.Board(model=None, os="Debian GNU/Linux 12 (bookworm)", kernel="6.12", l4t=None, jetpack=None),
    gpus=(),
    memory_mb=24105,
    virtual=True,
    power_source=None,
    versions={"python": "3.11.2", "vitedge": "0.1.0", "numpy": "2.3.4"},
)

PI = replace(
    LAPTOP,
    processor=replace(LAPTOP.processor, model="Cortex-A76", architecture="aarch64", isa=("neon", "dotprod")),
    board=replace(LAPTOP.board, model="Raspberry Pi 5 Model B Rev 1.0"),
    memory_mb=4056,
    virtual=None,
)

RULES = Rules(
    scenario="single",
    warmup_s=1.0,
    min_duration_s=5.0,
    min_samples=1,
    percentile=95.0,
    block_s=0.25,
    settle=2,
    seed=0,
    pictures="golden",
)


def subject(target: str, precision: str, *, size: int = 5_500_000, **changes: object) -> Subject:
    runtime = (
        target.replace("-", "_") if target in ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx") else "tensorrt"
    )
    made = Subject(
        digest=f"{target}-{precision}".encode().hex().ljust(64, "0"),
        name=f"cifar-vit-{target}-{precision}",
        model_digest="m" * 64,
        target=target,
        runtime=runtime,
        precision=precision,
        variant={"int8": "linears-int8", "fp32": "float", "fp16": "fp16"}[precision],
        batch=1,
        bytes=size,
        input_size=(32, 32),
        budget=Budget(max_top1_drop_pp=0.5),
        precision_planned={"int8": 0.93, "fp32": 0.07} if precision == "int8" else {precision: 1.0},
    )
    return replace(made, **changes)


def samples(median_ms: float, *, seed: int = 0, blocks: int = 20, each: int = 40, drift: float = 0.0) -> Samples:
    draw = np.random.default_rng(seed)
    count = blocks * each
    noise = draw.lognormal(0.0, 0.03, count) + (draw.random(count) < 0.04) * draw.exponential(0.25, count)
    latency = np.maximum(1, median_ms * 1e6 * noise * (1 + drift * np.arange(count) / count)).astype(int)
    start = np.concatenate([[0], np.cumsum(latency[:-1])])
    found = tuple(
        Block(
            start_ns=int(start[i * each]),
            end_ns=int(start[i * each] + latency[i * each : (i + 1) * each].sum()),
            samples=each,
        )
        for i in range(blocks)
    )
    return Samples(
        start_ns=tuple(start.tolist()),
        latency_ns=tuple(latency.tolist()),
        blocks=found,
        preprocess_ns=tuple(draw.integers(60_000, 90_000, 20).tolist()),
        postprocess_ns=tuple(draw.integers(9_000, 14_000, 20).tolist()),
    )


def latency(
    median_ms: float, *, seed: int = 0, drift: float = 0.0, throttled: bool = False, rules: Rules = RULES
) -> Latency:
    made = samples(median_ms, seed=seed, drift=drift)
    end = made.blocks[-1].end_ns
    clocks = np.linspace(2400, 1500 if throttled else 2395, 9)
    return Latency(
        rules=rules,
        load_ns=int(median_ms * 40e6),
        first_ns=int(median_ms * 3e6),
        warmup=Warmup(samples=200, duration_ns=1_000_000_000, stable=True),
        samples=made,
        memory=Memory(before_bytes=90_000_000, after_bytes=130_000_000, peak_bytes=160_000_000),
        overhead=samples(0.006, seed=seed + 1),
        readings=tuple(
            Reading(at_ns=int(end * i / 8), clock_mhz=float(mhz), temperature_c=50.0 + i)
            for i, mhz in enumerate(clocks)
        ),
        audit=Audit(checked=20, differing=0, max_deviation=1e-6, allowed_deviation=1e-4),
    )


def data(count: int = 600, classes: Sequence[str] = CLASSES) -> DataSet:
    labels = np.arange(count) % len(classes)
    return DataSet(
        source="cifar10-held-out.zip",
        digest="d" * 64,
        classes=tuple(classes),
        names=tuple(f"{classes[label]}/{number:04d}.png" for number, label in enumerate(labels)),
        label=tuple(labels.tolist()),
    )


def accuracy(on: DataSet, wrong: float = 0.13, flips: float = 0.0, *, seed: int = 5) -> Accuracy:
    """The same ``wrong`` images for one seed, and others where ``flips`` are drawn beside them."""
    labels, draw = np.array(on.label), np.random.default_rng(seed)
    count, classes = len(labels), len(on.classes)
    predicted = np.where(draw.random(count) < wrong, (labels + draw.integers(1, classes, count)) % classes, labels)
    other = np.random.default_rng(seed + 1)
    flipped = other.random(count) < flips
    predicted = np.where(flipped, other.integers(0, classes, count), predicted)
    correct = predicted == labels
    rank = np.where(correct, 0, draw.integers(1, classes, count))
    confidence = np.where(correct, draw.uniform(0.6, 1.0, count), draw.uniform(0.3, 0.9, count))
    bins = np.minimum((confidence * 15).astype(int), 14)
    return Accuracy(
        predicted=tuple(predicted.tolist()),
        rank=tuple(rank.tolist()),
        calibrated=Calibrated(
            count=tuple(np.bincount(bins, minlength=15).tolist()),
            correct=tuple(np.bincount(bins, weights=correct, minlength=15).astype(int).tolist()),
            confidence_sum=tuple(np.bincount(bins, weights=confidence, minlength=15).tolist()),
        ),
        duration_ns=2_000_000_000,
    )


GOLDEN = (
    Check(name="golden pictures", ok=True, detail="6 of 6 within 3 × 0.0031 of the float32 logits"),
    Check(name="preprocessing", ok=True, detail="6 of 6 inputs equal"),
    Check(name="power", ok=None, detail="no sensor to read"),
)


def demo() -> Result:
    """Float32 and INT8 on two runtimes, and one that can't run here."""
    on = data()
    session = {"version": "1.0", "device": "CPU", "threads": 2}
    rows = []
    for seed, (target, precision, median, flips, size) in enumerate(
        [
            ("onnxruntime", "fp32", 3.10, 0.0, 10_900_000),
            ("onnxruntime", "int8", 1.94, 0.004, 2_950_000),
            ("openvino", "fp32", 2.61, 0.0, 10_700_000),
            ("openvino", "int8", 1.48, 0.003, 2_900_000),
        ]
    ):
        about = subject(target, precision, size=size)
        rows.append(
            Row(
                subject=about,
                session={"runtime": about.runtime, **session},
                precision_executed=about.precision_planned,
                latency=latency(median, seed=seed),
                accuracy=accuracy(on, flips=flips),
                checks=GOLDEN,
            )
        )
    rows.append(
        Row(
            subject=subject("tensorrt", "fp16", size=5_500_000),
            note="portable: build on the device with: vitedge verify ARTIFACT",
            parser_checks=(
                ParserCheck(tool="tensorrt-rtx 1.7.1", ok=True, detail="parsed and built for SM 8.6, 8.9, 12.0"),
            ),
        )
    )
    return Result(created="2026-01-31T12:00:00+00:00", environment=LAPTOP, rows=tuple(rows), data=on)
