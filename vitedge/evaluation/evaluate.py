"""``vitedge eval``: any number of artifacts in one pass over labelled pictures.

Pictures are decoded ahead (:mod:`vitedge.evaluation.decoding`). A chunk counts when every artifact has answered it, so
an interruption leaves whole columns, and a run can go on where another one stopped.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec.structs import replace

from vitedge.core.files import sha256
from vitedge.core.progress import Progress, silent
from vitedge.data.images import ImageSet
from vitedge.errors import ImageError, UsageError
from vitedge.evaluation.decoding import Ready, cores, decoded
from vitedge.evaluation.scoring import joined, score
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import (
    Accuracy,
    DataSet,
    Environment,
    Result,
    Row,
    Stopped,
    Subject,
    now,
    with_partial_rows,
)
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.executed import executed_fractions
from vitedge.runtimes.session import Session, open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK, LARGEST_CHUNK = 32, 256
MOST_UNREADABLE = 0.01
KEEP_S = 10.0  # the partial result is saved this often


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
    """Measure accuracy, agreement and calibration, on every image or on a seeded choice of ``limit``.

    Args:
        artifacts: at least one, all with the same classes.
        images: labelled by class folders.
        options: how each is opened.
        limit: number of images to evaluate, the same ones on every machine.
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
    refuse_different_classes(artifacts, action)
    labels, digests = checked(artifacts, images, action)
    with opened(artifacts, options, progress) as evaluated:
        answered = Answered(images, labels, digests, evaluated)
        start = answered.resume(resume, action) if resume is not None else 0
        kept_at = time.monotonic()
        progress("evaluate", start, len(images))
        try:
            for end in answered.go_on(start, workers):
                answered.refuse_unreadable(action)
                progress("evaluate", end, len(images))
                if keep is not None and time.monotonic() - kept_at > KEEP_S:
                    keep(answered.result(partial=True))
                    kept_at = time.monotonic()
        except KeyboardInterrupt as stop:
            raise Stopped("evaluate accuracy", answered.result(partial=True), stop) from stop
        return answered.result(partial=False)


class Opened(NamedTuple):
    """Artifacts that are evaluated together."""

    sessions: tuple[Session, ...]  # one an artifact
    rows: tuple[Row, ...]  # each artifact's row in the result, without its accuracy
    reference: int  # number of the one that the others' outputs are compared with

    @property
    def reference_digest(self) -> str:
        """The digest of the reference artifact."""
        return self.sessions[self.reference].artifact.digest


@contextlib.contextmanager
def opened(
    artifacts: Sequence[Artifact], options: OpenOptions | None = None, progress: Progress = silent
) -> Iterator[Opened]:
    """Open a session for each artifact, and close them at the end.

    Raises:
        NotInstalledError: a runtime isn't installed.
        Others as :func:`vitedge.runtimes.session.open_session`.
    """
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
        yield Opened(tuple(sessions), tuple(rows), artifacts.index(reference_artifact(artifacts)))


def refuse_different_classes(artifacts: Sequence[Artifact], action: str) -> None:
    """Refuse artifacts whose predictions can't be compared.

    Raises:
        UsageError: classes that differ among the artifacts.
    """
    if any(artifact.manifest.classes != artifacts[0].manifest.classes for artifact in artifacts):
        raise UsageError(action, "the artifacts have different classes", "evaluate them one at a time")


def checked(
    artifacts: Sequence[Artifact], images: ImageSet, action: str
) -> tuple[NDArray[np.int64], tuple[str | None, ...]]:
    """Return class ids of the images, int64 [images], and the hex SHA-256 of each, None where it can't be read.

    Raises:
        UsageError: folders that aren't the artifacts' classes, or images that an artifact was calibrated on.
    """
    labels = images.labels([label.folder for label in artifacts[0].manifest.classes], action=action)
    digests = _digests(images)
    for artifact in artifacts:
        refuse_calibrated(artifact, digests, images, action)
    return labels, digests


