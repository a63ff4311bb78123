"""The architecture of a plain Vision Transformer, as data.

One frozen description is read by three parties that never see each other: the torch module that is trained
(:mod:`vitedge.training.vit`), the author that writes the canonical ONNX graph without torch
(:mod:`vitedge.graph.author`) and the importers that recognise published checkpoints. The parameter names that go
with it are timm's (``patch_embed.proj.weight``, ``blocks.3.attn.qkv.bias``, ``norm.weight``, ``head.bias``, …).
"""

from __future__ import annotations

from typing import Literal

import msgspec


class PatchStem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="patch", tag_field="kind"):
    """Non-overlapping patches: one convolution whose kernel equals its stride.

    Parameters: ``patch_embed.proj.weight`` [embed_dim, 3, patch, patch], ``patch_embed.proj.bias`` [embed_dim].
    """

    patch_size: int

    @property
    def stride(self) -> int:
        """Pixels of the image per token, along each axis."""
        return self.patch_size


class ConvStem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="conv", tag_field="kind"):
    """Early convolutions (Xiao et al., 2106.14881): 3×3, padding 1, BatchNorm and GELU; then a 1×1 projection.

    Stage ``i`` maps ``channels[i-1]`` (3 for the first) to ``channels[i]`` channels at stride ``strides[i]``.

    Parameters, training form: ``patch_embed.stem.{i}.conv.weight`` [out, in, 3, 3] (no bias) and
    ``patch_embed.stem.{i}.norm.{weight,bias,running_mean,running_var}`` [out]; then ``patch_embed.proj.weight``
    [embed_dim, channels[-1], 1, 1] and ``patch_embed.proj.bias``.
    Shipped form, BatchNorm folded: ``patch_embed.stem.{i}.conv.weight`` and ``patch_embed.stem.{i}.conv.bias``.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.channels or len(self.channels) != len(self.strides):
            raise ValueError("channels and strides of a convolutional stem must be of one length, at least 1")

    @property
    def stride(self) -> int:
        """Pixels of the image per token, along each axis."""
        product = 1
        for stride in self.strides:
            product *= stride
        return product


class Rope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rotary position embedding in two dimensions (Su et al., 2104.09864; Heo et al., 2403.13298).

    The channels of every head are pairs; the pair ``i`` of a patch's query and key is turned by an angle:

    - ``axial``: row or column, counted from 0 (or scaled to ``reference_grid``), over temperature^(i / (head_dim/4));
      one half of the pairs turns by one axis, the other by the other.
    - ``centred``: the same with coordinates of patch centres from -1 to 1 and 2π (DINOv3, 2508.10104).
    - ``mixed``: both axes by learned frequencies ``rope.freqs`` [2, depth, heads, head_dim/2].

    Class, distillation and register tokens aren't turned.
    """

    kind: Literal["axial", "centred", "mixed"]
    temperature: float = 100.0
    first_axis: Literal["row", "column"] = "row"  # what the first half of the pairs (of ``freqs``) stands for
    reference_grid: tuple[int, int] | None = None  # (rows, columns) that coordinates are scaled to
    pairs: Literal["neighbours", "halves"] = "neighbours"  # channels (2i, 2i+1), or (i, i + head_dim/2)

    def __post_init__(self) -> None:
        if not 1.0 < self.temperature <= 1e6:
            raise ValueError(f"temperature {self.temperature} of the rotary embedding isn't between 1 and a million")
        if self.reference_grid is not None and min(self.reference_grid) < 1:
            raise ValueError(f"reference_grid {self.reference_grid} isn't (rows, columns)")


class ViTConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pre-norm Vision Transformer classifier (Dosovitskiy et al., 2010.11929) and its compact relatives.

    Token order: class token, distillation token, register tokens, then patches row by row
    (``cls_token`` [1,1,D], ``dist_token`` [1,1,D], ``reg_token`` [1,R,D]).
    """

    image_size: tuple[int, int]  # (height, width) in pixels
    stem: PatchStem | ConvStem
    embed_dim: int
    depth: int
    num_heads: int
    mlp_hidden: int  # width of the MLP's hidden layer: what ``mlp.fc2`` takes
    num_classes: int
    class_token: bool = True
    distillation_token: bool = False  # DeiT: a second head ``head_dist``; logits are the mean of both heads
    register_tokens: int = 0
    position_embedding: Literal["learned", "none"] = "learned"  # ``pos_embed`` [1, tokens, D]
    position_embedding_covers_prefix: bool = True  # False is timm's ``no_embed_class``: patches only
    rope: Rope | None = None  # beside or instead of the learned one
    qkv_bias: bool = True
    qk_norm: bool = False  # LayerNorm over each head: ``attn.q_norm`` and ``attn.k_norm`` [head_dim]
    layer_scale: bool = False  # ``ls1.gamma`` and ``ls2.gamma`` [D]
    pre_norm: bool = False  # a LayerNorm ``norm_pre`` before the first block (CLIP)
    pool: Literal["token", "avg", "token_avg"] = "token"  # avg: mean over patch tokens; token_avg: both, concatenated
    final_norm: Literal["norm", "fc_norm"] = "norm"  # "norm": before pooling; "fc_norm": after pooling
    layer_norm_eps: float = 1e-6
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    mlp: Literal["plain", "swiglu"] = "plain"  # swiglu (2002.05202): ``mlp.fc1`` [2 hidden, D], the gate's rows first

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        for name, pixels in zip(("height", "width"), self.image_size, strict=True):
            if pixels <= 0 or pixels % self.stem.stride:
                raise ValueError(
                    f"image {name} {pixels} is not a positive multiple of the stem's stride {self.stem.stride}"
                )
        if self.pool != "avg" and not self.class_token:
            raise ValueError(f'pool = "{self.pool}" needs a class token')
        if self.distillation_token and not (self.class_token and self.pool == "token"):
            raise ValueError('a distillation token stands beside a class token, with pool = "token"')
        if self.pool == "token_avg" and self.final_norm == "fc_norm":
            raise ValueError('pool = "token_avg" goes with final_norm = "norm"')
        if self.rope is not None and self.head_dim % 4:
            raise ValueError(f"a rotary embedding needs channels a head in fours, not {self.head_dim}")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patch tokens."""
        return self.image_size[0] // self.stem.stride, self.image_size[1] // self.stem.stride

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return int(self.class_token) + int(self.distillation_token) + self.register_tokens

    @property
    def tokens(self) -> int:
        """Length N of the sequence that the blocks see."""
        return self.prefix_tokens + self.grid[0] * self.grid[1]

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.embed_dim // self.num_heads

    @property
    def pooled_dim(self) -> int:
        """Channels that the head takes."""
        return self.embed_dim * (2 if self.pool == "token_avg" else 1)

    @property
    def fc1_width(self) -> int:
        """Rows of ``mlp.fc1``: the hidden width, twice for SwiGLU."""
        return self.mlp_hidden * (2 if self.mlp == "swiglu" else 1)

    def macs(self) -> int:
        """Multiply-accumulates of one forward pass at batch 1: convolutions, linears and both attention products."""
        height, width = self.image_size
        total, channels = 0, 3
        if isinstance(self.stem, ConvStem):
            for out, stride in zip(self.stem.channels, self.stem.strides, strict=True):
                height, width = height // stride, width // stride
                total += 9 * channels * out * height * width
                channels = out
            total += channels * self.embed_dim * height * width
        else:
            total += channels * self.stem.patch_size**2 * self.embed_dim * self.grid[0] * self.grid[1]
        linears = 4 * self.embed_dim**2 + self.embed_dim * (self.fc1_width + self.mlp_hidden)
        attention = 2 * self.tokens**2 * self.embed_dim
        total += self.depth * (self.tokens * linears + attention)
        return total + self.pooled_dim * self.num_classes * (2 if self.distillation_token else 1)
