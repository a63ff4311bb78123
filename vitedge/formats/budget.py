"""The budget: the limits that a target sets for an artifact, or an export for a quantized graph."""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType, field

from vitedge.core.intervals import CONFIDENCE, paired_interval, wilson
from vitedge.core.schema import PositiveReal, Record
from vitedge.errors import UsageError
from vitedge.formats.fidelity import Fidelity


class Budget(Record):
    """Limits of accuracy loss and latency. Those of accuracy hold if the worse end of the 95 % interval is within."""

    #: Percentage points of top-1 against float32, on labelled pictures; infinity: no limit.
    max_top1_drop_pp: Annotated[float, Meta(ge=0)] = field(name="max_accuracy_drop_pts")
    latency_p95_ms: PositiveReal | None = None
    #: Percentage of pictures with the float graph's top-1.
    min_top1_agreement_pct: Annotated[float, Meta(ge=0, le=100)] | UnsetType = field(
        name="min_agreement_pct", default=UNSET
    )

    @classmethod
    def of_export(cls, max_top1_drop_pp: float | None, min_top1_agreement_pct: float | None) -> Budget:
        """Return the limits of an export; None: no limit."""
        return cls(
            max_top1_drop_pp=math.inf if max_top1_drop_pp is None else max_top1_drop_pp,
            min_top1_agreement_pct=UNSET if min_top1_agreement_pct is None else min_top1_agreement_pct,
        )

    def __str__(self) -> str:
        limits = []
        if self.drop_limit is not None:
            limits.append(f"a top-1 drop of at most {self.drop_limit:g} pp")
        if self.agreement_limit is not None:
            limits.append(f"a top-1 agreement of at least {self.agreement_limit:g} %")
        return " and ".join(limits)

    @property
    def drop_limit(self) -> float | None:
        """Percentage points of top-1; None: no limit."""
        return None if math.isinf(self.max_top1_drop_pp) else self.max_top1_drop_pp

    @property
    def agreement_limit(self) -> float | None:
        """Percentage of pictures; None: no limit."""
        return None if isinstance(self.min_top1_agreement_pct, UnsetType) else self.min_top1_agreement_pct

    @property
    def limits_accuracy(self) -> bool:
        """Whether there is a limit of drop or agreement."""
        return self.drop_limit is not None or self.agreement_limit is not None

    def require_pictures(self, count: int, *, labelled: bool, source: str, action: str) -> None:
        """Refuse limits that so few pictures can't prove, even if not one of them differed.

        Raises:
            UsageError: too few pictures (with the number that suffices), or none with labels.
        """
        drop, agreement = self.drop_limit, self.agreement_limit
        if drop is not None and not labelled:
            raise UsageError(
                action,
                f"--max-drop needs labels, and {source} has none that the model knows",
                "name labelled pictures: --held-out DIR, or use --min-agreement",
            )
        if drop is not None and (needed := pictures_needed(drop)) > count:
            raise UsageError(
                action,
                f"{count} hold-out pictures can't show a top-1 drop of at most {drop:g} pp; it takes {needed}",
                f"name more: --held-out DIR, or use --max-drop {_rounded_up(_least_drop(count))}",
            )
        if agreement is None:
            return
        most = 100 * wilson(count, count).low
        if most < agreement:
            needed = next(n for n in (2**power for power in range(40)) if 100 * wilson(n, n).low >= agreement)
            raise UsageError(
                action,
                f"{count} hold-out pictures can't show a top-1 agreement of {agreement:g} %; {needed} suffice",
                f"name more: --held-out DIR, or use --min-agreement {int(most * 10) / 10:g}",
            )

    def holds(self, fidelity: Fidelity) -> bool:
        """Whether a graph of this fidelity is within the limits of accuracy, with 95 % confidence."""
        drop, agreement = self.drop_limit, self.agreement_limit
        if drop is not None and (fidelity.top1_drop is None or fidelity.top1_drop.high > drop):
            return False
        agreeing = round(fidelity.agreement * fidelity.pictures)
        return agreement is None or 100 * wilson(agreeing, fidelity.pictures).low >= agreement


def pictures_needed(drop_pp: float) -> int:
    """Return the number of labelled pictures that prove, if none differs, a top-1 drop up to ``drop_pp`` (95 %)."""
    count = 1
    while _least_drop(count) > drop_pp:
        count *= 2
    low, high = count // 2, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _least_drop(middle) <= drop_pp else (middle, high)
    return high


def _least_drop(count: int) -> float:
    """Return the top-1 drop, percentage points, that so many pictures can't exclude, even if none of them differed."""
    return -100 * paired_interval(0, 0, count, CONFIDENCE).low


def _rounded_up(drop_pp: float) -> str:
    """Round up to hundredths."""
    return f"{-(-drop_pp * 100 // 1) / 100:.2f}"
