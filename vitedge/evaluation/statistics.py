"""Statistics from an evaluation's columns: intervals, paired comparisons, calibration, classes.

Sources: Wilson (1927) for one proportion; McNemar's exact test and Bonett and Price (2012) for the difference of two
paired proportions, as Fagerland, Lydersen and Laake (2014) recommend; Guo et al. (1706.04599) for calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vitedge.core.intervals import Interval, mcnemar, paired_interval, wilson
from vitedge.formats.result import Accuracy, Calibrated, DataSet


class Paired(NamedTuple):
    """One artifact against a reference on the same images; differences are this minus reference, in [-1, 1]."""

    images: int
    gained: int  # images that this has right and the reference wrong
    lost: int  # the other way round
    difference: float  # of top-1 accuracy
    interval: Interval
    p_value: float  # of McNemar's exact test, two-sided: the chance of such a difference when there is none
    flips: tuple[int, ...]  # images on which the predictions differ, right or wrong

    @property
    def agreement(self) -> float:
        """The fraction of the images with the same prediction."""
        return 1 - len(self.flips) / self.images


def compare(reference: Accuracy, other: Accuracy) -> Paired | None:
    """Compare ``other`` with ``reference`` on the images that both have answered; None when there are none.

    Both must come from the same data set.
    """
    count = min(len(reference.rank), len(other.rank))
    if not count:
        return None
    gained = sum(a != 0 and b == 0 for a, b in zip(reference.rank, other.rank, strict=False))
    lost = sum(a == 0 and b != 0 for a, b in zip(reference.rank, other.rank, strict=False))
    pairs = enumerate(zip(reference.predicted, other.predicted, strict=False))
    return Paired(
        images=count,
        gained=gained,
        lost=lost,
        difference=(gained - lost) / count,
        interval=paired_interval(gained, lost, count),
        p_value=mcnemar(gained, lost),
        flips=tuple(index for index, (a, b) in pairs if a != b),
    )


def top_k(accuracy: Accuracy, k: int) -> int:
    """Return the number of images whose true class is among the k largest logits."""
    return sum(rank < k for rank in accuracy.rank)


def confusion(accuracy: Accuracy, data: DataSet) -> list[list[int]]:
    """Return counts [true class][predicted class]."""
    counts = [[0] * len(data.classes) for _ in data.classes]
    for label, predicted in zip(data.label, accuracy.predicted, strict=False):
        counts[label][predicted] += 1
    return counts


def per_class(accuracy: Accuracy, data: DataSet) -> list[tuple[int, int]]:
    """Return (correct, images) of each class."""
    return [(row[label], sum(row)) for label, row in enumerate(confusion(accuracy, data))]


class ClassScore(NamedTuple):
    """Top-1 of one class; fractions."""

    name: str
    images: int
    top1: float | None  # None without images
    interval: Interval | None
    reference_top1: float | None  # None without a reference

    @property
    def top1_drop_pp(self) -> float | None:
        """The top-1 drop against the reference, percentage points."""
        return (
            None if self.top1 is None or self.reference_top1 is None else 100 * (self.reference_top1 - self.top1) + 0.0
        )


def class_scores(accuracy: Accuracy, data: DataSet, reference: Accuracy | None = None) -> list[ClassScore]:
    """Return one entry for each class, the largest drop against the reference first, then the least accurate."""
    scores = []
    earlier = per_class(reference, data) if reference is not None else [(0, 0)] * len(data.classes)
    for name, (correct, images), (correct_before, count) in zip(
        data.classes, per_class(accuracy, data), earlier, strict=True
    ):
        scores.append(
            ClassScore(
                name=name,
                images=images,
                top1=correct / images if images else None,
                interval=wilson(correct, images) if images else None,
                reference_top1=correct_before / count if count else None,
            )
        )
    return sorted(scores, key=lambda score: (-(score.top1_drop_pp or 0.0), 1.0 if score.top1 is None else score.top1))


def calibration_error(calibrated: Calibrated) -> float | None:
    """Return the expected calibration error: mean |confidence − accuracy| over the bins, weighted by their images."""
    total = sum(calibrated.count)
    if not total:
        return None
    gaps: Sequence[float] = [
        abs(confidence - correct)
        for confidence, correct in zip(calibrated.confidence_sum, calibrated.correct, strict=True)
    ]
    return sum(gaps) / total
