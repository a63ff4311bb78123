"""The How-to pages: every block is typed in order, in one folder, or the page says why not.

What a page names and nobody has here (a board, a bucket, a camera's address) is something else here; where a page's
work takes minutes, the test asks for less of it. Both stand beside the page below.
"""

from __future__ import annotations

import ast
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
import typer.main

import vitedge
from tests.data.test_shards import write_tar
from tests.site import pages, readers
from tests.site.pages import follow
from tests.streaming import films, publisher
from vitedge.cli.application import application
from vitedge.fleet.inventory import read_inventory
from vitedge.formats.recipe import load_recipe
from vitedge.streaming.settings import read_settings

#: Pages that other tests run: test_start.py, test_tutorial.py, tests/fleet/test_page.py. Programs are run by
#: tests/runtimes/test_without_vitedge.py.
ELSEWHERE = ("start/camera.md", "start/checkpoint.md", "start/python.md", "tutorials/build-a-vit.md", "fleet.md")
#: A second is enough for a ratio, and no ratio of two healthy artifacts is beyond that limit.
SHORT = "--max-slowdown 900 --duration 1 --rounds 100"


class Page(NamedTuple):
    """What a reader of a page has, and what is typed in place of texts of it."""

    prepare: Callable[[Path, Path, Path], object]  # (the page's folder, a small model, pictures of its classes)
    instead: Mapping[str, str] = MappingProxyType({})
    needs: tuple[str, ...] = ("onnx", "onnxruntime")
    shows: tuple[str, ...] = ()  # some of what is printed
    slow: bool = True


def photographs_and_a_teacher(folder: Path, model: Path, data: Path) -> None:
    readers.pictures(folder / "photos", 8)
    vitedge.import_model("embedded", out=folder / "big")


def sources(folder: Path, model: Path, data: Path) -> None:
    """Two checkpoints, one of which has the arguments of its training; a module and its weights; an ONNX file."""
    from safetensors.numpy import save_file

    from tests.importing.test_exports import network

    arguments = Namespace(model="vit_tiny_patch16_224", num_classes=3, img_size=64)
    readers.checkpoint(folder / "model_best.pth.tar", 3, 64, arch="vit_tiny_patch16_224", args=arguments)
    readers.checkpoint(folder / "model.pth", 5, 160)
    (folder / "names.txt").write_text("\n".join(readers.CLASSES))
    (folder / "my_models.py").write_text(
        "from torch import nn\n\n\ndef small_swin():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    shapes = {"0.weight": (4, 3, 16, 16), "0.bias": (4,), "3.weight": (3, 4), "3.bias": (3,)}
    draw = np.random.default_rng(0)
    arrays = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(arrays, folder / "swin.safetensors")
    network(folder / "classifier.onnx", "input", "logits", ["N", 3, "H", "W"], 17, "")


def two_artifacts(folder: Path, model: Path, data: Path) -> None:
    vitedge.export(model, "onnxruntime", "fp32", folder / "released")
    shutil.copytree(folder / "released", folder / "candidate")
    shutil.copytree(data, folder / "labelled")


def shards(folder: Path, model: Path, data: Path) -> None:
    vitedge.export(model, "onnxruntime", "fp32", folder / "float")
    shutil.copytree(folder / "float", folder / "int8")
    shutil.copytree(data, folder / "photos")
    pictures = sorted(data.rglob("*.png"))
    for number in range(2):
        content: dict[str, bytes] = {}
        for place, picture in enumerate(pictures[number::2]):
            content |= {f"{place:04}.png": picture.read_bytes(), f"{place:04}.cls": picture.parent.name.encode()}
        write_tar(folder / f"val-{number:03}.tar", content)


PAGES = {
    "training.md": Page(
        photographs_and_a_teacher,
        {"--epochs 30": "--epochs 1", "big/ --out": "big/ --epochs 1 --out"},
        needs=("torch", "onnxruntime", "matplotlib"),
    ),
    "importing.md": Page(sources, needs=("torch", "onnxscript", "onnxruntime")),
    "targets.md": Page(readers.model_and_pictures, {"raspberry-pi-5": "onnxruntime"}),
    "quantization.md": Page(readers.model_and_pictures, {"--max-slowdown 0": SHORT, "--max-drop 0.5": "--max-drop 25"}),
    "comparing.md": Page(
        two_artifacts,
        {
            "--max-slowdown 5": SHORT,
            "max_slowdown_pct=5": "max_slowdown_pct=900",
            "import Tolerance": "import Tolerance\nfrom vitedge.comparison.options import PairedConfig",
            'data="labelled/"': 'data="labelled/", config=PairedConfig(rounds=100, duration_s=1)',
        },
        shows=("()",),
    ),
    "raspberry-pi.md": Page(readers.model_and_pictures, slow=False),
    "jetson.md": Page(readers.model_and_pictures, slow=False),
    "shrink.md": Page(readers.model_and_pictures, {"--speedup 1.5": "--macs 0.6"}),
    "many-pictures.md": Page(
        shards,
        {
            "vitedge eval": "export RAY_worker_niceness=0 RAY_worker_register_timeout_seconds=600; vitedge eval",
            "s3://bucket/val-{000..127}.tar": "val-{000..001}.tar",
            "gs://bucket/photos": "photos/",
        },
        needs=("onnxruntime", "ray"),
    ),
}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * page.slow) for name, page in PAGES.items()]
)
def test_a_page(name: str, small_model: Path, small_data: Path, tmp_path: Path) -> None:
    page = PAGES[name]
    for package in page.needs:
        pytest.importorskip(package, reason=f"{package} isn't installed")
    page.prepare(tmp_path, small_model, small_data)
    printed = follow(name, tmp_path, instead=page.instead)
    assert [text for text in page.shows if text not in printed] == []


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra onnxruntime isn't installed")
def test_in_a_service(tmp_path: Path) -> None:
    readers.developer(tmp_path)
    labels, generated, pooled = follow("service.md", tmp_path).splitlines()
    assert len(ast.literal_eval(labels)) == 8 and len(set(ast.literal_eval(labels))) == 1
    assert (generated, pooled) == ("20 answers", "20 answers of 2 sessions")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@films.needs_ffmpeg
