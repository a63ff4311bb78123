"""Adapt a model's configuration and parameters to another picture size, or to some of its classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from vitedge.errors import UsageError
from vitedge.formats.architecture import ViTConfig
from vitedge.graph.checkpoint import Arrays, resized


def with_resolution(config: ViTConfig, arrays: Arrays, size: tuple[int, int]) -> tuple[ViTConfig, Arrays]:
    """Return the model for pictures of (height, width) pixels.

    A learned position embedding is resized bicubically with antialias, as timm does it
    (:func:`~vitedge.graph.positions.resize_positions`); those of class, distillation and register tokens stay. A rotary
    one follows from the new grid. Everything else is the same array.

    Args:
        config: the architecture.
        arrays: its parameters; they aren't changed.
        size: (height, width), multiples of the stem's stride.

    Raises:
        ModelError: a size that the stem doesn't divide, or of too many patches.
    """
    new, others, _ = resized(config, arrays, size, f"make the model take pictures of {size[0]}×{size[1]} pixels")
    return new, others


def with_classes(config: ViTConfig, arrays: Arrays, kept: Sequence[int]) -> tuple[ViTConfig, Arrays]:
    """Return the model whose logits are those of the kept classes, in their order; the logits' values don't change.

    Args:
        config: the architecture.
        arrays: its parameters; they aren't changed.
        kept: numbers of classes, counted from 0.

    Raises:
        UsageError: no class, one twice, or one that the model doesn't have.
    """
    action = f"keep {len(kept)} of {config.num_classes} classes"
    unknown = [number for number in kept if not 0 <= number < config.num_classes]
    if unknown:
        reason = f"class {unknown[0]} doesn't exist"
        raise UsageError(action, reason, f"name classes from 0 to {config.num_classes - 1}")
    if not kept or len(set(kept)) < len(kept):
        reason = "a class is named twice" if kept else "no class is named"
        raise UsageError(action, reason, "name each class that is to stay once")
    rows = np.asarray(kept)
    heads = [f"{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")]
    cut = {name: arrays[name][rows] for name in heads if name in arrays}
    return replace(config, num_classes=len(kept)), {**arrays, **cut}
