"""What to shrink a model to, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypedDict

from msgspec import Meta

from vitedge.core.options import Flag
from vitedge.core.schema import Record
from vitedge.errors import UsageError

BUDGET, LOSS, PICTURES, MODEL = "Budget (one of them)", "Loss", "Pictures", "Measurement and model"
FEWEST_PICTURES = 300


class ShrinkOptions(Record):
    """The budget, the pictures, and what may be lost."""

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
            "Number of pictures to shrink by.", default=f"{FEWEST_PICTURES}, or four fifths of --data", group=PICTURES
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
        Flag("Number of compute threads; 0 uses all physical cores.", default="the target's", group=MODEL),
    ] = None
    overwrite: Annotated[bool, Flag("Replace an existing model folder, table or picture.", group=MODEL)] = False

    @property
    def budgets(self) -> dict[str, float]:
        """The budgets that were given, by their option."""
        given = {"latency": self.latency, "speedup": self.speedup, "macs": self.macs}
        return {name: value for name, value in given.items() if value is not None}

    def require_one_budget(self, action: str) -> None:
        """Refuse none and several.

        Raises:
            UsageError: not one budget.
        """
        if len(self.budgets) != 1:
            several = " and ".join(f"--{name}" for name in self.budgets) or "none"
            hint = "choose: --latency MS, --speedup X or --macs SHARE; or --frontier to see what each would cost"
            raise UsageError(action, f"one budget is needed, given: {several}", hint)


class ShrinkFields(TypedDict, total=False):
    """The fields of :class:`ShrinkOptions` as keywords."""

    latency: float | None
    speedup: float | None
    macs: float | None
    frontier: bool
    max_drop: float | None
    classes: str | Path | None
    finetune: int | None
    labelled: str | Path | None
    data: str | Path | None
    num_samples: int | None
    held_out: str | Path | None
    precision: str | None
    table: str | Path | None
    threads: int | None
    overwrite: bool
