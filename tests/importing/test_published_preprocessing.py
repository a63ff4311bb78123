"""How published folders say that pictures are prepared: as their library does, or asked for by what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.command import fails, vitedge
from tests.importing.references import (
    PIXELS,
    VARIANTS,
    grey_levels,
    photographs,
    positions,
    prepared,
    published_contract,
    write_files,
    write_folder,
)
from tests.importing.test_import import timm_folder
from tests.importing.test_layouts import DINO, STORED, VIT, change
from vitedge.errors import ModelError, UsageError
from vitedge.formats.model_folder import Model
from vitedge.graph import mappings
from vitedge.importing.options import parse_three

PICTURES = photographs()
STORED_VARIANTS: dict[str, Any] = json.loads(VARIANTS.read_text())
STORED_PIXELS = np.load(PIXELS)
FILE = "preprocessor_config.json"


@pytest.mark.parametrize(
    "name",  # with torchvision the library's own arithmetic differs, and ours is the same
    [pytest.param(name, marks=[pytest.mark.slow] * name.endswith("(torchvision)")) for name in STORED_PIXELS.files],
)
def test_pictures_are_prepared_as_the_library_does(name: str, tmp_path: Path) -> None:
    """From the folder's files to the values that the network gets, mean and std included."""
    variant = STORED_VARIANTS[re.sub(r" \((pil|torchvision)\)$", "", name)]
    contract, _ = published_contract(write_files(tmp_path, variant["files"]), variant)
    differences = []
    for (title, picture), expected in zip(PICTURES.items(), STORED_PIXELS[name], strict=True):
        values = prepared(contract, picture)
        rows, columns = positions(title, values.shape, len(expected))
        differences.append(grey_levels(values[rows, columns] - expected.astype(np.float64), contract))
    # Values are stored as float16, half of whose last place is 0.07 grey levels at most.
    assert max(map(np.max, differences)) <= 2.1 and max(map(np.mean, differences)) <= 0.5


def test_there_are_a_dozen_variants_of_each_library() -> None:
    libraries = [variant["library"] for variant in STORED_VARIANTS.values()]
    assert min(libraries.count("timm"), libraries.count("transformers")) >= 12
    assert PIXELS.stat().st_size + VARIANTS.stat().st_size < 2_000_000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformers: ViT of 2021, no type, no resample", {"resize", "interpolation", "rescale"}),
        ("transformers: ViT as saved by transformers 4", set()),
        (
            "transformers: DeiT whose file says nothing",
            {"size", "resize", "interpolation", "crop_fraction", "rescale", "mean", "std"},
        ),
        ("transformers: BEiT's", {"rescale"}),
        ("timm: ViT, AugReg", set()),
        ("timm: no mean and std", {"resize", "mean", "std"}),
        ("timm: all null", {"size", "resize", "interpolation", "crop_fraction", "mean", "std"}),
    ],
)
def test_what_comes_from_a_librarys_defaults_is_known(name: str, expected: set[str], tmp_path: Path) -> None:
    variant = STORED_VARIANTS[name]
    contract, defaults = published_contract(write_files(tmp_path, variant["files"]), variant)
    assert defaults.keys() - {"from"} == expected
    assert all(getattr(contract, field) == defaults[field] for field in expected)


def without_processor(source: Path) -> None:
    (source / FILE).unlink()


def processor(**changes: Any) -> Callable[[Path], None]:
    return lambda source: change(source, FILE, **changes)


ALL = "--resize, --interpolation, --crop-fraction, --mean, --std"
ASKED: dict[str, tuple[str, Callable[[Path], None], str, str]] = {
    "no file": (VIT, without_processor, f"there is no {FILE}", ALL),
    "no file, DINOv2": (DINO, without_processor, f"there is no {FILE}", ALL),
    "an unknown class": (VIT, processor(image_processor_type="OwnImageProcessor"), "'OwnImageProcessor' isn't", ALL),
    "no resize": (VIT, processor(do_resize=False), "do_resize is false", "--resize, --crop-fraction"),
    "no crop": (VIT, processor(size={"shortest_edge": 224}), "no fixed size", "--resize, --crop-fraction"),
    "DINOv2, no crop": (DINO, processor(do_center_crop=False), "no fixed size", "--resize, --crop-fraction"),
    "the longest edge": (VIT, processor(size={"longest_edge": 224}), "isn't height and width", "--resize, --crop-f"),
    "a size in words": (VIT, processor(size="large"), "isn't height and width", "--resize, --crop-fraction"),
    "a crop of another shape": (
        DINO, processor(crop_size={"height": 112, "width": 96}), "cuts 112×96 from 127×127", "--resize, --crop-f"
    ),
    "a crop that is larger": (DINO, processor(crop_size=280), "cuts 280×280 from 127×127", "--resize, --crop-f"),
    "ConvNext without an edge": (
        VIT, processor(image_processor_type="ConvNextImageProcessor"), "without shortest_edge", "--resize, --crop-f"
    ),
    "an unknown filter": (VIT, processor(resample=9), "has resample 9", "--interpolation"),
    "two means": (VIT, processor(image_mean=[0.5, 0.5]), r"image_mean \[0.5, 0.5\], which isn't three", "--mean"),
}  # fmt: skip


