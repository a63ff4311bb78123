"""The chooser: exact against brute force, and what a place offers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitedge.shrinking.choose import Option, choose, leading, most_saving, places_of, together

ERRORS = st.floats(0, 10, allow_subnormal=False)
PLACES = st.lists(
    st.lists(st.builds(Option, st.integers(-3, 40), ERRORS), min_size=0, max_size=4).map(
        lambda options: [Option(0, 0.0), *options]
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=50, deadline=None)
@given(places=PLACES, needed=st.integers(0, 150))
def test_the_least_error_of_all_that_save_enough(places: list[list[Option]], needed: int) -> None:
    every = map(together, itertools.product(*places))
    errors = [each.error for each in every if each.saved >= needed]
    chosen = choose(places, needed)
    assert (chosen is None) == (not errors)
    if chosen is not None:
        assert all(option in options for option, options in zip(chosen, places, strict=True))
        assert together(chosen).saved >= needed
        assert together(chosen).error == pytest.approx(min(errors), rel=1e-12, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(scale=st.floats(1, 1e9, allow_subnormal=False), places=PLACES)
def test_large_numbers_are_counted_in_steps_and_still_save_enough(scale: float, places: list[list[Option]]) -> None:
    scaled = [[Option(option.saved * scale, option.error) for option in options] for options in places]
    needed = together(most_saving(scaled)).saved / 2
    chosen = choose(scaled, needed)
    assert chosen is not None and together(chosen).saved >= needed * (1 - 1e-12)


@dataclass(frozen=True)
class Part:
    """As a component."""

    name: str
    kind: str
    width: int
    offered: tuple[int, ...] = ()


def test_fewer_heads_leave_less_to_narrow_and_none_leave_nothing() -> None:
    parts = [Part("a.heads", "heads", 4), Part("a.value", "value", 32)]
    saved = {"a.heads": {2: 50.0, 0: 110.0}, "a.value": {16: 20.0}}
    errors = {"a.heads": {2: 1.0, 0: 9.0}, "a.value": {16: 0.5}}
    (options,) = places_of(parts, saved, errors)  # type: ignore[arg-type]
    assert [(option.saved, option.error, dict(option.widths)) for option in options] == [
        (0, 0, {}),
        (20, 0.5, {"a.value": 16}),
        (50, 1.0, {"a.heads": 2}),
        (60, 1.5, {"a.heads": 2, "a.value": 16}),
        (110, 9.0, {"a.heads": 0}),
    ]


def test_what_saves_less_at_a_higher_error_is_not_offered() -> None:
    saved, errors = {"mlp": {64: 10.0, 32: 8.0, 16: 30.0}}, {"mlp": {64: 1.0, 32: 2.0, 16: 3.0}}
    (options,) = places_of([Part("mlp", "hidden", 128)], saved, errors)  # type: ignore[list-item]
    assert [dict(option.widths) for option in options] == [{}, {"mlp": 64}, {"mlp": 16}]


def test_schedules_lead_by_the_width_of_a_component() -> None:
    def schedule(error: float, **widths: int) -> list[list[Option]]:
        places = [[Option(0, 0), Option(10, error, {"mlp": 8})]]
        return [*places, [Option(5, 0, widths)]] if widths else places

    whole, merged = schedule(3), schedule(1, tokens=9)
    half, quarter = schedule(2, embedding=16), schedule(9, embedding=8)
    both = schedule(0.5, embedding=16, tokens=9)
    schedules = [whole, quarter, half, merged, both]
    assert leading(schedules, 10, "embedding", 4) == [[half, both], [whole, merged], [quarter]]
    assert leading(schedules, 10, "embedding", 1) == [[half, both]]
    assert leading(schedules, 14, "embedding", 4) == [[half, both], [whole, merged], [quarter]]
    assert leading(schedules, 16, "embedding", 4) == [], "none saves enough"
