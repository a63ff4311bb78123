"""``vitedge eval``: any number of artifacts in one pass over labelled pictures.

Pictures are decoded ahead (:mod:`vitedge.evaluation.decoding`). A chunk counts when every artifact has answered it, so
an interruption leaves whole columns, and a run can go on where another one stopped.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from msgspec.structs import replace

from vitedge.core.files import sha256
from vitedge.core.progress import Progress, silent
from vitedge.data.images import ImageSet
from vitedge.errors import ImageError, InterruptedError_, InvalidResultError, UsageError
from vitedge.evaluation.decoding import Ready, cores, decoded
from vitedge.evaluation.fidelity import divergence as kl_divergence
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import (
    Accuracy,
    Calibrated,
    DataSet,
    Divergence,
    Environment,
    Result,
    Row,
    Stopped,
    Subject,
    now,
)
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.executed import executed_fractions
from vitedge.runtimes.session import Session, open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

Number = TypeVar("Number", int, float)

BINS = 15  # of the reliability diagram
CHUNK, LARGEST_CHUNK = 32, 256
MOST_UNREADABLE = 0.01
KEEP_S = 10.0  # what has been evaluated is kept so often


def evaluate(
    artifacts: Sequence[Artifact],
    images: ImageSet,
    options: OpenOptions | None = None,
    *,
    limit: int | None = None,
    workers: int | None = None,
    resume: Result | None = None,
    keep: Callable[[Result], None] | None = None,
    progress: Progress = silent,
) -> Result:
    """Top-1 and what belongs to it, on every image or on a seeded choice of ``limit``.

    Args:
        artifacts: at least one, all with the same classes.
        images: labelled by class folders.
        options: how each is opened.
        limit: evaluate so many images, the same ones on every machine.
        workers: processes that decode; None decides by the number of images and cores.
        resume: a partial result of the same artifacts on the same images: go on from there.
        keep: called with a partial result every :data:`KEEP_S` seconds, to survive being killed.
        progress: called with (task, done, total).

    Raises:
        UsageError: classes that differ among the artifacts or don't match the folders, images that an artifact was
            calibrated on, or a result of something else to resume.
        ImageError: more than 1 % unreadable.
        InvalidResultError: an output that isn't finite.
        NotInstalledError: a runtime isn't installed.
        Stopped: interrupted; it holds what was evaluated until then.
    """
    action = f"evaluate on {images.source}"
    if limit is not None and limit < len(images):
        images = images.subset(sorted(images.order(0)[:limit]))
    classes = artifacts[0].manifest.classes
    if any(artifact.manifest.classes != classes for artifact in artifacts):
        raise UsageError(action, "the artifacts have different classes", "evaluate them one at a time")
    labels = images.labels([label.folder for label in classes], action=action)
    digests = _digests(images)
    for artifact in artifacts:
        refuse_calibrated(artifact, digests, images, action)

    reference = reference_artifact(artifacts)
    with contextlib.ExitStack() as stack:
        progress("open", 0, len(artifacts))
        sessions = [stack.enter_context(open_session(artifact, options)) for artifact in artifacts]
        progress("open", len(artifacts), len(artifacts))
        rows = [
            Row(
                subject=Subject.of(session.artifact),
                session=dict(session.info),
                precision_executed=executed_fractions(session.artifact.manifest.layers, session.executed()),
            )
            for session in sessions
        ]
        created, where = now(), Environment.here()
        resumed: tuple[str, ...] = ()
        indices: list[int] = []
        skipped: list[str] = []
        parts: list[list[Accuracy]] = [[] for _ in sessions]  # of each artifact, one a chunk

        def data() -> DataSet:
            return DataSet(
                source=images.source.name,
                digest=sha256("".join(sorted(str(digests[index]) for index in indices)).encode()),
                classes=tuple(label.name for label in classes),
                names=tuple(images.records[index].name for index in indices),
                label=tuple(int(labels[index]) for index in indices),
                skipped=tuple(skipped),
            )

        def result(*, partial: bool) -> Result:
            found = [
                replace(row, accuracy=together(answers, reference.digest))
                for row, answers in zip(rows, parts, strict=True)
            ]
            return Result(
                created=created,
                environment=where,
                rows=tuple(found),
                data=data(),
                partial=partial,
                resumed=resumed,
            )

        start = 0
        if resume is not None and resume.data is not None:
            start = len(resume.data.names) + len(resume.data.skipped)
            skipped += resume.data.skipped
            passed_over = set(skipped)
            before = range(min(start, len(images)))
            indices += [index for index in before if images.records[index].name not in passed_over]
            _refuse_other(resume, Result(created=created, environment=where, rows=tuple(rows), data=data()), action)
            resumed = (*resume.resumed, created) if resume.partial else resume.resumed
            created = resume.created
            for part, row in zip(parts, resume.rows, strict=True):
                part += [row.accuracy] if row.accuracy is not None else []

        contracts = list(dict.fromkeys(session.artifact.manifest.preprocessing for session in sessions))
        kept = time.monotonic()
        progress("evaluate", start, len(images))
        try:
            for ready in decoded(images, contracts, _chunk_size(sessions), start=start, workers=workers):
                skipped += ready.skipped
                if len(skipped) > MOST_UNREADABLE * len(images):
                    raise ImageError(
                        action,
                        f"more than 1 % of the images can't be read, among them {', '.join(skipped[:5])}",
                        "replace or remove them",
                    )
                if ready.indices:
                    answers = _answer(sessions, ready, labels[ready.indices], artifacts.index(reference))
                    indices += ready.indices
                    for part, answer in zip(parts, answers, strict=True):
                        part.append(answer)
                progress("evaluate", ready.end, len(images))
                if keep is not None and time.monotonic() - kept > KEEP_S:
                    keep(result(partial=True))
                    kept = time.monotonic()
        except (KeyboardInterrupt, InterruptedError_) as stop:
            raise Stopped("evaluate accuracy", result(partial=True), stop) from stop
        return result(partial=False)


def _chunk_size(sessions: Sequence[Session]) -> int:
    """Pictures decoded together: whole batches of every session where that isn't too many."""
    whole = math.lcm(*(session.batch for session in sessions))
    whole = whole if whole <= LARGEST_CHUNK else max(session.batch for session in sessions)
    return whole * -(-CHUNK // whole)


def _refuse_other(earlier: Result, beginning: Result, action: str) -> None:
    """Refuse to go on from a result of other artifacts, images, versions or another machine.

    Args:
        earlier: what was evaluated before.
        beginning: what this run would have written of the same images.
        action: the wish, for the error text.

    Raises:
        UsageError: the two differ.
    """
    ours = [(row.subject, row.session, row.precision_executed) for row in beginning.rows]
    theirs = [(row.subject, row.session, row.precision_executed) for row in earlier.rows]
    other = [
        name
        for name, same in {
            "artifacts or options": ours == theirs,
            "images": earlier.data == beginning.data,
            "a machine": earlier.environment == beginning.environment,
        }.items()
        if not same
    ]
    if other:
        raise UsageError(
            f"{action}, going on from an earlier result",
            f"it's of other {' and '.join(other)}".replace("other a ", "another "),
            "name another --out, or begin anew with --overwrite",
        )


def reference_artifact(artifacts: Sequence[Artifact]) -> Artifact:
    """What the others are compared with: the first in float32, or the first."""
    return next((artifact for artifact in artifacts if artifact.manifest.precision == "fp32"), artifacts[0])


def reference_row(rows: Sequence[Row]) -> Row | None:
    """The row that the others' accuracy is compared with: the first evaluated one in float32, or the first."""
    evaluated = [row for row in rows if row.accuracy is not None]
    return next((row for row in evaluated if row.subject.precision == "fp32"), evaluated[0] if evaluated else None)


def refuse_calibrated(artifact: Artifact, digests: Sequence[str | None], images: ImageSet, action: str) -> None:
    """Refuse to evaluate on what was calibrated on.

    Args:
        artifact: its manifest knows its calibration images by digest.
        digests: hex SHA-256 of each image; None where it couldn't be read.
        images: for their names.
        action: the wish, for the error text.

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
            action,
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
    with ThreadPoolExecutor(min(4, cores())) as pool:
        return [first, *pool.map(digest, range(1, len(images)))]


# --- answers ---------------------------------------------------------------------------------------------------------


def _answer(sessions: Sequence[Session], ready: Ready, labels: NDArray[np.int64], first: int) -> list[Accuracy]:
    """What each artifact answers to one chunk; ``first`` is the reference's number."""
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
    reference = sessions[first].artifact.digest, logits[first]
    return [
        _judged(session, found, reference, labels, duration)
        for session, found, duration in zip(sessions, logits, durations, strict=True)
    ]


def _judged(
    session: Session,
    logits: NDArray[np.float64],
    reference: tuple[str, NDArray[np.float64]],
    labels: NDArray[np.int64],
    duration_ns: int,
) -> Accuracy:
    """Logits [n, classes] against labels [n]. Equal logits rank in the order of their classes, as argmax does."""
    predicted = logits.argmax(axis=1)
    true = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1])[None] < labels[:, None]
    rank = ((logits > true) | ((logits == true) & earlier)).sum(axis=1)
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


