"""Few pictures: a batch that fits them, an accuracy with its interval, and advice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.cli.command import vitedge
from vitedge.formats.model_folder import Model

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.training.advice import advice, with_interval  # noqa: E402
from vitedge.training.options import TrainOptions  # noqa: E402
from vitedge.training.trainer import default_batch_size  # noqa: E402
from vitedge.training.zoo import zoo_config  # noqa: E402

SCRATCH, TUNED = TrainOptions(model="vit_edge_conv_32"), TrainOptions(init_from="embedded")


@pytest.mark.parametrize("pictures", [1, 20, 80, 108, 500, 2559, 2560, 1_000_000])
def test_an_epoch_has_steps_enough(pictures: int) -> None:
    size = default_batch_size(pictures)
    assert 8 <= size <= 256 and size & (size - 1) == 0
    assert pictures // size >= 10 or size == 8
    assert size == 256 or pictures // size < 20, "no smaller than it must be"


def test_the_command_fits_its_defaults_to_the_data(pictures: Path, tmp_path: Path) -> None:
    arguments = ("train", pictures, "--model", "vit_nano_patch4_32", "--image-size", 8, "--epochs", 1, "--threads", 1)
    done = vitedge(*arguments, "--out", tmp_path / "model")
    assert done.code == 0, done.err
    record = Model.open(tmp_path / "model").record
    assert record.training is not None and record.accuracy is not None
    assert record.training["options"]["batch_size"] == 8 and record.training["steps"] == 33 // 8
    figure = record.accuracy["held_out"]
    low, high = figure["top1_interval_percent"]
    assert low < figure["top1_percent"] < high or high - low > 50
    assert f"of 3 pictures (95 % interval {low:.1f} to {high:.1f})" in done.err
    assert len(re.findall("^advice: ", done.err, re.MULTILINE)) == 2 and "--init-from embedded" in done.err
    quiet = vitedge(*arguments, "--out", tmp_path / "quiet", "--quiet")
    assert quiet.code == 0 and quiet.err == "" and quiet.out == f"{tmp_path / 'quiet'}\n"


@pytest.mark.parametrize(
    ("options", "pictures", "right", "images", "words"),
    [
        (
            SCRATCH,
            108,
            11,
            12,
            ["12 hold-out pictures say", "36 pictures a class are few to train from scratch"],
        ),
        (TUNED, 108, 11, 12, ["12 hold-out pictures say", "36 pictures a class are few to train every layer"]),
        (replace(TUNED, freeze=2), 108, 990, 1000, []),
        (SCRATCH, 45_000, 4_500, 5_000, []),
    ],
)
def test_advice_is_for_those_who_need_it(
    options: TrainOptions, pictures: int, right: int, images: int, words: list[str]
) -> None:
    figure = with_interval({"top1_percent": 100 * right / images, "loss": 1.0, "images": images})
    given = list(advice(options, zoo_config("vit_edge_conv_32", num_classes=3), pictures, figure))
    assert [line.startswith(word) for line, word in zip(given, words, strict=True)] == [True] * len(words)
