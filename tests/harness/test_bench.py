"""Artifacts through the load generator: floor, stages, refusals, planted faults, and what an interruption leaves."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from tests.harness.nulls import TARGET, null_artifact
from vitedge.artifact import Artifact
from vitedge.errors import ImageError, InterruptedError_, InvalidResultError, UsageError
from vitedge.harness.bench import Wish, bench
from vitedge.harness.validity import judge
from vitedge.images import ImageSet
from vitedge.result import Latency, Stopped, decode_result, encode_result
from vitedge.runtimes.session import Session

WISH = Wish(duration_s=0.1, warmup_s=0.02, percentile=50)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return null_artifact(tmp_path_factory.mktemp("artifact") / "a")


def measured(*artifacts: Artifact, wish: Wish = WISH, **more: object) -> list[Latency]:
    result = bench(artifacts, wish, **more)
    assert decode_result(encode_result(result), "result") == result and not result.partial
    return [row.latency for row in result.rows if row.latency is not None]


def test_null_runtime_shows_the_harness_itself(artifact: Artifact) -> None:
    (latency,) = measured(artifact)
    p50 = latency.samples.percentile_ns(50)
    assert p50 is not None and 0 < p50 < 200_000  # a hundredth of this on a quiet machine
    assert latency.floor is not None and latency.floor.percentile_ns(50) is not None
    assert latency.audit is not None and latency.audit.checked > 0 and latency.audit.differing == 0
    assert len(latency.samples.compute_ns) == len(latency.samples) and latency.samples.transfer_in_ns == ()
    assert len(latency.samples.preprocess_ns) == len(latency.samples.postprocess_ns) > 0
    assert latency.load_ns > 0 and latency.first_ns > 0 and latency.memory.after_bytes


def test_planted_latency_is_measured(tmp_path: Path, artifact: Artifact) -> None:
    slow = null_artifact(tmp_path / "slow", latency_ms=4.0)
    ours, theirs = measured(artifact, slow)
    assert ours.rules == theirs.rules and len(ours.samples.blocks) == len(theirs.samples.blocks)
    p50 = theirs.samples.percentile_ns(50)
    assert p50 is not None and p50 >= 4_000_000
    compute = sorted(theirs.samples.compute_ns)[len(theirs.samples) // 2]
    assert 4_000_000 <= compute <= p50


def test_camera_goes_through_the_whole_picture(artifact: Artifact) -> None:
    wish = replace_wish(scenario="camera", rate_hz=120.0)
    (latency,) = measured(artifact, wish=wish)
    samples = latency.samples
    assert samples.arrivals == len(samples) + samples.missed > 0
    assert len(samples.preprocess_ns) == len(samples.postprocess_ns) == len(samples)
    for total, *parts in zip(
        samples.latency_ns, samples.preprocess_ns, samples.compute_ns, samples.postprocess_ns, strict=True
    ):
        assert total >= sum(parts)


def replace_wish(**changes: object) -> Wish:
    from dataclasses import replace as change

    return change(WISH, **changes)


def test_batches_are_not_all_alike(tmp_path: Path) -> None:
    from vitedge.harness.entry import PICTURES, _frames

    pictures = [np.full((2, 2, 3), index, np.uint8) for index in range(PICTURES)]
    for batch in (1, 5, PICTURES, 2 * PICTURES + 1):
        frames = _frames(pictures, batch)
        assert frames.shape[1:] == (batch, 2, 2, 3) and len(frames) >= 2
        assert not np.array_equal(frames[0], frames[1])
        assert {int(value) for value in frames[..., 0, 0, 0].ravel()} == set(range(PICTURES))
    (latency,) = measured(null_artifact(tmp_path / "a", batch=8))
    assert latency.samples.throughput(8) == pytest.approx(8 * (latency.samples.throughput(1) or 0))


def test_rules_are_the_longest_of_the_targets(artifact: Artifact, tmp_path: Path) -> None:
    patient = replace(TARGET, bench=replace(TARGET.bench, min_duration_s=7.0))
    other = null_artifact(tmp_path / "a", target=patient)
    rules = Wish().rules([artifact, other], "golden")
    assert (rules.min_duration_s, rules.warmup_s) == (7.0, TARGET.bench.warmup_s)
    assert Wish(duration_s=1.0).rules([artifact, other], "golden").min_duration_s == 1.0


def test_contradictions_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--rate 30"):
        bench([artifact], replace_wish(scenario="camera"))
    with pytest.raises(UsageError, match="belongs to the scenario 'camera'"):
        bench([artifact], replace_wish(rate_hz=30.0))
    with pytest.raises(UsageError, match="one at a time"):
        bench([null_artifact(tmp_path / "a", batch=2)], replace_wish(scenario="camera", rate_hz=30.0))


def test_own_pictures(artifact: Artifact, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (latency,) = measured(artifact, images=ImageSet.open(tmp_path))
    assert latency.rules.pictures == tmp_path.name
    with pytest.raises(ImageError, match="1 readable"):
        bench([artifact], WISH, images=ImageSet.open(tmp_path / "0.png"))


# --- planted faults --------------------------------------------------------------------------------------------------


def test_remembered_answers_are_caught(tmp_path: Path) -> None:
    row = bench([null_artifact(tmp_path / "a", cached=True)], WISH).rows[0]
    assert not judge(row).valid and any("golden logits" in reason for reason in judge(row).reasons)


def test_another_models_answers_are_caught(tmp_path: Path) -> None:
    row = bench([null_artifact(tmp_path / "a", shift=1)], WISH).rows[0]
    verdict = judge(row)
    assert not verdict.correct and "another top-1" in verdict.reasons[0]


def test_a_runtime_that_slows_down_is_caught(tmp_path: Path) -> None:
    slowing = null_artifact(tmp_path / "a", latency_ms=0.5, drift_ms=0.02)
    verdict = judge(bench([slowing], replace_wish(duration_s=0.5, warmup_s=0.0)).rows[0])
    assert verdict.unstable is True and not verdict.valid


def test_answers_that_change_during_the_run_are_caught(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = Session.run_timed, iter(range(10**9))

    def lying(self: Session, images: np.ndarray) -> object:
        logits, stages = run(self, images)
        return (logits + 1.0 if next(calls) > 2000 else logits), stages

    monkeypatch.setattr(Session, "run_timed", lying)
    verdict = judge(bench([artifact], WISH).rows[0])
    assert verdict.audited is False and any("audited outputs differ" in reason for reason in verdict.reasons)


def test_outputs_that_are_not_finite_are_refused(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Session.run_timed

    def broken(self: Session, images: np.ndarray) -> object:
        logits, stages = run(self, images)
        return np.full_like(logits, np.nan), stages

    monkeypatch.setattr(Session, "run_timed", broken)
    with pytest.raises(InvalidResultError, match="isn't finite"):
        bench([artifact], WISH)


STOPS = [(KeyboardInterrupt(), 130), (InterruptedError_("a", "b", "c", signal_number=signal.SIGTERM), 143)]


@pytest.mark.parametrize(("stop", "code"), STOPS)
def test_an_interruption_leaves_a_partial_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, code: int
) -> None:
    run, calls = Session.run_timed, iter(range(10**9))

    def interrupted(self: Session, images: np.ndarray) -> object:
        if next(calls) == 1000:
            raise stop
        return run(self, images)

    monkeypatch.setattr(Session, "run_timed", interrupted)
    with pytest.raises(Stopped) as caught:
        bench([null_artifact(tmp_path / "a", latency_ms=1.0)], replace_wish(duration_s=2.0))
    result = caught.value.result
    assert result.partial and caught.value.exit_code == code
    assert decode_result(encode_result(result), "result") == result
    latency = result.rows[0].latency
    assert latency is not None and 0 < len(latency.samples) < 1000
    assert sum(block.samples for block in latency.samples.blocks) == len(latency.samples)