class Answered:
    """The images that every artifact has answered so far, and the result that follows from them.

    Args:
        images: to evaluate on.
        labels: class id of each image, int64 [images].
        digests: hex SHA-256 of each image; None where it couldn't be read.
        evaluated: the artifacts.
    """

    def __init__(
        self, images: ImageSet, labels: NDArray[np.int64], digests: Sequence[str | None], evaluated: Opened
    ) -> None:
        self._images, self._labels, self._digests, self._evaluated = images, labels, digests, evaluated
        self._rows = evaluated.rows
        self._created, self._environment = now(), Environment.here()
        self._resumed: tuple[str, ...] = ()
        self._indices: list[int] = []  # of the images that could be read
        self._skipped: list[str] = []  # names of the others
        self._chunks: list[list[Accuracy]] = [[] for _ in self._rows]  # of each artifact

    @property
    def indices(self) -> list[int]:
        """The indices of the images that could be read, in the order of the columns."""
        return list(self._indices)

    def go_on(self, start: int = 0, workers: int | None = None) -> Iterator[int]:
        """Have every artifact answer the images from ``start`` on; yield after each chunk how many are done.

        Raises:
            ImageError: a decoder crashed.
            InvalidResultError: an output that isn't finite.
        """
        sessions, _, reference = self._evaluated
        contracts = list(dict.fromkeys(session.artifact.manifest.preprocessing for session in sessions))
        for chunk in decoded(self._images, contracts, chunk_size(sessions), start=start, workers=workers):
            labels = self._labels[chunk.indices]
            self.add(chunk, score(sessions, chunk, labels, reference) if chunk.indices else [])
            yield chunk.end

    def resume(self, earlier: Result, action: str) -> int:
        """Count the answers of an earlier result; return the number of the first image that it lacks.

        Raises:
            UsageError: it's of other artifacts, images, versions or another machine.
        """
        refuse_no_evaluation(earlier, action)
        assert earlier.data is not None
        start = len(earlier.data.names) + len(earlier.data.skipped)
        unreadable = set(earlier.data.skipped)
        names = [record.name for record in self._images.records[:start]]
        self._skipped += earlier.data.skipped
        self._indices += [index for index, name in enumerate(names) if name not in unreadable]
        self._refuse_other(earlier, action)
        self._resumed = (*earlier.resumed, self._created) if earlier.partial else earlier.resumed
        self._created = earlier.created
        for chunks, row in zip(self._chunks, earlier.rows, strict=True):
            chunks += [row.accuracy] if row.accuracy is not None else []
        return start

    def add(self, chunk: Ready, accuracies: Sequence[Accuracy]) -> None:
        """Count a chunk of images and each artifact's answers to it; no answers where no image could be read."""
        self._skipped += chunk.skipped
        self._indices += chunk.indices
        for chunks, accuracy in zip(self._chunks, accuracies, strict=False):
            chunks.append(accuracy)

    def refuse_unreadable(self, action: str) -> None:
        """Refuse to go on with too many unreadable images.

        Raises:
            ImageError: more than :data:`MOST_UNREADABLE` of all.
        """
        if len(self._skipped) > MOST_UNREADABLE * len(self._images):
            raise too_many_unreadable(action, self._skipped)

    def result(self, *, partial: bool) -> Result:
        """Return the result of all answers so far."""
        rows = [
            replace(row, accuracy=joined(chunks, self._evaluated.reference_digest), partial=False)
            for row, chunks in zip(self._rows, self._chunks, strict=True)
        ]
        return with_partial_rows(
            Result(
                created=self._created,
                environment=self._environment,
                rows=tuple(rows),
                data=self._data(),
                partial=partial,
                resumed=self._resumed,
            )
        )

    def _data(self) -> DataSet:
        return DataSet(
            source=self._images.source.name,
            digest=sha256("".join(sorted(str(self._digests[index]) for index in self._indices)).encode()),
            classes=tuple(label.name for label in self._evaluated.sessions[0].classes),
            names=tuple(self._images.records[index].name for index in self._indices),
            label=tuple(int(self._labels[index]) for index in self._indices),
            skipped=tuple(self._skipped),
        )

    def _refuse_other(self, earlier: Result, action: str) -> None:
        ours = [(row.subject, row.session, row.precision_executed) for row in self._rows]
        theirs = [(row.subject, row.session, row.precision_executed) for row in earlier.rows]
        different = [
            name
            for name, same in {
                "artifacts or options": ours == theirs,
                "images": earlier.data == self._data(),
                "a machine": earlier.environment == self._environment,
            }.items()
            if not same
        ]
        if different:
            raise UsageError(
                f"{action}, going on from an earlier result",
                f"it's of other {' and '.join(different)}".replace("other a ", "another "),
                "name another --out, or start again with --overwrite",
            )


