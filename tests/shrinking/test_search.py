"""Meeting a budget, where the whole model takes something else than the table adds up to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from vitedge.core.progress import silent
from vitedge.errors import InvalidResultError
from vitedge.shrinking.choose import Option, together
from vitedge.shrinking.search import TOLERANCE, Budget, Cost, meet

FULL = 1000.0
START = Cost(FULL, FULL)
#: Twelve places whose options save up to 60 of 1000; errors grow faster than what is saved.
PLACES = [
    [Option(5.0 * step, (1 + place) * float(step) ** 2, {f"p{place}": 12 - step} if step else {}) for step in range(13)]
    for place in range(12)
]


def saved(widths: Mapping[str, int]) -> float:
    return sum(5.0 * (12 - width) for width in widths.values())


@pytest.mark.parametrize(
    "real",
    [lambda x: x, lambda x: 0.7 * x, lambda x: 1.3 * x, lambda x: x - 0.0004 * x**2, lambda x: 40.0 + 0.6 * x],
    ids=["as the table says", "less", "more", "less and less", "something at once"],
)
@pytest.mark.parametrize("budget", [Budget("speedup", 1.25), Budget("macs", 0.7), Budget("latency", 0.85e-3)])
def test_the_budget_is_met_whatever_the_table_missed(real: Callable[[float], float], budget: Budget) -> None:
    trial = meet([PLACES], budget, START, lambda each: Cost(FULL - real(saved(each.widths)), FULL), "shrink", silent)
    assert abs(trial.over) <= TOLERANCE
    assert trial.cost.shrunk == FULL - real(saved(trial.widths))


def test_what_cannot_be_met_says_what_can() -> None:
    with pytest.raises(InvalidResultError) as caught:
        meet([PLACES], Budget("speedup", 9), START, lambda each: Cost(FULL - saved(each.widths), FULL), "x", silent)
    assert caught.value.reason.startswith("the budget, 9 times as fast, can't be met")
    assert "costs 28% of the whole model, 2.52 times" in caught.value.reason  # 1000 / 280
    assert "ask for --speedup 3.5," in caught.value.hint


def test_coarse_widths_take_the_step_below_the_budget() -> None:
    coarse = [[Option(0, 0.0), Option(300, 1.0, {"a": 0})], [Option(0, 0.0), Option(200, 3.0, {"b": 0})]]
    cost = {(): 1000.0, ("a",): 700.0, ("b",): 800.0, ("a", "b"): 500.0}
    trial = meet(
        [coarse], Budget("speedup", 1.25), START, lambda each: Cost(cost[tuple(sorted(each.widths))], FULL), "x", silent
    )
    assert trial.widths == {"a": 0}, "the least error that takes at most 800"


@pytest.mark.parametrize("table", [0.9, 1.0, 1.1], ids=["the table says less", "as it says", "the table says more"])
def test_a_smaller_input_has_less_to_save(table: float) -> None:
    """600 of the whole model's 1000 before anything is narrowed, which the table may have wrong."""
    start = Cost(table * 600.0, FULL)
    trial = meet([PLACES], Budget("speedup", 2), start, lambda each: Cost(600 - saved(each.widths), FULL), "x", silent)
    assert abs(trial.over) <= TOLERANCE and 90 <= saved(trial.widths) <= 110


@pytest.mark.parametrize("real", [500.0, 700.0], ids=["as the table says", "more"])
def test_a_smaller_input_may_be_all_it_takes(real: float) -> None:
    budget = Budget("speedup", 1.6)
    start = Cost(500.0, FULL)
    trial = meet([PLACES], budget, start, lambda each: Cost(real - saved(each.widths), FULL), "x", silent)
    assert trial.over <= TOLERANCE and bool(trial.widths) == (real > 625)


def test_what_holds_by_luck_is_measured_again_and_alone_that_counts() -> None:
    """The first measurement of every model is a tenth too good."""

    def real(each: Option) -> Cost:
        return Cost(FULL - saved(each.widths), FULL)

    def lucky(each: Option) -> Cost:
        return Cost(0.9 * (FULL - saved(each.widths)), FULL)

    trial = meet([PLACES], Budget("speedup", 1.25), START, lucky, "shrink", silent, confirm=real)
    assert trial.sure and trial.cost == real(together(trial.options)) and abs(trial.over) <= TOLERANCE
    with pytest.raises(InvalidResultError, match="can't be met"):
        meet([PLACES], Budget("speedup", 3.9), START, lucky, "shrink", silent, confirm=real)


def test_a_guess_from_a_similar_search_saves_trials() -> None:
    """The table promises twice what is saved; what sufficed once is tried first the next time."""

    def half(each: Option) -> Cost:
        measured.append(each)
        return Cost(FULL - 0.5 * saved(each.widths), FULL)

    measured: list[Option] = []
    trial = meet([PLACES], Budget("speedup", 1.25), START, half, "shrink", silent)
    tried = len(measured)
    again = meet([PLACES], Budget("speedup", 1.25), START, half, "shrink", silent, guess=together(trial.options).saved)
    assert abs(again.over) <= TOLERANCE and len(measured) - tried == 1 < tried
