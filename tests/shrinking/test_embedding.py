"""A narrower embedding: where it's found, what it keeps, and what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.graph.test_canonical import run
from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from tests.shrinking.test_components import authored
from tests.shrinking.test_tokens import read
from vitedge.errors import UsageError
from vitedge.formats.architecture import ConvStem, Rope, ViTConfig
from vitedge.graph.author import author_vit
from vitedge.graph.reference import reference_logits
from vitedge.shrinking.activations import Activations
from vitedge.shrinking.algebra import mixing
from vitedge.shrinking.choose import Option, schedules_of
from vitedge.shrinking.components import Component, check_widths, components, truncate
from vitedge.shrinking.costs import costs
from vitedge.shrinking.embedding import NAME, Directions, Embedding, embedding_of, normalised
from vitedge.shrinking.moments import Rows
from vitedge.shrinking.rewrite import Rewriter
from vitedge.shrinking.shrink import shrink
from vitedge.shrinking.tokens import with_merged

AVERAGE = {"class_token": False, "pool": "avg"}
FORMS = pytest.mark.parametrize(
    "changes",
    [
        {"register_tokens": 2},
        AVERAGE,
        {**AVERAGE, "final_norm": "fc_norm", "position_embedding": "none"},
        {"pool": "token_avg"},
        {"distillation_token": True},
        {"rope": Rope(kind="axial")},
        {"qk_norm": True, "qkv_bias": False},
        {"mlp": "swiglu", "layer_scale": True},
        {"stem": ConvStem(channels=(6, 10), strides=(2, 4))},
    ],
    ids=str,
)
PICTURES = random_images(tiny(), 48, seed=7)


def found(model: onnx.ModelProto) -> Embedding:
    embedding = embedding_of(model)
    assert embedding is not None
    return embedding


def with_basis(model: onnx.ModelProto, basis: NDArray[np.float64]) -> onnx.ModelProto:
    rewriter = Rewriter(model)
    rewriter.embedding(found(model), basis)
    return rewriter.finished()


def turn(width: int, other: int) -> NDArray[np.float64]:
    """Random channels instead of others, [width, other], with a mean of zero on both sides."""
    least = min(width, other) - 1
    random = np.random.default_rng(5).standard_normal((width, least))
    vectors = np.linalg.qr(np.concatenate([np.ones((width, 1)), random], axis=1))[0][:, 1:]
    return np.asarray(vectors @ mixing(other)[1 : least + 1])


def deviation(first: onnx.ModelProto, second: onnx.ModelProto, pictures: NDArray[np.uint8] = PICTURES) -> float:
    whole = run(first, pictures)
    return float(np.abs(run(second, pictures) - whole).max() / np.abs(whole).max())


@FORMS
def test_turned_channels_change_nothing(changes: dict[str, Any]) -> None:
    model = authored(tiny(**changes))
    turned = with_basis(model, turn(24, 24))
    onnx.checker.check_model(turned, full_check=True)
    assert deviation(model, turned) < 1e-5
    for layer in found(turned).writers:
        other = next(each for each in found(model).writers if each.name == layer.name)
        assert not np.allclose(layer.weight, other.weight), f"{layer.name} writes other channels"


@FORMS
def test_channels_that_hold_nothing_go_without_loss(changes: dict[str, Any]) -> None:
    """A model of 24 channels that was one of 16 before: 16 are enough, and the weights say so."""
    config = tiny(**{"num_heads": 4, "attention_dim": 16, "embed_dim": 16, **changes})
    model = with_basis(authored(config), turn(16, 24))
    assert found(model).width == 24
    shrunk = shrink(model, {NAME: 16}, PICTURES)
    assert found(shrunk.model).width == 16 and shrunk.kept[NAME].error < 1e-6
    assert deviation(model, shrunk.model) < 1e-3
    assert deviation(model, shrink(model, {NAME: 8}, PICTURES).model) > 1e-2


@FORMS
def test_a_narrower_model_is_a_vit_that_can_be_trained(changes: dict[str, Any]) -> None:
    """Read back, authored again, and computed in float64 from its parameters."""
    config = tiny(depth=3, **changes)
    shrunk = shrink(authored(config), {NAME: 16, "blocks.1.mlp": 24, "blocks.2.attn.heads": 0}, PICTURES).model
    new, arrays = read(shrunk, config)
    assert (new.embed_dim, new.attention_dim, new.head_dim) == (16, 24, config.head_dim)
    expected = reference_logits(new, arrays, PICTURES, mean=MEAN, std=STD)
    assert np.abs(run(shrunk, PICTURES) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_torch_computes_the_narrower_model() -> None:
    torch = pytest.importorskip("torch")
    from vitedge.training.vit import VisionTransformer

    config = tiny(depth=2)
    new, arrays = read(shrink(authored(config), {NAME: 16}, PICTURES).model, config)
    module = VisionTransformer(new, folded=True).eval()
    module.load_state_dict({name: torch.from_numpy(values) for name, values in arrays.items()})
    pixels = torch.from_numpy((PICTURES / 255 - MEAN) / STD).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = module(pixels).numpy()
    expected = reference_logits(new, arrays, PICTURES, mean=MEAN, std=STD)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_fitted_layers_lose_less_than_turned_ones() -> None:
    config = tiny(depth=3)
    model, others = authored(config), random_images(config, 32, seed=11)
    embedding = found(model)
    directions = Directions(embedding, Activations(model, PICTURES, 16).run(model, embedding.tensors), Rows(model))
    whole = run(model, others)
    for width in (20, 16):
        turned, fitted = with_basis(model, directions.basis(width)), shrink(model, {NAME: width}, PICTURES).model
        errors = [
            float(np.square(run(each, others) - whole).sum())
            for each in (truncate(model, {NAME: width}), turned, fitted)
        ]
        assert errors[2] < errors[1] < errors[0], "in the order: cut, turned, fitted"


def test_directions_are_those_that_vary_and_are_read() -> None:
    """The error is the variance that is left out, and the basis keeps LayerNorm's mean at zero."""
    model = authored(tiny(depth=2, pool="avg", class_token=False))  # no token matters more than others
    embedding = found(model)
    batches = list(Activations(model, PICTURES, len(PICTURES)).run(model, embedding.tensors))
    directions = Directions(embedding, batches, Rows(model))
    errors = directions.errors()
    assert len(errors) == 25 and (np.diff(errors) <= 0).all() and errors[24] == 0 and errors[0] == pytest.approx(1)
    for width in (2, 9, 24):
        basis = directions.basis(width)
        assert np.abs(basis.sum(axis=1)).max() < 1e-9 and np.abs(basis.sum(axis=0)).max() < 1e-9
        assert np.allclose(np.linalg.svd(basis)[1], [1] * (width - 1) + [0])
        lost = [
            np.square(rows - rows @ basis @ basis.T).sum() / rows.size for rows in map(normalised, batches[0].values())
        ]
        assert np.mean(lost) == pytest.approx(errors[width], abs=1e-6)


