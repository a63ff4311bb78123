"""Convolutions are groups like others: a budget and a mixture leave those in float16 that cost too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import vitedge
from benchmarks.outliers import CASES
from vitedge.data import embedded
from vitedge.formats.artifact import Manifest
from vitedge.formats.model_folder import Model, write_model
from vitedge.graph.surgery import load, to_bytes
from vitedge.runtimes.base import BUDGET, PRICE

PICTURES = 64
STEM = "patch_embed.stem."


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of the embedded held-out pictures, in folders of their classes."""
    folder, images = tmp_path_factory.mktemp("held-out"), embedded.pictures("held-out")
    for index in images.order(0)[:PICTURES]:
        path = folder / str(images.records[index].folder) / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        images.read(index).save(path)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The embedded model with outliers in the channels of its stem, for which the recipe `fast` has no remedy."""
    folder = tmp_path_factory.mktemp("models")
    source, images = vitedge.import_model("embedded", folder / "embedded"), embedded.pictures("calibration")
    frames = np.stack([source.record.preprocessing.apply(images.read(index)) for index in range(16)])
    planted = CASES["stem"](load(source.onnx_path), frames)
    record = replace(source.record, files={}, architecture=None)
    return write_model(folder / "planted", record, {"model.onnx": to_bytes(planted)})


def exported(model: Model, out: Path, precision: str, **options: Any) -> Manifest:
    recipe = {"num_samples": 16, "recipe": "fast"}
    return vitedge.export(model, "jetson-orin-nano", precision, out, **recipe, **options).manifest


def in_float16(manifest: Manifest, reason: str) -> set[str]:
    return {layer.name for layer in manifest.layers if layer.reason == reason and layer.precision == "fp16"}


def test_a_budget_takes_convolutions_back(model: Model, held_out: Path, tmp_path: Path) -> None:
    manifest = exported(model, tmp_path / "a", "int8", held_out=held_out, min_agreement=90.0)
    reverted = in_float16(manifest, BUDGET)
    assert reverted and all(name.startswith(STEM) for name in reverted)
    assert manifest.variant == "linears-convs-int8-rest-fp16" and manifest.candidates[0].holds
    assert {layer.name for layer in manifest.layers if layer.precision == "int8"} >= {"blocks.0.attn.qkv"}


def test_a_mixture_leaves_out_convolutions_that_cost_too_much(model: Model, held_out: Path, tmp_path: Path) -> None:
    manifest = exported(model, tmp_path / "a", "mixed", held_out=held_out)
    left = in_float16(manifest, PRICE)
    assert left and all(name.startswith(STEM) for name in left)
    assert 0 < manifest.precision_obtained["int8"] < 1
