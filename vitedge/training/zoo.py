"""The zoo: compact Vision Transformers for pictures of 32 to 224 pixels, as configurations. No torch here.

Names read ``family_size_stem_pixels``. ``patch16`` is a patch stem, ``conv`` a convolutional one (fewer epochs and less
data for the same accuracy), ``pool`` one with a 2×2 first layer to whiten and MaxPool instead of strides (fewer still).
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from vitedge.errors import UsageError, nearest
from vitedge.formats.architecture import ConvStem, PatchStem, ViTConfig

EMBEDDED = "vit_edge_pool_32"


@dataclass(frozen=True)
class ZooMember:
    """One architecture and its purpose; the number of classes is replaced when a model is made."""

    config: ViTConfig
    summary: str


def _vit(
    pixels: int, stem: PatchStem | ConvStem, dim: int, depth: int, heads: int, *, mlp: float = 4.0, **options: object
) -> ViTConfig:
    """Configure a ViT with timm's defaults (class token, learned positions, norm before pooling) and ``options``."""
    base = ViTConfig(
        image_size=(pixels, pixels),
        stem=stem,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_hidden=int(mlp * dim),
        num_classes=1000,
    )
    return replace(base, **options)


def _pooled(
    pixels: int, stem: PatchStem | ConvStem, dim: int, depth: int, heads: int, *, mlp: float, **options: object
) -> ViTConfig:
    """Configure a ViT without class token: the mean of the patch tokens, normalised after pooling."""
    pooled = {"class_token": False, "pool": "avg", "final_norm": "fc_norm"}
    return _vit(pixels, stem, dim, depth, heads, mlp=mlp, **{**pooled, **options})


def _pool_stem(first: int, second: int) -> ConvStem:
    """Configure a 2×2 layer of 24 whitening filters, then two pairs of 3×3 convolutions with a MaxPool each."""
    channels = (24, first, first, second, second)
    return ConvStem(channels=channels, strides=(1, 2, 1, 2, 1), reduction="max", first_kernel=2)


