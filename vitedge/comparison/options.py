"""Options of a comparison: the measurement, and the loss that a candidate is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from msgspec import field
from msgspec.structs import replace

from vitedge.benchmarking.options import BenchConfig
from vitedge.core.schema import Record

if TYPE_CHECKING:
    from vitedge.benchmarking.arrivals import Replay
    from vitedge.data.images import ImageSet
    from vitedge.formats.artifact import Artifact
    from vitedge.formats.samples import Rules

ROUNDS, BLOCK_SAMPLES = 60, 10  # of a run that compares, and inferences in each of its blocks, at least

SLOWDOWN_PCT = 0.0  # allowed by default


class Tolerance(Record):
    """The largest loss allowed to a candidate; None takes its target's budget, or :data:`SLOWDOWN_PCT`."""

    max_slowdown_pct: float | None = None  # of the baseline's time; negative demands a gain
    max_top1_drop_pp: float | None = field(default=None, name="max_drop_pts")  # percentage points of top-1


class PairedConfig(BenchConfig):
    """Options for measuring a pair: many short interleaved blocks, so that other processes disturb both alike.

    A block holds :data:`BLOCK_SAMPLES` inferences at least: a block that ended by the clock while another process has
    the processor would hold no undisturbed inference.
    """

    SHORTEST_BLOCK_S: ClassVar[float] = 0.005

    memory_alone: bool = False  # memory isn't compared
    rounds: int = ROUNDS

    def rules(
        self, artifacts: Sequence[Artifact], images: ImageSet | None = None, replay: Replay | None = None
    ) -> Rules:
        """Return the rules of :meth:`BenchConfig.rules`, in ``rounds`` rounds of blocks."""
        rules = super().rules(artifacts, images, replay)
        return replace(
            rules,
            block_samples=BLOCK_SAMPLES,
            min_samples=max(rules.min_samples, self.rounds * BLOCK_SAMPLES),
        )
