"""Write narrower structures into a graph. Node names don't change; shared constants are copied first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.errors import ModelError
from vitedge.graph.folding import Index, prune, reroute, set_constant
from vitedge.graph.surgery import array, consumers, copy, initializers, linear_layers, producers
from vitedge.quantization.prepare import add_behind
from vitedge.shrinking.embedding import Embedding
from vitedge.shrinking.structures import Attention, Pair, Part, Residual, patches_of

Float64 = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Side:
    """Weights and bias of an attention's queries, keys or values, head by head."""

    weight: Float64  # [C_in, heads, channels]
    bias: Float64 | None  # [heads, channels]

    def heads(self, kept: Indices) -> Side:
        """Keep these heads only."""
        return Side(self.weight[:, kept], None if self.bias is None else self.bias[kept])

    def channels(self, kept: Indices) -> Side:
        """Keep these channels of every head only."""
        return Side(self.weight[..., kept], None if self.bias is None else self.bias[..., kept])

    def mapped(self, maps: Float64) -> Side:
        """Apply a linear map to every head's channels; maps [heads, channels, new channels]."""
        bias = None if self.bias is None else np.einsum("hd,hdr->hr", self.bias, maps)
        return Side(np.einsum("chd,hdr->chr", self.weight, maps), bias)


@dataclass(frozen=True)
class AttentionWeights:
    """All weights of an attention. Its projection's matrix is [heads · channels, C_out]."""

    query: Side
    key: Side
    value: Side
    projection: Float64
    bias: Float64 | None

    def heads(self, kept: Indices) -> AttentionWeights:
        """Keep these heads only; the projection no longer reads the others."""
        return replace(
            self,
            query=self.query.heads(kept),
            key=self.key.heads(kept),
            value=self.value.heads(kept),
            projection=self.projection.reshape(self.value.weight.shape[1], -1, self.projection.shape[1])[kept].reshape(
                -1, self.projection.shape[1]
            ),
        )


def read_attention(attention: Attention) -> AttentionWeights:
    """Read an attention's weights from the graph."""

    def side(part: Part, channels: int) -> Side:
        matrix = part.layer.matrix[:, part.start : part.stop]
        bias = None if part.layer.bias is None else part.layer.bias[part.start : part.stop].astype(np.float64)
        shape = (attention.heads, channels)
        return Side(matrix.reshape(-1, *shape), None if bias is None else bias.reshape(shape))

    projection = attention.projection
    bias = None if projection.bias is None else projection.bias.astype(np.float64)
    query, key = (side(part, attention.query_key) for part in (attention.query, attention.key))
    return AttentionWeights(query, key, side(attention.value, attention.value_width), projection.matrix, bias)


