from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarking.nulls import null_artifact, stopped_while_measuring, told_when_measuring
from tests.cli.command import fails, vitedge
from vitedge.core.options import parse_time
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import read_result

QUICK = ("--duration", 0.1, "--warmup", 0.02, "--percentile", 50)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return null_artifact(tmp_path_factory.mktemp("artifact") / "a")


def test_table_file_and_json_tell_the_same(artifact: Artifact, tmp_path: Path) -> None:
    done = vitedge("bench", artifact.path, *QUICK, "--out", tmp_path / "r.json")
    assert done.code == 0, done.err
    assert "null fp32" in done.out and "p50 ms" in done.out and "\x1b" not in done.out
    assert done.err.startswith("next: vitedge report ")  # nobody looks at a terminal: no progress
    result = read_result(tmp_path / "r.json")
    assert result.rows[0].subject.digest == artifact.digest and not result.partial
    printed = vitedge("bench", artifact.path, artifact.path, *QUICK, "--json", "-")
    assert printed.code == 0
    rows = json.loads(printed.out)["rows"]  # JSON and nothing else
    assert len(rows) == 2 and len(rows[0]["latency"]["samples"]["latency_ns"]) > 10


def test_options_reach_the_rules(artifact: Artifact) -> None:
    done = vitedge(
        "bench", artifact.path, *QUICK, "--scenario", "camera", "--rate", 60, "--iterations", 20, "--json", "-"
    )
    rules = json.loads(done.out)["rows"][0]["latency"]["rules"]
    assert (rules["scenario"], rules["rate_hz"], rules["min_samples"]) == ("camera", 60, 20)
    assert (rules["percentile"], rules["warmup_s"], rules["min_duration_s"]) == (50, 0.02, 0.1)


def test_percentile_that_the_sample_does_not_support_is_not_printed(artifact: Artifact, tmp_path: Path) -> None:
    slow = null_artifact(tmp_path / "a", latency_ms=5.0)
    done = vitedge("bench", slow.path, "--duration", 0, "--warmup", 0.01, "--percentile", 50, "--iterations", 20)
    assert done.code == 0 and "p95" not in done.out


def test_refusals(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("mine")
    action, _, hint = fails(2, "bench", artifact.path, "--out", tmp_path / "r.json")
    assert (action, hint) == ("measure latency", "name another --out, or add --overwrite")
    assert (tmp_path / "r.json").read_text() == "mine"
    assert "is a folder" in fails(2, "bench", artifact.path, "--out", tmp_path)[1]
    assert fails(2, "bench", artifact.path, "--scenario", "camera")[2] == "use: --scenario camera --rate 30"
    assert "no such folder" in fails(2, "bench", tmp_path / "none")[1]
    assert vitedge("bench", artifact.path, "--percentile", 100).code == 2
    assert vitedge("bench", artifact.path, "--scenario", "server").code == 2


def test_strict_exits_with_7_and_names_what_is_wrong(artifact: Artifact, tmp_path: Path) -> None:
    liar = null_artifact(tmp_path / "liar", shift=1)
    done = vitedge("bench", liar.path, *QUICK, "--strict", "--out", tmp_path / "r.json")
    assert done.code == 7 and "golden logits" in done.error[1]
    assert "wrong outputs" in done.out and (tmp_path / "r.json").exists()  # kept and shown all the same
    assert vitedge("bench", liar.path, *QUICK).code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_bench_leaves_a_partial_result(tmp_path: Path, number: signal.Signals, code: int) -> None:
    slow = null_artifact(tmp_path / "a", latency_ms=1.0)
    out = tmp_path / "r.json"
    arguments = ("bench", slow.path, "--duration", "2", "--iterations", "1000000", "--warmup", "0.05", "--out", out)
    returned, printed, err = stopped_while_measuring(tmp_path, number, 1.0, *arguments)  # after some blocks
    assert returned == code, err
    assert "Traceback" not in err and "error: measure latency" in err.splitlines()
    assert f"received {number.name}" in err and "partial" in printed
    result = read_result(out)
    latency = result.rows[0].latency
    assert result.partial and latency is not None and 0 < len(latency.samples) < 1_000_000
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".r.json")]


