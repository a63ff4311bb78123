"""Options of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypedDict

from msgspec import Meta

from vitedge.core.options import Flag
from vitedge.core.schema import Record
from vitedge.errors import UsageError, nearest
from vitedge.formats import target
from vitedge.formats.recipe import Recipe

#: Values of ``--precision``: the targets' precisions, or "auto", the first candidate that holds the accuracy budget.
PRECISIONS = (*target.PRECISIONS, "auto")
CALIBRATION, BUDGET, CANDIDATES, ARTIFACT = "Calibration", "Accuracy budget", "Choice among candidates", "Artifact"


class ExportOptions(Record):
    """Options of an export: calibration, the accuracy to hold, and the candidates to choose from."""

    recipe: Annotated[
        Recipe | str,
        Flag("Recipe that says how to calibrate; `vitedge recipes` lists them.", unit="name", group=CALIBRATION),
    ] = "default"
    data: Annotated[
        str | None,
        Flag(
            "Calibration images: a folder or an archive.",
            unit="path",
            default="those of the embedded model",
            group=CALIBRATION,
        ),
    ] = None
    num_samples: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Flag(
            "Number of calibration images.", default="the recipe's, or four fifths of a small --data", group=CALIBRATION
        ),
    ] = None
    max_drop: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Flag(
            "Largest top-1 drop against float32 at the worse end of its 95 % interval; layers stay in float until it "
            "holds.",
            unit="pp",
            group=BUDGET,
        ),
    ] = None
    min_agreement: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None,
        Flag(
            "Percentage of hold-out pictures on which the artifact must give the float32 label.",
            unit="percent",
            group=BUDGET,
        ),
    ] = None
    held_out: Annotated[
        str | None,
        Flag(
            "Labelled pictures for measuring the accuracy loss.",
            unit="path",
            default="pictures in --data that calibration did not use",
            group=BUDGET,
        ),
    ] = None
    autotune: Annotated[
        bool,
        Flag(
            "Measure all candidates on this machine, and keep the fastest one that holds the budget.", group=CANDIDATES
        ),
    ] = False
    with_candidates: Annotated[
        bool,
        Flag("Include the other candidates, so that `vitedge build` can choose on the device.", group=CANDIDATES),
    ] = False
    explain: Annotated[
        bool, Flag("Explain speed and accuracy layer by layer, and write OUT.selection.svg.", group=ARTIFACT)
    ] = False
    batch: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Flag("Number of pictures per inference.", ("--batch", "-b"), default="the target's", group=ARTIFACT),
    ] = None
    overwrite: Annotated[bool, Flag("Replace an existing artifact.", group=ARTIFACT)] = False


class ExportFields(TypedDict, total=False):
    """The fields of :class:`ExportOptions` as keywords."""

    recipe: Recipe | str | Path
    data: str | Path | None
    num_samples: int | None
    max_drop: float | None
    min_agreement: float | None
    held_out: str | Path | None
    autotune: bool
    with_candidates: bool
    explain: bool
    batch: int | None
    overwrite: bool


def chosen_precision(precision: str | None, *, int8: bool, half: bool) -> str:
    """Return the one precision that ``--precision`` and its spellings ``--int8`` and ``--half`` give.

    Raises:
        UsageError: none, or several that differ.
    """
    precisions = {name for name, given in ((precision, precision), ("int8", int8), ("fp16", half)) if given}
    action = f"export in precision {' and '.join(sorted(map(str, precisions))) or '(none)'}"
    hint = f"choose: --precision {'|'.join(PRECISIONS)}"
    if len(precisions) != 1:
        raise UsageError(action, "one precision is needed", hint)
    (chosen,) = precisions
    if chosen not in PRECISIONS:
        raise UsageError(action, f"no precision has this name{nearest(str(chosen), PRECISIONS)}", hint)
    return str(chosen)
