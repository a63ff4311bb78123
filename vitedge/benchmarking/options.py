"""How latency is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitedge.errors import UsageError

if TYPE_CHECKING:
    from vitedge.benchmarking.arrivals import Replay
    from vitedge.formats.artifact import Artifact
    from vitedge.formats.samples import Rules, Scenario

BLOCKS = 20  # at least so many blocks within the minimum duration, and none longer than a second


@dataclass(frozen=True)
class BenchConfig:
    """How to measure; None takes what the artifacts' targets say.

    ``threads`` and ``batches`` are sweeps: every artifact with each number of compute threads; only the artifacts that
    were exported for these batches. ``like`` are keys of :data:`vitedge.benchmarking.protocols.TOOLS`.
    """

    scenario: Scenario = "single"
    rate_hz: float | None = None
    duration_s: float | None = None
    warmup_s: float | None = None
    iterations: int = 1
    percentile: float = 95.0
    seed: int = 0
    threads: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    like: tuple[str, ...] = ()
    profile: bool = False
    replay: Replay | None = None
    memory_alone: bool = True  # of several artifacts, in a process of each one's own; costs a second or more each

    def rules(self, artifacts: Sequence[Artifact], pictures: str) -> Rules:
        """One set of rules for all: the longest that any of the targets demands.

        Raises:
            UsageError: options that contradict each other.
        """
        from vitedge.formats.samples import Rules

        rate_hz = self.replay.rate_hz if self.replay is not None else self.rate_hz
        if (self.scenario == "camera") != (rate_hz is not None):
            raise UsageError(
                f"measure scenario {self.scenario}",
                "a rate of arrivals belongs to the scenario 'camera', and the other way round",
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
            block_s=min(1.0, max(0.01, duration_s / BLOCKS)),
            settle=2,
            seed=self.seed,
            pictures=pictures if self.replay is None else self.replay.name,
            rate_hz=rate_hz,
            replay=None if self.replay is None else self.replay.name,
        )

    def of_batches(self, artifacts: Sequence[Artifact]) -> list[Artifact]:
        """The artifacts of the batch sweep; an artifact takes the batch it was exported for, and no other.

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
