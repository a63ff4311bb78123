"""The result file: percentiles by the named tools' rules, raw columns, refusals."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.benchmarking.nulls import null_artifact
from vitedge.core.files import refuse_existing
from vitedge.core.percentiles import early_stopping
from vitedge.device.hardware import Board, Processor
from vitedge.errors import ArtifactError, UsageError
from vitedge.formats.result import (
    RESULT,
    Accuracy,
    Block,
    DataSet,
    Environment,
    Latency,
    Memory,
    Result,
    Row,
    Rules,
    Samples,
    Subject,
    Warmup,
    combine,
    encode_result,
    percentile,
    read_result,
    samples_needed,
    write_result,
)

#: Microseconds of 43 inferences of a ViT, as recorded.
RECORDED = [
    3121, 3098, 3105, 3390, 3087, 3111, 3093, 3102, 3544, 3089, 3117, 3095, 3101, 3099, 3108, 4213, 3091, 3120, 3097,
    3104, 3096, 3110, 3092, 3388, 3100, 3107, 3094, 3118, 3090, 3103, 3106, 3112, 3119, 3122, 3088, 3113, 3116, 3109,
    3115, 5120, 3114, 3123, 3124,
]  # fmt: skip


def test_nearest_rank_is_benchmark_apps() -> None:
    benchmark = pytest.importorskip("openvino.tools.benchmark.benchmark", exc_type=ImportError)
    if not hasattr(benchmark, "percentile"):
        pytest.skip("this OpenVINO's benchmark_app keeps its percentile elsewhere")
    ordered = sorted(RECORDED)
    for percent in range(1, 101):
        assert percentile(ordered, percent) == benchmark.percentile(ordered, percent)


@settings(max_examples=300, deadline=None)
@given(
    samples=st.lists(st.integers(0, 10**9), min_size=1, max_size=300),
    percent=st.sampled_from([0, 1, 5, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.9, 100]),
)
def test_percentiles_by_their_definitions(samples: list[int], percent: float) -> None:
    ordered, count = sorted(samples), len(samples)
    parts = round(percent * 10)  # of a thousand: integers leave no room for rounding
    found = percentile(ordered, percent)
    assert sum(value <= found for value in ordered) * 1000 >= parts * count  # at least p % don't exceed it …
    assert sum(value < found for value in ordered) * 1000 < parts * count or found == ordered[0]  # … and it's the least
    assert percentile(ordered, percent, "loadgen") == ordered[min(parts * count // 1000, count - 1)]
    left_out = int((np.float32(1) - np.float32(percent) / np.float32(100)) * np.float32(count))  # as C++ floats do
    assert percentile(ordered, percent, "trtexec") == ordered[max(0, count - 1 - left_out)]


def test_named_tools_on_recorded_samples() -> None:
    ordered = sorted(RECORDED)
    assert percentile(ordered, 90) == ordered[math.ceil(0.9 * 43) - 1] == 3388
    assert percentile(ordered, 90, "loadgen") == ordered[int(43 * 0.9)] == 3388
    assert percentile(ordered, 90, "trtexec") == ordered[43 - 1 - int(43 * 0.1)] == 3388
    assert percentile(ordered, 95) == 3544
    assert percentile(ordered, 95, "trtexec") == 3544
    assert percentile(list(range(1000)), 99.9) == 998  # 99.9 % of 1000 is 999, not 999.0000000000001
    assert percentile(list(range(1000)), 99.9, "loadgen") == 999
    assert percentile(list(range(100)), 50, "trtexec") == 49
    assert percentile(list(range(100)), 99, "trtexec") == 99  # 1 - 0.99f is under 0.01: nothing is left out
    assert percentile(list(range(1000)), 99, "trtexec") == 990
    assert percentile(list(range(100)), 50, "loadgen") == 50


@pytest.mark.parametrize(("count", "percent"), [(63, 90), (64, 90), (100, 90), (1000, 90), (661, 99), (2000, 99)])
def test_early_stopping_is_loadgens(count: int, percent: float) -> None:
    """By the binomial distribution itself: at most t of the samples lie beyond with a probability of at most 1 %."""
    p = Fraction(str(percent)) / 100
    term, at_most, allowed = p**count, p**count, []
    for t in range(1, count // 4):
        term *= Fraction(count - t + 1, t) * (1 - p) / p
        at_most += term
        if at_most > Fraction(1, 100):
            break
        allowed.append(t)
    expected = count - max(allowed) if allowed else None
    assert early_stopping(range(count), percent) == expected


@pytest.mark.parametrize("percent", [50, 90, 95, 99, 99.9])
def test_a_percentile_appears_with_the_sample_that_supports_it(percent: float) -> None:
    enough = samples_needed(percent)
    p = percent / 100
    beyond = lambda n: p**n + n * (1 - p) * p ** (n - 1)  # noqa: E731 - P(at most one of n lies beyond)
    assert beyond(enough) <= 0.01 < beyond(enough - 1)
    assert samples(range(enough - 1)).percentile_ns(percent) is None
    assert samples(range(enough)).percentile_ns(percent) is not None


def samples(latencies: range | list[int], block: int = 10**6) -> Samples:
    values = tuple(latencies)
    starts = np.concatenate([[0], np.cumsum(values)]).astype(int)
    blocks = [
        Block(
            start_ns=int(starts[i]), end_ns=int(starts[min(i + block, len(values))]), samples=len(values[i : i + block])
        )
        for i in range(0, len(values), block)
    ]
    return Samples(start_ns=tuple(int(start) for start in starts[:-1]), latency_ns=values, blocks=tuple(blocks))


def environment() -> Environment:
    return Environment(
        processor=Processor(
            model="a processor",
            architecture="x86_64",
            isa=("avx2",),
            logical_cores=2,
            physical_cores=2,
            allowed_cores=2,
            quota_cores=None,
            governor=None,
            max_mhz=None,
        ),
        board=Board(model=None, os=None, kernel=None, l4t=None, jetpack=None),
        gpus=(),
        memory_mb=1024,
        virtual=None,
        power_source=None,
        versions={"vitedge": "0"},
    )


def latency(taken: Samples) -> Latency:
    rules = Rules(
        scenario="single",
        warmup_s=1.0,
        min_duration_s=1.0,
        min_samples=1,
        percentile=90,
        block_s=0.1,
        settle=2,
        seed=0,
        pictures="golden",
    )
    return Latency(
        rules=rules,
        load_ns=1,
        first_ns=1,
        warmup=Warmup(samples=1, duration_ns=1, stable=True),
        samples=taken,
        memory=Memory(before_bytes=None, after_bytes=None, peak_bytes=None),
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    artifact = null_artifact(tmp_path_factory.mktemp("artifact") / "a")
    row = Row(
        subject=Subject.of(artifact),
        latency=latency(samples([5, 6, 7, 8], block=2)),
        accuracy=Accuracy(predicted=(0, 1), rank=(0, 3)),
    )
    data = DataSet(
        source='a ] [\n1, 2] "name"', digest="0", classes=("x", "y"), names=("x/1.png", "[\n  1]"), label=(0, 0)
    )
    return Result(created="2030-01-01T00:00:00+00:00", environment=environment(), rows=(row,), data=data)


def test_file_is_read_back_and_columns_take_one_line(result: Result, tmp_path: Path) -> None:
    write_result(result, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result == read_result(tmp_path)
    text = (tmp_path / "result.json").read_text()
    assert '"latency_ns": [5,6,7,8]' in text and len(text.splitlines()) < 250
    assert json.loads(text)["rows"][0]["latency"]["samples"]["latency_ns"] == [5, 6, 7, 8]


def without_digest(result: Result) -> dict[str, Any]:
    """The fields of its file, to be changed by hand."""
    fields: dict[str, Any] = json.loads(encode_result(result))
    del fields["record_digest"]
    return fields


def test_newer_and_damaged_files_are_refused(result: Result, tmp_path: Path) -> None:
    good = without_digest(result)
    path = tmp_path / "result.json"

    def refused(change: object, words: str) -> None:
        path.write_text(change if isinstance(change, str) else json.dumps(change))
        with pytest.raises(ArtifactError, match=words):
            read_result(path)

    refused({**good, "schema_version": 5, "vitedge_version": "9.9"}, r"(?s)schema version 5.*vitedge 9\.9 or newer")
    refused({**good, "surprise": 1}, "surprise")
    refused("{", "isn't a valid record")
    broken = without_digest(result)
    broken["rows"][0]["latency"]["samples"]["start_ns"].pop()
    refused(broken, "differ in length")
    broken = without_digest(result)
    broken["data"]["label"], broken["data"]["names"] = [0], ["x/1.png"]
    refused(broken, "more images than the data set")
    with pytest.raises(UsageError, match="no such file"):
        read_result(tmp_path / "absent.json")


def test_a_result_keeps_the_field_names_of_its_json(result: Result) -> None:
    """Attributes have better names; a file's fields are renamed only by a new schema version."""
    written = json.loads(encode_result(result))
    assert "circumstances" in written and "dialects" in written["rows"][0] and "floor" in written["rows"][0]["latency"]


