"""Recognise outputs that are probabilities by their values, and trace them back to the logits behind them.

What an exporter wrote at the end of a graph doesn't matter: the softmax may be a node, several nodes, or nodes behind
casts and reshapes. Logits are the tensor whose softmax (or sigmoid) the outputs are, on every picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitedge.core.activations import log_softmax, sigmoid
from vitedge.core.randomness import generator
from vitedge.errors import ModelError
from vitedge.importing.proof import Frames, outputs_of

if TYPE_CHECKING:
    import onnx

Kind = Literal["softmax", "log-softmax", "sigmoid"]
Float64 = NDArray[np.float64]

RANDOM_PICTURES = 4
SUM_TOLERANCE = 1e-3  # of what is 1 in exact arithmetic, for half precision
TOLERANCE = 1e-3  # of the logarithm of a probability
SMALLEST = 1e-30  # probabilities below it have too few digits in float32
EXPORT_LOGITS = "export the model again without its last layer"
AS_THEY_ARE = "add --activation none to take the outputs as they are"


@dataclass(frozen=True)
class Logits:
    """The logits behind a model's outputs."""

    tensor: str
    values: NDArray[np.float32]  # [N, classes]
    kind: Kind
    flat: bool  # whether the tensor has rank 2


def random_pictures(size: tuple[int, int]) -> Frames:
    """Return noise, uint8 [RANDOM_PICTURES, height, width, 3]: pictures without anything that photographs share."""
    return generator(0).integers(0, 256, (RANDOM_PICTURES, *size, 3), dtype=np.uint8)


def rows_of(outputs: NDArray[Any], count: int) -> NDArray[Any] | None:
    """Return an output with other axes of length 1 as [N, classes]; None where it isn't one row a picture.

    Args:
        outputs: of any shape.
        count: pictures, N.
    """
    lengths = [length for length in outputs.shape if length != 1]
    if count in lengths:
        lengths.remove(count)
    return outputs.reshape(count, -1) if outputs.size and len(lengths) <= 1 and outputs.size % count == 0 else None


def kind_of(outputs: NDArray[Any]) -> Kind | None:
    """Tell by their values what rows [N, classes] of different pictures are; None for logits.

    Values between 0 and 1 whose sums differ are taken for a sigmoid of each class.
    """
    rows = outputs.astype(np.float64)
    sums = rows.sum(axis=1)
    if rows.min() >= 0 and sums[0] > 0 and np.ptp(sums) <= SUM_TOLERANCE * sums[0]:
        return "softmax"  # sums of 100 are percentages
    if rows.max() <= SUM_TOLERANCE and np.abs(np.exp(rows).sum(axis=1) - 1).max() <= SUM_TOLERANCE:
        return "log-softmax"
    return "sigmoid" if rows.min() >= 0 and rows.max() <= 1 else None


def without_activation(
    model: onnx.ModelProto,
    output: str,
    inputs: NDArray[Any],
    outputs: NDArray[np.float32],
    activation: str | None,
    action: str,
) -> Logits | None:
    """Find the logits behind an output that holds probabilities; None where the outputs are to be taken as they are.

    Args:
        model: the source's graph at opset 20.
        output: its output.
        inputs: pictures as the graph takes them, real and random ones.
        outputs: what the source makes of them, [N, classes].
        activation: what the caller says of the outputs; None: nothing.
        action: for error texts.

    Raises:
        ModelError: one output, several labels a picture, or probabilities whose logits aren't in the graph.
    """
    from vitedge.graph.task import require_several_classes

    require_several_classes(outputs.shape[1], f"its output '{output}'", action)
    kind = None if activation == "none" else kind_of(outputs)
    if kind is None:
        return None
    logits = _behind(model, output, inputs, outputs, kind, action)
    if kind == "sigmoid":
        if logits is None and activation == "softmax":
            return None
        _refuse_several_labels(output, activation, action, proven=logits is not None)
    elif activation == "sigmoid":
        reason = f"its output '{output}' holds probabilities that sum to 1: a softmax over all classes, no sigmoid"
        raise ModelError(action, reason, "leave --activation out")
    elif logits is None:
        reason = f"its output '{output}' holds probabilities (each row sums to 1), and they aren't the softmax of any "
        raise ModelError(action, f"{reason}tensor in the graph", f"{EXPORT_LOGITS}, or {AS_THEY_ARE}")
    return logits