def together(parts: Sequence[Accuracy], reference: str) -> Accuracy:
    """One accuracy of those of successive chunks; ``reference`` is the digest of what they diverge from."""
    bins = [part.calibrated for part in parts if part.calibrated is not None]
    divergence = [part.divergence for part in parts if part.divergence is not None]
    return Accuracy(
        predicted=tuple(value for part in parts for value in part.predicted),
        rank=tuple(value for part in parts for value in part.rank),
        calibrated=Calibrated(
            count=_sums([part.count for part in bins]),
            correct=_sums([part.correct for part in bins]),
            confidence_sum=_sums([part.confidence_sum for part in bins]),
        )
        if bins
        else None,
        divergence=Divergence(
            reference=reference,
            images=sum(part.images for part in divergence),
            total=sum(part.total for part in divergence),
        )
        if divergence
        else None,
        duration_ns=sum(part.duration_ns for part in parts),
    )


def _sums(columns: Sequence[tuple[Number, ...]]) -> tuple[Number, ...]:
    return tuple(sum(values[1:], values[0]) for values in zip(*columns, strict=True))


def reliability(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> Calibrated:
    """Top-1 probabilities [n] and whether they were right [n], in :data:`BINS` equal-width bins."""
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    return Calibrated(
        count=tuple(np.bincount(place, minlength=BINS).tolist()),
        correct=tuple(np.bincount(place[correct], minlength=BINS).tolist()),
        confidence_sum=tuple(np.bincount(place, weights=confidence, minlength=BINS).tolist()),
    )
