"""``vitedge eval``: any number of artifacts in one pass over labelled pictures.

Pictures are read and preprocessed by threads (Pillow works without the interpreter's lock) a few chunks ahead, so that
the runtimes don't wait. A chunk counts when every artifact has answered it, so an interruption leaves whole columns.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitedge.artifact import Artifact
from vitedge.errors import ImageError, InterruptedError_, InvalidResultError, UsageError
from vitedge.files import sha256
from vitedge.images import ImageSet
from vitedge.preprocessing import Preprocessing
from vitedge.progress import Progress, silent
from vitedge.result import (
    Accuracy,
    Calibrated,
    Circumstances,
    DataSet,
    Divergence,
    Result,
    Row,
    Stopped,
    Subject,
    now,
)
from vitedge.runtimes.contract import OpenOptions
from vitedge.runtimes.executed import executed_shares
from vitedge.runtimes.session import Session, open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 15  # of the reliability diagram
CHUNK = 32
MOST_UNREADABLE = 0.01


def evaluate(
    artifacts: Sequence[Artifact],
    images: ImageSet,
    options: OpenOptions | None = None,
    *,
    limit: int | None = None,
    progress: Progress = silent,
) -> Result:
    """Top-1 and what belongs to it, on every image or on a seeded choice of ``limit``.

    Args:
        artifacts: at least one, all with the same classes.
        images: labelled by class folders.
        options: how each is opened.
        limit: evaluate so many images, the same ones on every machine.
        progress: called with (task, done, total).

    Raises:
        UsageError: classes that differ among the artifacts or don't match the folders, or images that an artifact
            was calibrated on.
        ImageError: more than 1 % unreadable.
        InvalidResultError: an output that isn't finite.
        NotInstalledError: a runtime isn't installed.
        Stopped: interrupted; it holds what was evaluated until then.
    """
    asked = f"evaluate on {images.source}"
    if limit is not None and limit < len(images):
        images = images.subset(sorted(images.order(0)[:limit]))
    classes = artifacts[0].manifest.classes
    if any(artifact.manifest.classes != classes for artifact in artifacts):
        raise UsageError(asked, "the artifacts have different classes", "evaluate them one at a time")
    labels = images.labels([label.folder for label in classes], asked=asked)
    digests = _digests(images)
    for artifact in artifacts:
        refuse_calibrated(artifact, digests, images, asked)

    done: list[_Chunk] = []
    skipped: list[str] = []
    with contextlib.ExitStack() as stack:
        progress("open", 0, len(artifacts))
        sessions = [stack.enter_context(open_session(artifact, options)) for artifact in artifacts]
        progress("open", len(artifacts), len(artifacts))
        shares = [executed_shares(session.artifact.manifest.layers, session.executed()) for session in sessions]
        created, where = now(), Circumstances.here()

        def result(*, partial: bool) -> Result:
            rows = [
                Row(
                    subject=Subject.of(session.artifact),
                    session=dict(session.info),
                    precision_executed=share,
                    accuracy=_accuracy(session, [chunk.answers[number] for chunk in done], reference.digest),
                )
                for number, (session, share) in enumerate(zip(sessions, shares, strict=True))
            ]
            indices = [index for chunk in done for index in chunk.indices]
            data = DataSet(
                source=images.source.name,
                digest=sha256("".join(sorted(str(digests[index]) for index in indices)).encode()),
                classes=tuple(label.name for label in classes),
                names=tuple(images.records[index].name for index in indices),
                label=tuple(int(labels[index]) for index in indices),
                skipped=tuple(skipped),
            )
            return Result(created=created, circumstances=where, rows=tuple(rows), data=data, partial=partial)

        reference = reference_artifact(artifacts)
        first = artifacts.index(reference)
        try:
            for ready in _decoded(images, sessions):
                skipped += ready.skipped
                if len(skipped) > MOST_UNREADABLE * len(images):
                    raise ImageError(
                        asked,
                        f"more than 1 % of the images can't be read, among them {', '.join(skipped[:5])}",
                        "replace or remove them",
                    )
                if ready.indices:
                    done.append(_answer(sessions, ready, labels[ready.indices], first))
                progress("evaluate", ready.end, len(images))
        except (KeyboardInterrupt, InterruptedError_) as stop:
            raise Stopped("evaluate accuracy", result(partial=True), stop) from stop
        return result(partial=False)


def reference_artifact(artifacts: Sequence[Artifact]) -> Artifact:
    """What the others are compared with: the first in float32, or the first."""
    return next((artifact for artifact in artifacts if artifact.manifest.precision == "fp32"), artifacts[0])


def reference_row(rows: Sequence[Row]) -> Row | None:
    """The row that the others' accuracy is compared with: the first evaluated one in float32, or the first."""
    evaluated = [row for row in rows if row.accuracy is not None]
    return next((row for row in evaluated if row.subject.precision == "fp32"), evaluated[0] if evaluated else None)


def refuse_calibrated(artifact: Artifact, digests: Sequence[str | None], images: ImageSet, asked: str) -> None:
    """Refuse to evaluate on what was calibrated on.

    Args:
        artifact: its manifest knows its calibration images by digest.
        digests: hex SHA-256 of each image; None where it couldn't be read.
        images: for their names.
        asked: the wish, for the error text.

    Raises:
        UsageError: some of the images were calibrated on.
    """
    calibration = artifact.manifest.calibration
    if calibration is None:
        return
    known = set(calibration.image_digests)
    both = [index for index, digest in enumerate(digests) if digest is not None and digest[:16] in known]
    if both:
        raise UsageError(
            asked,
            f"{artifact.manifest.name} was calibrated on {len(both)} of these {len(images)} images, "
            f"among them {images.records[both[0]].name}",
            "evaluate on images that were kept out of calibration",
        )


