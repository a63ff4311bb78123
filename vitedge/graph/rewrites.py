"""Rewrites towards the canonical form, one function a spelling; each changes the model in place and counts matches.

They look for what a piece of graph computes rather than for how it is written: a GELU is any scalar function of one
tensor that equals GELU on a grid, a LayerNorm any function of a row that equals one on random rows. None of them needs
to be trusted: the caller compares the logits after each and takes back what changes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vitedge.core.randomness import generator
from vitedge.graph import surgery
from vitedge.graph.folding import Array, Index, set_constant, splice
from vitedge.graph.surgery import attribute

Float64 = NDArray[np.float64]

GELU_TOLERANCE = 2e-4  # constants rounded to half precision; the two kinds lie 4.7e-4 apart


def _float32(values: Array) -> Array:
    return np.asarray(values).astype(np.float32)


_erf = np.vectorize(math.erf, otypes=[np.float64])
_ELEMENTWISE: dict[str, Callable[..., Float64]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Sqrt": np.sqrt,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    "Tanh": np.tanh,
    "Erf": _erf,
}


def _evaluate_from(index: Index, start: str, values: Float64, limit: int = 32) -> dict[str, Float64]:
    """Evaluate tensors that depend on ``start`` and constant scalars only: elementwise, or a mean of the last axis."""
    values_of, scalars = {start: values}, {}
    queue = list(index.consumers.get(start, []))
    with np.errstate(all="ignore"):
        while queue and len(values_of) < limit:
            node = queue.pop(0)
            if node.output[0] in values_of:
                continue
            scalars.update({name: index.scalar(name) for name in node.input if name not in values_of})
            if node.op_type == "ReduceMean" and node.input[0] in values_of and _over_last_axis(index, node):
                values_of[node.output[0]] = values_of[node.input[0]].mean(axis=-1, keepdims=True)
            elif node.op_type in _ELEMENTWISE and all(n in values_of or scalars[n] is not None for n in node.input):
                arguments = [values_of[n] if n in values_of else np.float64(scalars[n]) for n in node.input]
                values_of[node.output[0]] = _ELEMENTWISE[node.op_type](*arguments)
            else:
                continue
            queue.extend(
                reader
                for output in values_of
                for reader in index.consumers.get(output, [])
                if reader.output[0] not in values_of
            )
    return values_of


def _over_last_axis(index: Index, node: onnx.NodeProto) -> bool:
    axes = index.constant(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
    return axes is not None and list(np.asarray(axes).reshape(-1)) == [-1] and attribute(node, "keepdims", 1) == 1


def gelu(model: onnx.ModelProto) -> int:
    """Turn any spelling of GELU, exact or by tanh (Hendrycks & Gimpel, 1606.08415), into the Gelu operator."""
    grid = np.linspace(-6, 6, 97)
    kinds = {
        "none": 0.5 * grid * (1 + _erf(grid / math.sqrt(2))),
        "tanh": 0.5 * grid * (1 + np.tanh(math.sqrt(2 / math.pi) * (grid + 0.044715 * grid**3))),
    }
    index, replacements = Index(model), {}
    for seed in model.graph.node:
        if seed.op_type not in ("Erf", "Tanh"):
            continue
        for start in _upstream(index, seed.input[0]):
            values_of = _evaluate_from(index, start, grid)
            errors = {
                (float(np.abs(values - expected).max()), name, kind)
                for name, values in values_of.items()
                for kind, expected in kinds.items()
                if values.shape == grid.shape and np.isfinite(values).all()
            }
            error, name, kind = min(errors)
            if seed.output[0] in values_of and error < GELU_TOLERANCE:
                title = index.producers[name].name or f"{seed.name}.gelu"
                replacements[name] = [helper.make_node("Gelu", [start], [name], name=title, approximate=kind)]
                break
    splice(model, replacements)
    return len(replacements)


def contributed_gelu(model: onnx.ModelProto) -> int:
    """Turn ONNX Runtime's own GELUs, as its optimizer and optimum write them, into the standard operator."""
    kinds, replacements = {"Gelu": "none", "BiasGelu": "none", "FastGelu": "tanh"}, {}
    for node in model.graph.node:
        if node.domain != "com.microsoft" or node.op_type not in kinds:
            continue
        name, inputs = node.name or node.output[0], [source for source in node.input if source]
        new = []
        if len(inputs) == 2:
            new.append(helper.make_node("Add", inputs, [f"{name}.biased"], name=f"{name}.bias"))
        source = f"{name}.biased" if new else inputs[0]
        gelu = helper.make_node("Gelu", [source], [node.output[0]], name=name, approximate=kinds[node.op_type])
        replacements[node.output[0]] = [*new, gelu]
    splice(model, replacements)
    return len(replacements)


