"""Artifacts through the load generator: overhead, stages, refusals, planted faults, and what an interruption leaves."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from tests.benchmarking.nulls import TARGET, null_artifact
from tests.device.test_sensors import INTEL, tree
from vitedge.benchmarking import interleaving
from vitedge.benchmarking.arrivals import Replay
from vitedge.benchmarking.bench import BenchConfig, bench
from vitedge.benchmarking.validity import assess
from vitedge.core.files import write_atomic
from vitedge.core.percentiles import percentile
from vitedge.data.images import ImageSet
from vitedge.errors import ImageError, Interrupted, InvalidResultError, ResourceError, UsageError
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import Latency, Result, Stopped, decode_result, encode_result
from vitedge.formats.samples import first_blocks
from vitedge.runtimes.session import Session

CONFIG = BenchConfig(duration_s=0.1, warmup_s=0.02, percentile=50)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return null_artifact(tmp_path_factory.mktemp("artifact") / "a")


def measured(*artifacts: Artifact, config: BenchConfig = CONFIG, **more: object) -> list[Latency]:
    result = bench(artifacts, config, **more)
    assert decode_result(encode_result(result), "result") == result and not result.partial
    return [row.latency for row in result.rows if row.latency is not None]


def test_null_runtime_shows_the_harness_itself(artifact: Artifact) -> None:
    (latency,) = measured(artifact)
    p50 = latency.samples.percentile_ns(50)
    assert p50 is not None and 0 < p50 < 200_000  # a hundredth of this on a quiet machine
    assert latency.overhead is not None and latency.overhead.percentile_ns(50) is not None
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
    compute = percentile(sorted(theirs.samples.compute_ns), 50)  # by the same rule as the latency's
    assert 4_000_000 <= compute <= p50


@pytest.mark.parametrize("rate", [30.0, 120.0])
def test_camera_goes_through_the_whole_picture(artifact: Artifact, rate: float) -> None:
    config = configured(scenario="camera", rate_hz=rate, duration_s=0.5)
    (latency,) = measured(artifact, config=config)
    samples = latency.samples
    assert samples.arrivals == len(samples) + samples.missed > 0
    assert all(
        block.arrivals > 0 and abs(block.arrivals - rate * latency.rules.block_s) <= 1 for block in samples.blocks
    )
    assert len(samples.preprocess_ns) == len(samples.postprocess_ns) == len(samples)
    for total, *parts in zip(
        samples.latency_ns, samples.preprocess_ns, samples.compute_ns, samples.postprocess_ns, strict=True
    ):
        assert total >= sum(parts)


def configured(**changes: object) -> BenchConfig:
    return replace(CONFIG, **changes)


def test_batches_are_not_all_alike(tmp_path: Path) -> None:
    from vitedge.benchmarking.opened import PICTURES, _frames

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
    rules = BenchConfig().rules([artifact, other])
    assert (rules.min_duration_s, rules.warmup_s) == (7.0, TARGET.bench.warmup_s)
    assert BenchConfig(duration_s=1.0).rules([artifact, other]).min_duration_s == 1.0


def test_contradictions_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--rate 30"):
        bench([artifact], configured(scenario="camera"))
    with pytest.raises(UsageError, match="need each other"):
        bench([artifact], configured(rate_hz=30.0))
    with pytest.raises(UsageError, match="one at a time"):
        bench([null_artifact(tmp_path / "a", batch=2)], configured(scenario="camera", rate_hz=30.0))


def test_own_pictures(artifact: Artifact, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (latency,) = measured(artifact, images=ImageSet.open(tmp_path))
    assert latency.rules.pictures == tmp_path.name
    with pytest.raises(ImageError, match="1 readable"):
        bench([artifact], CONFIG, images=ImageSet.open(tmp_path / "0.png"))


# --- planted faults --------------------------------------------------------------------------------------------------


def test_remembered_answers_are_caught(tmp_path: Path) -> None:
    row = bench([null_artifact(tmp_path / "a", cached=True)], CONFIG).rows[0]
    assert not assess(row).valid and any("golden logits" in reason for reason in assess(row).reasons)


def test_a_runtime_that_remembers_the_last_picture_is_caught(tmp_path: Path) -> None:
    """Its answers are right; only the time of a repeated input gives it away."""
    row = bench([null_artifact(tmp_path / "a", remembers=True, latency_ms=1.0)], CONFIG).rows[0]
    verdict = assess(row)
    assert verdict.correct and verdict.audited is False and "repeated input" in verdict.reasons[-1]


@pytest.mark.parametrize("faults", [{"shift": 1}, {"another": True}])
def test_another_models_answers_are_caught(tmp_path: Path, faults: dict[str, Any]) -> None:
    row = bench([null_artifact(tmp_path / "a", **faults)], CONFIG).rows[0]
    verdict = assess(row)
    assert not verdict.correct and "another top-1" in verdict.reasons[0]


@pytest.mark.parametrize("falls", [True, False])
def test_a_machine_that_throttles_is_caught(artifact: Artifact, tmp_path: Path, falls: bool) -> None:
    """Its clock falls while the run lasts; the sensors see it, whatever the latencies say."""
    tree(tmp_path, INTEL)
    clock = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"

    def progress(task: str, done: int, total: int) -> None:
        if task == "measure" and falls and done >= total / 2:
            write_atomic(clock, b"1500000", "let a clock fall")

    for _ in range(5):  # the sensors' process has the lowest priority, and this machine may be busy
        write_atomic(clock, b"2900000", "let a clock rise")
        row = bench([artifact], configured(duration_s=1.5), progress=progress, root=tmp_path).rows[0]
        assert row.latency is not None
        if len(row.latency.readings) >= 6:
            break
    verdict = assess(row)
    assert verdict.throttled is falls and ("2900 to 1500 MHz" in " ".join(verdict.reasons)) is falls
    assert row.latency.power_of == ("processor packages (RAPL)",)


def test_a_runtime_that_slows_down_is_caught(tmp_path: Path) -> None:
    slowing = null_artifact(tmp_path / "a", latency_ms=0.5, drift_ms=0.02)
    verdict = assess(bench([slowing], configured(duration_s=0.5, warmup_s=0.0)).rows[0])
    assert verdict.unstable is True and not verdict.valid


def test_answers_that_change_during_the_run_are_caught(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = Session.run_timed, iter(range(10**9))

    def lying(self: Session, images: np.ndarray) -> object:
        logits, stages = run(self, images)
        return (logits + 1.0 if next(calls) > 2000 else logits), stages

    monkeypatch.setattr(Session, "run_timed", lying)
    verdict = assess(bench([artifact], CONFIG).rows[0])
    assert verdict.audited is False and any("audited outputs differ" in reason for reason in verdict.reasons)


def test_outputs_that_are_not_finite_are_refused(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Session.run_timed

    def broken(self: Session, images: np.ndarray) -> object:
        logits, stages = run(self, images)
        return np.full_like(logits, np.nan), stages

    monkeypatch.setattr(Session, "run_timed", broken)
    with pytest.raises(InvalidResultError, match="isn't finite"):
        bench([artifact], CONFIG)


STOPS = [(KeyboardInterrupt(), 130), (Interrupted("a", "b", "c", signal_number=signal.SIGTERM), 143)]


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
        bench([null_artifact(tmp_path / "a", latency_ms=1.0)], configured(duration_s=2.0))
    result = caught.value.result
    assert result.partial and caught.value.exit_code == code
    assert decode_result(encode_result(result), "result") == result
    latency = result.rows[0].latency
    assert latency is not None and 0 < len(latency.samples) < 1000
    assert sum(block.samples for block in latency.samples.blocks) == len(latency.samples)


# --- going on --------------------------------------------------------------------------------------------------------


def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: BenchConfig, *artifacts: Artifact) -> Result:
    """What is left of a run that Ctrl-C reaches within a block, after at least two whole rounds."""
    run, measured, calls = Session.run_timed, list[Result](), iter(range(10**9))

    def stops(self: Session, images: np.ndarray) -> object:
        if measured and next(calls) == 3:
            raise KeyboardInterrupt
        return run(self, images)

    def keep(result: Result) -> None:
        found = result.rows[0].latency
        if found is not None and found.overhead is not None and len(found.overhead.blocks) > 1:
            measured.append(result)

    with monkeypatch.context() as patch:
        patch.setattr(interleaving, "KEEP_EVERY_S", 0.0)
        patch.setattr(Session, "run_timed", stops)
        with pytest.raises(Stopped) as caught:
            bench(artifacts, config, keep=keep)
    return decode_result(encode_result(caught.value.result), "result")


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = null_artifact(tmp_path / "a", latency_ms=1.0)
    config = configured(duration_s=1.0)
    part = interrupted(tmp_path, monkeypatch, config, slow)
    before = part.rows[0].latency
    assert part.partial and before is not None
    kept: list[Result] = []
    whole = bench([slow], config, resume=part, keep=kept.append)
    after = whole.rows[0].latency
    assert not whole.partial and len(whole.resumed) == 1 and whole.created == part.created
    assert before.overhead is not None
    rounds = min(len(before.samples.blocks), len(before.overhead.blocks))
    kept_ns = first_blocks(before.samples, rounds).latency_ns
    assert after is not None and kept_ns and after.samples.latency_ns[: len(kept_ns)] == kept_ns
    assert len(after.resumed_ns) == 1 and (after.load_ns, after.first_ns) == (before.load_ns, before.first_ns)
    assert after.overhead is not None
    assert len(after.overhead.blocks) == len(after.samples.blocks) and len(after.overhead) > len(before.overhead)
    assert assess(whole.rows[0]).audited is True


def test_a_full_disk_does_not_end_a_measurement(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Result] = []

    def full(result: Result) -> None:
        tries.append(result)
        raise ResourceError("write", "no space left on device", "free some")

    monkeypatch.setattr(interleaving, "KEEP_EVERY_S", 0.0)
    assert not bench([artifact], CONFIG, keep=full).partial
    assert tries and all(result.partial for result in tries)


def test_what_cannot_go_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    slow = null_artifact(tmp_path / "a", latency_ms=1.0)
    config = configured(duration_s=1.0)
    part = interrupted(tmp_path, monkeypatch, config, slow)
    elsewhere = replace(part.environment, versions={**part.environment.versions, "numpy": "1.0"})
    otherwise = tuple(replace(row, session={**row.session, "threads": 7}) for row in part.rows)
    for before, artifacts, other, words in (
        (replace(part, partial=False), [artifact], config, "other artifacts"),
        (replace(part, partial=False), [slow], configured(duration_s=2.0), "other rules: min_duration_s"),
        (replace(part, partial=False, environment=elsewhere), [slow], config, "another environment"),
        (replace(part, partial=False, rows=otherwise), [slow], config, "another threads"),
        (replace(part, partial=False), [slow], configured(duration_s=1.0, profile=True), "has no profile"),
        (replace(part, partial=False), [slow], configured(duration_s=1.0, like=("loadgen",)), "no measurement like"),
        (replace(part, rows=tuple(replace(row, latency=None) for row in part.rows)), [slow], config, "isn't a meas"),
        (part, [artifact], config, "other artifacts"),
        (part, [slow, slow], config, "other artifacts"),
        (part, [slow], configured(duration_s=2.0), "other rules: min_duration_s"),
        (replace(part, environment=elsewhere), [slow], config, "another environment"),
        (replace(part, rows=otherwise), [slow], config, "another threads"),
    ):
        with pytest.raises(UsageError, match=words):
            bench(artifacts, other, resume=before)


def test_a_data_set_is_known_by_its_pictures(artifact: Artifact, small_data: Path, tmp_path: Path) -> None:
    """Two folders of one name aren't one question."""
    import shutil

    from vitedge.data.images import ImageSet

    copies = [Path(shutil.copytree(small_data, tmp_path / side / "photos")) for side in "ab"]
    before = bench([artifact], CONFIG, images=ImageSet.open(copies[0]))
    assert bench([artifact], CONFIG, images=ImageSet.open(copies[1]), resume=before) == before
    for path in copies[1].rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UsageError, match="other rules: pictures_digest"):
        bench([artifact], CONFIG, images=ImageSet.open(copies[1]), resume=before)


