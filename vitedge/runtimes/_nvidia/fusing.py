"""Find Q/DQ that TensorRT wouldn't fuse, from the graph alone: no GPU is needed, and nothing is built.

The rules are NVIDIA's ("Explicit Quantization", sections "TensorRT Processing of Q/DQ Networks", "Q/DQ Layer-Placement
Recommendations" and "Q/DQ Limitations": :data:`PAGE`), but for ``fp8-convolution``, a limitation that the release notes
state (:data:`RELEASE_NOTES`). What fuses in the end is the builder's choice; ``vitedge build --explain`` reads it from
the engine.

================  =====================================================================================================
rule              what it asks for
================  =====================================================================================================
pair              a Q is read by DQs alone, and a DQ reads a Q or constant integers
inputs            Conv, ConvTranspose, Gemm and MatMul have Q/DQ on both inputs or on none
weight-axis       weights have one scale, or one for each output channel
useless           what leaves a pair reaches an operator that computes in integers; between them only operators with
                  which rounding commutes (reshapes, transpositions, max pooling, …)
twice             nothing is rounded again by another scale with only such operators in between
outputs           no pair parts a layer from its activation or normalisation
residual          where branches meet, both are quantized or none is; the one that isn't the layer's own output is
                  quantized where the sum is, and no second pair parts the layer from the addition
non-weighted      additions and average pooling with quantized inputs have a quantized output
one-scale         a tensor that is quantized more than once has one scale, so that it's done once
fp8-convolution   no group convolution in FP8, and no kernel of more than 32 taps
================  =====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from vitedge.graph.surgery import array, attribute, consumers, copy, initializers, producers

PAGE = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html"
)
RELEASE_NOTES = "https://docs.nvidia.com/deeplearning/tensorrt/10.12.0/getting-started/release-notes.html"
#: Taps of a kernel for which TensorRT has FP8 convolutions.
FP8_TAPS = 32

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_UNWEIGHTED = ("Add", "AveragePool", "GlobalAveragePool")  # they compute in integers where both sides are quantized
_COMMUTING = (
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice"),
    *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
_ACTIVATIONS = (
    *("BatchNormalization", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu"),
    *("Relu", "Selu", "Sigmoid", "Softplus", "Tanh"),
)


class Unfused(NamedTuple):
    """A Q/DQ that stands where TensorRT wouldn't fuse it."""

    rule: str  # of the table above
    node: str  # the node's name in the graph
    problem: str  # one sentence without its full stop


def unfused(model: onnx.ModelProto) -> list[Unfused]:
    """Return the Q/DQ of a graph that TensorRT wouldn't fuse, in the order of the graph; empty where it would fuse all.

    Args:
        model: any ONNX graph, with QuantizeLinear and DequantizeLinear or without.
    """
    graph = _Graph(model)
    return [finding for node in model.graph.node for finding in graph.findings(node)]


def sentences(model: onnx.ModelProto) -> list[str]:
    """Return one sentence for each finding, or one that there is none; nothing for a graph without Q/DQ."""
    count = sum(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)
    found = unfused(model)
    if not count:
        return []
    if not found:
        return [f"All {count} Q/DQ stand where TensorRT fuses them, by NVIDIA's rules."]
    return [f"TensorRT wouldn't fuse Q/DQ ({each.rule}): {each.problem}." for each in found]


