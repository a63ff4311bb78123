"""The torch ViT: names and shapes, timm's semantics, and the fold of BatchNorm."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from tests.graph.vits import tiny
from vitedge.errors import UsageError
from vitedge.formats.architecture import ConvStem, ViTConfig
from vitedge.graph.author import expected_parameters
from vitedge.training.zoo import EMBEDDED, ZOO, zoo_config

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.training.evaluate import shipped_model  # noqa: E402
from vitedge.training.randomness import keys_of  # noqa: E402
from vitedge.training.vit import VisionTransformer, fold_batch_norm  # noqa: E402


def shrunk(config: ViTConfig) -> ViTConfig:
    """The same kind of model with two blocks, on four patches."""
    side = 2 * config.stem.stride
    return replace(config, depth=2, image_size=(side, side), num_classes=5)


@pytest.mark.parametrize("name", sorted(ZOO))
@pytest.mark.parametrize("folded", [False, True])
def test_names_and_shapes_are_the_contract(name: str, folded: bool) -> None:
    config = shrunk(ZOO[name].config)
    state = VisionTransformer(config, folded=folded).state_dict()
    ours = {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert ours == dict(expected_parameters(config, folded_stem=folded))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_logits_and_gradients(name: str) -> None:
    config = shrunk(ZOO[name].config)
    model = VisionTransformer(config, drop_path=0.5).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    logits = model(torch.randn(3, 3, *config.image_size))
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_positions_belong_to_prefix_or_patches() -> None:
    """timm: with no_embed_class the embedding is added to the patches before the prefix is put in front of them."""
    image = torch.zeros(1, 3, 32, 48)
    for covers, first in ((True, 3.0), (False, 2.0)):
        model = VisionTransformer(tiny(register_tokens=2, position_embedding_covers_prefix=covers))
        torch.nn.init.zeros_(model.patch_embed.proj.bias)
        torch.nn.init.constant_(model.cls_token, 2.0)
        torch.nn.init.constant_(model.pos_embed, 1.0)
        tokens = model.tokens(image)
        assert tokens.shape == (1, 1 + 2 + 24, 24)
        assert tokens[0, 0, 0].item() == first
        assert tokens[0, -1, 0].item() == 1.0


def test_distilled_logits_are_the_mean_of_both_heads() -> None:
    model = VisionTransformer(tiny(distillation_token=True)).eval()
    torch.nn.init.constant_(model.head.bias, 1.0)
    torch.nn.init.constant_(model.head_dist.bias, 4.0)
    assert model(torch.zeros(1, 3, 32, 48)).flatten().tolist() == [2.5] * 7  # fresh heads have zero weights


def test_average_pooling_leaves_the_prefix_out() -> None:
    model = VisionTransformer(tiny(pool="avg", register_tokens=3, depth=1)).eval()
    torch.nn.init.normal_(model.head.weight)
    image = torch.randn(2, 3, 32, 48)
    expected = model.head(model.features(image)[:, 4:].mean(1))
    torch.testing.assert_close(model(image), expected)


def test_stochastic_depth_keeps_the_expectation() -> None:
    model = VisionTransformer(tiny(depth=3), drop_path=0.5).train()
    keys = keys_of(0, torch.arange(20000))
    model.draw_paths(keys)
    x = torch.ones(20000, 1, 1)
    branches = [model.blocks[1].drop_path1, model.blocks[1].drop_path2]  # halfway: 0.25
    first, second = (branch(x) for branch in branches)
    assert first.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert first.mean().item() == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(first, second)
    assert torch.equal(model.blocks[0].drop_path1(x), x)  # the first block's rate is 0
    assert torch.equal(branches[0].eval()(x), x)
    model.draw_paths(keys[:100])
    assert torch.equal(branches[1](x[:100]), second[:100])  # an image's key decides


def test_folded_batch_norm_gives_the_same_logits() -> None:
    config = tiny(stem=ConvStem(channels=(6, 8), strides=(2, 4)))
    model = VisionTransformer(config)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.5, 1.5) if name.endswith("running_var") else torch.nn.init.normal_(
                value, std=0.2
            )
    arrays = fold_batch_norm(model.state_dict())
    assert all(value.dtype == np.float32 for value in arrays.values())
    folded = VisionTransformer(config, folded=True)
    folded.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    image = torch.randn(4, 3, 32, 48)
    with torch.inference_mode():
        torch.testing.assert_close(folded.eval()(image), model.eval()(image), rtol=1e-4, atol=1e-5)
    halves = {name: value.astype(np.float16) for name, value in arrays.items()}
    with torch.inference_mode():
        torch.testing.assert_close(shipped_model(config, halves).eval()(image), model(image), rtol=0.02, atol=0.02)


def test_the_embedded_model_keeps_its_bounds() -> None:
    config = zoo_config(EMBEDDED, num_classes=10)
    parameters = sum(int(np.prod(shape)) for _, shape in expected_parameters(config, folded_stem=True))
    assert parameters <= 3_000_000
    assert config.macs() <= 250_000_000


def test_the_zoo_names_the_nearest_and_checks_sizes() -> None:
    with pytest.raises(UsageError, match="nearest is 'vit_tiny_patch16_224'"):
        zoo_config("vit_tiny_patch16_225", num_classes=2)
    with pytest.raises(UsageError, match="not a positive multiple"):
        zoo_config("vit_tiny_patch16_224", num_classes=2, image_size=(100, 100))
    assert zoo_config("vit_tiny_patch16_224", num_classes=2, image_size=(64, 96)).grid == (4, 6)
