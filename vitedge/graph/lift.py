"""Lifting: recognise a plain Vision Transformer in a foreign graph, and read its configuration and parameters.

What is lifted is authored anew, so that every plain ViT, whoever exported it, ends in the same graph with the same node
names. Only the sequence of layers and their shapes is looked at here; that the authored graph computes what the foreign
one did is for the caller to prove by its logits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.formats.architecture import BlockWidths, PatchStem, ViTConfig
from vitedge.graph import surgery
from vitedge.graph.folding import Index
from vitedge.graph.merging import with_prefix
from vitedge.graph.surgery import Linear, attribute

Arrays = dict[str, NDArray[Any]]

_MOVES_OR_LAYERS = re.compile(
    r"Cast|Conv|Flatten|Gather|Gelu|GlobalAveragePool|Identity|LayerNormalization|MatMul|Pad|ReduceMean|Reshape|Slice|"
    r"Softmax|Split|Squeeze|Transpose|Unsqueeze"
)


class _NotPlain(Exception):
    """The graph isn't a plain ViT as far as this module can tell; the text says where it differs."""


@dataclass(frozen=True)
class _Attention:
    """The nodes and layers around one softmax."""

    scores: onnx.NodeProto  # the product q·kᵀ
    factor: float  # of the scores, wherever the graph multiplies by it
    heads: int
    query: Linear  # the layers that make queries and keys; one and the same where they are packed
    key: Linear


#: ("attn" or "mlp", the number of the block).
_Branch = tuple[str, int]


def lift(model: onnx.ModelProto, image_size: tuple[int, int]) -> list[tuple[ViTConfig, Arrays]]:
    """Return candidate configurations of this graph, as far as its layers tell; none where it is no plain ViT.

    Args:
        model: simplified: LayerNormalization and Gelu operators, MatMul and Add, tokens as Pad and Add, LayerScale
            folded, input ``image`` normalised by the nodes that import puts there.
        image_size: (height, width) of the input, pixels.
    """
    try:
        return [_lift(model, image_size)]
    except (
        _NotPlain,
        ValueError,
        LookupError,
        StopIteration,
    ):  # too few layers, or a configuration that contradicts itself
        return []


