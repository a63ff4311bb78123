"""timm's published layout: ``config.json`` with ``architecture`` and ``pretrained_cfg``; ``model.safetensors``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from vitedge.errors import ModelError
from vitedge.formats.architecture import PatchStem, Rope, ViTConfig
from vitedge.formats.model_folder import ClassLabel, class_table
from vitedge.graph.author import checked_parameters
from vitedge.graph.checkpoint import (
    CONFIG_JSON,
    TO_ONNX,
    Arrays,
    Checkpoint,
    contract_from,
    grid_of,
    image_size_of,
    read_json,
    readme_licence,
    resized,
    shape_of,
    taken_defaults,
)
from vitedge.graph.state_dicts import NOTHING_SAID, Wanted, Weights, weights_in
from vitedge.graph.timm_transform import DEFAULTS, evaluation_transform

ANCHORS = ("patch_embed.proj.weight",)  # a tensor that every ViT of timm has


def read_timm(path: Path, wanted: Wanted = NOTHING_SAID) -> Checkpoint:
    """Read a folder in timm's published layout, or the weights file in it.

    Plain families: ViT, DeiT, distilled DeiT, DeiT-III, CLIP-style pre-norm, registers, average pooling, DINOv2, DINOv3
    and RoPE-ViT, with or without LayerScale, QK-norm and SwiGLU; a classification head is obligatory.

    Args:
        path: the folder or the file.
        wanted: what the caller says of it.

    Raises:
        UsageError: no such file, or preprocessing that isn't one.
        ModelError: malformed files, another architecture, tensors that don't fit, or something that can't be derived.
    """
    folder = path if path.is_dir() else path.parent
    action = f"import the timm checkpoint {path}"
    published = _read_config(folder / CONFIG_JSON, action)
    weights = weights_in(path, ANCHORS, wanted.choice, action)
    licence = published.pretrained.license or readme_licence(folder)
    return checkpoint_of(published, weights, wanted, action, licence=licence)


def checkpoint_of(
    published: Published,
    weights: Weights,
    wanted: Wanted,
    action: str,
    *,
    licence: str | None = None,
    file: str = CONFIG_JSON,
) -> Checkpoint:
    """Join timm's published configuration and the tensors under its names into a checkpoint; as :func:`read_timm`."""
    given, words = wanted.given, _words(published, action)
    arrays = unified(weights.arrays, words, action)
    config = _architecture(published, words, arrays, action)
    if "patch_embed.proj.bias" not in arrays and config.pre_norm:  # CLIP's patch convolution has none
        arrays["patch_embed.proj.bias"] = np.zeros(config.embed_dim, np.float32)
    checked_parameters(config, arrays)
    size = image_size_of(given.get("size", _data_size(published, action)), action)
    config, arrays, done = resized(config, arrays, size, action, patch_size=wanted.patch_size)
    fields, defaults = _preprocessing(published, size, given, action)
    details = {"architecture": published.architecture, "tag": published.pretrained.tag, **weights.details, **done}
    return Checkpoint(
        kind="timm",
        name=published.architecture,
        config=config,
        arrays=arrays,
        preprocessing=contract_from(fields, given, file, action),
        classes=None if wanted.named else _classes(published, config.num_classes, action),
        licence=licence,
        details={key: value for key, value in details.items() if value} | taken_defaults(defaults, given),
    )


