"""Evaluate a torch model on decoded pictures; shipped weights by their float32 upcast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.architecture import ViTConfig
from vitedge.training.data import Files, Pixels
from vitedge.training.engine import Processes
from vitedge.training.vit import VisionTransformer

BATCH = 50  # pictures in one pass: a stop that comes meanwhile waits for its end


def normalise(x: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Normalise float32 [B, 3, h, w], 0 to 255: rescale, take off the mean, divide by the standard deviation."""
    mean, std = (x.new_tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (x * preprocessing.rescale - mean) / std


def model_input(pixels: Tensor, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Turn uint8 [B, h, w, 3] into the model's input, float32 [B, 3, h, w], in :func:`on_device`'s memory format."""
    x = normalise(pixels.to(device).permute(0, 3, 1, 2).float(), preprocessing)
    return x.contiguous(memory_format=torch.channels_last)


def on_device(model: VisionTransformer, device: torch.device) -> VisionTransformer:
    """Return the model on a device, its convolutions in the memory format that is fastest there."""
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


@torch.no_grad()
def evaluate(
    model: VisionTransformer,
    pictures: Pixels | Files,
    preprocessing: Preprocessing,
    group: Processes,
    *,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return top-1 (percent), mean cross-entropy and number of pictures: float32, one view of each picture.

    The processes of the group share the pictures. ``after_batch`` is called after every 50 of them, and may raise.
    """
    model.eval()
    right, loss = 0.0, 0.0
    mine = torch.arange(group.rank, len(pictures), group.count)
    for _, pixels, labels in pictures.batches(torch.split(mine, BATCH) if len(mine) else ()):
        logits = model(model_input(pixels, preprocessing, group.device)).cpu()
        right += int((logits.argmax(1) == labels).sum())
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
        after_batch()
    right, loss = group.all_reduce([right, loss])
    count = len(pictures)
    return {"top1_percent": 100 * right / count, "loss": loss / count, "images": count}


def is_better(figures: Mapping[str, float], best: Mapping[str, float]) -> bool:
    """Whether an epoch beats the best so far on the hold-out pictures: by top-1 where it differs, else by the loss.

    The top-1 of a thousand pictures is uncertain by a percentage point, and the largest of many epochs is partly luck:
    within its standard error the mean cross-entropy decides, which is finer (the idea of the one-standard-error rule;
    Breiman et al., Classification and Regression Trees, 1984). Of equals the later one is better.
    """
    top1 = figures["top1_percent"] / 100
    error_pp = 100 * math.sqrt(top1 * (1 - top1) / figures["images"])
    gain_pp = figures["top1_percent"] - best["top1_percent"]
    return gain_pp > error_pp or (gain_pp >= -error_pp and figures["loss"] <= best["loss"])


def shipped_model(config: ViTConfig, arrays: Mapping[str, NDArray[np.float16]]) -> VisionTransformer:
    """Return the module of shipped weights: BatchNorm folded, float16 cast up to float32."""
    model = VisionTransformer(config, folded=True)
    model.load_state_dict({name: torch.from_numpy(value.astype(np.float32)) for name, value in arrays.items()})
    return model
