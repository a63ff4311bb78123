"""Score one chunk of images, from the logits of every artifact to each artifact's accuracy; and join all chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from vitedge.errors import InvalidResultError
from vitedge.evaluation.fidelity import divergence as kl_divergence
from vitedge.formats.result import Accuracy, Calibrated, Divergence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitedge.evaluation.decoding import Ready
    from vitedge.runtimes.session import Session

Number = TypeVar("Number", int, float)

BINS = 15  # of the reliability diagram


def score(sessions: Sequence[Session], chunk: Ready, labels: NDArray[np.int64], reference: int) -> list[Accuracy]:
    """Run one chunk of images in every session, and score the answers.

    Args:
        sessions: one an artifact.
        chunk: n images that could be read.
        labels: their class ids, int64 [n].
        reference: number of the session that the others' outputs are compared with.

    Raises:
        InvalidResultError: an output that isn't finite.
    """
    logits, durations = [], []
    for session in sessions:
        frames = chunk.frames[session.artifact.manifest.preprocessing]
        start = time.perf_counter_ns()
        logits.append(np.stack(list(session.map_batches(frames))).astype(np.float64))
        durations.append(time.perf_counter_ns() - start)
        if not np.isfinite(logits[-1]).all():
            raise InvalidResultError(
                f"evaluate {session.artifact.path}",
                "the model's output isn't finite",
                f"run: vitedge verify {session.artifact.path}",
            )
    expected = sessions[reference].artifact.digest, logits[reference]
    return [
        _accuracy(session, outputs, expected, labels, duration)
        for session, outputs, duration in zip(sessions, logits, durations, strict=True)
    ]


def _accuracy(
    session: Session,
    logits: NDArray[np.float64],
    reference: tuple[str, NDArray[np.float64]],
    labels: NDArray[np.int64],
    duration_ns: int,
) -> Accuracy:
    """Score logits [n, classes] against labels [n]. Equal logits rank in the order of their classes, as argmax does."""
    predicted = logits.argmax(axis=1)
    true_logit = logits[np.arange(len(labels)), labels][:, None]  # [n, 1]
    lower_id = np.arange(logits.shape[1])[None] < labels[:, None]  # [n, classes]
    rank = ((logits > true_logit) | ((logits == true_logit) & lower_id)).sum(axis=1)
    contract = session.artifact.manifest.preprocessing
    calibrated = divergence = None
    if contract.activation != "none":
        confidence = contract.probabilities(logits.astype(np.float32)).max(axis=1).astype(np.float64)
        calibrated = reliability(confidence, rank == 0)
    if contract.activation == "softmax":
        total = float(kl_divergence(reference[1], logits).sum())
        divergence = Divergence(reference=reference[0], images=len(labels), total=total)
    return Accuracy(
        predicted=tuple(predicted.tolist()),
        rank=tuple(rank.tolist()),
        calibrated=calibrated,
        divergence=divergence,
        duration_ns=duration_ns,
    )


def joined(chunks: Sequence[Accuracy], reference: str) -> Accuracy:
    """Join the accuracies of successive chunks; ``reference`` is the digest of the artifact that they diverge from."""
    bins = [chunk.calibrated for chunk in chunks if chunk.calibrated is not None]
    divergence = [chunk.divergence for chunk in chunks if chunk.divergence is not None]
    return Accuracy(
        predicted=tuple(value for chunk in chunks for value in chunk.predicted),
        rank=tuple(value for chunk in chunks for value in chunk.rank),
        calibrated=Calibrated(
            count=_sums([each.count for each in bins]),
            correct=_sums([each.correct for each in bins]),
            confidence_sum=_sums([each.confidence_sum for each in bins]),
        )
        if bins
        else None,
        divergence=Divergence(
            reference=reference,
            images=sum(each.images for each in divergence),
            total=sum(each.total for each in divergence),
        )
        if divergence
        else None,
        duration_ns=sum(chunk.duration_ns for chunk in chunks),
    )


def _sums(columns: Sequence[tuple[Number, ...]]) -> tuple[Number, ...]:
    return tuple(sum(values[1:], values[0]) for values in zip(*columns, strict=True))


def reliability(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> Calibrated:
    """Bin top-1 probabilities [n] and whether they were right [n], in :data:`BINS` equal-width bins."""
    bin_of = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    return Calibrated(
        count=tuple(np.bincount(bin_of, minlength=BINS).tolist()),
        correct=tuple(np.bincount(bin_of[correct], minlength=BINS).tolist()),
        confidence_sum=tuple(np.bincount(bin_of, weights=confidence, minlength=BINS).tolist()),
    )
