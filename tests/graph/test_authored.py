"""Authored graphs read back: parameters that make the same graph, whatever was cut off it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.graph.test_author import run
from tests.graph.vits import MEAN, STD, configs, narrowed, random_arrays, random_images, tiny
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError
from vitedge.formats.architecture import BlockWidths, ViTConfig
from vitedge.graph.author import author_vit
from vitedge.graph.authored import read_authored
from vitedge.graph.surgery import initializers


def contract(config: ViTConfig, order: str) -> Preprocessing:
    return Preprocessing(size=config.image_size, mean=MEAN, std=STD, channel_order=order)  # type: ignore[arg-type]


def uniform(config: ViTConfig) -> ViTConfig:
    """What it was before its blocks got widths of their own: all that a reader is told."""
    return replace(config, blocks=msgspec.UNSET)


def widths(config: ViTConfig) -> list[BlockWidths]:
    """Of all blocks, but for which pairs are kept: on a small grid two pairs may turn by the same angles."""
    return [replace(config.block(index), rope_pairs=None) for index in range(config.depth)]


@settings(max_examples=20, deadline=None)
@given(config=configs() | narrowed(), order=st.sampled_from(["rgb", "bgr"]), seed=st.integers(0, 99))
def test_what_is_read_makes_the_same_graph(config: ViTConfig, order: str, seed: int) -> None:
    arrays = random_arrays(config, seed=seed)
    model = author_vit(config, arrays, mean=MEAN, std=STD, channel_order=order)  # type: ignore[arg-type]
    new, parameters = read_authored(model, uniform(config), contract(config, order))
    assert widths(new) == widths(config)
    assert new.macs() == config.macs()
    again = author_vit(new, parameters, mean=MEAN, std=STD, channel_order=order)  # type: ignore[arg-type]
    images = random_images(config, 2, seed)
    expected = run(model, images)
    assert np.abs(run(again, images) - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_classes_that_are_gone_are_told() -> None:
    config = tiny(distillation_token=True)
    arrays = random_arrays(config)
    for name in ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"):
        arrays[name] = arrays[name][2:5]
    model = author_vit(replace(config, num_classes=3), arrays, mean=MEAN, std=STD)
    new, parameters = read_authored(model, config, contract(config, "rgb"))
    assert new.num_classes == 3
    np.testing.assert_allclose(parameters["head.weight"], arrays["head.weight"], rtol=1e-6)


def test_a_graph_that_the_author_does_not_write_is_refused() -> None:
    config = tiny()
    model = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    act = next(node for node in model.graph.node if node.name == "blocks.1.mlp.act")
    act.name = "blocks.1.mlp.relu"
    with pytest.raises(ModelError, match=r"other nodes: blocks\.1\.mlp\.act, blocks\.1\.mlp\.relu"):
        read_authored(model, config, contract(config, "rgb"))
    act.name = "blocks.1.mlp.act"
    initializers(model)["pos_embed.weight"].name = "elsewhere"
    with pytest.raises(ModelError, match="isn't as the author writes it"):
        read_authored(model, config, contract(config, "rgb"))


def test_biases_that_some_attentions_alone_have() -> None:
    config = tiny(qkv_bias=False)
    model = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    biased = author_vit(tiny(), random_arrays(tiny()), mean=MEAN, std=STD)
    new, _ = read_authored(biased, config, contract(config, "rgb"))
    assert new.qkv_bias
    assert not read_authored(model, tiny(), contract(config, "rgb"))[0].qkv_bias
