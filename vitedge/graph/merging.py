"""Merge tokens by a constant matrix, which groups a sequence's patch tokens in the same way for every picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

#: Why such a model keeps its size, for error texts.
MERGED = "it merges tokens by their places in the picture, which fit pictures of its own size alone"


def mean_of(groups: Sequence[Sequence[int]]) -> Float64:
    """Return the matrix [groups, tokens] that averages each group of tokens."""
    matrix = np.zeros((len(groups), sum(map(len, groups))))
    for row, members in enumerate(groups):
        matrix[row, list(members)] = 1 / len(members)
    return matrix


def evenly(after: int, before: int) -> Float64:
    """Return the matrix that averages neighbours in the sequence, in groups as even as possible: [after, before]."""
    return mean_of([each.tolist() for each in np.array_split(np.arange(before), after)])


def with_prefix(patches: Float64, prefix: int) -> Float64:
    """Extend a matrix [after, before] for patch tokens to the whole sequence, whose first tokens don't change."""
    after, before = patches.shape
    matrix = np.eye(prefix + after, prefix + before)
    matrix[prefix:, prefix:] = patches
    return matrix


def sizes(matrices: Iterable[NDArray[np.generic]], patches: int) -> Float64:
    """Return the number of patches that each token stands for after merging, [tokens]; their sum is the patches.

    Args:
        matrices: [after, before] of each merging in turn; every token before belongs to one row.
        patches: before the first.
    """
    counts = np.ones(patches)
    for matrix in matrices:
        counts = (np.asarray(matrix) != 0) @ counts
    return counts
