"""The accuracy budget: what may be lost, whether pictures can show it, and how few groups must go back to float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitedge.accuracy.fidelity import drop_of, pictures_needed
from vitedge.accuracy.statistics import wilson
from vitedge.errors import UsageError
from vitedge.tuning.groups import Group

if TYPE_CHECKING:
    from vitedge.artifact import Fidelity


@dataclass(frozen=True)
class Budget:
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

    def require(self, pictures: int, *, labelled: bool, source: str, asked: str) -> None:
        """Refuse a budget that these pictures can't show to be held, even if not one of them differed.

        Raises:
            UsageError: too few pictures (with the number that would do), or none with labels.
        """
        if self.max_drop is not None and not labelled:
            raise UsageError(
                asked,
                f"--max-drop needs labels, and {source} has none that the model knows",
                "name labelled pictures: --held-out DIR, or use --min-agreement",
            )
        if self.max_drop is not None and (needed := pictures_needed(self.max_drop)) > pictures:
            least = drop_of(0, 0, pictures).high
            raise UsageError(
                asked,
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
                    asked,
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


def fewest_reverted(
    order: Sequence[Group], judge: Callable[[Sequence[Group]], Fidelity], budget: Budget
) -> tuple[Sequence[Group], Fidelity] | None:
    """The shortest beginning of ``order`` that has to go back to float for the budget to hold.

    Found by halving, as if more float never lost more; what is returned was judged itself.

    Args:
        order: groups, the worst first.
        judge: builds and judges the graph with these groups in float.
        budget: what may be lost.

    Returns:
        The groups and what was found of the rest; None when even the last group alone is too much.
    """
    low, high, best = 0, len(order) - 1, None  # low fails, as the caller saw
    while high >= 1 and (best is None or high - low > 1):
        middle = high if best is None else (low + high) // 2
        found = judge(order[:middle])
        if budget.holds(found):
            best, high = (order[:middle], found), middle
        elif best is None:
            return None
        else:
            low = middle
    return best
