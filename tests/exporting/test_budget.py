"""Budgets that pictures can show, and the fewest groups that go back to float."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.errors import UsageError
from vitedge.evaluation.fidelity import drop_of
from vitedge.exporting.groups import Group, fewest_reverted
from vitedge.formats.budget import AccuracyBudget, pictures_needed
from vitedge.formats.fidelity import Fidelity

GROUPS = [Group(name, (name,)) for name in "abcdefgh"]


def found(alike: int = 1000, pictures: int = 1000, gained: int = 0, lost: int = 0) -> Fidelity:
    return Fidelity(
        source="s",
        seen="held-out",
        pictures=pictures,
        executed_by="r",
        divergence=0.0,
        agreement=alike / pictures,
        drop=drop_of(gained, lost, pictures),
    )


def test_the_worse_end_of_the_interval_decides() -> None:
    assert drop_of(0, 4, 1000).points == pytest.approx(0.4)
    assert AccuracyBudget(max_drop=1.0).holds(found(lost=4)) and not AccuracyBudget(max_drop=0.5).holds(found(lost=4))
    assert AccuracyBudget(max_drop=0.5).holds(found(lost=4, gained=4, pictures=4000, alike=4000))
    assert AccuracyBudget(min_agreement=99.0).holds(found(alike=997)) and not AccuracyBudget(min_agreement=99.0).holds(
        found(alike=993)
    )
    assert not AccuracyBudget(max_drop=1.0).holds(Fidelity(**{**vars_of(found()), "drop": None}))
    assert (
        not AccuracyBudget()
        and str(AccuracyBudget(1.0, 99)) == "at most 1 points of top-1 lost and at least 99 % called alike"
    )


def vars_of(record: Fidelity) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


@given(st.floats(0.05, 5))
def test_the_number_of_pictures_that_would_do(points: float) -> None:
    needed = pictures_needed(points)
    assert drop_of(0, 0, needed).high <= points
    assert needed == 1 or drop_of(0, 0, needed - 1).high > points


def test_a_budget_that_pictures_cannot_show_is_refused() -> None:
    AccuracyBudget(max_drop=0.5).require(pictures_needed(0.5), labelled=True, source="s", action="a")
    with pytest.raises(UsageError, match=r"500 held-out pictures can't show a drop of at most 0\.5 points") as caught:
        AccuracyBudget(max_drop=0.5).require(500, labelled=True, source="s", action="a")
    assert caught.value.hint and "--max-drop 0.56" in caught.value.hint
    AccuracyBudget(max_drop=0.56).require(500, labelled=True, source="s", action="a")
    with pytest.raises(UsageError, match="--max-drop needs labels"):
        AccuracyBudget(max_drop=5).require(500, labelled=False, source="s", action="a")
    with pytest.raises(UsageError, match=r"can't show an agreement of 99\.9 %; 4096 would do") as caught:
        AccuracyBudget(min_agreement=99.9).require(500, labelled=False, source="s", action="a")
    assert caught.value.hint and "--min-agreement 99.2" in caught.value.hint
    AccuracyBudget(min_agreement=99.2).require(500, labelled=False, source="s", action="a")


@given(st.integers(0, len(GROUPS)))
def test_as_few_groups_as_possible_go_back(needed: int) -> None:
    tried: list[int] = []

    def judge(reverted: Sequence[Group]) -> Fidelity:
        tried.append(len(reverted))
        return found(lost=0 if len(reverted) >= needed else 30)

    best = fewest_reverted(GROUPS, judge, AccuracyBudget(max_drop=0.5))
    if needed == len(GROUPS):
        assert best is None and tried == [len(GROUPS) - 1]
    else:
        assert best is not None and list(best[0]) == GROUPS[: max(needed, 1)]
        assert len(tried) <= 4
    assert fewest_reverted(GROUPS[:1], judge, AccuracyBudget(max_drop=0.5)) is None
