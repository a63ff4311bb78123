"""The Vision Transformer (Dosovitskiy et al., 2010.11929), in torch, top to bottom.

The architecture is a :class:`vitedge.formats.architecture.ViTConfig`; parameter names are timm's, so published weights
load by name. Shapes: B images, H×W pixels, h×w patches, N tokens (prefix and patches), D = ``embed_dim`` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vitedge.formats.architecture import BlockWidths, ConvStem, PatchStem, Rope, Stage, ViTConfig
from vitedge.graph.merging import evenly
from vitedge.graph.positions import rotary_angles
from vitedge.training.batch_norm import GlobalBatchNorm2d
from vitedge.training.randomness import uniform

BATCH_NORM_EPS = 1e-5


class PatchEmbedding(nn.Module):
    """Non-overlapping patches, each projected to one token: a convolution whose kernel equals its stride."""

    def __init__(self, stem: PatchStem, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, stem.patch_size, stem.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, h·w, D]."""
        return cast(Tensor, self.proj(image)).flatten(2).transpose(1, 2)  # [B, 3, H, W] -> [B, D, h, w] -> [B, h·w, D]


class ConvNormAct(nn.Module):
    """One stage of the convolutional stem: convolution, MaxPool, BatchNorm (or a bias, once folded), GELU.

    Behind a MaxPool the scale of the BatchNorm stays 1: only a positive one can be folded into the convolution.
    """

    def __init__(self, stage: Stage, *, folded: bool) -> None:
        super().__init__()
        normalised = stage.normalised and not folded
        self.conv = nn.Conv2d(
            stage.inputs, stage.outputs, stage.kernel, stage.stride, stage.padding, bias=not normalised
        )
        self.pool = nn.MaxPool2d(stage.pool) if stage.pool > 1 else nn.Identity()
        self.norm = GlobalBatchNorm2d(stage.outputs, eps=BATCH_NORM_EPS) if normalised else nn.Identity()
        if normalised and stage.pool > 1:
            cast(nn.BatchNorm2d, self.norm).weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H/stride, W/stride]."""
        return functional.gelu(self.norm(self.pool(self.conv(x))))


class ConvEmbedding(nn.Module):
    """Early convolutions (Xiao et al., 2106.14881), then a 1×1 projection to tokens."""

    def __init__(self, stem: ConvStem, embed_dim: int, *, folded: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(ConvNormAct(stage, folded=folded) for stage in stem.stages))
        self.proj = nn.Conv2d(stem.channels[-1], embed_dim, 1)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, h·w, D]."""
        x = self.proj(self.stem(image))  # [B, 3, H, W] -> [B, D, h, w]
        return cast(Tensor, x).flatten(2).transpose(1, 2)  # -> [B, h·w, D]


class Rotation(nn.Module):
    """Angles of the rotary position embedding: fixed, or learned for each block and head.

    Args:
        config: the architecture.
        rope: its rotary embedding.
        shape: of learned frequencies but for their two axes: (depth, heads, d/2), or one block's (heads, d/2).
    """

    def __init__(self, config: ViTConfig, rope: Rope, shape: Sequence[int]) -> None:
        super().__init__()
        self.freqs: nn.Parameter | None = None
        if rope.kind == "mixed":
            self.freqs = nn.Parameter(torch.zeros((2, *shape)))
            units = np.eye(2)[:, :, None, None]  # of the two axes: [2, 2, 1, 1]
            angles = np.stack([rotary_angles(rope, config.grid, config.head_dim, unit) for unit in units])
        else:
            angles = rotary_angles(rope, config.grid, config.head_dim)  # [patches, 1, d/2]
        self.register_buffer("fixed", torch.tensor(angles, dtype=torch.float32).transpose(-3, -2), persistent=False)

    def angles(self, block: int | None = None) -> Tensor:
        """[1 or heads, patches, d/2], of the block with this number where all blocks share the module."""
        if self.freqs is None:
            return cast(Tensor, self.fixed)  # [1, patches, d/2]
        freqs = self.freqs if block is None else self.freqs[:, block]
        return (cast(Tensor, self.fixed) * freqs[:, :, None]).sum(0)  # [2, 1, patches, 1] · [2, heads, 1, d/2]


