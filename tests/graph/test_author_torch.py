"""The author against the torch module, for every member of the zoo and for the rarer options."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from vitedge.formats.architecture import BlockWidths, ConvStem, PatchStem, Rope, ViTConfig

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from tests.graph.test_author import relative, run  # noqa: E402
from vitedge.graph.author import author_vit  # noqa: E402
from vitedge.training.vit import VisionTransformer  # noqa: E402
from vitedge.training.zoo import ZOO  # noqa: E402

#: As they come out of shrinking: nothing is even, and some branches and a whole block are gone.
ODD = BlockWidths(heads=3, query_key=24, value=40, mlp_hidden=200)
HOLES = (
    replace(ODD, mlp_hidden=0),
    BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=72),
    BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=0),
    BlockWidths(heads=1, query_key=8, value=16, mlp_hidden=8),
)


def compare(config: ViTConfig, *, within: float = 1e-4) -> None:
    arrays, images = random_arrays(config), random_images(config, 2)
    module = VisionTransformer(config).eval()
    missing, unexpected = module.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    normalised = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    with torch.inference_mode():
        expected = module(torch.from_numpy(normalised).permute(0, 3, 1, 2)).numpy()
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    assert relative(run(author_vit(config, state, mean=MEAN, std=STD), images), expected) <= within


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_member_of_the_zoo(name: str) -> None:
    compare(ZOO[name].config)


@pytest.mark.parametrize(
    "config",
    [
        tiny(distillation_token=True, register_tokens=2),
        tiny(qk_norm=True, layer_scale=True, pre_norm=True, activation="gelu_tanh"),
        tiny(class_token=False, pool="avg", final_norm="fc_norm", register_tokens=1, qkv_bias=False),
        tiny(pool="avg", position_embedding="none", stem=ConvStem(channels=(6, 8), strides=(2, 4))),
        tiny(stem=ConvStem(channels=(6, 8, 10), strides=(1, 2, 2), reduction="max", first_kernel=2)),
        tiny(position_embedding_covers_prefix=False, stem=PatchStem(patch_size=16)),
        tiny(rope=Rope(kind="centred", pairs="halves"), position_embedding="none", mlp="swiglu", register_tokens=4),
        tiny(rope=Rope(kind="axial", reference_grid=(3, 3)), qk_norm=True, pool="token_avg"),
        tiny(rope=Rope(kind="mixed", first_axis="column"), pool="avg", final_norm="fc_norm"),
    ],
    ids=["distilled", "qk-norm", "average", "no-positions", "max-pool", "patches-only", "dinov3", "rope", "rope-mixed"],
)
def test_the_rarer_options(config: ViTConfig) -> None:
    compare(config)


@pytest.mark.parametrize(
    "config",
    [
        tiny(embed_dim=192, mlp_hidden=384, blocks=(ODD, replace(ODD, heads=2, query_key=40))),
        tiny(embed_dim=192, depth=4, distillation_token=True, layer_scale=True, blocks=HOLES),
        tiny(embed_dim=192, register_tokens=2, blocks=(replace(ODD, tokens=15), replace(ODD, tokens=8))),
        tiny(embed_dim=192, pool="token_avg", depth=3, blocks=(replace(ODD, tokens=9), ODD, replace(ODD, tokens=4))),
        tiny(embed_dim=192, mlp="swiglu", qkv_bias=False, blocks=(ODD, replace(ODD, mlp_hidden=9))),
        tiny(embed_dim=192, qk_norm=True, blocks=(replace(ODD, query_key=64), replace(ODD, heads=1, query_key=64))),
        tiny(
            embed_dim=96,
            rope=Rope(kind="axial"),
            register_tokens=2,
            blocks=(replace(ODD, query_key=6, rope_pairs=(0, 5, 15)), replace(ODD, query_key=32)),
        ),
        tiny(
            embed_dim=96,
            rope=Rope(kind="centred", pairs="halves"),
            blocks=(replace(ODD, query_key=4, rope_pairs=(7, 8)), replace(ODD, heads=0)),
        ),
        tiny(
            embed_dim=96,
            rope=Rope(kind="mixed"),
            blocks=(replace(ODD, query_key=6, rope_pairs=(0, 5, 15)), replace(ODD, heads=2, query_key=10)),
        ),
    ],
    ids=["odd", "branches", "merged", "merged-average", "swiglu", "qk-norm", "rope", "rope-halves", "rope-mixed"],
)
def test_blocks_with_widths_of_their_own(config: ViTConfig) -> None:
    compare(config, within=1e-5)
