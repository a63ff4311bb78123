"""Augmentation of whole batches as tensor operations, and the mixing of images and labels.

Per-image work in Python costs more than a small model's training step, so every operation here treats the batch at
once. What happens to an image depends on its key alone (:mod:`vitedge.training.randomness`), so a batch may be split at
will; mixing depends on the step, and pairs the image at place ``i`` of B with the one at ``B - 1 - i``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vitedge.core.randomness import seed_of
from vitedge.training.options import Augmentation
from vitedge.training.randomness import keys_of, uniform, uniform_fields


def augment(pixels: Tensor, how: Augmentation, keys: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Augment geometry and colour.

    Args:
        pixels: uint8 [B, h, w, 3].
        how: what is done.
        keys: one for each picture, [B].
        mirrored: which pictures are mirrored, bool [B]; None: drawn by the keys.

    Returns:
        float32 [B, 3, h, w], 0 to 255.
    """
    x = pixels.permute(0, 3, 1, 2).float()  # [B, h, w, 3] -> [B, 3, h, w]
    if how.crop_padding:
        x = random_crop(x, how.crop_padding, keys)
    if how.flip:
        mirrored = _by_half(keys) if mirrored is None else mirrored
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    if how.rand_augment:
        x = rand_augment(x, how.rand_augment, keys)
    if how.random_erasing:
        x = random_erasing(x, how.random_erasing, keys)
    return x


def augmented_view(pixels: Tensor, how: Augmentation, seed: int, view: int, indices: Tensor) -> Tensor:
    """Augment as :func:`augment`, by the run's seed, the view (an epoch, say) and the pictures' numbers, int64 [B].

    With ``alternate_flip`` the first view mirrors half of the pictures, and each view those that the last didn't.
    """
    mirrored = None
    if how.alternate_flip:
        mirrored = _by_half(keys_of(seed_of(seed, "view", 0), indices)) ^ bool(view % 2)
    return augment(pixels, how, keys_of(seed_of(seed, "view", view), indices), mirrored)


def _by_half(keys: Tensor) -> Tensor:
    return uniform(keys, "flip") < 0.5


def random_crop(x: Tensor, padding: int, keys: Tensor) -> Tensor:
    """Shift each image by up to ``padding`` pixels along both axes; the border is reflected."""
    _, _, height, width = x.shape
    windows = functional.pad(x, [padding] * 4, mode="reflect").unfold(2, height, 1).unfold(3, width, 1)
    top, left = ((uniform(keys, side) * (2 * padding + 1)).long() for side in ("top", "left"))
    return windows[torch.arange(len(x), device=x.device), :, top, left]  # [B, 3, places, places, h, w] -> [B, 3, h, w]


def random_erasing(x: Tensor, probability: float, keys: Tensor) -> Tensor:
    """Replace a rectangle of 2 to 33 % of the area, wholly inside, by noise from 0 to 255, in some of the images."""
    chosen = (uniform(keys, "erase") < probability).nonzero().flatten()
    if not len(chosen):
        return x
    keys, part = keys[chosen], x[chosen]
    area = 0.02 + 0.31 * uniform(keys, "area")
    aspect = ((2 * uniform(keys, "aspect") - 1) * math.log(1 / 0.3)).exp()  # 0.3 to 1/0.3
    tall, wide = (area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)
    inside = _rectangles(x, uniform(keys, "erase y") * (1 - tall), uniform(keys, "erase x") * (1 - wide), tall, wide)
    noise = 255 * uniform_fields(keys, "noise", part[0].numel()).reshape(part.shape)
    return x.index_copy(0, chosen, torch.where(inside[:, None], noise, part))


def rand_augment(x: Tensor, magnitude: float, keys: Tensor) -> Tensor:
    """Apply two operations to each image, drawn with equal chances from the paper's fourteen.

    The strength of each is drawn anew, evenly up to ``magnitude`` tenths of its range and with either sign: the
    "random magnitude" of the paper, whose variants of the schedule it found equally good.
    """
    for turn in ("first", "second"):
        operation = (uniform(keys, f"{turn} operation") * len(_OPERATIONS)).long()
        strength = (2 * uniform(keys, f"{turn} strength") - 1) * magnitude / 10  # -1 to 1 at magnitude 10
        for number, function in enumerate(_OPERATIONS):
            chosen = (operation == number).nonzero().flatten()
            if len(chosen) and function is not None:
                x = x.index_copy(0, chosen, function(x[chosen], strength[chosen][:, None, None, None]).clamp(0, 255))
    return x