def test_results_of_the_first_version_are_read(result: Result, tmp_path: Path) -> None:
    """Its files lack what version 2 added."""
    old = without_digest(result)
    del old["resumed"]
    for row in old["rows"]:
        del row["profile"], row["dialects"]
        for key in ("power_of", "resumed_ns"):
            del row["latency"][key]
        for key in ("alone", "device_before_bytes", "device_after_bytes"):
            del row["latency"]["memory"][key]
        del row["latency"]["rules"]["replay"], row["latency"]["rules"]["pictures_digest"]
    (tmp_path / "result.json").write_text(json.dumps({**old, "schema_version": 1}))
    assert read_result(tmp_path).rows == result.rows


def test_rows_of_a_sweep_keep_their_latencies(result: Result) -> None:
    row = result.rows[0]
    sweep = [replace(row, accuracy=None, session={"threads": threads}) for threads in (1, 2)]
    evaluated = replace(row, latency=None, accuracy=Accuracy(predicted=(0,), rank=(0,)), session={})
    data = DataSet(source="d", digest="0", classes=("a",), names=("a/1",), label=(0,))
    measured = replace(result, rows=tuple(sweep), data=None)
    both = combine(measured, replace(result, rows=(evaluated,), data=data))
    assert [joined.session["threads"] for joined in both.rows] == [1, 2]
    assert all(joined.latency and joined.accuracy for joined in both.rows)


