"""The pages under docs/start, run as they stand: every block in order, in one folder, as a reader would type it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.graph.vits import random_arrays
from vitedge.data import embedded
from vitedge.formats.architecture import PatchStem, ViTConfig

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(
    r"^(<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
CLASSES = ("airplane", "frog", "truck")

pytestmark = pytest.mark.skipif(find_spec("onnx") is None, reason="the extra host isn't installed")


def script(page: str, after: dict[str, str] | None = None) -> str:
    """The blocks of a page as one shell script.

    Args:
        page: its name.
        after: by a line of the page, what a reader does by hand once it's done.
    """
    lines = ["set -euo pipefail"]
    for block in _BLOCK.finditer((ROOT / "docs/start" / page).read_text()):
        if block["why"]:
            continue
        if block["kind"] == "python":
            lines += [f"{sys.executable} - <<'PYTHON'", block["code"], "PYTHON"]
        elif not block["kind"]:
            for line in block["code"].splitlines():
                lines += [line, *filter(None, [(after or {}).get(line)])]
    for line in after or {}:
        assert line in lines, f"{page} no longer says: {line}"
    return "\n".join(lines)


def follow(page: str, folder: Path, after: dict[str, str] | None = None) -> str:
    """Run a page in a folder; what it printed."""
    commands = folder / ".commands"
    commands.mkdir()
    (commands / "vitedge").write_text(f'#!/bin/sh\nexec {sys.executable} -m vitedge "$@"\n')
    (commands / "vitedge").chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script(page, after)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def pictures(folder: Path, each: int, source: embedded.Pictures = "calibration") -> None:
    """Pictures of three classes, one folder a class."""
    images = embedded.pictures(source)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    counts = dict.fromkeys(CLASSES, 0)
    for index, record in enumerate(images.records):
        if record.folder in counts and counts[record.folder] < each:
            counts[record.folder] += 1
            place = folder / record.folder / f"{counts[record.folder]}{Path(record.name).suffix}"
            place.write_bytes(images.read_bytes(index))


def test_a_checkpoint_that_you_trained(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra train isn't installed")
    config = ViTConfig(
        image_size=(64, 64),
        stem=PatchStem(patch_size=16),
        embed_dim=192,
        depth=12,
        num_heads=3,
        mlp_hidden=768,
        num_classes=len(CLASSES),
    )
    weights = {name: torch.from_numpy(value) for name, value in random_arrays(config).items()}
    torch.save({"state_dict": weights, "epoch": 9}, tmp_path / "model_best.pth.tar")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    pictures(tmp_path / "pictures", 20)
    pictures(tmp_path / "labelled", 20, "held-out")
    follow("checkpoint.md", tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_in_a_python_program(tmp_path: Path) -> None:
    import vitedge

    model = vitedge.import_model("embedded", out=tmp_path / "model0")
    vitedge.export(model, target="onnxruntime", precision="int8", out=tmp_path / "int8")
    (tmp_path / "picture.png").write_bytes(embedded.pictures("display").read_bytes(0))
    said = follow("python.md", tmp_path)
    assert "(1, 10)" in said and said.rstrip().endswith("ms")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_camera_and_your_own_pictures(tmp_path: Path) -> None:
    for package in ("torch", "av"):
        pytest.importorskip(package, reason="the extras train and stream aren't installed")
    pictures(tmp_path / "photos", 40)
    said = follow("camera.md", tmp_path, {"vitedge new workbench": "cp -r photos/* workbench/data/"})
    assert "truck" in said
