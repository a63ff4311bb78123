"""Budgets that pictures can show, and the fewest groups that go back to float."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vitedge.errors import UsageError
from vitedge.evaluation.fidelity import drop_of
from vitedge.exporting.groups import Group, fewest_reverted
from vitedge.formats.budget import Budget, pictures_needed
from vitedge.formats.fidelity import Fidelity

GROUPS = [Group(name, (name,)) for name in "abcdefgh"]


def fidelity(agreeing: int = 1000, pictures: int = 1000, gained: int = 0, lost: int = 0) -> Fidelity:
    return Fidelity(
        source="s",
        split="held-out",
        pictures=pictures,
        executed_by="r",
        divergence=0.0,
        agreement=agreeing / pictures,
        top1_drop=drop_of(gained, lost, pictures),
    )


def drop_of_at_most(pp: float) -> Budget:
    return Budget.of_export(pp, None)


def agreement_of_at_least(percent: float) -> Budget:
    return Budget.of_export(None, percent)


def test_the_worse_end_of_the_interval_decides() -> None:
    assert drop_of(0, 4, 1000).pp == pytest.approx(0.4)
    assert drop_of_at_most(1.0).holds(fidelity(lost=4)) and not drop_of_at_most(0.5).holds(fidelity(lost=4))
    assert drop_of_at_most(0.5).holds(fidelity(lost=4, gained=4, pictures=4000, agreeing=4000))
    assert agreement_of_at_least(99.0).holds(fidelity(agreeing=997))
    assert not agreement_of_at_least(99.0).holds(fidelity(agreeing=993))
    assert not drop_of_at_most(1.0).holds(replace(fidelity(), top1_drop=None))


def test_a_budget_without_limits_of_accuracy() -> None:
    unlimited = Budget.of_export(None, None)
    assert not unlimited.limits_accuracy and str(unlimited) == ""
    assert unlimited.holds(replace(fidelity(agreeing=0, lost=1000), top1_drop=None))
    both = Budget.of_export(1.0, 99)
    assert both.limits_accuracy
    assert str(both) == "a top-1 drop of at most 1 pp and a top-1 agreement of at least 99 %"


def test_files_name_the_limits_as_version_0_1_0_does() -> None:
    budget = Budget(max_top1_drop_pp=0.5)
    assert msgspec.json.encode(budget) == b'{"max_accuracy_drop_pts":0.5,"latency_p95_ms":null}'
    stricter = msgspec.convert({"max_accuracy_drop_pts": 0.5, "min_agreement_pct": 99.5}, Budget)
    assert stricter.agreement_limit == 99.5
    with pytest.raises(msgspec.ValidationError, match="max_accuracy_drop_pts"):
        msgspec.convert({"latency_p95_ms": 3.0}, Budget)


@given(st.floats(0.05, 5))
def test_the_number_of_pictures_that_suffices(drop_pp: float) -> None:
    needed = pictures_needed(drop_pp)
    assert drop_of(0, 0, needed).high <= drop_pp
    assert needed == 1 or drop_of(0, 0, needed - 1).high > drop_pp


def test_a_budget_that_pictures_cannot_show_is_refused() -> None:
    drop_of_at_most(0.5).require_pictures(pictures_needed(0.5), labelled=True, source="s", action="a")
    with pytest.raises(UsageError, match=r"500 hold-out pictures can't show a top-1 drop of at most 0\.5 pp") as caught:
        drop_of_at_most(0.5).require_pictures(500, labelled=True, source="s", action="a")
    assert caught.value.hint and "--max-drop 0.56" in caught.value.hint
    drop_of_at_most(0.56).require_pictures(500, labelled=True, source="s", action="a")
    with pytest.raises(UsageError, match="--max-drop needs labels"):
        drop_of_at_most(5).require_pictures(500, labelled=False, source="s", action="a")
    with pytest.raises(UsageError, match=r"can't show a top-1 agreement of 99\.9 %; 4096 suffice") as caught:
        agreement_of_at_least(99.9).require_pictures(500, labelled=False, source="s", action="a")
    assert caught.value.hint and "--min-agreement 99.2" in caught.value.hint
    agreement_of_at_least(99.2).require_pictures(500, labelled=False, source="s", action="a")


@given(st.integers(0, len(GROUPS)))
def test_as_few_groups_as_possible_go_back(needed: int) -> None:
    attempts: list[int] = []

    def evaluate(reverted: Sequence[Group]) -> Fidelity:
        attempts.append(len(reverted))
        return fidelity(lost=0 if len(reverted) >= needed else 30)

    reverted = fewest_reverted(GROUPS, evaluate, drop_of_at_most(0.5))
    if needed == len(GROUPS):
        assert reverted is None and attempts == [len(GROUPS) - 1]
    else:
        assert reverted is not None and list(reverted) == GROUPS[: max(needed, 1)]
        assert len(attempts) <= 4
    assert fewest_reverted(GROUPS[:1], evaluate, drop_of_at_most(0.5)) is None
