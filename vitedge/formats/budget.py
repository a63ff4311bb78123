"""Budgets: what a device demands, and what quantizing may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from vitedge.core.intervals import CONFIDENCE, paired_interval, wilson
from vitedge.core.schema import PositiveReal, Record
from vitedge.errors import UsageError
from vitedge.formats.fidelity import Fidelity


class Budget(Record):
    """What an artifact has to meet on this device to be recommended."""

    max_accuracy_drop_pts: Annotated[float, Meta(ge=0)]  # percentage points of top-1 against float32
    latency_p95_ms: PositiveReal | None = None


def pictures_needed(points: float) -> int:
    """How many labelled pictures show, when not one differs, that no more than ``points`` were lost (95 %)."""
    count = 1
    while _least_drop(count) > points:
        count *= 2
    low, high = count // 2, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _least_drop(middle) <= points else (middle, high)
    return high


@dataclass(frozen=True)
class AccuracyBudget:
    """What a quantized graph may lose against the float one; it holds when the 95 % interval's worse end does."""

    max_drop: float | None = None  # percentage points of top-1, on labelled pictures
    min_agreement: float | None = None  # per cent of pictures called alike

    def __str__(self) -> str:
        parts = []
        if self.max_drop is not None:
            parts.append(f"at most {self.max_drop:g} points of top-1 lost")
        if self.min_agreement is not None:
            parts.append(f"at least {self.min_agreement:g} % called alike")
        return " and ".join(parts)

    def __bool__(self) -> bool:
        return self.max_drop is not None or self.min_agreement is not None

    def require(self, pictures: int, *, labelled: bool, source: str, action: str) -> None:
        """Refuse a budget that these pictures can't show to be held, even if not one of them differed.

        Raises:
            UsageError: too few pictures (with the number that would do), or none with labels.
        """
        if self.max_drop is not None and not labelled:
            raise UsageError(
                action,
                f"--max-drop needs labels, and {source} has none that the model knows",
                "name labelled pictures: --held-out DIR, or use --min-agreement",
            )
        if self.max_drop is not None and (needed := pictures_needed(self.max_drop)) > pictures:
            least = _least_drop(pictures)
            raise UsageError(
                action,
                f"{pictures} held-out pictures can't show a drop of at most {self.max_drop:g} points; "
                f"that takes {needed}",
                f"name more: --held-out DIR, or use --max-drop {_rounded_up(least)}",
            )
        if self.min_agreement is not None:
            most = 100 * wilson(pictures, pictures).low
            if most < self.min_agreement:
                share = self.min_agreement / 100
                needed = next(count for count in (2**power for power in range(40)) if wilson(count, count).low >= share)
                raise UsageError(
                    action,
                    f"{pictures} held-out pictures can't show an agreement of {self.min_agreement:g} %; "
                    f"{needed} would do",
                    f"name more: --held-out DIR, or use --min-agreement {int(most * 10) / 10:g}",
                )

    def holds(self, found: Fidelity) -> bool:
        """Whether the budget is kept, with 95 % confidence."""
        if self.max_drop is not None and (found.drop is None or found.drop.high > self.max_drop):
            return False
        alike = round(found.agreement * found.pictures)
        return self.min_agreement is None or 100 * wilson(alike, found.pictures).low >= self.min_agreement


def _rounded_up(points: float) -> str:
    return f"{-(-points * 100 // 1) / 100:.2f}"


def _least_drop(count: int) -> float:
    """Points of top-1 that so many pictures can't exclude, even if not one of them differed."""
    return -100 * paired_interval(0, 0, count, CONFIDENCE).low
