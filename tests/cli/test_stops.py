"""SIGINT and SIGTERM at random moments of every verb, in real processes on ONNX Runtime and OpenVINO.

Whenever it comes, the run ends with 130 or 143, blames nothing, leaves nothing half-written, and the same command,
with what its message says, then does the whole.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import vitedge as package
from vitedge.formats.artifact import Artifact
from vitedge.formats.model_folder import Model
from vitedge.formats.result import read_result

pytest.importorskip("openvino")
pytest.importorskip("torch")

SAID = "said"  # the hint of the last stop
ADDED = "added.txt"  # the options that the command was run again with
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
LIMIT_S = 120
#: What a stop has nothing to do with.
BLAME = (
    "Traceback", "Exception ignored", "bug in vitedge", "terminate called", "refuses", "can't load", "can't be read",
    "copy the artifact", "export it again", "import it again", "left out", "isn't installed", "replace the file",
)  # fmt: skip


class Inputs(NamedTuple):
    """What the verbs work on."""

    model: Path
    data: Path  # calibration and training
    labelled: Path  # evaluation: enough for processes that decode
    onnxruntime: Path
    openvino: Path
    candidates: Path
    result: Path


class Verb(NamedTuple):
    """A command whose run is stopped."""

    arguments: Callable[[Inputs, Path], list[object]]  # the second is its output
    out: str  # name of the output
    whole: Callable[[Path, str], None]  # asserts that the output is: its path, and what was printed
    partial: Callable[[Path], None] | None = None  # asserts that what a stop left is sound; None: nothing is left
    leaves: tuple[str, ...] = ()  # what may lie beside the output after a stop


def artifact_is_whole(out: Path, _: str) -> None:
    manifest = Artifact.open(out).manifest
    assert manifest.calibration is None or not manifest.calibration.skipped
    assert "stop" not in json.dumps(json.loads((out / "manifest.json").read_text())["candidates"])


def model_is_whole(out: Path, _: str) -> None:
    assert len(Model.open(out).record.classes) == 5


def page_is_whole(out: Path, _: str) -> None:
    assert out.read_text().rstrip().endswith("</html>")


def said_is(text: str) -> Callable[[Path, str], None]:
    def check(_: Path, printed: str) -> None:
        assert text in printed, printed

    return check


def result_is(partial: bool) -> Callable[..., None]:
    def check(out: Path, _: str = "") -> None:
        result = read_result(out)
        assert result.partial is partial
        assert not (result.data and result.data.skipped)
        if not partial:
            assert all(row.latency or row.accuracy for row in result.rows)

    return check


def lines_are_whole(out: Path, printed: str) -> None:
    if out.exists():
        assert all(json.loads(line)["source"] for line in out.read_text().splitlines())


def train(inputs: Inputs, out: Path) -> list[object]:
    model = ["--model", "vit_mini_patch4_32", "--epochs", 2, "--batch-size", 8, "--workers", 1, "--threads", 1]
    return ["train", inputs.data, "--out", out, *model]


def import_(inputs: Inputs, out: Path) -> list[object]:
    contract = ["--size", 32, "--resize", "squash", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
    labels = inputs.model.parent / "names.txt"
    return ["import", inputs.model / "model.onnx", "--labels", labels, *contract, "--licence", "CC0-1.0", "--out", out]


def export(target: str) -> Callable[[Inputs, Path], list[object]]:
    return lambda inputs, out: [
        "export", inputs.model, "--target", target, "--precision", "auto", "--max-drop", 100, "--data", inputs.data,
        "--held-out", inputs.labelled, "--num-samples", 16, "--out", out,
    ]  # fmt: skip


VERBS = {
    "export": Verb(export("onnxruntime"), "artifact", artifact_is_whole),
    "export-openvino": Verb(export("openvino"), "artifact", artifact_is_whole),
    "train": Verb(train, "model", model_is_whole, leaves=("model.run",)),
    "import": Verb(import_, "model", model_is_whole),
    "shrink": Verb(
        lambda inputs, out: [
            "shrink", inputs.model, "--target", "onnxruntime", "--macs", 0.7, "--data", inputs.data,
            "--num-samples", 24, "--out", out,
        ],
        "model",
        model_is_whole,
    ),
    "bench": Verb(
        lambda inputs, out: [
            "bench", inputs.onnxruntime, inputs.openvino, "--duration", 0.5, "--iterations", 100, "--warmup", 0.1,
            "--profile", "--out", out,
        ],
        "result.json",
        result_is(partial=False),
        result_is(partial=True),
    ),
    "eval": Verb(
        lambda inputs, out: ["eval", inputs.onnxruntime, inputs.openvino, "--data", inputs.labelled, "--out", out],
        "result.json",
        result_is(partial=False),
        result_is(partial=True),
    ),
    "build": Verb(
        lambda inputs, out: ["build", inputs.candidates, "--duration", 0.1, "--overwrite"],
        "none",
        said_is("int8"),
    ),
    "stream": Verb(
        lambda inputs, out: ["stream", inputs.openvino, "test://", "--duration", 1, "--headless", "--json", out],
        "records.jsonl",
        lines_are_whole,
        lambda out: lines_are_whole(out, ""),
    ),
    "report": Verb(
        lambda inputs, out: ["report", inputs.result, "--out", out],
        "report.html",
        page_is_whole,
    ),
    "classify": Verb(
        lambda inputs, out: ["classify", inputs.openvino, inputs.data / "ant" / "0.png"],
        "none",
        said_is("%"),
    ),
    "verify": Verb(lambda inputs, out: ["verify", inputs.onnxruntime], "none", said_is("int8")),
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(small_model: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("stops")
    model = folder / "model"
    shutil.copytree(small_model, model)
    (folder / "names.txt").write_text("ant\nbee\ncat\ndog\neel\n")
    draw = np.random.default_rng(3)
    labelled = folder / "labelled"
    for name in ("ant", "bee", "cat", "dog", "eel"):
        (labelled / name).mkdir(parents=True)
        for number in range(110):
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(labelled / name / f"{number}.png")
    how = {"data": small_data, "num_samples": 16}
    artifacts = [
        package.export(model, target, "int8", folder / target, **how).path for target in ("onnxruntime", "openvino")
    ]
    candidates = package.export(model, "onnxruntime", "int8", folder / "candidates", with_candidates=True, **how).path
    result = folder / "result.json"
    done = run([*map(str, ["bench", *artifacts, "--duration", 0.1, "--iterations", 10, "--out", result])], folder)
    assert done.returncode == 0, done.stderr
    return Inputs(model, small_data, labelled, *artifacts, candidates, result)


def start(arguments: list[object], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vitedge", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "VITEDGE_CACHE": str(folder / "cache")},
    )


def run(arguments: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    child = start(arguments, folder)
    out, err = child.communicate(timeout=LIMIT_S)
    return subprocess.CompletedProcess(arguments, child.returncode, out, err)


def wait_for_handlers(child: subprocess.Popen[str]) -> None:
    """Python itself takes a while to start."""
    while child.poll() is None:
        mask = int(Path(f"/proc/{child.pid}/status").read_text().split("SigCgt:")[1].split()[0], 16)
        if mask >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


def at_random(verb: Verb, inputs: Inputs, folder: Path, after_s: float, number: signal.Signals) -> bool:
    """Run the verb and send it the signal: whether it stopped, and left what it said."""
    out = folder / verb.out
    child = start([*verb.arguments(inputs, out), *advice(folder, verb)], folder)
    wait_for_handlers(child)
    time.sleep(after_s)
    child.send_signal(number)
    printed, err = child.communicate(timeout=LIMIT_S)
    assert not [word for word in BLAME if word in err], err
    if child.returncode == 0:
        ended_well(verb, folder, printed)
        return False
    assert child.returncode == CODES[number], (child.returncode, err)
    lines = err[err.index("error: ") :].splitlines()
    assert len(lines) == 3 and number.name in lines[1], err
    assert names(folder) <= {verb.out, *verb.leaves}
    if verb.partial is not None and out.exists():
        verb.partial(out)
    (folder / SAID).write_text(lines[2])
    return True


def advice(folder: Path, verb: Verb) -> list[object]:
    """What the last message said to add; "run the command again" means the command as it was."""
    said, added = folder / SAID, folder / ADDED
    hint = said.read_text() if said.exists() else ""
    options = added.read_text().split() if added.exists() else []
    if "--resume" in hint:
        options = ["--resume"]
    elif "--overwrite" in hint and (folder / verb.out).exists():
        options = ["--overwrite"]
    added.write_text(" ".join(options))
    return list(options)


def ended_well(verb: Verb, folder: Path, printed: str) -> None:
    assert names(folder) <= {verb.out, *verb.leaves}
    verb.whole(folder / verb.out, printed)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"cache", SAID, ADDED}


def stopped_twice(name: str, inputs: Inputs, folder: Path, draw: random.Random, length_s: float) -> int:
    """Stop it, stop what goes on from there, and let that end: how often the signal came in time."""
    verb, stopped = VERBS[name], 0
    folder.mkdir()
    for number in draw.sample(list(CODES), 2):
        if not at_random(verb, inputs, folder, draw.uniform(0, length_s), number):
            return stopped
        stopped += 1
    done = run([*verb.arguments(inputs, folder / verb.out), *advice(folder, verb)], folder)
    assert done.returncode == 0, done.stderr
    ended_well(verb, folder, done.stdout)
    return stopped


def length_of(name: str, inputs: Inputs, folder: Path) -> float:
    """Seconds of a whole run from when it takes signals."""
    verb = VERBS[name]
    folder.mkdir()
    child = start(verb.arguments(inputs, folder / verb.out), folder)
    wait_for_handlers(child)
    began = time.monotonic()
    printed, err = child.communicate(timeout=LIMIT_S)
    assert child.returncode == 0, err
    ended_well(verb, folder, printed)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", VERBS)
def test_twenty_stops(name: str, inputs: Inputs, tmp_path: Path) -> None:
    length_s = length_of(name, inputs, tmp_path / "whole")
    draw = random.Random(name)
    assert sum(stopped_twice(name, inputs, tmp_path / str(turn), draw, length_s) for turn in range(10)) >= 5


@pytest.mark.parametrize("name", ["export", "shrink", "train", "import", "bench", "eval", "build", "stream", "report"])
def test_two_stops(name: str, inputs: Inputs, tmp_path: Path) -> None:
    stopped_twice(name, inputs, tmp_path / "run", random.Random(name), length_s=1.0)
