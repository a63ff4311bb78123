"""Distillation: what a teacher is asked, what is kept, and what the student makes of it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace as changed
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from msgspec.structs import replace

from tests.cli.command import fails, vitedge
from tests.training.test_fine_tuning import PATCHES
from vitedge.errors import Interrupted, ModelError, UsageError
from vitedge.formats.model_folder import Model, class_table

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")
pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed (vitedge[host])")

from vitedge.training import distill  # noqa: E402
from vitedge.training.augment import Augmentation, Mix  # noqa: E402
from vitedge.training.checkpoint import CHECKPOINT  # noqa: E402
from vitedge.training.data import Batch  # noqa: E402
from vitedge.training.distill import Student, Teacher, distillation_loss, resized  # noqa: E402
from vitedge.training.evaluate import normalise, shipped_model  # noqa: E402
from vitedge.training.options import Distillation  # noqa: E402
from vitedge.training.train import train  # noqa: E402
from vitedge.training.trainer import Trainer  # noqa: E402

COLOURS = ("blue", "green", "red")
VARIED = Augmentation(crop_padding=2, rand_augment=5.0, random_erasing=0.5, cutmix=1.0, mix_probability=0.5)


@pytest.fixture(scope="module")
def teacher(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the three colours."""
    return train(str(pictures), replace(PATCHES, epochs=4, ema=0.5), tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Every batch of pictures that a teacher is asked about from now on."""
    action: list[np.ndarray] = []
    plain = Teacher.open.__func__  # type: ignore[attr-defined]

    def spying(cls: type[Teacher], *arguments: object) -> Teacher:
        found = plain(cls, *arguments)

        def predict(pixels: np.ndarray) -> np.ndarray:
            action.append(pixels)
            return found.predict(pixels)

        return changed(found, predict=predict)

    monkeypatch.setattr(Teacher, "open", classmethod(spying))
    return action


def test_the_teacher_gets_what_the_student_gets_once(
    teacher: Path, pictures: Path, tmp_path: Path, questions: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    plain = Trainer.loss

    def spy(self: Trainer, forward: object, batch: Batch, places: torch.Tensor, mix: Mix | None) -> torch.Tensor:
        def watching(x: torch.Tensor) -> object:
            if mix is None:
                contract = self.data.preprocessing
                mean, std = (torch.tensor(value)[:, None, None] for value in (contract.mean, contract.std))
                seen.extend(((x * std + mean) / contract.rescale).permute(0, 2, 3, 1).numpy())
            return forward(x)  # type: ignore[operator]

        return plain(self, watching, batch, places, mix)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "loss", spy)
    how = Distillation(teacher=str(teacher), views=2, cache=str(tmp_path / "answers"))
    options = replace(PATCHES, epochs=4, augmentation=VARIED, distillation=how)
    first = train(str(pictures), options, tmp_path / "first")
    action = np.concatenate(questions)
    assert len(action) == 2 * 27  # each view of each picture once, in four epochs
    assert seen
    for picture in seen:
        assert np.abs(action - picture).reshape(len(action), -1).max(1).min() <= 0.51  # up to rounding to uint8
    questions.clear()
    again = train(str(pictures), options, tmp_path / "again")
    assert not questions  # everything was kept
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    for path in (tmp_path / "answers").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    train(str(pictures), replace(options, epochs=1), tmp_path / "damaged")
    assert len(np.concatenate(questions)) == 27  # asked again
    questions.clear()
    train(str(pictures), replace(options, epochs=1, seed=1), tmp_path / "other")
    assert questions  # other views
    record = Model.open(first).record
    assert record.training is not None
    assert record.training["teacher"] == {"name": "vit_nano_patch4_32", "digest": Model.open(teacher).digest}
    assert str(tmp_path) not in str(record.training["options"])


def test_the_clean_picture_is_asked_about_at_the_teachers_size(
    teacher: Path, pictures: Path, tmp_path: Path, questions: list[np.ndarray]
) -> None:
    options = replace(PATCHES, epochs=2, image_size=(12, 12), distillation=Distillation(teacher=str(teacher), views=0))
    train(str(pictures), options, tmp_path / "model")
    (action,) = questions
    assert action.shape == (27, 8, 8, 3)
    assert len(list((tmp_path / "model.run" / "teacher").iterdir())) == 1


@pytest.mark.parametrize(("lesson", "token"), [("soft", False), ("hard", True), ("feature", False), ("both", True)])
def test_a_student_learns_from_its_teacher(
    teacher: Path, pictures: Path, tmp_path: Path, lesson: Literal["soft", "hard", "feature", "both"], token: bool
) -> None:
    how = Distillation(teacher=str(teacher), lesson=lesson, weight=0.5 if lesson == "feature" else 1.0, views=1)
    options = replace(PATCHES, epochs=6, lr=2e-3, ema=0.5, distillation=how, distillation_token=token)
    record = Model.open(train(str(pictures), options, tmp_path / "model")).record
    assert record.architecture is not None and record.architecture.distillation_token == token
    assert record.accuracy is not None and record.accuracy["held_out"]["top1_percent"] >= 80


def test_classes_are_found_by_their_folders(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    logits = Teacher.open(Distillation(teacher=str(teacher)), COLOURS, 1, "train").predict(pixels)
    turned = Teacher.open(Distillation(teacher=str(teacher)), ("red", "blue"), 1, "train")
    assert turned.classes == 2
    np.testing.assert_array_equal(turned.predict(pixels), logits[:, [2, 0]])
    with pytest.raises(UsageError, match="doesn't know 1 of the classes: grey"):
        Teacher.open(Distillation(teacher=str(teacher)), ("grey", "red"), 1, "train")
    with pytest.raises(UsageError, match="doesn't know 2 of the classes"):
        Teacher.open(Distillation(teacher="embedded"), ("grey", "red"), 1, "train")


def test_features_are_what_the_head_reads(teacher: Path) -> None:
    from safetensors.numpy import load_file

    record = Model.open(teacher).record
    assert record.architecture is not None
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    found = Teacher.open(Distillation(teacher=str(teacher), lesson="feature"), ("any",), 1, "train").predict(pixels)
    model = shipped_model(record.architecture, load_file(teacher / "model.safetensors")).eval()
    with torch.no_grad():
        x = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), record.preprocessing)
        expected = model.heads(x)[2].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert Student(model, 10)(x)[2].shape == (4, 10)
    torch.testing.assert_close(Student(model, expected.shape[1])(x)[2].detach().numpy(), expected)
    both = Teacher.open(Distillation(teacher=str(teacher), lesson="both"), ("red", "blue"), 1, "train").predict(pixels)
    assert both.shape == (4, 2 + expected.shape[1])
    np.testing.assert_array_equal(both[:, 2:], found)


def test_lessons_are_their_formulas() -> None:
    torch.manual_seed(0)
    answers, logits, second = torch.randn(3, 6, 5).unbind(0)
    how = Distillation(teacher="any", temperature=3.0)
    p, q = (answers / 3).softmax(1), (logits / 3).softmax(1)
    torch.testing.assert_close(
        distillation_loss(how, answers, logits, None, None, None), 9 * (p * (p / q).log()).sum(1)
    )
    torch.testing.assert_close(
        distillation_loss(how, answers, answers, None, None, None), torch.zeros(6), atol=1e-5, rtol=0
    )
    hard = replace(how, lesson="hard")
    expected = torch.nn.functional.cross_entropy(second, answers.argmax(1), reduction="none")
    torch.testing.assert_close(
        distillation_loss(hard, answers, logits, second, None, None), expected
    )  # the second head's
    feature = replace(how, lesson="feature")
    torch.testing.assert_close(
        distillation_loss(feature, answers, logits, None, 2 * answers, None), torch.zeros(6), atol=1e-5, rtol=0
    )
    soft = distillation_loss(how, logits, answers, None, None, None)
    turned = distillation_loss(feature, answers, logits, None, second, None)
    both = distillation_loss(replace(how, lesson="both"), torch.cat([logits, answers], 1), answers, None, second, None)
    torch.testing.assert_close(both, soft + turned)
    flipped = distillation_loss(how, answers, answers.flip(0), None, None, Mix(0.0))
    torch.testing.assert_close(flipped, torch.zeros(6), atol=1e-5, rtol=0)  # mixed as the pictures are


def test_views_are_resized_for_the_teacher() -> None:
    pixels = torch.full((2, 6, 8, 3), 90, dtype=torch.uint8)
    assert resized(pixels, (6, 8)).shape == (2, 6, 8, 3)
    larger = resized(pixels, (12, 10))
    assert larger.shape == (2, 12, 10, 3) and (larger == 90).all()


def test_a_teacher_with_answers_that_arent_numbers_is_refused(
    teacher: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Teacher.open.__func__  # type: ignore[attr-defined]
    broken = classmethod(
        lambda cls, *arguments: changed(
            plain(cls, *arguments), predict=lambda pixels: np.full((len(pixels), 3), np.nan)
        )
    )
    monkeypatch.setattr(Teacher, "open", broken)
    with pytest.raises(ModelError, match="NaN or infinite"):
        train(str(pictures), replace(PATCHES, distillation=Distillation(teacher=str(teacher))), tmp_path / "model")


def test_a_signal_while_the_teacher_answers_waits_for_one_batch_not_for_all(
    teacher: Path, pictures: Path, tmp_path: Path, questions: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(PATCHES, epochs=2, augmentation=VARIED, distillation=Distillation(teacher=str(teacher), views=2))
    whole = train(str(pictures), options, tmp_path / "whole")
    questions.clear()
    monkeypatch.setattr(distill, "BATCH", 8)  # 27 pictures are 4 questions
    plain = resized

    def interrupted(pixels: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
        if len(questions) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(pixels, size)

    with monkeypatch.context() as patch:
        patch.setattr(distill, "resized", interrupted)
        with pytest.raises(Interrupted, match="run the same command with --resume"):
            train(str(pictures), options, tmp_path / "model")
    assert len(questions) == 4 + 2
    resumed = train(str(pictures), options, tmp_path / "model", resume=True)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_killed_and_resumed_with_everything_it_ends_with_the_same_weights(
    teacher: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distillation of features, accumulation, class weights, layer decay and a frozen start, stopped in mid-epoch."""
    options = replace(
        PATCHES,
        model=None,
        init_from=str(teacher),
        epochs=3,
        accumulate=2,
        class_weights=1.0,
        layer_decay=0.7,
        freeze=1,
        drop_path=0.2,
        augmentation=VARIED,
        distillation=Distillation(teacher=str(teacher), lesson="feature", views=2),
        checkpoint_seconds=0.0,
    )
    whole = train(str(pictures), options, tmp_path / "whole")
    plain = Trainer.update

    class Killed(BaseException):
        pass

    def killed(self: Trainer, *arguments: object) -> None:
        if self.step == 5:
            raise Killed
        plain(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", killed)
        with pytest.raises(Killed):
            train(str(pictures), options, tmp_path / "killed")
    assert torch.load(tmp_path / "killed.run" / CHECKPOINT, weights_only=True)["step"] == 5
    resumed = train(str(pictures), options, tmp_path / "killed", resume=True)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    other = replace(options, distillation=Distillation(teacher=str(teacher), lesson="feature", views=3))
    with pytest.raises(UsageError, match="written with teacher"):
        train(str(pictures), other, tmp_path / "killed", resume=True, overwrite=True)


def test_the_command_takes_an_onnx_file_as_teacher(teacher: Path, pictures: Path, tmp_path: Path) -> None:
    options = ["--model", "vit_nano_patch4_32", "--epochs", 1, "--batch-size", 8, "--image-size", 8, "--threads", 1]
    taught = ["--teacher", teacher / "model.onnx", "--distill", "feature", "--teacher-views", 1, "--distillation-token"]
    done = vitedge("train", pictures, "--out", tmp_path / "model", *options, *taught)
    assert (done.code, done.out.strip()) == (0, str(tmp_path / "model")), done.err
    record = Model.open(tmp_path / "model").record
    assert record.training is not None and record.training["options"]["distillation"]["lesson"] == "feature"
    arrays = np.load(next((tmp_path / "model.run" / "teacher").iterdir()))
    assert arrays.shape == (33, 96) and arrays.dtype == np.float16  # 36 pictures, one of ten of each class held out
    _, reason, hint = fails(2, "train", pictures, "--out", tmp_path / "other", *options, *taught[:2])
    assert "doesn't know 3 of the classes" in reason and "--distill feature" in hint


def test_columns_prefer_folders_to_names() -> None:
    labels = class_table(["tabby", "n1"], ["n1", "n2"])
    assert distill._columns(labels, ["n2", "n1", "tabby"], "teacher", "train") == [1, 0, 0]
