"""``vitedge bench``: measure artifacts in their runtimes with the load generator, and record the environment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from vitedge.benchmarking.arrivals import Replay
from vitedge.benchmarking.interleaving import Run
from vitedge.benchmarking.opened import OpenArtifact, pictures_of
from vitedge.benchmarking.options import BenchConfig
from vitedge.benchmarking.protocols import TOOLS, seconds
from vitedge.core.progress import Progress, silent
from vitedge.data.images import ImageSet
from vitedge.device import hardware
from vitedge.device.nvml import open_nvml
from vitedge.device.telemetry import Telemetry
from vitedge.errors import ResourceError, UsageError
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import Environment, Result, Row, Stopped, now, with_partial_rows
from vitedge.formats.samples import Rules, first_blocks
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.session import Session, open_session

RESUMING, ANEW = "go on with an earlier measurement", "measure anew: leave --resume out, and add --overwrite"


def bench(
    artifacts: Sequence[Artifact],
    config: BenchConfig | None = None,
    options: OpenOptions | None = None,
    *,
    images: ImageSet | None = None,
    replay: Replay | None = None,
    progress: Progress = silent,
    resume: Result | None = None,
    keep: Callable[[Result], None] | None = None,
    root: Path = hardware.ROOT,
) -> Result:
    """Measure artifacts, interleaved within one run.

    Args:
        artifacts: at least one.
        config: how to measure.
        options: how each is opened.
        images: pictures to preprocess and feed; None takes the artifacts' golden ones and their mirror images.
        replay: the clip of scenario ``camera``, in place of pictures at a rate.
        progress: called with (task, done, total).
        resume: an earlier result of the same question: a partial one's measurement goes on, a whole one is the answer.
        keep: called now and then with the partial result, to save it.
        root: of ``/proc`` and ``/sys``, where the sensors are.

    Raises:
        UsageError: contradicting options, an option that a runtime refuses, or a result that can't go on here.
        NotInstalledError: a runtime isn't installed.
        ImageError: too few pictures can be read.
        Stopped: interrupted; it holds what was measured until then.
    """
    config, options = config or BenchConfig(), options or OpenOptions()
    for tool in config.like:
        if tool not in TOOLS:
            raise UsageError(f"measure as '{tool}' does", f"the tools are {', '.join(TOOLS)}", "name one of them")
    artifacts = config.of_batches(artifacts)
    rules = config.rules(artifacts, images, replay)
    sweep = [replace(options, threads=threads) for threads in config.threads] or [options]
    openings = [(artifact, how) for artifact in artifacts for how in sweep]
    environment = Environment.here(root)
    if resume is not None:
        _refuse_other_question(resume, config, rules, environment, [artifact.digest for artifact, _ in openings])
        if not resume.partial:
            return _answered(resume, openings)
    rows = _rows_before(resume, len(openings))
    on_gpu = any((how.device or artifact.manifest.target.device).startswith("cuda") for artifact, how in openings)
    with contextlib.ExitStack() as stack:
        nvml = open_nvml() if on_gpu else None
        opened: list[OpenArtifact] = []
        for number, (artifact, how) in enumerate(openings):
            progress("open", number, len(openings))
            opened.append(
                OpenArtifact(
                    artifact,
                    how,
                    stack,
                    pictures_of(artifact, images) if replay is None else replay.pictures,
                    replay=replay,
                    nvml=nvml,
                    alone=config.memory_alone and len(openings) > 1,
                    before=rows[number],
                )
            )
            if len(config.threads) > 1:
                _refuse_other_threads(opened[-1], how.threads)
            _refuse_other_session(opened[-1].session, rows[number])
        progress("open", len(openings), len(openings))
        overheads = {each.shape: each.overhead(stack) for each in opened}
        run = Run(
            [each.workload for each in opened],
            rules,
            overheads=tuple(overheads.values()),
            telemetry=stack.enter_context(Telemetry(root, gpu=on_gpu)),
            before=next((row.latency for row in rows if row is not None and row.latency is not None), None),
        )
        created = resume.created if resume is not None else now()
        resumed = (*resume.resumed, now()) if resume is not None else ()

        def result(*, partial: bool) -> Result:
            measured = tuple(each.row(run, overheads[each.shape]) for each in opened)
            return with_partial_rows(
                Result(created=created, environment=environment, rows=measured, partial=partial, resumed=resumed)
            )

        try:
            run.measure(progress, None if keep is None else lambda: _keep(keep, result(partial=True)))
            _measure_apart(opened, config, progress)
        except KeyboardInterrupt as stop:
            raise Stopped("measure latency", result(partial=True), stop) from stop
        return result(partial=False)


def _keep(keep: Callable[[Result], None], result: Result) -> None:
    """Save the partial result; where the disk is full, go on, as there may be room at the end."""
    with contextlib.suppress(ResourceError):
        keep(result)


def _measure_apart(opened: Sequence[OpenArtifact], config: BenchConfig, progress: Progress) -> None:
    """Measure what isn't interleaved: profiles, and other tools' protocols."""
    if config.profile:
        for number, each in enumerate(opened):
            progress("profile", number, len(opened))
            each.take_profile()
    protocol_runs = [(each, tool) for tool in config.like for each in opened]
    total_s = sum(seconds(tool, config.duration_s) for _, tool in protocol_runs)
    for number, (each, tool) in enumerate(protocol_runs):
        progress(f"as {tool} measures it, {total_s:.0f} s in all", number, len(protocol_runs))
        each.run_protocol(tool, config.duration_s)


def _refuse_other_threads(opened: OpenArtifact, threads: int | None) -> None:
    """Refuse a sweep of threads where the session has no such number of threads.

    Raises:
        UsageError: the session has another number of compute threads than the sweep's.
    """
    actual = opened.session.info.get("threads")
    if threads and actual != threads:
        raise UsageError(
            f"measure {opened.artifact.path} with {threads} threads",
            f"its session has {actual or 'no'} compute threads on {opened.session.info.get('device')}",
            "leave --threads out",
        )


def _answered(whole: Result, openings: Sequence[tuple[Artifact, OpenOptions]]) -> Result:
    """Return a complete result, after checking that sessions here are opened as those that it was measured in.

    Raises:
        UsageError: a session here is opened otherwise.
    """
    for (artifact, how), row in zip(openings, whole.rows, strict=True):
        with open_session(artifact, how) as session:
            _refuse_other_session(session, row)
    return whole


def _refuse_other_session(session: Session, earlier: Row | None) -> None:
    """Refuse to resume a measurement with another runtime, device, threads or options.

    Raises:
        UsageError: this session was opened otherwise.
    """
    if earlier is not None and dict(earlier.session) != dict(session.info):
        other = [key for key, value in session.info.items() if earlier.session.get(key) != value]
        raise UsageError(
            RESUMING,
            f"its session had another {', '.join(other) or 'set of options'}",
            f"open it as it was, or {ANEW}",
        )


def _refuse_other_question(
    earlier: Result, config: BenchConfig, rules: Rules, environment: Environment, digests: list[str]
) -> None:
    """Refuse an earlier result that doesn't answer this request or the beginning of it.

    Raises:
        UsageError: it was measured on something else, elsewhere or under other rules, or it lacks what was asked for.
    """
    measured = [row.latency for row in earlier.rows if row.latency is not None]
    if len(measured) < len(earlier.rows) or not measured:
        raise UsageError(RESUMING, "it isn't a measurement of latency", "name another file: --out FILE")
    if [row.subject.digest for row in earlier.rows] != digests:
        raise UsageError(RESUMING, "it was about other artifacts, or about the same in another order", ANEW)
    if earlier.environment != environment:
        raise UsageError(RESUMING, "it was measured in another environment (machine, versions, power source)", ANEW)
    if any(latency.rules != rules for latency in measured):
        old = measured[0].rules
        other = [name for name in rules.__struct_fields__ if getattr(old, name) != getattr(rules, name)]
        raise UsageError(RESUMING, f"it was measured under other rules: {', '.join(other)}", ANEW)
    lacking = [] if earlier.partial else _lacking(earlier, config)
    if lacking:
        raise UsageError(RESUMING, f"it is complete, and has no {', no '.join(lacking)}", ANEW)


def _lacking(whole: Result, config: BenchConfig) -> list[str]:
    """Return the requested measurements beside latency that some row lacks."""
    profile = config.profile and any(row.profile is None for row in whole.rows)
    tools = [
        tool for tool in config.like if any(tool not in [run.tool for run in row.protocol_runs] for row in whole.rows)
    ]
    return [*(["profile"] if profile else []), *(f"measurement like {tool}" for tool in tools)]


def _rows_before(resume: Result | None, count: int) -> list[Row | None]:
    """Return the interrupted run's rows, in order, without the round that was interrupted."""
    return [None] * count if resume is None else _whole_rounds(resume.rows)


def _whole_rounds(rows: Sequence[Row]) -> list[Row | None]:
    """Cut the rows to whole rounds: block i of every row and of its overhead belongs to round i."""
    latencies = [row.latency for row in rows]
    measured = [latency for latency in latencies if latency is not None and latency.overhead is not None]
    if len(measured) < len(rows):
        return [None] * len(rows)
    rounds = min(len(samples.blocks) for each in measured for samples in (each.samples, each.overhead) if samples)
    if not rounds:
        return [None] * len(rows)
    return [
        structs.replace(
            row,
            partial=False,
            latency=structs.replace(
                latency,
                samples=first_blocks(latency.samples, rounds),
                overhead=first_blocks(latency.overhead, rounds) if latency.overhead is not None else None,
            ),
        )
        for row, latency in zip(rows, measured, strict=True)
    ]
