"""The embedding: the channels of all tokens between the blocks, which every layer norm reads and every branch adds to.

A LayerNorm takes the mean off its input and divides by the spread. So the channels may be turned about the mean by any
orthonormal matrix that the layers around fold into their weights, and after the turn fewer may be kept. SliceGPT
(2401.15024) does that with language models, with a matrix for each block and one product more on every residual; one
matrix for all blocks needs none. Here the new channels again have a mean of zero, so the LayerNorm stays one:

    B = V · M,   z' = z B,   LayerNorm(z) = √(D/d) · LayerNorm(z') Bᵀ

where nothing of z is lost. V [D, d - 1] are the directions that are kept, orthonormal, each with the mean zero;
M [d - 1, d] are the rows of a cosine transform but the constant one. At d = D nothing is lost, but for the epsilon.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.graph.folding import Index
from vitedge.graph.surgery import attribute
from vitedge.quantization.views import Layer, quantizable
from vitedge.shrinking.algebra import mixing
from vitedge.shrinking.moments import Rows, taken
from vitedge.shrinking.structures import patches_of

Float64 = NDArray[np.float64]

NAME = "embedding"
_HEAVY = 1 / 3  # weight of the rows that matter more, beside all
_READ = 0.3  # weight of what layers make of a direction, beside its variance

_OVER_TOKENS = ("Concat", "Gather", "ReduceMean", "Slice")  # if along the axis of the tokens


@dataclass(frozen=True)
class Norm:
    """A LayerNorm that reads the embedding, and the linears that read the LayerNorm."""

    name: str
    tensor: str  # that it reads
    scale: Float64  # [D]
    shift: Float64  # [D]
    readers: tuple[Layer, ...]  # each with one or several times D inputs


@dataclass(frozen=True)
class Embedding:
    """The channels of the tokens, and everything that they pass."""

    width: int
    writers: tuple[Layer, ...]  # linears and convolutions whose output is added to it
    constants: tuple[tuple[str, int], ...]  # that are added: node and position of its input
    reshapes: tuple[str, ...]  # of a convolution's output to [N, D, tokens]
    norms: tuple[Norm, ...]  # in graph order
    name: str = NAME

    @property
    def tensors(self) -> list[str]:
        """The tensors that its LayerNorms read, [.., D] each."""
        return [norm.tensor for norm in self.norms]

    def present(self) -> dict[str, int]:
        """Its width by component."""
        return {self.name: self.width}

    def writes(self, layer: str) -> bool:
        """Whether a layer's output is added to it."""
        return any(layer == writer.name for writer in self.writers)


def embedding_of(model: onnx.ModelProto) -> Embedding | None:
    """Find the embedding that a graph's last LayerNorm reads; None where anything but blocks reads or writes it."""
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    try:
        return _Search(model).found(norms[-1]) if norms else None
    except LookupError:
        return None


