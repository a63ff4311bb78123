"""Tokens merged by a constant matrix: which of a sequence's patch tokens become one, the same for every picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

#: Why such a model keeps its size, for error texts.
MERGED = "it merges tokens by their places in the picture, which fit pictures of its own size alone"


def mean_of(groups: Sequence[Sequence[int]]) -> Float64:
    """The matrix [groups, tokens] that makes of each group of tokens their mean."""
    matrix = np.zeros((len(groups), sum(map(len, groups))))
    for row, members in enumerate(groups):
        matrix[row, list(members)] = 1 / len(members)
    return matrix


def evenly(after: int, before: int) -> Float64:
    """Neighbours in the sequence averaged, groups as even as can be: [after, before]."""
    return mean_of([each.tolist() for each in np.array_split(np.arange(before), after)])


def with_prefix(patches: Float64, prefix: int) -> Float64:
    """A matrix [after, before] for patch tokens as one for the whole sequence, whose first tokens stay."""
    after, before = patches.shape
    matrix = np.eye(prefix + after, prefix + before)
    matrix[prefix:, prefix:] = patches
    return matrix


def sizes(matrices: Iterable[NDArray[np.generic]], patches: int) -> Float64:
    """How many patches each token stands for that merging leaves, [tokens]; sum: the patches.

    Args:
        matrices: [after, before] of each merging in turn; every token before belongs to one row.
        patches: before the first.
    """
    counts = np.ones(patches)
    for matrix in matrices:
        counts = (np.asarray(matrix) != 0) @ counts
    return counts