def rotate(x: Tensor, angles: Tensor, pairs: str) -> Tensor:
    """Turn pairs of channels of the last tokens, [B, heads, N, d], by angles [1 or heads, patches, d/2]."""
    prefix, patches = x[:, :, : -angles.shape[1]], x[:, :, -angles.shape[1] :]
    a, b = patches.chunk(2, dim=-1) if pairs == "halves" else (patches[..., ::2], patches[..., 1::2])
    cos, sin = angles.cos(), angles.sin()
    turned = a * cos - b * sin, b * cos + a * sin
    patches = torch.cat(turned, dim=-1) if pairs == "halves" else torch.stack(turned, dim=-1).flatten(-2)
    return torch.cat([prefix, patches], dim=2)


class Attention(nn.Module):
    """Multi-head self-attention with queries, keys and values packed in one linear layer."""

    def __init__(self, config: ViTConfig, widths: BlockWidths) -> None:
        super().__init__()
        dim, eps = config.embed_dim, config.layer_norm_eps
        self.sizes = widths.qkv
        self.heads = widths.heads
        self.scale = config.head_dim**-0.5  # by the full width, whatever width is left
        self.pairs = "" if config.rope is None else config.rope.pairs
        self.kept = None if widths.rope_pairs is None else list(widths.rope_pairs)
        self.qkv = nn.Linear(dim, sum(widths.qkv), bias=config.qkv_bias)
        self.q_norm = nn.LayerNorm(widths.query_key, eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(widths.query_key, eps) if config.qk_norm else nn.Identity()
        own = config.rope is not None and config.rope.kind == "mixed" and bool(config.blocks)
        self.rope = Rotation(config, cast(Rope, config.rope), (widths.heads, widths.query_key // 2)) if own else None
        self.proj = nn.Linear(widths.qkv[2], dim)
        if config.rope is None:
            self._leave_key_bias_out(config)

    def _leave_key_bias_out(self, config: ViTConfig) -> None:
        """Give the bias of the keys a gradient of 0, which it has except for rounding: it shifts all scores of a query.

        AdamW would make steps of that rounding, other ones wherever a batch is added up in another order.
        """
        bias: Any = self.k_norm.bias if config.qk_norm else self.qkv.bias
        factors = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(torch.tensor(self.sizes))  # of queries, keys, values
        if config.qk_norm:
            bias.register_hook(torch.zeros_like)
        elif config.qkv_bias:
            bias.register_hook(lambda gradient: gradient * factors.to(gradient))

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, N, heads · d] -> [B, heads, N, d]
            for part in self.qkv(x).split(self.sizes, dim=2)
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            angles = self.rope.angles()
        if angles is not None:
            angles = angles if self.kept is None else angles[..., self.kept]
            q, k = rotate(q, angles, self.pairs), rotate(k, angles, self.pairs)
        x = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)  # [B, heads, N, d]
        return cast(Tensor, self.proj(x.transpose(1, 2).flatten(2)))  # [B, heads, N, d] -> [B, N, D]


class Mlp(nn.Module):
    """Two linear layers around an activation, for each token by itself."""

    def __init__(self, config: ViTConfig, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.fc1_rows * hidden)
        self.gated = config.mlp == "swiglu"
        self.act = (
            nn.SiLU() if self.gated else nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")
        )
        self.fc2 = nn.Linear(hidden, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        if self.gated:
            gate, value = self.fc1(x).chunk(2, dim=-1)
            return cast(Tensor, self.fc2(self.act(gate) * value))
        return cast(Tensor, self.fc2(self.act(self.fc1(x))))  # [B, N, D] -> [B, N, hidden] -> [B, N, D]


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Touvron et al., 2103.17239)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 1603.09382): in training, skips a residual branch for some of the images.

    What remains is scaled up by 1/(1 - rate). Which images' branches are left out is drawn before the forward pass
    (:meth:`VisionTransformer.draw_paths`); as long as nothing was drawn, none is.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.kept: Tensor | None = None  # [B, 1, 1]: 0, or 1/(1 - rate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        if not self.training or self.kept is None:
            return x
        return x * self.kept.to(x.dtype)


