"""Which epoch is the best."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.training.evaluate import is_better

NOTHING = {"top1_percent": -1.0, "loss": math.inf}


def figure(top1: float, loss: float, images: int = 1000) -> dict[str, float]:
    return {"top1_percent": top1, "loss": loss, "images": images}


def chosen(history: list[dict[str, float]]) -> int:
    """Number of the epoch that is left, from 1."""
    best, at = NOTHING, 0
    for epoch, found in enumerate(history, 1):
        if is_better(found, best):
            best, at = found, epoch
    return at


def test_a_lucky_epoch_loses_against_less_loss() -> None:
    """The figures of a run whose seventh epoch had the best top-1 of 1,000 pictures, and a worse one on 10,000."""
    top1 = [88.2, 88.3, 89.6, 89.1, 89.4, 89.9, 91.5, 90.3, 90.7, 90.9, 91.1, 90.7]
    loss = [0.4496, 0.4233, 0.383, 0.3925, 0.3796, 0.3765, 0.3587, 0.3575, 0.3569, 0.3518, 0.3488, 0.3474]
    assert chosen([figure(*pair) for pair in zip(top1, loss, strict=True)]) == 12


def test_top1_decides_where_it_tells_epochs_apart() -> None:
    assert chosen([figure(80, 0.5), figure(85, 0.7)]) == 2, "surer of its mistakes, but fewer of them"
    assert chosen([figure(85, 0.7), figure(80, 0.5)]) == 1
    assert chosen([figure(80, 0.5), figure(85, 0.7, images=20)]) == 1


@pytest.mark.parametrize("images", [1, 1000])
def test_of_equals_the_later_one(images: int) -> None:
    assert chosen([figure(100, 0.0, images), figure(100, 0.0, images)]) == 2
    assert chosen([figure(0, 9.0, images)]) == 1, "the first is better than none"


def test_a_loss_that_is_no_number_wins_nothing() -> None:
    assert chosen([figure(80, 0.5), figure(80, math.nan)]) == 1


@given(  # no subnormal losses: a runtime that flushes them may be loaded
    st.floats(0, 100, allow_subnormal=False),
    st.floats(0, 10, allow_subnormal=False),
    st.floats(0, 10, allow_subnormal=False),
    st.integers(1, 10**6),
)
def test_at_equal_top1_the_loss_decides(top1: float, first: float, second: float, images: int) -> None:
    assert is_better(figure(top1, second, images), figure(top1, first, images)) == (second <= first)
