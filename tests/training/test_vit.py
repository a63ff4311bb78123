"""The torch ViT: names and shapes, timm's semantics, and the fold of BatchNorm."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from tests.graph.vits import tiny
from vitedge.errors import UsageError
from vitedge.formats.architecture import ConvStem, Rope, ViTConfig
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
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


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


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_bias_of_the_keys_changes_nothing_and_gets_no_gradient(qk_norm: bool) -> None:
    model = VisionTransformer(tiny(qk_norm=qk_norm))
    torch.nn.init.normal_(model.head.weight)
    image = torch.randn(2, 3, 32, 48)
    before = model(image)
    before.square().sum().backward()
    attention = model.blocks[1].attn
    bias = attention.k_norm.bias if qk_norm else attention.qkv.bias
    keys = slice(None) if qk_norm else slice(24, 48)
    assert bias.grad is not None and (bias.grad[keys] == 0).all()
    assert qk_norm or (bias.grad[:24].abs().min() > 0 and bias.grad[48:].abs().min() > 0)
    with torch.no_grad():
        bias[keys] += torch.randn(bias[keys].shape)
    torch.testing.assert_close(model(image), before)


def test_the_bias_of_keys_that_positions_turn_gets_a_gradient() -> None:
    attention = VisionTransformer(tiny(rope=Rope(kind="axial"))).blocks[0].attn
    attention(torch.randn(2, 25, 24), torch.randn(1, 24, 4)).square().sum().backward()
    assert attention.qkv.bias.grad[24:48].abs().min() > 0


@pytest.mark.parametrize(
    "stem",
    [
        ConvStem(channels=(6, 8), strides=(2, 4)),
        ConvStem(channels=(6, 8, 9), strides=(1, 2, 2), reduction="max", first_kernel=2),
    ],
    ids=["strides", "max-pool"],
)
def test_folded_batch_norm_gives_the_same_logits(stem: ConvStem) -> None:
    config = tiny(stem=stem)
    model = VisionTransformer(config)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.5, 1.5) if name.endswith("running_var") else torch.nn.init.normal_(
                value, std=0.2
            )
    for stage in model.patch_embed.stem:
        if isinstance(stage.pool, torch.nn.MaxPool2d):
            torch.nn.init.uniform_(stage.norm.weight, 0.5, 1.5)  # only a positive one passes the MaxPool
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


def test_a_pooled_stem_keeps_its_scale_and_leaves_whole_windows() -> None:
    config = zoo_config("vit_edge_pool_32", num_classes=10)
    stages = VisionTransformer(config).patch_embed.stem
    learned = [getattr(stage.norm, "weight", None) is None or stage.norm.weight.requires_grad for stage in stages]
    assert learned == [True, False, True, False, True]
    x, sizes = torch.zeros(1, 3, 32, 32), []
    for stage in stages:
        x = stage(x)
        sizes.append(x.shape[-1])
    assert sizes == [31, 15, 15, 7, 7] and config.grid == (7, 7)
    with pytest.raises(ValueError, match="leaves no token"):
        tiny(stem=ConvStem(channels=(4,), strides=(2,), reduction="max", first_kernel=2), image_size=(2, 2))


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
