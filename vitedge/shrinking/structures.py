"""Find what can become narrower in a graph: pairs of layers, attentions, and residual branches.

A *pair* is a layer behind which channelwise operators alone stand, and then one other layer: an MLP (plain or gated),
two convolutions, an inverted bottleneck with its depthwise convolution. An *attention* is softmax(q kᵀ) v over heads,
its queries, keys and values made by one linear or by several, its context read by one linear. A *residual* is an Add of
a branch and of what the branch was made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import onnx

from vitedge.graph.folding import Index
from vitedge.graph.surgery import attribute
from vitedge.quantization.views import Layer, quantizable

#: Operators with one input that treat every value by itself, or every channel.
_CHANNELWISE = (
    *(
        "Celu",
        "Clip",
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Mish",
        "Relu",
        "Selu",
    ),
    *("Sigmoid", "Softplus", "Softsign", "Tanh"),
)
_POOLING = ("AveragePool", "GlobalAveragePool", "MaxPool")
_WITH_CONSTANT = ("Add", "Div", "Mul", "Sub")


class Residual(NamedTuple):
    """x + branch(x)."""

    add: str  # name of the Add
    skip: str  # tensor x
    output: str  # tensor written


@dataclass(frozen=True)
class Pair:
    """Two layers, and what stands between them: channel j of the first is channel j of the second's input."""

    name: str
    first: Layer  # of a gated pair, its columns are gates and values, one half each
    second: Layer
    between: tuple[str, ...]  # nodes in between with constants of the channels: depthwise convolutions, Adds
    split: str | None  # the Split of a gated pair
    width: int  # channels of the second's input
    residual: Residual | None  # what the second's output is added to, where the pair is a branch

    @property
    def last(self) -> Layer:
        """The layer that computes its output."""
        return self.second

    def present(self) -> dict[str, int]:
        """Its widths by component."""
        return {self.name: self.width}

    def goes(self, widths: Mapping[str, int]) -> bool:
        """Whether these widths remove it entirely."""
        return self.residual is not None and widths.get(self.name, self.width) == 0

    @property
    def rows(self) -> int:
        """The number of rows of the second layer's matrix that one channel has: 1, or a kernel's positions."""
        return self.second.inputs // self.width


class Part(NamedTuple):
    """A range of a linear's output channels: an attention's queries, keys or values."""

    layer: Layer
    start: int
    stop: int
    split: str | None  # the Split that cuts them out


class Rotary(NamedTuple):
    """Names of the nodes that apply a rotary embedding to queries or keys."""

    split: str
    cos: str
    sin: str


class AttentionWidths(NamedTuple):
    """The widths of an attention that can be reduced."""

    heads: int
    query_key: int  # channels of a head
    value: int


@dataclass(frozen=True)
class Attention:
    """Multi-head attention between linears; tensors are of the form [N, T, heads, channels]."""

    name: str
    heads: int
    query_key: int  # channels of a head's query and key
    value_width: int  # channels of a head's value
    query: Part
    key: Part
    value: Part
    projection: Layer
    reshapes: tuple[str, str, str, str]  # names of the Reshapes of query, key, value and context
    query_tensor: str  # [N, T, heads, query_key], as it enters the product: turned, where there's a rotary embedding
    key_tensor: str
    rotary: tuple[Rotary, Rotary] | None  # of query and key
    normed: bool  # LayerNorms over a head's query or key, which tie its channels together
    score_bias: str | None  # name of the Add of a constant to the scores
    residual: Residual | None

    @property
    def last(self) -> Layer:
        """The layer that computes its output."""
        return self.projection

    def present(self) -> dict[str, int]:
        """Its widths by component."""
        present = AttentionWidths(self.heads, self.query_key, self.value_width)
        return {f"{self.name}.{kind}": width for kind, width in present._asdict().items()}

    def widths(self, widths: Mapping[str, int]) -> AttentionWidths:
        """Pick this attention's widths; the present width where none is named."""
        return AttentionWidths(*(widths.get(name, width) for name, width in self.present().items()))

    def goes(self, widths: Mapping[str, int]) -> bool:
        """Whether these widths remove it entirely."""
        return self.residual is not None and self.widths(widths).heads == 0


