"""Augmentation keeps what it must keep: shapes, ranges, labels that sum to one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.models.augment import Augmentation, augment, mix, random_crop, random_erasing  # noqa: E402


@given(
    st.builds(
        Augmentation,
        crop_padding=st.integers(0, 4),
        flip=st.booleans(),
        rand_augment=st.sampled_from([0.0, 5.0, 10.0]),
        random_erasing=st.sampled_from([0.0, 1.0]),
    ),
    st.integers(1, 5),
    st.integers(0, 1 << 30),
)
@settings(max_examples=30, deadline=None)
def test_shapes_ranges_and_repeatability(how: Augmentation, batch: int, seed: int) -> None:
    pixels = torch.randint(0, 256, (batch, 12, 10, 3), dtype=torch.uint8)
    outputs = []
    for _ in range(2):
        torch.manual_seed(seed)
        outputs.append(augment(pixels, how))
    assert torch.equal(*outputs)
    assert outputs[0].shape == (batch, 3, 12, 10)
    assert outputs[0].min() >= 0 and outputs[0].max() <= 255


def test_nothing_chosen_changes_nothing() -> None:
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(augment(pixels, Augmentation(flip=False)), pixels.permute(0, 3, 1, 2).float())


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    x = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).reshape(2, 3, 6, 6)
    padded = torch.nn.functional.pad(x, [2] * 4, mode="reflect")
    windows = [padded[:, :, top : top + 6, left : left + 6] for top in range(5) for left in range(5)]
    seen = set()
    for _ in range(60):
        cropped = random_crop(x, 2)
        for image in range(2):
            matches = [number for number, window in enumerate(windows) if torch.equal(window[image], cropped[image])]
            assert len(matches) == 1
            seen.add(matches[0])
    assert len(seen) > 15  # the places vary


def test_erasing_covers_a_rectangle_in_the_chosen_part() -> None:
    x = torch.full((400, 3, 16, 16), -1.0)  # no noise is negative, so what is left can be told
    touched = (random_erasing(x, 0.3) != -1).flatten(1).any(1).float().mean()
    assert 0.2 < touched < 0.4


@pytest.mark.parametrize(
    "how", [Augmentation(mixup=0.4), Augmentation(cutmix=1.0), Augmentation(mixup=0.4, cutmix=1.0)]
)
def test_labels_are_mixed_as_the_images_are(how: Augmentation) -> None:
    x = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    targets = torch.eye(2)
    mixed_any = False
    for _ in range(20):
        mixed, labels = mix(x, targets, how)
        torch.testing.assert_close(labels.sum(1), torch.ones(2))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), labels[:, 1])
        mixed_any |= not torch.equal(mixed, x)
    assert mixed_any


def test_mixing_can_be_left_out() -> None:
    x, targets = torch.rand(4, 3, 8, 8), torch.eye(4)
    mixed, labels = mix(x, targets, Augmentation(mixup=1.0, mix_probability=0.0))
    assert torch.equal(mixed, x)
    assert torch.equal(labels, targets)
