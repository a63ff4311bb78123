"""Mutated files are refused in our own words, or still are valid models with finite logits. Never anything else."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.graph.vits import tiny
from tests.importing.references import write_folder
from tests.importing.test_import import EXPORTS, NORMALISATION, pictures, timm_folder
from tests.mutants import mutate
from vitedge.core.isolation import ChildError, run_isolated
from vitedge.errors import ModelError, UsageError, VitedgeError
from vitedge.formats.architecture import Rope
from vitedge.graph import mappings, surgery
from vitedge.importing.checkpoint import import_checkpoint
from vitedge.importing.entry import import_model
from vitedge.importing.onnx_file import convert

__all__ = ["pictures"]  # a fixture

MUTATED = ("dynamo-20", "legacy-17-dynamic", "hybrid-17", "windows-23", "folded-20")
CRASHED = "the child crashed, which import_model reports as a ModelError"

SMALL_HF = {
    "architectures": ["Dinov2WithRegistersForImageClassification"],
    "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1, "image_size": 32,
    "patch_size": 8, "num_register_tokens": 2, "id2label": {str(index): f"thing {index}" for index in range(7)},
}  # fmt: skip
SMALL_BIT = {
    "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 36}, "resample": 3,
    "crop_size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2],
}  # fmt: skip


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A small folder of every layout: timm's first ViT, timm's second (DINOv3), transformers'."""
    folder = tmp_path_factory.mktemp("layouts")
    config = tiny(
        embed_dim=64, num_heads=1, mlp="swiglu", image_size=(32, 32), depth=1,
        rope=Rope(kind="centred", pairs="halves"), position_embedding="none",
        register_tokens=2, layer_scale=True, layer_norm_eps=1e-5,
    )  # fmt: skip
    second = timm_folder(folder / "dinov3", config, architecture="vit_small_plus_patch8_dinov3_32")
    tensors: dict[str, tuple[int, ...]] = {"classifier.weight": (7, 128), "classifier.bias": (7,)}
    for name, shape in {
        "embeddings.cls_token": (1, 1, 64), "embeddings.mask_token": (1, 64), "embeddings.register_tokens": (1, 2, 64),
        "embeddings.position_embeddings": (1, 17, 64), "embeddings.patch_embeddings.projection.weight": (64, 3, 8, 8),
        "embeddings.patch_embeddings.projection.bias": (64,), "layernorm.weight": (64,), "layernorm.bias": (64,),
    }.items():  # fmt: skip
        tensors[f"dinov2_with_registers.{name}"] = shape
    for part in ("norm1", "norm2", "attention.attention.query", "attention.attention.key", "attention.attention.value",
                 "attention.output.dense", "mlp.fc1", "mlp.fc2"):  # fmt: skip
        block = f"dinov2_with_registers.encoder.layer.0.{part}"
        tensors |= {f"{block}.weight": (64,) if part.startswith("norm") else (64, 64), f"{block}.bias": (64,)}
    for part in ("layer_scale1", "layer_scale2"):
        tensors[f"dinov2_with_registers.encoder.layer.0.{part}.lambda1"] = (64,)
    files = {"config.json": SMALL_HF, "preprocessor_config.json": SMALL_BIT}
    third = write_folder(folder / "hf", {"files": files, "tensors": tensors})
    return [timm_folder(folder / "timm"), second, third]


def import_mutated(folder: Path, source: Path, file: str, seed: int, images: Path) -> None:
    """Import a folder with one file mutated: finite logits, a refusal, or a question for what the file doesn't say."""
    if not (source / file).is_file():
        file = "config.json"
    target = folder / str(seed)
    shutil.copytree(source, target)
    whole = (target / file).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little") if file == "model.safetensors" else None
    (target / file).write_bytes(mutate(whole, random.Random(seed), head=header))
    with np.errstate(all="ignore"):  # of weights that became huge; what comes out is judged
        try:
            imported = import_checkpoint("published", target, {}, images, "test")
        except VitedgeError as error:
            outcome = (type(error), error.exit_code, bool(error.hint))
        else:
            outcome = None
            assert np.isfinite(imported.parity.relative)
    asked = (UsageError, 2, True) if file.endswith(".json") else None
    assert outcome in (None, (ModelError, 3, True), asked)
    shutil.rmtree(target)


FILES = ["model.safetensors", "config.json", "preprocessor_config.json"]


def test_the_layouts_are_sound(layouts: list[Path], pictures: Path) -> None:
    for source in layouts:
        assert import_checkpoint("published", source, {}, pictures, "test").parity.relative <= 1e-5


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, 200, 50)], ids=str)
def test_mutated_checkpoints(file: str, seeds: range, tmp_path: Path, layouts: list[Path], pictures: Path) -> None:
    for seed in seeds:
        import_mutated(tmp_path, layouts[seed % 3], file, seed, pictures)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("seeds", [range(start, start + 100) for start in range(1000, 3000, 100)], ids=str)