@dataclass(frozen=True)
class Branch:
    """A residual branch of any other kind that ends in a layer."""

    name: str
    last: Layer
    residual: Residual

    def present(self) -> dict[str, int]:
        """Its widths by component."""
        return {self.name: 1}

    def goes(self, widths: Mapping[str, int]) -> bool:
        """Whether these widths remove it entirely."""
        return widths.get(self.name, 1) == 0


Structure = Pair | Attention | Branch
S = TypeVar("S", bound=Pair | Attention | Branch)


def structures(model: onnx.ModelProto) -> list[Structure]:
    """Find what can become narrower.

    Args:
        model: a float graph; node names are unique.

    Returns:
        Pairs, attentions and other residual branches, in the order of their last layers. What differs anywhere from the
        patterns isn't among them.
    """
    search = _Search(model)
    found: list[Structure] = [*search.attentions(), *search.pairs()]
    ends = {each.last.name for each in found}
    found += [each for each in search.branches() if each.last.name not in ends]
    order = {layer.name: position for position, layer in enumerate(search.layers)}
    return sorted(found, key=lambda each: order[each.last.name])


def structure_of(model: onnx.ModelProto, structure: S) -> S:
    """Find a structure again in a graph in which others were changed.

    Raises:
        LookupError: it's gone.
    """
    for each in structures(model):
        if each.name == structure.name and isinstance(each, type(structure)):
            return each
    raise LookupError(structure.name)


