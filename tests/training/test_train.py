"""Training on small pictures: the folder it writes, what it refuses, and that a kill costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from tests.cli.command import fails, vitedge
from vitedge.data.images import ImageSet
from vitedge.errors import ImageError, Interrupted, InvalidResultError, ModelError, UsageError
from vitedge.formats.model_folder import Model

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.training import data as data_module  # noqa: E402
from vitedge.training import evaluate as evaluate_module  # noqa: E402
from vitedge.training.augment import Augmentation  # noqa: E402
from vitedge.training.checkpoint import CHECKPOINT  # noqa: E402
from vitedge.training.data import Batch, Pixels, digests_of, split  # noqa: E402
from vitedge.training.train import TrainOptions, train  # noqa: E402
from vitedge.training.trainer import HELD_OUT, Trainer  # noqa: E402

EVERYTHING = Augmentation(crop_padding=2, rand_augment=5.0, random_erasing=0.5, mixup=0.2, cutmix=1.0)
SMALL = TrainOptions(
    model="vit_edge_conv_32",
    epochs=2,
    batch_size=8,
    lr=1e-3,
    drop_path=0.2,
    augmentation=EVERYTHING,
    image_size=(8, 8),
    holdout=0.25,
    threads=1,
)


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of :data:`SMALL`."""
    out = tmp_path_factory.mktemp("trained") / "model"
    assert train(str(pictures), SMALL, out, command="vitedge train …") == out
    return out


def weights(model: Path) -> bytes:
    return (model / "model.safetensors").read_bytes()


