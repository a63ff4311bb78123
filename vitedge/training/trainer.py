"""The state of a run and its loop.

Everything random is derived from names (seed, "step", 17) and from the pictures' numbers, not from the state of a
generator, so that a run killed at any step and resumed from its last checkpoint ends with the weights of an
uninterrupted one, and one that is spread over processes or accumulated in parts takes the steps of one that isn't.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vitedge.core.files import write_atomic
from vitedge.core.progress import bars
from vitedge.core.randomness import seed_of
from vitedge.core.stopping import postponed
from vitedge.errors import Interrupted, InvalidResultError, UsageError
from vitedge.training import checkpoint
from vitedge.training.augment import Mix, augmented_view, draw_mix
from vitedge.training.checkpoint import CHECKPOINT
from vitedge.training.curve import curve
from vitedge.training.data import Batch, TrainingData
from vitedge.training.distill import Student, TeacherOutputs, distillation_loss
from vitedge.training.engine import Processes, has_bf16
from vitedge.training.evaluate import evaluate, is_better, normalise, on_device
from vitedge.training.initial import Start, small_size
from vitedge.training.optimizer import build_optimizers
from vitedge.training.options import TrainOptions, as_fields
from vitedge.training.randomness import keys_of
from vitedge.training.vit import VisionTransformer, fold_batch_norm
from vitedge.training.whitening import whiten

METRICS, CURVE, HELD_OUT = "metrics.jsonl", "curve.png", "held_out.txt"
CURVE_SECONDS = 30.0  # between drawings; a short epoch takes less time than its picture
#: Options that change nothing about the result, or that digests stand for; a run may be resumed with others.
UNBOUND = {"checkpoint_seconds", "workers", "init_from", "distillation"}


class Trainer:
    """The state of a run (weights, averaged weights, optimisers, step, history) and its loop."""

    def __init__(
        self,
        start: Start,
        options: TrainOptions,
        data: TrainingData,
        run: Path,
        group: Processes,
        action: str,
        teacher_outputs: TeacherOutputs | None = None,
    ) -> None:
        batch_size = options.batch_size or default_batch_size(len(data.training))
        options = replace(options, batch_size=batch_size)
        self.start, self.config, self.options, self.data = start, start.config, options, data
        self.run, self.group, self.action, self.teacher_outputs = run, group, action, teacher_outputs
        self.batch_size = min(batch_size, len(data.training))
        self.epoch_steps = len(data.training) // self.batch_size
        self.total_steps = options.epochs * self.epoch_steps
        self.small_steps = round(options.small_first * self.total_steps)
        self.small_size = small_size(self.config, action) if self.small_steps else None
        parts = parts_of_batch(self.batch_size, group.count * options.accumulate, action)
        self.parts = parts[group.rank :: group.count]  # this process's places in every batch
        self.bf16 = options.precision == "bf16" or (options.precision == "auto" and has_bf16(group.device))
        self.model = start.model(options)
        if options.whiten:
            whiten(self.model, data.training, data.preprocessing)
        on_device(self.model, group.device)
        self.student = Student(self.model, teacher_outputs.feature_size if teacher_outputs is not None else 0).to(
            group.device
        )
        self.averaged = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.best: dict[str, float] = {"epoch": 0, "top1_percent": -1.0, "loss": math.inf}
        self.best_weights = self.averaged
        self.optimizers = build_optimizers(
            self.model,
            options.optimizer,
            lr=options.lr,
            weight_decay=options.weight_decay,
            layer_decay=options.layer_decay,
            momentum=options.muon_momentum,
            norm_rates=(options.norm_scale_rate, options.norm_bias_rate),
            extra=() if self.student.project is None else self.student.project.parameters(),
        )
        self.class_weights = weights_of_classes(data.training.labels, self.config.num_classes, options.class_weights)
        self.step = 0
        self.loss_sum = 0.0  # of the steps of this epoch
        self.history: list[dict[str, float]] = []
        self.elapsed_s = 0.0
        self.drawn_s = 0.0
        self.stopped: list[int] = []  # signals that came
        if teacher_outputs is not None:
            teacher_outputs.after_batch = self.stop_if_asked

    def fit(self) -> None:
        """Train from the present step to the last.

        Raises:
            Interrupted: SIGINT or SIGTERM; a checkpoint was written.
            InvalidResultError: as :meth:`update`.
        """
        student = cast(nn.Module, torch.compile(self.student)) if self.options.compile else self.student
        forward = self.group.data_parallel(student)
        saved = time.monotonic()
        started = saved - self.elapsed_s
        with postponed() as self.stopped, bars(quiet=not self.group.first) as show:
            while len(self.history) < self.options.epochs:
                waiting: list[Batch] = []
                for batch in self.data.training.batches(self.plan(len(self.history))):
                    waiting.append(batch)
                    if len(waiting) < len(self.parts):
                        continue
                    self.update(forward, waiting)
                    waiting = []
                    show("training", self.step, self.total_steps)
                    self.elapsed_s = time.monotonic() - started
                    self.stop_if_asked()
                    if time.monotonic() - saved > self.options.checkpoint_seconds:
                        self.save()
                        saved = time.monotonic()
                self.finish_epoch()
            self.stop_if_asked()
            self.save()

    def save(self) -> None:
        """Write the checkpoint, in the first process."""
        if not self.group.first:
            return
        state = {
            "identity": self.identity(),
            "step": self.step,
            "loss_sum": self.loss_sum,
            "elapsed_s": self.elapsed_s,
            "history": self.history,
            "best": self.best,
            "best_weights": self.best_weights,
            "student": self.student.state_dict(),
            "averaged": self.averaged,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        checkpoint.save(self.run, state, self.action)

    def resume(self) -> None:
        """Resume from the checkpoint; errors as :func:`vitedge.training.checkpoint.load`."""
        state = checkpoint.load(self.run, self.identity(), self.group, self.action)
        self.step, self.loss_sum, self.elapsed_s = state["step"], state["loss_sum"], state["elapsed_s"]
        self.history, self.best = state["history"], state["best"]
        self.averaged, self.best_weights = state["averaged"], state["best_weights"]
        self.student.load_state_dict(state["student"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.group.log(f"resumed at step {self.step} of {self.total_steps}")

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a run to be resumed: options, data, initial weights, teacher, torch."""
        options = {name: value for name, value in as_fields(self.options).items() if name not in UNBOUND}
        how, teacher = self.options.distillation, None
        if how is not None and self.teacher_outputs is not None:
            teacher = [self.teacher_outputs.teacher.digest, how.lesson, how.weight, how.temperature, how.views]
        return {
            **options,
            "data": self.data.fingerprint,
            "initial weights": self.start.digest,
            "teacher": teacher,
            "torch": str(torch.__version__),
        }

    def stop_if_asked(self) -> None:
        """End the run at this step if any of its processes received a signal.

        Raises:
            Interrupted: one came; a checkpoint was written.
        """
        if not any(self.group.all_reduce([len(self.stopped)])):
            return
        self.save()
        raise self.group.fail(self.interrupted(self.stopped[0] if self.stopped else signal.SIGTERM))

    def interrupted(self, number: int) -> Interrupted:
        """Return the stop to raise where there's a checkpoint."""
        return Interrupted(
            self.action,
            f"stopped by {signal.Signals(number).name} at step {self.step} of {self.total_steps}; "
            f"the checkpoint is {self.run / CHECKPOINT}",
            "run the same command with --resume",
            signal_number=number,
        )

    def order(self, epoch: int) -> Tensor:
        """Return an epoch's indices of training pictures, without the rest that doesn't fill a batch."""
        generator = torch.Generator().manual_seed(seed_of(self.options.seed, "epoch", epoch))
        return torch.randperm(len(self.data.training), generator=generator)[: self.epoch_steps * self.batch_size]

    def plan(self, epoch: int) -> Iterator[Tensor]:
        """Yield indices of this process's part of each batch, from the present step to the epoch's last one."""
        order = self.order(epoch)
        for step in range(self.step - epoch * self.epoch_steps, self.epoch_steps):
            for places in self.parts:
                yield order[step * self.batch_size + places]

    def learning_rate(self) -> float:
        """Return the present step's learning rate: linear warm-up, then cosine or linear to 0."""
        warmup = max(1, round(self.options.warmup * self.total_steps))
        if self.step < warmup:
            return self.options.lr * (self.step + 1) / warmup
        remaining = 1 - (self.step - warmup) / max(1, self.total_steps - warmup)
        if self.options.schedule == "linear":
            return self.options.lr * remaining
        return self.options.lr * (0.5 - 0.5 * math.cos(math.pi * remaining))

    def update(self, forward: nn.Module, parts: Sequence[Batch]) -> None:
        """Take one step on this process's parts of a batch.

        Raises:
            InvalidResultError: the loss or a gradient isn't finite; the weights are left as they were.
        """
        torch.manual_seed(seed_of(self.options.seed, "step", self.step))
        mix = draw_mix(self.options.augmentation, self.config.image_size)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        value = 0.0
        for number, (batch, places) in enumerate(zip(parts, self.parts, strict=True), 1):
            with self.group.no_sync(forward) if number < len(parts) else contextlib.nullcontext():
                loss = self.loss(forward, batch, places, mix)
                (loss * self.group.count).backward()  # type: ignore[no-untyped-call]  # gradients will be averaged
            value += loss.item()
        (value,) = self.group.all_reduce([value])
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.options.clip or math.inf).item()
        if not math.isfinite(value) or not math.isfinite(norm):
            raise self.group.fail(self.not_finite(value, norm))
        for optimizer in self.optimizers:
            for settings in optimizer.param_groups:
                settings["lr"] = self.learning_rate() * settings["lr_scale"]
            optimizer.step()
        self.step += 1
        self.loss_sum += value
        self.average()

    def loss(self, forward: nn.Module, batch: Batch, places: Tensor, mix: Mix | None) -> Tensor:
        """Return the contribution of some pictures, at their places in the batch, to the whole batch's mean loss."""
        how, device, epoch = self.options.augmentation, self.group.device, len(self.history)
        view = epoch if self.teacher_outputs is None else self.teacher_outputs.student_view(epoch)
        pixels, indices = batch.pixels.to(device), batch.indices.to(device)
        x = normalise(augmented_view(pixels, how, self.options.seed, view, indices), self.data.preprocessing)
        targets = functional.one_hot(batch.labels.to(device), self.config.num_classes).float()
        if mix is not None:
            x, targets = mix.images(x), mix.targets(targets)
        if self.step < self.small_steps:
            x = functional.interpolate(x, self.small_size, mode="bilinear", antialias=True)
        x = x.contiguous(memory_format=torch.channels_last)
        self.model.draw_paths(keys_of(seed_of(self.options.seed, "paths", self.step), places).to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            logits, second, features = forward(x)
        logits, second, features = (None if value is None else value.float() for value in (logits, second, features))
        if second is not None and (self.teacher_outputs is None or self.teacher_outputs.how.lesson == "feature"):
            logits, second = (logits + second) / 2, None  # no lesson is for the second head only
        weight = None if self.class_weights is None else self.class_weights.to(device)
        losses = functional.cross_entropy(
            logits, targets, weight=weight, label_smoothing=self.options.label_smoothing, reduction="none"
        )
        if self.teacher_outputs is not None:
            outputs = self.teacher_outputs.of(epoch, batch.indices).to(device)
            weight_of_teacher = self.teacher_outputs.how.weight
            distilled = distillation_loss(self.teacher_outputs.how, outputs, logits, second, features, mix)
            losses = (1 - weight_of_teacher) * losses + weight_of_teacher * distilled
        return losses.sum() / self.batch_size

    def not_finite(self, value: float, norm: float) -> InvalidResultError:
        """Return the error for a loss or a gradient that is no longer finite."""
        kept = self.run / CHECKPOINT
        return InvalidResultError(
            self.action,
            f"the loss is {value} and the gradient's norm {norm} at step {self.step}; "
            + (f"the last good checkpoint is {kept}" if kept.exists() else "there was no checkpoint yet"),
            "use a smaller --lr, or --clip 1",
        )

    @torch.no_grad()
    def average(self) -> None:
        """Average weights and running statistics exponentially; over few steps at first, so that it starts warm."""
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)

    def finish_epoch(self) -> None:
        """Evaluate the averaged weights on hold-out pictures, keep the best, write metrics, and at times the curve."""
        model = on_device(VisionTransformer(self.config, folded=self.start.folded), self.group.device)
        model.load_state_dict(self.averaged)
        stop = self.stop_if_asked if self.group.count == 1 else lambda: None  # several processes may have other batches
        figure = evaluate(model, self.data.hold_out, self.data.preprocessing, self.group, after_batch=stop)
        epoch = len(self.history) + 1
        if is_better(figure, self.best):
            self.best = {"epoch": epoch, "top1_percent": figure["top1_percent"], "loss": figure["loss"]}
            self.best_weights = {name: value.clone() for name, value in self.averaged.items()}
        row = {
            "epoch": epoch,
            "step": self.step,
            "lr": self.learning_rate(),
            "train_loss": self.loss_sum / self.epoch_steps,
            "held_out_loss": figure["loss"],
            "held_out_top1_percent": figure["top1_percent"],
            "elapsed_s": round(self.elapsed_s, 1),
        }
        self.history.append(row)
        self.loss_sum = 0.0
        if self.group.first:
            lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
            write_atomic(self.run / METRICS, lines.encode(), self.action)
            if epoch == self.options.epochs or self.elapsed_s - self.drawn_s > CURVE_SECONDS:
                write_atomic(self.run / CURVE, curve(self.history), self.action)
                self.drawn_s = self.elapsed_s
        self.group.log(
            f"epoch {epoch}/{self.options.epochs}  train loss {row['train_loss']:.3f}  "
            f"held out {figure['top1_percent']:.2f} %  {self.elapsed_s:.0f} s"
        )

    def shipped(self) -> dict[str, NDArray[np.float16]]:
        """Return the best weights as they're shipped: BatchNorm folded, float16.

        Raises:
            InvalidResultError: a weight isn't finite in float16.
        """
        with np.errstate(over="ignore"):
            arrays = {name: value.astype(np.float16) for name, value in fold_batch_norm(self.best_weights).items()}
        for name, value in arrays.items():
            if not np.isfinite(value).all():
                error = InvalidResultError(self.action, f"'{name}' isn't finite in float16", "use a smaller --lr")
                raise self.group.fail(error)
        return arrays

    def logs(self) -> dict[str, bytes]:
        """Return the run folder's logs by file name."""
        return {name: (self.run / name).read_bytes() for name in (METRICS, CURVE, HELD_OUT)}