class _Search:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.index = Index(model)
        self.layers = [layer for layer in quantizable(model)[0] if layer.weight.size]
        self.by_node = {layer.name: layer for layer in self.layers}
        self.by_output = {layer.linear.output: layer for layer in self.layers}

    def residual(self, output: str) -> Residual | None:
        """Return the Add that alone reads a branch's output, if its other operand is the branch's input."""
        add = self.index.reader(output)
        if add is None or add.op_type != "Add" or add.output[0] in self.index.outputs:
            return None
        skip = next((name for name in add.input if name != output), "")
        dynamic = skip and skip not in self.index.constants
        return Residual(add.name, skip, add.output[0]) if dynamic and self._depends(output, skip) else None

    def _depends(self, tensor: str, source: str) -> bool:
        """Whether ``tensor`` is computed from ``source``."""
        waiting, seen = [tensor], {tensor}
        while waiting:
            node = self.index.producers.get(waiting.pop())
            for name in [] if node is None else node.input:
                if name == source:
                    return True
                if name not in seen:
                    seen.add(name)
                    waiting.append(name)
        return False

    def branches(self) -> Iterator[Branch]:
        for layer in self.layers:
            residual = self.residual(layer.linear.output)
            if residual is not None:
                yield Branch(layer.name, layer, residual)

    # --- pairs -------------------------------------------------------------------------------------------------------

    def pairs(self) -> Iterator[Pair]:
        for layer in self.layers:
            channels = layer.outputs
            ahead = self._ahead(layer.linear.output, channels, convolution=layer.linear.kind == "conv")
            split = None
            reader = None if ahead is None else self.index.reader(ahead.tensor)
            if ahead is not None and reader is not None and reader.op_type == "Split":
                split, channels = reader.name, channels // 2
                ahead = self._gated(ahead, reader, channels, layer)
                reader = None if ahead is None else self.index.reader(ahead.tensor)
            second = None if reader is None else self.by_node.get(reader.name)
            if ahead is None or second is None or second.linear.input != ahead.tensor:
                continue
            if second.linear.kind != layer.linear.kind:
                continue  # a linear behind a convolution reads its columns, not its channels
            name = _without(layer.name, "fc1", "conv")
            residual = self.residual(second.linear.output)
            yield Pair(name, layer, second, tuple(ahead.constants), split, channels, residual)

    def _ahead(self, tensor: str, channels: int, *, convolution: bool) -> _Ahead | None:
        """Follow channelwise operators while each is the only reader of the one before; None at a graph's output."""
        ahead = _Ahead(tensor, [])
        while True:
            if ahead.tensor in self.index.outputs:
                return None
            readers = self.index.consumers.get(ahead.tensor, [])
            product = self._by_itself(ahead.tensor, readers)
            if product is not None:
                ahead = _Ahead(product, ahead.constants)
                continue
            node = readers[0] if len(readers) == 1 else None
            if node is None or len(node.output) != 1:
                return ahead if node is not None else None
            if node.op_type in _CHANNELWISE or (convolution and node.op_type in _POOLING):
                ahead = _Ahead(node.output[0], ahead.constants)
            elif self._depthwise(node, channels) or self._per_channel(node, channels, convolution=convolution):
                ahead = _Ahead(node.output[0], [*ahead.constants, node.name])
            else:
                return ahead

    def _by_itself(self, tensor: str, readers: list[onnx.NodeProto]) -> str | None:
        """Return the product x · f(x), where nothing else reads x; else None."""
        if len(readers) != 2:
            return None
        for function, product in (readers, readers[::-1]):
            multiplied = product.op_type == "Mul" and set(product.input) == {tensor, function.output[0]}
            if function.op_type in _CHANNELWISE and multiplied and self.index.reader(function.output[0]):
                return str(product.output[0])
        return None

    def _gated(self, ahead: _Ahead, split: onnx.NodeProto, channels: int, layer: Layer) -> _Ahead | None:
        """Return the product of gates and values behind a Split."""
        halves = layer.linear.kind == "linear" and len(split.output) == 2 and self._halves(split, channels)
        if not halves or ahead.constants:
            return None
        sides = [self._ahead(output, channels, convolution=False) for output in split.output]
        if any(side is None or side.constants for side in sides):
            return None
        products = [self.index.reader(side.tensor) for side in sides if side is not None]
        if products[0] is None or products[0] is not products[1] or products[0].op_type != "Mul":
            return None
        return self._ahead(products[0].output[0], channels, convolution=False)

    def _halves(self, split: onnx.NodeProto, channels: int) -> bool:
        sizes = self.index.constant(split.input[1]) if len(split.input) > 1 else np.array([channels] * 2)
        return sizes is not None and sizes.tolist() == [channels] * 2 and attribute(split, "axis", 0) in (-1, 2)

    def _depthwise(self, node: onnx.NodeProto, channels: int) -> bool:
        weight = self.index.constants.get(node.input[1]) if node.op_type == "Conv" else None
        return weight is not None and attribute(node, "group", 1) == channels == weight.dims[0] and channels > 1

    def _per_channel(self, node: onnx.NodeProto, channels: int, *, convolution: bool) -> bool:
        """Whether a node adds or multiplies by a scalar or by one number per channel."""
        pair = self.index.operand(node) if node.op_type in _WITH_CONSTANT else None
        if pair is None:
            return False
        axis = -3 if convolution else -1
        shape = tuple(self.index.constants[pair[1]].dims)
        return len(shape) < -axis or shape[axis] in (1, channels)

    # --- attention ---------------------------------------------------------------------------------------------------

    def attentions(self) -> Iterator[Attention]:
        for node in self.index.model.graph.node:
            if node.op_type == "Softmax" and attribute(node, "axis", -1) in (-1, 3):
                try:
                    yield self._attention(node)
                except LookupError:
                    continue

    def _attention(self, softmax: onnx.NodeProto) -> Attention:
        """Return the attention around a Softmax.

        Raises:
            LookupError: it differs from the pattern.
        """
        context = self._only(softmax.output[0], "MatMul")
        joined = self._only(self._only(context.output[0], "Transpose", perm=[0, 2, 1, 3]).output[0], "Reshape")
        reader = self.index.reader(joined.output[0])
        projection = None if reader is None else self.by_node.get(reader.name)
        scores, score_bias = self._scores(softmax.input[0])
        if projection is None or projection.linear.kind != "linear" or context.input[0] != softmax.output[0]:
            raise LookupError
        value_tensor = self._turned(context.input[1], [[0, 2, 1, 3]])
        query_tensor = self._turned(self._unscaled(scores.input[0]), [[0, 2, 1, 3]])
        key_tensor = self._turned(self._unscaled(scores.input[1]), [[0, 2, 3, 1]], [[0, 1, 3, 2], [0, 2, 1, 3]])
        queries, keys = self._unrotated(query_tensor), self._unrotated(key_tensor)
        query, key = self._unnormed(queries[0]), self._unnormed(keys[0])
        made = [self._made(tensor) for tensor in (query, key, value_tensor)]
        (heads, width), (_, key_width), (_, value_width) = (each.shape for each in made)
        same = len({each.shape[0] for each in made}) == 1 and width == key_width and (not queries[1]) == (not keys[1])
        joins = projection.inputs == heads * value_width and self._joins(joined, heads * value_width)
        if not same or not joins or not _tiled([each.part for each in made]):
            raise LookupError
        return Attention(
            name=_without(projection.name, "proj"),
            heads=heads,
            query_key=width,
            value_width=value_width,
            query=made[0].part,
            key=made[1].part,
            value=made[2].part,
            projection=projection,
            reshapes=(made[0].reshape, made[1].reshape, made[2].reshape, joined.name),
            query_tensor=query_tensor,
            key_tensor=key_tensor,
            rotary=None if queries[1] is None or keys[1] is None else (queries[1], keys[1]),
            normed=query != queries[0] or key != keys[0],
            score_bias=score_bias,
            residual=self.residual(projection.linear.output),
        )

    def _only(self, tensor: str, operator: str, **attributes: object) -> onnx.NodeProto:
        """Return the only node that reads a tensor."""
        node = self.index.reader(tensor)
        if node is None or node.op_type != operator:
            raise LookupError
        if any(attribute(node, name) != value for name, value in attributes.items()):
            raise LookupError
        return node

    def _producer(self, tensor: str, operator: str) -> onnx.NodeProto:
        """Return the node that writes a tensor, if a single node reads that tensor."""
        node = self.index.producers.get(tensor)
        if node is None or node.op_type != operator or self.index.reader(tensor) is None:
            raise LookupError
        return node

    def _scores(self, tensor: str) -> tuple[onnx.NodeProto, str | None]:
        """Return the product of queries and keys that Softmax reads, and the Add of a constant in between."""
        bias = None
        while True:
            node = self.index.producers.get(tensor)
            pair = None if node is None else self.index.operand(node)
            if node is None or self.index.reader(tensor) is None:
                raise LookupError
            if node.op_type == "MatMul" and pair is None:
                return node, bias
            if pair is None or not (self.index.factor(node) or (node.op_type == "Add" and bias is None)):
                raise LookupError
            bias, tensor = node.name if node.op_type == "Add" else bias, pair[0]

    def _unscaled(self, tensor: str) -> str:
        node = self.index.producers.get(tensor)
        step = None if node is None or self.index.reader(tensor) is None else self.index.factor(node)
        return tensor if step is None else self._unscaled(step[0])

    def _turned(self, tensor: str, *paths: list[list[int]]) -> str:
        """Return the tensor before Transposes with these orders of axes, of which the last comes first."""
        for path in paths:
            source = tensor
            for perm in path:
                node = self.index.producers.get(source)
                if node is None or node.op_type != "Transpose" or attribute(node, "perm") != perm:
                    break
                if self.index.reader(source) is None:
                    break
                source = self._unscaled(node.input[0])
            else:
                return source
        raise LookupError

    def _unrotated(self, tensor: str) -> tuple[str, Rotary | None]:
        """Return queries or keys before their rotary embedding: x · cos + (x, its halves swapped) · sin."""
        add = self.index.producers.get(tensor)
        if add is None or add.op_type != "Add":
            return tensor, None
        products = {name: self._producer(name, "Mul") for name in add.input}
        for cos, sin in (list(products.values()), list(products.values())[::-1]):
            swap = self.index.producers.get(sin.input[0])
            if swap is None or swap.op_type != "Concat" or attribute(swap, "axis") not in (-1, 3):
                continue
            split = self.index.producers.get(swap.input[0])
            if split is None or split.op_type != "Split" or list(swap.input) != [*reversed(split.output)]:
                continue
            constants = all(node.input[1] in self.index.constants for node in (cos, sin))
            if constants and split.input[0] == cos.input[0] and len(self.index.consumers[cos.input[0]]) == 2:
                return str(cos.input[0]), Rotary(split.name, cos.name, sin.name)
        raise LookupError

    def _unnormed(self, tensor: str) -> str:
        node = self.index.producers.get(tensor)
        return str(node.input[0]) if node is not None and node.op_type == "LayerNormalization" else tensor

    def _made(self, tensor: str) -> _Made:
        """Return the Reshape to [N, T, heads, channels], heads and channels, and the layer's channels that it reads."""
        reshape = self.index.producers.get(tensor)
        shape = None if reshape is None or reshape.op_type != "Reshape" else self.index.constant(reshape.input[1])
        if reshape is None or shape is None or shape.size != 4 or shape[2] < 1 or shape[3] < 1:
            raise LookupError
        heads, width = int(shape[2]), int(shape[3])
        source = str(reshape.input[0])
        if self.index.reader(source) is None:
            raise LookupError
        layer, start, split = self.by_output.get(source), 0, None
        if layer is None:
            layer, start, split = self._cut(source)
        if layer.linear.kind != "linear" or (split is None and layer.outputs != heads * width):
            raise LookupError
        return _Made(reshape.name, (heads, width), Part(layer, start, start + heads * width, split))

    def _cut(self, tensor: str) -> tuple[Layer, int, str]:
        """Return the linear whose output a Split divides, the first of its channels in ``tensor``, and the Split."""
        split = self.index.producers.get(tensor)
        if split is None or split.op_type != "Split" or attribute(split, "axis", 0) not in (-1, 2):
            raise LookupError
        layer = self.by_output.get(split.input[0])
        if layer is None or self.index.reader(split.input[0]) is None:
            raise LookupError
        count, width = len(split.output), layer.outputs
        sizes = self.index.constant(split.input[1]) if len(split.input) > 1 else np.full(count, width // count)
        if sizes is None or int(sizes.sum()) != width:
            raise LookupError
        position = list(split.output).index(tensor)
        return layer, int(sizes[:position].sum()), split.name

    def _joins(self, reshape: onnx.NodeProto, width: int) -> bool:
        shape = self.index.constant(reshape.input[1])
        return shape is not None and shape.size == 3 and int(shape[-1]) in (width, -1)


class Patches(NamedTuple):
    """The nodes that make a picture's patches: [N, C, H, W], then [N, C, H·W]."""

    convolution: onnx.NodeProto
    reshape: onnx.NodeProto


def patches_of(index: Index, transpose: onnx.NodeProto, channels: int) -> Patches | None:
    """Return the convolution whose output [N, C, H, W] becomes the rows [N, H·W, C] here, which alone read it."""
    reshape = index.producers.get(transpose.input[0])
    if reshape is None or reshape.op_type != "Reshape" or attribute(transpose, "perm") != [0, 2, 1]:
        return None
    shape, conv = index.constant(reshape.input[1]), index.producers.get(reshape.input[0])
    flat = shape is not None and shape.size == 3 and int(shape[1]) == channels
    alone = all(index.reader(name) is not None for name in (reshape.input[0], reshape.output[0]))
    return Patches(conv, reshape) if conv is not None and conv.op_type == "Conv" and flat and alone else None


class _Ahead(NamedTuple):
    tensor: str
    constants: list[str]  # nodes on the way that hold constants of the channels


class _Made(NamedTuple):
    """The tensor of an attention's queries, keys or values, traced back to its linear."""

    reshape: str  # name of the node that makes [N, T, heads, channels]
    shape: tuple[int, int]  # heads and channels
    part: Part


def _tiled(parts: list[Part]) -> bool:
    """Whether query, key and value together are all output channels of their linears, each channel once."""
    made: dict[str, list[tuple[int, int]]] = {}
    widths: Mapping[str, int] = {part.layer.name: part.layer.outputs for part in parts}
    for part in parts:
        made.setdefault(part.layer.name, []).append((part.start, part.stop))
    for name, spans in made.items():
        spans.sort()
        edges = [0, *(edge for span in spans for edge in span), widths[name]]
        if any(first != second for first, second in zip(edges[::2], edges[1::2], strict=True)):
            return False
    return True


def _without(name: str, *endings: str) -> str:
    """Return a layer's name without the part that says which layer of a structure it is."""
    parent, _, last = name.rpartition(".")
    return parent if parent and last in endings else name