def test_the_model_folder(trained: Path, pictures: Path) -> None:
    from safetensors.numpy import load_file

    record = Model.open(trained).record
    assert [label.folder for label in record.classes] == ["blue", "green", "red"]
    assert record.architecture is not None and record.architecture.image_size == (8, 8)
    assert record.preprocessing.size == (8, 8) and record.preprocessing.resize == "squash"
    assert record.training is not None and record.accuracy is not None
    assert record.training["command"] == "vitedge train …"
    assert record.training["steps"] == 2 * (27 // 8)
    assert record.accuracy["held_out"]["images"] == 9
    arrays = load_file(trained / "model.safetensors")
    assert {value.dtype for value in arrays.values()} == {np.dtype(np.float16)}
    assert "patch_embed.stem.0.conv.bias" in arrays
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert (trained / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_graph_is_of_the_float32_upcast(trained: Path, pictures: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from safetensors.numpy import load_file

    from vitedge.training.evaluate import normalise, shipped_model

    record, images = Model.open(trained).record, ImageSet.open(pictures)
    batch = np.stack([record.preprocessing.apply(images.read(index)) for index in range(0, 36, 6)])
    session = onnxruntime.InferenceSession(trained / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": batch})
    assert record.architecture is not None
    model = shipped_model(record.architecture, load_file(trained / "model.safetensors")).eval()
    with torch.inference_mode():
        expected = model(normalise(torch.from_numpy(batch).permute(0, 3, 1, 2).float(), record.preprocessing)).numpy()
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_held_out_pictures_are_never_trained_on(trained: Path, pictures: Path) -> None:
    images = ImageSet.open(pictures)
    digests = digests_of(images)
    training, hold_out = split(images, digests, 0.25, 0, "train")
    assert sorted(training + hold_out) == list(range(36))
    assert [images.records[index].folder for index in hold_out] == ["blue"] * 3 + ["green"] * 3 + ["red"] * 3
    assert (trained / "held_out.txt").read_text().split() == [images.records[index].name for index in hold_out]
    assert split(images, digests, 0.25, 1, "train")[1] != hold_out  # the seed draws


def test_a_copy_of_a_held_out_picture_is_never_trained_on(pictures: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(pictures, folder)
    images = ImageSet.open(folder)
    hold_out = [images.records[index].name for index in split(images, digests_of(images), 0.25, 0, "train")[1]]
    for number, name in enumerate(hold_out):
        shutil.copy(folder / name, folder / "red" / f"copy {number}.png")
    images = ImageSet.open(folder)
    digests = digests_of(images)
    training, now_held = split(images, digests, 0.25, 0, "train")
    assert not {digests[index] for index in training} & {digests[index] for index in now_held}
    assert len(training) + len(now_held) < len(images)
    for name in ("blue", "red"):
        (tmp_path / "equal" / name).mkdir(parents=True)
        for number in range(3):
            shutil.copy(pictures / "blue" / "0.png", tmp_path / "equal" / name / f"{number}.png")
    with pytest.raises(UsageError, match="the pictures of the class 'blue' are equal"):
        train(str(tmp_path / "equal"), SMALL, tmp_path / "model")


def test_tar_shards_are_trained_on_as_folders_are(pictures: Path, tmp_path: Path) -> None:
    import tarfile

    images = ImageSet.open(pictures)
    (tmp_path / "shards").mkdir()
    for shard in range(4):
        with tarfile.open(tmp_path / "shards" / f"train-{shard}.tar", "w") as tar:
            for index in range(shard, len(images), 4):
                record = images.records[index]
                label = tmp_path / "label"
                label.write_text(str(record.folder))
                tar.add(pictures / record.name, f"{index:04d}.png")
                tar.add(label, f"{index:04d}.cls")
    model = train(str(tmp_path / "shards" / "train-{0..3}.tar"), replace(SMALL, epochs=1), tmp_path / "model")
    record = Model.open(model).record
    assert [label.folder for label in record.classes] == ["blue", "green", "red"]
    assert record.training is not None and record.training["training_images"] == 27
    assert len((model / "held_out.txt").read_text().splitlines()) == 9


def test_a_batch_never_holds_a_held_out_picture(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    plain = Trainer.update

    def spy(self: Trainer, forward: object, parts: list[Batch]) -> None:
        seen.extend(image.numpy().tobytes() for batch in parts for image in batch.pixels)
        plain(self, forward, parts)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "update", spy)
    model = train(str(pictures), SMALL, tmp_path / "model")
    images, preprocessing = ImageSet.open(pictures), Model.open(model).record.preprocessing
    hold_out = set((model / "held_out.txt").read_text().split())
    pixels = {record.name: preprocessing.apply(images.read(i)).tobytes() for i, record in enumerate(images.records)}
    assert len(seen) == 2 * 24
    assert set(seen) <= {value for name, value in pixels.items() if name not in hold_out}


def test_it_learns(pictures: Path, tmp_path: Path) -> None:
    options = replace(SMALL, epochs=12, augmentation=Augmentation(crop_padding=0), drop_path=0.0, ema=0.5)
    record = Model.open(train(str(pictures), options, tmp_path / "model", test=None)).record
    assert record.accuracy is not None and record.accuracy["held_out"]["top1_percent"] >= 80


KILLED = """
import os, signal, sys
from msgspec.structs import replace
from pathlib import Path
from tests.training.test_train import SMALL, Trainer, train

plain = Trainer.update

def update(self, *arguments):
    plain(self, *arguments)
    if self.step == 8:  # in the middle of an epoch, before its checkpoint
        os.kill(os.getpid(), signal.SIGKILL)

Trainer.update = update
train(sys.argv[1], replace(SMALL, epochs=4, checkpoint_seconds=0.0), Path(sys.argv[2]))
"""


def test_killed_and_resumed_it_ends_with_the_same_weights(pictures: Path, tmp_path: Path) -> None:
    options, out = replace(SMALL, epochs=4), tmp_path / "killed"
    whole = train(str(pictures), options, tmp_path / "whole")
    child = subprocess.run([sys.executable, "-c", KILLED, pictures, out], cwd=Path(__file__).parents[2], check=False)
    assert child.returncode == -signal.SIGKILL
    assert not out.exists()
    assert _step(tmp_path / "killed.run" / CHECKPOINT) == 7
    assert weights(train(str(pictures), options, out, resume=True)) == weights(whole)
    assert _untimed(out) == _untimed(whole)


def _step(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["step"])


def _untimed(model: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "elapsed_s"} for row in rows]


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 2), (signal.SIGTERM, 3)])
def test_a_signal_leaves_a_checkpoint(
    number: signal.Signals, step: int, pictures: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trainer.update

    def interrupted(self: Trainer, *arguments: object) -> None:
        plain(self, *arguments)  # type: ignore[arg-type]
        if self.step == step:  # 3 is the last of an epoch, before its evaluation
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        with pytest.raises(Interrupted, match="run the same command with --resume") as e:
            train(str(pictures), SMALL, tmp_path / "model")
    assert e.value.exit_code == 128 + number
    assert not (tmp_path / "model").exists()
    resumed = train(str(pictures), SMALL, tmp_path / "model", resume=True)
    assert weights(resumed) == weights(trained)
    assert _untimed(resumed) == _untimed(trained)


def test_a_stop_is_answered_while_pictures_are_evaluated(
    pictures: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the evaluation's end."""
    passes: list[int] = []

    def stopping(*arguments: object) -> object:
        passes.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments)  # type: ignore[arg-type]

    plain = evaluate_module.model_input
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "BATCH", 2)
        patch.setattr(evaluate_module, "model_input", stopping)
        with pytest.raises(Interrupted, match="at step 3 of 6"):
            train(str(pictures), SMALL, tmp_path / "model")
    assert len(passes) == 1
    assert weights(train(str(pictures), SMALL, tmp_path / "model", resume=True)) == weights(trained)


def test_a_stop_after_the_last_step_says_how_to_go_on(
    pictures: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitedge.training.train.write_trained", stopped)
        with pytest.raises(Interrupted, match="run the same command with --resume"):
            train(str(pictures), SMALL, tmp_path / "model")
    assert weights(train(str(pictures), SMALL, tmp_path / "model", resume=True)) == weights(trained)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(SMALL, checkpoint_seconds=0.0)
    plain = Trainer.update

    def broken(self: Trainer, forward: object, parts: list[Batch]) -> None:
        if self.step == 4:
            forward = lambda x: (self.model(x) * float("nan"), None, None)  # noqa: E731
        plain(self, forward, parts)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "update", broken)
    with pytest.raises(InvalidResultError, match=r"the loss is nan .* at step 4; the last good checkpoint is") as e:
        train(str(pictures), options, tmp_path / "model")
    assert e.value.exit_code == 7
    state = torch.load(tmp_path / "model.run" / CHECKPOINT, weights_only=True)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["student"].values())
    assert not (tmp_path / "model").exists()


