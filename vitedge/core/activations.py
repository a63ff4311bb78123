"""Turn logits into probabilities, in float64 for any input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the logarithms of the probabilities of logits [..., classes], of the same shape."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return a probability for each logit by itself, of the same shape; no logit overflows."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))