ZOO: dict[str, ZooMember] = {
    EMBEDDED: ZooMember(
        _pooled(32, _pool_stem(96, 256), 256, 2, 4, mlp=3),
        "the embedded model: 32×32 pictures, 49 tokens; the most accuracy for few epochs",
    ),
    "vit_light_pool_32": ZooMember(
        _pooled(32, _pool_stem(48, 128), 160, 2, 5, mlp=2),
        "the same for a third of the work",
    ),
    "vit_edge_conv_32": ZooMember(
        _pooled(32, ConvStem(channels=(32, 64, 128, 256, 256, 256), strides=(1, 2, 1, 2, 1, 1)), 192, 2, 3, mlp=2),
        "32×32 pictures, convolutional stem, 64 tokens",
    ),
    "vit_wide_conv_32": ZooMember(
        _pooled(32, ConvStem(channels=(48, 96, 128, 192, 192), strides=(1, 2, 1, 2, 1)), 192, 2, 3, mlp=2),
        "the same with a lighter stem",
    ),
    "vit_small_conv_32": ZooMember(
        _pooled(32, ConvStem(channels=(32, 64, 64, 128), strides=(1, 2, 1, 2)), 192, 6, 6, mlp=2),
        "32×32 pictures, where more time for training and running is at hand",
    ),
    "vit_nano_patch4_32": ZooMember(
        _vit(32, PatchStem(patch_size=4), 96, 4, 3, mlp=2),
        "the smallest: a plain ViT for 32×32 pictures",
    ),
    "vit_mini_patch4_32": ZooMember(
        _vit(32, PatchStem(patch_size=4), 192, 6, 3, mlp=2),
        "a plain ViT for 32×32 pictures",
    ),
    "vit_mini_patch8_64": ZooMember(
        _vit(64, PatchStem(patch_size=8), 192, 6, 3, mlp=2),
        "a plain ViT for 64×64 pictures",
    ),
    "vit_edge_conv_64": ZooMember(
        _pooled(64, ConvStem(channels=(32, 64, 96, 128), strides=(2, 2, 1, 2)), 160, 6, 5, mlp=2),
        "64×64 pictures, convolutional stem, 64 tokens",
    ),
    "vit_edge_conv_96": ZooMember(
        _pooled(96, ConvStem(channels=(32, 64, 96, 128), strides=(2, 2, 1, 2)), 192, 6, 6, mlp=2),
        "96×96 pictures, convolutional stem, 144 tokens",
    ),
    "vit_mini_patch8_96": ZooMember(
        _vit(96, PatchStem(patch_size=8), 192, 6, 3, mlp=2, register_tokens=4),
        "a plain ViT with registers for 96×96 pictures",
    ),
    "vit_edge_conv_128": ZooMember(
        _pooled(128, ConvStem(channels=(24, 48, 96, 192), strides=(2, 2, 2, 2)), 192, 8, 6, mlp=3),
        "128×128 pictures, convolutional stem, 64 tokens",
    ),
    "vit_tiny_patch16_128": ZooMember(
        _vit(128, PatchStem(patch_size=16), 192, 12, 3),
        "ViT-Ti/16 for 128×128 pictures",
    ),
    "vit_tiny_patch16_224": ZooMember(
        _vit(224, PatchStem(patch_size=16), 192, 12, 3),
        "ViT-Ti/16, timm's vit_tiny_patch16_224",
    ),
    "vit_small_patch16_224": ZooMember(
        _vit(224, PatchStem(patch_size=16), 384, 12, 6),
        "ViT-S/16, timm's vit_small_patch16_224 and deit_small_patch16_224",
    ),
    "deit_tiny_distilled_patch16_224": ZooMember(
        _vit(224, PatchStem(patch_size=16), 192, 12, 3, distillation_token=True),
        "DeiT-Ti/16 with a distillation token and two heads",
    ),
    "deit3_small_patch16_224": ZooMember(
        _vit(224, PatchStem(patch_size=16), 384, 12, 6, layer_scale=True, position_embedding_covers_prefix=False),
        "DeiT-III-S/16: LayerScale, position embedding on patches alone",
    ),
    "vit_little_patch16_reg4_gap_224": ZooMember(
        _pooled(
            224,
            PatchStem(patch_size=16),
            320,
            14,
            5,
            mlp=5.6,
            register_tokens=4,
            layer_scale=True,
            position_embedding_covers_prefix=False,
        ),
        "registers, average pooling and LayerScale between Ti and S",
    ),
    "vit_small_qknorm_patch16_reg4_224": ZooMember(
        _vit(224, PatchStem(patch_size=16), 384, 12, 6, register_tokens=4, qk_norm=True, pre_norm=True),
        "ViT-S/16 with registers, normalised queries and keys, and a norm before the blocks",
    ),
    "vit_tiny_conv_224": ZooMember(
        _vit(224, ConvStem(channels=(24, 48, 96, 192), strides=(2, 2, 2, 2)), 192, 11, 3),
        "ViT-Ti with a convolutional stem in place of one block (Xiao et al., 2106.14881)",
    ),
}


def zoo_config(name: str, *, num_classes: int, image_size: tuple[int, int] | None = None) -> ViTConfig:
    """Return the architecture ``name`` for ``num_classes`` classes and pictures of (height, width) pixels.

    Raises:
        UsageError: no member has this name (the nearest is given), or the size doesn't fit its stem.
    """
    action = f"make the model '{name}'"
    if name not in ZOO:
        raise UsageError(
            action, f"no model of the zoo has this name{nearest(name, ZOO)}", f"choose from: {', '.join(ZOO)}"
        )
    config = ZOO[name].config
    size = image_size or config.image_size
    try:
        return replace(config, num_classes=num_classes, image_size=size)
    except ValueError as error:
        raise UsageError(action, str(error), f"choose a multiple of {config.stem.stride} pixels") from error
