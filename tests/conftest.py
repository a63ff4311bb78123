"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Suites of minutes. They begin first, so that no worker is left with one of them at the end; a file has one worker.
LONGEST = ("test_wheel.py", "test_aarch64.py", "test_demo.py", "test_soak.py", "test_hard_cases.py")


def share_cores() -> None:
    """Each of several workers keeps to cores of its own.

    Threads of one worker that wait for each other while the other's run on their core make numeric suites take more
    than twice as long.
    """
    worker, count = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker and (mine := sorted(os.sched_getaffinity(0))[int(worker.removeprefix("gw")) :: count]):
        os.sched_setaffinity(0, mine)


share_cores()  # before NumPy and the runtimes count the cores


def pytest_configure(config: pytest.Config) -> None:
    """Where coverage is measured, processes that tests start do without, unless $VITEDGE_COVERAGE is ``children``.

    It costs each of them a fifth of a second, and some suites half as much processor time again.
    """
    starts_workers = bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")
    if not starts_workers and os.environ.get("VITEDGE_COVERAGE") != "children":
        os.environ.pop("COVERAGE_PROCESS_START", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest suites first."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def data_folder(name: str) -> Path:
    """A folder of the real data beside the checkout, or in $VITEDGE_DATA; skips where it's absent."""
    base = Path(os.environ.get("VITEDGE_DATA") or ROOT.parent / "shared" / "data")
    if not (base / name).exists():
        pytest.skip(f"the data folder {name}/ isn't beside this checkout (set VITEDGE_DATA)")
    return base / name


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """The 125 photographs, many sizes and aspect ratios, some grey."""
    return sorted(data_folder("photos").glob("*.JPEG"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own cache and settings, or depends on the width of a terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)
    home = tmp_path_factory.getbasetemp() / "home"
    monkeypatch.setenv("VITEDGE_CACHE", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a random two-block ViT for 32×32 pictures and five classes, licence and all."""
    from tests.graph.vits import random_arrays
    from vitedge.data.preprocessing import Preprocessing
    from vitedge.formats.architecture import PatchStem, ViTConfig
    from vitedge.formats.model_folder import ModelRecord, Origin, class_table, write_model
    from vitedge.graph.author import author_vit
    from vitedge.graph.surgery import to_bytes

    config = ViTConfig(
        image_size=(32, 32),
        stem=PatchStem(patch_size=8),
        embed_dim=64,
        depth=2,
        num_heads=2,
        mlp_hidden=128,
        num_classes=5,
    )
    arrays = random_arrays(config, seed=7)
    preprocessing = Preprocessing(size=(32, 32), resize="squash", interpolation="bilinear")
    graph = author_vit(config, arrays, mean=preprocessing.mean, std=preprocessing.std)
    record = ModelRecord(
        name="small",
        classes=class_table(["ant", "bee", "cat", "dog", "eel"]),
        preprocessing=preprocessing,
        origin=Origin(kind="onnx", source="a random ViT"),
        licence="CC0-1.0",
        architecture=config,
    )
    return write_model(tmp_path_factory.mktemp("models") / "small", record, {"model.onnx": to_bytes(graph)}).path


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: eight generated PNG pictures in each of the small model's five class folders."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("data") / "pictures"
    draw = np.random.default_rng(8)
    for name in ("ant", "bee", "cat", "dog", "eel"):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
            coarse.resize((48, 40), Image.Resampling.BICUBIC).save(folder / name / f"{number}.png")
    return folder
