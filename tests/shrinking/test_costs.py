"""Costs of widths against what these widths do to the logits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.graph.test_canonical import EXPORTS, LOGITS, convert, run
from tests.graph.vits import random_images, tiny
from tests.shrinking.test_components import authored
from vitedge.errors import UsageError
from vitedge.formats.architecture import ConvStem, Rope
from vitedge.graph import surgery
from vitedge.shrinking.components import components
from vitedge.shrinking.costs import _curves, _Scale, costs
from vitedge.shrinking.embedding import NAME, embedding_of
from vitedge.shrinking.shrink import in_order, shrink
from vitedge.shrinking.structures import structures
from vitedge.shrinking.tokens import tokens_behind_blocks

PICTURES = random_images(tiny(), 40, seed=7)


def measured(model: onnx.ModelProto, component: str, width: int) -> float:
    """Squared difference of the logits about its mean over classes, once one component has this width."""
    narrow = shrink(model, {component: width}, PICTURES, sequential=component == NAME).model
    difference = run(narrow, PICTURES) - run(model, PICTURES)
    return float(np.square(difference - difference.mean(axis=1, keepdims=True)).sum(axis=1).mean())


@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 48},
        {"embed_dim": 48, "rope": Rope(kind="axial")},
        {"stem": ConvStem(channels=(24, 16), strides=(2, 4))},
    ],
    ids=["plain", "rotary", "stem"],
)
def test_costs_are_what_widths_do_to_the_logits(changes: dict[str, object]) -> None:
    """Exactly for the two that are tried, about for the others; no width costs less than a wider one."""
    model = authored(tiny(**changes))
    table, offered = costs(model, PICTURES), {each.name: each for each in components(model)}
    assert list(table) == list(offered)
    for name, widths in table.items():
        component = offered[name]
        assert tuple(widths) == component.offered and widths[component.width] == 0
        assert all(second <= first for first, second in zip(widths.values(), list(widths.values())[1:], strict=False))
        for width in component.offered[:-1]:
            tried = width in (component.offered[0], component.offered[len(component.offered) // 2 - 1])
            expected = measured(model, name, width)
            close = 1.01 if tried else 10.0
            assert widths[width] >= expected / close, name
            assert widths[width] <= expected * close or any(widths[width] == widths[w] for w in widths if w > width), (
                name
            )


@pytest.mark.parametrize("changes", [{}, {"rope": Rope(kind="mixed"), "mlp": "swiglu"}, {"qk_norm": True}], ids=str)
def test_a_rank_that_is_kept_whole_stays_exact(changes: dict[str, object]) -> None:
    """Every component solved anew at its present width: bases, orders and compensation change nothing."""
    model = authored(tiny(embed_dim=48, stem=ConvStem(channels=(24, 16), strides=(2, 4)), **changes))
    scale, offered = _Scale(model, PICTURES), {each.name: each for each in components(model)}
    expected, solved = run(model, PICTURES), 0
    embedding = embedding_of(model)
    assert embedding is not None
    for structure in in_order(model, [*structures(model), *tokens_behind_blocks(model), embedding]):
        scale.advance(structure)
        for name, (curve, narrowed) in _curves(scale, structure, offered).items():
            solved += 1
            whole = run(narrowed(offered[name].width), PICTURES)
            assert curve[offered[name].width] == 0 and len(curve) == offered[name].width + 1
            assert np.abs(whole - expected).max() <= 1e-5 * np.abs(expected).max(), name
    assert solved == len(offered) == 12 - 2 * ("qk_norm" in changes) - ("rope" in changes)


def test_costs_of_a_hybrid() -> None:
    model, _ = convert(surgery.load(EXPORTS / "rows-18.onnx"), LOGITS["rows-18"])
    assert costs(model, PICTURES)["node_linear_1"][0] == pytest.approx(measured(model, "node_linear_1", 0), rel=1e-3)


def test_some_components_alone() -> None:
    table = costs(authored(tiny()), PICTURES, names={"blocks.1.mlp"})
    assert list(table) == ["blocks.1.mlp"] and table["blocks.1.mlp"][0] > 0


def test_no_pictures() -> None:
    with pytest.raises(UsageError, match="no pictures were given"):
        costs(authored(tiny()), PICTURES[:0])
