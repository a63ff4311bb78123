"""The inverse of authoring: read the parameters back from an authored graph whose widths, classes or size have changed.

Whoever cuts an authored graph keeps its node names. What is left of every layer is read off by these names, with the
configuration that the graph was authored from for what a graph doesn't tell. Authored anew, the parameters must give
the same graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from msgspec.structs import replace
from numpy.typing import NDArray

from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError
from vitedge.formats.architecture import BlockWidths, ConvStem, Rope, ViTConfig
from vitedge.graph.author import author_vit, contract_of
from vitedge.graph.folding import Index
from vitedge.graph.positions import half_order, rotary_angles
from vitedge.graph.surgery import linear_layers

Float64 = NDArray[np.float64]
Arrays = dict[str, NDArray[np.float32]]

_ACTION = "read the parameters off an authored graph"
_HINT = "report it, with the model"
#: Largest deviation of a constant in the graph that is authored again, as a fraction of the constant's largest value.
TOLERANCE = 1e-5


def read_authored(model: onnx.ModelProto, config: ViTConfig, preprocessing: Preprocessing) -> tuple[ViTConfig, Arrays]:
    """Return the configuration and parameters from which :func:`~vitedge.graph.author.author_vit` writes this graph.

    Tokens' positions, LayerScale, BatchNorm and the mean of two heads were folded in and stay so: the tokens take up
    their positions, there is no LayerScale, and a stem has biases.

    Args:
        model: authored, then cut: fewer hidden units, channels of queries, keys and values, heads, branches, tokens,
            channels of a convolutional stem or of the embedding, classes, or another image size.
        config: what it was authored from.
        preprocessing: whose mean, standard deviation and channel order are folded in.

    Returns:
        The configuration, with widths of each block where they aren't alike; and float32 arrays under its names.

    Raises:
        ModelError: the graph isn't what the author makes of any parameters.
    """
    graph = _Reader(model)
    try:
        new = _configuration(graph, config)
        arrays = _parameters(graph, new, preprocessing)
    except (
        KeyError,
        IndexError,
        ValueError,
    ) as error:  # no such node or constant, or widths that contradict themselves
        raise ModelError(_ACTION, f"it isn't as the author writes it: {error}", _HINT) from error
    _compare(graph, _Reader(author_vit(new, arrays, **contract_of(preprocessing))))
    return new, arrays


@dataclass(frozen=True)
class _Layer:
    """The weights of one layer in torch's axis order, float64."""

    weight: Float64  # [C_out, C_in], or [C_out, C_in, kh, kw]
    bias: Float64 | None  # [C_out]


class _Reader:
    """Reads nodes and layers by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.index = Index(model)
        self.nodes = {node.name: node for node in model.graph.node}
        self.layers = {layer.name: layer for layer in linear_layers(model)}

    def constants(self, name: str) -> list[Float64]:
        """Return the constant inputs of a node."""
        values = (self.index.constant(tensor) for tensor in self.nodes[name].input)
        return [np.asarray(value, np.float64) for value in values if value is not None]

    def sizes(self, name: str) -> list[int]:
        """Return the last two sizes of a Reshape's output."""
        return [int(size) for size in self.constants(name)[0][-2:]]

    def layer(self, name: str) -> _Layer:
        """Return a linear or a convolution."""
        layer = self.layers[name]
        weight = np.asarray(self.index.constant(layer.weight), np.float64)
        bias = None if layer.bias is None else np.asarray(self.index.constant(layer.bias), np.float64).reshape(-1)
        return _Layer(weight if layer.channel_axis == 0 else weight.T, bias)


def _configuration(graph: _Reader, config: ViTConfig) -> ViTConfig:
    """Return the configuration with the widths that the graph has."""
    _, height, width, _ = graph.index.model.graph.input[0].type.tensor_type.shape.dim
    config = replace(config, image_size=(height.dim_value, width.dim_value))
    stem = config.stem
    if isinstance(stem, ConvStem):
        channels = (len(graph.layer(f"patch_embed.stem.{i}.conv").weight) for i in range(len(stem.channels)))
        stem = replace(stem, channels=tuple(channels))
    blocks = tuple(_block_widths(graph, config, i) for i in range(config.depth))
    biased = any(graph.layer(f"blocks.{i}.attn.qkv").bias is not None for i, block in enumerate(blocks) if block.heads)
    return replace(
        config,
        stem=stem,
        embed_dim=len(graph.layer("patch_embed.proj").weight),
        attention_dim=config.num_heads * config.head_dim,
        num_classes=len(graph.layer("head").weight),
        layer_scale=False,
        qkv_bias=biased,
        blocks=blocks,
    )