class _Search:
    """Follows tensors with the embedding's channels to everything that reads or writes them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.index, self.model = Index(model), model
        self.layers = {layer.linear.output: layer for layer in quantizable(model)[0]}
        self.by_node = {layer.name: layer for layer in self.layers.values()}
        self.writers: dict[str, Layer] = {}
        self.constants: list[tuple[str, int]] = []
        self.reshapes: list[str] = []
        self.waiting: list[str] = []

    def found(self, last: onnx.NodeProto) -> Embedding:
        """Return it.

        Raises:
            LookupError: what reads or writes it isn't as in a Vision Transformer.
        """
        self.width = len(self._affine(last)[0])
        self.waiting, seen, norms = [last.input[0]], set[str](), set[str]()
        while self.waiting:
            tensor = self.waiting.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            if tensor in self.index.outputs:
                raise LookupError(tensor)
            self._backward(tensor)
            for node in self.index.consumers.get(tensor, []):
                if node.op_type == "LayerNormalization":
                    norms.add(node.name)
                else:
                    self._forward(node)
        if not self.writers or len(norms) < 2:
            raise LookupError
        found = [self._norm(node) for node in self.model.graph.node if node.name in norms]
        written = sorted(self.writers)
        return Embedding(
            self.width,
            tuple(self.writers[name] for name in written),
            tuple(sorted(set(self.constants))),
            tuple(self.reshapes),
            tuple(found),
        )

    def _backward(self, tensor: str) -> None:
        """Go on to what a tensor is made from, or note the layer that writes it."""
        node, layer = self.index.producers.get(tensor), self.layers.get(tensor)
        if layer is not None and layer.linear.kind == "linear":
            self._write(layer)
        elif node is None:
            raise LookupError(tensor)
        elif node.op_type == "Transpose":
            self._convolved(node)
        elif node.op_type != "LayerNormalization" and self._passes(node):
            self.waiting += self._dynamic(node)
        else:
            raise LookupError(node.name)

    def _forward(self, node: onnx.NodeProto) -> None:
        if not self._passes(node):
            raise LookupError(node.name)
        self.waiting += node.output

    def _write(self, layer: Layer) -> None:
        if layer.outputs != self.width:
            raise LookupError(layer.name)
        self.writers[layer.name] = layer

    def _convolved(self, transpose: onnx.NodeProto) -> None:
        """Note the convolution whose output [N, D, H, W] becomes [N, H·W, D] here, which alone reads it."""
        patches = patches_of(self.index, transpose, self.width)
        layer = None if patches is None else self.by_node.get(patches.convolution.name)
        if patches is None or layer is None:
            raise LookupError(transpose.name)
        self._write(layer)
        self.reshapes.append(patches.reshape.name)

    def _dynamic(self, node: onnx.NodeProto) -> list[str]:
        return [name for name in node.input if name and name not in self.index.constants]

    def _passes(self, node: onnx.NodeProto) -> bool:
        """Whether an operator treats all channels alike; constants that it adds to them are noted."""
        constants = [
            (i, self.index.constants[name]) for i, name in enumerate(node.input) if name in self.index.constants
        ]
        if node.op_type == "Identity":
            return True
        if node.op_type == "Add":
            self.constants += [(node.name, position) for position, _ in constants]
            return all(list(each.dims)[-1:] == [self.width] for _, each in constants)
        if node.op_type == "Mul":  # of tokens
            return len(constants) == 1 and list(constants[0][1].dims)[-1:] == [1]
        if node.op_type == "MatMul":  # of tokens, from the left
            return [position for position, _ in constants] == [0]
        if node.op_type == "Pad":
            return self._adds_tokens(node)
        return node.op_type in _OVER_TOKENS and self._axes(node) == [1] and not (node.op_type == "Concat" and constants)

    def _adds_tokens(self, pad: onnx.NodeProto) -> bool:
        """Whether a Pad of [N, T, D] puts tokens of zeros before or behind the others."""
        pads, *filling = (self.index.constant(name) for name in pad.input[1:3] if name)
        inside = pads is not None and pads.size == 6 and not np.delete(pads, [1, 4]).any()
        zeros = all(each is not None and not each.any() for each in filling)
        return inside and zeros and attribute(pad, "mode", "constant") == "constant"

    def _axes(self, node: onnx.NodeProto) -> list[int]:
        """Return the axes that an operator works along, from its attributes or a constant."""
        axes: Any = attribute(node, "axis", attribute(node, "axes"))
        if axes is None:
            position = {"Slice": 3, "ReduceMean": 1}.get(node.op_type, len(node.input))
            axes = self.index.constant(node.input[position]) if position < len(node.input) else None
        return [] if axes is None else [int(axis) for axis in np.ravel(axes)]

    def _affine(self, node: onnx.NodeProto) -> tuple[Float64, Float64]:
        """Return scale and shift [D] of a LayerNorm over the last axis."""
        scale = self.index.constant(node.input[1])
        if scale is None or scale.ndim != 1 or attribute(node, "axis", -1) not in (-1, 2):
            raise LookupError(node.name)
        shift = self.index.constant(node.input[2]) if len(node.input) > 2 else np.zeros(len(scale))
        if shift is None:
            raise LookupError(node.name)
        return scale.astype(np.float64), shift.astype(np.float64)

    def _norm(self, node: onnx.NodeProto) -> Norm:
        scale, shift = self._affine(node)
        readers: dict[str, Layer] = {}
        waiting, seen = [node.output[0]], set[str]()
        while waiting:
            tensor = waiting.pop()
            seen.add(tensor)
            if tensor in self.index.outputs or not self.index.consumers.get(tensor):
                raise LookupError(tensor)
            for each in self.index.consumers[tensor]:
                layer = self.by_node.get(each.name)
                if layer is not None and layer.linear.kind == "linear" and layer.linear.input == tensor:
                    readers[layer.name] = layer
                elif self._side_by_side(each) or (each.op_type not in ("Add", "Concat") and self._passes(each)):
                    waiting += each.output
                else:
                    raise LookupError(each.name)
        joined = [each for name in seen for each in self.index.consumers[name] if self._side_by_side(each)]
        whole = all(set(each.input) <= seen for each in joined)
        if len(scale) != self.width or not whole or any(layer.inputs % self.width for layer in readers.values()):
            raise LookupError(node.name)
        return Norm(node.name, node.input[0], scale, shift, tuple(readers.values()))

    def _side_by_side(self, node: onnx.NodeProto) -> bool:
        """Whether a Concat puts the channels of several tensors side by side, as a head that reads two of them."""
        return (
            node.op_type == "Concat"
            and attribute(node, "axis") in (-1, 1)
            and all(self._pooled(name) for name in node.input)
        )

    def _pooled(self, tensor: str) -> bool:
        """Whether a tensor has one row a picture, [N, D]."""
        node = self.index.producers.get(tensor)
        if node is None or node.op_type not in ("Gather", "ReduceMean"):
            return False
        index = self.index.constant(node.input[1]) if node.op_type == "Gather" else None
        return index.ndim == 0 if index is not None else attribute(node, "keepdims", 1) == 0


class Directions:
    """The directions of the embedding, the most important first."""

    def __init__(self, found: Embedding, batches: Iterable[Mapping[str, NDArray[Any]]], rows: Rows) -> None:
        """Find them.

        A direction matters that varies, or that is looked at. So they are the eigenvectors of a weighted sum: of the
        second moments of what the LayerNorms make of their inputs, and of the Gram matrices of the layers that read it.

        Args:
            found: as it is in the graph.
            batches: the tensors that its norms read, [.., D] each.
            rows: of the model, those that matter more than others.
        """
        size = found.width
        moments, count = np.zeros((size, size)), 0
        for values in batches:
            for norm in found.norms:
                read = values[norm.tensor]
                second = _second_moments(taken(read, rows.read(norm.tensor)))
                if (heavy := rows.heavy(norm.tensor, read)) is not None:
                    second += _HEAVY * (_second_moments(taken(read, heavy)) - second)
                moments += second
                count += 1
        moments /= max(count, 1) * size
        weights = sum((_importance(norm) for norm in found.norms), start=np.zeros((size, size)))
        both = moments + _READ * weights / max(np.trace(weights), 1e-30)
        both -= 2 * np.trace(both) / size * np.ones((size, size))  # the mean comes last
        self.vectors = np.linalg.eigh(both)[1][:, :0:-1]  # [D, D - 1]
        self._variances = np.maximum(np.einsum("di,de,ei->i", self.vectors, moments, self.vectors), 0.0)

    def errors(self) -> Float64:
        """Fraction of the variance that is lost with 0, 1, .. D channels; none with D."""
        lost = np.concatenate([np.cumsum(self._variances[::-1])[::-1], [0.0]])
        return np.concatenate([lost[:1], lost])

    def basis(self, width: int) -> Float64:
        """Return B [D, width]: from the channels to fewer of them, of which LayerNorm takes nothing off."""
        return np.asarray(self.vectors[:, : width - 1] @ mixing(width)[1:])


def _second_moments(values: NDArray[Any]) -> Float64:
    """Return the second moments of what a LayerNorm makes of rows [.., D] before its affine, [D, D]."""
    rows = normalised(values)
    return np.asarray(rows.T @ rows / len(rows))


def normalised(values: NDArray[Any]) -> Float64:
    """Return rows [n, D] with the mean 0 and the mean square 1, as a LayerNorm makes them before its affine."""
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    rows -= rows.mean(axis=-1, keepdims=True)
    return np.asarray(rows / np.sqrt(np.square(rows).mean(axis=-1, keepdims=True) + 1e-12))


def _importance(norm: Norm) -> Float64:
    """Return the Gram matrix of what layers read of a LayerNorm's output, over its trace, [D, D]."""
    size = len(norm.scale)
    tiles = [layer.matrix.reshape(-1, size, layer.outputs) for layer in norm.readers]
    matrix = norm.scale[:, None] * np.concatenate([each for tile in tiles for each in tile], axis=1)
    matrix -= matrix.mean(axis=0)
    gram = matrix @ matrix.T
    return np.asarray(gram / max(np.trace(gram), 1e-30))
