"""Figures of a torch model on decoded pictures; of shipped weights, by their float32 upcast."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vitedge.architecture import ViTConfig
from vitedge.models.data import Files, Pixels
from vitedge.models.engine import Processes
from vitedge.models.vit import VisionTransformer
from vitedge.preprocessing import Preprocessing


def normalise(x: Tensor, preprocessing: Preprocessing) -> Tensor:
    """float32 [B, 3, h, w], 0 to 255 -> rescaled, less the mean, over the standard deviation."""
    mean, std = (x.new_tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (x * preprocessing.rescale - mean) / std


def placed(model: VisionTransformer, device: torch.device) -> VisionTransformer:
    """The model on a device, its convolutions in the order of axes that is fastest there."""
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


@torch.no_grad()
def evaluate(
    model: VisionTransformer, pictures: Pixels | Files, preprocessing: Preprocessing, group: Processes
) -> dict[str, float]:
    """Top-1 (percent), mean cross-entropy and number of pictures: float32, one view of each picture.

    The processes of the group share the pictures.
    """
    model.eval()
    right, loss = 0.0, 0.0
    mine = torch.arange(group.rank, len(pictures), group.count)
    for _, pixels, labels in pictures.batches(torch.split(mine, 250) if len(mine) else ()):
        x = normalise(pixels.to(group.device).permute(0, 3, 1, 2).float(), preprocessing)
        logits = model(x.contiguous(memory_format=torch.channels_last)).cpu()
        right += int((logits.argmax(1) == labels).sum())
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    right, loss = group.add([right, loss])
    count = len(pictures)
    return {"top1_percent": 100 * right / count, "loss": loss / count, "images": count}


def shipped_model(config: ViTConfig, arrays: Mapping[str, NDArray[np.float16]]) -> VisionTransformer:
    """The module that shipped weights stand for: BatchNorm folded, float16 cast up to float32."""
    model = VisionTransformer(config, folded=True)
    model.load_state_dict({name: torch.from_numpy(value.astype(np.float32)) for name, value in arrays.items()})
    return model
