"""Augmentation keeps what it must keep: shapes, ranges, labels that sum to one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from vitedge.errors import UsageError

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.training.augment import _OPERATIONS as OPERATIONS  # noqa: E402
from vitedge.training.augment import (  # noqa: E402
    Augmentation,
    augment,
    augmented_view,
    draw_mix,
    rand_augment,
    random_crop,
    random_erasing,
)
from vitedge.training.randomness import keys_of, uniform, uniform_fields  # noqa: E402

BRANCHES = st.builds(
    Augmentation,
    crop_padding=st.integers(0, 4),
    flip=st.booleans(),
    rand_augment=st.sampled_from([0.0, 5.0, 10.0]),
    random_erasing=st.sampled_from([0.0, 1.0]),
)


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return keys_of(seed, torch.arange(count))


@given(BRANCHES, st.integers(1, 5), st.integers(0, 1 << 30), st.data())
@settings(max_examples=30, deadline=None)
def test_an_image_is_changed_by_its_key_alone(how: Augmentation, batch: int, seed: int, data: st.DataObject) -> None:
    pixels = torch.randint(0, 256, (batch, 12, 10, 3), dtype=torch.uint8)
    whole = augment(pixels, how, keys(batch, seed))
    assert whole.shape == (batch, 3, 12, 10)
    assert whole.min() >= 0 and whole.max() <= 255
    order = torch.tensor(data.draw(st.permutations(range(batch))))
    cut = data.draw(st.integers(0, batch - 1))
    parts = [augment(pixels[part], how, keys(batch, seed)[part]) for part in (order[:cut], order[cut:]) if len(part)]
    torch.testing.assert_close(torch.cat(parts), whole[order], rtol=0, atol=1e-3)


def test_random_numbers_are_even_and_differ_by_key_and_purpose() -> None:
    numbers = uniform(keys(100_000), "flip")
    assert numbers.min() >= 0 and numbers.max() < 1
    torch.testing.assert_close(numbers.histc(10, 0, 1) / 100_000, torch.full((10,), 0.1), rtol=0, atol=0.005)
    for other in (uniform(keys(100_000), "crop"), uniform(keys(100_000, 1), "flip"), numbers.roll(1)):
        assert abs(float(torch.corrcoef(torch.stack([numbers, other]))[0, 1])) < 0.02
    fields = uniform_fields(keys(50), "noise", 2000)
    assert abs(float(fields.mean()) - 0.5) < 0.01 and len(fields.unique()) > 0.99 * 100_000 - 1000


def test_nothing_chosen_changes_nothing() -> None:
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(
        augment(pixels, Augmentation(crop_padding=0, flip=False), keys(4)), pixels.permute(0, 3, 1, 2).float()
    )


def test_alternating_views_show_each_picture_and_its_mirror_image() -> None:
    pixels = torch.randint(0, 256, (400, 4, 6, 3), dtype=torch.uint8)
    how = Augmentation(crop_padding=0, alternate_flip=True)
    shown = [augmented_view(pixels, how, 7, view, torch.arange(400)) for view in range(3)]
    assert torch.equal(shown[1], shown[0].flip(3)) and torch.equal(shown[2], shown[0])
    plain = pixels.permute(0, 3, 1, 2).float()
    mirrored = (shown[0] != plain).flatten(1).any(1)
    assert torch.equal(shown[0][mirrored], plain[mirrored].flip(3)) and 0.4 < mirrored.float().mean() < 0.6
    part = torch.arange(50, 60)
    assert torch.equal(augmented_view(pixels[part], how, 7, 1, part), shown[1][part])  # the picture's number decides
    with pytest.raises(UsageError, match="flip is off"):
        Augmentation(alternate_flip=True, flip=False)


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    x = torch.arange(3 * 6 * 6, dtype=torch.float32).reshape(1, 3, 6, 6).expand(200, 3, 6, 6)
    padded = torch.nn.functional.pad(x[:1], [2] * 4, mode="reflect")[0]
    windows = [padded[:, top : top + 6, left : left + 6] for top in range(5) for left in range(5)]
    seen = set()
    for image in random_crop(x, 2, keys(200)):
        matches = [number for number, window in enumerate(windows) if torch.equal(window, image)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 20  # the places vary


def test_erasing_covers_a_whole_rectangle_in_the_chosen_part() -> None:
    x = torch.full((400, 3, 16, 16), -1.0)  # no noise is negative, so what is left can be told
    touched = (random_erasing(x, 0.3, keys(400)) != -1)[:, 0]
    assert 0.2 < touched.flatten(1).any(1).float().mean() < 0.4
    shares = touched.flatten(1).float().mean(1)
    shares = shares[shares > 0]
    assert shares.max() <= 0.5 and shares.mean() == pytest.approx(0.175, abs=0.03)  # 2 to 33 %, in whole pixels
    for image in touched[touched.flatten(1).any(1)]:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        assert image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()


def _pillow(x: torch.Tensor) -> Image.Image:
    return Image.fromarray(x.permute(1, 2, 0).byte().numpy())


@pytest.mark.parametrize(
    ("number", "strength", "expected", "allowed"),
    [
        (1, 0.0, ImageOps.autocontrast, 1),
        (2, 0.0, ImageOps.equalize, 0),
        (3, 1.0, lambda image: image.rotate(30, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)), 60),
        (8, -0.5, lambda image: ImageOps.solarize(image, 128), 0),
        (9, 0.5, lambda image: ImageOps.posterize(image, 6), 0),
        (10, 1.0, lambda image: ImageEnhance.Color(image).enhance(1.9), 2),
        (11, -1.0, lambda image: ImageEnhance.Contrast(image).enhance(0.1), 2),
        (12, 0.5, lambda image: ImageEnhance.Brightness(image).enhance(1.45), 1),
        (13, 1.0, lambda image: ImageEnhance.Sharpness(image).enhance(1.9), 2),
    ],
)
def test_operations_are_pillows(number: int, strength: float, expected: object, allowed: int) -> None:
    ramp = torch.arange(24.0)[:, None] * 7 + torch.arange(16.0) * 3  # smooth, and not square
    x = torch.stack([ramp, ramp.flip(0), 230 - ramp])[None].clamp(0, 255).round()
    operation = OPERATIONS[number]
    assert operation is not None and callable(expected)
    found = operation(x, torch.full((1, 1, 1, 1), strength)).clamp(0, 255).round()[0]
    reference = torch.from_numpy(np.array(expected(_pillow(x[0])))).permute(2, 0, 1).float()
    difference = (found - reference).abs()
    if number == 3:  # by interpolation, and at the border by its rule: most pixels agree
        difference = difference[:, 4:-4, 3:-3]
        assert difference.median() <= 4
    assert difference.max() <= allowed


def test_two_of_fourteen_operations_up_to_the_magnitude() -> None:
    x = torch.randint(0, 256, (500, 3, 8, 8)).float()
    assert len(OPERATIONS) == 14
    changed = (rand_augment(x, 5.0, keys(500)) != x).flatten(1).any(1).float().mean()
    assert changed > 0.9  # the identity twice: 1 of 196, and weak or idle operations


@pytest.mark.parametrize(
    "how", [Augmentation(mixup=0.4), Augmentation(cutmix=1.0), Augmentation(mixup=0.4, cutmix=1.0)]
)
def test_labels_are_mixed_as_the_images_are(how: Augmentation) -> None:
    x = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    targets = torch.eye(2)
    shares = set()
    for _ in range(20):
        mix = draw_mix(how, (8, 8))
        assert mix is not None
        mixed, labels = mix.images(x), mix.targets(targets)
        torch.testing.assert_close(labels.sum(1), torch.ones(2))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), labels[:, 1])
        shares.add(mix.share)
    assert len(shares) > 5


def test_mixing_can_be_left_out() -> None:
    assert draw_mix(Augmentation(mixup=1.0, mix_probability=0.0), (8, 8)) is None
    assert draw_mix(Augmentation(), (8, 8)) is None
