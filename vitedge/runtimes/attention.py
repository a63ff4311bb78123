"""Find attentions of the canonical form in a graph, with the facts that several runtimes' lowerings need."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from vitedge.graph.surgery import array, attribute, consumers, initializers, producers


@dataclass(frozen=True)
class Attention:
    """softmax(q kᵀ) v over heads, behind one linear that makes q, k and v; the scale is in its weights."""

    qkv: str  # the name of the linear, which is a MatMul or Gemm node
    packed: str  # its output, tensor [N, T, q + k + v], which one Split reads
    heads: int
    query_key: int  # channels of a head's query and key
    value: int  # channels of a head's value
    products: tuple[str, str]  # names of the two MatMul nodes
    output: str  # tensor [N, T, heads · value]
    reshapes: tuple[str, str, str, str]  # names of the nodes that part q, k and v into heads, and join them again
    query_slice: tuple[str, ...]  # bounds of the Slice that takes the used queries; empty where all are

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of the linear's columns that are queries, keys and values."""
        return self.heads * self.query_key, self.heads * self.query_key, self.heads * self.value


def attentions(model: onnx.ModelProto) -> list[Attention]:
    """Return every attention of the canonical form, in graph order; one that differs anywhere isn't among them.

    Some of the queries may do (:mod:`vitedge.graph.unused_tokens`). The linear's weights may be dequantized ones.
    """
    readers, writers, constants = consumers(model), producers(model), initializers(model)

    def only(tensor: str, operator: str) -> onnx.NodeProto:
        nodes = readers.get(tensor, [])
        if len(nodes) != 1 or nodes[0].op_type != operator:
            raise LookupError(tensor)
        return nodes[0]

    def transposed(tensor: str, perm: list[int]) -> str:
        node = only(tensor, "Transpose")
        if attribute(node, "perm") != perm:
            raise LookupError(tensor)
        return str(node.output[0])

    def parts(tensor: str, perm: list[int]) -> tuple[str, list[int], str]:
        reshape = only(tensor, "Reshape")
        shape = array(constants[reshape.input[1]]).tolist()
        return transposed(reshape.output[0], perm), shape, reshape.name

    def linear(tensor: str) -> str:
        node = writers[tensor]
        if node.op_type == "Add" and (dynamic := [name for name in node.input if name not in constants]):
            only(dynamic[0], "Add")
            node = writers[dynamic[0]]
        if node.op_type not in ("MatMul", "Gemm"):
            raise LookupError(tensor)
        return str(node.name)

    def queries(tensor: str) -> tuple[tuple[str, ...], str]:
        if all(node.op_type != "Slice" for node in readers.get(tensor, [])):
            return (), tensor
        node = only(tensor, "Slice")
        axes = constants.get(node.input[3]) if len(node.input) > 3 else None
        if axes is None or array(axes).tolist() != [1]:
            raise LookupError(tensor)
        return tuple(node.input[1:]), str(node.output[0])

    attentions_found = []
    for split in (node for node in model.graph.node if node.op_type == "Split" and len(node.output) == 3):
        try:
            qkv = linear(split.input[0])
            only(split.input[0], "Split")
            query_slice, used = queries(split.output[0])
            q, shape, q_name = parts(used, [0, 2, 1, 3])
            k, k_shape, k_name = parts(split.output[1], [0, 2, 3, 1])
            v, v_shape, v_name = parts(split.output[2], [0, 2, 1, 3])
            scores = only(q, "MatMul")
            softmax = only(scores.output[0], "Softmax")
            context = only(softmax.output[0], "MatMul")
            joined = only(transposed(context.output[0], [0, 2, 1, 3]), "Reshape")
        except LookupError:
            continue
        heads, query_key = shape[-2:]
        found = Attention(
            qkv=qkv,
            packed=split.input[0],
            heads=heads,
            query_key=query_key,
            value=v_shape[-1],
            products=(scores.name, context.name),
            output=joined.output[0],
            reshapes=(q_name, k_name, v_name, joined.name),
            query_slice=query_slice,
        )
        same = shape == k_shape and shape[:3] == v_shape[:3] == [0, 0, heads]
        operands = list(scores.input) == [q, k] and list(context.input) == [softmax.output[0], v]
        equal = list(found.sizes[:1] * 3)  # what a Split without sizes makes
        sizes = equal if len(split.input) == 1 else array(constants[split.input[1]]).tolist()
        axes = attribute(split, "axis", 0) in (-1, 2) and attribute(softmax, "axis", -1) in (-1, 3)
        flat = array(constants[joined.input[1]]).tolist() == [0, 0, found.sizes[2]]
        cut = sizes == list(found.sizes)
        if same and operands and cut and axes and flat and writers[softmax.input[0]] is scores:
            attentions_found.append(found)
    return attentions_found
