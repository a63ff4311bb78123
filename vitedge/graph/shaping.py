"""Shapes of foreign graphs: make shapes that are computed at run time constant, and merge reshapes.

As :mod:`vitedge.graph.folding`: every function changes the model in place and counts its finds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from vitedge.graph import surgery
from vitedge.graph.folding import Array, Index, constants, reroute, set_constant
from vitedge.graph.surgery import attribute

_BATCHES = (3, 5)


def shape_arithmetic(model: onnx.ModelProto) -> int:
    """Turn shapes that are computed at run time into constants wherever they don't depend on the batch.

    The graph's shapes are inferred for two batch sizes; a tensor computed from shapes that comes out equal is a
    constant, and a Reshape whose result differs in one place has a wildcard there.
    """
    batches = _BATCHES if surgery.batch_size(model) is None else (None,)
    integers, shapes = zip(*(_known_integers(model, batch) for batch in batches), strict=True)
    count, index = 0, Index(model)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if not name or name in index.constants or any(name not in values for values in integers):
                continue
            first, last = integers[0][name], integers[-1][name]
            if np.array_equal(first, last) and first.dtype == last.dtype:
                node.input[position] = set_constant(model, f"{name}.folded", first)
            elif node.op_type == "Reshape" and position == 1:
                target = _reshape_target([inferred.get(node.output[0], (None,)) for inferred in shapes])
                if target is None:
                    continue
                node.input[position] = set_constant(model, f"{node.output[0]}.target", target)
            elif node.op_type == "Expand" and position == 1:
                sizes = [
                    (inferred.get(node.input[0], (None,)), inferred.get(node.output[0], (None,))) for inferred in shapes
                ]
                target = _expand_target(sizes)
                if target is None:
                    continue
                node.input[position] = set_constant(model, f"{node.output[0]}.target", target)
            else:
                continue
            count += 1
    return count


def _expand_target(sizes: Sequence[tuple[tuple[int | None, ...], tuple[int | None, ...]]]) -> Array | None:
    """Return one target for both batch sizes: 1, which keeps a size, wherever nothing is expanded."""
    (first_in, first), (last_in, last) = sizes[0], sizes[-1]
    if None in first or None in first_in or len({len(first_in), len(first), len(last_in), len(last)}) != 1:
        return None
    kept = [one == out and other == end for one, out, other, end in zip(first_in, first, last_in, last, strict=True)]
    target = [1 if keep else size for keep, size in zip(kept, first, strict=True)]
    fixed = all(keep or size == other for keep, size, other in zip(kept, first, last, strict=True))
    return np.asarray(target, np.int64) if fixed else None


def _reshape_target(results: Sequence[tuple[int | None, ...]]) -> Array | None:
    """Return one target for results of both batch sizes: the shape, with -1 in the one place where they differ."""
    first, last = results[0], results[-1]
    if None in first or not all(first) or len(first) != len(last):
        return None
    differs = [axis for axis, (one, other) in enumerate(zip(first, last, strict=True)) if one != other]
    target = [-1 if axis in differs else size for axis, size in enumerate(first)]
    return np.asarray(target, np.int64) if len(differs) == 1 else None


def _known_integers(
    model: onnx.ModelProto, batch: int | None
) -> tuple[dict[str, Array], dict[str, tuple[int | None, ...]]]:
    """Return every small tensor that shape inference and folding determine at this batch size, and all shapes."""
    light = surgery.copy(model) if batch is None else surgery.pin_batch(model, batch)
    for tensor in list(light.graph.initializer):
        if math.prod(tensor.dims) > 1024:  # weights: their shape is enough
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            light.graph.initializer.remove(tensor)
    for _ in range(64):
        shapes = surgery.shapes(light)
        computed = {}
        for node in light.graph.node:
            if node.op_type == "Shape" and None not in shapes.get(node.input[0], (None,)):
                dims = np.asarray(shapes[node.input[0]], np.int64)
                start, end = attribute(node, "start", 0), attribute(node, "end", len(dims))
                computed[node.output[0]] = dims[start:end]
        surgery.write_nodes(light, [node for node in light.graph.node if node.output[0] not in computed])
        for name, values in computed.items():
            set_constant(light, name, values)
        if not constants(light) and not computed:
            break
    constants_before = {tensor.name for tensor in model.graph.initializer}
    added = {
        tensor.name: surgery.array(tensor) for tensor in light.graph.initializer if tensor.name not in constants_before
    }
    return added, surgery.shapes(light)


def last_axes(model: onnx.ModelProto) -> int:
    """Let Means, Softmaxes and LayerNorms over the last axis count that axis from the end."""
    inferred, index, count = surgery.shapes(model), Index(model), 0
    for node in model.graph.node:
        last = len(inferred.get(node.input[0], ())) - 1 if node.input else -1
        if last < 0:
            continue
        if node.op_type == "ReduceMean" and len(node.input) > 1:
            axes = index.constant(node.input[1])
            if axes is not None and axes.reshape(-1).tolist() == [last]:
                node.input[1] = set_constant(model, f"{node.output[0]}.axes", np.asarray([-1], np.int64))
                count += 1
        elif node.op_type in ("Softmax", "LayerNormalization") and attribute(node, "axis") == last:
            for attr in node.attribute:
                if attr.name == "axis":
                    attr.i = -1
            count += 1
    return count


def reshapes(model: onnx.ModelProto) -> int:
    """Merge a reshape of a reshape into one, and remove those that keep the shape."""
    movers, count = ("Reshape", "Flatten", "Squeeze", "Unsqueeze"), 0
    fixed = surgery.batch_size(model)
    pinned = [model] if fixed is not None else [surgery.pin_batch(model, batch) for batch in _BATCHES]
    inferred = [surgery.shapes(candidate) for candidate in pinned]
    index = Index(model)
    for node in model.graph.node:
        if node.op_type not in movers or node.output[0] in index.outputs:
            continue
        mover = index.producers.get(node.input[0])
        target = index.constant(node.input[1]) if node.op_type == "Reshape" else None
        if mover is not None and mover.op_type in movers and target is not None and target.all():
            node.input[0] = mover.input[0]
            count += 1
        ends = [(shapes.get(node.input[0], (None,)), shapes.get(node.output[0], ())) for shapes in inferred]
        if all(start == end and None not in start for start, end in ends):
            reroute(model, node.output[0], node.input[0])
            index, count = Index(model), count + 1
    return count
