"""Advice for a model that was trained on few pictures: sentences for the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vitedge.core.intervals import wilson
from vitedge.formats.architecture import ViTConfig
from vitedge.training.options import TrainOptions

WIDE_PP = 10.0  # a 95 % interval of top-1 that is wider says little
FEW_TO_TUNE, FEW_FROM_SCRATCH = 50, 500  # training pictures a class
PUBLISHED = "hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def with_interval(figure: Mapping[str, float]) -> dict[str, Any]:
    """Return figures of :func:`vitedge.training.evaluate.evaluate`, with top-1's 95 % interval (Wilson), in percent."""
    images = int(figure["images"])
    interval = wilson(round(figure["top1_percent"] * images / 100), images)
    return {**figure, "top1_interval_percent": [round(100 * interval.low, 2), round(100 * interval.high, 2)]}


def sentence(figure: Mapping[str, Any]) -> str:
    """Return a figure with its interval: ``top-1 91.67 % of 12 pictures (95 % interval 64.6 to 98.5)``."""
    low, high = figure["top1_interval_percent"]
    top1, images = figure["top1_percent"], figure["images"]
    return f"top-1 {top1:.2f} % of {images:,} pictures (95 % interval {low:.1f} to {high:.1f})"


def advice(options: TrainOptions, config: ViTConfig, pictures: int, held_out: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences of advice; none where there are enough pictures.

    Args:
        options: of the run.
        config: of the model.
        pictures: that it trained on.
        held_out: as :func:`with_interval` returns it.
    """
    low, high = held_out["top1_interval_percent"]
    each = pictures // config.num_classes
    if high - low > WIDE_PP:
        more = -(-3 * held_out["images"] // config.num_classes)
        yield (
            f"{held_out['images']:,} hold-out pictures say little about the accuracy ({low:.0f} to {high:.0f} %): "
            f"about {more:,} more a class, named with --test, would halve the interval"
        )
    if options.init_from is None and each < FEW_FROM_SCRATCH:
        yield (
            f"{each:,} pictures a class are few to train from scratch: start from trained weights, published ones "
            f"(--init-from {PUBLISHED}) or, for small pictures, the embedded model's (--init-from embedded)"
        )
    elif options.init_from is not None and options.freeze is None and each < FEW_TO_TUNE:
        yield (
            f"{each:,} pictures a class are few to train every layer: train the head alone "
            f"(--freeze {config.depth}), or take more pictures"
        )