def refuse_no_evaluation(earlier: Result, action: str) -> None:
    """Refuse to resume from, and so to replace, a measurement of something else.

    Raises:
        UsageError: it isn't an evaluation.
    """
    if earlier.data is None:
        action = f"{action}, going on from an earlier result"
        raise UsageError(action, "it isn't an evaluation", "name another file: --out FILE")


def too_many_unreadable(action: str, skipped: Sequence[str]) -> ImageError:
    """Return the error for more than :data:`MOST_UNREADABLE` of all images."""
    reason = f"more than 1 % of the images can't be read, among them {', '.join(skipped[:5])}"
    return ImageError(action, reason, "replace or remove them")


def chunk_size(sessions: Sequence[Session]) -> int:
    """Return the number of pictures to decode together: whole batches of every session where that isn't too many."""
    batches = math.lcm(*(session.batch for session in sessions))
    batches = batches if batches <= LARGEST_CHUNK else max(session.batch for session in sessions)
    return batches * -(-CHUNK // batches)


def reference_artifact(artifacts: Sequence[Artifact]) -> Artifact:
    """Return the artifact that the others are compared with: the first in float32, or the first."""
    return next((artifact for artifact in artifacts if artifact.manifest.precision == "fp32"), artifacts[0])


def reference_row(rows: Sequence[Row]) -> Row | None:
    """Return the row that the others' accuracy is compared with: the first evaluated one in float32, or the first."""
    evaluated = [row for row in rows if row.accuracy is not None]
    return next((row for row in evaluated if row.subject.precision == "fp32"), evaluated[0] if evaluated else None)


def refuse_calibrated(artifact: Artifact, digests: Sequence[str | None], images: ImageSet, action: str) -> None:
    """Refuse to evaluate on images that calibration used.

    Args:
        artifact: its manifest knows its calibration images by digest.
        digests: hex SHA-256 of each image; None where it couldn't be read.
        images: for their names.
        action: for the error text.

    Raises:
        UsageError: calibration used some of the images.
    """
    calibration = artifact.manifest.calibration
    if calibration is None:
        return
    used = set(calibration.image_digests)
    shared = [index for index, digest in enumerate(digests) if digest is not None and digest[:16] in used]
    if shared:
        raise UsageError(
            action,
            f"{artifact.manifest.name} was calibrated on {len(shared)} of these {len(images)} images, "
            f"among them {images.records[shared[0]].name}",
            "evaluate on images that were kept out of calibration",
        )


def _digests(images: ImageSet) -> tuple[str | None, ...]:
    def digest(index: int) -> str | None:
        with contextlib.suppress(ImageError):
            return images.digest(index)
        return None

    first = digest(0)  # an archive is opened once, here, and not by every thread
    with ThreadPoolExecutor(min(4, cores())) as pool:
        try:
            return first, *pool.map(digest, range(1, len(images)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a stop doesn't wait for thousands of them