def quantize_residuals(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in which a sum of a quantized convolution and a tensor with Q/DQ reads the DequantizeLinear.

    So the residual branch is there in integers where the branches meet, and convolution, bias and sum fuse.

    Args:
        model: a graph with Q/DQ around the inputs of its layers.
    """
    new = copy(model)
    graph, written = _Graph(new), set[str]()
    for node in new.graph.node:
        if node.op_type == "Add" and not graph.adds_bias(node):
            for own, other in ((0, 1), (1, 0)):
                pairs = [pair for pair in graph.pairs(node.input[other]) if pair in written]
                if pairs and graph.convolution(node.input[own]):
                    node.input[other] = pairs[0]
                    break
        written.update(node.output)
    return new


class _Graph:
    """One graph, and the queries that the rules need."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.made_by, self.readers = producers(model), consumers(model)
        self.constants = initializers(model) | {
            node.output[0]: value
            for node in model.graph.node
            if node.op_type == "Constant" and isinstance(value := attribute(node, "value"), onnx.TensorProto)
        }
        self.outputs = {value.name for value in model.graph.output}

    def findings(self, node: onnx.NodeProto) -> Iterator[Unfused]:
        """Yield the findings of the rules for a node."""
        if node.op_type == "QuantizeLinear":
            yield from self.quantize(node)
        elif node.op_type == "DequantizeLinear":
            yield from self.dequantize(node)
        elif node.op_type in _WEIGHTED:
            yield from self.weighted(node)
        elif node.op_type in _UNWEIGHTED and not self.adds_bias(node):
            yield from self.addition(node) if node.op_type == "Add" else self.pooling(node)

    # --- the rules ----------------------------------------------------------------------------------------------------

    def quantize(self, node: onnx.NodeProto) -> Iterator[Unfused]:
        """Apply the rules ``pair`` and ``one-scale``."""
        if node.output[0] in self.outputs or any(
            reader.op_type != "DequantizeLinear" for reader in self.reached(node.output[0])
        ):
            yield Unfused("pair", node.name, f"{node.name} quantizes for something else than a DequantizeLinear")
        others = [each for each in self.readers[node.input[0]] if each.op_type == "QuantizeLinear"]
        if others[0].name != node.name and self.scale(others[0]) != self.scale(node):
            yield Unfused(
                "one-scale",
                node.name,
                f"{node.input[0]} is quantized by {others[0].name} and, with another scale, by {node.name}",
            )

    def dequantize(self, node: onnx.NodeProto) -> Iterator[Unfused]:
        """Apply the rules ``pair``, ``outputs``, ``useless`` and ``twice``."""
        if node.input[0] in self.constants:
            return
        pair = self.source(node.input[0])
        if pair is None or pair.op_type != "QuantizeLinear":
            yield Unfused("pair", node.name, f"{node.name} reads no QuantizeLinear")
            return
        reached = self.reached(node.output[0])
        quantizes = [each for each in reached if each.op_type == "QuantizeLinear"]
        if not any(each.op_type in (*_WEIGHTED, *_UNWEIGHTED) for each in reached) and not quantizes:
            names = ", ".join(dict.fromkeys(each.op_type for each in reached)) or "the output"
            if self.layer(pair.input[0]) and reached and all(each.op_type in _ACTIVATIONS for each in reached):
                yield Unfused("outputs", pair.name, f"{pair.name} parts a layer from its {names}")
            else:
                yield Unfused("useless", pair.name, f"{pair.name} reaches {names}, which doesn't compute in integers")
        for other in quantizes:
            if self.scale(other) != self.scale(node):
                yield Unfused("twice", other.name, f"{other.name} rounds again what {pair.name} rounded")

    def weighted(self, node: onnx.NodeProto) -> Iterator[Unfused]:
        """Apply the rules ``inputs``, ``weight-axis`` and ``fp8-convolution``."""
        data, weight = (self.dequantized(name) for name in node.input[:2])
        if data is None and weight is None:
            return
        if data is None or weight is None:
            have, lack = ("weights", "input") if data is None else ("input", "weights")
            yield Unfused("inputs", node.name, f"{node.name} has Q/DQ on its {have} and none on its {lack}")
            return
        if weight.input[0] in self.constants:
            yield from self.weight_axis(node, weight)
            integers = self.constants[weight.input[0]]
            if node.op_type == "Conv" and integers.data_type == TensorProto.FLOAT8E4M3FN:
                taps, groups = math.prod(integers.dims[2:]), attribute(node, "group", 1)
                if groups > 1 or taps > FP8_TAPS:
                    what = f"{groups} groups" if groups > 1 else f"{taps} taps"
                    reason = f"TensorRT has no fast FP8 convolution of {what}, which {node.name} has"
                    yield Unfused("fp8-convolution", node.name, reason)

    def weight_axis(self, node: onnx.NodeProto, weight: onnx.NodeProto) -> Iterator[Unfused]:
        """Apply the rule ``weight-axis``."""
        rank, scales = len(self.constants[weight.input[0]].dims), self.constants.get(weight.input[1])
        outputs = {
            "Conv": 0,
            "ConvTranspose": 1,
            "Gemm": 0 if attribute(node, "transB", 0) else 1,
            "MatMul": rank - 1,
        }[node.op_type]
        axis = attribute(weight, "axis", 1)
        if scales is not None and array(scales).size > 1 and axis % rank != outputs:
            reason = f"the scales of {node.name}'s weights run along axis {axis}, its output channels along {outputs}"
            yield Unfused("weight-axis", node.name, reason)

    def addition(self, node: onnx.NodeProto) -> Iterator[Unfused]:
        """Apply the rules ``residual`` and ``non-weighted`` to a sum of two activations."""
        pairs = [self.dequantized(name) for name in node.input]
        layers = [self.layer(name) for name in node.input]
        if all(pairs):
            if any(pair is not None and self.parts_layer(pair) for pair in pairs):
                yield Unfused("residual", node.name, f"Q/DQ parts a layer from {node.name}, which it would fuse with")
            elif not self.quantized_behind(node.output[0]):
                yield self.output_in_float(node)
        elif any(pairs) and not any(layers):
            yield Unfused("residual", node.name, f"one branch of {node.name} is quantized, the other one isn't")
        elif any(layers) and not any(pairs) and self.quantized_behind(node.output[0]):
            reason = f"{node.name} adds in float what is quantized behind it; its residual branch has no Q/DQ"
            yield Unfused("residual", node.name, reason)

    def pooling(self, node: onnx.NodeProto) -> Iterator[Unfused]:
        """Apply the rule ``non-weighted`` to average pooling."""
        if self.dequantized(node.input[0]) is not None and not self.quantized_behind(node.output[0]):
            yield self.output_in_float(node)

    @staticmethod
    def output_in_float(node: onnx.NodeProto) -> Unfused:
        """Return the finding of rule ``non-weighted``."""
        reason = f"{node.name} has quantized inputs and an output in float"
        return Unfused("non-weighted", node.name, reason)

    # --- queries ------------------------------------------------------------------------------------------------------

    def source(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that computes a tensor's values, behind operators that commute with rounding."""
        node = self.made_by.get(tensor)
        while node is not None and node.op_type in _COMMUTING:
            node = self.made_by.get(node.input[0])
        return node

    def reached(self, tensor: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a tensor's values, past operators that commute with rounding."""
        reached, pending = [], [tensor]
        while pending:
            for node in self.readers.get(pending.pop(), []):
                if node.op_type in _COMMUTING:
                    pending += node.output
                else:
                    reached.append(node)
        return reached

    def dequantized(self, tensor: str) -> onnx.NodeProto | None:
        """Return the DequantizeLinear that a tensor comes from."""
        node = self.source(tensor)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def layer(self, tensor: str) -> bool:
        """Whether a quantized layer, with its bias, writes this tensor."""
        node = self.made_by.get(tensor)
        if node is not None and self.adds_bias(node):
            node = next((self.made_by[name] for name in node.input if name in self.made_by), None)
        return node is not None and node.op_type in _WEIGHTED and all(map(self.dequantized, node.input[:2]))

    def convolution(self, tensor: str) -> bool:
        """Whether a quantized convolution writes this tensor, and one node alone reads it."""
        return self.layer(tensor) and self.made_by[tensor].op_type == "Conv" and len(self.readers[tensor]) == 1

    def pairs(self, tensor: str) -> list[str]:
        """Return the outputs of the Q/DQ pairs that read a tensor."""
        quantizes = [each for each in self.readers.get(tensor, []) if each.op_type == "QuantizeLinear"]
        return [
            reader.output[0]
            for each in quantizes
            for reader in self.readers[each.output[0]]
            if reader.op_type == "DequantizeLinear"
        ]

    def adds_bias(self, node: onnx.NodeProto) -> bool:
        """Whether a node adds a constant."""
        return node.op_type == "Add" and any(name in self.constants for name in node.input)

    def parts_layer(self, pair: onnx.NodeProto) -> bool:
        """Whether a pair that ends in this DequantizeLinear is the only reader of a layer's output."""
        quantize = self.source(pair.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            return False
        return self.layer(quantize.input[0]) and len(self.readers[quantize.input[0]]) == 1

    def quantized_behind(self, tensor: str) -> bool:
        """Whether only QuantizeLinears read a tensor, or the one activation behind it."""
        readers = self.reached(tensor)
        if len(readers) == 1 and readers[0].op_type in _ACTIVATIONS:
            readers = self.reached(readers[0].output[0])
        return bool(readers) and all(each.op_type == "QuantizeLinear" for each in readers)

    def scale(self, node: onnx.NodeProto) -> tuple[float, ...]:
        """Return the scales of a Q or DQ; none where they aren't constant."""
        scale = self.constants.get(node.input[1])
        return () if scale is None else tuple(np.asarray(array(scale), np.float64).reshape(-1))
