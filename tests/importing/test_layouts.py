"""Published layouts: other sizes, and what doesn't fit, named as the source names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.importing.references import FAMILIES, write_folder
from tests.importing.test_import import timm_folder
from vitedge.errors import ModelError, UsageError, VitedgeError
from vitedge.graph import mappings
from vitedge.graph.checkpoint import grid_of
from vitedge.graph.positions import resize_patches, resize_positions

STORED: dict[str, Any] = json.loads(FAMILIES.read_text())["families"]
VIT, DINO = "ViTForImageClassification", "Dinov2ForImageClassification"


def change(folder: Path, file: str, **changes: Any) -> None:
    content = {**json.loads((folder / file).read_text()), **changes}
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_positions_keep_their_prefix_and_a_constant() -> None:
    pos = np.concatenate([np.full((1, 2, 3), 7.0), np.full((1, 20, 3), 2.0)], axis=1).astype(np.float32)
    for antialias in (True, False):
        resized = resize_positions(pos, (4, 5), (3, 9), 2, antialias=antialias)
        assert resized.shape == (1, 29, 3) and resized.dtype == np.float32
        np.testing.assert_allclose(resized[:, :2], 7.0)
        np.testing.assert_allclose(resized[:, 2:], 2.0, rtol=1e-6)
    assert np.array_equal(resize_positions(pos, (4, 5), (4, 5), 2), pos)
    with pytest.raises(ModelError, match=r"expected \[1, 18, channels\], received \[1, 22, 3\]"):
        resize_positions(pos, (4, 4), (2, 2), 2)


def test_a_larger_patch_projection_gives_the_same_tokens() -> None:
    """FlexiViT: for patches that were enlarged, the products with the enlarged kernel are the old ones."""
    random = np.random.default_rng(0)
    kernel, patches = random.standard_normal((4, 3, 8, 8)), random.standard_normal((5, 3, 8, 8))

    def enlarge(channel: NDArray[Any]) -> NDArray[Any]:
        """[8, 8] -> [16, 16], one axis after the other."""
        tall = resize_positions(channel.reshape(1, 8, 8), (8, 1), (16, 1), 0)[0]
        return resize_positions(tall.T.reshape(1, 8, 16), (8, 1), (16, 1), 0)[0].T

    both = np.stack([[enlarge(channel) for channel in patch] for patch in patches])
    found = np.einsum("pcij,ocij->po", both, resize_patches(kernel, 16))
    np.testing.assert_allclose(found, np.einsum("pcij,ocij->po", patches, kernel), atol=1e-4)
    assert resize_patches(kernel, 8).shape == kernel.shape


@pytest.mark.parametrize(
    ("positions", "prefix", "likely", "expected"),
    [
        (17, 1, [(4, 4)], ((4, 4), True)),
        (16, 1, [(4, 4)], ((4, 4), False)),
        (15, 0, [(3, 5)], ((3, 5), True)),
        (1370, 1, [(16, 16)], ((37, 37), True)),
        (1369, 5, [(16, 16)], ((37, 37), False)),
        (63, 1, [(4, 4)], None),
        (0, 1, [(4, 4)], None),
    ],
)
def test_grids(positions: int, prefix: int, likely: list[tuple[int, int]], expected: Any) -> None:
    assert grid_of(positions, prefix, likely) == expected


def test_another_size_is_recorded(tmp_path: Path) -> None:
    source = timm_folder(tmp_path / "timm")
    checkpoint = mappings.read_published(source, {"size": (48, 64)})
    assert checkpoint.config.grid == (6, 8) and checkpoint.preprocessing.size == (48, 64)
    assert checkpoint.details["position_embedding"] == "resized from 4×4 to 6×8 patches"
    other = mappings.read_published(source, patch_size=4)
    assert other.config.grid == (8, 8) and other.details["patch_projection"] == "resized from 8 to 4 pixels"
    with pytest.raises(ModelError, match="36×36 pixels: image height 36 is not a positive multiple"):
        mappings.read_published(source, {"size": (36, 36)})


@pytest.mark.parametrize(
    ("title", "tensors", "text"),
    [
        (
            VIT,
            {"vit.encoder.layer.1.attention.attention.key.bias": None},
            r"'vit\.encoder\.layer\.1\.attention\.attention\.key\.bias' is missing; expected shape \[128\]",
        ),
        (
            VIT,
            {"vit.encoder.layer.0.output.dense.weight": np.zeros((128, 128), np.float32)},
            r"'vit\.encoder\.layer\.0\.output\.dense\.weight': expected shape \[128, 256\], received \[128, 128\]",
        ),
        (VIT, {"vit.lora.weight": np.zeros((3, 2), np.float32)}, r"'vit\.lora\.weight' \[3, 2\]: the configuration"),
        (VIT, {"classifier.weight": None}, "no classification head"),
        (DINO, {"dinov2.layernorm.weight": np.full(128, np.nan, np.float32)}, "'norm.weight' holds NaN"),
    ],
)
def test_tensors_are_named_as_the_source_does(title: str, tensors: dict[str, Any], text: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", STORED[title])
    arrays = {**load_file(source / "model.safetensors"), **tensors}
    save_file({name: values for name, values in arrays.items() if values is not None}, source / "model.safetensors")
    with pytest.raises(ModelError, match=text) as refusal:
        mappings.read_published(source)
    assert refusal.value.exit_code == 3


@pytest.mark.parametrize(
    ("title", "file", "changes", "kind", "text"),
    [
        (VIT, "config.json", {"architectures": ["SwinForImageClassification"]}, ModelError, "isn't known here"),
        (VIT, "config.json", {"architectures": None}, ModelError, "names no architecture"),
        (VIT, "config.json", {"hidden_act": "quick_gelu"}, ModelError, "'quick_gelu' isn't GELU"),
        (VIT, "config.json", {"num_attention_heads": 5}, ModelError, "not a multiple of num_heads 5"),
        (VIT, "config.json", {"num_channels": 1}, ModelError, "not RGB"),
        (VIT, "config.json", {"image_size": 240}, ModelError, "makes 224×224 pixels and .* says 240|expected shape"),
        (VIT, "config.json", {"id2label": {"0": "cat", "1": "dog"}}, ModelError, "names 2 classes; the head has 7"),
    ],
)
def test_configurations_that_do_not_fit(
    title: str, file: str, changes: dict[str, Any], kind: type[VitedgeError], text: str, tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "source", STORED[title])
    change(source, file, **changes)
    with pytest.raises(kind, match=text):
        mappings.read_published(source)


def test_old_spellings_and_wrong_preprocessing(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", STORED[VIT])
    old = {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2, "do_normalize": False}
    (source / "preprocessor_config.json").write_text(json.dumps(old))
    contract = mappings.read_published(source).preprocessing
    assert (contract.resize, contract.size, contract.mean) == ("squash", (224, 224), (0.0, 0.0, 0.0))
    assert mappings.read_published(source, {"resize": "pad"}).preprocessing.resize == "pad"
    with pytest.raises(UsageError, match="the preprocessing is wrong"):
        mappings.read_published(source, {"resize": "stretch"})
