"""Twenty to two hundred pictures: how many are observed and held out, and what is refused before any work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitedge
from tests.data.test_shards import write_tar
from vitedge.core.progress import silent
from vitedge.data.images import ImageSet
from vitedge.errors import UsageError
from vitedge.exporting.candidates import ExportInputs, load_inputs
from vitedge.exporting.plan import Plan

CLASSES = ("ant", "bee", "cat", "dog", "eel")


def pictures(folder: Path, count: int, seed: int = 5) -> Path:
    """So many that differ, by class folders."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        path = folder / CLASSES[number % 5] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def planned(small_model: Path, tmp_path: Path) -> Callable[..., Plan]:
    def plan(data: Path, **options: Any) -> Plan:
        return vitedge.plan_export(small_model, "onnxruntime", "int8", tmp_path / "artifact", data=data, **options)

    return plan


@pytest.mark.parametrize(
    ("count", "observed"), [(20, 16), (21, 17), (32, 26), (64, 52), (120, 96), (320, 256), (330, 256)]
)
def test_a_fifth_is_held_out_until_the_recipe_has_enough(
    count: int, observed: int, planned: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = planned(pictures(tmp_path / "data", count))
    assert plan.observed == observed and plan.held_out is None
    assert vitedge.summary(plan)["images"] == observed


def test_nothing_is_reserved_beside_a_hold_out_set(planned: Callable[..., Plan], tmp_path: Path) -> None:
    data, others = pictures(tmp_path / "data", 21), tmp_path / "others"
    shutil.copytree(data / "ant", others / "ant")
    for path in sorted(data.rglob("*.png"))[16:] + sorted((data / "ant").iterdir()):
        path.unlink(missing_ok=True)
    with pytest.raises(UsageError) as refused:
        planned(data, held_out=others)
    assert refused.value.reason == f"--data {data} has 11 pictures; the recipe observes at least 16"
    assert refused.value.hint == "add pictures, or observe fewer all the same: --num-samples 11"
    assert planned(data, held_out=others, num_samples=11).observed == 11
    assert (
        planned(pictures(tmp_path / "more", 40), held_out=pictures(tmp_path / "x", 41, seed=6), max_drop=50).observed
        == 40
    )


@pytest.mark.parametrize(
    ("count", "options", "reason", "hint"),
    [
        (
            19,
            {},
            "19 pictures; the recipe observes at least 16 and holds 4 others out to measure the loss on",
            "add pictures, or observe fewer all the same: --num-samples 15, "
            "or name other hold-out pictures: --held-out DIR",
        ),
        (
            1,
            {},
            "1 picture; the recipe observes at least 16 and holds 4 others out to measure the loss on",
            "add pictures",
        ),
        (
            30,
            {"num_samples": 27},
            "30 pictures; --num-samples 27 leaves 3 to measure the loss on, where 4 are needed",
            "add pictures, or use --num-samples 26, or name other hold-out pictures: --held-out DIR",
        ),
        (
            30,
            {"num_samples": 31},
            "30 pictures; --num-samples 31 asks for more",
            "add pictures, or use --num-samples 26",
        ),
        (
            3,
            {"num_samples": 1},
            "3 pictures; --num-samples 1 leaves 2 to measure the loss on, where 4 are needed",
            "add pictures, or name other hold-out pictures: --held-out DIR",
        ),
    ],
)
def test_too_few_are_refused_before_any_work(
    count: int, options: dict[str, Any], reason: str, hint: str, planned: Callable[..., Plan], tmp_path: Path
) -> None:
    data = pictures(tmp_path / "data", count)
    with pytest.raises(UsageError) as refused:
        planned(data, **options)
    assert (refused.value.reason, refused.value.hint) == (f"--data {data} has {reason}", hint)


def test_a_budget_that_few_pictures_cannot_show_is_refused_before_any_work(
    planned: Callable[..., Plan], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"24 hold-out pictures can't show a top-1 drop of at most 0\.5 pp"):
        planned(pictures(tmp_path / "data", 120), max_drop=0.5)


def test_copies_and_files_that_are_no_pictures_do_not_count(planned: Callable[..., Plan], tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 25)
    assert planned(data).observed == 20
    for path in (data / "ant").iterdir():
        shutil.copy(path, data / "bee")
    for path in sorted((data / "cat").iterdir())[:3]:
        path.write_bytes(b"none")
    assert planned(data).observed == 25 - 3 - 4
    for path in (data / "eel").iterdir():
        shutil.copy(data / "ant" / "000.png", path)
    with pytest.raises(UsageError, match="has 17 pictures that can be read and differ, of 30; the recipe"):
        planned(data)


def test_hold_out_pictures_that_calibrate_are_refused_before_any_work(
    planned: Callable[..., Plan], tmp_path: Path
) -> None:
    data = pictures(tmp_path / "data", 30)
    with pytest.raises(UsageError, match="30 of the 30 hold-out pictures of data are calibrated on"):
        planned(data, held_out=data)


def loaded(plan: Plan) -> ExportInputs:
    return load_inputs(plan, silent)


def test_what_is_held_out_was_not_observed(planned: Callable[..., Plan], tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 25)
    for path in (data / "ant").iterdir():  # a copy of an observed picture isn't held out
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    inputs, images = loaded(planned(data, recipe="fast")), ImageSet.open(data)
    assert inputs.calibration is not None and inputs.hold_out is not None
    digests = {record.name: images.digest(index)[:16] for index, record in enumerate(images.records)}
    observed, held_out = set(inputs.calibration.image_digests), {digests[name] for name in inputs.hold_out.names}
    assert len(observed) <= 20 and len(held_out) >= 4 and not observed & held_out
    assert observed | held_out == set(digests.values())


def test_an_archive_and_shards_calibrate_as_the_folder_does(planned: Callable[..., Plan], tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 40)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "data")
    (tmp_path / "shards").mkdir()
    files = sorted(data.rglob("*.png"))
    for start in range(0, 40, 15):
        members = {path.name: path.read_bytes() for path in files[start : start + 15]}
        members |= {f"{path.stem}.cls": path.parent.name.encode() for path in files[start : start + 15]}
        write_tar(tmp_path / "shards" / f"{start}.tar", members)
    plain, *packed = [loaded(planned(source, recipe="fast")) for source in (data, Path(archive), tmp_path / "shards")]
    assert plain.calibration is not None and plain.hold_out is not None and len(plain.hold_out) == 8
    for each in packed:
        assert each.calibration is not None and each.hold_out is not None
        assert each.calibration.image_digests == plain.calibration.image_digests
        assert each.hold_out.digest == plain.hold_out.digest
        assert np.array_equal(each.hold_out.labels, plain.hold_out.labels)


def test_an_export_says_what_few_pictures_leave_open(small_model: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 25)
    artifact = vitedge.export(small_model, "onnxruntime", "int8", tmp_path / "a", data=data)
    manifest = artifact.manifest
    assert manifest.calibration is not None and manifest.calibration.count == 20
    assert manifest.recipe is not None and manifest.recipe.observe.num_samples == 256
    assert manifest.fidelity is not None and (manifest.fidelity.pictures, manifest.fidelity.split) == (5, "held-out")
    asked, shown = vitedge.summary(artifact)["notes"]
    assert asked.startswith("20 images of data were observed, where the recipe asks for 256: with 16 the mean KL")
    assert shown == "5 hold-out pictures can't show a top-1 agreement above 57 % with 95 % confidence"
    facts = vitedge.inspect(artifact.path).facts
    assert facts["calibrated on"] == "20 images of data (the recipe asks for 256)"
