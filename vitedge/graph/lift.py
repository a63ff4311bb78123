"""Lifting: recognise a plain Vision Transformer in a foreign graph and read its configuration and parameters off it.

What is lifted is authored anew, so that every plain ViT, whoever exported it, ends in the same graph with the same node
names. Only the sequence of layers and their shapes is looked at here; that the authored graph computes what the foreign
one did is for the caller to prove by its logits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.formats.architecture import PatchStem, ViTConfig
from vitedge.graph import surgery
from vitedge.graph.folding import Index
from vitedge.graph.surgery import Linear, attribute

Arrays = dict[str, NDArray[Any]]

_MOVES_OR_LAYERS = re.compile(
    r"Cast|Conv|Flatten|Gather|Gelu|GlobalAveragePool|Identity|LayerNormalization|MatMul|Pad|ReduceMean|Reshape|Slice|"
    r"Softmax|Split|Squeeze|Transpose|Unsqueeze"
)


class _NotPlain(Exception):
    """The graph isn't a plain ViT as far as this module can tell; the text says where it differs."""


@dataclass(frozen=True)
class _Lifted:
    config: ViTConfig
    arrays: Arrays


def lift(model: onnx.ModelProto, image_size: tuple[int, int]) -> list[tuple[ViTConfig, Arrays]]:
    """Candidates for what this graph is, the likeliest first; none where it is no plain ViT.

    Args:
        model: simplified: LayerNormalization and Gelu operators, MatMul and Add, tokens as Pad and Add, LayerScale
            folded, input ``image`` normalised by the nodes that import puts there.
        image_size: (height, width) of the input, pixels.
    """
    try:
        lifted = _lift(model, image_size)
    except (_NotPlain, ValueError, IndexError, KeyError):  # too few layers, or a configuration that contradicts itself
        return []
    # the attention scale is either where the author assumes it, or somebody folded it into the query already
    unscaled = dict(lifted.arrays)
    dim, factor = lifted.config.embed_dim, math.sqrt(lifted.config.head_dim)
    for name, values in lifted.arrays.items():
        if ".attn.qkv." in name:
            unscaled[name] = np.concatenate([values[:dim] * factor, values[dim:]])
    return [(lifted.config, lifted.arrays), (lifted.config, unscaled)]


