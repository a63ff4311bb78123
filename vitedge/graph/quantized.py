"""Detect graphs that are quantized already, the form, and the tool; a model folder holds float32 weights only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from vitedge.errors import ModelError
from vitedge.graph import surgery

#: Forms by what each is called and the operators that only it has, the most particular ones first.
_FORMS: tuple[tuple[str, str], ...] = (
    (
        "dynamically (as quantize_dynamic does: integer weights, activations quantized while it runs)",
        r"DynamicQuantize\w+|MatMulInteger\w*|ConvInteger",
    ),
    ("in the QOperator format (integer operators)", r"QLinear\w+|QGemm|QAttention|QMoE|QOrdered\w+|QEmbed\w+"),
    ("in the QDQ format (pairs of QuantizeLinear and DequantizeLinear)", r"(TRT_\w+)?QuantizeLinear"),
    ("with FakeQuantize operators", r"FakeQuantize"),
    ("in its weights alone", r"(TRT_\w+)?DequantizeLinear|MatMulNBits|MatMulBnb4|MatMulFpQ4|GatherBlockQuantized"),
)
FLOAT_MODEL = (
    "import the float model that it was made from; vitedge quantizes that: "
    "vitedge export MODEL --target TARGET --int8 --out ARTIFACT"
)


@dataclass(frozen=True)
class Quantized:
    """The form in which a graph is quantized, and the tool that did it."""

    form: str
    tool: str | None  # None: nothing tells
    operators: dict[str, int]  # those that tell the form, by name

    def __str__(self) -> str:
        by = f" by {self.tool}" if self.tool is not None else ""
        return f"{self.form}{by}: {', '.join(f'{name} ×{count}' for name, count in sorted(self.operators.items()))}"


def quantized_form(model: onnx.ModelProto) -> Quantized | None:
    """Return the form in which a graph is quantized; None for a float graph."""
    nodes = list(_nodes(model))
    counts = Counter(node.op_type for node in nodes)
    for form, pattern in _FORMS:
        if operators := {name: count for name, count in counts.items() if re.fullmatch(pattern, name)}:
            return Quantized(form, _tool(model, nodes), operators)
    return None


def refuse_quantized(model: onnx.ModelProto, action: str) -> None:
    """Refuse a graph that is quantized already.

    Raises:
        ModelError: its form, its tool, and what to import instead.
    """
    quantized = quantized_form(model)
    if quantized is not None:
        raise ModelError(action, f"it is quantized already, {quantized}", FLOAT_MODEL)


def _tool(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> str | None:
    """Return the tool that quantized it, by the marks that each tool leaves."""
    metadata = surgery.get_metadata(model)
    names = [node.name for node in nodes]
    domains = {node.domain for node in nodes}
    marks: Mapping[str, bool] = {
        "vitedge": any(key.startswith("vitedge.") for key in metadata),
        "Olive": "olive_version" in metadata or "olive" in model.producer_name.lower(),
        "NVIDIA ModelOpt": "modelopt" in model.producer_name.lower()
        or "trt" in domains
        or any(re.search(r"\b(input|weight|output|[qkv]_bmm)_quantizer\b", name) for name in names),
        "NNCF": "org.openvinotoolkit" in domains
        or any("nncf" in name or re.match(r"(Deq|Q)uantizeLinear_", name) for name in names),
        "ONNX Runtime": model.producer_name == "onnx.quantize" or metadata.get("onnx.infer") == "onnxruntime.quant",
    }
    return next((tool for tool, marked in marks.items() if marked), None)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node: of the graph, of graphs inside nodes, and of functions."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for attr in node.attribute:
            for graph in ([attr.g] if attr.HasField("g") else []) + list(attr.graphs):
                waiting += graph.node
