"""The null runtime: the harness's overhead, and the faults that can be planted in it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.contract import artifacts
from tests.contract.conftest import NULL
from vitedge.errors import UsageError
from vitedge.formats.artifact import Artifact
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.null.session import null_session
from vitedge.runtimes.session import open_session


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifacts.make(tmp_path_factory.mktemp("null") / "artifact", NULL, NULL.candidate[0], batch=2)


def pictures(artifact: Artifact, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, *artifact.manifest.preprocessing.size, 3), dtype=np.uint8)


def test_it_stands_in_for_any_artifact(artifact: Artifact) -> None:
    with null_session(artifact) as session:
        assert session.run(pictures(artifact)).shape == (2, len(artifact.manifest.classes))
        assert session.info["runtime"] == "null" and session.executed() == []


def test_planted_latency_and_drift(artifact: Artifact) -> None:
    with null_session(artifact, latency_ms=3.0, drift_ms=10.0) as session:
        computed = [session.run_timed(pictures(artifact))[1].compute for _ in range(3)]
    assert all(ns is not None and ns >= floor for ns, floor in zip(computed, (3e6, 13e6, 23e6), strict=True))


def test_planted_latency_holds_up_submitted_work(artifact: Artifact) -> None:
    with null_session(artifact, latency_ms=5) as session:
        start = time.perf_counter_ns()
        session.collect(session.submit(pictures(artifact)))
        assert time.perf_counter_ns() - start >= 5e6


def test_planted_cache_answers_with_the_first_logits(artifact: Artifact) -> None:
    first, other = pictures(artifact), pictures(artifact)
    first[:, 0, 0, 0], other[:, 0, 0, 0] = 1, 2
    with null_session(artifact) as honest, null_session(artifact, cached=True) as cheat:
        assert not np.array_equal(honest.run(first), honest.run(other))
        assert np.array_equal(cheat.run(first), cheat.run(other))
        assert np.array_equal(honest.run(first), cheat.run(other))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latency": 1.0}, "the nearest is 'latency_ms'"),
        ({"latency_ms": True}, "'latency_ms' = True"),
        ({"cached": 1}, "'cached' = 1"),
        ({"drift_ms": "much"}, "'drift_ms' = 'much'"),
    ],
)
def test_other_options_are_refused(artifact: Artifact, options: dict[str, bool | float | str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        open_session(artifact, OpenOptions(options=options))