def test_where_it_is_not_offered() -> None:
    """Beside a LayerNorm that writes it, where something else reads it, and where there are no blocks."""
    assert embedding_of(authored(tiny(pre_norm=True))) is None
    model = authored(tiny())
    model.graph.output.append(onnx.helper.make_tensor_value_info("blocks.0.add1.out", 1, None))
    assert embedding_of(model) is None
    model = authored(tiny())
    model.graph.node.append(onnx.helper.make_node("Relu", ["blocks.0.add1.out"], ["positive"], name="relu"))
    assert embedding_of(model) is None
    assert NAME not in {each.name for each in components(model)}
    assert embedding_of(authored(tiny(depth=0))) is None


@pytest.mark.parametrize(("mode", "there"), [("constant", True), ("edge", False)])
def test_tokens_that_are_put_before_the_others_are_zeros(mode: str, there: bool) -> None:
    model = authored(tiny())
    pad = next(node for node in model.graph.node if node.op_type == "Pad")
    pad.attribute.append(onnx.helper.make_attribute("mode", mode))
    assert (embedding_of(model) is not None) == there


def test_widths_that_are_refused() -> None:
    model = authored(tiny())
    for width in (1, 25):
        with pytest.raises(UsageError, match=r"'embedding' \(embedding\) can be 2 to 24, not"):
            check_widths(model, {NAME: width})
    with pytest.raises(UsageError, match="no component 'embedding'"):
        check_widths(authored(tiny(pre_norm=True)), {NAME: 16})
    with pytest.raises(UsageError, match="changes what every other layer reads"):
        shrink(model, {NAME: 16}, PICTURES, sequential=False)


