"""Options of training."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from msgspec import Meta

from vitedge.core.options import Flag, time_flag
from vitedge.core.schema import Record
from vitedge.errors import UsageError, nearest

OptimizerName = Literal["muon", "adamw"]
Schedule = Literal["cosine", "linear"]
Precision = Literal["auto", "fp32", "bf16"]
Resize = Literal["squash", "shortest", "pad"]
Lesson = Literal["soft", "hard", "feature", "both"]
NewHead = Literal["fitted", "zero"]
Fraction = Annotated[float, Meta(ge=0, le=1)]
NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Number = Annotated[int, Meta(ge=1)]

RECIPE, AUGMENT, TUNE = "Recipe", "Augmentation (0: off)", "Fine-tuning"
STEM = "Convolutional stem"
TEACH, DATA, MACHINE = "Distillation", "Data and evaluation", "Machine and checkpoints"


def parse_side(text: str) -> tuple[int, int]:
    """Parse ``64`` as (height, width) in pixels.

    Raises:
        UsageError: not a whole number above 0.
    """
    if not text.isdecimal() or int(text) < 1:
        raise UsageError("train a model", f"'{text}' isn't a number of pixels", "write, say, --image-size 64")
    return int(text), int(text)


class Augmentation(Record):
    """Options for changing training pictures at random."""

    crop_padding: Annotated[  # of reflected border; the image is cut out again at a random place
        Count, Flag("Largest random shift.", unit="pixels", group=AUGMENT)
    ] = 4
    flip: Annotated[bool, Flag("Mirror half of the pictures.", ("--flip/--no-flip",), group=AUGMENT)] = True
    alternate_flip: Annotated[  # Jordan, 2404.00498: two epochs show both
        bool, Flag("Mirror a picture in every other epoch instead of at random.", group=AUGMENT)
    ] = False
    rand_augment: Annotated[  # Cubuk et al., 1909.13719
        Annotated[float, Meta(ge=0, le=10)],
        Flag("Magnitude of two random operations per picture.", unit="magnitude", group=AUGMENT),
    ] = 0.0
    random_erasing: Annotated[  # Zhong et al., 1708.04896
        Fraction,
        Flag("Probability that a rectangle of noise covers part of a picture.", unit="probability", group=AUGMENT),
    ] = 0.0
    mixup: Annotated[  # Zhang et al., 1710.09412
        NotNegative, Flag("Parameter α of Beta(α, α), by which pictures are blended in pairs.", unit="α", group=AUGMENT)
    ] = 0.0
    cutmix: Annotated[  # Yun et al., 1905.04899
        NotNegative,
        Flag("Parameter α of Beta(α, α), by which a rectangle comes from another picture.", unit="α", group=AUGMENT),
    ] = 0.0
    mix_probability: Annotated[
        Fraction, Flag("Fraction of the batches to which mixup or cutmix is applied.", unit="fraction", group=AUGMENT)
    ] = 1.0

    def __post_init__(self) -> None:
        if self.alternate_flip and not self.flip:
            raise UsageError(
                "train a model", "alternate_flip says when to mirror, and flip is off", "leave out one of the two"
            )


class Distillation(Record):
    """A teacher and what the student takes from it."""

    teacher: Annotated[
        str,
        Flag(
            "Model to learn from: a model folder, what `vitedge import` takes, or embedded.", unit="model", group=TEACH
        ),
    ]
    lesson: Annotated[
        Lesson,
        Flag(
            "Target of the loss: the teacher's probabilities, its label, its features, or probabilities and features.",
            ("--distill",),
            group=TEACH,
        ),
    ] = "soft"
    weight: Annotated[
        Fraction,
        Flag(
            "Fraction of the loss that compares with the teacher.", ("--distill-weight",), unit="fraction", group=TEACH
        ),
    ] = 0.5
    temperature: Annotated[
        Annotated[float, Meta(ge=0.1)], Flag("Temperature of both distributions, for soft and both.", group=TEACH)
    ] = 2.0
    views: Annotated[
        Count,
        Flag(
            "Augmented views of a picture, one for each epoch; with 0 the teacher gets the picture as it is.",
            ("--teacher-views",),
            unit="views",
            group=TEACH,
        ),
    ] = 10
    cache: Annotated[
        str | None,
        Flag(
            "Folder for the teacher's outputs, to share them among runs.",
            ("--teacher-cache",),
            unit="path",
            default="OUT.run/teacher",
            group=TEACH,
        ),
    ] = None


class TrainOptions(Record):
    """Options of a training run. The learning rate rises from 0 over the warm-up, then falls to 0 at the last step."""

    model: Annotated[
        str | None, Flag("Architecture of the zoo; a wrong name lists them all.", unit="name", default="--init-from's")
    ] = None
    epochs: Annotated[Number, Flag("Passes over the training data.", unit="passes", group=RECIPE)] = 100
    batch_size: Annotated[
        Number | None,
        Flag(
            "Pictures per step, over all processes.",
            unit="pictures",
            default="a tenth of the training pictures, from 8 to 256",
            group=RECIPE,
        ),
    ] = None
    accumulate: Annotated[
        Number,
        Flag("Parts in which a process computes its pictures of a step, to save memory.", unit="parts", group=RECIPE),
    ] = 1
    lr: Annotated[NotNegative, Flag("Learning rate at the end of the warm-up.", group=RECIPE)] = 2e-3
    optimizer: Annotated[
        OptimizerName, Flag("Optimizer: muon needs fewer pictures, adamw is the classic.", group=RECIPE)
    ] = "muon"
    muon_momentum: Annotated[
        Annotated[float, Meta(ge=0, lt=1)], Flag("Momentum of Muon.", unit="factor", group=RECIPE)
    ] = 0.95
    weight_decay: Annotated[NotNegative, Flag("Weight decay of matrices; vectors don't decay.", group=RECIPE)] = 0.05
    warmup: Annotated[
        Fraction, Flag("Fraction of the steps in which the learning rate rises.", unit="fraction", group=RECIPE)
    ] = 0.1
    schedule: Annotated[Schedule, Flag("How the learning rate falls to 0 after the warm-up.", group=RECIPE)] = "cosine"
    small_first: Annotated[
        Annotated[float, Meta(ge=0, le=0.95)],
        Flag(
            "Fraction of the steps, the first ones, on pictures of three quarters of the height and width.",
            unit="fraction",
            group=RECIPE,
        ),
    ] = 0.0
    layer_decay: Annotated[
        Annotated[float, Meta(ge=0.01, le=1)],
        Flag("Factor of the learning rate from each block to the one before it.", unit="factor", group=TUNE),
    ] = 1.0
    whiten: Annotated[
        bool, Flag("Whiten patches of the training pictures by a fixed first convolution.", group=STEM)
    ] = False
    identity_stem: Annotated[
        bool, Flag("Start the stem's 3×3 convolutions as the identity on the channels that they read.", group=STEM)
    ] = False
    norm_scale_rate: Annotated[
        NotNegative,
        Flag("Factor of the learning rate for BatchNorm's scales; 0 keeps them.", unit="factor", group=STEM),
    ] = 1.0
    norm_bias_rate: Annotated[
        NotNegative,
        Flag("Factor of the learning rate for BatchNorm's biases; 0 keeps them.", unit="factor", group=STEM),
    ] = 1.0
    label_smoothing: Annotated[
        Annotated[float, Meta(ge=0, le=0.9)],
        Flag("Probability spread over all classes.", unit="probability", group=RECIPE),
    ] = 0.1
    class_weights: Annotated[
        Fraction,
        Flag(
            "Exponent x of the class weights frequency^-x; 1 weighs classes as if they were equally large.",
            unit="exponent",
            group=RECIPE,
        ),
    ] = 0.0
    drop_path: Annotated[
        Annotated[float, Meta(ge=0, le=0.9)],
        Flag("Stochastic depth of the last block.", unit="probability", group=RECIPE),
    ] = 0.0
    ema: Annotated[
        Annotated[float, Meta(ge=0, le=0.99999)],
        Flag("Decay per step of the averaged weights, which are evaluated and written.", unit="factor", group=RECIPE),
    ] = 0.999
    clip: Annotated[NotNegative, Flag("Largest gradient norm; 0 clips nothing.", unit="norm", group=RECIPE)] = 1.0
    augmentation: Augmentation = Augmentation()
    image_size: Annotated[  # (height, width)
        tuple[Number, Number] | None,
        Flag("Height and width of the input.", unit="pixels", default="the model's", parse=parse_side, group=TUNE),
    ] = None
    resize: Annotated[Resize, Flag("How pictures of other shapes are fitted.", group=DATA)] = "squash"
    holdout: Annotated[
        Annotated[float, Meta(ge=0, le=0.9)],
        Flag("Fraction of every class that is held out to choose the best epoch.", unit="fraction", group=DATA),
    ] = 0.1
    init_from: Annotated[
        str | None,
        Flag(
            "Weights to start from: a model folder, a published checkpoint, hub:ORG/NAME, or embedded.",
            unit="model",
            group=TUNE,
        ),
    ] = None
    new_head: Annotated[
        NewHead,
        Flag("Head for other classes than the source's: fitted to the model's features first, or zero.", group=TUNE),
    ] = "fitted"
    freeze: Annotated[
        Count | None,
        Flag(
            "Number of first blocks that stay as they are, and stem and tokens with them.",
            unit="blocks",
            default="nothing is frozen",
            group=TUNE,
        ),
    ] = None
    distillation_token: Annotated[bool, Flag("Give the student DeiT's second token and head.", group=TEACH)] = False
    distillation: Distillation | None = None
    seed: Annotated[Count, Flag("Seed; equal seeds, data and threads give equal weights.", group=DATA)] = 0
    threads: Annotated[Count, Flag("Number of compute threads; 0 uses all cores.", unit="threads", group=MACHINE)] = 0
    device: Annotated[
        str, Flag("Device: cpu, cuda or cuda:1; under torchrun cpu or cuda.", unit="device", group=MACHINE)
    ] = "cpu"
    precision: Annotated[
        Precision, Flag("Precision of multiplications; auto: bf16 where the device has it natively.", group=MACHINE)
    ] = "auto"
    compile: Annotated[bool, Flag("Compile with torch.compile; this needs a C++ compiler.", group=MACHINE)] = False
    workers: Annotated[Count, Flag("Decoding threads for data larger than memory.", unit="threads", group=MACHINE)] = 2
    checkpoint_seconds: Annotated[NotNegative, time_flag("Time between checkpoints.", group=MACHINE)] = 120.0

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
        """The model's name in messages."""
        return self.model or f"from {self.init_from}"


def as_fields(record: Record) -> dict[str, Any]:
    """Return a record and those inside it as mappings, for checkpoints and ``model.json``."""
    values = {name: getattr(record, name) for name in record.__struct_fields__}
    return {name: as_fields(value) if isinstance(value, Record) else value for name, value in values.items()}


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(
            f"train with {name} '{value}'",
            f"there is no such {name}{nearest(value, choices)}",
            f"choose from: {', '.join(choices)}",
        )
