"""The first layer that whitens, stems that start as the identity, and runs with both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from tests.graph.vits import tiny
from vitedge.data.images import ImageSet
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import UsageError
from vitedge.formats.architecture import ConvStem
from vitedge.formats.model_folder import Model

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.training.augment import Augmentation  # noqa: E402
from vitedge.training.checkpoint import CHECKPOINT  # noqa: E402
from vitedge.training.data import Pixels  # noqa: E402
from vitedge.training.evaluate import model_input  # noqa: E402
from vitedge.training.initial import Start, starting_point  # noqa: E402
from vitedge.training.options import TrainOptions  # noqa: E402
from vitedge.training.train import train  # noqa: E402
from vitedge.training.vit import VisionTransformer  # noqa: E402
from vitedge.training.whitening import whiten, whitening_filters  # noqa: E402

OPTIONS = TrainOptions(
    model="vit_light_pool_32",
    epochs=2,
    batch_size=8,
    lr=2e-3,
    whiten=True,
    identity_stem=True,
    norm_scale_rate=0.0,
    norm_bias_rate=4.0,
    muon_momentum=0.6,
    label_smoothing=0.2,
    augmentation=Augmentation(crop_padding=2, alternate_flip=True),
    image_size=(16, 16),
    holdout=0.25,
    threads=1,
)


def photographs(count: int) -> Pixels:
    """Pictures with smooth structure, in colours that go together: [count, 12, 10]."""
    random = np.random.default_rng(0)
    coarse = random.normal(120, 50, (count, 4, 5, 1)) + random.normal(0, 15, (count, 4, 5, 3))
    pixels = coarse.repeat(3, axis=1).repeat(2, axis=2) + random.normal(0, 4, (count, 12, 10, 3))
    images = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))
    return Pixels(ImageSet(Path(), ("one",), (), ()), tuple(range(count)), torch.zeros(count).long(), images)


@pytest.mark.parametrize("kernel", [2, 3])
def test_filters_make_patches_white(kernel: int) -> None:
    pictures = photographs(300)
    preprocessing = Preprocessing(size=(12, 10), mean=(0.4, 0.5, 0.5), std=(0.2, 0.2, 0.3))
    filters = whitening_filters(pictures, preprocessing, kernel)
    size = 3 * kernel**2
    assert filters.shape == (2 * size, 3, kernel, kernel)
    assert torch.equal(filters[::2], -filters[1::2])
    x = model_input(pictures.pixels, preprocessing, torch.device("cpu"))
    white = torch.nn.functional.conv2d(x, filters[::2]).transpose(0, 1).flatten(1).double()  # [size, n]
    covariance = white @ white.T / white.shape[1]
    off_diagonal = covariance - covariance.diag().diag()
    assert off_diagonal.abs().max() < 1e-2
    assert covariance.diag().min() > 0.7 and covariance.diag().max() < 1.001  # weak directions aren't blown up
    assert torch.equal(filters, whitening_filters(pictures, preprocessing, kernel))


def test_the_whitening_layer_is_fixed_and_its_bias_learns() -> None:
    model = VisionTransformer(tiny(stem=ConvStem(channels=(24, 8), strides=(2, 4), reduction="max", first_kernel=2)))
    torch.nn.init.normal_(model.head.weight)
    whiten(model, photographs(50), Preprocessing(size=(12, 10)))
    model(torch.randn(2, 3, 32, 48)).square().sum().backward()
    first = model.patch_embed.stem[0].conv
    assert first.weight.grad is None and first.bias.grad is not None


def test_a_stem_that_starts_as_the_identity_passes_its_channels_on() -> None:
    stem = ConvStem(channels=(6, 8, 8), strides=(1, 2, 2), reduction="max", first_kernel=2)
    options = replace(OPTIONS, whiten=False)
    model = Start(tiny(stem=stem)).model(options)
    x = torch.randn(2, 6, 9, 9)
    convolved = model.patch_embed.stem[1].conv(x)
    torch.testing.assert_close(convolved[:, :6], x)
    assert convolved[:, 6:].abs().min() > 0
    torch.testing.assert_close(model.patch_embed.stem[2].conv(convolved), convolved)
    other = Start(tiny(stem=stem)).model(replace(options, identity_stem=False))
    assert (other.patch_embed.stem[1].conv(x)[:, :6] - x).abs().max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vit_nano_patch4_32"}, "--whiten is for convolutional stems; vit_nano_patch4_32 cuts patches"),
        ({"model": None, "init_from": "embedded"}, "--whiten is for fresh weights"),
        ({"model": None, "init_from": "embedded", "whiten": False}, "--identity-stem is for fresh weights"),
    ],
)
def test_what_no_stem_can_follow_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        starting_point(replace(OPTIONS, image_size=None, **changes), ("one", "two"), "train")


def test_a_run_with_everything_is_a_start_for_fine_tuning(pictures: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    once = train(str(pictures), OPTIONS, tmp_path / "once")
    record = Model.open(once).record
    assert record.architecture is not None and record.architecture.grid == (3, 3)
    arrays = load_file(once / "model.safetensors")
    kept = torch.load(tmp_path / "once.run" / CHECKPOINT, weights_only=True)["student"]
    filters = arrays["patch_embed.stem.0.conv.weight"]
    assert np.array_equal(filters[::2], -filters[1::2]), "the whitening layer was trained"
    for stage in (1, 2, 3, 4):
        assert torch.equal(kept[f"model.patch_embed.stem.{stage}.norm.weight"].unique(), torch.ones(1))
        assert kept[f"model.patch_embed.stem.{stage}.norm.bias"].abs().min() > 0
    tuned = TrainOptions(init_from=str(once), epochs=1, batch_size=8, lr=1e-3, holdout=0.25, threads=1)
    start = starting_point(tuned, ("blue", "green", "red"), "train")
    assert start.folded and not start.needs_heads
    assert Model.open(train(str(pictures), tuned, tmp_path / "tuned")).record.architecture == record.architecture
