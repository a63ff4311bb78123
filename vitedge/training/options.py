"""What to train and how, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from vitedge.errors import UsageError, nearest

OptimizerName = Literal["muon", "adamw"]
Schedule = Literal["cosine", "linear"]
Precision = Literal["auto", "fp32", "bf16"]
Resize = Literal["squash", "shortest", "pad"]
Lesson = Literal["soft", "hard", "feature"]
NewHead = Literal["fitted", "zero"]


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training batch. Zero switches a part off."""

    crop_padding: int = 0  # pixels of reflected border; the image is cut out again at a random place
    flip: bool = True  # left and right exchanged, for half of the images
    rand_augment: float = 0.0  # magnitude 0 to 10 of two random operations per image (Cubuk et al., 1909.13719)
    random_erasing: float = 0.0  # probability that a rectangle of noise covers part of an image (Zhong, 1708.04896)
    mixup: float = 0.0  # α of Beta(α, α): images are blended in pairs (Zhang et al., 1710.09412)
    cutmix: float = 0.0  # α of Beta(α, α): a rectangle comes from another image (Yun et al., 1905.04899)
    mix_probability: float = 1.0  # of mixing a batch at all


@dataclass(frozen=True)
class Distillation:
    """A teacher and what the student takes from it."""

    teacher: str  # a model folder, or "embedded"
    lesson: Lesson = "soft"
    weight: float = 0.5  # of the teacher's part of the loss; the labels have the rest
    temperature: float = 2.0  # soft: both distributions are flattened by it
    views: int = 10  # augmented views of a picture that are taught, one an epoch; 0: the teacher gets the file itself
    cache: str | None = None  # a folder for the teacher's outputs, to be shared by runs; None: the run's own


@dataclass(frozen=True)
class TrainOptions:
    """What to train and how. The learning rate rises from 0 over the warm-up, then falls to 0 at the last step."""

    model: str | None = None  # a zoo member; None: what ``init_from`` is
    epochs: int = 100
    batch_size: int = 256  # of a step: over all processes and all parts that are accumulated
    accumulate: int = 1  # parts that a process cuts its share of a batch into, for want of memory
    lr: float = 2e-3  # at the end of the warm-up
    optimizer: OptimizerName = "muon"
    weight_decay: float = 0.05
    warmup: float = 0.1  # part of all steps
    schedule: Schedule = "cosine"
    layer_decay: float = 1.0  # factor of the learning rate from each block to the one before it
    label_smoothing: float = 0.1
    class_weights: float = (
        0.0  # each class weighs frequency^-this; 0: equal weights, 1: as if classes were equally large
    )
    drop_path: float = 0.0
    ema: float = 0.999  # decay per step of the averaged weights that are evaluated and shipped
    clip: float = 1.0  # largest norm of all gradients together; 0: no clipping
    augmentation: Augmentation = field(default_factory=Augmentation)
    image_size: tuple[int, int] | None = None  # (height, width); None: the model's
    resize: Resize = "squash"
    holdout: float = 0.1  # part of every class, kept from training, that chooses the best epoch
    init_from: str | None = None  # weights to start from: a model folder, a published checkpoint, or "embedded"
    new_head: NewHead = "fitted"  # where the source's head is of other classes: fitted to its features, or zero
    freeze: int | None = None  # the stem, the tokens and so many blocks stay as they are; None: nothing does
    distillation_token: bool = False  # add DeiT's token and second head to a zoo member with a class token
    distillation: Distillation | None = None
    seed: int = 0
    threads: int = 0  # 0: all cores
    device: str = "cpu"
    precision: Precision = "auto"  # bf16: autocast; auto: where the device multiplies it natively
    compile: bool = False
    workers: int = 2  # threads that decode pictures, when the data set doesn't fit in memory
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        choices = {
            "optimizer": OptimizerName,
            "schedule": Schedule,
            "precision": Precision,
            "resize": Resize,
            "new_head": NewHead,
        }
        for name, kind in choices.items():
            _check_choice(name, getattr(self, name), get_args(kind))
        if self.distillation is not None:
            _check_choice("lesson", self.distillation.lesson, get_args(Lesson))
        if self.model is None and self.init_from is None:
            raise UsageError(
                "train a model", "neither a model nor weights to start from were named", "name --model or --init-from"
            )

    @property
    def name(self) -> str:
        """What is trained, for people."""
        return self.model or f"from {self.init_from}"


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(
            f"train with {name} '{value}'",
            f"there is no such {name}{nearest(value, choices)}",
            f"choose from: {', '.join(choices)}",
        )
