"""Means and second moments of layers' inputs and target outputs, over all pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.errors import InvalidResultError
from vitedge.graph.unused_tokens import WORTHWHILE, Span, rows_computed
from vitedge.quantization.views import View

Float64 = NDArray[np.float64]

_ROWS = 1 << 13  # rows of a batch that are used; more positions of a convolution change the statistics little


class Rows:
    """The rows of a graph's tensors that matter more than others."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._read = rows_computed(model)
        tokens = [span for span in self._read.values() if span.axis == 1]
        first, behind = min((each.start for each in tokens), default=0), max((each.stop for each in tokens), default=0)
        self._of_head = Span(1, first, behind) if tokens else None

    def read(self, tensor: str) -> Span | None:
        """Return those of a tensor that later nodes read; None: all."""
        return self._read.get(tensor)

    def heavy(self, tensor: str, values: NDArray[Any]) -> Span | None:
        """Return those of a tensor that get the same total weight as all of its rows together; None: all are alike.

        Where later nodes read only some rows, it's those: all others are counted too, because they alone would be
        too few. In earlier blocks of a model whose head reads the class token, it's this token: its row goes into
        every logit, those of the other tokens only through attention.

        Args:
            tensor: its name.
            values: tokens [N, T, D], or anything else.
        """
        if tensor in self._read or self._of_head is None:
            return self._read.get(tensor)
        several = values.ndim == 3 and self._of_head.stop <= values.shape[1] * WORTHWHILE
        return self._of_head if several else None


@dataclass
class Moments:
    """Sums over a layer's input rows x [n, K] and its target output rows y [n, C]; float64."""

    count: float = 0.0
    _shift: Any = None  # [K], taken off x before summing: float32 products of large means would lose the variance
    _x: Any = 0.0
    _y: Any = 0.0
    _xx: Any = 0.0
    _xy: Any = 0.0
    _yy: float = 0.0
    _last: Any = 0.0
    _last_count: int = 0
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(self, view: View, read: NDArray[Any], given: NDArray[Any], rows: Rows, output: str) -> None:
        """Add one batch.

        Args:
            view: how the layer reads its tensor.
            read: the tensor that it reads.
            given: its target, in the form of its output.
            rows: of the whole model, those that matter more.
            output: name of the layer's output.
        """
        y = np.moveaxis(given, 1, -1) if view.kernel else given
        last = taken(y, rows.read(output)).reshape(-1, y.shape[-1])
        self._last, self._last_count = self._last + last.sum(axis=0, dtype=np.float64), self._last_count + len(last)
        self.add_rows(view.rows(read), y.reshape(-1, y.shape[-1]))
        if not view.kernel and (heavy := rows.heavy(output, given)) is not None:
            x, y = taken(read, heavy), taken(given, heavy)
            weight = given.size / y.size
            self.add_rows(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), weight)

    def add_rows(self, x: NDArray[Any], y: NDArray[Any], weight: float = 1.0) -> None:
        """Add rows [n, K] and [n, C], each counted ``weight`` times; of very many rows, a random choice is taken."""
        if len(x) > 2 * _ROWS:
            chosen = self._random.choice(len(x), _ROWS, replace=False)
            x, y = x[chosen], y[chosen]
        if self._shift is None:
            self._shift = x.mean(axis=0)
        x = x - self._shift
        self.count += weight * len(x)
        self._x = self._x + weight * x.sum(axis=0, dtype=np.float64)
        self._y = self._y + weight * y.sum(axis=0, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            self._xx = self._xx + weight * (x.T @ x).astype(np.float64)
            self._xy = self._xy + weight * (x.T @ y).astype(np.float64)
        self._yy += weight * float(np.square(y, dtype=np.float64).sum())
        if not (np.isfinite(self._xx).all() and np.isfinite(self._xy).all()):
            raise InvalidResultError(
                "compute statistics of the model's activations",
                f"activations reach {float(np.abs(x).max()):.3g}, so that their squares overflow float32",
                "check the model's weights and its preprocessing",
            )

    @property
    def read(self) -> int:
        """Number of rows that something reads."""
        return self._last_count

    @property
    def mean(self) -> Float64:
        """E x [K]."""
        return np.asarray(self._x / self.count + self._shift)

    @property
    def target_mean(self) -> Float64:
        """E y [C]."""
        return np.asarray(self._y / self.count)

    @property
    def mean_output(self) -> Float64:
        """E y [C] of the rows that something reads."""
        return np.asarray(self._last / self._last_count)

    @property
    def covariance(self) -> Float64:
        """E[(x - E x)(x - E x)ᵀ] [K, K]."""
        off = self._x / self.count
        return np.asarray(self._xx / self.count - np.outer(off, off))

    @property
    def cross(self) -> Float64:
        """E[(x - E x)(y - E y)ᵀ] [K, C]."""
        return np.asarray(self._xy / self.count - np.outer(self._x / self.count, self.target_mean))

    @property
    def target_variance(self) -> float:
        """E |y - E y|²."""
        return max(self._yy / self.count - float(self.target_mean @ self.target_mean), 0.0)


def taken(values: NDArray[Any], rows: Span | None) -> NDArray[Any]:
    """Return the rows of a tensor that later nodes read."""
    return values if rows is None else np.take(values, range(rows.start, rows.stop), rows.axis)


def with_rows(values: NDArray[Any], others: NDArray[Any], rows: Span) -> NDArray[Any]:
    """Return a tensor with the rows of another one of this shape that later nodes read, and its own elsewhere."""
    place = [slice(None)] * values.ndim
    place[rows.axis] = slice(rows.start, rows.stop)
    mixed = np.array(values)
    mixed[tuple(place)] = others[tuple(place)]
    return mixed


class HeadMoments:
    """Second moments of queries and keys, head by head; float64 [heads, d, d]."""

    def __init__(self) -> None:
        self._images, self._queries, self._keys = 0, np.zeros(1), np.zeros(1)

    def add(self, queries: NDArray[Any], keys: NDArray[Any], rows: Rows, tensor: str) -> None:
        """Add one batch, [N, T, heads, d] each; each picture's mean is taken off the keys, since Softmax ignores it.

        Args:
            queries: those that are read count, and of these the rows that matter more as much as all together.
            keys: of all tokens.
            rows: of the whole model, those that matter more.
            tensor: name of the queries.
        """
        keys = keys - keys.mean(axis=1, keepdims=True)
        self._images += len(queries)
        self._queries = self._queries + _gram(taken(queries, rows.read(tensor)))
        if (heavy := rows.heavy(tensor, queries[..., 0])) is not None:
            self._queries = self._queries + _gram(taken(queries, heavy))
        self._keys = self._keys + _gram(keys)

    @property
    def queries(self) -> Float64:
        """E[q qᵀ], times a constant."""
        return np.asarray(self._queries / self._images)

    @property
    def keys(self) -> Float64:
        """E[(k - its picture's mean)(..)ᵀ]."""
        return np.asarray(self._keys / self._images)


def _gram(values: NDArray[Any]) -> Float64:
    """Return v vᵀ, averaged over tokens and summed over pictures, [heads, d, d]."""
    by_head = np.ascontiguousarray(values.transpose(2, 0, 1, 3)).reshape(values.shape[2], -1, values.shape[3])
    return np.asarray((by_head.swapaxes(1, 2) @ by_head).astype(np.float64) / values.shape[1])