def _refuse_several_labels(output: str, activation: str | None, action: str, *, proven: bool) -> None:
    """Refuse models that have, or may have, a probability of its own for each class.

    Raises:
        ModelError: unless the caller says that one class a picture is meant, and its logits were found.
    """
    if proven and activation == "sigmoid":
        return
    if proven:
        reason = f"its output '{output}' is a sigmoid of each class, as multi-label models have; these aren't offered"
        hint = "if every picture has one class, add: --activation sigmoid"
    else:
        reason = f"its output '{output}' lies between 0 and 1 on every picture and may hold probabilities"
        hint = f"{EXPORT_LOGITS}; if they are logits, add: --activation softmax"
    raise ModelError(action, reason, hint)


def _behind(
    model: onnx.ModelProto,
    output: str,
    inputs: NDArray[Any],
    outputs: NDArray[np.float32],
    kind: Kind,
    action: str,
) -> Logits | None:
    """Return the tensor nearest to the output of which it is the softmax or sigmoid."""
    from vitedge.graph import interface

    names = interface.before(model, output)
    matches = _MATCHES[kind]
    expected = outputs.astype(np.float64)
    for name, values in zip(names, outputs_of(model, action, names)(inputs), strict=True):
        rows = rows_of(values, len(inputs))
        if rows is None or rows.shape != outputs.shape or values.dtype != np.float32 or not np.isfinite(rows).all():
            continue
        if matches(rows.astype(np.float64), expected):
            return Logits(name, rows, kind, values.ndim == 2)
    return None


def _is_softmax(rows: Float64, outputs: Float64) -> bool:
    probabilities = outputs / outputs.sum(axis=1, keepdims=True)
    return not _is_part_of_softmax(rows) and _same(log_softmax(rows), _log(probabilities))


def _is_log_softmax(rows: Float64, outputs: Float64) -> bool:
    floor = np.log(SMALLEST)
    return not _is_part_of_softmax(rows) and _same(log_softmax(rows), np.maximum(outputs, floor))


def _is_part_of_softmax(rows: Float64) -> bool:
    """Whether rows are a step of a softmax: logits minus their maximum, or logarithms of the probabilities."""
    largest = rows.max(axis=1)
    return not largest.any() or float(np.abs(np.log(np.exp(rows - largest[:, None]).sum(1)) + largest).max()) < 1e-5


def _is_sigmoid(rows: Float64, outputs: Float64) -> bool:
    return _same(-np.logaddexp(0.0, -rows), _log(outputs)) and float(np.abs(sigmoid(rows) - outputs).max()) < 1e-5


def _log(probabilities: Float64) -> Float64:
    return np.asarray(np.log(np.maximum(probabilities, SMALLEST)))


def _same(logarithms: Float64, expected: Float64) -> bool:
    return float(np.abs(np.maximum(logarithms, np.log(SMALLEST)) - expected).max()) <= TOLERANCE


_MATCHES: dict[Kind, Callable[[Float64, Float64], bool]] = {
    "softmax": _is_softmax,
    "log-softmax": _is_log_softmax,
    "sigmoid": _is_sigmoid,
}


def activated(logits: NDArray[np.float32], kind: Kind) -> NDArray[np.float32]:
    """Apply a source's final activation to logits [N, classes], float32 of the same shape."""
    if kind == "sigmoid":
        return sigmoid(logits).astype(np.float32)
    logarithms = log_softmax(logits)
    return (logarithms if kind == "log-softmax" else np.exp(logarithms)).astype(np.float32)