def _block_widths(graph: _Reader, config: ViTConfig, index: int) -> BlockWidths:
    block, heads, query_key, value, pairs = f"blocks.{index}", 0, 0, 0, None
    if f"{block}.attn.qkv" in graph.nodes:
        heads, query_key = graph.sizes(f"{block}.attn.q.reshape")
        _, value = graph.sizes(f"{block}.attn.v.reshape")
        if config.rope is not None and config.rope.kind != "mixed":
            pairs = _kept_pairs(graph, config, config.rope, block)
    hidden = graph.layer(f"{block}.mlp.fc2").weight.shape[1] if f"{block}.mlp.fc2" in graph.nodes else 0
    merged = graph.constants(f"{block}.merge")[0].shape[0] if f"{block}.merge" in graph.nodes else None
    return BlockWidths(
        heads=heads, query_key=query_key, value=value, mlp_hidden=hidden, rope_pairs=pairs, tokens=merged
    )


def _turns(graph: _Reader, config: ViTConfig, block: str) -> NDArray[np.complex128]:
    """Return exp(i · angle) of the patches' pairs, [patches, 1 or heads, pairs], from a block's tables."""
    (cos,), (sin,) = graph.constants(f"{block}.attn.q.rope.cos"), graph.constants(f"{block}.attn.q.rope.sin")
    pairs = cos.shape[-1] // 2
    turns = cos[..., pairs:] + 1j * sin[..., pairs:]
    return np.asarray(turns[config.prefix_tokens :])


def _kept_pairs(graph: _Reader, config: ViTConfig, rope: Rope, block: str) -> tuple[int, ...]:
    """Return the pairs of a fixed embedding that a block's tables hold, in order."""
    every = np.exp(1j * rotary_angles(rope, config.grid, config.head_dim))[:, 0]  # [patches, d/2]
    pairs: list[int] = []
    for turn in _turns(graph, config, block)[:, 0].T:
        following = range(pairs[-1] + 1 if pairs else 0, every.shape[1])
        pairs.append(next((i for i in following if np.abs(every[:, i] - turn).max() < TOLERANCE), -1))
    if -1 in pairs:
        raise ValueError(f"{block} turns pairs by angles that its rotary embedding doesn't have")
    return tuple(pairs)


def _frequencies(graph: _Reader, config: ViTConfig, rope: Rope, block: str) -> Float64:
    """Return a mixed embedding's [2, heads, pairs], from the angles of the second row's and column's patches."""
    rows, columns = config.grid
    turns = _turns(graph, config, block)
    turns = turns.reshape(rows, columns, *turns.shape[1:])
    steps = np.asarray(rope.reference_grid or config.grid) / config.grid
    by_row = np.angle(turns[1, 0]) / steps[0] if rows > 1 else np.zeros(turns.shape[2:])
    by_column = np.angle(turns[0, 1]) / steps[1] if columns > 1 else np.zeros(turns.shape[2:])
    return np.stack([by_row, by_column] if rope.first_axis == "row" else [by_column, by_row])


def _parameters(graph: _Reader, config: ViTConfig, preprocessing: Preprocessing) -> Arrays:
    """Return the parameters under timm's names, without the preprocessing that authoring folds in."""
    arrays: dict[str, Float64] = {}

    def put(name: str, layer: _Layer) -> None:
        arrays[f"{name}.weight"] = layer.weight
        arrays[f"{name}.bias"] = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias

    def put_norm(name: str) -> None:
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = graph.constants(name)

    _put_embedding(graph, config, preprocessing, arrays)
    for index in range(config.depth):
        block, widths = f"blocks.{index}", config.block(index)
        if widths.heads:
            put_norm(f"{block}.norm1")
            _put_queries(graph, config, index, widths, arrays)
            put(f"{block}.attn.proj", graph.layer(f"{block}.attn.proj"))
        if widths.mlp_hidden:
            put_norm(f"{block}.norm2")
            for part in ("fc1", "fc2"):
                put(f"{block}.mlp.{part}", graph.layer(f"{block}.mlp.{part}"))
        if widths.tokens is not None:
            (matrix,), prefix = graph.constants(f"{block}.merge"), config.prefix_tokens
            arrays[f"{block}.merge.weight"] = matrix[prefix:, prefix:]
    for name in (config.final_norm, *(["norm_pre"] if config.pre_norm else [])):
        put_norm(name)
    for name in ("head", "head_dist") if config.distillation_token else ("head",):
        head, share = graph.layer(name), 0.5 if config.distillation_token else 1.0
        put(name, _Layer(head.weight / share, None if head.bias is None else head.bias / share))
    if config.rope is not None and config.rope.kind == "mixed" and not config.blocks:
        own = [_frequencies(graph, config, config.rope, f"blocks.{index}") for index in range(config.depth)]
        arrays["rope.freqs"] = np.stack(own, axis=1)
    return {name: np.ascontiguousarray(values, np.float32) for name, values in arrays.items()}


