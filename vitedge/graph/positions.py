"""Position embeddings: resize learned ones to another grid, and compute the angles of rotary ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitedge.errors import ModelError
from vitedge.formats.architecture import BlockWidths, Rope, ViTConfig

Float64 = NDArray[np.float64]


def resize_positions(
    pos: NDArray[np.generic],
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    prefix: int,
    *,
    antialias: bool = True,
) -> NDArray[np.float32]:
    """Resize a learned position embedding to another number of patches: bicubic, as timm does for a checkpoint.

    Args:
        pos: [1, prefix + rows · columns, D], the patches row by row.
        old_grid: (rows, columns) that it is for.
        new_grid: (rows, columns) that it shall be for.
        prefix: leading positions (class, distillation, register tokens) that are kept as they are.
        antialias: low-pass when shrinking (timm, DINOv2 with registers); False is what transformers' ViT, DeiT and
            DINOv2 do. With it the cubic's parameter is -0.5, without it -0.75, as in torch.

    Returns:
        float32 [1, prefix + rows' · columns', D].

    Raises:
        ModelError: another shape than ``old_grid`` and ``prefix`` tell.
    """
    expected = prefix + old_grid[0] * old_grid[1]
    if pos.ndim != 3 or pos.shape[:2] != (1, expected):
        reason = f"tensor 'pos_embed': expected [1, {expected}, channels], received {list(pos.shape)}"
        raise ModelError("resize a position embedding", reason, "name the grid that it was made for")
    if old_grid == new_grid:
        return np.asarray(pos, np.float32)
    patches = np.asarray(pos[0, prefix:]).astype(np.float64).reshape(*old_grid, -1)
    rows, columns = (_bicubic(old, new, antialias) for old, new in zip(old_grid, new_grid, strict=True))
    patches = np.einsum("ri,cj,ijd->rcd", rows, columns, patches, optimize=True)
    resized = patches.reshape(1, new_grid[0] * new_grid[1], -1)
    return np.concatenate([pos[:, :prefix].astype(np.float32), resized.astype(np.float32)], axis=1)


def resize_patches(kernel: NDArray[np.generic], size: int) -> NDArray[np.float32]:
    """Resize the patch projection to another patch size: FlexiViT's pseudo-inverse resize (Beyer et al., 2212.08013).

    The new kernel is the one whose products with resized patches are closest to the old one's with the patches.

    Args:
        kernel: [D, 3, old, old].
        size: the new patch's side, pixels.

    Returns:
        float32 [D, 3, size, size].
    """
    old = kernel.shape[2]
    if old == size:
        return np.asarray(kernel, np.float32)
    axis = np.linalg.pinv(_bicubic(old, size, antialias=True)).T  # [size, old]; the resize of two axes is a product
    resized = np.einsum("ri,cj,odij->odrc", axis, axis, np.asarray(kernel).astype(np.float64), optimize=True)
    return np.asarray(resized, np.float32)


def _bicubic(old: int, new: int, antialias: bool) -> Float64:
    """Return [new, old]: the weights of the old samples in each new one (half-pixel centres)."""
    scale = old / new
    stretch = max(scale, 1.0) if antialias else 1.0
    cubic = -0.5 if antialias else -0.75
    centres = (np.arange(new) + 0.5) * scale
    if antialias:  # every sample within reach, normalised
        distances = np.abs(np.arange(old) + 0.5 - centres[:, None]) / stretch
        weights = _kernel(distances, cubic)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))
    first = np.floor(centres - 0.5)
    weights = np.zeros((new, old))
    for step in range(-1, 3):  # four neighbours; those outside are the border's
        index = first + step
        distances = np.abs(index + 0.5 - centres)
        np.add.at(weights, (np.arange(new), np.clip(index, 0, old - 1).astype(int)), _kernel(distances, cubic))
    return weights


def _kernel(x: Float64, a: float) -> Float64:
    """Return Keys' cubic convolution (IEEE ASSP 29, 1981) at distances x ≥ 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.asarray(np.where(x < 1, near, np.where(x < 2, far, 0.0)))


def rotary_angles(
    rope: Rope, grid: tuple[int, int], head_dim: int, freqs: NDArray[np.generic] | None = None
) -> Float64:
    """Return the angle by which each pair of channels of each patch is rotated.

    Args:
        rope: the kind; see :class:`~vitedge.formats.architecture.Rope`.
        grid: (rows, columns) of patches.
        head_dim: channels a head.
        freqs: for ``mixed``, one block's [2, heads, head_dim/2].

    Returns:
        radians [rows · columns, 1 or heads, head_dim/2], patches row by row.
    """
    axes = []
    for side, reference in zip(grid, rope.reference_grid or grid, strict=True):
        if rope.kind == "centred":
            axes.append(2.0 * (np.arange(side) + 0.5) / side - 1.0)
        else:
            axes.append(np.arange(side) / side * reference)
    rows, columns = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    first, second = (rows, columns) if rope.first_axis == "row" else (columns, rows)
    if freqs is not None:
        turns = np.asarray(freqs).astype(np.float64)
        return np.asarray(first[:, None, None] * turns[0] + second[:, None, None] * turns[1])
    bands = rope.temperature ** -(np.arange(head_dim // 4) / (head_dim // 4))
    if rope.kind == "centred":
        bands *= 2 * np.pi
    return np.concatenate([first[:, None] * bands, second[:, None] * bands], axis=1)[:, None]


def half_order(head_dim: int, pairs: Literal["neighbours", "halves"]) -> NDArray[np.intp]:
    """Return the order of a head's channels in which the partners of a pair are half a head apart."""
    channels = np.arange(head_dim)
    return channels if pairs == "halves" else np.concatenate([channels[::2], channels[1::2]])


def block_angles(config: ViTConfig, block: BlockWidths, freqs: NDArray[np.generic] | None = None) -> Float64:
    """Return the angles of one block's kept pairs: radians [rows · columns, 1 or heads, query_key/2].

    Args:
        config: with a rotary embedding.
        block: its widths.
        freqs: for ``mixed``, the block's own [2, heads, query_key/2].
    """
    assert config.rope is not None
    angles = rotary_angles(config.rope, config.grid, config.head_dim, freqs)
    return angles if block.rope_pairs is None else angles[..., list(block.rope_pairs)]


def block_freqs(config: ViTConfig, arrays: Mapping[str, NDArray[Any]], index: int) -> NDArray[Any] | None:
    """Return one block's learned frequencies [2, heads, query_key/2]; None where the embedding is fixed."""
    if config.rope is None or config.rope.kind != "mixed":
        return None
    return arrays[f"blocks.{index}.attn.rope.freqs"] if config.blocks else arrays["rope.freqs"][:, index]