# --- sweeps, profiles, tool protocols, memory -----------------------------------------------------------------------


def test_sweep_of_threads(artifact: Artifact) -> None:
    rows = bench([artifact], configured(threads=(1, 3))).rows
    assert [row.session["threads"] for row in rows] == [1, 3]
    assert all(row.latency is not None and row.subject.digest == artifact.digest for row in rows)
    memory = rows[0].latency.memory if rows[0].latency else None
    assert memory is not None and memory.alone and 10**7 < (memory.after_bytes or 0) <= (memory.peak_bytes or 0)


def test_sweep_of_threads_is_refused_where_there_are_none(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "info", {"device": "cuda:0"})
    with pytest.raises(UsageError, match="no compute threads on cuda:0"):
        bench([artifact], configured(threads=(1, 2)))


def test_sweep_of_batches_takes_the_artifacts_that_have_them(artifact: Artifact, tmp_path: Path) -> None:
    eight = null_artifact(tmp_path / "8", batch=8)
    rows = bench([artifact, eight], configured(batches=(8,))).rows
    assert [row.subject.batch for row in rows] == [8]
    with pytest.raises(UsageError, match=r"artifacts here take 1, 8") as caught:
        bench([artifact, eight], configured(batches=(1, 4)))
    assert "--batch 4" in caught.value.hint