def _put_embedding(graph: _Reader, config: ViTConfig, preprocessing: Preprocessing, arrays: dict[str, Float64]) -> None:
    """Read the stem, without the pixels' mean and factor, and the tokens with their positions."""
    order = slice(None, None, -1) if preprocessing.channel_order == "bgr" else slice(None)
    mean = (np.asarray(preprocessing.mean) / preprocessing.rescale)[order]
    factor = (preprocessing.rescale / np.asarray(preprocessing.std))[order]
    stages = config.stem.stages if isinstance(config.stem, ConvStem) else ()
    padded = any(stage.padding for stage in stages[:1])  # with the mean, which stays outside then
    names = [*(f"patch_embed.stem.{i}.conv" for i in range(len(stages))), "patch_embed.proj"]
    for position, name in enumerate(names):
        layer = graph.layer(name)
        weight, bias = layer.weight, np.zeros(len(layer.weight)) if layer.bias is None else layer.bias
        if position == 0:
            bias = bias if padded else bias + np.einsum("oikl,i->o", weight, mean)
            weight = (weight / factor[:, None, None])[:, order]
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = weight, bias
    prefix, learned = config.prefix_tokens, config.position_embedding == "learned"
    if not (prefix or learned):
        return
    (offsets,) = graph.constants("pos_embed")
    counts = (int(config.class_token), int(config.distillation_token), config.register_tokens)
    parts = np.split(offsets[:, :prefix], np.cumsum(counts)[:2], axis=1)
    tokens = zip(("cls_token", "dist_token", "reg_token"), parts, strict=True)
    arrays.update({name: part for name, part in tokens if part.size})
    if learned and config.position_embedding_covers_prefix:
        arrays["pos_embed"] = np.concatenate([np.zeros_like(offsets[:, :prefix]), offsets[:, prefix:]], axis=1)
    elif learned:
        arrays["pos_embed"] = offsets[:, prefix:]


def _put_queries(
    graph: _Reader, config: ViTConfig, index: int, widths: BlockWidths, arrays: dict[str, Float64]
) -> None:
    """Read queries, keys and values, without the scale, and with a rotary embedding's pairs in their original order."""
    name, queries, scale = f"blocks.{index}.attn", widths.qkv[0], config.head_dim**-0.5
    back = np.argsort(half_order(widths.query_key, config.rope.pairs if config.rope is not None else "halves"))
    rows = (np.arange(0, 2 * queries, widths.query_key)[:, None] + back).ravel()
    layer = graph.layer(f"{name}.qkv")
    parts = {"weight": layer.weight, "bias": np.zeros(len(layer.weight)) if layer.bias is None else layer.bias}
    for part, values in parts.items():
        moved = values.copy()
        moved[: 2 * queries] = values[rows]
        moved[:queries] /= 1.0 if config.qk_norm else scale
        if part == "weight" or config.qkv_bias:
            arrays[f"{name}.qkv.{part}"] = moved
    if config.qk_norm:
        for norm, share in (("q_norm", scale), ("k_norm", 1.0)):
            affine = graph.constants(f"{name}.{norm}")
            arrays[f"{name}.{norm}.weight"], arrays[f"{name}.{norm}.bias"] = (each[back] / share for each in affine)
    if config.rope is not None and config.rope.kind == "mixed" and config.blocks:
        arrays[f"{name}.rope.freqs"] = _frequencies(graph, config, config.rope, f"blocks.{index}")


def _compare(graph: _Reader, anew: _Reader) -> None:
    """Raise where the author writes another graph from the parameters."""
    if different := sorted(graph.nodes.keys() ^ anew.nodes.keys()):
        raise ModelError(_ACTION, f"the author has other nodes: {', '.join(different[:3])}", _HINT)
    for name in graph.nodes:
        theirs, ours = graph.constants(name), anew.constants(name)
        if not _close(theirs, ours):
            raise ModelError(_ACTION, f"the author gives the node '{name}' other constants", _HINT)


def _close(theirs: Sequence[Float64], ours: Sequence[Float64]) -> bool:
    return [each.shape for each in theirs] == [each.shape for each in ours] and all(
        np.abs(a - b).max(initial=0.0) <= TOLERANCE * max(np.abs(a).max(initial=0.0), 1e-6)
        for a, b in zip(theirs, ours, strict=True)
    )
