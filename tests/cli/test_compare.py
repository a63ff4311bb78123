"""``vitedge compare``: the null runtime sleeps for known times, so the answers are known."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.benchmarking.nulls import TARGET, labelled, null_artifact, stopped_while_measuring
from tests.cli.command import fails, vitedge
from tests.reporting import results
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import read_result, write_result

FAST = ("--duration", "0.3", "--quiet")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return null_artifact(tmp_path_factory.mktemp("one") / "a", latency_ms=0.5)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Takes at least twice as long."""
    return null_artifact(tmp_path_factory.mktemp("double") / "b", precision="int8", latency_ms=2.0)


def test_a_slower_candidate_exits_with_7_and_a_faster_one_with_0(one: Artifact, double: Artifact, data: Path) -> None:
    action, reason, hint = fails(7, "compare", one.path, double.path, *FAST, "--data", data)
    assert action == "compare null int8 with null fp32" and "times as long" in reason and "--max-slowdown" in hint
    assert vitedge("compare", one.path, double.path, *FAST, "--max-slowdown", 10_000).code == 0
    done = vitedge("compare", double.path, one.path, *FAST, "--data", data)
    assert done.code == 0, done.err
    for text in ("faster", "not enough data", "can't be ruled out", "Top-1 on the same images"):
        assert text in done.out


def test_lost_accuracy_exits_with_7(one: Artifact, data: Path, tmp_path: Path) -> None:
    constant = null_artifact(tmp_path / "c", precision="int8", cached=True, latency_ms=0.5)
    _, reason, _ = fails(7, "compare", one.path, constant.path, *FAST, "--data", data, "--max-slowdown", 1000)
    assert "top-1 drop is" in reason
    free = replace(TARGET, budget=replace(TARGET.budget, max_top1_drop_pp=100.0))
    other = null_artifact(tmp_path / "d", target=free, latency_ms=0.1)
    assert vitedge("compare", one.path, other.path, *FAST, "--data", data, "--limit", 20).code == 0


def test_the_result_is_kept_and_tells_the_same_again(one: Artifact, double: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    done = vitedge("compare", double.path, one.path, *FAST, "--out", out, "--json", "-")
    assert done.code == 0, done.err
    (told,) = json.loads(done.out)
    assert told["interleaved"] and told["latency"]["high"] < 1 and told["failures"] == []
    assert len(read_result(out).rows) == 2
    again = vitedge("compare", out, "--json", "-")
    assert again.code == 0 and json.loads(again.out) == [told]
    assert fails(2, "compare", double.path, one.path, "--out", out)[1].endswith("already exists")


def test_strict_also_fails_what_is_uncertain(one: Artifact, double: Artifact) -> None:
    _, reason, hint = fails(7, "compare", double.path, one.path, *FAST, "--strict")
    assert "accuracy wasn't measured" in reason and "leave --strict out" in hint


def test_results_of_two_runs(tmp_path: Path) -> None:
    write_result(results.demo(), tmp_path / "before.json")
    write_result(results.demo(), tmp_path / "after.json")
    done = vitedge("compare", tmp_path / "before.json", tmp_path / "after.json")
    assert done.code == 0, done.err
    assert done.out.count("no significant difference") == 4 and "measured in two runs" in done.out


def test_what_cannot_be_compared(one: Artifact, tmp_path: Path) -> None:
    write_result(results.demo(), tmp_path / "r.json")
    assert "a baseline and a candidate" in fails(2, "compare", one.path)[1]
    assert "neither an artifact nor a result" in fails(2, "compare", one.path, tmp_path / "none")[1]
    assert "an artifact and a result" in fails(2, "compare", one.path, tmp_path / "r.json")[1]
    assert "nothing is measured again" in fails(2, "compare", tmp_path / "r.json", "--duration", "3")[1]
    (tmp_path / "x.json").write_text("{}")
    fails(3, "compare", tmp_path / "x.json")


def test_a_stopped_comparison_leaves_a_partial_result(one: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    arguments = ("compare", one.path, one.path, "--duration", "60", "--rounds", "2000", "--out", out, "--quiet")
    code, _, err = stopped_while_measuring(tmp_path, signal.SIGTERM, 2.0, *arguments)  # after some turns
    assert code == 143, err
    result = read_result(out)
    latency = result.rows[0].latency
    assert result.partial and len(result.rows) == 2 and latency is not None and len(latency.samples)