def test_a_killed_bench_leaves_a_partial_result_and_goes_on(tmp_path: Path) -> None:
    slow = null_artifact(tmp_path / "a", latency_ms=1.0)
    out = tmp_path / "r.json"
    arguments = ["bench", slow.path, "--duration", "2s", "--iterations", "700", "--warmup", "0.05", "--out", out]
    child = subprocess.Popen(
        [sys.executable, "-m", "vitedge", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=told_when_measuring(tmp_path, keep_every_s=0.1),
    )
    until = time.monotonic() + 60
    while not out.exists() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    child.kill()
    child.wait()
    part = read_result(out)
    assert part.partial and part.rows[0].latency is not None
    kept = part.rows[0].latency.samples
    assert vitedge(*arguments).code == 2  # without a word it isn't overwritten
    done = vitedge(*arguments, "--resume", "--quiet")
    assert done.code == 0, done.err
    whole = read_result(out)
    latency = whole.rows[0].latency
    assert not whole.partial and len(whole.resumed) == 1 and latency is not None
    assert len(latency.samples) >= 700 and latency.samples.latency_ns[: len(kept)] == kept.latency_ns
    again = vitedge(*arguments, "--resume")  # nothing is left to do
    assert again.code == 0 and read_result(out) == whole


def test_resume_begins_anew_where_nothing_was_interrupted(artifact: Artifact, tmp_path: Path) -> None:
    assert vitedge("bench", artifact.path, *QUICK, "--out", tmp_path / "new.json", "--resume").code == 0
    assert not read_result(tmp_path / "new.json").partial
    assert fails(2, "bench", artifact.path, "--resume")[2] == "add: --out result.json"
    (tmp_path / "broken.json").write_text('{"schema_version": 2, "rows": [')
    assert "isn't a valid record" in fails(3, "bench", artifact.path, "--resume", "--out", tmp_path / "broken.json")[1]


def test_a_finished_result_answers_its_own_question_alone(artifact: Artifact, tmp_path: Path) -> None:
    out, other = tmp_path / "r.json", null_artifact(tmp_path / "other", batch=2)
    question = ("--warmup", 0.02, "--percentile", 50, "--out", out, "--resume")
    assert vitedge("bench", artifact.path, "--duration", 0.1, *question).code == 0
    written = out.read_bytes()
    for asked, words in (
        ((other.path, "--duration", 0.1), "about other artifacts"),
        ((artifact.path, artifact.path, "--duration", 0.1), "about other artifacts"),
        ((artifact.path, "--duration", 0.2), "under other rules: min_duration_s"),
        ((artifact.path, "--duration", 0.1, "--scenario", "offline"), "under other rules: scenario"),
        ((artifact.path, "--duration", 0.1, "--threads", 2), "another threads"),
        ((artifact.path, "--duration", 0.1, "--profile"), "has no profile"),
    ):
        _, reason, hint = fails(2, "bench", *asked, *question)
        assert words in reason and "leave --resume out, and add --overwrite" in hint
    assert out.read_bytes() == written
    assert vitedge("bench", artifact.path, "--duration", 0.1, *question).code == 0 and out.read_bytes() == written
    again = ("--duration", 0.2, "--warmup", 0.02, "--percentile", 50, "--out", out, "--overwrite")
    assert vitedge("bench", artifact.path, *again).code == 0  # as the hint says
    assert out.read_bytes() != written


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("0.5", 0.5), ("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 m ", 120)]
)
def test_times(text: str, expected: float) -> None:
    assert parse_time(text) == expected


def test_words_that_are_no_times_or_lists_are_refused(artifact: Artifact) -> None:
    for text in ("soon", "10 minutes", "-1", "1e3", ""):
        done = vitedge("bench", artifact.path, "--duration", text)
        assert done.code == 2 and "Traceback" not in done.err
    for option in ("--threads", "--batch"):
        for text in ("many", "1,1", "1,,2", "-1", "1.5"):
            assert fails(2, "bench", artifact.path, option, text)[2].startswith(f"write {option} 4")
    assert vitedge("bench", artifact.path, "--like", "mlperf").code == 2


def test_other_tools_stand_side_by_side(artifact: Artifact) -> None:
    slow = [*QUICK, "--like", "benchmark-app", "--like", "ultralytics", "--profile"]
    done = vitedge("bench", artifact.path, *slow)
    assert done.code == 0, done.err
    assert "as benchmark-app measures it" in done.out and "Latency: Median" in done.out
    assert any(line.split()[-3:] == ["tool", "vitedge", "unit"] for line in done.out.splitlines())
    assert "0.1 s instead of the tool's 60 s" in done.out
    assert "ms/im" in done.out and "mean over one pass" in done.out


def test_sweeps(artifact: Artifact, tmp_path: Path) -> None:
    eight = null_artifact(tmp_path / "8", batch=8)
    done = vitedge("bench", artifact.path, eight.path, *QUICK, "--threads", "1,2", "--batch", "8", "--json", "-")
    rows = json.loads(done.out)["rows"]
    assert [(row["subject"]["batch"], row["session"]["threads"]) for row in rows] == [(8, 1), (8, 2)]
    assert "--batch 3" in fails(2, "bench", artifact.path, *QUICK, "--batch", "1,3")[2]
    done = vitedge("bench", eight.path, *QUICK)
    assert "1 thread, batch 8" in done.out


def test_hostile_names_in_a_result_are_printed_harmlessly(tmp_path: Path) -> None:
    from msgspec.structs import replace

    from tests.benchmarking.nulls import TARGET

    hostile = null_artifact(tmp_path / "a", target=replace(TARGET, name="\x1b[31m[bold]red[/bold]<b>"))
    done = vitedge("bench", hostile.path, *QUICK)
    assert done.code == 0 and "\x1b" not in done.out and "[bold]red[/bold]<b>" in done.out
