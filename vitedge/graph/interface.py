"""Find the image input and the logits of a foreign graph, and put our interface in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError
from vitedge.graph import folding, surgery
from vitedge.graph.builder import GraphBuilder

FIX = "export the model again, with a recent torch.onnx.export at opset 20 or lower"


@dataclass(frozen=True)
class Source:
    """The input and output of a foreign graph."""

    input: str
    layout: Literal["nchw", "nhwc"]
    dtype: Literal["float32", "uint8"]
    batch: int | None  # None: symbolic
    output: str


def describe(model: onnx.ModelProto, preprocessing: Preprocessing, action: str) -> Source:
    """Find the image input and the logits output.

    Raises:
        ModelError: not exactly one image input, another size than the preprocessing's, or no single logits output.
    """
    if len(model.graph.input) != 1:
        names = [value.name for value in model.graph.input]
        raise ModelError(action, f"it takes {len(names)} inputs {names}; one image is expected", FIX)
    value = model.graph.input[0]
    kind = {TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8"}.get(value.type.tensor_type.elem_type)
    dims = value.type.tensor_type.shape.dim
    shape = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]
    height, width = preprocessing.size
    layouts = {"nchw": [shape[0], 3, height, width], "nhwc": [shape[0], height, width, 3]} if len(shape) == 4 else {}
    fits = [
        layout
        for layout, expected in layouts.items()
        if all(size in (None, want) for size, want in zip(shape, expected, strict=True))
    ]
    if kind is None or not fits:
        name = helper.tensor_dtype_to_string(value.type.tensor_type.elem_type).removeprefix("TensorProto.").lower()
        received = f"{name} {shape}"
        expected = f"float32 or uint8 [N, 3, {height}, {width}] or [N, {height}, {width}, 3]"
        sides = shape[1:3] if shape[-1:] == [3] else shape[2:]
        fixed = kind is not None and len(shape) == 4 and 3 in (shape[1], shape[3]) and None not in sides
        hint = f"give its own size: --size {sides[0]}x{sides[1]}" if fixed else FIX
        raise ModelError(action, f"input '{value.name}': expected {expected}, received {received}", hint)
    output = _logits(model, action)
    layout: Literal["nchw", "nhwc"] = "nchw" if fits[0] == "nchw" else "nhwc"
    if len(fits) == 2 and _first_channels(model, layouts["nchw"]) != 3 == _first_channels(model, layouts["nhwc"]):
        layout = "nhwc"
    return Source(value.name, layout, "uint8" if kind == "uint8" else "float32", shape[0], output)


def _first_channels(model: onnx.ModelProto, shape: Sequence[int | None]) -> int | None:
    """Return the channels that reach the first convolution for this input shape; None where that can't be inferred."""
    new = surgery.copy(model)
    new.graph.input[0].CopyFrom(
        helper.make_tensor_value_info(
            model.graph.input[0].name, model.graph.input[0].type.tensor_type.elem_type, [size or 1 for size in shape]
        )
    )
    conv = next((node for node in new.graph.node if node.op_type == "Conv"), None)
    try:
        shape = surgery.shapes(new).get(conv.input[0], ()) if conv is not None else ()
    except ModelError:
        return None
    return shape[1] if len(shape) == 4 else None


def with_image_input(
    model: onnx.ModelProto, source: Source, preprocessing: Preprocessing, classes: int
) -> onnx.ModelProto:
    """Return the model behind our interface: uint8 RGB ``image`` [N, H, W, 3] in, ``logits`` out, normalised inside."""
    new = surgery.copy(model)
    builder, tensor = GraphBuilder(), "image"

    def then(operator: str, name: str, *constants: tuple[str, Any], **attributes: Any) -> None:
        nonlocal tensor
        names = [builder.constant(f"{name}.{part}", values) for part, values in constants]
        tensor = builder.node(operator, name, tensor, *names, **attributes)

    channels = (3, 1, 1) if source.layout == "nchw" else (3,)
    if source.dtype == "float32":
        then("Cast", "image.float", to=TensorProto.FLOAT)
    if source.layout == "nchw":
        then("Transpose", "image.nchw", perm=[0, 3, 1, 2])
    if preprocessing.channel_order == "bgr":
        index = np.asarray([2, 1, 0], np.int64)
        then("Gather", "image.order", ("index", index), axis=1 if source.layout == "nchw" else 3)
    if source.dtype == "float32":
        mean = np.asarray(preprocessing.mean) / preprocessing.rescale
        factor = preprocessing.rescale / np.asarray(preprocessing.std)
        then("Sub", "image.mean", ("weight", mean.reshape(channels).astype(np.float32)))
        then("Mul", "image.scale", ("weight", factor.reshape(channels).astype(np.float32)))

    renamed = {"image": "image.source", "logits": "logits.source", source.input: tensor, source.output: "logits"}
    for node in new.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for weight in new.graph.initializer:
        weight.name = renamed.get(weight.name, weight.name)
    surgery.write_nodes(new, [*builder.nodes, *new.graph.node])
    new.graph.initializer.extend(builder.model.graph.initializer)
    del new.graph.input[:], new.graph.output[:]
    batch = "N" if source.batch is None else source.batch
    shape = [batch, *preprocessing.size, 3]
    new.graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, shape))
    new.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes]))
    folding.prune(new)
    return new


def _logits(model: onnx.ModelProto, action: str) -> str:
    """Return the one output of rank two, or the one called logits."""
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.output}
    flat = [name for name, rank in ranks.items() if rank == 2]
    name = (
        "logits" if "logits" in ranks else flat[0] if len(flat) == 1 else next(iter(ranks)) if len(ranks) == 1 else None
    )
    if name is None:
        reason = f"it has {len(ranks)} outputs {list(ranks)}, and none is called 'logits'"
        raise ModelError(action, reason, "export it with the class logits as its only output")
    return name


def before(model: onnx.ModelProto, output: str, limit: int = 32) -> list[str]:
    """Return tensors from which an output is computed, the nearest first, by at most ``limit`` nodes; no constants."""
    producers, names = surgery.producers(model), [output]
    for name in names:
        node = producers.get(name)
        names += [each for each in (node.input if node else ()) if each in producers and each not in names]
        if len(names) > limit:
            break
    return names[1:]


def ending_at(
    model: onnx.ModelProto, source: Source, tensor: str, classes: int, *, flat: bool
) -> tuple[onnx.ModelProto, Source]:
    """Return the model whose only output is an inner tensor, as rows [N, classes].

    Args:
        model: unchanged.
        source: what it takes and gives.
        tensor: any.
        classes: length of a row.
        flat: whether the tensor has rank 2 already.
    """
    new = surgery.copy(model)
    if not flat:
        names = {name for node in new.graph.node for name in (node.name, *node.output)}
        rows = "rows" if "rows" not in names else f"{max(names)}.rows"
        shape = folding.set_constant(new, f"{rows}.shape", np.asarray([-1, classes], np.int64))
        new.graph.node.append(helper.make_node("Reshape", [tensor, shape], [rows], rows))
        tensor = rows
    del new.graph.output[:]
    new.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [None, classes]))
    folding.prune(new)
    return new, replace(source, output=tensor)
