"""Compare a quantized graph with the float one on the same pictures: divergence, top-1 agreement and drop, flips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vitedge.core.activations import log_softmax
from vitedge.core.intervals import CONFIDENCE, paired_interval
from vitedge.formats.fidelity import Drop, Fidelity, Flip

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORST_FLIPS = 10


def divergence(reference: NDArray[np.floating[Any]], logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return KL(reference ‖ logits) of each picture, nats, float64 [n], of logits [n, classes]."""
    expected, actual = log_softmax(reference), log_softmax(logits)
    return np.asarray((np.exp(expected) * (expected - actual)).sum(axis=1))


def fidelity(
    reference: NDArray[np.float32],
    logits: NDArray[np.float32],
    *,
    pictures: Sequence[str],
    classes: Sequence[str],
    labels: NDArray[np.int64] | None,
    source: str,
    split: Literal["held-out", "calibration"],
    executed_by: str,
) -> Fidelity:
    """Compare logits with the float graph's.

    Args:
        reference: the float graph's logits [n, classes].
        logits: the quantized graph's, of the same pictures.
        pictures: their names.
        classes: names of the classes.
        labels: true class ids [n], where known.
        source: name of the data set.
        split: whether calibration saw these pictures.
        executed_by: what ran the quantized graph.
    """
    expected, predicted = reference.argmax(axis=1), logits.argmax(axis=1)
    flipped = np.flatnonzero(expected != predicted)
    ordered = np.sort(np.exp(log_softmax(reference)), axis=1)
    margin = ordered[:, -1] - ordered[:, -2] if ordered.shape[1] > 1 else np.ones(len(ordered))
    worst = flipped[np.argsort(-margin[flipped], kind="stable")][:WORST_FLIPS]
    drop = None
    if labels is not None:
        lost = int(((expected == labels) & (predicted != labels)).sum())
        gained = int(((expected != labels) & (predicted == labels)).sum())
        drop = drop_of(gained, lost, len(labels))
    return Fidelity(
        source=source,
        split=split,
        pictures=len(expected),
        executed_by=executed_by,
        divergence=float(divergence(reference, logits).mean()),
        agreement=1 - len(flipped) / len(expected),
        top1_drop=drop,
        flips=tuple(
            Flip(
                picture=pictures[index],
                label=classes[expected[index]],
                instead=classes[predicted[index]],
                margin=float(margin[index]),
            )
            for index in worst
        ),
    )


def drop_of(gained: int, lost: int, count: int) -> Drop:
    """Return the top-1 drop in pp, from the pictures that only one of both classifies correctly."""
    interval = paired_interval(gained, lost, count, CONFIDENCE)
    return Drop(pp=100 * (lost - gained) / count, low=-100 * interval.high, high=-100 * interval.low)