def test_existing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("")
    with pytest.raises(UsageError, match="already exists"):
        refuse_existing(tmp_path / "r.json", RESULT, overwrite=False, action="bench")
    refuse_existing(tmp_path / "r.json", RESULT, overwrite=True, action="bench")
    with pytest.raises(UsageError, match="is a folder"):
        refuse_existing(tmp_path, RESULT, overwrite=True, action="bench")


def test_combine_joins_rows_of_one_artifact(result: Result) -> None:
    row = result.rows[0]
    measured = replace(result, rows=(replace(row, accuracy=None),), data=None)
    evaluated = replace(result, rows=(replace(row, latency=None, note="evaluated"),))
    joined = combine(measured, evaluated)
    assert joined.rows == (replace(row, note="evaluated"),) and joined.data == result.data
    elsewhere = replace(evaluated, environment=replace(environment(), memory_mb=1))
    with pytest.raises(ValueError, match="different environments"):
        combine(measured, elsewhere)


def test_throughput_and_missed_arrivals() -> None:
    blocks = (
        Block(start_ns=0, end_ns=10**9, samples=2, arrivals=3),
        Block(start_ns=5 * 10**9, end_ns=6 * 10**9, samples=1, arrivals=4),
    )
    taken = Samples(start_ns=(0, 1, 5), latency_ns=(1, 2, 3), blocks=blocks)
    assert taken.throughput(batch=4) == 6.0  # 12 images in the 2 s of the blocks, not in the 6 s between their ends
    assert (taken.arrivals, taken.missed) == (7, 4)
    assert taken.block_latencies() == [(1, 2), (3,)]


def test_environment_of_this_machine_hold_no_name_of_it() -> None:
    import getpass
    import platform

    here = str(Environment.here())
    assert platform.node() not in here and f"/{getpass.getuser()}" not in here


def test_environment_from_other_machines_files(tmp_path: Path) -> None:
    assert Environment.here(tmp_path).virtual is None and Environment.here(tmp_path).power_source is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nvendor_id : GenuineIntel\nflags : fpu avx2 hypervisor\n")
    mouse, cell, mains = (tmp_path / "sys/class/power_supply" / name for name in ("hidpp", "BAT0", "AC"))
    for folder, files in {
        mouse: {"type": "Battery", "scope": "Device"},
        cell: {"type": "Battery"},
        mains: {"type": "Mains", "online": "0"},
    }.items():
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    found = Environment.here(tmp_path)
    assert found.virtual is True and found.power_source == "battery" and found.processor.isa == ("avx2",)
    (mains / "online").write_text("1\n")
    assert Environment.here(tmp_path).power_source == "mains"
    (cell / "type").unlink()
    (mains / "online").write_text("0\n")
    assert Environment.here(tmp_path).power_source is None  # a mouse's battery is no computer's