def test_beside_merged_tokens_and_in_a_model_that_has_them_already() -> None:
    config = tiny(depth=4)
    model = authored(config)
    both = {NAME: 16, "blocks.1.tokens": 10, "blocks.3.mlp": 16}
    new, arrays = read(shrink(model, both, PICTURES).model, config)
    assert (new.embed_dim, new.tokens_before(4), new.block(3).mlp_hidden) == (16, 10, 16)
    merged = with_merged(model, "blocks.0.tokens", 9)
    assert deviation(merged, with_basis(merged, turn(24, 24))) < 1e-5
    assert found(shrink(merged, {NAME: 16}, PICTURES).model).width == 16
    assert arrays["blocks.1.merge.weight"].shape[0] == 10 - config.prefix_tokens


def test_costs_are_those_of_fitted_layers() -> None:
    model = authored(tiny(embed_dim=48, num_heads=3, depth=2))
    offered = {each.name: each for each in components(model)}[NAME].offered
    assert offered == (16, 24, 32, 40, 48)
    weighed = costs(model, PICTURES, names=[NAME])[NAME]
    assert sorted(weighed) == list(offered) and weighed[48] == 0
    assert [weighed[width] for width in offered] == sorted(weighed.values(), reverse=True)
    difference = run(shrink(model, {NAME: 16}, PICTURES).model, PICTURES) - run(model, PICTURES)
    difference -= difference.mean(axis=1, keepdims=True)
    assert weighed[16] == pytest.approx(float(np.square(difference).sum(axis=1).mean()), rel=0.01)


def test_a_narrower_embedding_leaves_everything_less_to_save() -> None:
    """Alone, with fewer tokens, and neither: what others save falls with the work that is left."""
    parts = [
        Component("blocks.0.mlp", "hidden", 64, (32, 64)),
        Component(NAME, "embedding", 48, (24, 48)),
        Component("blocks.0.tokens", "tokens", 17, (9, 17)),
    ]
    saved = {"blocks.0.mlp": {32: 10.0}, NAME: {24: 100.0}, "blocks.0.tokens": {9: 40.0}}
    errors = {"blocks.0.mlp": {32: 1.0}, NAME: {24: 5.0}, "blocks.0.tokens": {9: 7.0}}
    left = {NAME: {"blocks.0.mlp": 0.5}, "blocks.0.tokens": {"blocks.0.mlp": 0.8}}
    found = schedules_of(parts, saved, errors, lambda name, _: left[name])
    options = {tuple(schedule[-1][0].widths): schedule for schedule in found[1:]}
    assert len(found) == 4 and [option.saved for option in found[0][0]] == [0, 10]
    assert set(options) == {(NAME,), ("blocks.0.tokens",), (NAME, "blocks.0.tokens")}
    assert [option.saved for option in options[(NAME,)][0]] == [0, 5]
    both = options[NAME, "blocks.0.tokens"]
    assert both[-1] == [Option(120.0, 12.0, {NAME: 24, "blocks.0.tokens": 9})]
    assert [option.saved for option in both[0]] == [0, 4]


def test_the_configuration_keeps_the_channels_a_head_of_the_whole_model() -> None:
    whole = tiny()
    config = tiny(embed_dim=20, attention_dim=24)
    assert config.head_dim == whole.head_dim and tiny(attention_dim=24) == whole
    assert author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="attention_dim 25 is not a multiple of num_heads"):
        tiny(attention_dim=25)
    with pytest.raises(ValueError, match="embed_dim 20 is not a multiple of num_heads"):
        tiny(embed_dim=20)
    assert isinstance(config, ViTConfig)
    for name, number in (("attention_dim", 0), ("attention_dim", -24), ("num_heads", 0), ("embed_dim", -24)):
        with pytest.raises(ValueError, match=f"{name} {number} is not a positive number"):
            tiny(**{name: number})
