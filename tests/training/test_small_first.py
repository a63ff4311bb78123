"""Runs whose first steps show smaller pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from tests.graph.vits import tiny
from vitedge.errors import UsageError
from vitedge.formats.architecture import BlockWidths, Rope
from vitedge.formats.model_folder import Model
from vitedge.graph.positions import resize_positions

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.training.initial import small_size  # noqa: E402
from vitedge.training.options import TrainOptions  # noqa: E402
from vitedge.training.train import train  # noqa: E402
from vitedge.training.vit import PatchEmbedding, VisionTransformer  # noqa: E402


@pytest.mark.parametrize("covers", [True, False])
def test_positions_are_resized_as_those_of_a_checkpoint(covers: bool) -> None:
    config = tiny(image_size=(32, 48), register_tokens=2, position_embedding_covers_prefix=covers)
    model = VisionTransformer(config)
    assert model.pos_embed is not None and model.positions((32, 48)) is model.pos_embed
    found = model.positions((24, 40))
    assert found is not None
    prefix = config.prefix_tokens if covers else 0
    grid = config.grid_of((24, 40))
    expected = resize_positions(model.pos_embed.detach().numpy(), config.grid, grid, prefix)
    assert found.shape == (1, prefix + grid[0] * grid[1], config.embed_dim)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-6)
    small = VisionTransformer(replace(config, image_size=(24, 40)))
    small.load_state_dict({**model.state_dict(), "pos_embed": found.detach()})
    images = torch.randn(2, 3, 24, 40)
    torch.testing.assert_close(model.features(images), small.features(images))
    model.features(images).sum().backward()
    assert model.pos_embed.grad is not None and model.pos_embed.grad.abs().min() > 0


def test_the_first_steps_show_smaller_pictures(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = list[tuple[int, ...]]()
    embed = PatchEmbedding.forward

    def watched(self: PatchEmbedding, image: torch.Tensor) -> torch.Tensor:
        if self.training:
            shown.append(tuple(image.shape[2:]))
        return embed(self, image)

    monkeypatch.setattr(PatchEmbedding, "forward", watched)
    options = TrainOptions(
        model="vit_nano_patch4_32",
        epochs=4,
        batch_size=9,
        holdout=0.25,
        small_first=0.5,
        threads=1,
        label_smoothing=0.0,
    )
    model = Model.open(train(str(pictures), options, tmp_path / "model"))
    assert shown == [(24, 24)] * 6 + [(32, 32)] * 6  # 27 pictures in batches of 9, four times
    assert model.record.preprocessing.size == (32, 32)
    assert model.record.training is not None and model.record.training["options"]["small_first"] == 0.5


def test_sizes_are_what_the_stem_takes() -> None:
    patches = tiny(image_size=(32, 48))  # of eight pixels
    assert small_size(patches, "train") == (24, 40) and small_size(replace(patches, image_size=(24, 64)), "train") == (
        16,
        48,
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tiny(rope=Rope(kind="axial"), position_embedding="none"), "with a rotary position embedding a model learns"),
        (tiny(image_size=(8, 8)), "pictures of 8×8 can't be smaller"),
        (
            tiny(depth=2, blocks=(BlockWidths(heads=3, query_key=8, value=8, mlp_hidden=8, tokens=9),) * 2),
            "with merged tokens a model learns",
        ),
    ],
)
def test_models_of_one_size_are_refused(config: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small_size(config, "train")  # type: ignore[arg-type]