def _lift(model: onnx.ModelProto, image_size: tuple[int, int]) -> tuple[ViTConfig, Arrays]:
    index, layers = Index(model), surgery.linear_layers(model)
    _refuse_others(index, layers)
    patch, *linears = layers
    dim = _patch_embedding(index, patch)
    arrays: Arrays = {}
    _copy_layer(index, patch, "patch_embed.proj", arrays)
    arrays.setdefault("patch_embed.proj.bias", np.zeros(dim, np.float32))
    size = int(attribute(patch.node, "kernel_shape")[0])
    patches = (image_size[0] // size) * (image_size[1] // size)

    attentions = _attentions(model, index, layers)
    if len({layer.name for layer in layers}) != len(layers) or not attentions:
        raise _NotPlain("no attention, or layers of one name")
    branches, ends, heads = _branches(index, attentions, linears, dim, arrays)
    if len(heads) not in (1, 2):
        raise _NotPlain(f"{len(heads)} linear layers behind the blocks")
    for name, head in zip(("head", "head_dist"), heads, strict=False):
        _copy_layer(index, head, name, arrays)
        arrays.setdefault(f"{name}.bias", np.zeros(arrays[f"{name}.weight"].shape[0], np.float32))

    pool, final_norm = _pooling(index, heads[0].input)
    eps, pre_norm, qk_norm = _norms(index, attentions, branches, dim, final_norm, arrays)
    prefix, learned = _tokens(index, patches, dim, arrays)
    distilled, class_token = len(heads) == 2, pool == "token"
    registers = prefix - int(class_token) - int(distilled)
    if class_token:
        arrays["cls_token"] = np.zeros((1, 1, dim), np.float32)  # its value is in the position embedding
    if distilled:
        arrays["dist_token"] = np.zeros((1, 1, dim), np.float32)
    if registers:
        arrays["reg_token"] = np.zeros((1, registers, dim), np.float32)
    merged = _merges(index, branches, ends, prefix, arrays)
    blocks = _widths(branches, attentions, merged, arrays)
    num_heads = _num_heads(blocks, dim, qk_norm=qk_norm)
    biased = _biases(branches, arrays)
    _unscale(branches, attentions, blocks, math.sqrt(dim // num_heads), arrays, qk_norm=qk_norm)
    config = ViTConfig(
        image_size=image_size,
        stem=PatchStem(patch_size=size),
        embed_dim=dim,
        depth=len(blocks),
        num_heads=num_heads,
        mlp_hidden=max(block.mlp_hidden for block in blocks),
        num_classes=arrays["head.weight"].shape[0],
        class_token=class_token,
        distillation_token=distilled,
        register_tokens=registers,
        position_embedding="learned" if learned else "none",
        qkv_bias=biased,
        qk_norm=qk_norm,
        pre_norm=pre_norm,
        pool=pool,
        final_norm=final_norm,
        layer_norm_eps=eps,
        activation=_activation(model),
        blocks=blocks,
    )
    return config, arrays


def _refuse_others(index: Index, layers: list[Linear]) -> None:
    """Refuse anything that a plain ViT doesn't compute: rotary positions, attention biases, gates, other activations.

    That the logits agree doesn't show it where the weights happen to make it small, as in an untrained network.
    """
    biases = {layer.bias_node.name for layer in layers if layer.bias_node is not None}
    tables = 0
    for node in index.model.graph.node:
        if _MOVES_OR_LAYERS.fullmatch(node.op_type) or node.name.startswith("image.") or node.name in biases:
            continue
        pair = index.operand(node)
        if node.op_type == "Add":
            tables += pair is not None
            if pair is None or (tables == 1 and len(index.constants[pair[1]].dims) == 3):
                continue
        elif index.factor(node) is not None or _counts_patches(index, node):
            continue
        raise _NotPlain(f"{node.op_type} '{node.name}'")


def _counts_patches(index: Index, node: onnx.NodeProto) -> bool:
    """Whether merged tokens are multiplied by their number of patches before their mean is taken."""
    pair, reader = index.operand(node), index.reader(node.output[0])
    if node.op_type != "Mul" or pair is None or reader is None or reader.op_type != "ReduceMean":
        return False
    merged = any(_merging(index, each) is not None for each in index.model.graph.node)
    return merged and list(index.constants[pair[1]].dims)[-1:] == [1]


def _merging(index: Index, node: onnx.NodeProto) -> NDArray[Any] | None:
    """Return the matrix [fewer, tokens] of a product from the left that merges tokens."""
    matrix = index.constant(node.input[0]) if node.op_type == "MatMul" else None
    return None if matrix is None else matrix.reshape(matrix.shape[-2:])


def _attentions(model: onnx.ModelProto, index: Index, layers: list[Linear]) -> list[_Attention]:
    """Return every attention in the order of the graph."""
    by_output = {layer.output: layer for layer in layers}
    shapes = surgery.shapes(surgery.pinned(model))
    attentions = []
    for softmax in model.graph.node:
        if softmax.op_type != "Softmax" or softmax.output[0] in index.outputs:
            continue
        shape = shapes[softmax.output[0]]  # [N, heads, T, T] or [N · heads, T, T]
        heads = shape[-3] if len(shape) >= 3 else None
        if heads is None:
            raise _NotPlain("the number of attention heads can't be inferred")
        name, factor = _unfactored(index, softmax.input[0])
        scores = index.producers[name]
        query, query_factor = _made_by(index, by_output, scores.input[0])
        key, key_factor = _made_by(index, by_output, scores.input[1])
        attentions.append(_Attention(scores, factor * query_factor * key_factor, heads, query, key))
    return attentions


def _unfactored(index: Index, name: str) -> tuple[str, float]:
    """Return the tensor behind the constant scalars that multiply this one, and the product of the scalars."""
    factor = 1.0
    while name in index.producers and (step := index.factor(index.producers[name])) is not None:
        name, factor = step[0], factor * step[1]
    return name, factor


def _made_by(index: Index, by_output: Mapping[str, Linear], name: str) -> tuple[Linear, float]:
    """Return the linear layer that a tensor comes from, along first inputs, and the constant scalars on the way."""
    name, factor = _unfactored(index, name)
    while name not in by_output:
        name, more = _unfactored(index, index.producers[name].input[0])
        factor *= more
    return by_output[name], factor


def _patch_embedding(index: Index, layer: Linear) -> int:
    """Return the channels of a convolution whose kernel is its stride, on the normalised image."""
    node = layer.node
    kernel, strides = attribute(node, "kernel_shape"), attribute(node, "strides", [1, 1])
    plain = not any(attribute(node, "pads", [])) and set(attribute(node, "dilations", [1])) == {1}
    plain = plain and attribute(node, "group", 1) == 1 and attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if layer.kind != "conv" or not plain or kernel != strides or kernel[0] != kernel[1]:
        raise _NotPlain("the first layer is no patch embedding")
    if index.producers[layer.input].name not in ("image.nchw", "image.scale", "image.order"):
        raise _NotPlain("something stands between the image and the patch embedding")
    return int(index.constants[layer.weight].dims[0])


def _copy_layer(index: Index, layer: Linear, name: str, arrays: Arrays) -> None:
    """Copy weight and bias under timm's names, in torch's axis order."""
    weight = surgery.array(index.constants[layer.weight])
    arrays[f"{name}.weight"] = weight if layer.channel_axis == 0 else weight.T
    if layer.bias is not None:
        arrays[f"{name}.bias"] = surgery.array(index.constants[layer.bias]).reshape(-1)


def _branches(
    index: Index, attentions: list[_Attention], linears: list[Linear], dim: int, arrays: Arrays
) -> tuple[list[_Branch], list[str], list[Linear]]:
    """Copy the layers of the residual branches, in their order.

    Returns the branches, the name of each one's last layer, and the layers behind them.

    A block has an attention and an MLP, or what is left of them: each attention begins a block, and so does an MLP that
    doesn't follow an attention.
    """
    branches, ends = list[_Branch](), list[str]()
    pending = list(attentions)
    while linears:
        block = branches[-1][1] + 1 if branches else 0
        reader = index.reader(linears[0].output)
        if reader is not None and reader.op_type == "Gelu":
            block -= bool(branches) and branches[-1][0] == "attn"
            taken = _mlp(index, linears, f"blocks.{block}", dim, arrays)
            branches.append(("mlp", block))
        elif pending and any(layer.name == pending[0].query.name for layer in linears[:3]):
            taken = _attention(index, linears, pending.pop(0), f"blocks.{block}", dim, arrays)
            branches.append(("attn", block))
        else:
            break
        ends.append(linears[taken - 1].name)
        linears = linears[taken:]
    if pending:
        raise _NotPlain("an attention whose layers aren't where a plain ViT has them")
    return branches, ends, linears


def _merges(index: Index, branches: list[_Branch], ends: list[str], prefix: int, arrays: Arrays) -> dict[int, int]:
    """Copy the constants by which tokens are merged behind blocks; return the number of tokens left, by block."""
    order = {node.name: position for position, node in enumerate(index.model.graph.node)}
    merged: dict[int, int] = {}
    for node in index.model.graph.node:
        matrix = _merging(index, node)
        if matrix is None:
            continue
        done = sum(order[end] < order[node.name] for end in ends)
        between = 0 < done < len(branches) and branches[done - 1][1] < branches[done][1]
        patches = matrix[prefix:, prefix:]
        if not between or not np.array_equal(matrix, with_prefix(patches, prefix)):
            raise _NotPlain(f"MatMul '{node.name}'")
        block = branches[done - 1][1]
        if block in merged:
            raise _NotPlain(f"tokens are merged twice behind block {block}")
        arrays[f"blocks.{block}.merge.weight"], merged[block] = patches, len(matrix)
    return merged


def _mlp(index: Index, linears: list[Linear], block: str, dim: int, arrays: Arrays) -> int:
    """Copy both layers of an MLP; return their number."""
    hidden = _shape(index, linears[0])[1]
    return _take(index, linears, ((f"{block}.mlp.fc1", dim, hidden), (f"{block}.mlp.fc2", hidden, dim)), arrays)


def _attention(index: Index, linears: list[Linear], attention: _Attention, block: str, dim: int, arrays: Arrays) -> int:
    """Copy the layers of an attention, those of queries, keys and values as one; return their number."""
    name = f"{block}.attn.qkv"
    if attention.query.name == attention.key.name:
        rows = _shape(index, linears[0])[1]
        values = _shape(index, linears[1])[0]
        if linears[0].name != attention.query.name or _shape(index, linears[0])[0] != dim or (rows - values) % 2:
            raise _NotPlain(f"the layers of {block} have other shapes")
        _copy_layer(index, linears[0], name, arrays)
        return 1 + _take(index, linears[1:], ((f"{block}.attn.proj", values, dim),), arrays)
    value = next(layer for layer in linears[:3] if layer.name not in (attention.query.name, attention.key.name))
    parts: Arrays = {}
    for part, layer in zip("qkv", (attention.query, attention.key, value), strict=True):
        if _shape(index, layer)[0] != dim:
            raise _NotPlain(f"the layers of {block} have other shapes")
        _copy_layer(index, layer, part, parts)
        parts.setdefault(f"{part}.bias", np.zeros(_shape(index, layer)[1], np.float32))
    for kind in ("weight", "bias"):
        arrays[f"{name}.{kind}"] = np.concatenate([parts[f"{part}.{kind}"] for part in "qkv"])
    values = _shape(index, value)[1]
    return 3 + _take(index, linears[3:], ((f"{block}.attn.proj", values, dim),), arrays)


def _take(index: Index, linears: list[Linear], wanted: Sequence[tuple[str, int, int]], arrays: Arrays) -> int:
    """Copy the first layers under these names if they have these (inputs, outputs); return their number."""
    if [_shape(index, layer) for layer in linears[: len(wanted)]] != [shape[1:] for shape in wanted]:
        raise _NotPlain(f"the layers of {wanted[0][0]} have other shapes")
    for (name, _, outputs), layer in zip(wanted, linears, strict=False):
        _copy_layer(index, layer, name, arrays)
        arrays.setdefault(f"{name}.bias", np.zeros(outputs, np.float32))
    return len(wanted)


def _widths(
    branches: list[_Branch], attentions: list[_Attention], merged: Mapping[int, int], arrays: Arrays
) -> tuple[BlockWidths, ...]:
    """Return every block's widths, from the shapes of its parameters."""
    heads = iter(attentions)
    blocks = []
    for block in range(branches[-1][1] + 1):
        count = next(heads).heads if ("attn", block) in branches else 0
        values = arrays[f"blocks.{block}.attn.proj.weight"].shape[1] if count else 0
        queries = (len(arrays[f"blocks.{block}.attn.qkv.weight"]) - values) // 2 if count else 0
        if count and (queries % count or values % count):
            raise _NotPlain(f"heads of block {block} that aren't alike")
        hidden = arrays[f"blocks.{block}.mlp.fc2.weight"].shape[1] if ("mlp", block) in branches else 0
        each, tokens = max(count, 1), merged.get(block)
        blocks.append(
            BlockWidths(heads=count, query_key=queries // each, value=values // each, mlp_hidden=hidden, tokens=tokens)
        )
    return tuple(blocks)


def _num_heads(blocks: Sequence[BlockWidths], dim: int, *, qk_norm: bool) -> int:
    """Return the number of heads of the model that the blocks were cut from: a whole block's, or one that suits all."""
    attending = [block for block in blocks if block.heads]
    whole = [block.heads for block in attending if block.qkv == (dim, dim, dim)]
    if qk_norm:
        return dim // attending[0].query_key
    least = max(block.heads for block in attending)
    return whole[0] if whole else next(heads for heads in range(least, dim + 1) if dim % heads == 0)


def _biases(branches: list[_Branch], arrays: Arrays) -> bool:
    """Whether any attention has biases for queries, keys and values; then all get them."""
    names = [f"blocks.{block}.attn.qkv" for kind, block in branches if kind == "attn"]
    biased = any(arrays.get(f"{name}.bias", np.zeros(1)).any() for name in names)
    for name in names:
        if biased:
            arrays.setdefault(f"{name}.bias", np.zeros(len(arrays[f"{name}.weight"]), np.float32))
        else:
            arrays.pop(f"{name}.bias", None)
    return biased


def _unscale(
    branches: list[_Branch],
    attentions: list[_Attention],
    blocks: Sequence[BlockWidths],
    root: float,
    arrays: Arrays,
    *,
    qk_norm: bool,
) -> None:
    """Give every attention the scale 1/root, where the author puts it; the queries absorb the difference."""
    attending = [block for kind, block in branches if kind == "attn"]
    for attention, block in zip(attentions, attending, strict=True):
        factor = np.float32(attention.factor * root)
        if abs(factor - 1) < 1e-6:
            continue
        name = f"blocks.{block}.attn.{'q_norm' if qk_norm else 'qkv'}"
        rows = slice(None) if qk_norm else slice(blocks[block].qkv[0])
        for part in ("weight", "bias"):
            if f"{name}.{part}" in arrays:
                arrays[f"{name}.{part}"] = arrays[f"{name}.{part}"].copy()
                arrays[f"{name}.{part}"][rows] *= factor


def _shape(index: Index, layer: Linear) -> tuple[int, int]:
    """Return (inputs, outputs)."""
    dims = list(index.constants[layer.weight].dims)
    return (dims[0], dims[1]) if layer.channel_axis == 1 else (dims[1], dims[0])


def _pooling(index: Index, name: str) -> tuple[Literal["token", "avg"], Literal["norm", "fc_norm"]]:
    """Return the pooling and the norm between the last residual Add and the head."""
    seen = []
    while (node := index.producers.get(name)) is not None and node.op_type != "Add":
        seen.append(node.op_type)
        name = node.input[0]
    averaged = [operator in ("ReduceMean", "GlobalAveragePool") for operator in seen]
    if not any(averaged):
        return "token", "norm"
    return "avg", "norm" if seen.index("LayerNormalization") > averaged.index(True) else "fc_norm"


def _norms(
    index: Index,
    attentions: list[_Attention],
    branches: list[_Branch],
    dim: int,
    final_norm: str,
    arrays: Arrays,
) -> tuple[float, bool, bool]:
    """Copy every LayerNorm; return (epsilon, whether one precedes the blocks, whether q and k have their own)."""
    nodes = [node for node in index.model.graph.node if node.op_type == "LayerNormalization"]
    wide = [node for node in nodes if index.constants[node.input[1]].dims[0] == dim]
    epsilons = {float(f"{attribute(node, 'epsilon', 1e-5):.6g}") for node in nodes}
    qk_norm = len(nodes) == len(wide) + 2 * len(attentions)
    names = [f"blocks.{block}.{'norm1' if kind == 'attn' else 'norm2'}" for kind, block in branches]
    pre_norm = len(wide) == len(names) + 2
    names = [*(["norm_pre"] if pre_norm else []), *names, final_norm]
    if len(epsilons) != 1 or len(wide) != len(names) or not (qk_norm or len(nodes) == len(wide)):
        raise _NotPlain("other LayerNorms than a plain ViT has")
    for name, node in zip(names, wide, strict=True):
        _copy_norm(index, node, name, arrays)
    attending = [block for kind, block in branches if kind == "attn"]
    for block, attention in zip(attending, attentions, strict=True) if qk_norm else ():
        for part, source in zip("qk", attention.scores.input, strict=True):
            source, _ = _unfactored(index, source)
            while (node := index.producers[source]).op_type != "LayerNormalization":
                source, _ = _unfactored(index, node.input[0])
            _copy_norm(index, node, f"blocks.{block}.attn.{part}_norm", arrays)
    return epsilons.pop(), pre_norm, qk_norm


def _copy_norm(index: Index, node: onnx.NodeProto, name: str, arrays: Arrays) -> None:
    arrays[f"{name}.weight"] = surgery.array(index.constants[node.input[1]])
    shift = node.input[2] if len(node.input) > 2 else ""
    zero = np.zeros_like(arrays[f"{name}.weight"])
    arrays[f"{name}.bias"] = surgery.array(index.constants[shift]) if shift else zero


def _tokens(index: Index, patches: int, dim: int, arrays: Arrays) -> tuple[int, bool]:
    """Copy the constant that is added to the sequence; return (tokens before the patches, whether there is one)."""
    for node in index.model.graph.node:
        pair = index.operand(node) if node.op_type == "Add" else None
        if pair is None:
            continue
        shape = list(index.constants[pair[1]].dims)
        if len(shape) == 3 and shape[0] == 1 and shape[2] == dim and shape[1] >= patches:
            arrays["pos_embed"] = surgery.array(index.constants[pair[1]])
            return shape[1] - patches, True
    return 0, False


def _activation(model: onnx.ModelProto) -> Literal["gelu", "gelu_tanh"]:
    kinds = {attribute(node, "approximate", "none") for node in model.graph.node if node.op_type == "Gelu"}
    if len(kinds) > 1:
        raise _NotPlain("two kinds of GELU")
    return "gelu_tanh" if kinds == {"tanh"} else "gelu"
