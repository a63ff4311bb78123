"""Published models and preprocessing against what timm and transformers make of them (``references/make.py``)."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.graph.test_author import relative, run
from tests.importing.references import (
    FAMILIES,
    FRAMES,
    GOLDEN_SAMPLES,
    LOGITS,
    PHOTOS,
    SAMPLES,
    positions,
    write_files,
    write_folder,
)
from vitedge.data.golden import golden_pictures
from vitedge.data.preprocessing import Preprocessing
from vitedge.graph import hf_processor, mappings, timm_layout
from vitedge.graph.author import author_vit
from vitedge.importing.entry import import_model

STORED: dict[str, Any] = json.loads(FAMILIES.read_text()) if FAMILIES.exists() else {"families": {}, "frames": {}}


def contract_of(kind: str, published: dict[str, Any]) -> Preprocessing:
    """The contract that import reads from what is published."""
    if kind == "timm":
        source = msgspec.convert(
            {
                "architecture": "x",
                "pretrained": {**published, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
            },
            timm_layout.Published,
        )
        fields, _ = timm_layout._preprocessing(source, tuple(published["input_size"][1:]), {}, "test")
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), {hf_processor.PREPROCESSOR: {**published, "do_normalize": False}})
            fields, _ = hf_processor.read_preprocessing(Path(folder), "vit", (224, 224), {}, "test")
    return msgspec.convert(fields, Preprocessing)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def generated() -> dict[str, Image.Image]:
    return {name: Image.open(io.BytesIO(data)).convert("RGB") for name, data in golden_pictures().items()}


def differences(
    name: str, group: str, pictures: dict[str, Image.Image], count: int, step: int = 1
) -> list[NDArray[np.int64]]:
    stored = STORED["frames"][name]
    contract = contract_of(stored["kind"], stored["published"])
    kept = np.load(FRAMES)[f"{name}/{group}"][::step]
    assert len(kept) == len(pictures)
    found = []
    for expected, (title, picture) in zip(kept, pictures.items(), strict=True):
        frame = contract.apply(picture)
        rows, columns = positions(title, frame.shape, count)
        found.append(np.abs(frame[rows, columns].astype(np.int64) - expected))
    return found


@pytest.mark.parametrize("name", STORED["frames"])
def test_generated_pictures_are_prepared_as_the_libraries_do(name: str) -> None:
    found = differences(name, "golden", generated(), GOLDEN_SAMPLES)
    assert max(map(np.max, found)) <= 2 and max(map(np.mean, found)) <= 0.5


@pytest.mark.parametrize("name", STORED["frames"])
@pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def test_photographs_are_prepared_as_the_libraries_do(name: str, step: int, photos: list[Path]) -> None:
    pictures = {path.name: opened(path) for path in photos[::step]}
    found = differences(name, "photos", pictures, SAMPLES, step)
    assert max(map(np.max, found)) <= 2 and max(map(np.mean, found)) <= 0.5


def compare(family: dict[str, Any], folder: Path, pictures: list[Image.Image], expected: NDArray[np.float32]) -> None:
    """From the picture to the logits: at most 1e-4 of the largest logit."""
    given = {"size": tuple(family["size"])} if "size" in family else {}
    checkpoint = mappings.read_published(write_folder(folder, family), given)
    contract = checkpoint.preprocessing
    graph = author_vit(checkpoint.config, checkpoint.arrays, mean=contract.mean, std=contract.std)
    logits = run(graph, np.stack([contract.apply(picture) for picture in pictures]))
    assert relative(logits, expected) <= 1e-4


@pytest.mark.parametrize("title", STORED["families"])
def test_logits_of_random_models(title: str, tmp_path: Path) -> None:
    pictures = list(generated().values())
    expected = np.load(LOGITS)[title][: len(pictures)]
    compare(STORED["families"][title], tmp_path / "source", pictures, expected)


@pytest.mark.parametrize("title", STORED["families"])
def test_logits_of_random_models_on_photographs(title: str, tmp_path: Path, photos: list[Path]) -> None:
    pictures = [opened(path) for path in photos[:PHOTOS]]
    compare(STORED["families"][title], tmp_path / "source", pictures, np.load(LOGITS)[title][-PHOTOS:])


@pytest.mark.parametrize(
    "title", ["vit_small_plus_patch16_dinov3", "Dinov2WithRegistersForImageClassification", "vit_tiny_patch16_384"]
)
def test_the_whole_import(title: str, tmp_path: Path, photos: list[Path]) -> None:
    family = STORED["families"][title]
    (tmp_path / "photos").mkdir()
    for path in photos[:2]:
        shutil.copy(path, tmp_path / "photos")
    source = write_folder(tmp_path / title, family)
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: dinov3-license\n---\n")
    record = import_model(source, tmp_path / "model", images=tmp_path / "photos").record
    parity = record.origin.parity
    assert parity is not None and parity.images == 2 and parity.relative <= 1e-5
    assert record.origin.kind == family["kind"] and record.licence == (
        family["files"]["config.json"].get("pretrained_cfg", {}).get("license", "dinov3-license")
    )


def test_references_are_small_and_whole() -> None:
    assert {path.name: path.stat().st_size < 400_000 for path in (FAMILIES, LOGITS, FRAMES)} == {
        "families.json": True, "logits.npz": True, "frames.npz": True
    }  # fmt: skip
    assert len(STORED["families"]) >= 30 and len(STORED["frames"]) >= 18
