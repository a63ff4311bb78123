"""Interleaved runs on simulated machines: costs of the blocks of two artifacts whose true ratio is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INFERENCES = 10  # of a block
NOISE = 0.03  # mean of the exponential noise of an inference, as a fraction of its time
KINDS = ("quiet", "shared drift", "independent drift", "a neighbour that comes and goes", "autocorrelated noise")


def costs(draw: np.random.Generator, kind: str, rounds: int, ratio: float) -> NDArray[np.float64]:
    """Nanoseconds of the inferences of two artifacts: [rounds, 2, INFERENCES]; each round has an order of its own.

    "shared drift": a trend of 35 % and a random walk of 3 % a block. "independent drift": each artifact wanders around
    its own time by 3 % and comes back within about three rounds. "a neighbour that comes and goes": in four of ten
    blocks, for four blocks in a row on average, 70 % of the inferences take 40 % longer on average. "autocorrelated
    noise": 3.5 % on each block, correlated by 0.5 with the artifact's next one.
    """
    order = draw.permuted(np.tile([0, 1], (rounds, 1)), axis=1)
    logs = np.zeros((rounds, 2))
    excess = draw.exponential(NOISE, (rounds, 2, INFERENCES))
    if kind == "shared drift":
        walk = np.cumsum(draw.normal(0, 0.03, 2 * rounds)) + np.linspace(0, 0.3, 2 * rounds)
        logs = np.take_along_axis(walk.reshape(rounds, 2), order, axis=1)
    elif kind == "independent drift":
        logs = _wandering(draw, rounds, deviation=0.03, correlation=0.7)
    elif kind == "autocorrelated noise":
        logs = _wandering(draw, rounds, deviation=0.035, correlation=0.5)
    elif kind == "a neighbour that comes and goes":
        busy, now = np.zeros(2 * rounds), draw.random() < 0.4
        for block in range(2 * rounds):
            now = draw.random() < (0.75 if now else 1 / 6)
            busy[block] = now
        hit = np.take_along_axis(busy.reshape(rounds, 2), order, axis=1)[:, :, None]
        excess += hit * (draw.random(excess.shape) < 0.7) * draw.exponential(0.4, excess.shape)
    return 3e6 * np.exp(logs[:, :, None] + excess) * np.array([1.0, ratio])[:, None]


def _wandering(draw: np.random.Generator, rounds: int, *, deviation: float, correlation: float) -> NDArray[np.float64]:
    """Two stationary autoregressive series: [rounds, 2]."""
    steps = draw.normal(0, deviation, (rounds, 2))
    steps[1:] *= np.sqrt(1 - correlation**2)
    for this in range(1, rounds):
        steps[this] += correlation * steps[this - 1]
    return steps
