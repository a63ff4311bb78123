"""Another picture size and fewer classes: what changes, and that everything else stays."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from vitedge.errors import ModelError, UsageError
from vitedge.formats.architecture import BlockWidths, Rope
from vitedge.graph.adapting import with_classes, with_resolution
from vitedge.graph.reference import reference_logits

NARROW = BlockWidths(heads=2, query_key=4, value=6, mlp_hidden=16, rope_pairs=(1, 3))


@pytest.mark.parametrize("kept", [[3], [6, 0, 2]])
@pytest.mark.parametrize("distilled", [False, True])
def test_logits_of_kept_classes_are_what_they_were(kept: list[int], distilled: bool) -> None:
    config = tiny(distillation_token=distilled)
    arrays, images = random_arrays(config), random_images(config, 2)
    before = reference_logits(config, arrays, images, mean=MEAN, std=STD)
    new, fewer = with_classes(config, arrays, kept)
    assert new == replace(config, num_classes=len(kept)) and arrays["head.bias"].shape == (7,)
    np.testing.assert_allclose(reference_logits(new, fewer, images, mean=MEAN, std=STD), before[:, kept], rtol=1e-9)


@pytest.mark.parametrize(
    ("kept", "problem"),
    [([], "no class is named"), ([1, 2, 1], "a class is named twice"), ([7], "class 7 doesn't"), ([-1], "class -1")],
)
def test_classes_that_make_no_sense_are_refused(kept: list[int], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        with_classes(tiny(), random_arrays(tiny()), kept)


@pytest.mark.parametrize("covers", [True, False])
def test_positions_of_a_constant_picture_stay_constant(covers: bool) -> None:
    """Weights of a resize add up to 1, and tokens before the patches keep what is theirs."""
    config = tiny(register_tokens=1, position_embedding_covers_prefix=covers)
    arrays = random_arrays(config)
    patches = 4 * 6
    arrays["pos_embed"][:, -patches:] = 0.25
    new, resized = with_resolution(config, arrays, (16, 72))
    prefix = 2 if covers else 0
    assert new == replace(config, image_size=(16, 72)) and resized["pos_embed"].shape == (1, prefix + 2 * 9, 24)
    np.testing.assert_array_equal(resized["pos_embed"][:, :prefix], arrays["pos_embed"][:, :prefix])
    np.testing.assert_allclose(resized["pos_embed"][:, prefix:], 0.25, rtol=1e-6)
    assert all(resized[name] is arrays[name] for name in arrays if name != "pos_embed")


@pytest.mark.parametrize("kind", ["axial", "centred"])
def test_a_rotary_embedding_follows_the_grid(kind: str) -> None:
    """And a model without any positions but these runs at the other size, with widths of its own for each block."""
    rope = Rope(kind=kind)  # type: ignore[arg-type]
    config = tiny(rope=rope, position_embedding="none", blocks=(NARROW, tiny().block(0)))
    arrays = random_arrays(config)
    new, same = with_resolution(config, arrays, (64, 32))
    assert new.grid == (8, 4) and new.block(0) == NARROW and same == arrays
    logits = reference_logits(new, same, random_images(new, 1), mean=MEAN, std=STD)
    assert logits.shape == (1, 7) and np.isfinite(logits).all()


def test_a_size_that_the_stem_does_not_divide_is_refused() -> None:
    with pytest.raises(ModelError, match="not a positive multiple of the stem's stride 8"):
        with_resolution(tiny(), random_arrays(tiny()), (20, 32))


def test_merged_tokens_fit_one_size() -> None:
    merged = BlockWidths(heads=3, query_key=8, value=8, mlp_hidden=40, tokens=9)
    config = tiny(blocks=(merged, tiny().block(0)))
    arrays = random_arrays(config)
    assert with_resolution(config, arrays, config.image_size) == (config, arrays)
    with pytest.raises(ModelError, match="it merges tokens by their places in the picture"):
        with_resolution(config, arrays, (64, 32))
    assert with_classes(config, arrays, [1, 2])[0].block(0) == merged