class Pretrained(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of timm's ``pretrained_cfg`` that are read; others don't affect inference. timm fills the first six."""

    input_size: tuple[int, int, int] | None = None  # (channels, height, width)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    num_classes: int | None = None
    license: str | None = None
    tag: str | None = None
    label_names: list[str] | dict[str, str] | None = None
    label_descriptions: list[str] | dict[str, str] | None = None


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of ``config.json`` that are read. Older files are flat dictionaries; ``pretrained`` is then all."""

    architecture: str
    pretrained: Pretrained
    num_classes: int | None = None
    global_pool: str | None = None
    model_args: dict[str, Any] = {}
    label_names: list[str] | dict[str, str] | None = None
    label_descriptions: list[str] | dict[str, str] | None = None


def _read_config(path: Path, action: str) -> Published:
    raw = read_json(path, dict[str, Any], action)
    try:
        return msgspec.convert({**raw, "pretrained": raw.get("pretrained_cfg", raw)}, Published)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ModelError(action, f"{CONFIG_JSON} isn't timm's: {error}", "download it again") from error


# Architecture names are words joined by underscores. A name made of these words alone is a plain ViT; any other word
# ("relpos", "rpn", "quickgelu", "map", …) stands for something that tensor names need not show.
_WORDS = re.compile(
    r"vit|vit2|deit|deit3|flexivit|test|distilled|clip|gap|dinov2|dinov3|qkvb|tipsv2|rope|mixed|ape|miil|plus|36x1|"
    r"patch\d+|reg\d+|\d+|"
    r"tiny|wee|xsmall|little|small|medium|mediumd|betwixt|base|large|huge|giant|gigantic|so150m|so150m2|so400m"
)
# Heads by width where the width isn't 64 channels a head.
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}
_WIDTHS_64 = (192, 256, 320, 384, 448, 512, 576, 640, 768, 832, 896, 1024)
_ODD_HEADS = {"test_vit": 2, "test_vit2": 2, "vit_base_patch16_gap_224": 16}
# Keys of ``model_args`` that the tensors or the fields above tell already, or that matter in training alone.
_KNOWN_ARGS = re.compile(
    r"img_size|patch_size|in_chans|num_classes|global_pool|embed_dim|depth|num_heads|mlp_ratio|qkv_bias|qk_norm|"
    r"init_values|class_token|no_embed_class|reg_tokens|pre_norm|fc_norm|act_layer|dynamic_img_size|strict_img_size|"
    r"num_reg_tokens|use_fc_norm|rope_temperature|ref_feat_shape|rope_(shift|jitter|rescale)_coords|head_init_scale|"
    r"(pos_|patch_|proj_|attn_)?drop_rate|drop_path_rate|weight_init|fix_init"
)
_ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh"]] = {"None": "gelu", "gelu": "gelu", "gelu_tanh": "gelu_tanh"}


def _words(published: Published, action: str) -> list[str]:
    """Return the words of a plain ViT's name; refuse other names."""
    name, args = published.architecture, published.model_args
    words = name.split("_")
    if words[0] not in ("vit", "deit", "deit3", "flexivit", "test") or not all(map(_WORDS.fullmatch, words)):
        odd = next((word for word in words if not _WORDS.fullmatch(word)), words[0])
        reason = f"architecture '{name[:80]}' isn't a plain ViT or DeiT that is known here ('{odd[:40]}')"
        raise ModelError(action, reason, TO_ONNX)
    if strange := [key for key in sorted(args) if not _KNOWN_ARGS.fullmatch(key)]:
        raise ModelError(action, f"model_args in {CONFIG_JSON} has '{strange[0]}', which isn't understood", TO_ONNX)
    if str(args.get("act_layer")) not in _ACTIVATIONS:
        raise ModelError(action, f"the activation '{args['act_layer']}' isn't GELU", TO_ONNX)
    return words


def unified(arrays: Arrays, words: list[str], action: str) -> Arrays:
    """Rename the tensors of timm's second ViT (``Eva``: DINOv3, RoPE-ViT) to its first's; the key has no bias there.

    Args:
        arrays: under timm's names.
        words: of the architecture's name.
        action: for error texts.

    Raises:
        ModelError: parts of one layer that don't fit each other.
    """
    if "rope" not in words and "dinov3" not in words:
        return dict(arrays)
    unified: Arrays = {}
    for name, values in arrays.items():
        block, _, part = name.rpartition(".attn.")
        if part == "v_bias" or re.fullmatch(r"[kv]_proj\.weight|[kv]_proj\.bias", part):
            continue
        if part == "q_bias":
            other = arrays.get(f"{block}.attn.v_bias", values)
            unified[f"{block}.attn.qkv.bias"] = np.concatenate([values, np.zeros_like(values), other])
        elif part in ("q_proj.weight", "q_proj.bias"):
            kind = part.removeprefix("q_proj.")
            none = np.zeros_like(values) if kind == "bias" else None
            thirds = [values, *(arrays.get(f"{block}.attn.{third}_proj.{kind}", none) for third in "kv")]
            for third, tensor in zip("qkv", thirds, strict=True):
                if tensor is None or tensor.shape[1:] != values.shape[1:]:
                    reason = f"tensor '{block}.attn.{third}_proj.{kind}': expected shape {list(values.shape)}"
                    raise ModelError(action, reason, "download the checkpoint again")
            unified[f"{block}.attn.qkv.{kind}"] = np.concatenate([third for third in thirds if third is not None])
        elif ".mlp.fc1_x." in name:
            continue
        elif ".mlp.fc1_g." in name:
            beside = name.replace("fc1_g", "fc1_x")
            if beside not in arrays or arrays[beside].shape != values.shape:
                raise ModelError(action, f"tensor '{beside}': expected shape {list(values.shape)}", TO_ONNX)
            unified[name.replace("fc1_g", "fc1")] = np.concatenate([values, arrays[beside]])
        else:
            unified[re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)] = values
    return unified


