"""A residual stream without a mean, so that LayerNormalization divides by a root mean square and subtracts nothing.

LayerNormalization takes the mean over the channels off its input. Where nothing else reads a stream, those who write to
it may have taken that off before: weights and biases of projections, position embeddings and class tokens, each less
its mean over the channels (Ashkboos et al., SliceGPT, 2401.15024, section 3.1). What is left is
x / sqrt(mean(x²) + ε) · γ + β, which takes half the time; β can go into the linears behind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.graph.surgery import array, attribute, consumers, initializers, pinned, producers, shapes
from vitedge.quantize.improve import KEPT_ROWS, Float64, Migration, rounded_error
from vitedge.quantize.integers import Scheme
from vitedge.quantize.prepare import replaced, with_own_constants
from vitedge.quantize.statistics import Observed
from vitedge.quantize.views import quantizable

#: Of the error with β, what rounding may have without it: between two ranges that are as good, chance decides.
_AS_GOOD = 1.05

Constants = dict[str, Float64]


def centred(model: onnx.ModelProto) -> tuple[onnx.ModelProto, frozenset[str]]:
    """Take the mean over the channels out of every residual stream that nothing but LayerNormalizations reads.

    Returns:
        A graph of the same function, whose layers have constants of their own, and the names of the
        LayerNormalizations whose input has no mean.
    """
    model = with_own_constants(model)
    if any(attr.type in (attr.GRAPH, attr.GRAPHS) for node in model.graph.node for attr in node.attribute):
        return model, frozenset()  # what the bodies of loops and branches read isn't among a node's inputs
    walk, values, names = _Walk(model), Constants(), set[str]()
    for node in model.graph.node:
        if node.op_type != "LayerNormalization" or node.name in names:
            continue
        try:
            constants, norms = walk.stream(node.input[0])
        except LookupError:  # KeyError and IndexError are some
            continue
        values |= constants
        names |= norms
    return replaced(model, values), frozenset(names)


def unshifted(observed: Observed, matrix: Float64, scheme: Scheme, beta: Float64) -> Migration:
    """β moves into the linears behind, unless rounding is worse without it; for ``migrate_layernorms``."""
    nothing, ones = np.zeros(len(matrix)), np.ones(len(matrix))
    rows = observed.rows[:KEPT_ROWS].astype(np.float64)
    kept, moved = (
        rounded_error(observed, rows, rows @ matrix, matrix, scheme, shift, ones) for shift in (nothing, beta)
    )
    return (beta if moved <= _AS_GOOD * kept else nothing), ones


class _Walk:
    """From a tensor to all who write to its stream and read it. Axes are counted from the last, which is -1."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants, self.shapes = initializers(model), shapes(pinned(model))
        self.writers, self.readers = producers(model), consumers(model)
        self.layers = {layer.linear.output: layer for layer in quantizable(model)[0]}
        self.outputs = {value.name for value in model.graph.output}

    def stream(self, start: str) -> tuple[Constants, set[str]]:
        """New values of constants, and names of LayerNormalizations, of the stream that a tensor [.., C] belongs to.

        Raises:
            LookupError: its mean can't be taken out, for who else writes to it or reads it.
        """
        values, norms, axes, left = Constants(), set[str](), {start: -1}, [start]
        while left:
            name = left.pop()
            axis, readers = axes[name], self.readers.get(name, [])
            if name in self.outputs or (name in self.constants and len(readers) > 1):
                raise LookupError(name)
            if name in self.constants:
                values[name] = _less_mean(array(self.constants[name]), axis)
                continue
            if self.shapes[name][axis] != self.shapes[start][-1] or self.shapes[start][-1] is None:
                raise LookupError(name)
            normalizing = {node.name for node in readers if self.normalizes(node, name, axis)}
            norms |= normalizing
            joined = [
                pair for node in readers if node.name not in normalizing for pair in self.behind(node, name, axis)
            ]
            if name in self.layers:
                values |= self.layer(name, axis)
            else:
                joined += self.before(name, axis)
            for other, at in joined:
                if axes.get(other, at) != at:
                    raise LookupError(other)
                left += [] if other in axes else [other]
                axes[other] = at
        return values, norms

    def normalizes(self, node: onnx.NodeProto, name: str, axis: int) -> bool:
        """Whether a node is a LayerNormalization over this tensor's channels, and doesn't tell the mean besides."""
        over = attribute(node, "axis", -1) in (-1, len(self.shapes[name]) - 1)
        once = list(node.input).count(name) == 1 and len([output for output in node.output if output]) == 1
        return node.op_type == "LayerNormalization" and node.input[0] == name and axis == -1 and over and once

    def layer(self, output: str, axis: int) -> Constants:
        """The constants of a layer that writes to the stream, less their mean over its output channels."""
        layer = self.layers[output]
        assert layer.bias is not None and layer.linear.bias is not None  # with_own_constants gave it one
        if axis != (-1 if layer.linear.kind == "linear" else -3):
            raise LookupError(output)
        weight = layer.from_matrix(_less_mean(layer.matrix, -1))
        return {layer.linear.weight: weight, layer.linear.bias: _less_mean(layer.bias, -1)}

    def behind(self, node: onnx.NodeProto, name: str, axis: int) -> Iterator[tuple[str, int]]:
        """What a reader makes of the stream, and the axis of its channels."""
        at = self.through(node, axis)
        if name not in _data(node) or at is None:
            raise LookupError(node.name)
        yield from ((output, at) for output in node.output if output)

    def before(self, name: str, axis: int) -> Iterator[tuple[str, int]]:
        """What the node that writes a tensor makes it of, and the axis of the channels there."""
        node = self.writers[name]
        rank = max(len(self.shapes[tensor]) for tensor in _data(node))
        found = next((at for at in range(-rank, 0) if self.through(node, at) == axis), None)
        if found is None:
            raise LookupError(node.name)
        yield from ((tensor, found) for tensor in _data(node))

    def through(self, node: onnx.NodeProto, axis: int) -> int | None:
        """Where an operator puts its inputs' channels; None where it mixes, scales, shifts or copies some of them."""
        before, after = self.shapes[node.input[0]], self.shapes[node.output[0]]
        if node.op_type in ("Add", "Expand", "Identity"):
            return axis
        if node.op_type == "Transpose":
            return list(attribute(node, "perm")).index(len(before) + axis) - len(after)
        if node.op_type in ("Flatten", "Reshape", "Squeeze", "Unsqueeze") and None not in (*before, *after):
            kept = (math.prod(_known(before[:axis])), before[axis])
            places = (at for at in range(len(after)) if (math.prod(_known(after[:at])), after[at]) == kept)
            return next((at - len(after) for at in places), None)
        worked = self.along(node)
        return axis if worked and all(other < len(before) + axis for other in worked) else None

    def along(self, node: onnx.NodeProto) -> list[int]:
        """The axes, from the first, along which an operator chooses, joins or takes means; none: it may be all."""
        rank = len(self.shapes[node.input[0]])

        def constant(index: int) -> list[int]:
            given = len(node.input) > index and node.input[index] in self.constants
            return array(self.constants[node.input[index]]).reshape(-1).tolist() if given else []

        if node.op_type in ("Concat", "Gather", "Split"):
            axes = [attribute(node, "axis", 0)]
        elif node.op_type == "Slice":
            axes = constant(3)
        elif node.op_type == "ReduceMean":
            axes = constant(1) or list(attribute(node, "axes", ()))
        elif node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant" and not any(constant(2)):
            pads = constant(1) if len(node.input) < 4 else []
            axes = [at for at in range(len(pads) // 2) if pads[at] or pads[len(pads) // 2 + at]]
        else:
            axes = []
        return [int(at) % rank for at in axes]


def _data(node: onnx.NodeProto) -> list[str]:
    """The inputs that a passing operator passes on."""
    return list(node.input if node.op_type in ("Add", "Concat") else node.input[:1])


def _known(shape: tuple[int | None, ...]) -> Iterator[int]:
    return (size for size in shape if size is not None)


def _less_mean(values: NDArray[np.generic], axis: int) -> Float64:
    """Values less their mean over an axis; zeros where they have no such axis, and are the same for all channels."""
    exact = np.asarray(values, np.float64)
    return exact - exact.mean(axis=axis, keepdims=True) if exact.ndim >= -axis else np.zeros_like(exact)
