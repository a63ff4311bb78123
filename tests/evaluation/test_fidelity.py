"""What is lost, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vitedge.evaluation.fidelity import divergence, fidelity

CLASSES = ("ant", "bee", "cat")


def test_flips_drop_and_divergence() -> None:
    reference = np.array([[5, 1, 0], [2, 3, 0], [0, 0, 4], [1, 1.5, 0]], np.float32)
    logits = np.array([[5, 1, 0], [3, 2, 0], [0, 0, 4], [1, 1.5, 2]], np.float32)
    labels = np.array([0, 1, 2, 2])
    found = fidelity(
        reference,
        logits,
        pictures=["w", "x", "y", "z"],
        classes=CLASSES,
        labels=labels,
        source="s",
        split="held-out",
        executed_by="r",
    )
    assert found.pictures == 4 and found.agreement == 0.5
    assert found.top1_drop is not None and found.top1_drop.pp == 0 and found.top1_drop.low < 0 < found.top1_drop.high
    assert [(flip.picture, flip.label, flip.instead) for flip in found.flips] == [
        ("x", "bee", "ant"),
        ("z", "bee", "cat"),
    ]
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (reference, logits))
    assert found.divergence == pytest.approx((p * np.log(p / q)).sum(axis=1).mean())
    assert found.flips[0].margin == pytest.approx(p[1, 1] - p[1, 0])


def test_divergence_of_huge_logits_is_finite() -> None:
    wild = np.array([[1e30, 0, -1e30]], np.float32)
    assert np.isfinite(divergence(wild, wild)).all() and divergence(wild, wild)[0] == 0
