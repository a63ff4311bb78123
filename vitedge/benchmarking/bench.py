"""``vitedge bench``: artifacts, opened in their runtimes, through the load generator, in their environment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from vitedge.benchmarking.interleaving import Run
from vitedge.benchmarking.opened import OpenArtifact, pictures_of
from vitedge.benchmarking.options import BenchConfig
from vitedge.benchmarking.protocols import TOOLS
from vitedge.core.progress import Progress, silent
from vitedge.data.images import ImageSet
from vitedge.device import hardware
from vitedge.device.nvml import open_nvml
from vitedge.device.telemetry import Telemetry
from vitedge.errors import InterruptedError_, ResourceError, UsageError
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import Environment, Result, Row, Stopped, now
from vitedge.formats.samples import Rules, first_blocks
from vitedge.runtimes.base import OpenOptions


def bench(
    artifacts: Sequence[Artifact],
    wish: BenchConfig | None = None,
    options: OpenOptions | None = None,
    *,
    images: ImageSet | None = None,
    progress: Progress = silent,
    resume: Result | None = None,
    keep: Callable[[Result], None] | None = None,
    root: Path = hardware.ROOT,
) -> Result:
    """Measure artifacts, taking turns within one run.

    Args:
        artifacts: at least one.
        wish: how to measure.
        options: how each is opened.
        images: pictures to preprocess and feed; None takes the artifacts' golden ones and their mirror images.
        progress: called with (task, done, total).
        resume: a partial result, whose measurement goes on.
        keep: called now and then with the partial result, to save it.
        root: of ``/proc`` and ``/sys``, where the sensors are.

    Raises:
        UsageError: a wish that contradicts itself, an option that a runtime refuses, or a result that can't go on here.
        NotInstalledError: a runtime isn't installed.
        ImageError: too few pictures can be read.
        Stopped: interrupted; it holds what was measured until then.
    """
    wish, options = wish or BenchConfig(), options or OpenOptions()
    for tool in wish.like:
        if tool not in TOOLS:
            raise UsageError(f"measure like '{tool}'", f"the tools are {', '.join(TOOLS)}", "name one of them")
    artifacts = wish.of_batches(artifacts)
    rules = wish.rules(artifacts, "golden" if images is None else images.source.name)
    ways = [replace(options, threads=threads) for threads in wish.threads] or [options]
    lots = [(artifact, way) for artifact in artifacts for way in ways]
    where = Environment.here(root)
    rows = _rows_before(resume, rules, where, [artifact.digest for artifact, _ in lots])
    on_gpu = any((way.device or artifact.manifest.target.device).startswith("cuda") for artifact, way in lots)
    with contextlib.ExitStack() as stack:
        nvml = open_nvml() if on_gpu else None
        entries: list[OpenArtifact] = []
        for number, (artifact, way) in enumerate(lots):
            progress("open", number, len(lots))
            pictures = pictures_of(artifact, images) if wish.replay is None else wish.replay.pictures
            entry = OpenArtifact(
                artifact,
                way,
                stack,
                pictures,
                replay=wish.replay,
                nvml=nvml,
                alone=wish.memory_alone and len(lots) > 1,
                before=rows[number],
            )
            _refuse_other_threads(entry, way, wish)
            _refuse_other_session(entry, rows[number])
            entries.append(entry)
        progress("open", len(lots), len(lots))
        overheads = {entry.shape: entry.overhead(stack) for entry in entries}
        telemetry = stack.enter_context(Telemetry(root, gpu=on_gpu))
        run = Run(
            [entry.workload for entry in entries],
            rules,
            overheads=tuple(overheads.values()),
            telemetry=telemetry,
            before=next((row.latency for row in rows if row is not None and row.latency is not None), None),
        )
        created = resume.created if resume is not None else now()
        resumed = (*resume.resumed, now()) if resume is not None else ()

        def result(*, partial: bool) -> Result:
            found = tuple(entry.row(run, overheads[entry.shape]) for entry in entries)
            return Result(created=created, environment=where, rows=found, partial=partial, resumed=resumed)

        try:
            run.measure(progress, None if keep is None else lambda: _kept(keep, result(partial=True)))
            _more(entries, wish, progress)
        except (KeyboardInterrupt, InterruptedError_) as stop:
            raise Stopped("measure latency", result(partial=True), stop) from stop
        return result(partial=False)


def _kept(keep: Callable[[Result], None], result: Result) -> None:
    """A disk that is full now may have room at the end: the measurement goes on."""
    with contextlib.suppress(ResourceError):
        keep(result)


def _more(entries: Sequence[OpenArtifact], wish: BenchConfig, progress: Progress) -> None:
    """What is measured beside the run, once it's over: profiles, other tools' rules."""
    if wish.profile:
        for number, entry in enumerate(entries):
            progress("profile", number, len(entries))
            entry.take_profile()
    turns = [(entry, tool) for tool in wish.like for entry in entries]
    for number, (entry, tool) in enumerate(turns):
        progress(tool, number, len(turns))
        entry.speak(tool, wish.duration_s)


def _refuse_other_threads(entry: OpenArtifact, way: OpenOptions, wish: BenchConfig) -> None:
    """A sweep of threads says nothing where the runtime has none.

    Raises:
        UsageError: the session has another number of threads than asked for.
    """
    got = entry.session.info.get("threads")
    if wish.threads and way.threads and got != way.threads:
        raise UsageError(
            f"measure {entry.artifact.path} with {way.threads} threads",
            f"its session has {got or 'no'} compute threads on {entry.session.info.get('device')}",
            "leave --threads out",
        )


def _refuse_other_session(entry: OpenArtifact, before: Row | None) -> None:
    """An interrupted run goes on with the same runtime, device, threads and options.

    Raises:
        UsageError: this session was opened otherwise.
    """
    if before is not None and dict(before.session) != dict(entry.session.info):
        other = [key for key, value in entry.session.info.items() if before.session.get(key) != value]
        raise UsageError(
            "go on with an interrupted measurement",
            f"its session had another {', '.join(other) or 'set of options'}",
            "open it as it was, or measure anew: leave --resume out, and add --overwrite",
        )


def _rows_before(resume: Result | None, rules: Rules, where: Environment, digests: list[str]) -> list[Row | None]:
    """The interrupted run's rows, in order, without the round that it was interrupted in.

    Raises:
        UsageError: the result is whole, or it was measured on something else, elsewhere or by other rules.
    """
    if resume is None:
        return [None] * len(digests)
    action, hint = "go on with an interrupted measurement", "measure anew: leave --resume out, and add --overwrite"
    if not resume.partial:
        raise UsageError(action, "the result is whole; nothing was interrupted", hint)
    if [row.subject.digest for row in resume.rows] != digests:
        raise UsageError(action, "it was about other artifacts, or about the same in another order", hint)
    if resume.environment != where:
        raise UsageError(action, "it was measured under another environment (machine, versions, power source)", hint)
    measured = [row.latency for row in resume.rows if row.latency is not None]
    if any(latency.rules != rules for latency in measured):
        old = measured[0].rules
        other = [name for name in rules.__struct_fields__ if getattr(old, name) != getattr(rules, name)]
        raise UsageError(action, f"it was measured by other rules: {', '.join(other)}", hint)
    return _whole_rounds(resume.rows)


def _whole_rounds(rows: Sequence[Row]) -> list[Row | None]:
    """Block i of every row and of its floor belongs to round i, so all of them go on with the same round."""
    latencies = [row.latency for row in rows]
    known = [latency for latency in latencies if latency is not None and latency.overhead is not None]
    if len(known) < len(rows):
        return [None] * len(rows)
    rounds = min(len(part.blocks) for latency in known for part in (latency.samples, latency.overhead) if part)
    if not rounds:
        return [None] * len(rows)
    return [
        structs.replace(
            row,
            latency=structs.replace(
                latency,
                samples=first_blocks(latency.samples, rounds),
                overhead=first_blocks(latency.overhead, rounds) if latency.overhead is not None else None,
            ),
        )
        for row, latency in zip(rows, known, strict=True)
    ]
