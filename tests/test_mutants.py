"""Damaged files of every kind are refused, or say what sound ones say: no crash, no hang, no memory, no traceback."""

from __future__ import annotations

import pytest

from tests.mutants import COLUMNS, DAMAGED, KINDS, MEMORY_MB, REFUSED, WATCHED, Outcomes, run

IMPORTED = ("safetensors", "ONNX")  # tests/importing/test_hostile.py has a tenth of these


def hold(name: str, outcomes: Outcomes, count: int) -> None:
    assert not outcomes.failures
    assert sum(outcomes.counts.values()) == count and set(outcomes.counts) <= set(COLUMNS)
    assert outcomes.counts[REFUSED] > count // 3, "the mutations are too mild"
    assert outcomes.memory_mb < MEMORY_MB


@pytest.mark.parametrize("name", [name for name in KINDS if name not in IMPORTED])
def test_mutants(name: str) -> None:
    hold(name, run(name, range(200)), 200)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", list(KINDS))
def test_many_mutants(name: str) -> None:
    hold(name, run(name, range(1000, 3000)), 2000)


def test_what_goes_wrong_is_told() -> None:
    counts, failures, _ = run(WATCHED.name, range(20))
    assert sum(counts.values()) == 20 and {REFUSED, DAMAGED, "signal", "traceback"} <= set(counts)
    assert len(failures) == counts["signal"] + counts["traceback"] + counts[DAMAGED]
    assert all(failure.startswith("watched, seed ") for failure in failures)
    assert any("SIGABRT" in failure for failure in failures) and any("KeyError" in failure for failure in failures)
