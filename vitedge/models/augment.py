"""Augmentation of whole batches as tensor operations, and the mixing of images and labels.

Per-image work in Python costs more than a small model's training step, so every operation here treats the batch at
once, with one random number (or one per image) drawn from torch's global generator, which the training loop seeds
anew for every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training batch. Zero switches a part off."""

    crop_padding: int = 0  # pixels of reflected border; the image is cut out again at a random place
    flip: bool = True  # left and right exchanged, for half of the images
    rand_augment: float = 0.0  # magnitude 0 to 10 of two random operations per image (Cubuk et al., 1909.13719)
    random_erasing: float = 0.0  # probability that a rectangle of noise covers part of an image (Zhong, 1708.04896)
    mixup: float = 0.0  # α of Beta(α, α): images are blended in pairs (Zhang et al., 1710.09412)
    cutmix: float = 0.0  # α of Beta(α, α): a rectangle comes from another image (Yun et al., 1905.04899)
    mix_probability: float = 1.0  # of mixing a batch at all


def augment(pixels: Tensor, how: Augmentation) -> Tensor:
    """Geometry and colour: uint8 [B, h, w, 3] -> float32 [B, 3, h, w], 0 to 255."""
    x = pixels.permute(0, 3, 1, 2).float()  # [B, h, w, 3] -> [B, 3, h, w]
    if how.crop_padding:
        x = random_crop(x, how.crop_padding)
    if how.flip:
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
    if how.rand_augment:
        x = rand_augment(x, how.rand_augment)
    if how.random_erasing:
        x = random_erasing(x, how.random_erasing)
    return x


def random_crop(x: Tensor, padding: int) -> Tensor:
    """Each image is shifted by up to ``padding`` pixels along both axes; the border is reflected."""
    batch, _, height, width = x.shape
    windows = functional.pad(x, [padding] * 4, mode="reflect").unfold(2, height, 1).unfold(3, width, 1)
    top, left = torch.randint(0, 2 * padding + 1, (2, batch), device=x.device)
    return windows[torch.arange(batch, device=x.device), :, top, left]  # [B, 3, offsets, offsets, h, w] -> [B, 3, h, w]


def random_erasing(x: Tensor, probability: float) -> Tensor:
    """A rectangle of 2 to 33 % of the area is filled with noise, in a part of the images."""
    batch = len(x)
    area = x.new_empty(batch).uniform_(0.02, 0.33)
    aspect = x.new_empty(batch).uniform_(math.log(0.3), math.log(1 / 0.3)).exp()
    inside = _rectangles(x, (area * aspect).sqrt(), (area / aspect).sqrt())
    chosen = (torch.rand(batch, device=x.device) < probability)[:, None, None]
    noise = torch.randn_like(x) * 64 + 128
    return torch.where((inside & chosen)[:, None], noise.clamp(0, 255), x)


def rand_augment(x: Tensor, magnitude: float) -> Tensor:
    """Two operations per image, drawn from nine, each at a strength up to ``magnitude`` tenths of its range."""
    for _ in range(2):
        operation = torch.randint(0, 9, (len(x),), device=x.device)
        strength = (torch.rand(len(x), device=x.device) * 2 - 1) * magnitude / 10  # -1 to 1 at magnitude 10
        x = _affine(x, operation, strength)
        x = _colour(x, operation, strength)
    return x.clamp(0, 255)


def _affine(x: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Operations 0 to 4: rotation (30°), shear along x and y (0.3), translation along x and y (0.45 of the side)."""
    chosen = (operation < 5).nonzero().flatten()
    if not len(chosen):
        return x
    which, amount = operation[chosen], strength[chosen]
    zero = torch.zeros_like(amount)
    angle = torch.where(which == 0, amount * math.radians(30), zero)
    shear_x, shear_y, shift_x, shift_y = (
        torch.where(which == number, amount * factor, zero)
        for number, factor in ((1, 0.3), (2, 0.3), (3, 0.9), (4, 0.9))
    )
    rows = [
        torch.stack([angle.cos(), shear_x - angle.sin(), shift_x], dim=1),
        torch.stack([shear_y + angle.sin(), angle.cos(), shift_y], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(x[chosen].shape), align_corners=False)
    moved = functional.grid_sample(x[chosen] - 128, grid, align_corners=False) + 128  # outside becomes grey
    return x.index_copy(0, chosen, moved)


def _colour(x: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Operations 5 to 8: brightness, contrast, saturation (factor 1 ± 0.9), solarisation (above a threshold)."""
    which, amount = operation[:, None, None, None], strength[:, None, None, None]
    factor = 1 + 0.9 * amount
    luma = x.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = (x * luma).sum(1, keepdim=True)  # [B, 1, h, w]
    x = torch.where(which == 5, x * factor, x)
    x = torch.where(which == 6, torch.lerp(grey.mean((2, 3), keepdim=True).expand_as(x), x, factor), x)
    x = torch.where(which == 7, torch.lerp(grey.expand_as(x), x, factor), x)
    x = torch.where((which == 8) & (x >= 256 * (1 - amount.abs())), 255 - x, x)
    return x.clamp(0, 255)


def mix(x: Tensor, targets: Tensor, how: Augmentation) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix of the batch with itself in reverse order.

    Args:
        x: images [B, 3, h, w].
        targets: class probabilities [B, classes].
    """
    kinds = [kind for kind, alpha in (("mixup", how.mixup), ("cutmix", how.cutmix)) if alpha > 0]
    if not kinds or float(torch.rand(())) >= how.mix_probability:
        return x, targets
    kind = kinds[int(torch.randint(0, len(kinds), ()))]
    alpha = how.mixup if kind == "mixup" else how.cutmix
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    if kind == "mixup":
        return torch.lerp(x.flip(0), x, share), torch.lerp(targets.flip(0), targets, share)
    side = x.new_tensor([math.sqrt(1 - share)])
    inside = _rectangles(x, side, side)  # one for the whole batch
    share = 1 - float(inside.float().mean())  # the border cuts some rectangles: what was really kept
    return torch.where(inside[:, None], x.flip(0), x), torch.lerp(targets.flip(0), targets, share)


def _rectangles(x: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """bool [n, h, w]: true inside a rectangle at a random centre; ``tall`` and ``wide`` [n] are parts of the sides."""
    height, width = x.shape[2:]
    rows, columns = ((torch.arange(side, device=x.device) + 0.5) / side for side in (height, width))
    centre_y, centre_x = torch.rand(2, len(tall), 1, device=x.device)
    vertical: Tensor = (rows - centre_y).abs() < tall[:, None] / 2  # [n, h]
    horizontal: Tensor = (columns - centre_x).abs() < wide[:, None] / 2  # [n, w]
    return vertical[:, :, None] & horizontal[:, None, :]