class Merge(nn.Module):
    """Fewer patch tokens, each a weighted sum of those before; the weights are constants, not parameters.

    Args:
        prefix: tokens before the patches, which stay.
        after: tokens that are left.
        before: tokens that come.
    """

    def __init__(self, prefix: int, after: int, before: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.register_buffer("weight", torch.tensor(evenly(after - prefix, before - prefix), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, D] -> [B, after, D]."""
        return torch.cat([x[:, : self.prefix], cast(Tensor, self.weight) @ x[:, self.prefix :]], dim=1)


class Block(nn.Module):
    """A pre-norm transformer block: attention between tokens, then an MLP on each; either may be removed."""

    def __init__(self, config: ViTConfig, index: int, drop_path: float) -> None:
        super().__init__()
        dim, eps, widths = config.embed_dim, config.layer_norm_eps, config.block(index)
        self.attn: Attention | None = None
        if widths.heads:
            self.norm1 = nn.LayerNorm(dim, eps)
            self.attn = Attention(config, widths)
            self.ls1 = LayerScale(dim) if config.layer_scale else nn.Identity()
            self.drop_path1 = DropPath(drop_path)
        self.mlp: Mlp | None = None
        if widths.mlp_hidden:
            self.norm2 = nn.LayerNorm(dim, eps)
            self.mlp = Mlp(config, widths.mlp_hidden)
            self.ls2 = LayerScale(dim) if config.layer_scale else nn.Identity()
            self.drop_path2 = DropPath(drop_path)
        self.merge: Merge | None = None
        if widths.tokens is not None:
            self.merge = Merge(config.prefix_tokens, widths.tokens, config.tokens_before(index))

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D], or fewer tokens; the angles are the rotary embedding's."""
        if self.attn is not None:
            x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), angles)))
        if self.mlp is not None:
            x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x if self.merge is None else cast(Tensor, self.merge(x))


