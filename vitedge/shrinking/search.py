"""Find widths that meet a budget: choose by a table, measure the whole model, correct the table's sum, and repeat.

A table adds up what single components save, and a whole model differs from the sum. So what has to be saved by the
table is searched: first as if everything saved by one factor more or less than the table says, and between the last
trial that took too long and the last that was needlessly fast as soon as there are both. The one of many measurements
that holds may hold by luck, so that model is measured once more, for longer, and only this counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from vitedge.core.progress import Progress
from vitedge.errors import InvalidResultError
from vitedge.shrinking.choose import Option, Places, choose_with_schedule, fastest_schedule, together

TOLERANCE = 0.02  # of the budget
TRIALS = 8


class Cost(NamedTuple):
    """The cost of a model beside that of the whole model: nanoseconds, or multiply-accumulates."""

    shrunk: float
    full: float


@dataclass(frozen=True)
class Budget:
    """The cost that a shrunk model may have."""

    kind: str  # "latency" in milliseconds, "speedup" as a factor, "macs" as a fraction
    value: float

    def allowed(self, full: float) -> float:
        """Return the allowed cost, in the unit of the whole model's."""
        if self.kind == "latency":
            return self.value * 1e6
        return full / self.value if self.kind == "speedup" else full * self.value

    def __str__(self) -> str:
        unit = {"latency": "{:g} ms", "speedup": "{:g} times as fast", "macs": "{:.0%} of the multiply-accumulates"}
        return unit[self.kind].format(self.value)


@dataclass(frozen=True)
class Trial:
    """A choice of widths whose whole model was measured or counted."""

    options: tuple[Option, ...]  # one a place
    cost: Cost
    budget: Budget
    sure: bool = False  # measured once more, for longer

    @property
    def allowed(self) -> float:
        """The cost that the budget allows."""
        return self.budget.allowed(self.cost.full)

    @property
    def widths(self) -> Mapping[str, int]:
        """The widths of the components that become narrower."""
        return together(self.options).widths

    @property
    def over(self) -> float:
        """The fraction by which the cost exceeds the budget; negative where it's below."""
        return self.cost.shrunk / self.allowed - 1


def meet(
    schedules: Sequence[Places],
    budget: Budget,
    start: Cost,
    measure: Callable[[Option], Cost],
    action: str,
    progress: Progress,
    *,
    confirm: Callable[[Option], Cost] | None = None,
    guess: float | None = None,
) -> Trial:
    """Find the widths of least error that meet a budget.

    Args:
        schedules: what may be chosen (:func:`vitedge.shrinking.choose.schedules_of`).
        budget: what the shrunk model may take.
        start: cost by the table where nothing becomes narrower, and the whole model's beside it. They differ where the
            input is smaller; that is measured first, as it may be all it takes.
        measure: builds and measures the model of what was chosen.
        action: for error texts.
        progress: called with ("budget", trials done, trials at most).
        confirm: measures with less noise; None: ``measure`` has none.
        guess: what had to be saved by the table in a similar search, to begin with; None: what is missing.

    Returns:
        A trial, confirmed, within :data:`TOLERANCE` of the budget; where the widths are too coarse for that, the one of
        least error that takes less.

    Raises:
        InvalidResultError: the budget can't be met; what was reached is said.
    """
    trials, most = list[Trial](), fastest_schedule(schedules)
    low, high = 0.0, float("inf")  # what has to be saved by the table: known to be too little, and more than enough
    if start.shrunk != start.full:
        start = measure(Option(0.0, 0.0))
    needed = start.shrunk - budget.allowed(start.full) if guess is None else guess
    for number in range(TRIALS):
        progress("budget", number, TRIALS)
        options = choose_with_schedule(schedules, needed) or most
        if any(tuple(options) == trial.options for trial in trials):
            break
        trial = Trial(tuple(options), measure(together(options)), budget)
        if abs(trial.over) <= TOLERANCE:
            trial = _confirmed(trial, confirm)
        cost = trial.cost
        trials.append(trial)
        if abs(trial.over) <= TOLERANCE or (needed <= 0 and trial.over <= 0):
            break
        saved = together(options).saved
        if trial.over > 0:
            low = max(low, needed)
            if saved >= together(most).saved:
                break
        else:
            high = min(high, needed)
        before = cost.full * start.shrunk / start.full
        real = max(before - cost.shrunk, 0.05 * saved, 1.0)
        needed = saved * (before - trial.allowed) / real
        if not low < needed < high:
            needed = (low + high) / 2 if high < float("inf") else 1.2 * low or cost.shrunk - trial.allowed
    progress("budget", TRIALS, TRIALS)
    return _best(trials, budget, action, confirm)


def _confirmed(trial: Trial, confirm: Callable[[Option], Cost] | None) -> Trial:
    """Return a trial with its confirmed cost."""
    if confirm is None or trial.sure:
        return trial
    return replace(trial, cost=confirm(together(trial.options)), sure=True)


def _best(trials: Sequence[Trial], budget: Budget, action: str, confirm: Callable[[Option], Cost] | None) -> Trial:
    """Return the trial of least error among those that meet the budget."""
    trials = sorted(trials, key=lambda trial: (together(trial.options).error, -trial.over))
    for number, trial in enumerate(trials):
        if trial.over <= TOLERANCE:
            trials[number] = _confirmed(trial, confirm)
            if trials[number].over <= TOLERANCE:
                return trials[number]
    fastest = min(trials, key=lambda trial: trial.over)
    raise InvalidResultError(
        action,
        f"the budget, {budget}, can't be met: the narrowest possible model costs "
        f"{fastest.cost.shrunk / fastest.cost.full:.0%} of the whole model, "
        f"{fastest.cost.shrunk / fastest.allowed:.2f} times what the budget allows",
        f"nothing was written; {_reachable(fastest, budget)}",
    )


def _reachable(fastest: Trial, budget: Budget) -> str:
    """Return the hint: a budget that can be met."""
    if budget.kind == "latency":
        return f"ask for --latency {1.02 * fastest.cost.shrunk / 1e6:.3g}, or start from a smaller model"
    if budget.kind == "speedup":
        speedup = int(98 * fastest.cost.full / fastest.cost.shrunk) / 100
        return f"ask for --speedup {speedup:g}, or start from a smaller model"
    return f"ask for --macs {fastest.cost.shrunk / fastest.cost.full + 0.01:.2f}, or start from a smaller model"
