"""Training: from class folders and options to a model folder.

While it runs, ``<out>.run/`` beside the destination holds ``checkpoint.pt``, ``metrics.jsonl``, ``curve.png`` and
``held_out.txt``; when it's done, the model folder is written at once.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from vitedge.core.files import locked, refuse_existing, write_atomic
from vitedge.data.images import ImageSet
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import signal_of
from vitedge.formats.model_folder import MODEL_FOLDER
from vitedge.training.advice import advice, sentence, with_interval
from vitedge.training.checkpoint import prepare_run
from vitedge.training.data import TrainingData, decode, digests_of, open_data, open_test, split
from vitedge.training.distill import Teacher, TeacherOutputs, student_views, view_key
from vitedge.training.engine import Processes, processes
from vitedge.training.evaluate import evaluate, on_device, shipped_model
from vitedge.training.initial import Start, starting_point
from vitedge.training.options import Distillation, TrainOptions
from vitedge.training.probe import with_fitted_heads
from vitedge.training.publish import write_trained
from vitedge.training.trainer import HELD_OUT, Trainer

__all__ = ["Distillation", "TrainOptions", "train"]


def train(
    data: str | ImageSet,
    options: TrainOptions,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    test: str | None = None,
    command: str = "",
) -> Path:
    """Train a ViT on class folders and write a model folder.

    Under ``torchrun`` every process calls this with the same arguments; the first one writes.

    Args:
        data: class folders, an archive of them, or tar shards; or such a set, opened.
        options: what to train and how.
        out: the model folder to write; ``<out>.run`` beside it holds the checkpoint.
        resume: go on from the checkpoint of a run with the same options and data.
        overwrite: permit replacing ``out`` and starting over in ``<out>.run``.
        test: class folders that are evaluated once, when training is over; they choose nothing.
        command: how the user asked, for the record.

    Raises:
        UsageError: no data folder, one class, an existing output, or a resume with other options or data.
        ModelError: weights to start from, or a teacher, that can't be used.
        InvalidResultError: the loss or a gradient stopped being finite; the last good checkpoint is kept.
        Interrupted: SIGINT or SIGTERM; a checkpoint was written.
    """
    out = Path(out)
    run = out.parent / f"{out.name}.run"
    action = f"train {options.name} on {data.source if isinstance(data, ImageSet) else data}"
    with processes(options.device, action) as group:
        group.on_first(lambda: refuse_existing(out, MODEL_FOLDER, overwrite=overwrite, action=action))
        images = data if isinstance(data, ImageSet) else open_data(data, action)
        start = starting_point(options, images.classes, action)
        if options.threads:
            torch.set_num_threads(options.threads)
        how, teacher = options.distillation, None
        if how is not None:
            teacher = Teacher.open(how, images.classes, options.threads, action)
        digests = digests_of(images)
        test_images = None if test is None else open_test(test, images, digests, action)
        with locked(run, action) if group.first else nullcontext():
            group.on_first(lambda: prepare_run(run, resume=resume, overwrite=overwrite, action=action))
            trainer = _trainer(start, options, images, digests, teacher, run, group, action, resume=resume)
            if resume:
                trainer.resume()
            trainer.fit()
            try:
                accuracy = _accuracy(trainer, test_images)
                if group.first:
                    write_trained(out, trainer, images, accuracy, command=command, overwrite=overwrite)
            except KeyboardInterrupt as stop:
                raise trainer.interrupted(signal_of(stop)) from stop
            group.on_first(lambda: None)  # no process ends before it's written
    return out


def _trainer(
    start: Start,
    options: TrainOptions,
    images: ImageSet,
    digests: list[str],
    teacher: Teacher | None,
    run: Path,
    group: Processes,
    action: str,
    *,
    resume: bool,
) -> Trainer:
    """Split and decode the data, and set up step 0; don't fit a new head where a checkpoint follows."""
    training, hold_out = split(images, digests, options.holdout, options.seed, action)
    if group.first:
        names = "".join(f"{images.records[index].name}\n" for index in hold_out)
        write_atomic(run / HELD_OUT, names.encode(errors="surrogateescape"), action)
    dropped = len(images) - len(training) - len(hold_out)
    group.log(
        f"reading {len(images)} pictures of {len(images.classes)} classes, {len(hold_out)} of them held out"
        + (f"; {dropped} left out that equal held-out ones" if dropped else "")
    )
    geometry = Preprocessing(size=start.config.image_size, resize=options.resize, interpolation="bilinear")
    train_set = decode(images, training, geometry, workers=options.workers, action=action)
    held_set = decode(images, hold_out, geometry, workers=options.workers, action=action)
    if start.preprocessing is None:
        mean, std = train_set.colour()
        contract = replace(geometry, mean=mean, std=std)
    else:
        theirs = start.preprocessing
        contract = replace(geometry, rescale=theirs.rescale, mean=theirs.mean, std=theirs.std)
    of_each = (tuple(digests[index] for index in each.indices) for each in (train_set, held_set))
    dataset = TrainingData(train_set, held_set, contract, *of_each)
    if start.needs_heads and options.new_head == "fitted" and not resume:
        start = with_fitted_heads(start, options, dataset, group, action)
    outputs = None if teacher is None else _teacher_outputs(teacher, options, dataset, run, group, action)
    return Trainer(start, options, dataset, run, group, action, outputs)


def _teacher_outputs(
    teacher: Teacher, options: TrainOptions, data: TrainingData, run: Path, group: Processes, action: str
) -> TeacherOutputs:
    """Return the teacher's outputs for the training pictures."""
    how = options.distillation
    assert how is not None
    return TeacherOutputs(
        teacher,
        how,
        data.training,
        data.digests,
        views=student_views(data.training, options.augmentation, options.seed),
        key=view_key(options.augmentation, data.preprocessing.size, how, options.seed, options.resize),
        folder=run / "teacher" if how.cache is None else Path(how.cache),
        group=group,
        action=action,
    )


def _accuracy(trainer: Trainer, test_images: ImageSet | None) -> dict[str, Any]:
    """Evaluate the shipped weights on the hold-out pictures and those of the test split."""
    data, group, options = trainer.data, trainer.group, trainer.options
    model = on_device(shipped_model(trainer.config, trainer.shipped()), group.device)
    accuracy: dict[str, Any] = {
        "held_out": with_interval(evaluate(model, data.hold_out, data.preprocessing, group))
        | {"data": "a part of the training data that chose the epoch"}
    }
    if test_images is not None:
        every = range(len(test_images))
        test_set = decode(test_images, every, data.preprocessing, workers=options.workers, action=trainer.action)
        accuracy["test"] = with_interval(evaluate(model, test_set, data.preprocessing, group)) | {
            "data": "evaluated once, after training"
        }
    for name, figure in accuracy.items():
        group.log(f"{name.replace('_', ' ')}: {sentence(figure)}")
    for line in advice(options, trainer.config, len(data.training), accuracy["held_out"]):
        group.log(f"advice: {line}")
    return accuracy