def _upstream(index: Index, name: str, depth: int = 6) -> Iterator[str]:
    """Yield the tensor and those from which it is computed elementwise, the nearest first."""
    level = [name]
    for _ in range(depth):
        yield from level
        nodes = [index.producers[tensor] for tensor in level if tensor in index.producers]
        inputs = [source for node in nodes if node.op_type in _ELEMENTWISE for source in node.input]
        level = [source for source in dict.fromkeys(inputs) if source not in index.constants]


def layer_norm(model: onnx.ModelProto) -> int:
    """Turn LayerNorm (Ba et al., 1607.06450), spelled in means, squares and roots, into LayerNormalization."""
    rows = generator(0).standard_normal((4, 16)) * 3 + 1
    centred = rows - rows.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    index, replacements = Index(model), {}
    for seed in model.graph.node:
        if seed.op_type != "ReduceMean" or not _over_last_axis(index, seed):
            continue
        values_of = _evaluate_from(index, seed.input[0], rows)
        scalars = (
            index.scalar(name) for tensor in values_of for name in getattr(index.producers.get(tensor), "input", [])
        )
        epsilons = {0.0} | {value for value in scalars if value is not None and 0 < value < 1e-2}
        match = next(
            (
                (name, epsilon)
                for epsilon in epsilons
                for name, values in values_of.items()
                if values.shape == rows.shape and np.abs(values - centred / np.sqrt(variance + epsilon)).max() < 1e-7
            ),
            None,
        )
        if match is None:
            continue
        multiply = index.reader(match[0])
        scale = index.operand(multiply) if multiply is not None and multiply.op_type == "Mul" else None
        if multiply is None or scale is None or not _is_row(index.constants[scale[1]]):
            continue
        output, inputs = multiply.output[0], [seed.input[0], _row(model, index, scale[1])]
        add = index.reader(output)
        shift = index.operand(add) if add is not None and add.op_type == "Add" else None
        if add is not None and shift is not None and _is_row(index.constants[shift[1]]):
            output = add.output[0]
            inputs.append(_row(model, index, shift[1]))
        name = index.producers[output].name or f"{seed.name}.norm"
        replacements[output] = [
            helper.make_node("LayerNormalization", inputs, [output], name=name, axis=-1, epsilon=match[1])
        ]
    splice(model, replacements)
    return len(replacements)


def _is_row(tensor: onnx.TensorProto) -> bool:
    return len(tensor.dims) >= 1 and tensor.dims[-1] == math.prod(tensor.dims)


def _row(model: onnx.ModelProto, index: Index, name: str) -> str:
    """Return the constant as a vector [D]."""
    tensor = index.constants[name]
    return name if len(tensor.dims) == 1 else set_constant(model, f"{name}.row", surgery.array(tensor).reshape(-1))


def tokens(model: onnx.ModelProto) -> int:
    """Turn constant tokens joined to the sequence into zero rows and one constant Add; sum successive constants.

    Concat([expanded class token, x], 1) + positions -> Pad(x) + (token and positions). It frees the batch too, since
    nothing has to be expanded to it.
    """
    return _padded_tokens(model) + _swapped_pads(model) + _summed_constants(model)


def _padded_tokens(model: onnx.ModelProto) -> int:
    index, replacements = Index(model), {}
    shape_of = surgery.shapes(model)
    for node in model.graph.node:
        if node.op_type != "Concat":
            continue
        rows = [_constant_rows(index, name) for name in node.input]
        dynamic = [name for name, row in zip(node.input, rows, strict=True) if row is None]
        shape = shape_of.get(dynamic[0]) if len(dynamic) == 1 else None
        if (
            len(rows) < 2
            or shape is None
            or len(shape) != 3
            or attribute(node, "axis") not in (1, -2)
            or None in shape[1:]
        ):
            continue
        length, dim = int(shape[1] or 0), int(shape[2] or 0)
        blocks = [np.zeros((1, length, dim), np.float32) if row is None else row for row in rows]
        if any(block.shape[2] != dim for block in blocks):
            continue
        place = list(node.input).index(dynamic[0])
        rows_before, rows_after = (
            sum(block.shape[1] for block in part) for part in (blocks[:place], blocks[place + 1 :])
        )
        name, output = node.name or node.output[0], node.output[0]
        pads = set_constant(model, f"{name}.pads", np.asarray([0, rows_before, 0, 0, rows_after, 0], np.int64))
        offsets = set_constant(model, f"{name}.tokens", _float32(np.concatenate(blocks, axis=1)))
        replacements[output] = [
            helper.make_node("Pad", [dynamic[0], pads], [f"{name}.padded"], name=f"{name}.pad"),
            helper.make_node("Add", [f"{name}.padded", offsets], [output], name=name),
        ]
    splice(model, replacements)
    return len(replacements)


