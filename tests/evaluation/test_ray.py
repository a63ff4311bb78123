"""A cluster of two nodes on this machine, and the real command line: a killed worker costs its shard, and no more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.benchmarking.nulls import NAMES, labelled, null_artifact
from tests.conftest import ROOT
from tests.evaluation.test_many import columns
from vitedge.data.images import ImageSet
from vitedge.evaluation.evaluate import evaluate
from vitedge.formats.result import read_result

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray isn't installed")

ENDS_S = 600  # a command, where other programs take most of the machine
#: Ray starts its workers with a niceness of 15, and kills one that hasn't started within a minute; beside programs that
#: take all cores none would start.
PATIENT = {
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": str(ENDS_S),
    "RAY_USAGE_STATS_ENABLED": "0",
}

#: In every process of the cluster: those that work for us write down each shard that they begin.
SITE = """
import sys
if any(part.endswith("default_worker.py") for part in open("/proc/self/cmdline").read().split("\\0")):
    import os
    from vitedge.evaluation import worker
    answer = worker.Worker.answer
    def told(self, shard):
        with open({log!r}, "a") as log:
            log.write(f"{{os.getpid()}} {{shard.name}}\\n")
        if shard.name == {crashes!r}:
            os._exit(11)  # as a decoder that crashes
        return answer(self, shard)
    worker.Worker.answer = told
"""

#: A cluster of two nodes with a core each, and the command. When the shards are listed, a picture becomes a pipe.
RUN = """
import os, sys
from ray.cluster_utils import Cluster
from vitedge.cli import main
from vitedge.evaluation import many

picture, arguments = sys.argv[1], sys.argv[2:]
listing = many.list_shards
def listed(*given):
    shards = listing(*given)
    if picture:
        os.rename(picture, os.path.splitext(picture)[0] + ".aside")
        os.mkfifo(picture)
    return shards
many.list_shards = listed
def started(trials=8):
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, include_dashboard=False)
        cluster.add_node(num_cpus=1)
        return cluster
    except Exception:  # Ray waits half a minute for a node, and this is all it raises
        cluster.shutdown()
        if trials == 1:
            raise
        return started(trials - 1)
cluster = started()
try:
    main([*arguments, "--ray-address", cluster.address])
finally:
    cluster.shutdown()
"""


@contextlib.contextmanager
def running(folder: Path, *arguments: object, crashes: str = "") -> Iterator[subprocess.Popen[str]]:
    """The script above in a session of its own; whatever it started ends with it."""
    (folder / "site").mkdir(exist_ok=True)
    site = SITE.format(log=str(folder / "log"), crashes=crashes)
    (folder / "site" / "sitecustomize.py").write_text(site)
    environment = {**os.environ, **PATIENT, "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def reader_of(pipe: Path) -> int:
    """The process that reads a pipe, which somebody has just opened."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if descriptor.readlink() == pipe and int(descriptor.parts[2]) != os.getpid():
                return int(descriptor.parts[2])
    raise AssertionError("nobody reads it")


def test_a_killed_worker_costs_its_shard_and_nothing_else(tmp_path: Path) -> None:
    artifacts = [null_artifact(tmp_path / "a"), null_artifact(tmp_path / "b", batch=4, precision="int8")]
    data = labelled(tmp_path / "data", wrong=3, each=10)
    expected = evaluate(artifacts, ImageSet.open(data))
    picture, out = data / "cat" / "005.png", tmp_path / "r.json"
    options = ("--engine", "ray", "--answers", tmp_path / "answers", "--shard-pictures", 10, "--out", out)
    paths = [artifact.path for artifact in artifacts]
    with running(tmp_path, picture, "eval", *paths, "--data", data, *options) as child:
        while not picture.is_fifo():
            assert child.poll() is None, child.communicate()
            time.sleep(0.05)
        stalled = picture.open("wb")  # until a worker reads it: it's within this shard now
        victim = reader_of(picture)
        picture.with_suffix(".aside").replace(picture)
        os.kill(victim, signal.SIGKILL)
        stalled.close()
        printed, narrated = child.communicate(timeout=ENDS_S)
        assert child.returncode == 0, narrated
    result = read_result(out)
    assert result.data == expected.data and columns(result) == columns(expected)
    assert printed.startswith("Accuracy on 60 images of data")
    begun = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    attempts = Counter(shard for _, shard in begun)
    assert attempts == Counter({f"{name}/000.png": 1 + (name == "cat") for name in NAMES})
    assert (str(victim), "cat/000.png") in [tuple(each) for each in begun]
    assert len({pid for pid, _ in begun}) == 3  # one on each node, and the one in the victim's place


@pytest.mark.slow
@pytest.mark.timeout(2 * ENDS_S)
def test_a_shard_that_kills_every_worker_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    artifact, data = null_artifact(tmp_path / "a"), labelled(tmp_path / "data", wrong=3, each=10)
    answers = tmp_path / "answers"
    command = ("eval", artifact.path, "--data", data, "--engine", "ray", "--answers", answers, "--shard-pictures", 10)
    with running(tmp_path, "", *command, crashes="dog/000.png") as child:
        _, narrated = child.communicate(timeout=ENDS_S)
    assert child.returncode == 5, narrated
    assert "the process that answered dog/000.png was killed, or crashed, 4 times" in narrated
    attempts = Counter(line.split()[1] for line in (tmp_path / "log").read_text().splitlines())
    kept = {path: path.read_bytes() for path in answers.iterdir()}
    assert attempts["dog/000.png"] == 4 and not any(path.name.startswith("dog") for path in kept)
    with running(tmp_path, "", *command, "--resume", "--out", tmp_path / "r.json") as child:
        _, narrated = child.communicate(timeout=ENDS_S)
    assert child.returncode == 0, narrated
    assert columns(read_result(tmp_path / "r.json")) == columns(evaluate([artifact], ImageSet.open(data)))
    assert all(path.read_bytes() == content for path, content in kept.items())


@pytest.mark.slow
@pytest.mark.timeout(2 * ENDS_S)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_delivers_what_was_answered(tmp_path: Path, number: signal.Signals) -> None:
    artifact, data = null_artifact(tmp_path / "a", latency_ms=5.0), labelled(tmp_path / "data", wrong=3, each=100)
    answers, out = tmp_path / "answers", tmp_path / "r.json"
    command = ("eval", artifact.path, "--data", data, "--engine", "ray", "--answers", answers, "--shard-pictures", 20)
    with running(tmp_path, "", *command, "--out", out) as child:
        while not answers.exists() or len(list(answers.glob("*.parquet"))) < 2:
            assert child.poll() is None, child.communicate()
            time.sleep(0.05)
        child.send_signal(number)
        _, narrated = child.communicate(timeout=ENDS_S)
    assert child.returncode == 128 + number, narrated
    assert "run the same command with --resume" in narrated
    left = read_result(out)
    assert left.partial and left.data is not None
    assert len(left.data.names) == 20 * len(list(answers.glob("*.parquet"))) < 600
    with running(tmp_path, "", *command, "--out", out, "--resume") as child:
        _, narrated = child.communicate(timeout=ENDS_S)
    assert child.returncode == 0, narrated
    assert columns(read_result(out)) == columns(evaluate([artifact], ImageSet.open(data)))