def test_many_mutated_checkpoints(file: str, seeds: range, tmp_path: Path, layouts: list[Path], pictures: Path) -> None:
    for seed in seeds:
        import_mutated(tmp_path, layouts[seed % 3], file, seed, pictures)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        '{"architecture": 3}',
        '{"architecture": "vit_tiny_patch8_32", "pretrained_cfg": []}',
        '{"architecture": "vit_tiny_patch8_32", "pretrained_cfg": {"input_size": [3, 1e99, 2], "mean": [0,0,0]}}',
        '{"architecture": "' + "vit_" * 5000 + '"}',
    ],
)
def test_odd_configurations(text: str, tmp_path: Path) -> None:
    (timm_folder(tmp_path) / "config.json").write_text(text)
    with pytest.raises(ModelError):
        mappings.read_timm(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": {"act_layer": ["gelu"]}},
        {"model_args": {"num_heads": 0}},
        {"model_args": {"num_heads": "three"}},
        {"model_args": {"num_heads": 7}},
        {"model_args": {"img_size": -8}},
        {"model_args": {"img_size": [8, 8, 8]}},
        {"model_args": {"img_size": {"a": 1}}},
        {"model_args": {"img_size": 1 << 40}},
        {"label_names": {"a": "b"}},
        {"num_classes": -1},
    ],
)
def test_odd_values(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        mappings.read_timm(timm_folder(tmp_path, **changes))


def convert_all(paths: list[Path], images: Path) -> list[str]:
    """What becomes of each file: "valid", or the error's class. Anything that isn't a VitedgeError passes out."""
    outcomes = []
    for path in paths:
        try:
            imported = convert(path, {**NORMALISATION, "size": (32, 48)}, images, f"import {path.name}")
            assert imported.parity.relative <= 1e-4
            outcomes.append("valid")
        except VitedgeError as error:
            outcomes.append(f"{type(error).__name__} {error.exit_code}")
    return outcomes


def outcomes_of(paths: list[Path], images: Path) -> list[str]:
    """As :func:`convert_all`, in child processes; a crash is narrowed down to the file that caused it."""
    try:
        return run_isolated(convert_all, paths, images, timeout_s=120)
    except ChildError as error:
        if re.match(r"\w*(Error|Exception):", str(error)):
            raise  # an exception that isn't ours
        if len(paths) == 1:
            return [CRASHED]
        middle = len(paths) // 2
        return outcomes_of(paths[:middle], images) + outcomes_of(paths[middle:], images)


def mutated_graphs(seeds: range, folder: Path, images: Path) -> list[str]:
    sources = [(EXPORTS / f"{name}.onnx").read_bytes() for name in MUTATED]
    paths = [folder / f"{seed}.onnx" for seed in seeds]
    for seed, path in zip(seeds, paths, strict=True):
        path.write_bytes(mutate(sources[seed % len(sources)], random.Random(seed)))
    return outcomes_of(paths, images)


def test_text_that_is_no_text() -> None:
    data = (EXPORTS / "hybrid-17.onnx").read_bytes().replace(b"pixel_values", b"pixel\xffvalues")
    with pytest.raises(ModelError, match=r"it is not an ONNX model: \S"):
        surgery.parse(data)


@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, 200, 50)], ids=str)
def test_mutated_graphs(seeds: range, tmp_path: Path, pictures: Path) -> None:
    found = mutated_graphs(seeds, tmp_path, pictures)
    assert len(found) == 50 and set(found) <= {"valid", "ModelError 3", CRASHED}
    assert found.count("ModelError 3") > 10 and found.count("valid") > 3  # the mutations are neither mild nor total


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(1000, 3000, 50)], ids=str)
def test_many_mutated_graphs(seeds: range, tmp_path: Path, pictures: Path) -> None:
    found = mutated_graphs(seeds, tmp_path, pictures)
    assert len(found) == 50 and set(found) <= {"valid", "ModelError 3", CRASHED}


def test_a_crash_while_reading_a_graph_is_refused(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from vitedge.importing import onnx_file

    monkeypatch.setattr(onnx_file, "convert", os.abort)
    monkeypatch.setattr(onnx_file, "run_isolated", lambda function, *_, **options: run_isolated(function))
    with pytest.raises(ModelError, match="killed by SIGABRT") as refusal:
        import_model(EXPORTS / "dynamo-20.onnx", tmp_path / "model", images=pictures, preprocessing=NORMALISATION)
    assert refusal.value.exit_code == 3 and not (tmp_path / "model").exists()