def options_in(hint: str) -> dict[str, Any]:
    """The options that a hint says, as the command line would pass them on."""
    parse: dict[str, Callable[[str], Any]] = {"mean": parse_three, "std": parse_three, "crop_fraction": float}
    said = [(name.replace("-", "_"), value) for name, value in re.findall(r"--([a-z-]+) ([\w.,]+)", hint)]
    return {name: parse.get(name, str)(value) for name, value in said}


@pytest.mark.parametrize("case", ASKED)
def test_what_is_missing_is_asked_for_and_the_answer_suffices(case: str, tmp_path: Path) -> None:
    title, alter, reason, missing = ASKED[case]
    source = write_folder(tmp_path / "source", STORED[title])
    alter(source)
    with pytest.raises(UsageError, match=f"{reason}.*; missing: {missing}") as refusal:
        mappings.read_published(source)
    answer = options_in(refusal.value.hint)
    assert [f"--{name.replace('_', '-')}" for name in answer] == refusal.value.reason.split("missing: ")[1].split(", ")
    contract = mappings.read_published(source, answer).preprocessing
    assert {name: getattr(contract, name) for name in answer} == answer
    for name in answer:  # and each of them is needed
        with pytest.raises(UsageError, match=rf"missing: --{name.replace('_', '-')}\n"):
            mappings.read_published(source, {key: value for key, value in answer.items() if key != name})


def test_no_class_for_registers(tmp_path: Path) -> None:
    """transformers has no image processor of its own for this model."""
    source = write_folder(tmp_path / "source", STORED["Dinov2WithRegistersForImageClassification"])
    change(source, FILE, image_processor_type=None)
    with pytest.raises(UsageError, match=f"{FILE} names no image processor; missing: {ALL}"):
        mappings.read_published(source)


def test_options_are_applied_before_the_file_is_judged(tmp_path: Path) -> None:
    source = timm_folder(tmp_path / "timm")
    config = json.loads((source / "config.json").read_text())
    config["pretrained_cfg"] |= {"crop_mode": "border", "interpolation": "random"}
    config |= {"label_names": ["a", "b"]}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"crop_mode 'border' with crop_pct 0.9 isn't offered") as border:
        mappings.read_published(source)
    given = options_in(border.value.hint)
    with pytest.raises(ModelError, match=r"can't be kept: .*interpolation"):
        mappings.read_published(source, given)
    given["interpolation"] = "bilinear"
    with pytest.raises(ModelError, match="label_names has 2 names; the head has 7 classes") as labels:
        mappings.read_published(source, given)
    assert "--labels" in labels.value.hint
    contract = mappings.read_published(source, given, named=True).preprocessing
    assert (contract.resize, contract.crop_fraction, contract.interpolation) == ("pad", 1.0, "bilinear")
    hugging = write_folder(tmp_path / "hf", STORED[VIT])
    change(hugging, "config.json", id2label={"0": "cat"})
    assert mappings.read_published(hugging, named=True).classes is None


def one_picture(folder: Path) -> Path:
    """To compare on: one suffices for what is tested here."""
    (folder / "pictures").mkdir()
    PICTURES["1x1"].save(folder / "pictures" / "one.png")
    return folder / "pictures"


def test_a_checkpoint_of_a_trainer(tmp_path: Path) -> None:
    """The folder has no preprocessing: one refusal with all that is needed, and the command that it says works."""
    source, out = write_folder(tmp_path / "checkpoint-500", STORED[VIT]), tmp_path / "model"
    (source / FILE).unlink()
    _, reason, hint = fails(2, "import", source, "--out", out)
    assert ALL in reason
    options = re.search(r"--resize.*?--std \S+", hint.replace(";", " ;"))
    assert options is not None
    done = vitedge("import", source, "--out", out, "--images", one_picture(tmp_path), *options[0].split())
    assert done.code == 0, done.err
    contract = Model.open(out).record.preprocessing
    assert (contract.resize, contract.interpolation, contract.mean) == ("squash", "bilinear", (0.5, 0.5, 0.5))


def test_defaults_are_said_and_kept(tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "source", STORED[VIT]), tmp_path / "model"
    (source / FILE).write_text(json.dumps({"do_normalize": True, "image_mean": [0.4] * 3, "size": 224}))
    done = vitedge("import", source, "--out", out, "--images", one_picture(tmp_path), "--std", "0.3,0.3,0.3")
    assert done.code == 0, done.err
    said = "interpolation bilinear, rescale 0.00392157, resize squash (ViTImageProcessor of transformers)"
    assert said in " ".join(done.out.split()), done.out
    kept = Model.open(out).record.origin.details["preprocessing_defaults"]
    assert kept["from"] == "ViTImageProcessor of transformers" and kept["interpolation"] == "bilinear"
    assert "std" not in kept
