"""A first convolution that whitens patches of the data: fixed filters with uncorrelated outputs of one variance.

It spares training its slowest directions (Jordan, 2404.00498, after Page's and Balsam's CIFAR-10 records).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from vitedge.core.randomness import seed_of
from vitedge.data.preprocessing import Preprocessing
from vitedge.training.data import Files, Pixels
from vitedge.training.evaluate import model_input
from vitedge.training.vit import VisionTransformer

PICTURES = 2000  # that the patches come from
LARGEST_GAIN = 1 / 5e-4  # of a direction's variance; smaller variances are noise from rounding to bytes


def whiten(model: VisionTransformer, pictures: Pixels | Files, preprocessing: Preprocessing) -> None:
    """Set the stem's first convolution to whitening filters, and keep them from training.

    Args:
        model: one with a convolutional stem of at most ``most_channels`` in its first stage.
        pictures: whose patches are whitened.
        preprocessing: that the model's input has.
    """
    conv = cast(nn.Conv2d, cast(nn.Sequential, model.patch_embed.stem)[0].conv)
    filters = whitening_filters(pictures, preprocessing, conv.kernel_size[0])
    with torch.no_grad():
        conv.weight.copy_(filters[: len(conv.weight)])
        if conv.bias is not None:
            conv.bias.zero_()
    conv.weight.requires_grad_(False)


def most_channels(kernel: int) -> int:
    """Return the number of whitening filters for a kernel's size: each direction of its patches, and its opposite."""
    return 2 * 3 * kernel**2


def whitening_filters(pictures: Pixels | Files, preprocessing: Preprocessing, kernel: int) -> Tensor:
    """Return float32 [2·3·kernel², 3, kernel, kernel]: eigenvectors of the patches' covariance over their deviations.

    Pairs of a filter and its negative, which GELU doesn't treat alike, the direction of the largest variance first.
    """
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed_of("whitening")))[:PICTURES]
    total, count = torch.zeros(3 * kernel**2, 3 * kernel**2, dtype=torch.float64), 0
    for batch in pictures.batches(torch.split(order, 250)):
        x = model_input(batch.pixels, preprocessing, torch.device("cpu"))
        patches = nn.functional.unfold(x, kernel).transpose(1, 2).flatten(0, 1).double()  # [B·places, 3·kernel²]
        total, count = total + patches.T @ patches, count + len(patches)
    variances, directions = torch.linalg.eigh(total / count)  # ascending; directions are columns
    filters = (directions / (variances + 1 / LARGEST_GAIN).sqrt()).T.flip(0)
    largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
    filters = filters * largest.sign()  # an eigenvector's sign is arbitrary, so fix it for all machines
    return torch.stack([filters, -filters], dim=1).reshape(-1, 3, kernel, kernel).float()
