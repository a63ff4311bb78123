"""A step is the same whether a batch is taken whole, in parts, or by several processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from vitedge.errors import UsageError
from vitedge.formats.model_folder import Model

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.training.augment import Augmentation  # noqa: E402
from vitedge.training.checkpoint import CHECKPOINT  # noqa: E402
from vitedge.training.engine import Processes, processes  # noqa: E402
from vitedge.training.train import TrainOptions, train  # noqa: E402
from vitedge.training.trainer import parts_of_batch  # noqa: E402

EVERYTHING = Augmentation(crop_padding=2, rand_augment=5.0, random_erasing=0.5, mixup=0.2, cutmix=1.0)
STEPS = 21  # 7 epochs of 3
OPTIONS = TrainOptions(
    model="vit_nano_patch4_32",
    epochs=7,
    batch_size=8,
    lr=1e-3,
    drop_path=0.2,
    augmentation=EVERYTHING,
    image_size=(8, 8),
    holdout=0.25,
    threads=1,
    precision="fp32",
)
COMMAND = ["--epochs", "7", "--batch-size", "8", "--lr", "0.001", "--drop-path", "0.2", "--image-size", "8"]
COMMAND += ["--crop-padding", "2", "--rand-augment", "5", "--random-erasing", "0.5", "--mixup", "0.2", "--cutmix", "1"]
COMMAND += ["--holdout", "0.25", "--threads", "1", "--precision", "fp32"]


@given(st.integers(2, 300), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_parts_hold_every_place_once_and_its_partner(batch_size: int, count: int) -> None:
    if (batch_size + 1) // 2 < count:
        with pytest.raises(UsageError, match="can't be cut into"):
            parts_of_batch(batch_size, count, "train")
        return
    parts = parts_of_batch(batch_size, count, "train")
    assert sorted(torch.cat(parts).tolist()) == list(range(batch_size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 3
    for part in parts:
        assert torch.equal(part.flip(0), batch_size - 1 - part)  # so reversing a part reverses the batch


def difference(one: Path, other: Path) -> float:
    """Relative, of all weights after the last step."""
    states = [
        torch.load(model.with_name(f"{model.name}.run") / CHECKPOINT, weights_only=True) for model in (one, other)
    ]
    assert [state["step"] for state in states] == [STEPS, STEPS]
    ours, theirs = (torch.cat([value.flatten() for value in state["student"].values()]) for state in states)
    found = float((ours - theirs).norm() / ours.norm())
    print(f"relative difference {found:.2g}")
    return found


def test_accumulated_parts_make_the_step_of_the_whole_batch(pictures: Path, tmp_path: Path) -> None:
    whole = train(str(pictures), OPTIONS, tmp_path / "whole")
    parts = train(str(pictures), replace(OPTIONS, accumulate=3), tmp_path / "parts")  # of 2, 2 and 4 pictures
    assert 0 < difference(whole, parts) <= 1e-5


def torchrun(pictures: Path, start: Sequence[str], out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The command, by two processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vitedge", "train"]
    command = [sys.executable, *launch, str(pictures), *start, "--out", str(out), *COMMAND, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.parametrize("model", ["vit_edge_conv_32", pytest.param("vit_nano_patch4_32", marks=pytest.mark.slow)])
def test_two_processes_make_the_steps_of_one(pictures: Path, tmp_path: Path, model: str) -> None:
    """The convolutional stem's BatchNorm, too, is of the whole batch."""
    pytest.importorskip("accelerate", reason="accelerate isn't installed (vitedge[train])")
    done = torchrun(pictures, ("--model", model), tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "two")]  # one of them speaks
    assert done.stderr.count("epoch 7/7") == 1
    one = train(str(pictures), replace(OPTIONS, model=model), tmp_path / "one")
    assert 0 < difference(one, tmp_path / "two") <= 1e-5
    records = [Model.open(tmp_path / name).record for name in ("one", "two")]
    assert [record.training["processes"] for record in records if record.training] == [1, 2]
    found = [record.accuracy["held_out"] for record in records if record.accuracy]
    assert found[0]["top1_percent"] == found[1]["top1_percent"] == 100
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-3)  # of float16 weights


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one_with_the_recipe_for_few_epochs(pictures: Path, tmp_path: Path) -> None:
    """Whitening, MaxPool, whose choice rounding could turn, norms without scale, alternating flips, small pictures."""
    pytest.importorskip("accelerate", reason="accelerate isn't installed (vitedge[train])")
    recipe = ["--image-size", "16", "--whiten", "--identity-stem", "--norm-scale-rate", "0", "--alternate-flip"]
    done = torchrun(
        pictures,
        ("--model", "vit_light_pool_32"),
        tmp_path / "two",
        *recipe,
        "--label-smoothing",
        "0.2",
        "--small-first",
        "0.4",
    )
    assert done.returncode == 0, done.stderr
    options = replace(
        OPTIONS,
        model="vit_light_pool_32",
        image_size=(16, 16),
        whiten=True,
        identity_stem=True,
        norm_scale_rate=0.0,
        label_smoothing=0.2,
        small_first=0.4,
        augmentation=replace(EVERYTHING, alternate_flip=True),
    )
    one = train(str(pictures), options, tmp_path / "one")
    assert 0 < difference(one, tmp_path / "two") <= 1e-5


@pytest.mark.slow
def test_two_processes_that_accumulate_make_the_steps_of_one_that_does_not(pictures: Path, tmp_path: Path) -> None:
    """With mixing, Muon and three times the learning rate, which multiplies what rounding does."""
    pytest.importorskip("accelerate", reason="accelerate isn't installed (vitedge[train])")
    done = torchrun(pictures, ("--model", "vit_nano_patch4_32"), tmp_path / "two", "--accumulate", "2", "--lr", "0.003")
    assert done.returncode == 0, done.stderr
    one = train(str(pictures), replace(OPTIONS, lr=0.003), tmp_path / "one")
    assert 0 < difference(one, tmp_path / "two") <= 1e-5


def test_two_processes_begin_with_the_head_of_one(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate isn't installed (vitedge[train])")
    done = torchrun(pictures, ("--init-from", "embedded"), tmp_path / "two", "--image-size", "16")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("head: fitted to 27 pictures") == 1
    # at 8 pixels there'd be one token: queries and keys have no gradient but rounding errors then, which Muon enlarges
    options = replace(OPTIONS, model=None, init_from="embedded", image_size=(16, 16))
    one = train(str(pictures), options, tmp_path / "one")
    assert 0 < difference(one, tmp_path / "two") <= 1e-5


@pytest.mark.slow
def test_two_processes_fail_as_one(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate isn't installed (vitedge[train])")
    (tmp_path / "model").mkdir()
    done = torchrun(pictures, ("--model", "vit_nano_patch4_32"), tmp_path / "model")
    assert done.returncode != 0
    assert done.stderr.count("already exists") == 1  # told once, whatever torchrun says around it
    assert "Traceback" not in done.stderr.partition("already exists")[0]


def test_a_device_that_isnt_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("abacus", "isn't a device"), ("mps", "isn't supported"), ("cuda", "no CUDA device")):
        if name == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(UsageError, match=text), processes(name, "train"):
            pass


def test_one_process_does_nothing_together() -> None:
    group = Processes(torch.device("cpu"))
    assert group.first and group.all_reduce([1.5, 2.0]) == [1.5, 2.0]
    assert group.on_first(lambda: "said") == "said"