def _digests(images: ImageSet) -> list[str | None]:
    def digest(index: int) -> str | None:
        with contextlib.suppress(ImageError):
            return images.digest(index)
        return None

    first = digest(0)  # an archive is opened once, here, and not by every thread
    with ThreadPoolExecutor(_workers()) as pool:
        return [first, *pool.map(digest, range(1, len(images)))]


def _workers() -> int:
    return min(4, os.cpu_count() or 1)


# --- decoding --------------------------------------------------------------------------------------------------------


class _Ready(NamedTuple):
    """A chunk of decoded pictures."""

    end: int  # images of the set up to here
    indices: list[int]  # of those that could be read
    frames: dict[Preprocessing, list[NDArray[np.uint8]]]
    skipped: list[str]


def _decoded(images: ImageSet, sessions: Sequence[Session]) -> Iterator[_Ready]:
    """The chunks in order, decoded ahead by threads; each picture is decoded once."""
    size = max(CHUNK, *(session.batch for session in sessions))
    contracts = list(dict.fromkeys(session.artifact.manifest.preprocessing for session in sessions))

    def decode(start: int) -> _Ready:
        ready = _Ready(min(start + size, len(images)), [], {contract: [] for contract in contracts}, [])
        for index in range(start, ready.end):
            try:
                picture = images.read(index)
                frames = [contract.apply(picture) for contract in contracts]
            except ImageError:
                ready.skipped.append(images.records[index].name)
                continue
            ready.indices.append(index)
            for contract, frame in zip(contracts, frames, strict=True):
                ready.frames[contract].append(frame)
        return ready

    with ThreadPoolExecutor(_workers()) as pool:
        ahead: deque[Future[_Ready]] = deque()
        try:
            for start in range(0, len(images), size):
                ahead.append(pool.submit(decode, start))
                if len(ahead) > 2 * _workers():
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# --- answers ---------------------------------------------------------------------------------------------------------


class _Answers(NamedTuple):
    """What one artifact answered to one chunk; arrays have one entry an image."""

    predicted: NDArray[np.int64]
    rank: NDArray[np.int64]
    confidence: NDArray[np.float64] | None
    divergence: NDArray[np.float64] | None
    duration_ns: int


class _Chunk(NamedTuple):
    indices: list[int]
    answers: list[_Answers]  # one an artifact


def _answer(sessions: Sequence[Session], ready: _Ready, labels: NDArray[np.int64], first: int) -> _Chunk:
    logits, durations = [], []
    for session in sessions:
        frames = ready.frames[session.artifact.manifest.preprocessing]
        start = time.perf_counter_ns()
        logits.append(np.stack(list(session.map_batches(frames))).astype(np.float64))
        durations.append(time.perf_counter_ns() - start)
        if not np.isfinite(logits[-1]).all():
            raise InvalidResultError(
                f"evaluate {session.artifact.path}",
                "the model's output isn't finite",
                f"run: vitedge verify {session.artifact.path}",
            )
    answers = [
        _judged(session, found, logits[first], labels, duration)
        for session, found, duration in zip(sessions, logits, durations, strict=True)
    ]
    return _Chunk(ready.indices, answers)


def _judged(
    session: Session,
    logits: NDArray[np.float64],
    reference: NDArray[np.float64],
    labels: NDArray[np.int64],
    duration_ns: int,
) -> _Answers:
    """Logits [n, classes] against labels [n]. Equal logits rank in the order of their classes, as argmax does."""
    predicted = logits.argmax(axis=1)
    true = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1])[None] < labels[:, None]
    rank = ((logits > true) | ((logits == true) & earlier)).sum(axis=1)
    contract = session.artifact.manifest.preprocessing
    confidence = divergence = None
    if contract.activation != "none":
        confidence = contract.probabilities(logits.astype(np.float32)).max(axis=1).astype(np.float64)
    if contract.activation == "softmax":
        ours, theirs = _log_softmax(logits), _log_softmax(reference)
        divergence = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    return _Answers(predicted, rank, confidence, divergence, duration_ns)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _accuracy(session: Session, answers: Sequence[_Answers], reference: str) -> Accuracy:
    predicted = [int(value) for part in answers for value in part.predicted]
    rank = [int(value) for part in answers for value in part.rank]
    confidence = [part.confidence for part in answers if part.confidence is not None]
    divergence = [part.divergence for part in answers if part.divergence is not None]
    return Accuracy(
        predicted=tuple(predicted),
        rank=tuple(rank),
        calibrated=reliability(np.concatenate(confidence), np.array(rank) == 0) if confidence else None,
        divergence=Divergence(
            reference=reference, images=len(rank), total=float(sum(part.sum() for part in divergence))
        )
        if divergence
        else None,
        duration_ns=sum(part.duration_ns for part in answers),
    )


def reliability(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> Calibrated:
    """Top-1 probabilities [n] and whether they were right [n], in :data:`BINS` equal-width bins."""
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    return Calibrated(
        count=tuple(np.bincount(place, minlength=BINS).tolist()),
        correct=tuple(np.bincount(place[correct], minlength=BINS).tolist()),
        confidence_sum=tuple(np.bincount(place, weights=confidence, minlength=BINS).tolist()),
    )
