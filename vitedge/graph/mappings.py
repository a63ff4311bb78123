"""Published checkpoint layouts: a folder of weights becomes a configuration, named arrays, preprocessing and classes.

Nothing of the publishing library is needed. What the tensors' names and shapes tell is read from them; what they can't
tell (heads, pooling, LayerNorm's epsilon, the activation) is read from the configuration file, then from the
architecture's name, and where neither says it the checkpoint is refused rather than guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitedge.architecture import PatchStem, ViTConfig
from vitedge.errors import ModelError, NotInstalledError, UsageError
from vitedge.graph.author import checked_parameters
from vitedge.model_folder import (
    MODEL_WEIGHTS,
    ClassLabel,
    ModelRecord,
    check_digests,
    class_table,
    read_model_record,
)
from vitedge.preprocessing import Preprocessing

Arrays = dict[str, NDArray[np.generic]]

TIMM_CONFIG = "config.json"
MAX_BYTES = 1 << 31


@dataclass(frozen=True)
class Checkpoint:
    """A published model, read and checked: enough to author its graph."""

    kind: Literal["timm", "vitedge"]
    name: str
    config: ViTConfig
    arrays: Arrays  # timm's parameter names, as stored
    preprocessing: Preprocessing
    classes: tuple[ClassLabel, ...] | None  # None: the source names none
    licence: str | None
    details: dict[str, Any] = field(default_factory=dict)
    record: ModelRecord | None = None  # of a model folder of ours


def read_own(path: Path) -> Checkpoint:
    """A model folder that ``vitedge train`` wrote, or the embedded one: ``model.json`` and ``model.safetensors``.

    Raises:
        ModelError: altered files, or a model without its architecture or weights.
    """
    asked = f"read the model {path}"
    record = read_model_record(path, asked)
    check_digests(path, record.files, asked, ModelError, "copy the folder again")
    if record.architecture is None or MODEL_WEIGHTS not in record.files:
        raise ModelError(
            asked, f"it holds no {MODEL_WEIGHTS} with an architecture; it is imported already", "export it"
        )
    arrays = read_safetensors(path / MODEL_WEIGHTS)
    checked_parameters(record.architecture, arrays)
    return Checkpoint(
        kind="vitedge",
        name=record.name,
        config=record.architecture,
        arrays=arrays,
        preprocessing=record.preprocessing,
        classes=record.classes,
        licence=record.licence,
        record=record,
    )


def read_timm(path: Path) -> Checkpoint:
    """A folder in timm's published layout (``config.json`` beside ``model.safetensors``), or its weights file.

    Plain families: ViT, DeiT, distilled DeiT, DeiT-III, CLIP-style pre-norm, registers, average pooling, with or
    without LayerScale and QK-norm; a classification head is obligatory.

    Raises:
        UsageError: no such file.
        ModelError: malformed files, another architecture, tensors that don't fit, or something that can't be derived.
    """
    folder, weights = (path, path / MODEL_WEIGHTS) if path.is_dir() else (path.parent, path)
    asked = f"import the timm checkpoint {path}"
    published = _read_timm_config(folder / TIMM_CONFIG, asked)
    if not weights.is_file() and (folder / "pytorch_model.bin").is_file():
        fix = "download model.safetensors; timm publishes it beside the .bin"
        raise ModelError(asked, f"{MODEL_WEIGHTS} is missing, and pickled weights aren't opened", fix)
    arrays = read_safetensors(weights)
    config = _timm_architecture(published, arrays, asked)
    if "patch_embed.proj.bias" not in arrays and config.pre_norm:  # CLIP's patch convolution has none
        arrays["patch_embed.proj.bias"] = np.zeros(config.embed_dim, np.float32)
    checked_parameters(config, arrays)
    details = {"architecture": published.architecture, "tag": published.pretrained.tag}
    return Checkpoint(
        kind="timm",
        name=published.architecture,
        config=config,
        arrays=arrays,
        preprocessing=_timm_preprocessing(published, config, asked),
        classes=_timm_classes(published, config.num_classes, asked),
        licence=published.pretrained.license or _readme_licence(folder),
        details={key: value for key, value in details.items() if value},
    )


def read_safetensors(path: Path) -> Arrays:
    """Every tensor of a safetensors file; bfloat16 becomes float32, exactly.

    Raises:
        UsageError: no such file.
        ModelError: not a safetensors file, or a type that weights of a float model can't have.
    """
    asked, fix = f"read the weights {path}", "export or download the safetensors file again"
    try:
        from safetensors import deserialize
    except ImportError as error:
        raise NotInstalledError.for_extra(asked, "safetensors", "host") from error
    if not path.is_file():
        raise UsageError(asked, "there is no such file", "name a folder that holds model.safetensors")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(asked, "the file is larger than 2 GB", "vitedge is for compact models")
    arrays: Arrays = {}
    try:
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            kind, data = tensor["dtype"], tensor["data"]
            if kind == "BF16":  # the upper half of a float32
                values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data, _SAFETENSORS_TYPES[kind])
            arrays[name] = values.reshape(tensor["shape"])
    except KeyError as error:
        raise ModelError(asked, f"a tensor is of type {error}, which float weights don't have", fix) from error
    except Exception as error:  # the library's errors have no public type
        raise ModelError(asked, f"it is not a sound safetensors file: {error}", fix) from error
    return arrays


_SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}


class _Pretrained(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of timm's ``pretrained_cfg``; its other keys don't touch inference."""

    input_size: tuple[int, int, int]  # (channels, height, width)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float = 0.875  # timm's own defaults, for the three keys that it leaves out
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    num_classes: int | None = None
    license: str | None = None
    tag: str | None = None
    label_names: list[str] | dict[str, str] | None = None
    label_descriptions: list[str] | dict[str, str] | None = None


