"""Fine-tuning: the shrunk model learns from the original model, on pictures with or without labels."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from msgspec.structs import replace

from vitedge.data.images import ImageSet
from vitedge.errors import ImageError, Interrupted, ModelError, UsageError, signal_of
from vitedge.exporting.hold_out import float_logits
from vitedge.formats.model_folder import MODEL_WEIGHTS, ModelRecord, class_table, write_model
from vitedge.graph.surgery import load, to_bytes
from vitedge.shrinking.files import model_files

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from vitedge.shrinking.subject import Subject

WITHOUT_LABELS, WITH_LABELS = 1.0, 0.5  # weight of the teacher in the loss
HOLDOUT = 0.05  # of the pictures, by which the best pass is chosen
LESSON: Literal["soft", "both"] = "soft"  # "both": features, too
AT_ONCE = 64  # pictures that the original model labels in one batch


def finetuned(whole: Subject, student: Subject, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Fine-tune the shrunk graph with the original model as teacher; its widths don't change.

    Where the student takes smaller pictures the teacher still looks at whole ones, each at its own size: made larger
    again, what the student sees would teach less.

    Args:
        whole: the whole model, its plan and pictures.
        student: the model that was shrunk: the same, or at a smaller input.
        graph: the shrunk one.

    Raises:
        ModelError: it isn't a plain ViT, which alone the trainer knows.
        UsageError: pictures that can't be trained on.
        Interrupted: a signal; nothing was written.
    """
    from vitedge.training.options import Distillation, TrainOptions
    from vitedge.training.train import train

    plan, record = whole.plan, whole.plan.deployed.model.record
    folders = tuple(label.folder or label.name for label in record.classes)
    named = replace(record, classes=class_table([label.name for label in record.classes], folders))
    shown = student.plan.deployed.model.record
    files, architecture = model_files(graph, shown)
    if MODEL_WEIGHTS not in files:
        reason = "the trainer can only train plain ViTs, and the model isn't one"
        raise ModelError(f"{plan.action} and fine-tune it", reason, "leave out --finetune")
    images = _pictures(whole, folders)
    with tempfile.TemporaryDirectory(prefix="vitedge-finetune-") as folder:
        place = Path(folder)
        narrow = replace(named, architecture=architecture, preprocessing=shown.preprocessing)
        start = write_model(place / "student", narrow, files)
        teacher = write_model(place / "teacher", _without_weights(named), {"model.onnx": to_bytes(whole.inputs.graph)})
        weight = WITHOUT_LABELS if plan.options.labelled is None else WITH_LABELS
        how = Distillation(teacher=str(teacher.path), lesson=LESSON, weight=weight)
        options = TrainOptions(
            init_from=str(start.path),
            epochs=int(plan.options.finetune or 1),
            holdout=HOLDOUT,
            label_smoothing=0.0,
            distillation=how if student.size == whole.size else replace(how, views=0),
        )
        try:
            return load(train(images, options, place / "trained") / "model.onnx")
        except Interrupted as stop:  # what it says of its checkpoint is over with the folder
            signal = signal_of(stop)
            reason = f"received {signal.name} while it was trained; nothing was written"
            raise Interrupted(plan.action, reason, "run the command again", signal_number=signal) from stop


def _without_weights(record: ModelRecord) -> ModelRecord:
    """Return a record for a folder that holds the graph but no weights file."""
    return replace(record, architecture=None, files={})


def _pictures(whole: Subject, folders: tuple[str, ...]) -> ImageSet:
    """Return the pictures to train on, with class folders: their own, or the labels that the original model gives.

    Hold-out pictures of ``--data`` aren't trained on.
    """
    plan = whole.plan
    if plan.options.labelled is not None:
        images = ImageSet.open(plan.options.labelled, action=plan.action)
        images.labels(folders, action=plan.action)
        return _several(changed(images, classes=folders), plan.action)
    assert plan.deployed.images is not None
    images = plan.deployed.images
    held_out = set(whole.hold_out.names) if plan.deployed.held_out is None else set()
    preprocessing, readable, said = plan.deployed.model.record.preprocessing, list[int](), list[int]()
    frames: list[NDArray[np.uint8]] = []
    for index, record in enumerate(images.records):
        whole.progress("label", index + 1, len(images))
        with contextlib.suppress(ImageError):
            if record.name not in held_out:
                frames.append(preprocessing.apply(images.read(index)))
                readable.append(index)
        if frames and (len(frames) == AT_ONCE or index + 1 == len(images)):
            said += float_logits(whole.inputs.graph, np.stack(frames)).argmax(axis=1).tolist()
            frames.clear()
    images = images.subset(readable)
    records = tuple(changed(each, folder=folders[label]) for each, label in zip(images.records, said, strict=True))
    return _several(changed(images, classes=folders, records=records), plan.action)


def _several(images: ImageSet, action: str) -> ImageSet:
    """Leave out classes with a single picture, which couldn't be held out to choose the best epoch."""
    counts: dict[str | None, int] = {}
    for record in images.records:
        counts[record.folder] = counts.get(record.folder, 0) + 1
    kept = [index for index, record in enumerate(images.records) if counts[record.folder] > 1]
    if not kept:
        reason = f"{images.source} has no class with two pictures"
        raise UsageError(
            f"{action} and fine-tune it", reason, "name a folder with two or more pictures in a class: --labelled DIR"
        )
    return images.subset(kept)