def test_other_tools_rules_and_profiles_stand_beside_the_run(artifact: Artifact) -> None:
    row = bench([artifact], configured(like=("ultralytics", "benchmark-app"), profile=True)).rows[0]
    assert [run.tool for run in row.protocol_runs] == ["ultralytics", "benchmark-app"]
    assert not row.protocol_runs[0].shortened and len(row.protocol_runs[0].samples) == 24  # one pass
    assert row.protocol_runs[1].shortened and row.profile is None  # the null runtime has no layers
    with pytest.raises(UsageError, match="the tools are trtexec10"):
        bench([artifact], configured(like=("trtexec",)))


def test_a_recorded_clip_is_replayed(artifact: Artifact) -> None:
    pictures = [Image.new("RGB", (20, 10), (red, 0, 0)) for red in range(5)]
    clip = Replay("yard.clip 0a1b2c", [0, 8_000_000, 40_000_000, 48_000_000, 80_000_000], pictures)
    (latency,) = measured(artifact, config=configured(scenario="camera"), replay=clip)
    assert latency.rules.replay == latency.rules.pictures == "yard.clip 0a1b2c"
    assert latency.rules.rate_hz == pytest.approx(50)
    assert latency.samples.arrivals == len(latency.samples) + latency.samples.missed > 0