def _rope(published: Published, words: list[str], action: str) -> Rope | None:
    """Return the rotary embedding, which has no tensors (except ``mixed``), from the architecture's name."""
    args = published.model_args
    try:
        if "dinov3" in words:
            return Rope(kind="centred", temperature=float(args.get("rope_temperature", 100)), pairs="halves")
        if "mixed" in words:
            return Rope(kind="mixed", first_axis="column")
        if "rope" in words and "gap" in words:
            reference = args.get("ref_feat_shape", (16, 16))
            grid = image_size_of(reference, action) if reference is not None else None
            return Rope(kind="axial", temperature=float(args.get("rope_temperature", 10_000)), reference_grid=grid)
        if "rope" in words:
            return Rope(kind="axial", temperature=float(args.get("rope_temperature", 100)), first_axis="column")
    except (TypeError, ValueError) as error:
        raise ModelError(action, f"the rotary embedding: {error}", f"correct {CONFIG_JSON}") from error
    return None


def _architecture(published: Published, words: list[str], arrays: Arrays, action: str) -> ViTConfig:
    kernel = shape_of(arrays, "patch_embed.proj.weight", 4, action)
    if kernel[1] != 3:
        hint = "one-channel and other models aren't offered"
        raise ModelError(action, f"'patch_embed.proj.weight' takes {kernel[1]} channels, not RGB", hint)
    embed_dim, patch = kernel[0], kernel[2]
    image = _image_size(published, action)
    if not embed_dim or not patch or kernel[3] != patch or image[0] % patch or image[1] % patch:
        reason = f"images of {image[0]}×{image[1]} pixels aren't made of whole patches of {kernel[2]}×{kernel[3]}"
        raise ModelError(action, reason, "use the image size of the checkpoint")
    class_token, distilled = "cls_token" in arrays, "dist_token" in arrays
    registers = shape_of(arrays, "reg_token", 3, action)[1] if "reg_token" in arrays else 0
    prefix = int(class_token) + int(distilled) + registers
    grid, covers = (image[0] // patch, image[1] // patch), True
    rotary = ("rope" in words and "ape" not in words) or "dinov3" in words
    learned = "pos_embed" in arrays and not rotary
    if learned:  # for another grid than the image size tells it's resized, as timm does when it loads
        positions = shape_of(arrays, "pos_embed", 3, action)[1]
        published_size = (published.pretrained.input_size or DEFAULTS["input_size"])[1:]
        fitting = grid_of(positions, prefix, [grid, (published_size[0] // patch, published_size[1] // patch)])
        if fitting is None:
            reason = (
                f"tensor 'pos_embed': expected {grid[0] * grid[1]} or {grid[0] * grid[1] + prefix} positions for "
                f"{image[0]}×{image[1]} pixels, or a square of patches, received {positions}"
            )
            raise ModelError(action, reason, f"set input_size in {CONFIG_JSON} to the size that the weights are for")
        grid, covers = fitting
    gate = shape_of(arrays, "blocks.0.mlp.fc1.weight", 2, action)[0]
    hidden = shape_of(arrays, "blocks.0.mlp.fc2.weight", 2, action)[1]
    try:
        return ViTConfig(
            image_size=(grid[0] * patch, grid[1] * patch),
            stem=PatchStem(patch_size=patch),
            embed_dim=embed_dim,
            depth=len({match[1] for match in map(_BLOCK.match, arrays) if match}),
            num_heads=_heads(published, words, arrays, embed_dim, action),
            mlp_hidden=hidden,
            mlp="swiglu" if gate == 2 * hidden else "plain",
            num_classes=_num_classes(published, arrays, action),
            class_token=class_token,
            distillation_token=distilled,
            register_tokens=registers,
            position_embedding="learned" if learned else "none",
            position_embedding_covers_prefix=covers,
            rope=_rope(published, words, action),
            qkv_bias="blocks.0.attn.qkv.bias" in arrays,
            qk_norm="blocks.0.attn.q_norm.weight" in arrays,
            layer_scale="blocks.0.ls1.gamma" in arrays,
            pre_norm="norm_pre.weight" in arrays,
            pool=_pool(published, words, arrays, action),
            final_norm="fc_norm" if "fc_norm.weight" in arrays else "norm",
            layer_norm_eps=1e-5 if "clip" in words or "dinov3" in words else 1e-6,
            activation=_ACTIVATIONS[str(published.model_args.get("act_layer"))],
        )
    except ValueError as error:
        raise ModelError(action, str(error), f"correct {CONFIG_JSON}") from error


_BLOCK = re.compile(r"blocks\.(\d+)\.")


def _num_classes(published: Published, arrays: Arrays, action: str) -> int:
    if "head.weight" not in arrays:
        hint = "use a checkpoint that was fine-tuned for classification"
        raise ModelError(action, "it has no classification head (tensor 'head.weight' is missing)", hint)
    rows = shape_of(arrays, "head.weight", 2, action)[0]
    published_classes = published.num_classes if published.num_classes is not None else published.pretrained.num_classes
    if published_classes not in (None, rows):
        reason = f"{CONFIG_JSON} says {published_classes} classes and 'head.weight' has {rows}"
        raise ModelError(action, reason, f"correct {CONFIG_JSON}")
    return rows


def _image_size(published: Published, action: str) -> tuple[int, int]:
    """Return the picture size that the weights are for."""
    given = published.model_args.get("img_size")
    return image_size_of(given or (published.pretrained.input_size or DEFAULTS["input_size"])[1:], action)


def _data_size(published: Published, action: str) -> tuple[int, int]:
    """Return the size of prepared pictures: the weights' size, or another for models that resize as they run."""
    args, input_size = published.model_args, published.pretrained.input_size
    if input_size and (args.get("dynamic_img_size") or args.get("strict_img_size") is False):
        return image_size_of(input_size[1:], action)
    return _image_size(published, action)


def _pool(published: Published, words: list[str], arrays: Arrays, action: str) -> Literal["token", "avg"]:
    pool = published.global_pool or published.model_args.get("global_pool")
    if pool is None and "dinov3" in words:
        hint = f'add "global_pool": "token" or "avg" to {CONFIG_JSON}'
        raise ModelError(action, "no file says how its tokens are pooled", hint)
    if pool is None:
        average = "cls_token" not in arrays or "fc_norm.weight" in arrays
        pool = "avg" if average else "token"
    if pool not in ("token", "avg"):
        raise ModelError(action, f"pooling '{pool}' isn't offered", TO_ONNX)
    return "avg" if pool == "avg" else "token"


def _heads(published: Published, words: list[str], arrays: Arrays, embed_dim: int, action: str) -> int:
    name, heads = published.architecture, published.model_args.get("num_heads")
    if heads is None and "blocks.0.attn.q_norm.weight" in arrays:
        heads = embed_dim // max(1, shape_of(arrays, "blocks.0.attn.q_norm.weight", 1, action)[0])
    if heads is None and "rope.freqs" in arrays:
        heads = shape_of(arrays, "rope.freqs", 4, action)[2]
    if heads is None and "dinov3" in words and embed_dim <= 1280:
        heads = embed_dim // 64
    if heads is None:
        heads = _ODD_HEADS.get(name) or _HEADS.get(embed_dim) or (embed_dim // 64 if embed_dim in _WIDTHS_64 else None)
    if not isinstance(heads, int) or heads < 1:
        reason = f"the number of attention heads of '{name}' with {embed_dim} channels isn't told by its tensors"
        raise ModelError(action, reason, f'add "num_heads" to model_args in {CONFIG_JSON}')
    return heads


def _preprocessing(
    published: Published, size: tuple[int, int], given: Mapping[str, Any], action: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the contract's fields, and those of them that timm's defaults fill."""
    channels = (published.pretrained.input_size or DEFAULTS["input_size"])[0]
    if "img_size" not in published.model_args and channels != 3:
        raise ModelError(action, f"input_size has {channels} channels, not RGB", f"correct {CONFIG_JSON}")
    return evaluation_transform(msgspec.structs.asdict(published.pretrained), size, given, action)


def _classes(published: Published, count: int, action: str) -> tuple[ClassLabel, ...] | None:
    """Return the classes. ``label_names`` are keys (WordNet ids for ImageNet); ``label_descriptions`` explain them."""
    names = published.label_names or published.pretrained.label_names
    if not names:
        return None
    if isinstance(names, dict):
        names = [names.get(str(index), "") for index in range(len(names))]
    if len(names) != count or not all(names):
        hint = f"correct {CONFIG_JSON}, or name a file with --labels"
        raise ModelError(action, f"label_names has {len(names)} names; the head has {count} classes", hint)
    descriptions = published.label_descriptions or published.pretrained.label_descriptions or {}
    if isinstance(descriptions, list):
        descriptions = dict(zip(names, descriptions, strict=False))
    return class_table([descriptions.get(name, name) for name in names], names)