def test_files_are_read_as_memory_is(pictures: Path, tmp_path: Path, trained: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(data_module, "MEMORY_BYTES", 0)
    assert weights(train(str(pictures), SMALL, tmp_path / "model")) == weights(trained)


def test_an_evaluation_split_is_evaluated_once_and_may_not_be_training_data(pictures: Path, tmp_path: Path) -> None:
    test = tmp_path / "test"
    for name in ("blue", "green", "red"):
        (test / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), name).save(test / name / "one.png")
    options = replace(SMALL, epochs=1)
    record = Model.open(train(str(pictures), options, tmp_path / "model", test=str(test))).record
    assert record.accuracy is not None and record.accuracy["test"]["images"] == 3
    (test / "red" / "two.png").write_bytes((pictures / "red" / "0.png").read_bytes())
    with pytest.raises(UsageError, match=r"1 pictures of .* are training data too; the first is red/two.png"):
        train(str(pictures), options, tmp_path / "other", test=str(test))


def test_outputs_and_checkpoints_are_never_overwritten_unasked(pictures: Path, tmp_path: Path, trained: Path) -> None:
    with pytest.raises(UsageError, match="already exists"):
        train(str(pictures), SMALL, trained)
    run = tmp_path / "model.run"
    with pytest.raises(UsageError, match="there is no checkpoint"):
        train(str(pictures), SMALL, tmp_path / "model", resume=True)
    run.mkdir()
    (run / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(UsageError, match="add --resume to go on, or --overwrite to start over"):
        train(str(pictures), SMALL, tmp_path / "model")
    with pytest.raises(ModelError, match="can't be read"):
        train(str(pictures), SMALL, tmp_path / "model", resume=True)


def test_another_run_is_not_resumed(pictures: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "model.run"
    run.mkdir()
    (run / CHECKPOINT).write_bytes((trained.parent / "model.run" / CHECKPOINT).read_bytes())
    with pytest.raises(UsageError, match=r"written with lr 0.001, and this run has 0.01"):
        train(str(pictures), replace(SMALL, lr=0.01), tmp_path / "model", resume=True)


def test_a_run_with_another_hold_out_picture_is_not_resumed(pictures: Path, trained: Path, tmp_path: Path) -> None:
    """They choose the epoch whose weights are published."""
    earlier, run = trained.parent / "model.run", tmp_path / "model.run"
    changed = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    run.mkdir()
    (run / CHECKPOINT).write_bytes((earlier / CHECKPOINT).read_bytes())
    path = changed / (earlier / HELD_OUT).read_text().splitlines()[0]
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UsageError, match="written with data"):
        train(str(changed), SMALL, tmp_path / "model", resume=True)


def test_bad_data_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    one = tmp_path / "one"
    (one / "cat").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8)).save(one / "cat" / f"{number}.png")
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (8, 8)).save(flat / "0.png")
    for folder in (tmp_path / "none", empty, one, flat):
        with pytest.raises(UsageError, match="a data folder has one sub-folder a class"):
            train(str(folder), SMALL, tmp_path / "model")
    (one / "dog").mkdir()
    Image.new("RGB", (8, 8)).save(one / "dog" / "0.png")
    with pytest.raises(UsageError, match="no model of the zoo"):
        train(str(one), replace(SMALL, model="vit_edge_conv_33"), tmp_path / "model")
    with pytest.raises(UsageError, match="the class 'dog' has one picture"):
        train(str(one), SMALL, tmp_path / "model")
    with pytest.raises(UsageError, match="the nearest is 'adamw'"):
        replace(SMALL, optimizer="adam")  # type: ignore[arg-type]


