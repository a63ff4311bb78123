"""The reference: the forward pass of a plain Vision Transformer in numpy, float64, from the parameters as published.

Written from the papers (Dosovitskiy et al., 2010.11929; Touvron et al., 2012.12877 and 2204.07118; Xiao et al.,
2106.14881; Darcet et al., 2309.16588) and independent of the author: nothing is folded, nothing is fast. Import
compares the authored graph with it, so that a published checkpoint is proven without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitedge.formats.architecture import ConvStem, ViTConfig
from vitedge.graph.positions import block_angles, block_freqs

Float64 = NDArray[np.float64]


def reference_logits(
    config: ViTConfig,
    arrays: Mapping[str, NDArray[np.generic]],
    images: NDArray[np.uint8],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    rescale: float = 1 / 255,
) -> Float64:
    """Compute uint8 RGB images [N, H, W, 3] -> logits [N, classes]."""
    p = {name: np.asarray(array).astype(np.float64) for name, array in arrays.items()}
    x = (images.astype(np.float64) * rescale - np.asarray(mean)) / np.asarray(std)  # [N, H, W, 3]

    if isinstance(config.stem, ConvStem):
        for i, (_, _, _, padding, stride, pool, _) in enumerate(config.stem.stages):
            stage = f"patch_embed.stem.{i}"
            x = _convolution(x, p[f"{stage}.conv.weight"], p.get(f"{stage}.conv.bias"), stride, padding)
            x = _max_pool(x, pool)
            if f"{stage}.norm.weight" in p:
                gain = p[f"{stage}.norm.weight"] / np.sqrt(p[f"{stage}.norm.running_var"] + 1e-5)
                x = (x - p[f"{stage}.norm.running_mean"]) * gain + p[f"{stage}.norm.bias"]
            x = _gelu(x, "gelu")
        x = _convolution(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], 1)
    else:
        x = _convolution(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], config.stem.patch_size)
    batch, rows, columns, dim = x.shape
    x = x.reshape(batch, rows * columns, dim)  # [N, rows, columns, D] -> [N, patches, D]

    tokens = [p[name] for name in ("cls_token", "dist_token", "reg_token") if name in p]
    prefix = [np.broadcast_to(token, (batch, *token.shape[1:])) for token in tokens]
    if config.position_embedding == "learned" and not config.position_embedding_covers_prefix:
        x = x + p["pos_embed"]
    x = np.concatenate([*prefix, x], axis=1)  # [N, T, D]
    if config.position_embedding == "learned" and config.position_embedding_covers_prefix:
        x = x + p["pos_embed"]
    if config.pre_norm:
        x = _layer_norm(x, p, "norm_pre", config.layer_norm_eps)

    sizes = np.ones(rows * columns)  # patches that each patch token stands for
    for i in range(config.depth):
        block, widths = f"blocks.{i}", config.block(i)
        if widths.heads:
            y = _attention(config, p, _layer_norm(x, p, f"{block}.norm1", config.layer_norm_eps), i)
            x = x + y * p.get(f"{block}.ls1.gamma", 1.0)
        if widths.mlp_hidden:
            y = _linear(_layer_norm(x, p, f"{block}.norm2", config.layer_norm_eps), p, f"{block}.mlp.fc1")
            if config.mlp == "swiglu":
                gate, value = np.split(y, 2, axis=-1)
                y = gate / (1 + np.exp(-gate)) * value
            else:
                y = _gelu(y, config.activation)
            y = _linear(y, p, f"{block}.mlp.fc2")
            x = x + y * p.get(f"{block}.ls2.gamma", 1.0)
        if f"{block}.merge.weight" in p:
            patches = np.einsum("ts,nsd->ntd", p[f"{block}.merge.weight"], x[:, config.prefix_tokens :])
            x = np.concatenate([x[:, : config.prefix_tokens], patches], axis=1)
            sizes = (p[f"{block}.merge.weight"] != 0) @ sizes

    if config.final_norm == "norm":
        x = _layer_norm(x, p, "norm", config.layer_norm_eps)
    if config.distillation_token:
        return (_linear(x[:, 0], p, "head") + _linear(x[:, 1], p, "head_dist")) / 2
    token, patches = x[:, 0], np.average(x[:, config.prefix_tokens :], axis=1, weights=sizes)
    x = {"token": token, "avg": patches, "token_avg": np.concatenate([token, patches], axis=-1)}[config.pool]
    if config.final_norm == "fc_norm":
        x = _layer_norm(x, p, "fc_norm", config.layer_norm_eps)
    return _linear(x, p, "head")


def _attention(config: ViTConfig, p: Mapping[str, Float64], x: Float64, block: int) -> Float64:
    """Compute softmax(q kᵀ / √head_dim) v in every head, [N, T, D] -> [N, T, D]."""
    name, widths = f"blocks.{block}.attn", config.block(block)
    batch, tokens, _ = x.shape
    parts = np.split(_linear(x, p, f"{name}.qkv"), np.cumsum(widths.qkv)[:2], axis=-1)
    q, k, v = (  # each [N, heads, T, channels of a head]
        part.reshape(batch, tokens, widths.heads, -1).transpose(0, 2, 1, 3) for part in parts
    )
    if config.qk_norm:
        q = _layer_norm(q, p, f"{name}.q_norm", config.layer_norm_eps)
        k = _layer_norm(k, p, f"{name}.k_norm", config.layer_norm_eps)
    if config.rope is not None:
        angles = block_angles(config, widths, block_freqs(config, p, block)).swapaxes(0, 1)  # [1 or heads, P, d/2]
        for turned in (q, k):  # views, turned in place
            patches = turned[:, :, config.prefix_tokens :]
            halves = config.rope.pairs == "halves"
            first, second = np.split(patches, 2, axis=-1) if halves else (patches[..., ::2], patches[..., 1::2])
            complex_pairs = (first + 1j * second) * np.exp(1j * angles)
            first[...], second[...] = complex_pairs.real, complex_pairs.imag
    context = np.empty_like(v)
    for head in range(widths.heads):  # one at a time, so that many tokens don't need all memory
        scores = q[:, head] @ k[:, head].swapaxes(-1, -2) / math.sqrt(config.head_dim)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        context[:, head] = weights / weights.sum(axis=-1, keepdims=True) @ v[:, head]
    return _linear(context.transpose(0, 2, 1, 3).reshape(batch, tokens, -1), p, f"{name}.proj")


def _linear(x: Float64, p: Mapping[str, Float64], name: str) -> Float64:
    y: Float64 = x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)
    return y


def _layer_norm(x: Float64, p: Mapping[str, Float64], name: str, eps: float) -> Float64:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    y: Float64 = centred / np.sqrt(variance + eps) * p[f"{name}.weight"] + p[f"{name}.bias"]
    return y


def _gelu(x: Float64, kind: str) -> Float64:
    """Compute GELU (Hendrycks & Gimpel, 1606.08415)."""
    if kind == "gelu_tanh":
        gate: Float64 = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        gate = _erf(x / math.sqrt(2))
    return 0.5 * x * (1 + gate)


_erf = np.vectorize(math.erf, otypes=[np.float64])  # numpy has none, and scipy is no dependency


def _max_pool(x: Float64, side: int) -> Float64:
    """Pool [N, H, W, C] -> [N, H/side, W/side, C]; rows and columns that fill no window are left out."""
    batch, rows, columns, channels = x.shape[0], x.shape[1] // side, x.shape[2] // side, x.shape[3]
    x = x[:, : rows * side, : columns * side]
    pooled: Float64 = x.reshape(batch, rows, side, columns, side, channels).max(axis=(2, 4))
    return pooled


def _convolution(x: Float64, weight: Float64, bias: Float64 | None, stride: int, padding: int = 0) -> Float64:
    """Convolve [N, H, W, C] with weight [out, C, k, k] -> [N, rows, columns, out]."""
    out, _, size, _ = weight.shape
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    batch, rows, columns = windows.shape[:3]  # [N, rows, columns, C, k, k]
    y: Float64 = windows.reshape(batch, rows, columns, -1) @ weight.reshape(out, -1).T
    return y if bias is None else y + bias