def _lift(model: onnx.ModelProto, image_size: tuple[int, int]) -> _Lifted:
    index, layers = Index(model), surgery.linear_layers(model)
    _refuse_others(index, layers)
    patch, *linears = layers
    dim = _patch_embedding(index, patch)
    arrays: Arrays = {}
    _copy_layer(index, patch, "patch_embed.proj", arrays)
    arrays.setdefault("patch_embed.proj.bias", np.zeros(dim, np.float32))
    size = int(attribute(patch.node, "kernel_shape")[0])
    patches = (image_size[0] // size) * (image_size[1] // size)

    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax" and node.output[0] not in index.outputs]
    depth = len(softmaxes)
    if len({layer.name for layer in layers}) != len(layers) or depth == 0:
        raise _NotPlain("no attention, or layers of one name")
    scores = [_scores(index, node.input[0]) for node in softmaxes]
    for i in range(depth):
        linears = _block(index, layers, linears, scores[i], f"blocks.{i}", dim, arrays)
    heads = linears
    if len(heads) not in (1, 2):
        raise _NotPlain(f"{len(heads)} linear layers behind the blocks")
    for name, head in zip(("head", "head_dist"), heads, strict=False):
        _copy_layer(index, head, name, arrays)
        arrays.setdefault(f"{name}.bias", np.zeros(arrays[f"{name}.weight"].shape[0], np.float32))

    pool, final_norm = _pooling(index, heads[0].input)
    eps, pre_norm, qk_norm = _norms(index, scores, depth, dim, final_norm, arrays)
    prefix, learned = _tokens(index, patches, dim, arrays)
    distilled, class_token = len(heads) == 2, pool == "token"
    registers = prefix - int(class_token) - int(distilled)
    if class_token:
        arrays["cls_token"] = np.zeros((1, 1, dim), np.float32)  # its value is in the position embedding
    if distilled:
        arrays["dist_token"] = np.zeros((1, 1, dim), np.float32)
    if registers:
        arrays["reg_token"] = np.zeros((1, registers, dim), np.float32)
    return _Lifted(
        ViTConfig(
            image_size=image_size,
            stem=PatchStem(patch_size=size),
            embed_dim=dim,
            depth=depth,
            num_heads=_num_heads(model, softmaxes[0]),
            mlp_hidden=arrays["blocks.0.mlp.fc1.weight"].shape[0],
            num_classes=arrays["head.weight"].shape[0],
            class_token=class_token,
            distillation_token=distilled,
            register_tokens=registers,
            position_embedding="learned" if learned else "none",
            qkv_bias="blocks.0.attn.qkv.bias" in arrays,
            qk_norm=qk_norm,
            pre_norm=pre_norm,
            pool=pool,
            final_norm=final_norm,
            layer_norm_eps=eps,
            activation=_activation(model),
        ),
        arrays,
    )


def _refuse_others(index: Index, layers: list[Linear]) -> None:
    """Anything that a plain ViT doesn't compute: rotary positions, attention biases, gates, other activations.

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
        elif index.factor(node) is not None:
            continue
        raise _NotPlain(f"{node.op_type} '{node.name}'")


def _scores(index: Index, name: str) -> onnx.NodeProto:
    """The product q·kᵀ that a softmax is of, scaled or not."""
    node = index.producers[name]
    while (step := index.factor(node)) is not None:
        node = index.producers[step[0]]
    return node


def _patch_embedding(index: Index, layer: Linear) -> int:
    """Channels of a convolution whose kernel is its stride, on the normalised image."""
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
    """Weight and bias under timm's names, in torch's axis order."""
    weight = surgery.array(index.constants[layer.weight])
    arrays[f"{name}.weight"] = weight if layer.channel_axis == 0 else weight.T
    if layer.bias is not None:
        arrays[f"{name}.bias"] = surgery.array(index.constants[layer.bias]).reshape(-1)


def _block(
    index: Index,
    layers: list[Linear],
    linears: list[Linear],
    scores: onnx.NodeProto,
    block: str,
    dim: int,
    arrays: Arrays,
) -> list[Linear]:
    """Take the layers of one block off the front; returns the rest."""
    shapes = [_shape(index, layer) for layer in linears[:6]]
    hidden = shapes[2][1] if shapes[0] == (dim, 3 * dim) else shapes[4][1]
    if shapes[:4] == [(dim, 3 * dim), (dim, dim), (dim, hidden), (hidden, dim)]:
        _copy_layer(index, linears[0], f"{block}.attn.qkv", arrays)
        rest = linears[1:]
    elif shapes == [(dim, dim)] * 4 + [(dim, hidden), (hidden, dim)]:
        by_output = {layer.output: layer for layer in layers}
        query, key = (_nearest(index, by_output, source) for source in scores.input)
        value = next(layer for layer in linears[:3] if layer.name not in (query.name, key.name))
        parts: Arrays = {}
        for part, layer in zip("qkv", (query, key, value), strict=True):
            _copy_layer(index, layer, part, parts)
        arrays[f"{block}.attn.qkv.weight"] = np.concatenate([parts[f"{part}.weight"] for part in "qkv"])
        if any(f"{part}.bias" in parts for part in "qkv"):
            zero = np.zeros(dim, np.float32)
            arrays[f"{block}.attn.qkv.bias"] = np.concatenate([parts.get(f"{part}.bias", zero) for part in "qkv"])
        rest = linears[3:]
    else:
        raise _NotPlain(f"the layers of {block} have other shapes")
    for name, layer in zip(("attn.proj", "mlp.fc1", "mlp.fc2"), rest, strict=False):
        _copy_layer(index, layer, f"{block}.{name}", arrays)
        arrays.setdefault(f"{block}.{name}.bias", np.zeros(_shape(index, layer)[1], np.float32))
    return rest[3:]


def _shape(index: Index, layer: Linear) -> tuple[int, int]:
    """(inputs, outputs)."""
    dims = list(index.constants[layer.weight].dims)
    return (dims[0], dims[1]) if layer.channel_axis == 1 else (dims[1], dims[0])


def _nearest(index: Index, by_output: Mapping[str, Linear], name: str) -> Linear:
    """The linear layer that a tensor comes from, along first inputs."""
    while name not in by_output:
        name = index.producers[name].input[0]
    return by_output[name]


def _pooling(index: Index, name: str) -> tuple[Literal["token", "avg"], Literal["norm", "fc_norm"]]:
    """What stands between the last residual Add and the head."""
    seen = []
    while (node := index.producers.get(name)) is not None and node.op_type != "Add":
        seen.append(node.op_type)
        name = node.input[0]
    averaged = [operator in ("ReduceMean", "GlobalAveragePool") for operator in seen]
    if not any(averaged):
        return "token", "norm"
    return "avg", "norm" if seen.index("LayerNormalization") > averaged.index(True) else "fc_norm"


def _norms(
    index: Index, scores: list[onnx.NodeProto], depth: int, dim: int, final_norm: str, arrays: Arrays
) -> tuple[float, bool, bool]:
    """Copy every LayerNorm; returns (epsilon, whether one stands before the blocks, whether q and k have their own)."""
    nodes = [node for node in index.model.graph.node if node.op_type == "LayerNormalization"]
    wide = [node for node in nodes if index.constants[node.input[1]].dims[0] == dim]
    epsilons = {float(f"{attribute(node, 'epsilon', 1e-5):.6g}") for node in nodes}
    pre_norm, qk_norm = len(wide) == 2 * depth + 2, len(nodes) == len(wide) + 2 * depth
    if (
        len(epsilons) != 1
        or len(wide) not in (2 * depth + 1, 2 * depth + 2)
        or not (qk_norm or len(nodes) == len(wide))
    ):
        raise _NotPlain("other LayerNorms than a plain ViT has")
    blocks = [f"blocks.{i}.{part}" for i in range(depth) for part in ("norm1", "norm2")]
    names = [*(["norm_pre"] if pre_norm else []), *blocks, final_norm]
    for name, node in zip(names, wide, strict=True):
        _copy_norm(index, node, name, arrays)
    if qk_norm:
        for i, product in enumerate(scores):
            for part, source in zip("qk", product.input, strict=True):
                while (node := index.producers[source]).op_type != "LayerNormalization":
                    source = node.input[0]
                _copy_norm(index, node, f"blocks.{i}.attn.{part}_norm", arrays)
    return epsilons.pop(), pre_norm, qk_norm


def _copy_norm(index: Index, node: onnx.NodeProto, name: str, arrays: Arrays) -> None:
    arrays[f"{name}.weight"] = surgery.array(index.constants[node.input[1]])
    shift = node.input[2] if len(node.input) > 2 else ""
    zero = np.zeros_like(arrays[f"{name}.weight"])
    arrays[f"{name}.bias"] = surgery.array(index.constants[shift]) if shift else zero


def _tokens(index: Index, patches: int, dim: int, arrays: Arrays) -> tuple[int, bool]:
    """Copy the constant that is added to the sequence; returns (tokens before the patches, whether there is one)."""
    for node in index.model.graph.node:
        pair = index.operand(node) if node.op_type == "Add" else None
        if pair is None:
            continue
        shape = list(index.constants[pair[1]].dims)
        if len(shape) == 3 and shape[0] == 1 and shape[2] == dim and shape[1] >= patches:
            arrays["pos_embed"] = surgery.array(index.constants[pair[1]])
            return shape[1] - patches, True
    return 0, False


def _num_heads(model: onnx.ModelProto, softmax: onnx.NodeProto) -> int:
    """From the attention weights, [N, heads, T, T] or [N · heads, T, T]."""
    shapes = surgery.shapes(surgery.pinned(model))
    shape = shapes[softmax.output[0]]
    heads = shape[-3] if len(shape) >= 3 else None
    if heads is None:
        raise _NotPlain("the number of attention heads can't be inferred")
    return heads


def _activation(model: onnx.ModelProto) -> Literal["gelu", "gelu_tanh"]:
    kinds = {attribute(node, "approximate", "none") for node in model.graph.node if node.op_type == "Gelu"}
    if len(kinds) != 1:
        raise _NotPlain("no GELU, or two kinds")
    return "gelu_tanh" if kinds == {"tanh"} else "gelu"