def _constant_rows(index: Index, name: str) -> Array | None:
    """Return a constant [1, rows, D], as it is or expanded along the batch."""
    producer = index.producers.get(name)
    if producer is not None and producer.op_type == "Expand":
        name = producer.input[0]
    values = index.constant(name)
    return values if values is not None and values.ndim == 3 and values.shape[0] == 1 else None


def _swapped_pads(model: onnx.ModelProto) -> int:
    """Rewrite Pad(x + positions) as Pad(x) + Pad(positions)."""
    index, replacements = Index(model), {}
    for node in model.graph.node:
        add = index.producers.get(node.input[0]) if node.op_type == "Pad" else None
        pair = index.operand(add) if add is not None and add.op_type == "Add" else None
        pads = index.constant(node.input[1]) if len(node.input) == 2 else None
        if (
            pair is None
            or pads is None
            or index.reader(node.input[0]) is None
            or len(index.constants[pair[1]].dims) != 3
        ):
            continue
        begin_end = pads.reshape(2, -1).T.astype(int)
        values = np.pad(surgery.array(index.constants[pair[1]]), [(int(a), int(b)) for a, b in begin_end])
        name = node.name or node.output[0]
        offsets = set_constant(model, f"{name}.positions", values)
        replacements[node.output[0]] = [
            helper.make_node("Pad", [pair[0], node.input[1]], [f"{name}.padded"], name=name),
            helper.make_node("Add", [f"{name}.padded", offsets], [node.output[0]], name=f"{name}.positions"),
        ]
    splice(model, replacements)
    return len(replacements)


def _summed_constants(model: onnx.ModelProto) -> int:
    """Rewrite Pad(x) + a + b as Pad(x) + (a + b)."""
    index, replacements = Index(model), {}
    for node in model.graph.node:
        outer = index.operand(node) if node.op_type == "Add" else None
        inner_node = index.producers.get(outer[0]) if outer else None
        inner = index.operand(inner_node) if inner_node is not None and inner_node.op_type == "Add" else None
        source = index.producers.get(inner[0]) if inner else None
        if (
            outer is None
            or inner is None
            or source is None
            or source.op_type != "Pad"
            or index.reader(outer[0]) is None
        ):
            continue
        total = surgery.array(index.constants[inner[1]]) + surgery.array(index.constants[outer[1]])
        name = node.name or node.output[0]
        inputs = [inner[0], set_constant(model, f"{name}.sum", _float32(total))]
        replacements[node.output[0]] = [helper.make_node("Add", inputs, [node.output[0]], name=name)]
        break  # the next round sees the new graph
    splice(model, replacements)
    return len(replacements)


def attention_operator(model: onnx.ModelProto) -> int:
    """Turn Attention-23 without cache or soft cap on [N, heads, T, head_dim] into MatMul, Softmax, MatMul.

    A mask of numbers is added to the scores, as the operator's specification has it.
    """
    shape_of, types, replacements = surgery.shapes(model), _float_tensors(model), {}
    for node in model.graph.node:
        mask = node.input[3] if len(node.input) > 3 else ""
        given = [name for name in node.input if name]
        plain = node.op_type == "Attention" and len(given) == 3 + bool(mask) and len(node.output) == 1
        plain = plain and (not mask or mask in types)
        shapes = [shape_of.get(name, ()) for name in node.input[:3]]
        if not plain or any(len(shape) != 4 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
            continue
        width = shapes[0][3]
        if width is None or attribute(node, "is_causal", 0) or attribute(node, "softcap", 0.0):
            continue
        scale = attribute(node, "scale", None) or width**-0.5
        name, (q, k, v) = node.name or node.output[0], node.input[:3]
        factor = set_constant(model, f"{name}.scale.weight", np.asarray(scale, np.float32))
        replacements[node.output[0]] = [
            helper.make_node("Mul", [q, factor], [f"{name}.q"], name=f"{name}.scale"),
            helper.make_node("Transpose", [k], [f"{name}.k"], name=f"{name}.transpose", perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", [f"{name}.q", f"{name}.k"], [f"{name}.s"], name=f"{name}.scores"),
            *([helper.make_node("Add", [f"{name}.s", mask], [f"{name}.m"], name=f"{name}.mask")] if mask else []),
            helper.make_node(
                "Softmax", [f"{name}.m" if mask else f"{name}.s"], [f"{name}.w"], name=f"{name}.softmax", axis=-1
            ),
            helper.make_node("MatMul", [f"{name}.w", v], [node.output[0]], name=f"{name}.context"),
        ]
    splice(model, replacements)
    return len(replacements)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Return tensors that are certainly float32."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # malformed graphs raise any kind of exception; then nothing is certain
        return set()
    values = {value.name: value.type.tensor_type.elem_type for value in (*inferred.input, *inferred.value_info)}
    values.update({tensor.name: tensor.data_type for tensor in inferred.initializer})
    return {name for name, kind in values.items() if kind == onnx.TensorProto.FLOAT}
