"""Pictures: what stands beside a point covers no other."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Annotation
from msgspec.structs import replace

from tests.reporting import results
from vitedge.reporting import plots
from vitedge.reporting.rows import lines


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=8))
def test_a_letter_covers_no_point_and_no_other_letter(places: list[tuple[int, int]]) -> None:
    row = results.demo().rows[0]
    many = lines([replace(results.demo(), rows=(row,) * len(places))])
    with plots.picture("letters") as drawing:
        axes = drawing.axes
        axes.plot([x for x, _ in places], [y for _, y in places], "o")
        plots.letters(axes, [(line, float(x), float(y)) for line, (x, y) in zip(many, places, strict=True)])
        points = [axes.transData.transform(place) for place in places]
        drawn = [child for child in axes.get_children() if isinstance(child, Annotation)]
        assert len(drawn) == len(places)
        scale = axes.figure.dpi / 72
        middles = [
            axes.transData.transform(child.xy) + [scale * value for value in child.get_position()] for child in drawn
        ]
    for number, middle in enumerate(middles):
        assert all(math.dist(middle, point) >= 12 for point in points)
        assert all(math.dist(middle, other) >= 15 for other in middles[:number])


@pytest.mark.parametrize("most", [4, 18])
def test_a_long_name_is_shortened(most: int) -> None:
    assert plots.shortened("x" * 40, most) == "x" * (most - 1) + "…"
