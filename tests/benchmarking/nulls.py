"""Artifacts of the null runtime, whose every answer is known beforehand."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from PIL import Image

from vitedge.data.golden import golden_pictures
from vitedge.data.images import open_picture
from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.artifact import (
    GOLDEN_INPUTS,
    GOLDEN_LOGITS,
    GOLDEN_REFERENCE,
    Artifact,
    Calibration,
    Golden,
    Manifest,
    npy,
    write_artifact,
)
from vitedge.formats.budget import Budget
from vitedge.formats.model_folder import Origin, class_table
from vitedge.formats.target import BenchRules, Candidate, Option, Target

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
PREPROCESSING = Preprocessing(size=(8, 8), resize="squash", interpolation="nearest")
TARGET = Target(
    name="null",
    summary="nothing",
    runtime="null",
    runtime_min="0.1",
    arch="any",
    device="cpu",
    batch=1,
    candidate=(Candidate(precision="fp32", variant="null"),),
    bench=BenchRules(warmup_s=0.02, min_duration_s=0.1),
    budget=Budget(max_top1_drop_pp=1.0),
)


def answer(red: int) -> int:
    """What the null runtime answers to a picture whose first pixel has this red value."""
    return red % len(NAMES)


def null_artifact(
    out: Path,
    *,
    batch: int = 1,
    precision: str = "fp32",
    target: Target = TARGET,
    calibration: Calibration | None = None,
    shift: int = 0,
    **faults: Option,
) -> Artifact:
    """An artifact; with ``shift`` its recorded reference is another model's, and ``faults`` are the null runtime's."""
    pictures = golden_pictures()
    inputs = np.stack([PREPROCESSING.apply(open_picture(data, name)) for name, data in pictures.items()])
    logits = np.eye(len(NAMES), dtype=np.float32)[inputs[:, 0, 0, 0] % len(NAMES)]
    manifest = Manifest(
        name=f"model-null-{precision}",
        target=target,
        precision=precision,
        variant="null",
        batch=batch,
        graph="null.graph",
        classes=class_table(NAMES),
        preprocessing=PREPROCESSING,
        layers=(),
        precision_obtained={},
        runtime_options=dict(faults),
        built_with={"vitedge": "0.1"},
        model_digest="0" * 64,
        origin=Origin(kind="train", source="nothing"),
        golden=Golden(pictures=tuple(pictures), executed_by="null", deviation=0.0),
        candidates=(),
        calibration=calibration,
    )
    files = {
        **pictures,
        "null.graph": b"",
        GOLDEN_INPUTS: npy(inputs),
        GOLDEN_LOGITS: npy(logits),
        GOLDEN_REFERENCE: npy(np.roll(logits, shift, axis=1)),
    }
    return write_artifact(out, manifest, files, overwrite=False, action="write an artifact")


def rewritten(artifact: Artifact, out: Path, **changes: object) -> Artifact:
    """The artifact with another manifest, digests right."""
    files = {name: (artifact.path / name).read_bytes() for name in artifact.manifest.files}
    return write_artifact(out, replace(artifact.manifest, **changes), files, overwrite=False, action="rewrite")


def coloured(red: int, size: int = 8) -> bytes:
    """A PNG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (red, 10, 20)).save(stream, "PNG")
    return stream.getvalue()


def labelled(folder: Path, wrong: int = 3, each: int = 10) -> Path:
    """A data folder on which the null runtime is wrong ``wrong`` times in every class, the file names' first."""
    for label, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            red = label + (1 if number < wrong else 0) + len(NAMES) * number
            (folder / name / f"{number:03}.png").write_bytes(coloured(red, size=8 + label))
    return folder


def told_when_measuring(folder: Path, keep_every_s: float = 10.0) -> dict[str, str]:
    """An environment in which the child writes the file ``measuring`` when its first block begins."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "from vitedge.benchmarking import interleaving, load\n"
        f"interleaving.KEEP_EVERY_S = {keep_every_s}\n"
        "block = load.Workload.run_block\n"
        f"def told(*args): open({str(folder / 'measuring')!r}, 'w').close(); return block(*args)\n"
        "load.Workload.run_block = told\n"
    )
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{root}"}


def wait_for(path: Path, child: subprocess.Popen[str]) -> None:
    """Wait until the child has written this file."""
    deadline = time.monotonic() + 60
    while not path.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists(), child.communicate()


def stopped_while_measuring(
    folder: Path, number: signal.Signals, after_s: float, *arguments: object
) -> tuple[int, str, str]:
    """Run vitedge, and send the signal so many seconds after its first block began: exit code, output and error."""
    child = subprocess.Popen(
        [sys.executable, "-m", "vitedge", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=told_when_measuring(folder),
    )
    wait_for(folder / "measuring", child)
    time.sleep(after_s)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    return child.returncode, out, err