def default_batch_size(pictures: int) -> int:
    """Return a power of two from 8 to 256 pictures, so that an epoch has ten steps or more where possible."""
    return min(256, max(8, 1 << max(0, (pictures // 10).bit_length() - 1)))


def parts_of_batch(batch_size: int, count: int, action: str) -> list[Tensor]:
    """Cut places 0 … ``batch_size`` - 1 into parts of about equal length, int64, each sorted.

    Place ``i`` and ``batch_size`` - 1 - ``i``, which mixing pairs, are in one part.

    Raises:
        UsageError: too few for so many parts.
    """
    front = torch.arange((batch_size + 1) // 2)
    if len(front) < count:
        raise UsageError(
            action,
            f"a batch of {batch_size} pictures can't be cut into {count} parts",
            "use a larger --batch-size, less --accumulate or fewer processes",
        )
    return [torch.unique(torch.cat([part, batch_size - 1 - part])) for part in front.tensor_split(count)]


def weights_of_classes(labels: Tensor, classes: int, power: float) -> Tensor | None:
    """Return float32 [classes], proportional to frequency^-power, with mean 1 over the pictures; None for power 0."""
    if not power:
        return None
    counts = labels.bincount(minlength=classes).double()
    weights = counts.clamp_min(1) ** -power
    return (weights * counts.sum() / (weights * counts).sum()).float()
