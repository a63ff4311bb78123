"""The checkpoint of a run: everything its next step depends on, in one file that is replaced at once."""

from __future__ import annotations

import io
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vitedge.core.files import resource_errors, write_atomic
from vitedge.errors import ModelError, UsageError

if TYPE_CHECKING:
    from vitedge.training.trainer import Trainer

CHECKPOINT = "checkpoint.pt"
#: Options that change nothing about the result, or that digests stand for; a run may be resumed with others.
UNBOUND = {"checkpoint_seconds", "workers", "init_from", "distillation"}


def prepare_run(run: Path, *, resume: bool, overwrite: bool, asked: str) -> None:
    """An empty run folder, or with ``resume`` the one that holds a checkpoint.

    Raises:
        UsageError: there is no checkpoint to resume, or one that may not be replaced.
    """
    checkpoint = run / CHECKPOINT
    if resume and not checkpoint.is_file():
        raise UsageError(asked, f"there is no checkpoint {checkpoint} to resume", "leave out --resume")
    if not resume and checkpoint.exists():
        if not overwrite:
            raise UsageError(
                asked,
                f"{run} holds the checkpoint of an earlier run",
                "add --resume to go on, or --overwrite to start over",
            )
        shutil.rmtree(run)
    with resource_errors(asked):
        run.mkdir(parents=True, exist_ok=True)


def save(trainer: Trainer) -> None:
    """Write the checkpoint, in the first process."""
    if not trainer.group.first:
        return
    state = {
        "identity": identity(trainer),
        "step": trainer.step,
        "loss_sum": trainer.loss_sum,
        "elapsed_s": trainer.elapsed_s,
        "history": trainer.history,
        "best": trainer.best,
        "best_weights": trainer.best_weights,
        "student": trainer.student.state_dict(),
        "averaged": trainer.averaged,
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(trainer.run / CHECKPOINT, buffer.getvalue(), trainer.asked)


def load(trainer: Trainer) -> None:
    """Go on from the checkpoint, which the first process reads.

    Raises:
        UsageError: it belongs to other options or data.
        ModelError: it can't be read.
    """
    path, asked = trainer.run / CHECKPOINT, trainer.asked
    try:
        data = trainer.group.from_first(path.read_bytes)
        state = torch.load(io.BytesIO(data), map_location=trainer.group.device, weights_only=True)
        theirs, ours = state["identity"], identity(trainer)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise trainer.group.fail(
            ModelError(asked, f"{path} can't be read: {type(error).__name__}: {error}", "start over with --overwrite")
        ) from error
    for name in ours:
        if theirs.get(name) != ours[name]:
            raise trainer.group.fail(
                UsageError(
                    asked,
                    f"the checkpoint was written with {name} {theirs.get(name)}, asked is {ours[name]}",
                    "resume with the same options and data, or start over with --overwrite",
                )
            )
    trainer.step, trainer.loss_sum, trainer.elapsed_s = state["step"], state["loss_sum"], state["elapsed_s"]
    trainer.history, trainer.best = state["history"], state["best"]
    trainer.averaged, trainer.best_weights = state["averaged"], state["best_weights"]
    trainer.student.load_state_dict(state["student"])
    for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    trainer.group.say(f"resumed at step {trainer.step} of {trainer.total_steps}")


def identity(trainer: Trainer) -> dict[str, Any]:
    """What must be equal for a run to be continued: options, data, initial weights, teacher, torch."""
    options = {name: value for name, value in asdict(trainer.options).items() if name not in UNBOUND}
    how, teacher = trainer.options.distillation, None
    if how is not None and trainer.answers is not None:
        teacher = [trainer.answers.teacher.digest, how.lesson, how.weight, how.temperature, how.views]
    return {
        **options,
        "data": trainer.data.fingerprint,
        "initial weights": trainer.start.digest,
        "teacher": teacher,
        "torch": str(torch.__version__),
    }
