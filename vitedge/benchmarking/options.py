"""Options of a latency measurement."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, get_args

from msgspec import Meta

from vitedge.core.files import sha256
from vitedge.core.options import Flag, time_flag
from vitedge.core.schema import Record
from vitedge.errors import ImageError, UsageError
from vitedge.formats.samples import Rules, Scenario, Tool

if TYPE_CHECKING:
    from vitedge.benchmarking.arrivals import Replay
    from vitedge.data.images import ImageSet
    from vitedge.formats.artifact import Artifact

PICTURES = 24  # this number is fed, one after another
TOOLS = get_args(Tool)
LOAD, STOP, SWEEPS, BESIDE = "Load", "When to stop", "What to vary", "Further measurements"
DEMO_SECONDS = 3.0  # of the demo's measurement of each artifact
ROUNDS = 30


def parse_counts(option: str) -> Callable[[str], tuple[int, ...]]:
    """Return a parser of ``4`` or ``1,2,4``: whole numbers, each once; another text is a UsageError."""

    def parse(text: str) -> tuple[int, ...]:
        numbers = [number.strip() for number in text.split(",")]
        if not all(re.fullmatch(r"\d{1,4}", number) for number in numbers) or len(set(numbers)) < len(numbers):
            hint = f"write {option} 4, or 1,2,4"
            raise UsageError("measure latency", f"{option} '{text}' isn't a list of numbers", hint)
        return tuple(int(number) for number in numbers)

    return parse


def fed_digest(images: ImageSet) -> str:
    """Return the hex SHA-256 of the files that a measurement feeds first; one that can't be read counts as such."""

    def digest(index: int) -> str:
        with contextlib.suppress(ImageError):
            return images.digest(index)
        return "unreadable"

    return sha256(" ".join(digest(index) for index in images.order(0)[:PICTURES]).encode())


class BenchConfig(Record):
    """Options of a latency measurement; None takes the value of the artifacts' targets."""

    SHORTEST_BLOCK_S: ClassVar[float] = 0.01

    scenario: Annotated[
        Scenario,
        Flag("Load: one picture in flight, as many as possible, or arrivals at a rate.", group=LOAD),
    ] = "single"
    rate_hz: Annotated[
        Annotated[float, Meta(ge=0.1, le=10_000)] | None,
        Flag("Arrival rate in scenario camera.", ("--rate",), unit="per second", group=LOAD),
    ] = None
    replay: Annotated[
        str | None,
        Flag(
            "Clip, or folder of one, that `vitedge stream --record` kept: its pictures and arrival times make scenario "
            "camera.",
            unit="path",
            group=LOAD,
        ),
    ] = None
    duration_s: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        time_flag(
            "Shortest measurement of each artifact: 30, 90s, 10m; from 1m on, burst is compared with sustained speed.",
            ("--duration",),
            default="the target's",
            group=STOP,
        ),
    ] = None
    warmup_s: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        time_flag(
            "Shortest warm-up; it lasts until the latency is stable.",
            ("--warmup",),
            default="the target's",
            group=STOP,
        ),
    ] = None
    iterations: Annotated[int, Meta(ge=1), Flag("Fewest inferences to measure.", unit="inferences", group=STOP)] = 1
    percentile: Annotated[
        float,
        Meta(ge=50, le=99.99),
        Flag("Percentile that the sample must support before measuring stops.", unit="percent", group=STOP),
    ] = 95.0
    seed: int = 0
    threads: Annotated[
        tuple[int, ...],
        Flag(
            "Number of compute threads, 0 for all physical cores; several (1,2,4) are measured one after the other.",
            unit="counts",
            default="the target's",
            parse=parse_counts("--threads"),
            group=SWEEPS,
        ),
    ] = ()
    batches: Annotated[
        tuple[int, ...],
        Flag(
            "Measure only the artifacts that were exported for these batches: 1,8.",
            ("--batch",),
            unit="counts",
            parse=parse_counts("--batch"),
            group=SWEEPS,
        ),
    ] = ()
    like: Annotated[
        tuple[str, ...],
        Flag(
            "Measure also as another tool does, and show its figures beside those of vitedge: "
            f"{', '.join(TOOLS)}; repeat the option for several.",
            unit="tool",
            group=BESIDE,
        ),
    ] = ()
    profile: Annotated[
        bool, Flag("Time every layer, and add the times up by part and block of the model.", group=BESIDE)
    ] = False
    memory_alone: bool = True  # of several artifacts, in a process of each one's own; costs a second or more each
    rounds: int = ROUNDS  # of interleaved blocks within the duration, at least; no block is longer than a second

    def rules(
        self, artifacts: Sequence[Artifact], images: ImageSet | None = None, replay: Replay | None = None
    ) -> Rules:
        """Return one set of rules for all artifacts: the longest that any of the targets demands.

        Args:
            artifacts: to be measured.
            images: pictures to feed; None: the golden ones, or the replay's.
            replay: a clip that gives pictures and arrivals.

        Raises:
            UsageError: options that contradict each other.
        """
        rate_hz = replay.rate_hz if replay is not None else self.rate_hz
        if (self.scenario == "camera") != (rate_hz is not None):
            raise UsageError(
                f"measure scenario {self.scenario}",
                "the scenario 'camera' and a rate of arrivals need each other",
                "use: --scenario camera --rate 30",
            )
        if self.scenario == "camera" and any(artifact.manifest.batch != 1 for artifact in artifacts):
            raise UsageError(
                "measure scenario camera",
                "a camera's pictures come one at a time; an artifact here takes several",
                "export it with: --batch 1",
            )
        bench = [artifact.manifest.target.bench for artifact in artifacts]
        duration_s = max(rules.min_duration_s for rules in bench) if self.duration_s is None else self.duration_s
        return Rules(
            scenario=self.scenario,
            warmup_s=max(rules.warmup_s for rules in bench) if self.warmup_s is None else self.warmup_s,
            min_duration_s=duration_s,
            min_samples=self.iterations,
            percentile=self.percentile,
            block_s=min(1.0, max(self.SHORTEST_BLOCK_S, duration_s / self.rounds)),
            settle=2,
            seed=self.seed,
            pictures=replay.name if replay is not None else "golden" if images is None else images.source.name,
            pictures_digest=None if images is None or replay is not None else fed_digest(images),
            rate_hz=rate_hz,
            replay=None if replay is None else replay.name,
        )

    def of_batches(self, artifacts: Sequence[Artifact]) -> list[Artifact]:
        """Return the artifacts of the batch sweep; an artifact takes the batch it was exported for, and no other.

        Raises:
            UsageError: no artifact has a batch of the sweep.
        """
        if not self.batches:
            return list(artifacts)
        for batch in self.batches:
            if all(artifact.manifest.batch != batch for artifact in artifacts):
                have = ", ".join(sorted({str(artifact.manifest.batch) for artifact in artifacts}))
                manifest = artifacts[0].manifest
                raise UsageError(
                    f"measure batch {batch}",
                    f"a graph's batch is set when it's exported; the artifacts here take {have}",
                    f"run: vitedge export MODEL --target {manifest.target.name} --precision {manifest.precision} "
                    f"--batch {batch} --out ARTIFACT, and name it here, too",
                )
        return [artifact for artifact in artifacts if artifact.manifest.batch in self.batches]
