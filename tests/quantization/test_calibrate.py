"""Calibration images are read once, replaced by name where they can't be, and an interrupted pass goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

from vitedge.data.images import ImageSet
from vitedge.errors import ImageError
from vitedge.formats.artifact import Calibration
from vitedge.formats.model_folder import Model, write_model
from vitedge.formats.recipe import Observe
from vitedge.graph.surgery import load
from vitedge.quantization import calibrate as calibrating
from vitedge.quantization.observe import Observer
from vitedge.quantization.statistics import Statistics

SETTINGS = Observe(num_samples=20, seed=1, reservoir_rows=128, histogram_bins=64)


@pytest.fixture
def data(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty pictures that may be broken, and an empty cache."""
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(small_data, tmp_path / "data"))


def calibrate(small_model: Path, data: Path, progress: object = None) -> tuple[Statistics, Calibration]:
    model = Model.open(small_model)
    show = {} if progress is None else {"progress": progress}
    return calibrating.calibrate(
        model, load(model.onnx_path), ImageSet.open(data), SETTINGS, action="calibrate", **show
    )  # type: ignore[arg-type]


def equal(one: Statistics, other: Statistics) -> bool:
    return one.samples == other.samples and all(
        np.array_equal(getattr(values, name), getattr(other.observed[view], name))
        for view, values in one.observed.items()
        for name in values.__dataclass_fields__
    )


def in_order(data: Path) -> list[Path]:
    images = ImageSet.open(data)
    return [data / images.records[index].name for index in images.order(SETTINGS.seed)]


def test_unreadable_images_are_named_and_replaced_by_the_next(small_model: Path, data: Path) -> None:
    order = in_order(data)
    for index in (3, 7):
        order[index].write_bytes(b"not a picture")
    statistics, calibration = calibrate(small_model, data)
    assert statistics.samples == calibration.count == 20
    assert calibration.skipped == tuple(path.relative_to(data).as_posix() for path in (order[3], order[7]))
    again, same = calibrate(small_model, data)
    assert equal(again, statistics) and same == calibration
    order[20].write_bytes(order[30].read_bytes())  # a replacement that became another picture
    _, other = calibrate(small_model, data)
    assert other.digest != calibration.digest


def test_a_second_run_decodes_nothing(small_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = calibrate(small_model, data)

    def no(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(calibrating, "open_picture", no)
    again, _ = calibrate(small_model, data)
    assert equal(first, again)


def test_pictures_prepared_otherwise_are_observed_anew(small_model: Path, data: Path, tmp_path: Path) -> None:
    """Resizing stands in the model's record alone, not in its graph."""
    first, _ = calibrate(small_model, data)
    model = Model.open(small_model)
    contract = replace(model.record.preprocessing, interpolation="nearest")
    files = {name: (small_model / name).read_bytes() for name in model.record.files}
    other = write_model(tmp_path / "other", replace(model.record, preprocessing=contract), files)
    assert other.record.files == model.record.files
    again, _ = calibrate(other.path, data)
    assert again.key != first.key and not equal(again, first)


def test_too_few_readable_images(small_model: Path, data: Path) -> None:
    for path in in_order(data)[:25]:
        path.write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="has 15 readable images of the 20 asked for; 25 can't be read") as caught:
        calibrate(small_model, data)
    assert caught.value.hint == "replace them, or remove them and ask for fewer: --num-samples"


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.mark.parametrize("damage", [None, "cut", "gone", "moved"])
def test_an_interrupted_pass_goes_on_and_ends_the_same(
    small_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str | None
) -> None:
    monkeypatch.setattr(calibrating, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr("vitedge.quantization.observe._PIXELS_AT_ONCE", 3 * 32 * 32)  # three pictures a batch
    in_order(data)[4].write_bytes(b"not a picture")
    whole = calibrate(small_model, data)
    shutil.rmtree(tmp_path / "cache")
    seen: list[int] = []

    def kill(_: str, done: int, __: int) -> None:
        if done >= 9:
            raise Killed

    with pytest.raises(Killed):
        calibrate(small_model, data, kill)
    (partial,) = (tmp_path / "cache").rglob(calibrating.PARTIAL)
    if damage == "cut":
        partial.write_bytes(partial.read_bytes()[:-1])
    elif damage == "gone":
        partial.unlink()
    elif damage == "moved":
        walk = partial.with_name(calibrating.WALK)
        walk.write_text(walk.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    again = calibrate(small_model, data, lambda _, done, __: seen.append(done))
    assert seen[0] == (6 if damage is None else 0)
    assert equal(again[0], whole[0]) and again[1] == whole[1]
    assert not list((tmp_path / "cache").rglob(calibrating.PARTIAL))


def test_the_state_of_an_observer_is_all_it_holds(small_model: Path) -> None:
    graph: onnx.ModelProto = load(Model.open(small_model).onnx_path)
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    whole, first, second = (Observer(graph, SETTINGS) for _ in range(3))
    for part in (images[:6], images[6:]):
        whole.add(part)
    first.add(images[:6])
    second.restore(first.state(), first.samples)
    second.add(images[6:])
    assert equal(whole.statistics("k"), second.statistics("k"))