class _Published(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of ``config.json``. Older files are one flat dictionary; ``pretrained`` is then the whole."""

    architecture: str
    pretrained: _Pretrained
    num_classes: int | None = None
    global_pool: str | None = None
    model_args: dict[str, Any] = {}
    label_names: list[str] | dict[str, str] | None = None
    label_descriptions: list[str] | dict[str, str] | None = None


def _read_timm_config(path: Path, asked: str) -> _Published:
    try:
        raw = msgspec.json.decode(path.read_bytes())
        if not isinstance(raw, dict):
            raise ModelError(asked, f"{TIMM_CONFIG} is no JSON object", "download it again")
        return msgspec.convert({**raw, "pretrained": raw.get("pretrained_cfg", raw)}, _Published)
    except OSError as error:
        fix = "name a folder that holds config.json and model.safetensors"
        raise ModelError(asked, f"{TIMM_CONFIG} can't be read: {error.strerror}", fix) from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ModelError(asked, f"{TIMM_CONFIG} isn't timm's: {error}", "download it again") from error


# Architecture names are words joined by underscores. A name made of these words alone is a plain ViT; any other word
# ("rope", "rpn", "quickgelu", "map", …) stands for something that tensor names need not show.
_WORDS = re.compile(
    r"vit|vit2|deit|deit3|flexivit|test|distilled|clip|gap|dinov2|tipsv2|miil|plus|36x1|patch\d+|reg\d+|\d+|"
    r"tiny|wee|xsmall|little|small|medium|mediumd|betwixt|base|large|huge|giant|gigantic|so150m|so150m2|so400m"
)
# Heads by width where the width isn't 64 channels a head.
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
_WIDTHS_64 = (192, 256, 320, 384, 448, 512, 576, 640, 768, 832, 896, 1024)
_ODD_HEADS = {"test_vit": 2, "test_vit2": 2, "vit_base_patch16_gap_224": 16}
# Keys of ``model_args`` that the tensors or the fields above tell already, or that matter in training alone.
_KNOWN_ARGS = re.compile(
    r"img_size|patch_size|in_chans|num_classes|global_pool|embed_dim|depth|num_heads|mlp_ratio|qkv_bias|qk_norm|"
    r"init_values|class_token|no_embed_class|reg_tokens|pre_norm|fc_norm|act_layer|dynamic_img_size|strict_img_size|"
    r"(pos_|patch_|proj_|attn_)?drop_rate|drop_path_rate|weight_init|fix_init"
)
_ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh"]] = {"None": "gelu", "gelu": "gelu", "gelu_tanh": "gelu_tanh"}


def _timm_architecture(published: _Published, arrays: Mapping[str, NDArray[np.generic]], asked: str) -> ViTConfig:
    name, args = published.architecture, published.model_args
    words = name.split("_")
    if words[0] not in ("vit", "deit", "deit3", "flexivit", "test") or not all(map(_WORDS.fullmatch, words)):
        odd = next((word for word in words if not _WORDS.fullmatch(word)), words[0])
        fix = "export it to ONNX and import that"
        raise ModelError(asked, f"architecture '{name}' isn't a plain ViT or DeiT that is known here ('{odd}')", fix)
    if strange := [key for key in sorted(args) if not _KNOWN_ARGS.fullmatch(key)]:
        fix = "export the model to ONNX and import that"
        raise ModelError(asked, f"model_args in {TIMM_CONFIG} has '{strange[0]}', which isn't understood", fix)
    activation = _ACTIVATIONS.get(str(args.get("act_layer")))
    if activation is None:
        fix = "export the model to ONNX and import that"
        raise ModelError(asked, f"the activation '{args['act_layer']}' isn't GELU", fix)

    kernel = _shape(arrays, "patch_embed.proj.weight", 4, asked)
    if kernel[1] != 3:
        fix = "one-channel and other models aren't offered"
        raise ModelError(asked, f"'patch_embed.proj.weight' takes {kernel[1]} channels, not RGB", fix)
    classes = _timm_num_classes(published, arrays, asked)
    image = _timm_image_size(published, args, asked)
    embed_dim, patch = kernel[0], kernel[2]
    if not embed_dim or not patch or kernel[3] != patch or image[0] % patch or image[1] % patch:
        true = f"images of {image[0]}×{image[1]} pixels aren't made of whole patches of {kernel[2]}×{kernel[3]}"
        raise ModelError(asked, true, "use the image size of the checkpoint")
    class_token, distilled = "cls_token" in arrays, "dist_token" in arrays
    registers = _shape(arrays, "reg_token", 3, asked)[1] if "reg_token" in arrays else 0
    prefix = int(class_token) + int(distilled) + registers
    patches = (image[0] // patch) * (image[1] // patch)
    positions = _shape(arrays, "pos_embed", 3, asked)[1] if "pos_embed" in arrays else None
    if positions not in (None, patches, patches + prefix):
        true = (
            f"tensor 'pos_embed': expected {patches} or {patches + prefix} positions for {image[0]}×{image[1]} pixels, "
            f"received {positions}"
        )
        raise ModelError(asked, true, f"set input_size in {TIMM_CONFIG} to the size that the weights are for")
    depth = len({match[1] for match in map(_BLOCK.match, arrays) if match})
    try:
        return ViTConfig(
            image_size=image,
            stem=PatchStem(patch_size=patch),
            embed_dim=embed_dim,
            depth=depth,
            num_heads=_timm_heads(name, args, arrays, embed_dim, asked),
            mlp_hidden=_shape(arrays, "blocks.0.mlp.fc1.weight", 2, asked)[0],
            num_classes=classes,
            class_token=class_token,
            distillation_token=distilled,
            register_tokens=registers,
            position_embedding="none" if positions is None else "learned",
            position_embedding_covers_prefix=positions != patches or prefix == 0,
            qkv_bias="blocks.0.attn.qkv.bias" in arrays,
            qk_norm="blocks.0.attn.q_norm.weight" in arrays,
            layer_scale="blocks.0.ls1.gamma" in arrays,
            pre_norm="norm_pre.weight" in arrays,
            pool=_timm_pool(published, arrays, asked),
            final_norm="fc_norm" if "fc_norm.weight" in arrays else "norm",
            layer_norm_eps=1e-5 if "clip" in words else 1e-6,
            activation=activation,
        )
    except ValueError as error:
        raise ModelError(asked, str(error), f"correct {TIMM_CONFIG}") from error


_BLOCK = re.compile(r"blocks\.(\d+)\.")


def _shape(arrays: Mapping[str, NDArray[np.generic]], name: str, rank: int, asked: str) -> tuple[int, ...]:
    fix = "download the checkpoint again, or export the model to ONNX and import that"
    if name not in arrays:
        raise ModelError(asked, f"tensor '{name}' is missing", fix)
    shape = arrays[name].shape
    if len(shape) != rank:
        raise ModelError(asked, f"tensor '{name}': expected {rank} axes, received shape {list(shape)}", fix)
    return shape


def _timm_num_classes(published: _Published, arrays: Mapping[str, NDArray[np.generic]], asked: str) -> int:
    if "head.weight" not in arrays:
        fix = "use a checkpoint that was fine-tuned for classification"
        raise ModelError(asked, "it has no classification head (tensor 'head.weight' is missing)", fix)
    rows = _shape(arrays, "head.weight", 2, asked)[0]
    told = published.num_classes if published.num_classes is not None else published.pretrained.num_classes
    if told not in (None, rows):
        raise ModelError(
            asked, f"{TIMM_CONFIG} says {told} classes and 'head.weight' has {rows}", f"correct {TIMM_CONFIG}"
        )
    return rows


def _timm_image_size(published: _Published, args: Mapping[str, Any], asked: str) -> tuple[int, int]:
    size = args.get("img_size", published.pretrained.input_size[1:])
    size = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(size) != 2 or not all(isinstance(pixels, int) and 0 < pixels <= 4096 for pixels in size):
        raise ModelError(
            asked, f"the image size {list(size)} isn't [height, width] in pixels", f"correct {TIMM_CONFIG}"
        )
    return (size[0], size[1])


def _timm_pool(published: _Published, arrays: Mapping[str, NDArray[np.generic]], asked: str) -> Literal["token", "avg"]:
    pool = published.global_pool or published.model_args.get("global_pool")
    if pool is None:
        average = "cls_token" not in arrays or "fc_norm.weight" in arrays
        pool = "avg" if average else "token"
    if pool not in ("token", "avg"):
        raise ModelError(asked, f"pooling '{pool}' isn't offered", "export the model to ONNX and import that")
    return "avg" if pool == "avg" else "token"


def _timm_heads(
    name: str, args: Mapping[str, Any], arrays: Mapping[str, NDArray[np.generic]], embed_dim: int, asked: str
) -> int:
    told = args.get("num_heads")
    if told is None and "blocks.0.attn.q_norm.weight" in arrays:
        told = embed_dim // max(1, _shape(arrays, "blocks.0.attn.q_norm.weight", 1, asked)[0])
    if told is None:
        told = _ODD_HEADS.get(name) or _HEADS.get(embed_dim) or (embed_dim // 64 if embed_dim in _WIDTHS_64 else None)
    if not isinstance(told, int) or told < 1:
        true = f"the number of attention heads of '{name}' with {embed_dim} channels isn't told by its tensors"
        raise ModelError(asked, true, f'add "num_heads" to model_args in {TIMM_CONFIG}')
    return told


def _timm_preprocessing(published: _Published, config: ViTConfig, asked: str) -> Preprocessing:
    source = published.pretrained
    resize = {"center": "shortest", "squash": "squash"}.get(source.crop_mode)
    if resize is None:
        true = f"crop_mode '{source.crop_mode}' isn't offered"
        raise ModelError(asked, true, 'use "center" or "squash", or give the preprocessing yourself')
    if "img_size" not in published.model_args and source.input_size[0] != 3:
        raise ModelError(asked, f"input_size {list(source.input_size)} isn't RGB", f"correct {TIMM_CONFIG}")
    try:
        return msgspec.convert(
            {
                "size": config.image_size,
                "resize": resize,
                "interpolation": source.interpolation,
                "crop_fraction": source.crop_pct,
                "crop_rounding": "floor",
                "mean": source.mean,
                "std": source.std,
            },
            Preprocessing,
        )
    except (msgspec.MsgspecError, ValueError) as error:
        raise ModelError(asked, f"the preprocessing in {TIMM_CONFIG} can't be kept: {error}", "correct it") from error


def _timm_classes(published: _Published, count: int, asked: str) -> tuple[ClassLabel, ...] | None:
    """timm's ``label_names`` are keys (WordNet ids for ImageNet); ``label_descriptions`` say what they mean."""
    names = published.label_names or published.pretrained.label_names
    if not names:
        return None
    if isinstance(names, dict):
        names = [names.get(str(index), "") for index in range(len(names))]
    if len(names) != count or not all(names):
        fix = f"correct {TIMM_CONFIG}, or name a file with --labels"
        raise ModelError(asked, f"label_names has {len(names)} names; the head has {count} classes", fix)
    told = published.label_descriptions or published.pretrained.label_descriptions or {}
    if isinstance(told, list):
        told = dict(zip(names, told, strict=False))
    return class_table([told.get(name, name) for name in names], names)


def _readme_licence(folder: Path) -> str | None:
    """``license:`` in the front matter of the model card."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:8192]
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else None
