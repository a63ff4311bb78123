"""The author against the torch module, for every member of the zoo and for the rarer options."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from vitedge.formats.architecture import ConvStem, PatchStem, Rope, ViTConfig

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from tests.graph.test_author import relative, run  # noqa: E402
from vitedge.graph.author import author_vit  # noqa: E402
from vitedge.training.vit import VisionTransformer  # noqa: E402
from vitedge.training.zoo import ZOO  # noqa: E402


def compare(config: ViTConfig) -> None:
    arrays, images = random_arrays(config), random_images(config, 2)
    module = VisionTransformer(config).eval()
    missing, unexpected = module.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    normalised = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    with torch.inference_mode():
        expected = module(torch.from_numpy(normalised).permute(0, 3, 1, 2)).numpy()
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    assert relative(run(author_vit(config, state, mean=MEAN, std=STD), images), expected) <= 1e-4


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
        tiny(position_embedding_covers_prefix=False, stem=PatchStem(patch_size=16)),
        tiny(rope=Rope(kind="centred", pairs="halves"), position_embedding="none", mlp="swiglu", register_tokens=4),
        tiny(rope=Rope(kind="axial", reference_grid=(3, 3)), qk_norm=True, pool="token_avg"),
        tiny(rope=Rope(kind="mixed", first_axis="column"), pool="avg", final_norm="fc_norm"),
    ],
    ids=["distilled", "qk-norm", "average", "no-positions", "patches-only", "dinov3", "rope", "rope-mixed"],
)
def test_the_rarer_options(config: ViTConfig) -> None:
    compare(config)
