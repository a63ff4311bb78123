"""Millions of pictures: an engine answers shards, whose answers are Parquet files, and one result joins them.

A shard is answered when its file is there, so a run goes on where another one stopped. The result is computed from the
files alone; on the same pictures it has the columns of an evaluation in one process.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace as with_options
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec.structs import replace

from vitedge.core.files import locked, require_writable, resource_errors, sha256, write_atomic
from vitedge.core.progress import Progress, silent
from vitedge.core.schema import Record
from vitedge.data.addresses import Shard, list_shards
from vitedge.data.picture_names import keys
from vitedge.errors import UsageError
from vitedge.evaluation import on_ray
from vitedge.evaluation.evaluate import (
    MOST_UNREADABLE,
    reference_artifact,
    refuse_different_classes,
    too_many_unreadable,
)
from vitedge.evaluation.options import EngineOptions
from vitedge.evaluation.scoring import joined
from vitedge.evaluation.worker import Job, Sent
from vitedge.formats.answers import SUFFIX, Header, Worker, read_answers, read_header
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import Accuracy, DataSet, Result, Row, Stopped, Subject, now, with_partial_rows
from vitedge.runtimes.options import TOP_K, OpenOptions

#: Answers shards in any order, and yields name and content of each file.
Engine = Callable[[Job, Mapping[str, Shard], EngineOptions], Iterator[tuple[str, bytes]]]
ENGINES: dict[str, Engine] = {"ray": on_ray.run}
_OURS = re.compile(rf".*-[0-9a-f]{{16}}{re.escape(SUFFIX)}")


class ClassifiedShards(Record):
    """The outcome of a classification of many pictures."""

    answers: str  # the folder
    shards: int
    pictures: int
    unreadable: int
    examples: tuple[str, ...]  # names of some that couldn't be read


def evaluate_shards(
    artifacts: Sequence[Artifact],
    source: str,
    engine: EngineOptions,
    options: OpenOptions | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Result:
    """Measure accuracy, agreement and calibration on all pictures of a source, by an engine.

    Args:
        artifacts: at least one, all with the same classes.
        source: path or address of labelled pictures: a folder of them, tar or Parquet shards.
        engine: which engine, where its answers go, and how it's used.
        options: how each artifact is opened.
        resume: keep the answers that are there; only what is missing is evaluated.
        overwrite: permit replacing them.
        progress: called with (task, shards done, all shards).

    Raises:
        UsageError: classes that differ or don't match, pictures that an artifact was calibrated on, answers to another
            question in the folder, or workers that don't give the same answers.
        ImageError: a shard can't be read, or more than 1 % of all pictures.
        InvalidResultError: an output that isn't finite.
        NotInstalledError: the engine, or a runtime, isn't installed.
        ResourceError: the cluster has no room, or workers die again and again.
        Stopped: interrupted; it holds what was evaluated until then.
    """
    action, created = f"evaluate on {source}", now()
    refuse_different_classes(artifacts, action)
    run = _Run("evaluate", artifacts, [source], engine, options, action=action)
    try:
        run.answer(resume=resume, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt as stop:
        if not run.answered:
            raise
        stopped = Stopped("evaluate accuracy", _result(run, artifacts, source, created, partial=True), stop)
        stopped.hint = f"add --resume: the answers in {engine.answers} are kept"
        raise stopped from stop
    return _result(run, artifacts, source, created, partial=False)


def classify_shards(
    artifact: Artifact,
    sources: Sequence[str],
    engine: EngineOptions,
    options: OpenOptions | None = None,
    *,
    top_k: int = TOP_K,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> ClassifiedShards:
    """Classify all pictures of some sources, by an engine; the answers are Parquet files.

    Args and errors are those of :func:`evaluate_shards`; the pictures need no labels.
    """
    action = "classify pictures"
    run = _Run("classify", [artifact], sources, engine, options, action=action, top_k=top_k)
    run.answer(resume=resume, overwrite=overwrite, progress=progress)
    pictures, unreadable, examples = 0, 0, list[str]()
    for file in run.answered:
        _, rows = read_answers(run.folder / file, file)
        bad = [name for name, problem in zip(rows["picture"], rows["problem"], strict=True) if problem]
        pictures, unreadable = pictures + len(rows["picture"]), unreadable + len(bad)
        examples += bad[: max(0, 3 - len(examples))]
    return ClassifiedShards(
        answers=str(run.folder),
        shards=len(run.answered),
        pictures=pictures,
        unreadable=unreadable,
        examples=tuple(examples),
    )


class _Run:
    """The shards of some sources, and the folder of their answers."""

    def __init__(
        self,
        verb: str,
        artifacts: Sequence[Artifact],
        sources: Sequence[str],
        engine: EngineOptions,
        options: OpenOptions | None,
        *,
        action: str,
        top_k: int = 0,
    ) -> None:
        if engine.engine is None or engine.answers is None:
            missing = "--answers FOLDER" if engine.answers is None else "--engine ray"
            raise UsageError(action, "an engine keeps its answers, one file for each shard", f"add: {missing}")
        self.folder, self._engine = Path(engine.answers), engine
        options = options or OpenOptions()
        threads = engine.actor_cpus if options.threads is None else options.threads
        self._job = Job(
            verb="evaluate" if verb == "evaluate" else "classify",
            artifacts=tuple(map(Sent.of, artifacts)),
            options=with_options(options, threads=threads, progress=None),
            columns=engine.columns,
            top_k=top_k,
            action=action,
        )
        shards = [each for source in sources for each in list_shards(source, engine.shard_pictures, action)]
        self._shards = {self._job.file_of(shard): shard for shard in shards}

    @property
    def answered(self) -> list[str]:
        """The names of the existing answer files, in the order of their shards."""
        return [file for file in self._shards if (self.folder / file).exists()]

    def answer(self, *, resume: bool, overwrite: bool, progress: Progress) -> None:
        """Have the engine answer every shard whose file is missing."""
        action = self._job.action
        require_writable(self.folder.parent, action)
        with locked(self.folder, action):
            there = self._there(resume=resume, overwrite=overwrite)
            answered = there if resume else []
            missing = {file: shard for file, shard in self._shards.items() if file not in set(answered)}
            worker: Worker | None = None
            for file in answered:
                worker = _same(worker, read_header(self.folder / file, file), action)
            progress(self._job.verb, len(answered), len(self._shards))
            if not missing:
                return
            run = ENGINES[str(self._engine.engine)]
            with contextlib.closing(run(self._job, missing, self._engine)) as answers:  # type: ignore[type-var]
                for done, (file, data) in enumerate(answers, len(answered) + 1):
                    worker = _same(worker, read_header(data, file), action)
                    if done == 1:  # the engine works, so the old files can be deleted
                        for name in there:
                            (self.folder / name).unlink()
                    write_atomic(self.folder / file, data, action)
                    progress(self._job.verb, done, len(self._shards))

    def _there(self, *, resume: bool, overwrite: bool) -> list[str]:
        """Return the answer files in the folder, which are kept or replaced.

        Raises:
            UsageError: there are others, or something else.
        """
        action, folder = self._job.action, self.folder
        with resource_errors(action, folder):
            folder.mkdir(parents=True, exist_ok=True)
            there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        foreign = [name for name in there if not _OURS.fullmatch(name)]
        if foreign:
            reason = f"{folder} holds something else than answers: {foreign[0]}"
            raise UsageError(action, reason, "name another folder: --answers FOLDER")
        if there and not (resume or overwrite):
            raise UsageError(
                action, f"{folder} holds answers already", "continue with --resume, or start again with --overwrite"
            )
        others = [name for name in there if name not in self._shards]
        if resume and others:
            reason = f"{folder} holds answers of other artifacts, options or pictures: {others[0]}"
            raise UsageError(action, reason, "name another --answers, or start again with --overwrite")
        return there


def _same(worker: Worker | None, header: Header, action: str) -> Worker:
    """Check that all files were written by equal workers, and return the worker.

    Raises:
        UsageError: this one's was another.
    """
    if worker is not None and worker != header.worker:
        ours, theirs = (f"{each.versions} {list(each.sessions)}" for each in (worker, header.worker))
        reason = f"the workers differ, so their answers might, too: {ours}; and {header.shard} by {theirs}"
        raise UsageError(action, reason, "give all nodes the same versions, then start again with --overwrite")
    return header.worker


def _result(run: _Run, artifacts: Sequence[Artifact], source: str, created: str, *, partial: bool) -> Result:
    """Build the result from the files as one evaluation would: pictures in the order of their keys.

    Raises:
        ImageError: more than 1 % of all pictures can't be read.
    """
    headers, columns, order = _pictures(run, len(artifacts))
    pictures, predicted = columns["picture"], columns["predicted_1"]
    readable = [index for index in order if predicted[index] is not None]
    skipped = tuple(pictures[index] for index in order if predicted[index] is None)
    if not partial and len(skipped) > MOST_UNREADABLE * len(order):
        raise too_many_unreadable(f"evaluate on {source}", skipped)

    def column(name: str) -> tuple[Any, ...]:
        values = columns[name]
        return tuple(values[index] for index in readable)

    data = DataSet(
        source=PurePosixPath(source.rstrip("/")).name,
        digest=sha256("".join(sorted(column("sha256"))).encode()),
        classes=tuple(label.name for label in artifacts[0].manifest.classes),
        names=column("picture"),
        label=column("label"),
        skipped=skipped,
    )
    reference = reference_artifact(artifacts).digest
    accuracies = [
        replace(
            joined([header.sums[number] for header in headers], reference),
            predicted=column(f"predicted_{number + 1}"),
            rank=column(f"rank_{number + 1}"),
        )
        for number in range(len(artifacts))
    ]
    result = Result(
        created=created,
        environment=headers[0].environment,
        rows=tuple(map(_row, artifacts, accuracies, range(len(artifacts)), repeat(headers))),
        data=data,
        partial=partial,
    )
    return with_partial_rows(result)


def _pictures(run: _Run, artifacts: int) -> tuple[list[Header], dict[str, list[Any]], list[int]]:
    """Return the files' headers, their columns one after another, and the order of the pictures' keys."""
    numbers = range(1, artifacts + 1)
    names = ["picture", "class", "sha256", "label", *(f"{each}_{n}" for n in numbers for each in ("predicted", "rank"))]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    headers, members = list[Header](), list[str]()
    for file in run.answered:
        header, rows = read_answers(run.folder / file, file)
        headers.append(header)
        for name in names:
            columns[name] += rows[name]
        members += [picture.removeprefix(f"{header.shard}/") for picture in rows["picture"]]
    in_shards = headers[0].kind != "pictures"  # then the class isn't part of the name
    by = keys(members if in_shards else columns["picture"], columns["class"] if in_shards else None)
    order = sorted(range(len(by)), key=lambda index: (by[index], columns["picture"][index]))
    return headers, columns, order


def _row(artifact: Artifact, accuracy: Accuracy, number: int, headers: Sequence[Header]) -> Row:
    worker = headers[0].worker
    processors = sorted({str(header.environment.processor.model) for header in headers})
    several = {"processors": "; ".join(processors)} if len(processors) > 1 else {}
    return Row(
        subject=Subject.of(artifact),
        session={**worker.sessions[number], "shards": len(headers), **several},
        precision_executed=worker.precision_executed[number],
        accuracy=accuracy,
    )