class Rewriter:
    """A copy of a graph whose structures are rewritten."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = copy(model)
        self.touched: set[str] = set()  # names of layers whose weights have changed

    def finished(self) -> onnx.ModelProto:
        """Return the model without nodes and constants that nothing reads any more."""
        del self.model.graph.value_info[:]
        prune(self.model)
        return self.model

    # --- structures --------------------------------------------------------------------------------------------------

    def pair(self, pair: Pair, kept: Indices, matrix: Float64, bias: NDArray[Any] | None) -> None:
        """Keep only these channels between two layers.

        Args:
            pair: as it is in the graph.
            kept: channels of the second's input, ascending.
            matrix: new weights of the second, [rows of the kept channels, C_out].
            bias: [C_out]; None where there's none and none is needed.
        """
        columns = kept if pair.split is None else np.concatenate([kept, kept + pair.width])
        first = pair.first
        self.layer(first.name, first.matrix[:, columns], None if first.bias is None else first.bias[columns])
        if pair.split is not None:
            self._sizes(self._node(pair.split), [len(kept)] * 2)
        for name in pair.between:
            self._keep(self._node(name), kept, pair.width, convolution=first.linear.kind == "conv")
        self.layer(pair.second.name, matrix, bias)

    def attention(self, attention: Attention, weights: AttentionWeights, pairs: Indices, kept: Indices) -> None:
        """Give an attention other weights.

        Args:
            attention: as it is in the graph.
            weights: the new ones.
            pairs: pairs of the rotary embedding that are kept, ascending; without one it isn't read.
            kept: heads that are kept, ascending.
        """
        heads, query_key = weights.query.weight.shape[1:]
        value = weights.value.weight.shape[2]
        parts: dict[str, list[tuple[Part, Side]]] = {}
        for name in ("query", "key", "value"):
            part, side = getattr(attention, name), getattr(weights, name)
            parts.setdefault(part.layer.name, []).append((part, side))
        for name, made in parts.items():
            made.sort(key=lambda each: each[0].start)
            matrix = np.concatenate([side.weight.reshape(len(side.weight), -1) for _, side in made], axis=1)
            biases = [side.bias.ravel() for _, side in made if side.bias is not None]
            self.layer(name, matrix, np.concatenate(biases) if biases else None)
            if made[0][0].split is not None:
                self._sizes(self._node(made[0][0].split), [side.weight[0].size for _, side in made])
        for name, width in zip(attention.reshapes, (query_key, query_key, value, None), strict=True):
            shape = [heads, width] if width is not None else [heads * value]
            self._shape(self._node(name), shape)
        if attention.score_bias is not None:
            self._keep_heads(self._node(attention.score_bias), kept, attention.heads)
        if attention.rotary is not None:
            self._rotary(attention, pairs, kept)
        self.layer(attention.projection.name, weights.projection, weights.bias)

    def embedding(self, found: Embedding, basis: Float64) -> None:
        """Give the tokens other channels, as :mod:`vitedge.shrinking.embedding` says.

        Args:
            found: as it is in the graph.
            basis: B [D, new channels].
        """
        whole, width = basis.shape
        for layer in found.writers:
            self.layer(layer.name, layer.matrix @ basis, None if layer.bias is None else layer.bias @ basis)
        for name, position in found.constants:
            node = self._node(name)
            self._set(node, position, array(initializers(self.model)[node.input[position]]) @ basis, f"{name}.by")
        for name in found.reshapes:
            self._shape(self._node(name), [width, -1])
        for norm in found.norms:
            node = self._node(norm.name)
            self._set(node, 1, np.ones(width), f"{norm.name}.weight")
            if len(node.input) > 2:
                self._set(node, 2, np.zeros(width), f"{norm.name}.bias")
            for layer in norm.readers:
                tiles = layer.matrix.reshape(-1, whole, layer.outputs)
                matrix = np.sqrt(whole / width) * (basis.T @ (norm.scale[:, None] * tiles))
                shift = (norm.shift @ tiles).sum(axis=0)
                bias = shift if layer.bias is None else layer.bias + shift
                self.layer(layer.name, matrix.reshape(-1, layer.outputs), bias if bias.any() else layer.bias)

    def without(self, residual: Residual, mean: Float64 | None, *, convolution: bool) -> None:
        """Leave a residual branch out; its Add adds a constant ``<name>.mean`` until :meth:`absorb_means`.

        Args:
            residual: where it ends.
            mean: what it adds on average, [C]; None: nothing.
            convolution: whether the branch is [N, C, H, W] instead of [.., C].
        """
        add = self._node(residual.add)
        branch = 1 - list(add.input).index(residual.skip)
        values = np.zeros(1) if mean is None else mean.reshape(-1, 1, 1) if convolution else mean
        add.input[branch] = set_constant(self.model, self._free(f"{residual.add}.mean"), values.astype(np.float32))
        prune(self.model)

    def absorb_means(self) -> None:
        """Move the means of removed branches into constants that are added earlier, where there are any."""
        for name in [node.name for node in self.model.graph.node if node.op_type == "Add"]:
            node = self._node(name)  # looked up each time: every move replaces nodes
            constant = next((each for each in node.input if each.rstrip("'") == f"{name}.mean"), None)
            if constant is None:
                continue
            skip = next(each for each in node.input if each != constant)
            mean = array(initializers(self.model)[constant]).reshape(-1)
            outputs = {value.name for value in self.model.graph.output}
            alone = self._alone(skip) and skip not in outputs
            if not mean.any() or (alone and self._absorb(skip, mean)):
                reroute(self.model, node.output[0], skip)
                prune(self.model)

    # --- constants ---------------------------------------------------------------------------------------------------

    def layer(self, name: str, matrix: Float64, bias: NDArray[Any] | None) -> None:
        """Set a layer's weights [K, C_out] and bias [C_out]; a bias is added where there was none."""
        self.touched.add(name)
        node = self._node(name)
        linear = next(each for each in linear_layers(self.model) if each.name == name)
        if linear.kind == "conv":
            kernel = list(initializers(self.model)[linear.weight].dims)[2:]
            weight = matrix.T.reshape(matrix.shape[1], -1, *kernel)
        else:
            weight = matrix.T if linear.channel_axis == 0 else matrix
        self._set(node, 1, weight, f"{name}.weight")
        if bias is None:
            return
        if linear.bias is None:
            constant = set_constant(self.model, self._free(f"{name}.bias"), np.asarray(bias, np.float32))
            if node.op_type == "MatMul":
                add_behind(self.model.graph, node, constant)
            else:
                del node.input[2:]
                node.input.append(constant)
            return
        reader = node if linear.bias_node is None else self._node(linear.bias_node.name)
        position = list(reader.input).index(linear.bias)
        shape = self._shaped(reader.input[position], len(bias))
        self._set(reader, position, np.asarray(bias).reshape(shape), f"{name}.bias")

    def _shaped(self, constant: str, width: int) -> list[int]:
        """Return a bias's shape with another width."""
        dims = list(initializers(self.model)[constant].dims)
        return [*dims[:-1], width] if dims else [width]

    def _node(self, name: str) -> onnx.NodeProto:
        node: onnx.NodeProto = next(node for node in self.model.graph.node if node.name == name)
        return node

    def _free(self, name: str) -> str:
        """Return a name that no tensor has."""
        graph = self.model.graph
        taken = set(initializers(self.model)) | {each for node in graph.node for each in (*node.input, *node.output)}
        while name in taken:
            name += "'"
        return name

    def _set(self, node: onnx.NodeProto, position: int, values: NDArray[Any], name: str) -> None:
        """Set a node's constant input; a constant that other nodes read too is left unchanged for them."""
        old = node.input[position] if position < len(node.input) else ""
        constant = initializers(self.model).get(old)
        integers = values.dtype.kind == "i"
        kind = np.dtype(np.int64 if integers else np.float32) if constant is None else array(constant).dtype
        shared = not old or len(consumers(self.model).get(old, [])) > 1 or list(node.input).count(old) > 1
        target = self._free(name) if shared else old
        with np.errstate(over="ignore"):
            new = np.ascontiguousarray(values).astype(kind)
        if not np.isfinite(new).all():
            raise ModelError(
                "shrink a layer", f"the new values of '{target}' overflow float32", "check the model's weights"
            )
        set_constant(self.model, target, new)
        while len(node.input) <= position:
            node.input.append("")
        node.input[position] = target

    def _sizes(self, split: onnx.NodeProto, sizes: Sequence[int]) -> None:
        self._set(split, 1, np.asarray(sizes, np.int64), f"{split.name}.sizes")

    def _shape(self, reshape: onnx.NodeProto, last: Sequence[int]) -> None:
        """Set the last sizes of a Reshape's output; the others don't change."""
        shape = array(initializers(self.model)[reshape.input[1]]).copy()
        shape[-len(last) :] = last
        self._set(reshape, 1, shape, f"{reshape.name}.shape")

    def _keep(self, node: onnx.NodeProto, kept: Indices, width: int, *, convolution: bool) -> None:
        """Keep these channels of a depthwise convolution, or of a constant that is added or multiplied."""
        constants = initializers(self.model)
        if node.op_type == "Conv":
            for position in range(1, len(node.input)):
                values = array(constants[node.input[position]])
                self._set(node, position, values[kept], f"{node.name}.{('weight', 'bias')[position - 1]}")
            for attr in node.attribute:
                if attr.name == "group":
                    attr.i = len(kept)
            return
        axis = -3 if convolution else -1
        for position, name in enumerate(node.input):
            values = array(constants[name]) if name in constants else np.zeros(())
            if values.ndim >= -axis and values.shape[axis] == width:
                self._set(node, position, np.take(values, kept, axis), f"{node.name}.by")

    def _keep_heads(self, node: onnx.NodeProto, kept: Indices, heads: int) -> None:
        """Keep these heads of a constant that is added to scores [N, heads, T, T]."""
        constants = initializers(self.model)
        for position, name in enumerate(node.input):
            values = array(constants[name]) if name in constants else np.zeros(())
            if values.ndim >= 3 and values.shape[-3] == heads:
                self._set(node, position, np.take(values, kept, -3), f"{node.name}.by")

    def _rotary(self, attention: Attention, pairs: Indices, kept: Indices) -> None:
        """Keep these pairs in the rotary tables [T, 1 or heads, channels], and these heads where each has its own."""
        assert attention.rotary is not None
        whole = len(pairs) == attention.query_key // 2
        columns = np.concatenate([pairs, pairs + attention.query_key // 2])
        for kind in ("cos", "sin"):
            nodes = [self._node(getattr(each, kind)) for each in attention.rotary]
            tables = {node.input[1]: array(initializers(self.model)[node.input[1]]) for node in nodes}
            for old, values in tables.items():
                by_head = values.shape[-2] == attention.heads > 1
                if whole and (not by_head or len(kept) == attention.heads):
                    continue
                values = values[..., kept, :] if by_head else values
                new = set_constant(
                    self.model, self._own_table(f"{attention.name}.rope.{kind}", nodes), values[..., columns]
                )
                for node in nodes:
                    node.input[1] = new if node.input[1] == old else node.input[1]
        for each in attention.rotary if not whole else ():
            self._sizes(self._node(each.split), [len(pairs)] * 2)

    def _own_table(self, name: str, nodes: Sequence[onnx.NodeProto]) -> str:
        """Return a table's name if only these nodes read it."""
        names = {node.name for node in nodes}
        readers = consumers(self.model).get(name, [])
        return name if all(reader.name in names for reader in readers) else self._free(name)

    # --- what a branch adds on average -------------------------------------------------------------------------------

    def _absorb(self, tensor: str, mean: Float64) -> bool:
        """Add [C] to a tensor through a constant that is added to it; False: there's none."""
        node, constants = producers(self.model).get(tensor), initializers(self.model)
        if node is not None and node.op_type == "Transpose":
            patches = patches_of(Index(self.model), node, len(mean))
            node = None if patches is None else patches.convolution
        if node is None:
            return False
        positions = {"Add": (0, 1), "LayerNormalization": (2,), "Conv": (2,)}.get(node.op_type, ())
        for position in positions:
            name = node.input[position] if position < len(node.input) else ""
            if name in constants and list(constants[name].dims)[-1:] == [len(mean)]:
                self._set(node, position, array(constants[name]) + mean, f"{node.name}.bias")
                return True
        averages = node.op_type == "MatMul" and node.input[0] in constants  # of tokens: what all have stays
        return (averages or node.op_type == "Add") and any(
            self._alone(name) and self._absorb(name, mean) for name in node.input if name not in constants
        )

    def _alone(self, tensor: str) -> bool:
        return len(consumers(self.model).get(tensor, [])) == 1
