"""Options of shrinking: the budget, the pictures, and the loss that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypedDict

from msgspec import Meta

from vitedge.core.options import Flag
from vitedge.core.schema import Record
from vitedge.errors import UsageError

Side = Annotated[int, Meta(ge=1, le=4096)]
#: (height, width). msgspec 0.22 reads the length of a ``tuple[Side, Side]`` beside a ``Side`` from other memory.
Sides = Annotated[tuple[Side, ...], Meta(min_length=2, max_length=2)]
BUDGET, LOSS, PICTURES, MODEL = "Budget (one of them)", "Loss", "Pictures", "Measurement and model"
FEWEST_PICTURES, MOST_PICTURES = 300, 4000  # of 224 × 224 pixels; of small ones, which have fewer tokens


def parse_sizes(text: str) -> tuple[int | tuple[int, int], ...]:
    """Parse ``24,28`` or ``96x160`` as sides, or (height, width), in pixels.

    Raises:
        UsageError: something else.
    """
    sizes = []
    for size in text.split(","):
        sides = size.strip().lower().replace("×", "x").split("x")
        if len(sides) > 2 or not all(side.isdecimal() for side in sides):
            reason = f"'{size.strip()}' isn't a number of pixels, or a height and a width"
            raise UsageError("shrink a model", reason, "write for example --resolutions 24,28 or --resolutions 96x160")
        sizes.append((int(sides[0]), int(sides[1])) if len(sides) == 2 else int(sides[0]))
    return tuple(sizes)


class ShrinkOptions(Record):
    """The budget, the pictures, and the loss that is allowed."""

    latency: Annotated[
        Annotated[float, Meta(ge=0.001)] | None, Flag("Median latency to reach on the target.", unit="ms", group=BUDGET)
    ] = None
    speedup: Annotated[
        Annotated[float, Meta(ge=1)] | None,
        Flag("Speed-up over the whole model to reach.", unit="factor", group=BUDGET),
    ] = None
    macs: Annotated[
        Annotated[float, Meta(ge=0.01, le=1)] | None,
        Flag("Fraction of the multiply-accumulates to keep; nothing is measured.", unit="fraction", group=BUDGET),
    ] = None
    frontier: Annotated[
        bool,
        Flag(
            "Draw accuracy against latency for ten budgets, in float32 and in the precision: OUT.frontier.svg and "
            "OUT.frontier.json.",
            group=BUDGET,
        ),
    ] = False
    beside: Annotated[
        tuple[str, ...],
        Flag(
            "Model to draw into the frontier's picture, too: a trained model folder, a member of the zoo (its latency "
            "alone), or zoo for all members of this input size.",
            unit="model",
            group=BUDGET,
        ),
    ] = ()
    max_drop: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Flag(
            "Largest top-1 drop at the worse end of its 95 % interval; without labels, largest percentage of pictures "
            "that change their label.",
            unit="pp",
            group=LOSS,
        ),
    ] = None
    classes: Annotated[
        str | None,
        Flag(
            "Text file with the needed classes, one name a line; parts that only the others use are removed first.",
            unit="path",
            default="all",
            group=MODEL,
        ),
    ] = None
    resolutions: Annotated[
        tuple[Side | Sides, ...],
        Flag(
            "Smaller input sizes that may be chosen beside the model's own: 24,28 or 96x160; the loss decides.",
            unit="pixels",
            default="the model's alone",
            group=MODEL,
            parse=parse_sizes,
        ),
    ] = ()
    finetune: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Flag("Number of training passes with the whole model as teacher; this needs torch.", unit="passes", group=LOSS),
    ] = None
    labelled: Annotated[
        str | None, Flag("Class folders to fine-tune on.", unit="path", default="the pictures of --data", group=LOSS)
    ] = None
    data: Annotated[
        str | None,
        Flag(
            "Pictures like those that the model will see; they need no labels.",
            unit="path",
            default="those of the embedded model",
            group=PICTURES,
        ),
    ] = None
    num_samples: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Flag(
            "Number of pictures to shrink by.",
            default=f"{FEWEST_PICTURES}, of small ones up to {MOST_PICTURES}; at most four fifths of --data",
            group=PICTURES,
        ),
    ] = None
    held_out: Annotated[
        str | None,
        Flag(
            "Pictures for measuring the loss.",
            unit="path",
            default="pictures in --data that shrinking did not use",
            group=PICTURES,
        ),
    ] = None
    precision: Annotated[
        str | None,
        Flag(
            "Precision that will be deployed, and is measured.",
            ("--precision", "-p"),
            unit="name",
            default="the target's first",
            group=MODEL,
        ),
    ] = None
    table: Annotated[
        str | None,
        Flag(
            "Latency table of the device to choose by; without a budget, file to measure it into on this device.",
            unit="path",
            default="it is measured where the target runs, else multiply-accumulates decide",
            group=MODEL,
        ),
    ] = None
    threads: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Flag(
            "Number of compute threads of the models that are measured; 0 uses all physical cores. Training uses all.",
            default="the target's",
            group=MODEL,
        ),
    ] = None
    overwrite: Annotated[bool, Flag("Replace an existing model folder, table or picture.", group=MODEL)] = False

    @property
    def budgets(self) -> dict[str, float]:
        """The budgets that were given, by their option."""
        given = {"latency": self.latency, "speedup": self.speedup, "macs": self.macs}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The resolutions as (height, width), each once, the largest first."""
        sizes = {(size, size) if isinstance(size, int) else (size[0], size[1]) for size in self.resolutions}
        return sorted(sizes, key=lambda size: (-size[0] * size[1], size))

    def require_one_budget(self, action: str) -> None:
        """Refuse a request without a budget, or with several.

        Raises:
            UsageError: not one budget.
        """
        if len(self.budgets) != 1:
            named = " and ".join(f"--{name}" for name in self.budgets)
            reason = f"exactly one budget is needed, but {f'{named} were' if named else 'none was'} given"
            hint = "choose --latency MS, --speedup X or --macs FRACTION; --frontier shows what each budget would cost"
            raise UsageError(action, reason, hint)


class ShrinkFields(TypedDict, total=False):
    """The fields of :class:`ShrinkOptions` as keywords."""

    latency: float | None
    speedup: float | None
    macs: float | None
    frontier: bool
    beside: Sequence[str]
    max_drop: float | None
    classes: str | Path | None
    resolutions: Sequence[int | tuple[int, ...]]  # sides, or (height, width)
    finetune: int | None
    labelled: str | Path | None
    data: str | Path | None
    num_samples: int | None
    held_out: str | Path | None
    precision: str | None
    table: str | Path | None
    threads: int | None
    overwrite: bool
