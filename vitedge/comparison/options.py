"""How a comparison is measured, and what a candidate may cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from vitedge.benchmarking.options import Wish
from vitedge.core.schema import Record

if TYPE_CHECKING:
    from vitedge.formats.artifact import Artifact
    from vitedge.formats.samples import Rules

ROUNDS, TURN = 60, 10  # of a run that compares, and inferences in each of its turns, at least


class Allowed(Record):
    """What a candidate may cost; None takes its target's budget, or no slow-down at all."""

    max_slowdown_pct: float | None = None  # of the baseline's time; negative demands a gain
    max_drop_pts: float | None = None  # percentage points of top-1


@dataclass(frozen=True)
class Rounds(Wish):
    """A wish with many short turns, so that both artifacts have the same neighbours.

    A turn holds :data:`TURN` inferences at least: one that ended by the clock while a
    neighbour has the processor would hold none that wasn't interrupted.
    """

    memory_alone: bool = False  # memory isn't compared
    rounds: int = ROUNDS

    def rules(self, artifacts: Sequence[Artifact], pictures: str) -> Rules:
        """As :meth:`Wish.rules`, in ``rounds`` turns."""
        rules = super().rules(artifacts, pictures)
        return msgspec.structs.replace(
            rules,
            block_s=min(1.0, max(0.005, rules.min_duration_s / self.rounds)),
            block_samples=TURN,
            min_samples=max(rules.min_samples, self.rounds * TURN),
        )