def _affine(rows: Callable[[Tensor, float], list[list[Tensor | float]]]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return an operation from two rows that map output pixels, from the centre, to input pixels; outside is grey.

    ``rows`` takes strengths [B] and the ratio height/width, by which rows and columns differ in normalised units.
    """

    def moved(x: Tensor, strength: Tensor) -> Tensor:
        amount = strength.flatten()
        matrix = torch.stack(
            [
                torch.stack([torch.as_tensor(entry, device=x.device).expand_as(amount) for entry in row], dim=1)
                for row in rows(amount, x.shape[2] / x.shape[3])
            ],
            dim=1,
        )  # [B, 2, 3]
        grid = functional.affine_grid(matrix.float(), list(x.shape), align_corners=False)
        return functional.grid_sample(x - 128, grid, align_corners=False) + 128

    return moved


def _rotation(amount: Tensor, ratio: float) -> list[list[Tensor | float]]:
    angle = amount * math.radians(30)
    return [[angle.cos(), -angle.sin() * ratio, 0.0], [angle.sin() / ratio, angle.cos(), 0.0]]


def _grey(x: Tensor) -> Tensor:
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)  # [B, 1, h, w]


def _blend(base: Tensor, x: Tensor, strength: Tensor) -> Tensor:
    """Blend 0.1 of the way from ``base`` to the image at strength -1, 1.9 at strength 1."""
    return torch.lerp(base.expand_as(x), x, 1 + 0.9 * strength)


def _sharpness(x: Tensor, strength: Tensor) -> Tensor:
    kernel = x.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = functional.conv2d(x, kernel / 13, groups=3)
    return _blend(smooth, x, strength)


def _autocontrast(x: Tensor, _: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) * 255 / (high - low).clamp_min(1e-3), x)


def _equalise(x: Tensor, _: Tensor) -> Tensor:
    """Equalise histograms, channel by channel, as Pillow does."""
    levels = x.round().long().clamp(0, 255).flatten(2)  # [B, 3, h·w]
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    last = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - last) // 255
    table = ((counts.cumsum(2) - counts + step // 2) // step.clamp_min(1)).clamp(0, 255)
    return torch.where(step[..., None] > 0, table.gather(2, levels).reshape(x.shape).float(), x)


def _posterise(x: Tensor, strength: Tensor) -> Tensor:
    """Reduce to 4 bits at full strength."""
    quantum = torch.exp2((4 * strength.abs()).round())
    return (x / quantum).floor() * quantum


#: Of (images [B, 3, h, w] from 0 to 255, strengths [B, 1, 1, 1] from -1 to 1); None leaves an image as it is.
_OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor] | None, ...] = (
    None,
    _autocontrast,
    _equalise,
    _affine(_rotation),  # 30°
    _affine(lambda amount, ratio: [[1.0, 0.3 * amount * ratio, 0.0], [0.0, 1.0, 0.0]]),  # shear along x
    _affine(lambda amount, ratio: [[1.0, 0.0, 0.0], [0.3 * amount / ratio, 1.0, 0.0]]),  # shear along y
    _affine(lambda amount, _: [[1.0, 0.0, 0.9 * amount], [0.0, 1.0, 0.0]]),  # along x by 0.45 of the width
    _affine(lambda amount, _: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.9 * amount]]),  # along y by 0.45 of the height
    lambda x, strength: torch.where(x >= 256 * (1 - strength.abs()), 255 - x, x),  # solarise
    _posterise,
    lambda x, strength: _blend(_grey(x), x, strength),  # colour
    lambda x, strength: _blend(_grey(x).mean((2, 3), keepdim=True), x, strength),  # contrast
    lambda x, strength: _blend(torch.zeros_like(x), x, strength),  # brightness
    _sharpness,
)


@dataclass(frozen=True)
class Mix:
    """A way to mix a whole batch with itself in reverse order."""

    share: float  # fraction of each image that stays
    inside: Tensor | None = None  # cutmix: bool [1, h, w], pixels that come from the other image; None: mixup

    def images(self, x: Tensor) -> Tensor:
        """Mix images [B, 3, h, w] -> [B, 3, h, w]."""
        if self.inside is None:
            return torch.lerp(x.flip(0), x, self.share)
        return torch.where(self.inside[:, None].to(x.device), x.flip(0), x)

    def targets(self, targets: Tensor) -> Tensor:
        """Mix labels as probabilities, or a teacher's outputs: [B, …] -> [B, …]."""
        return torch.lerp(targets.flip(0), targets, self.share)


def draw_mix(how: Augmentation, size: tuple[int, int]) -> Mix | None:
    """Draw how to mix the next batch of images of (height, width), from torch's global generator; None: not at all."""
    kinds = [kind for kind, alpha in (("mixup", how.mixup), ("cutmix", how.cutmix)) if alpha > 0]
    if not kinds or float(torch.rand(())) >= how.mix_probability:
        return None
    kind = kinds[int(torch.randint(0, len(kinds), ()))]
    alpha = how.mixup if kind == "mixup" else how.cutmix
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    if kind == "mixup":
        return Mix(share)
    side = torch.tensor([math.sqrt(1 - share)])
    centre_y, centre_x = torch.rand(2, 1)
    inside = _rectangles(torch.empty(1, 3, *size), centre_y - side / 2, centre_x - side / 2, side, side)
    return Mix(1 - float(inside.float().mean()), inside)  # the border cuts some rectangles, so count the pixels


def _rectangles(x: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """Return bool [n, h, w] for images [B, 3, h, w]: true in rectangles, in fractions of the sides, each float [n]."""
    rows, columns = ((torch.arange(side, device=x.device) + 0.5) / side for side in x.shape[2:])
    vertical: Tensor = (rows >= top[:, None]) & (rows < (top + tall)[:, None])  # [n, h]
    horizontal: Tensor = (columns >= left[:, None]) & (columns < (left + wide)[:, None])  # [n, w]
    return vertical[:, :, None] & horizontal[:, None, :]
