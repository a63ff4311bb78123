"""Small random Vision Transformers for the tests of this folder."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from vitedge.formats.architecture import BlockWidths, ConvStem, PatchStem, Rope, ViTConfig
from vitedge.graph.author import author_vit, expected_parameters
from vitedge.graph.merging import evenly

MEAN, STD = (0.48, 0.45, 0.40), (0.22, 0.23, 0.24)


def tiny(**changes: object) -> ViTConfig:
    """24 channels, 2 blocks, 32×48 pixels in patches of 8."""
    base: dict[str, object] = {
        "image_size": (32, 48),
        "stem": PatchStem(patch_size=8),
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "mlp_hidden": 40,
        "num_classes": 7,
    }
    return ViTConfig(**{**base, **changes})  # type: ignore[arg-type]


def random_arrays(config: ViTConfig, *, folded_stem: bool = False, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Parameters at scales that keep every layer alive."""
    random, arrays = np.random.default_rng(seed), {}
    for name, shape in expected_parameters(config, folded_stem=folded_stem):
        if name.endswith("running_var"):
            values = random.uniform(0.5, 2.0, shape)
        elif name.endswith("merge.weight"):
            values = np.roll(evenly(*shape), seed + 1, axis=1)
        elif len(shape) == 1 and name.endswith(("weight", "gamma")):
            values = random.uniform(0.5, 1.5, shape)
        elif len(shape) > 1 and name.endswith("weight"):
            values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        else:
            values = 0.3 * random.standard_normal(shape)
        arrays[name] = values.astype(np.float32)
    return arrays


def authored(config: ViTConfig) -> onnx.ModelProto:
    """The graph of this architecture with random weights."""
    return author_vit(config, random_arrays(config), mean=MEAN, std=STD)


def random_images(config: ViTConfig, count: int, seed: int = 1) -> NDArray[np.uint8]:
    """uint8 [count, H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *config.image_size, 3), dtype=np.uint8)


@st.composite
def configs(draw: st.DrawFn) -> ViTConfig:
    """Every field of ViTConfig varies."""
    if draw(st.booleans()):
        stem: PatchStem | ConvStem = PatchStem(patch_size=draw(st.sampled_from([2, 4, 8])))
    else:
        strides = tuple(draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3)))
        stem = ConvStem(
            channels=tuple(draw(st.integers(1, 8)) for _ in strides),
            strides=strides,
            reduction=draw(st.sampled_from(["stride", "max"])),
            first_kernel=draw(st.sampled_from([2, 3])),
        )
    heads = draw(st.integers(1, 3))
    class_token = draw(st.booleans())
    distilled = class_token and draw(st.booleans())
    embed_dim = heads * draw(st.sampled_from([4, 8, 10]))
    pools = ["token"] if distilled else ["token", "avg", "token_avg"] if class_token else ["avg"]
    pool = draw(st.sampled_from(pools))
    rope = None
    if embed_dim // heads % 4 == 0 and draw(st.booleans()):
        rope = Rope(
            kind=draw(st.sampled_from(["axial", "centred", "mixed"])),
            temperature=draw(st.sampled_from([10.0, 10_000.0])),
            first_axis=draw(st.sampled_from(["row", "column"])),
            reference_grid=draw(st.sampled_from([None, (3, 5)])),
            pairs=draw(st.sampled_from(["neighbours", "halves"])),
        )
    return ViTConfig(
        image_size=(stem.stride * draw(st.integers(2, 4)), stem.stride * draw(st.integers(2, 4))),
        stem=stem,
        embed_dim=embed_dim,
        depth=draw(st.integers(1, 2)),
        num_heads=heads,
        mlp_hidden=draw(st.integers(1, 40)),
        num_classes=draw(st.integers(1, 12)),
        class_token=class_token,
        distillation_token=distilled,
        register_tokens=draw(st.integers(0, 2)),
        position_embedding=draw(st.sampled_from(["learned", "none"])),
        position_embedding_covers_prefix=draw(st.booleans()),
        rope=rope,
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        layer_scale=draw(st.booleans()),
        pre_norm=draw(st.booleans()),
        pool=pool,
        final_norm=draw(st.sampled_from(["norm", "fc_norm"])) if not distilled and pool != "token_avg" else "norm",
        layer_norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh"])),
        mlp=draw(st.sampled_from(["plain", "swiglu"])),
    )


@st.composite
def narrowed(draw: st.DrawFn) -> ViTConfig:
    """A configuration whose blocks have widths of their own; branches and whole blocks may be gone, tokens merged."""
    config = draw(configs())
    blocks, tokens = [draw(widths(config)) for _ in range(config.depth)], config.tokens
    for index, block in enumerate(blocks if config.rope is None else ()):
        tokens = draw(st.integers(config.prefix_tokens + 1, tokens) | st.just(tokens))
        blocks[index] = replace(block, tokens=tokens)
    return replace(config, blocks=tuple(blocks))


@st.composite
def widths(draw: st.DrawFn, config: ViTConfig) -> BlockWidths:
    """Of one block of a configuration."""
    pairs = None
    if config.rope is not None and not config.qk_norm:
        every = st.sampled_from(range(config.head_dim // 2))
        pairs = tuple(sorted(draw(st.sets(every, min_size=1))))
    query_key = config.head_dim if config.qk_norm else draw(st.integers(1, 12))
    return BlockWidths(
        heads=draw(st.integers(0, 3)),
        query_key=query_key if pairs is None else 2 * len(pairs),
        value=draw(st.integers(1, 12)),
        mlp_hidden=draw(st.integers(0, 20)),
        rope_pairs=pairs,
    )