class VisionTransformer(nn.Module):
    """A classifier: image -> tokens -> blocks -> pooled token -> logits.

    Args:
        config: the architecture.
        drop_path: stochastic depth rate of the last block; it grows linearly from 0 at the first.
        folded: take the shipped form, where a convolutional stem has biases instead of BatchNorm.
    """

    def __init__(self, config: ViTConfig, *, drop_path: float = 0.0, folded: bool = False) -> None:
        super().__init__()
        self.config = config
        dim, eps = config.embed_dim, config.layer_norm_eps
        if isinstance(config.stem, PatchStem):
            self.patch_embed: nn.Module = PatchEmbedding(config.stem, dim)
        else:
            self.patch_embed = ConvEmbedding(config.stem, dim, folded=folded)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.distillation_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.register_tokens, dim)) if config.register_tokens else None
        positions = config.tokens if config.position_embedding_covers_prefix else config.tokens - config.prefix_tokens
        learned = config.position_embedding == "learned"
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim)) if learned else None
        self.rope: Rotation | None = None  # of all blocks; blocks with learned frequencies of their own have their own
        if config.rope is not None and not (config.rope.kind == "mixed" and config.blocks):
            self.rope = Rotation(config, config.rope, (config.depth, config.num_heads, config.head_dim // 2))
        self.norm_pre = nn.LayerNorm(dim, eps) if config.pre_norm else nn.Identity()
        rates = np.linspace(0.0, drop_path, config.depth)
        self.blocks = nn.Sequential(*(Block(config, i, float(rate)) for i, rate in enumerate(rates)))
        self.norm = nn.LayerNorm(dim, eps) if config.final_norm == "norm" else nn.Identity()
        self.fc_norm = nn.LayerNorm(dim, eps) if config.final_norm == "fc_norm" else nn.Identity()
        self.head = nn.Linear(config.pooled_dim, config.num_classes)
        self.head_dist = nn.Linear(dim, config.num_classes) if config.distillation_token else None
        self._initialise()

    def _initialise(self) -> None:
        """Initialise linear layers and tokens as truncated normal (σ = 0.02), 3×3 convolutions as He, heads as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for token in (self.cls_token, self.dist_token, self.reg_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        for head in (self.head, self.head_dist):
            if head is not None:
                nn.init.zeros_(head.weight)

    def tokens(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N, D]: prefix tokens and patches with their position embedding."""
        x = self.patch_embed(image)
        prefix = [
            token.expand(x.shape[0], -1, -1)
            for token in (self.cls_token, self.dist_token, self.reg_token)
            if token is not None
        ]
        positions = self.positions((image.shape[2], image.shape[3]))
        if positions is None:
            return torch.cat([*prefix, x], dim=1)
        if self.config.position_embedding_covers_prefix:
            return torch.cat([*prefix, x], dim=1) + positions
        return torch.cat([*prefix, x + positions], dim=1)

    def positions(self, size: tuple[int, int]) -> Tensor | None:
        """Return the learned position embedding for images of (H, W) pixels, [1, positions, D].

        For another size than the model's it's resized as :func:`vitedge.graph.positions.resize_positions` does it.
        """
        if self.pos_embed is None or size == self.config.image_size:
            return self.pos_embed
        count = self.config.prefix_tokens if self.config.position_embedding_covers_prefix else 0
        grid = self.config.grid_of(size)
        patches = self.pos_embed[:, count:].transpose(1, 2).reshape(1, -1, *self.config.grid)  # -> [1, D, h, w]
        patches = functional.interpolate(patches, grid, mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :count], patches.flatten(2).transpose(1, 2)], dim=1)

    def features(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N, D]: the tokens after the last block (and after ``norm`` where it stands there)."""
        x = self.norm_pre(self.tokens(image))
        for index, block in enumerate(self.blocks):
            x = block(x) if self.rope is None else block(x, self.rope.angles(index))
        return cast(Tensor, self.norm(x))

    def draw_paths(self, keys: Tensor) -> None:
        """Draw by the images' keys (int64 [B]) the branches that the next forward passes of these images skip."""
        for name, module in self.named_modules():
            if isinstance(module, DropPath) and module.rate:
                keep = 1.0 - module.rate
                module.kept = (uniform(keys, name) < keep)[:, None, None] / keep

    def heads(self, image: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Normalised float images [B, 3, H, W] (RGB) -> logits of both heads [B, classes], and the first head's input.

        The second head is a distilled model's, else None; what the heads read is the normalised, pooled token [B, D].
        """
        x = self.features(image)  # [B, N, D]
        pooled = x[:, 0]
        if self.config.pool != "token":
            patches = self._mean(x[:, self.config.prefix_tokens :])
            pooled = patches if self.config.pool == "avg" else torch.cat([pooled, patches], dim=1)
        pooled = cast(Tensor, self.fc_norm(pooled))
        logits = cast(Tensor, self.head(pooled))  # [B, D] -> [B, classes]
        second = None if self.head_dist is None else cast(Tensor, self.head_dist(self.fc_norm(x[:, 1])))
        return logits, second, pooled

    def _mean(self, x: Tensor) -> Tensor:
        """Average patch tokens [B, patches, D], or the merged ones -> [B, D]; every patch counts once."""
        if not self.config.merges:
            return x.mean(dim=1)
        sizes = torch.ones(self.config.tokens - self.config.prefix_tokens, device=x.device)
        for merge in (module for module in self.modules() if isinstance(module, Merge)):
            sizes = (cast(Tensor, merge.weight) != 0).float() @ sizes
        return (x * (sizes / sizes.sum())[:, None].to(x.dtype)).sum(dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised float images [B, 3, H, W] (RGB) -> logits [B, classes].

        A distilled model has two heads; its logits are their mean (Touvron et al., 2012.12877).
        """
        logits, second, _ = self.heads(image)
        return logits if second is None else (logits + second) / 2


def fold_batch_norm(state: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Return a state dict as it's shipped: float32 arrays, BatchNorm folded into the convolution before it.

    With γ, β, μ, σ² of the BatchNorm: weight' = weight · γ/√(σ²+ε) per output channel, bias' = β − μ · γ/√(σ²+ε).
    Computed in float64. Names without a BatchNorm beside them pass unchanged.
    """
    arrays = {name: value.detach().cpu().double().numpy() for name, value in state.items()}
    folded = dict(arrays)
    for name in arrays:
        if not name.endswith(".norm.running_var"):
            continue
        stage = name.removesuffix(".norm.running_var")
        norm = {part: folded.pop(f"{stage}.norm.{part}") for part in ("weight", "bias", "running_mean", "running_var")}
        folded.pop(f"{stage}.norm.num_batches_tracked", None)
        scale = norm["weight"] / np.sqrt(norm["running_var"] + BATCH_NORM_EPS)
        folded[f"{stage}.conv.weight"] = arrays[f"{stage}.conv.weight"] * scale[:, None, None, None]
        folded[f"{stage}.conv.bias"] = norm["bias"] - norm["running_mean"] * scale
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in folded.items()}
