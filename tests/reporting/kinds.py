"""Results of every kind that a report has to show well: few rows and many, what isn't valid, what is missing."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from tests.reporting import results
from vitedge.device.hardware import Processor
from vitedge.formats.result import Environment, Result, Row

LONG = "openvino-with-a-name-of-forty-characters"  # 40 of them
RIGHT_TO_LEFT = "مصنف-الصور"


def kinds() -> dict[str, list[Result]]:
    """Every kind by its name."""
    demo = results.demo()
    return {
        "one row": [replace(demo, rows=demo.rows[:1])],
        "twelve rows of four machines": [
            replace(demo, environment=where, rows=tuple(_slower(row, factor) for row in demo.rows[1:4]))
            for where, factor in zip(_machines(), (1.0, 1.4, 6.0, 0.7), strict=True)
        ],
        "only unstable": [
            replace(demo, rows=tuple(_unstable(row, number) for number, row in enumerate(demo.rows[:4])))
        ],
        "only accuracy": [replace(demo, rows=tuple(replace(row, latency=None) for row in demo.rows[:4]))],
        "partial": [replace(demo, rows=tuple(_cut(row) for row in demo.rows[:4]))],
        "names": [
            replace(
                demo,
                rows=(
                    _named(demo.rows[0], LONG),
                    _named(demo.rows[1], RIGHT_TO_LEFT),
                    *demo.rows[2:4],
                ),
            )
        ],
    }


def _machines() -> list[Environment]:
    def other(model: str, architecture: str = "x86_64") -> Environment:
        processor: Processor = replace(results.LAPTOP.processor, model=model, architecture=architecture)
        return replace(results.LAPTOP, processor=processor)

    orin = replace(
        other("Cortex-A78AE", "aarch64"),
        board=replace(results.LAPTOP.board, model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"),
    )
    return [results.LAPTOP, other("Intel(R) Core(TM) i7-1265U"), results.PI, orin]


def _slower(row: Row, factor: float) -> Row:
    assert row.latency is not None
    median_ms = float(np.median(row.latency.samples.latency_ns)) / 1e6
    return replace(row, latency=results.latency(factor * median_ms, seed=int(100 * factor)))


def _unstable(row: Row, number: int) -> Row:
    assert row.latency is not None
    median_ms = float(np.median(row.latency.samples.latency_ns)) / 1e6
    return replace(row, latency=results.latency(median_ms, seed=number, drift=1.5 if number % 2 else -0.6))


def _cut(row: Row) -> Row:
    assert row.latency is not None
    median_ms = float(np.median(row.latency.samples.latency_ns)) / 1e6
    latency = replace(row.latency, samples=results.samples(median_ms, blocks=3, each=12))
    return replace(row, latency=latency, partial=True)


def _named(row: Row, target: str) -> Row:
    return replace(row, subject=replace(row.subject, target=target, name=f"cifar-vit-{target}-{row.subject.precision}"))