def test_streams_and_cameras(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The camera at the gate is one of tests/streaming, with a password; the yard's is the test source.

    A source that gives no frame in all of the duration, which has to be enough for a busy machine, is exit code 4.
    """
    for package in ("onnxruntime", "av"):
        pytest.importorskip(package, reason=f"{package} isn't installed")
    if not publisher.encodes():
        pytest.skip(f"this PyAV has no {publisher.ENCODER}")
    vitedge.export(small_model, "onnxruntime", "fp32", tmp_path / "artifact")
    films.film(tmp_path / "clip.mp4")
    monkeypatch.setenv("CAMERA", "camera:secret")
    with publisher.Publisher("rtsp", password="secret") as gate:
        instead = {
            "--duration 10": "--duration 30",
            "artifact/ test://": "artifact/ --headless test://",
            "10.0.0.5": f"127.0.0.1:{gate.port}",
            "yard=0 ": "yard=test:// --duration 30 --headless ",
            "result.age_ms)": "result.age_ms)\n    break",
            "bench artifact/": "bench artifact/ --duration 0.5",
        }
        printed = follow("stream.md", tmp_path, instead=instead)
    assert printed.count('"sequence"') == 25, "a record for every frame of the film"


# --- what isn't run --------------------------------------------------------------------------------------------------


def test_every_block_is_run_or_says_why_not() -> None:
    run = {"service.md", "stream.md", *ELSEWHERE, *PAGES}
    silent = [
        f"{page}: {block.code.splitlines()[0]}"
        for page, block in pages.typed()
        if block.kind not in pages.SHOWN and not (block.why or block.program or (page in run and block.commands))
    ]
    assert silent == [], "run the page above, or write <!-- not run: reason --> before the block"


def test_commands_that_are_not_run_are_parsed() -> None:
    """Every ``vitedge`` command of a block that isn't run: the verb and its options are there."""
    unrun = [command for _, block in pages.typed() if block.why for command in pages.vitedge_commands(block)]
    assert {words[0] for words in unrun} >= {"build", "verify", "bench", "fleet", "shrink", "stream", "train"}
    top = typer.main.get_command(application())
    for words in unrun:
        command = top
        while hasattr(command, "commands"):
            assert words[0] in command.commands, words
            command, words = command.commands[words[0]], words[1:]
        command.make_context("vitedge", list(words))


@pytest.mark.parametrize(
    ("page", "read"),
    [
        ("recipes.md", load_recipe),
        ("stream.md", lambda path: read_settings(path, {})),
        ("raspberry-pi.md", lambda path: read_settings(path, {})),
        ("fleet.md", read_inventory),
    ],
)
def test_a_file_that_a_page_shows_is_read(page: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    """Every key is known, and every value within its bounds."""
    (shown,) = [block.code for block in pages.blocks(page) if block.kind == "toml"]
    file = tmp_path / "shown.toml"
    file.write_text(shown)
    assert read(file)
