"""The worker of an engine: it opens sessions once, and turns a shard of pictures into a file of answers.

It knows nothing of the engine. Pictures are read, decoded, preprocessed and scored by the code of an evaluation in one
process.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

from msgspec.structs import replace

from vitedge._version import __version__
from vitedge.core.files import scratch_folder, sha256
from vitedge.core.schema import encode_json
from vitedge.data.addresses import Columns, Shard, open_shard
from vitedge.data.images import ImageSet
from vitedge.errors import ImageError
from vitedge.evaluation.decoding import decoded
from vitedge.evaluation.evaluate import Answered, Opened, checked, chunk_size, opened
from vitedge.formats import answers as formats
from vitedge.formats.answers import Header, encode_answers
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import Environment
from vitedge.runtimes.options import OpenOptions

SCRATCH = "vitedge-artifacts-"


class Sent(NamedTuple):
    """An artifact as it travels to a worker."""

    files: dict[str, bytes]  # by their paths within the folder
    because: str
    digest: str

    @classmethod
    def of(cls, artifact: Artifact) -> Sent:
        """Read all files of its folder."""
        paths = [path for path in sorted(artifact.path.rglob("*")) if path.is_file()]
        files = {path.relative_to(artifact.path).as_posix(): path.read_bytes() for path in paths}
        return cls(files, artifact.because, artifact.digest)

    def unpacked(self, folder: Path) -> Artifact:
        """Unpack the artifact into ``folder``, and check its digests again."""
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return dataclasses.replace(Artifact.open(folder), because=self.because)


class Job(NamedTuple):
    """The task that every worker of a run has."""

    verb: Literal["evaluate", "classify"]
    artifacts: tuple[Sent, ...]
    options: OpenOptions
    columns: Columns
    top_k: int  # classes that ``classify`` returns for each picture
    action: str  # for error texts

    def file_of(self, shard: Shard) -> str:
        """Return the name of the file with the answers of a shard: equal only for the same question."""
        readable = "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in shard.name)[-60:]
        options = self.options.device, self.options.threads, sorted(self.options.options.items())
        what = [self.verb, [each.digest for each in self.artifacts], options, self.columns, self.top_k, __version__]
        return (
            f"{readable}-{sha256(encode_json([what, shard.files[0], shard.names, shard.state]))[:16]}{formats.SUFFIX}"
        )


class Worker:
    """The sessions of a job, opened for the first shard and kept for the others."""

    def __init__(self, job: Job) -> None:
        self._job, self._stack = job, contextlib.ExitStack()
        self._opened: Opened | None = None

    def answer(self, shard: Shard) -> bytes:
        """Answer the pictures of a shard; return the file with the answers.

        Raises:
            as :func:`vitedge.evaluation.evaluate.evaluate` and :func:`~vitedge.data.addresses.open_shard`.
        """
        job = self._job
        sessions = self._sessions()
        with open_shard(shard, job.columns, job.action, labelled=job.verb == "evaluate") as images:
            return _ANSWERS[job.verb](job, shard, images, sessions)

    def close(self) -> None:
        """Close the sessions."""
        self._stack.close()

    def _sessions(self) -> Opened:
        if self._opened is None:
            folder = self._stack.enter_context(scratch_folder(SCRATCH, self._job.action))
            artifacts = [each.unpacked(folder / str(number)) for number, each in enumerate(self._job.artifacts)]
            self._opened = self._stack.enter_context(opened(artifacts, self._job.options))
        return self._opened


def _header(shard: Shard, sessions: Opened) -> Header:
    environment = Environment.here()
    worker = formats.Worker(
        artifacts=tuple(row.subject.digest for row in sessions.rows),
        sessions=tuple(row.session for row in sessions.rows),
        precision_executed=tuple(row.precision_executed for row in sessions.rows),
        versions=environment.versions,
    )
    return Header(shard=shard.name, kind=shard.kind, worker=worker, environment=environment)


def _evaluation(job: Job, shard: Shard, images: ImageSet, sessions: Opened) -> bytes:
    artifacts = [session.artifact for session in sessions.sessions]
    labels, digests = checked(artifacts, images, job.action)
    answered = Answered(images, labels, digests, sessions)
    for _ in answered.go_on(workers=0):
        pass
    accuracies = [row.accuracy for row in answered.result(partial=False).rows]
    columns: dict[str, list[Any]] = {
        "picture": [record.name for record in images.records],
        "class": [record.folder for record in images.records],
        "sha256": list(digests),
        "label": labels.tolist(),
    }
    sums = []
    for number, accuracy in enumerate(accuracies, 1):
        assert accuracy is not None
        predicted = _spread(accuracy.predicted, answered.indices, len(images))
        names = [None if each is None else artifacts[0].manifest.classes[each].name for each in predicted]
        columns |= {
            f"predicted_{number}": predicted,
            f"answer_{number}": names,
            f"rank_{number}": _spread(accuracy.rank, answered.indices, len(images)),
        }
        sums.append(replace(accuracy, predicted=(), rank=()))
    header = replace(_header(shard, sessions), sums=tuple(sums))
    return encode_answers(header, formats.columns_of_evaluation(len(accuracies)), columns)


def _spread(values: tuple[int, ...], indices: list[int], count: int) -> list[int | None]:
    """Place values of some of ``count`` pictures, None for the others."""
    column: list[int | None] = [None] * count
    for index, value in zip(indices, values, strict=True):
        column[index] = value
    return column


def _classification(job: Job, shard: Shard, images: ImageSet, sessions: Opened) -> bytes:
    session, *_ = sessions.sessions
    contract = session.artifact.manifest.preprocessing
    labels: list[list[str]] = [[] for _ in images.records]
    probabilities: list[list[float]] = [[] for _ in images.records]
    for chunk in decoded(images, [contract], chunk_size([session]), workers=0):
        logits = session.map_batches(chunk.frames[contract])
        for index, each in zip(chunk.indices, logits, strict=True):
            predictions = session.predictions(each, job.top_k)
            labels[index] = [prediction.label for prediction in predictions]
            probabilities[index] = [prediction.probability for prediction in predictions]
    columns: dict[str, list[Any]] = {
        "picture": [record.name for record in images.records],
        "labels": labels,
        "probabilities": probabilities,
        "problem": ["" if found else _problem(images, index) for index, found in enumerate(labels)],
    }
    return encode_answers(_header(shard, sessions), formats.columns_of_classification(), columns)


def _problem(images: ImageSet, index: int) -> str:
    """Return the reason why a picture couldn't be read."""
    try:
        images.read(index).load()
    except ImageError as error:
        return error.reason
    return "it can't be preprocessed"


_ANSWERS = {"evaluate": _evaluation, "classify": _classification}
