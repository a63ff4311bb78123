"""Training: class folders and a configuration go in, a model folder comes out.

Everything random is derived from words (seed, "step", 17), not from the state of a generator, so that a run killed at
any step and resumed from its last checkpoint ends with the weights of an uninterrupted one (CPU, equal threads).

While it runs, ``<out>.run/`` beside the destination holds ``checkpoint.pt``, ``metrics.jsonl``, ``curve.png`` and
``held_out.txt``; when it's done, the model folder is written at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vitedge.architecture import ViTConfig
from vitedge.errors import InterruptedError_, InvalidResultError, ModelError, UsageError, nearest
from vitedge.files import locked, refuse_existing, resource_errors, write_atomic
from vitedge.hardware import processor
from vitedge.images import ImageSet
from vitedge.models.augment import Augmentation, augment, mix
from vitedge.models.data import Files, Pixels, decode, open_data, open_test, seed_of, split
from vitedge.models.evaluate import evaluate, normalise, placed, shipped_model
from vitedge.models.optimizer import build_optimizers
from vitedge.models.publish import curve, write_trained
from vitedge.models.vit import VisionTransformer, fold_batch_norm
from vitedge.models.zoo import zoo_config
from vitedge.preprocessing import Preprocessing
from vitedge.progress import bars

CHECKPOINT, METRICS, CURVE, HELD_OUT = "checkpoint.pt", "metrics.jsonl", "curve.png", "held_out.txt"
CURVE_SECONDS = 30.0  # between drawings; a short epoch takes less time than its picture
UNBOUND = {"checkpoint_seconds", "workers"}  # options that change nothing about the result

OptimizerName = Literal["muon", "adamw"]
Schedule = Literal["cosine", "linear"]
Precision = Literal["auto", "fp32", "bf16"]
Resize = Literal["squash", "shortest", "pad"]


@dataclass(frozen=True)
class TrainOptions:
    """What to train and how. The learning rate rises from 0 over the warm-up, then falls to 0 at the last step."""

    model: str
    epochs: int = 100
    batch_size: int = 256
    lr: float = 2e-3  # at the end of the warm-up
    optimizer: OptimizerName = "muon"
    weight_decay: float = 0.05
    warmup: float = 0.1  # part of all steps
    schedule: Schedule = "cosine"
    label_smoothing: float = 0.1
    drop_path: float = 0.0
    ema: float = 0.999  # decay per step of the averaged weights that are evaluated and shipped
    clip: float = 1.0  # largest norm of all gradients together; 0: no clipping
    augmentation: Augmentation = field(default_factory=Augmentation)
    image_size: tuple[int, int] | None = None  # (height, width); None: the zoo member's
    resize: Resize = "squash"
    holdout: float = 0.1  # part of every class, kept from training, that chooses the best epoch
    seed: int = 0
    threads: int = 0  # 0: all cores
    device: str = "cpu"
    precision: Precision = "auto"  # bf16: autocast; auto: where the device multiplies it natively
    compile: bool = False
    workers: int = 2  # threads that decode pictures, when the data set doesn't fit in memory
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        choices = {"optimizer": OptimizerName, "schedule": Schedule, "precision": Precision, "resize": Resize}
        for name, kind in choices.items():
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise UsageError(
                    f"train with {name} '{value}'",
                    f"there is no such {name}{nearest(str(value), known)}",
                    f"choose from: {', '.join(known)}",
                )


def train(
    data: str,
    options: TrainOptions,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    test: str | None = None,
    command: str = "",
) -> Path:
    """Train a zoo member on class folders and write a model folder.

    Args:
        data: class folders, or an archive of them.
        out: the model folder to write; ``<out>.run`` beside it holds the checkpoint.
        resume: go on from the checkpoint of a run with the same options and data.
        overwrite: permit replacing ``out`` and starting over in ``<out>.run``.
        test: class folders that are evaluated once, when training is over; they choose nothing.
        command: how the user asked, for the record.

    Raises:
        UsageError: no data folder, one class, an existing output, or a resume with other options or data.
        InvalidResultError: the loss or a gradient stopped being finite; the last good checkpoint is kept.
        InterruptedError_: SIGINT or SIGTERM; a checkpoint was written.
    """
    out = Path(out)
    run = out.parent / f"{out.name}.run"
    asked = f"train {options.model} on {data}"
    refuse_existing(out, overwrite=overwrite, asked=asked)
    images = open_data(data, asked)
    config = zoo_config(options.model, num_classes=len(images.classes), image_size=options.image_size)
    test_images = None if test is None else open_test(test, images, asked)
    if options.threads:
        torch.set_num_threads(options.threads)
    with locked(run, asked):
        _prepare_run(run, resume=resume, overwrite=overwrite, asked=asked)
        trainer = _trainer(config, options, images, run, asked)
        if resume:
            trainer.load()
        trainer.fit()

        arrays = trainer.shipped()
        model = placed(shipped_model(config, arrays), trainer.device)
        accuracy: dict[str, Any] = {
            "held_out": evaluate(model, trainer.held_set, trainer.preprocessing, trainer.device)
            | {"data": "a part of the training data that chose the epoch"}
        }
        if test_images is not None:
            every = range(len(test_images))
            test_set = decode(test_images, every, trainer.preprocessing, workers=options.workers, asked=asked)
            accuracy["test"] = evaluate(model, test_set, trainer.preprocessing, trainer.device) | {
                "data": "evaluated once, after training"
            }
        for name, figure in accuracy.items():
            _say(f"{name.replace('_', ' ')}: top-1 {figure['top1_percent']:.2f} % of {figure['images']} pictures")
        return write_trained(out, trainer, arrays, images, accuracy, command=command, overwrite=overwrite)


def _trainer(config: ViTConfig, options: TrainOptions, images: ImageSet, run: Path, asked: str) -> Trainer:
    """Split and decode the data, and set up step 0."""
    device = _device(options.device, asked)
    training, held = split(images, options.holdout, options.seed, asked)
    names = "".join(f"{images.records[index].name}\n" for index in held)
    write_atomic(run / HELD_OUT, names.encode(errors="surrogateescape"), asked)
    _say(f"reading {len(images)} pictures of {len(images.classes)} classes, {len(held)} of them held out")
    geometry = Preprocessing(size=config.image_size, resize=options.resize, interpolation="bilinear")
    train_set = decode(images, training, geometry, workers=options.workers, asked=asked)
    held_set = decode(images, held, geometry, workers=options.workers, asked=asked)
    mean, std = train_set.colour()
    return Trainer(config, options, replace(geometry, mean=mean, std=std), train_set, held_set, run, device, asked)


class Trainer:
    """The state of a run (weights, averaged weights, optimisers, step, history) and its loop."""

    def __init__(
        self,
        config: ViTConfig,
        options: TrainOptions,
        preprocessing: Preprocessing,
        train_set: Pixels | Files,
        held_set: Pixels | Files,
        run: Path,
        device: torch.device,
        asked: str,
    ) -> None:
        self.config, self.options, self.preprocessing = config, options, preprocessing
        self.train_set, self.held_set, self.run, self.device = train_set, held_set, run, device
        self.asked = asked
        self.batch_size = min(options.batch_size, len(train_set))
        self.epoch_steps = len(train_set) // self.batch_size
        self.total_steps = options.epochs * self.epoch_steps
        self.bf16 = options.precision == "bf16" or (options.precision == "auto" and has_bf16(device))
        torch.manual_seed(seed_of(options.seed, "initial weights"))
        self.model = placed(VisionTransformer(config, drop_path=options.drop_path), device)
        self.averaged = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.best = {"epoch": 0, "top1_percent": -1.0}
        self.best_weights = self.averaged
        self.optimizers = build_optimizers(
            self.model, options.optimizer, lr=options.lr, weight_decay=options.weight_decay
        )
        self.step = 0
        self.loss_sum = 0.0  # of the steps of this epoch
        self.history: list[dict[str, float]] = []
        self.elapsed_s = 0.0
        self.drawn_s = 0.0

    def fit(self) -> None:
        """From the present step to the last.

        Raises:
            InterruptedError_: SIGINT or SIGTERM; a checkpoint was written.
            InvalidResultError: as :meth:`update`.
        """
        forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if self.options.compile else self.model
        saved = time.monotonic()
        started = saved - self.elapsed_s
        with stop_signals() as stopped, bars() as show:
            while len(self.history) < self.options.epochs:
                epoch = len(self.history)
                rest = self.order(epoch)[(self.step - epoch * self.epoch_steps) * self.batch_size :]
                for pixels, labels in self.train_set.batches(rest, self.batch_size):
                    self.update(forward, pixels, labels)
                    show("training", self.step, self.total_steps)
                    self.elapsed_s = time.monotonic() - started
                    if stopped:
                        self.save()
                        raise self.interrupted(stopped[0])
                    if time.monotonic() - saved > self.options.checkpoint_seconds:
                        self.save()
                        saved = time.monotonic()
                self.finish_epoch()
            self.save()

    def interrupted(self, number: int) -> InterruptedError_:
        """What is said when a signal stopped the run."""
        return InterruptedError_(
            self.asked,
            f"stopped by {signal.Signals(number).name} at step {self.step} of {self.total_steps}; "
            f"the checkpoint is {self.run / CHECKPOINT}",
            "run the same command with --resume",
            signal_number=number,
        )

    def order(self, epoch: int) -> Tensor:
        """Indices of the training pictures of an epoch; the rest that doesn't fill a batch is left out."""
        generator = torch.Generator().manual_seed(seed_of(self.options.seed, "epoch", epoch))
        return torch.randperm(len(self.train_set), generator=generator)[: self.epoch_steps * self.batch_size]

    def learning_rate(self) -> float:
        """Of the present step: linear warm-up, then cosine or linear to 0."""
        warmup = max(1, round(self.options.warmup * self.total_steps))
        if self.step < warmup:
            return self.options.lr * (self.step + 1) / warmup
        left = 1 - (self.step - warmup) / max(1, self.total_steps - warmup)
        return self.options.lr * (left if self.options.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))

    def update(self, forward: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor) -> None:
        """One step on uint8 [B, h, w, 3] and int64 [B].

        Raises:
            InvalidResultError: the loss or a gradient isn't finite; the weights are left as they were.
        """
        torch.manual_seed(seed_of(self.options.seed, "step", self.step))
        how = self.options.augmentation
        targets = functional.one_hot(labels.to(self.device), self.config.num_classes).float()
        x, targets = mix(normalise(augment(pixels.to(self.device), how), self.preprocessing), targets, how)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = forward(x)
        loss = functional.cross_entropy(logits.float(), targets, label_smoothing=self.options.label_smoothing)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip or math.inf)
        if not math.isfinite(value := loss.item()) or not math.isfinite(norm.item()):
            kept = self.run / CHECKPOINT
            raise InvalidResultError(
                self.asked,
                f"the loss is {value} and the gradient's norm {norm.item()} at step {self.step}; "
                + (f"the last good checkpoint is {kept}" if kept.exists() else "there was no checkpoint yet"),
                "use a smaller --lr, or --clip 1",
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
            optimizer.step()
        self.step += 1
        self.loss_sum += value
        self.average()

    @torch.no_grad()
    def average(self) -> None:
        """Exponential moving average of weights and running statistics; short at first, so that it starts warm."""
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)

    def finish_epoch(self) -> None:
        """Evaluate the averaged weights on the held-out pictures, keep the best, write metrics, at times the curve."""
        model = placed(VisionTransformer(self.config), self.device)
        model.load_state_dict(self.averaged)
        figure = evaluate(model, self.held_set, self.preprocessing, self.device)
        epoch = len(self.history) + 1
        if figure["top1_percent"] >= self.best["top1_percent"]:  # of equals the later one
            self.best = {"epoch": epoch, "top1_percent": figure["top1_percent"]}
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
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        write_atomic(self.run / METRICS, lines.encode(), self.asked)
        if epoch == self.options.epochs or self.elapsed_s - self.drawn_s > CURVE_SECONDS:
            write_atomic(self.run / CURVE, curve(self.history), self.asked)
            self.drawn_s = self.elapsed_s
        _say(
            f"epoch {epoch}/{self.options.epochs}  train loss {row['train_loss']:.3f}  "
            f"held out {figure['top1_percent']:.2f} %  {self.elapsed_s:.0f} s"
        )

    def shipped(self) -> dict[str, NDArray[np.float16]]:
        """The best weights as they're shipped: BatchNorm folded, float16.

        Raises:
            InvalidResultError: a weight isn't finite in float16.
        """
        with np.errstate(over="ignore"):
            arrays = {name: value.astype(np.float16) for name, value in fold_batch_norm(self.best_weights).items()}
        for name, value in arrays.items():
            if not np.isfinite(value).all():
                raise InvalidResultError(self.asked, f"'{name}' isn't finite in float16", "use a smaller --lr")
        return arrays

    def logs(self) -> dict[str, bytes]:
        """What the run folder tells about the run, by file name."""
        return {name: (self.run / name).read_bytes() for name in (METRICS, CURVE, HELD_OUT)}

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be continued: options, data, torch."""
        names = "\n".join((*self.train_set.names, "", *self.held_set.names))
        options = {name: value for name, value in asdict(self.options).items() if name not in UNBOUND}
        data = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
        return {**options, "data": data, "torch": str(torch.__version__)}

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        state = {
            "identity": self.identity(),
            "step": self.step,
            "loss_sum": self.loss_sum,
            "elapsed_s": self.elapsed_s,
            "history": self.history,
            "best": self.best,
            "best_weights": self.best_weights,
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.run / CHECKPOINT, buffer.getvalue(), self.asked)

    def load(self) -> None:
        """Go on from the checkpoint.

        Raises:
            UsageError: it belongs to other options or data.
            ModelError: it can't be read.
        """
        path = self.run / CHECKPOINT
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            theirs, ours = state["identity"], self.identity()
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ModelError(
                self.asked, f"{path} can't be read: {type(error).__name__}: {error}", "start over with --overwrite"
            ) from error
        for name in ours:
            if theirs.get(name) != ours[name]:
                raise UsageError(
                    self.asked,
                    f"the checkpoint was written with {name} {theirs.get(name)}, asked is {ours[name]}",
                    "resume with the same options and data, or start over with --overwrite",
                )
        self.step, self.loss_sum, self.elapsed_s = state["step"], state["loss_sum"], state["elapsed_s"]
        self.history, self.best = state["history"], state["best"]
        self.averaged, self.best_weights = state["averaged"], state["best_weights"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        _say(f"resumed at step {self.step} of {self.total_steps}")


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; elsewhere it's emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(processor().isa or ()))  # the last is aarch64's


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yield a list that SIGINT and SIGTERM append to, in place of stopping at once. A second one stops at once.

    Outside of the main thread, where Python takes no signals, nothing is ever appended.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepare_run(run: Path, *, resume: bool, overwrite: bool, asked: str) -> None:
    """An empty run folder, or with ``resume`` the one that holds a checkpoint."""
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


def _device(name: str, asked: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(asked, f"'{name}' isn't a device", "use --device cpu or --device cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(asked, f"training on '{name}' isn't supported", "use --device cpu or --device cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(asked, "this machine has no CUDA device that torch can use", "use --device cpu")
    return device


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
