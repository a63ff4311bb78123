from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarking.nulls import labelled, null_artifact
from tests.cli.command import fails, vitedge
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import read_result


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return null_artifact(tmp_path_factory.mktemp("artifact") / "a")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("data") / "pictures")


def test_table_file_and_json_tell_the_same(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    done = vitedge("eval", artifact.path, "--data", data, "--out", tmp_path / "r.json")
    assert done.code == 0, done.err
    assert "70.00" in done.out and "60 images of pictures" in done.out
    assert done.err.startswith("next: vitedge report ")
    accuracy = read_result(tmp_path / "r.json").rows[0].accuracy
    assert accuracy is not None and sum(rank == 0 for rank in accuracy.rank) == 42
    printed = json.loads(vitedge("eval", artifact.path, artifact.path, "--data", data, "--limit", 9, "--json", "-").out)
    assert len(printed["rows"]) == 2 and len(printed["data"]["names"]) == 9


def test_refusals(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    _, reason, hint = fails(2, "eval", artifact.path)
    assert "suit the embedded model only" in reason and "--data" in hint
    fails(2, "eval", artifact.path, "--data", "held-out")  # its folders aren't this model's classes
    (tmp_path / "r.json").write_text("")
    assert "already exists" in fails(2, "eval", artifact.path, "--data", data, "--out", tmp_path / "r.json")[1]
    assert vitedge("eval", artifact.path, "--data", data, "--out", tmp_path / "r.json", "--overwrite").code == 0


def test_pictures_of_a_hostile_folder(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "\x1b[31m<i>pictures"
    shutil.copytree(data, folder)
    done = vitedge("eval", artifact.path, "--data", folder)
    assert done.code == 0 and "\x1b" not in done.out and "<i>pictures" in done.out


def test_a_killed_run_leaves_a_partial_result_and_goes_on(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    """SIGKILL leaves nobody time to write: the result in --out was kept meanwhile."""
    out = tmp_path / "r.json"
    # After the second chunk the process kills itself; everything is kept at once instead of every few seconds.
    code = (
        f"import os, signal, sys; sys.path[:] = {sys.path!r}\n"
        "from vitedge.evaluation import evaluate as module\n"
        "module.KEEP_S, seen, answer = -1.0, [], module.score\n"
        "def kills(*given):\n"
        "    seen.append(1)\n"
        "    return answer(*given) if len(seen) < 2 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "module.score = kills\n"
        "from vitedge.cli import main\n"
        f"main(['eval', {str(artifact.path)!r}, '--data', {str(data)!r}, '--out', {str(out)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = read_result(out)
    assert left.partial and left.data is not None and len(left.data.names) == 32
    assert "partial" in vitedge("report", out, "--format", "md").out
    assert fails(2, "eval", artifact.path, "--data", data, "--out", out)[1].endswith("already exists")
    resumed = vitedge("eval", artifact.path, "--data", data, "--out", out, "--resume")
    assert resumed.code == 0, resumed.err
    whole = read_result(out)
    assert not whole.partial and whole.data is not None and whole.data.names[:32] == left.data.names
    assert vitedge("eval", artifact.path, "--data", data, "--out", out, "--resume").code == 0  # nothing left to do
    assert read_result(out) == whole


def test_resume_needs_a_file_and_begins_where_there_is_none(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    assert "--out" in fails(2, "eval", artifact.path, "--data", data, "--resume")[1]
    done = vitedge("eval", artifact.path, "--data", data, "--resume", "--out", tmp_path / "new.json")
    assert done.code == 0 and not read_result(tmp_path / "new.json").partial
    (tmp_path / "bad.json").write_text("{}")
    fails(3, "eval", artifact.path, "--data", data, "--resume", "--out", tmp_path / "bad.json")
    assert (tmp_path / "bad.json").read_text() == "{}"


def test_neither_verb_takes_the_other_ones_result_up(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    latency, accuracy = tmp_path / "latency.json", tmp_path / "accuracy.json"
    quick = ("--duration", 0.1, "--warmup", 0.02, "--percentile", 50)
    assert vitedge("bench", artifact.path, *quick, "--out", latency).code == 0
    assert vitedge("eval", artifact.path, "--data", data, "--out", accuracy).code == 0
    written = latency.read_bytes(), accuracy.read_bytes()
    _, reason, hint = fails(2, "eval", artifact.path, "--data", data, "--out", latency, "--resume")
    assert (reason, hint) == ("it isn't an evaluation", "name another file: --out FILE")
    _, reason, hint = fails(2, "bench", artifact.path, *quick, "--out", accuracy, "--resume")
    assert (reason, hint) == ("it isn't a measurement of latency", "name another file: --out FILE")
    assert (latency.read_bytes(), accuracy.read_bytes()) == written


def test_the_classes_that_lost_most_are_shown(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    constant = null_artifact(tmp_path / "c", precision="int8", cached=True)
    done = vitedge("eval", artifact.path, constant.path, "--data", data)
    assert done.code == 0, done.err
    assert "Classes with the largest drop" in done.out and "70.0" in done.out.split("Classes with the largest drop")[1]