def test_broken_pictures_are_named_and_few_may_be_broken(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(pictures, folder)
    (folder / "red" / "11.png").write_bytes(b"\x89PNG broken")
    monkeypatch.setattr(data_module, "UNREADABLE_LIMIT", 0.05)
    images = ImageSet.open(folder)
    preprocessing = data_module.Preprocessing(size=(8, 8), resize="squash")
    kept = data_module.decode(images, range(36), preprocessing, workers=1, action="train")
    assert isinstance(kept, Pixels) and len(kept) == 35
    assert "red/11.png" not in kept.names
    assert "left out: red/11.png" in capsys.readouterr().err
    monkeypatch.setattr(data_module, "UNREADABLE_LIMIT", 0.01)
    with pytest.raises(ImageError, match="1 of 36 pictures can't be read"):
        data_module.decode(images, range(36), preprocessing, workers=1, action="train")


def test_the_command(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    options = ["--epochs", 1, "--batch-size", 8, "--image-size", 8, "--threads", 1, "--optimizer", "adamw"]
    done = vitedge("train", pictures, "--model", "vit_edge_conv_32", "--out", out, *options)
    assert (done.code, done.out.strip()) == (0, str(out))
    record = Model.open(out).record
    assert record.training is not None and record.training["options"]["optimizer"] == "adamw"
    _, reason, hint = fails(2, "train", pictures, "--model", "vit_edge_conv_32", "--out", out)
    assert (reason, hint) == (f"{out} already exists", "name another --out, or add --overwrite")
    (tmp_path / "empty").mkdir()
    _, _, hint = fails(2, "train", tmp_path / "empty", "--model", "vit_edge_conv_32", "--out", tmp_path / "other")
    assert "a data folder has one sub-folder a class" in hint
