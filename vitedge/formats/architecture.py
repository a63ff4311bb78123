"""The architecture of a plain Vision Transformer, as data.

One frozen description is read by three parties that never see each other: the torch module that is trained
(:mod:`vitedge.training.vit`), the author that writes the canonical ONNX graph without torch
(:mod:`vitedge.graph.author`) and the importers that recognise published checkpoints. The parameter names that go
with it are timm's (``patch_embed.proj.weight``, ``blocks.3.attn.qkv.bias``, ``norm.weight``, ``head.bias``, …).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

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


class Stage(NamedTuple):
    """One convolution of a stem, what follows it, and its sizes."""

    inputs: int
    outputs: int
    kernel: int
    padding: int
    stride: int
    pool: int  # side and stride of the MaxPool behind the convolution; 1: none
    normalised: bool  # by BatchNorm; else the convolution has a bias

    def convolved(self, pixels: int) -> int:
        """Return height or width behind the convolution."""
        return (pixels + 2 * self.padding - self.kernel) // self.stride + 1


class ConvStem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="conv", tag_field="kind"):
    """Early convolutions (Xiao et al., 2106.14881): 3×3, padding 1, BatchNorm and GELU; then a 1×1 projection.

    Stage ``i`` maps ``channels[i-1]`` (3 for the first) to ``channels[i]`` channels at stride ``strides[i]``. With
    ``reduction = "max"`` the convolution keeps the size, and a MaxPool over ``strides[i]`` × ``strides[i]`` stands
    between it and its BatchNorm, whose scale is positive there (in training it stays 1). With ``first_kernel = 2`` the
    first convolution is 2×2 without padding, with a bias and no BatchNorm, as a whitening layer is (Jordan,
    2404.00498): 32 pixels become 31, and by two pools 7.

    Parameters, training form: ``patch_embed.stem.{i}.conv.weight`` [out, in, 3, 3] (no bias) and
    ``patch_embed.stem.{i}.norm.{weight,bias,running_mean,running_var}`` [out]; then ``patch_embed.proj.weight``
    [embed_dim, channels[-1], 1, 1] and ``patch_embed.proj.bias``.
    Shipped form, BatchNorm folded: ``patch_embed.stem.{i}.conv.weight`` and ``patch_embed.stem.{i}.conv.bias``.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    reduction: Literal["stride", "max"] = "stride"
    first_kernel: Literal[2, 3] = 3

    def __post_init__(self) -> None:
        if not self.channels or len(self.channels) != len(self.strides):
            raise ValueError("channels and strides of a convolutional stem must be of one length, at least 1")

    @property
    def stride(self) -> int:
        """Pixels of the image per token, along each axis."""
        return math.prod(self.strides)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The convolutions in order."""
        pooled = self.reduction == "max"
        kernels = (self.first_kernel, *[3] * (len(self.channels) - 1))
        return tuple(
            Stage(inputs, outputs, kernel, kernel - 2, 1 if pooled else stride, stride if pooled else 1, kernel == 3)
            for inputs, outputs, kernel, stride in zip(
                (3, *self.channels[:-1]), self.channels, kernels, self.strides, strict=True
            )
        )


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


class BlockWidths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The widths of one narrowed block: all heads have equally many channels, and either branch may be removed.

    Without heads there are no ``norm1``, ``attn``, ``ls1`` and ``add1``; without hidden units no ``norm2``, ``mlp``,
    ``ls2`` and ``add2``. Where fewer tokens are left behind it, every patch token that is left is a weighted sum of
    those before (``merge.weight`` [patch tokens after, patch tokens before]); the tokens before the patches stay.
    """

    heads: int
    query_key: int  # channels of a head's query and key
    value: int  # channels of a head's value
    mlp_hidden: int
    rope_pairs: tuple[int, ...] | None = None  # of a fixed rotary embedding's pairs: the kept ones; None: all of them
    tokens: int | None = None  # behind the block, with those before the patches; None: as many as it reads

    def __post_init__(self) -> None:
        if min(self.heads, self.query_key, self.value, self.mlp_hidden) < 0:
            raise ValueError("the widths of a block can't be negative")
        if self.heads and not (self.query_key and self.value):
            raise ValueError(f"{self.heads} heads need channels for queries, keys and values")
        if not self.heads:
            for name, nothing in (("query_key", 0), ("value", 0), ("rope_pairs", None)):
                msgspec.structs.force_setattr(self, name, nothing)

    @property
    def qkv(self) -> tuple[int, int, int]:
        """Rows of ``attn.qkv``: queries of all heads, then keys, then values."""
        return self.heads * self.query_key, self.heads * self.query_key, self.heads * self.value


class ViTConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pre-norm Vision Transformer classifier (Dosovitskiy et al., 2010.11929) and its compact relatives.

    Token order: class token, distillation token, register tokens, then patches row by row
    (``cls_token`` [1,1,D], ``dist_token`` [1,1,D], ``reg_token`` [1,R,D]).

    With ``blocks`` each block has widths of its own; ``num_heads`` and ``mlp_hidden`` are then those of the model that
    it was cut from, and attention goes on being scaled by that model's channels a head, ``head_dim``^-½. Blocks that
    all have the full widths are the same as none. With ``attention_dim`` there are fewer channels between the blocks
    than in all heads together.
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
    blocks: tuple[BlockWidths, ...] | msgspec.UnsetType = msgspec.UNSET  # files of uniform models don't mention it
    attention_dim: int | msgspec.UnsetType = msgspec.UNSET  # channels of all heads of a full block; unset: embed_dim

    def __post_init__(self) -> None:
        for name in ("embed_dim", "num_heads", "attention_dim"):
            if (number := getattr(self, name)) is not msgspec.UNSET and number < 1:
                raise ValueError(f"{name} {number} is not a positive number")
        if self.attention_dim == self.embed_dim:
            msgspec.structs.force_setattr(self, "attention_dim", msgspec.UNSET)
        name = "embed_dim" if self.attention_dim is msgspec.UNSET else "attention_dim"
        channels = getattr(self, name)
        if channels % self.num_heads:
            raise ValueError(f"{name} {channels} is not a multiple of num_heads {self.num_heads}")
        for name, pixels in zip(("height", "width"), self.image_size, strict=True):
            if pixels <= 0 or pixels % self.stem.stride:
                raise ValueError(
                    f"image {name} {pixels} is not a positive multiple of the stem's stride {self.stem.stride}"
                )
        if min(self.grid) < 1:
            raise ValueError(f"an image of {self.image_size} pixels leaves no token behind the stem")
        if self.pool != "avg" and not self.class_token:
            raise ValueError(f'pool = "{self.pool}" needs a class token')
        if self.distillation_token and not (self.class_token and self.pool == "token"):
            raise ValueError('a distillation token stands beside a class token, with pool = "token"')
        if self.pool == "token_avg" and self.final_norm == "fc_norm":
            raise ValueError('pool = "token_avg" goes with final_norm = "norm"')
        if self.rope is not None and self.head_dim % 4:
            raise ValueError(f"a rotary embedding needs channels a head in fours, not {self.head_dim}")
        if self.blocks is not msgspec.UNSET:
            self._check_blocks(self.blocks)

    def _check_blocks(self, blocks: tuple[BlockWidths, ...]) -> None:
        if len(blocks) != self.depth:
            raise ValueError(f"there are widths of {len(blocks)} blocks; the depth is {self.depth}")
        if self.qk_norm and any(block.heads and block.query_key != self.head_dim for block in blocks):
            raise ValueError(f"queries and keys are normalised over {self.head_dim} channels; all of them stay")
        if self.rope is not None:
            blocks = tuple(_with_pairs(self.rope, self.head_dim, *each) for each in enumerate(blocks))
        elif any(block.rope_pairs is not None for block in blocks):
            raise ValueError("a block keeps pairs of a rotary embedding; there is none")
        blocks = tuple(self._with_tokens(blocks))
        uniform = all(block == self.full_block for block in blocks)
        msgspec.structs.force_setattr(self, "blocks", msgspec.UNSET if uniform else blocks)

    def _with_tokens(self, blocks: tuple[BlockWidths, ...]) -> Iterator[BlockWidths]:
        """Yield the blocks with ``tokens`` where some are merged."""
        before = self.tokens
        for index, block in enumerate(blocks):
            after = before if block.tokens is None else block.tokens
            if not self.prefix_tokens < after <= before:
                least = self.prefix_tokens + 1
                raise ValueError(f"behind block {index} there can be {least} to {before} tokens, not {after}")
            if after < before and self.rope is not None:
                raise ValueError("tokens are merged in a model with a rotary embedding, which turns them by positions")
            yield msgspec.structs.replace(block, tokens=after if after < before else None)
            before = after

    def tokens_before(self, index: int) -> int:
        """Return the length of the sequence that a block reads, or for the number of blocks, that the head reads."""
        merged = [block.tokens for block in (self.blocks or ())[:index] if block.tokens is not None]
        return merged[-1] if merged else self.tokens

    @property
    def merges(self) -> bool:
        """Whether tokens are merged behind a block: then the model takes pictures of its own size only."""
        return self.tokens_before(self.depth) < self.tokens

    @property
    def full_block(self) -> BlockWidths:
        """The widths of a complete block."""
        dim, hidden = self.head_dim, self.mlp_hidden
        return BlockWidths(heads=self.num_heads, query_key=dim, value=dim, mlp_hidden=hidden)

    def block(self, index: int) -> BlockWidths:
        """Return the widths of one block."""
        return self.full_block if self.blocks is msgspec.UNSET else self.blocks[index]

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patch tokens."""
        return self.grid_of(self.image_size)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (rows, columns) of patch tokens for pictures of (height, width) pixels."""
        rows, columns = size
        if isinstance(self.stem, PatchStem):
            return rows // self.stem.stride, columns // self.stem.stride
        for stage in self.stem.stages:
            rows, columns = stage.convolved(rows) // stage.pool, stage.convolved(columns) // stage.pool
        return rows, columns

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return int(self.class_token) + int(self.distillation_token) + self.register_tokens

    @property
    def tokens(self) -> int:
        """Length N of the sequence that the first block reads."""
        return self.prefix_tokens + self.grid[0] * self.grid[1]

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return (self.attention_dim or self.embed_dim) // self.num_heads

    @property
    def pooled_dim(self) -> int:
        """Channels that the head takes."""
        return self.embed_dim * (2 if self.pool == "token_avg" else 1)

    @property
    def fc1_rows(self) -> int:
        """Rows of ``mlp.fc1`` for each hidden unit: two for SwiGLU."""
        return 2 if self.mlp == "swiglu" else 1

    def macs(self) -> int:
        """Multiply-accumulates of one forward pass at batch 1: convolutions, linears and both attention products."""
        patches = self.grid[0] * self.grid[1]
        if isinstance(self.stem, ConvStem):
            (height, width), total = self.image_size, self.stem.channels[-1] * self.embed_dim * patches
            for stage in self.stem.stages:
                height, width = stage.convolved(height), stage.convolved(width)
                total += stage.kernel**2 * stage.inputs * stage.outputs * height * width
                height, width = height // stage.pool, width // stage.pool
        else:
            total = 3 * self.stem.patch_size**2 * self.embed_dim * patches
        total += sum(self.block_macs(self.block(index), self.tokens_before(index)) for index in range(self.depth))
        return total + self.pooled_dim * self.num_classes * (2 if self.distillation_token else 1)

    @property
    def whole_block_macs(self) -> int:
        """Multiply-accumulates of a full block of the model that this one was cut from."""
        whole = msgspec.structs.replace(
            self, embed_dim=self.num_heads * self.head_dim, attention_dim=msgspec.UNSET, blocks=msgspec.UNSET
        )
        return whole.block_macs(whole.full_block, whole.tokens)

    def block_macs(self, block: BlockWidths, tokens: int) -> int:
        """Return the multiply-accumulates of a block of these widths that reads ``tokens`` tokens."""
        queries, _, values = block.qkv
        linears = self.embed_dim * (sum(block.qkv) + values + block.mlp_hidden * (self.fc1_rows + 1))
        merge = self.embed_dim * tokens * (block.tokens or 0)
        return tokens * linears + tokens**2 * (queries + values) + merge


def _with_pairs(rope: Rope, head_dim: int, index: int, block: BlockWidths) -> BlockWidths:
    """Return the block with ``rope_pairs`` where it keeps only some; a learned embedding has pairs for each block."""
    if not block.heads:
        return block
    where, every = f"block {index}", tuple(range(head_dim // 2))
    whole = every[: block.query_key // 2] if rope.kind == "mixed" else every
    kept = whole if block.rope_pairs is None else block.rope_pairs
    if kept != tuple(sorted(set(kept) & set(every))):
        raise ValueError(f"rope_pairs of {where} must be numbers below {len(every)} in ascending order")
    if len(kept) * 2 != block.query_key:
        raise ValueError(f"{where} has {block.query_key} channels a query and keeps {len(kept)} pairs of them")
    all_told = rope.kind == "mixed" or kept == every
    return msgspec.structs.replace(block, rope_pairs=None if all_told else kept)


def uneven(config: ViTConfig | None) -> ViTConfig | msgspec.UnsetType:
    """Return the configuration if its blocks have widths of their own: what artifacts and results record of a model."""
    return config if config is not None and config.blocks else msgspec.UNSET
