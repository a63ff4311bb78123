"""transformers' published layout: ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``.

Read are ``ViTForImageClassification``, ``DeiTForImageClassification``, ``DeiTForImageClassificationWithTeacher``,
``Dinov2ForImageClassification`` and ``Dinov2WithRegistersForImageClassification``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec.structs import replace

from vitedge.errors import ModelError
from vitedge.formats.architecture import PatchStem, ViTConfig
from vitedge.formats.model_folder import ClassLabel, class_table
from vitedge.graph.author import checked_parameters, expected_parameters
from vitedge.graph.checkpoint import (
    CONFIG_JSON,
    TO_ONNX,
    Arrays,
    Checkpoint,
    contract_from,
    image_size_of,
    read_json,
    readme_licence,
    resized,
    taken_defaults,
)
from vitedge.graph.hf_processor import PREPROCESSOR, read_preprocessing
from vitedge.graph.state_dicts import NOTHING_SAID, Wanted, weights_in


@dataclass(frozen=True)
class _Family:
    """The properties that an architecture's class name implies."""

    prefix: str  # of its tensors
    distillation: Literal["none", "register", "head"] = "none"  # "register": its token is there, its head isn't
    dino: bool = False  # LayerScale, a head on class token and average, any image size
    antialias: bool = False  # of resized position embeddings


FAMILIES = {
    "ViTForImageClassification": _Family("vit"),
    "DeiTForImageClassification": _Family("deit", distillation="register"),
    "DeiTForImageClassificationWithTeacher": _Family("deit", distillation="head"),
    "Dinov2ForImageClassification": _Family("dinov2", dino=True),
    "Dinov2WithRegistersForImageClassification": _Family("dinov2_with_registers", dino=True, antialias=True),
}


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of ``config.json`` that are read; others don't affect inference. Defaults are the format's own."""

    architectures: tuple[str, ...]
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    mlp_ratio: float = 4.0
    hidden_act: str = "gelu"
    layer_norm_eps: float | None = None
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] | None = None
    num_channels: int = 3
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False
    num_register_tokens: int = 4
    id2label: dict[int, str] | None = None
    num_labels: int | None = None
    name: str | None = msgspec.field(name="_name_or_path", default=None)


def read_huggingface(path: Path, wanted: Wanted = NOTHING_SAID) -> Checkpoint:
    """Read a folder in transformers' published layout, or the weights file in it.

    Args:
        path: the folder or the file.
        wanted: what the caller says of it.

    Raises:
        UsageError: no such file, or preprocessing that isn't one or isn't said.
        ModelError: malformed files, another architecture, or tensors that don't fit.
    """
    folder, given = path if path.is_dir() else path.parent, wanted.given
    action = f"import the Hugging Face checkpoint {path}"
    published = read_json(folder / CONFIG_JSON, _Config, action)
    name = published.architectures[0] if published.architectures else "none"
    family = FAMILIES.get(name)
    if family is None:
        reason = f"architecture '{name[:80]}' isn't known here; these are: {', '.join(FAMILIES)}"
        raise ModelError(action, reason, TO_ONNX)
    weights = weights_in(path, (f"{family.prefix}.embeddings.cls_token",), wanted.choice, action)
    source = weights.arrays
    config = _architecture(published, family, source, action)
    config, arrays = _gathered(config, family, source, action)
    fields, defaults = read_preprocessing(folder, family.prefix, config.image_size, given, action)
    size = image_size_of(given.get("size", fields["size"]), action, PREPROCESSOR)
    if size != config.image_size and "size" not in given and not family.dino:
        reason = f"{PREPROCESSOR} makes {size[0]}×{size[1]} pixels and {CONFIG_JSON} says {published.image_size}"
        raise ModelError(action, reason, "say which with --size; position embeddings are resized")
    config, arrays, done = resized(
        config, arrays, size, action, patch_size=wanted.patch_size, antialias=family.antialias
    )
    return Checkpoint(
        kind="huggingface",
        name=Path(published.name or "").name or folder.resolve().name,
        config=config,
        arrays=arrays,
        preprocessing=contract_from(fields, given, PREPROCESSOR, action),
        classes=None if wanted.named else _classes(published, config.num_classes, action),
        licence=readme_licence(folder),
        details={"architecture": name, **weights.details, **done, **taken_defaults(defaults, given)},
    )


def _architecture(published: _Config, family: _Family, source: Arrays, action: str) -> ViTConfig:
    activation: Any = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}.get(
        published.hidden_act
    )
    if activation is None:
        raise ModelError(action, f"the activation '{published.hidden_act}' isn't GELU", TO_ONNX)
    if published.num_channels != 3:
        raise ModelError(action, f"it takes {published.num_channels} channels, not RGB", "other models aren't offered")
    default = {"dinov2": 14}.get(family.prefix, 16)
    patch = image_size_of(published.patch_size or default, action)
    head = "cls_classifier" if family.distillation == "head" else "classifier"
    if f"{head}.weight" not in source:
        hint = "use a checkpoint that was fine-tuned for classification"
        raise ModelError(action, f"it has no classification head (tensor '{head}.weight' is missing)", hint)
    if patch[0] != patch[1]:
        raise ModelError(action, f"patches of {patch[0]}×{patch[1]} pixels aren't square", TO_ONNX)
    hidden = published.intermediate_size or 4 * published.hidden_size
    if family.dino:
        hidden = int(published.hidden_size * published.mlp_ratio)
        if published.use_swiglu_ffn:  # two thirds, in eights
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    registers = published.num_register_tokens if family.prefix == "dinov2_with_registers" else 0
    try:
        return ViTConfig(
            image_size=image_size_of(published.image_size, action),
            stem=PatchStem(patch_size=patch[0]),
            embed_dim=published.hidden_size,
            depth=published.num_hidden_layers,
            num_heads=published.num_attention_heads,
            mlp_hidden=hidden,
            mlp="swiglu" if family.dino and published.use_swiglu_ffn else "plain",
            num_classes=int(source[f"{head}.weight"].shape[0]) if source[f"{head}.weight"].ndim else 0,
            distillation_token=family.distillation == "head",
            register_tokens=1 if family.distillation == "register" else registers,
            qkv_bias=published.qkv_bias,
            layer_scale=family.dino,
            pool="token_avg" if family.dino else "token",
            layer_norm_eps=published.layer_norm_eps or (1e-6 if family.dino else 1e-12),
            activation=activation,
        )
    except (ValueError, ArithmeticError) as error:
        raise ModelError(action, str(error), f"correct {CONFIG_JSON}") from error


def _gathered(config: ViTConfig, family: _Family, source: Arrays, action: str) -> tuple[ViTConfig, Arrays]:
    """Return the tensors under our names, each shape checked under the source's name; refuse tensors left over."""
    hint = "download the checkpoint again, or pass the configuration that belongs to it"
    if config.depth > len(source) or config.tokens > 1 << 14:
        raise ModelError(
            action, f"{config.depth} blocks of {config.tokens} tokens don't fit {len(source)} tensors", hint
        )
    arrays: Arrays = {}
    used: set[str] = set()
    patches = config.grid[0] * config.grid[1]
    registers = family.prefix == "dinov2_with_registers"
    for ours, shape in expected_parameters(config):
        if ours == "pos_embed" and registers:  # there for the class token and the patches, none for the registers
            shape = (1, 1 + patches, config.embed_dim)
        names = _theirs(ours, family, config.mlp == "swiglu")
        expected = (shape[0] // len(names), *shape[1:])
        for name in names:
            if name not in source:
                raise ModelError(action, f"tensor '{name}' is missing; expected shape {list(expected)}", hint)
            if source[name].shape != expected:
                reason = f"tensor '{name}': expected shape {list(expected)}, received {list(source[name].shape)}"
                raise ModelError(action, reason, hint)
        used.update(names)
        arrays[ours] = np.concatenate([source[name] for name in names]) if len(names) > 1 else source[names[0]]
    if unknown := sorted(name for name in source.keys() - used if not _idle(name, family)):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        reason = f"tensor '{unknown[0]}' {list(source[unknown[0]].shape)}{more}: the configuration has no place for it"
        raise ModelError(action, reason, hint)
    if registers:
        positions = arrays["pos_embed"].astype(np.float32)
        arrays["cls_token"] = arrays["cls_token"].astype(np.float32) + positions[:, :1]
        arrays["pos_embed"] = positions[:, 1:]
        config = replace(config, position_embedding_covers_prefix=False)
    checked_parameters(config, arrays)
    return config, arrays


_EMBEDDINGS = {
    "patch_embed.proj": "patch_embeddings.projection",
    "cls_token": "cls_token",
    "dist_token": "distillation_token",
    "reg_token": "register_tokens",
    "pos_embed": "position_embeddings",
}
_HEADS = {"norm": "layernorm", "head": "classifier", "head_dist": "distillation_classifier"}
_VIT_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_DINO_BLOCK = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}


def _theirs(ours: str, family: _Family, swiglu: bool) -> tuple[str, ...]:
    """Return the source's tensors that form one of ours, one below the other."""
    part, _, kind = ours.rpartition(".")
    if ours == "reg_token" and family.distillation == "register":
        return (f"{family.prefix}.embeddings.distillation_token",)
    if ours in _EMBEDDINGS:
        return (f"{family.prefix}.embeddings.{_EMBEDDINGS[ours]}",)
    if part in _EMBEDDINGS:
        return (f"{family.prefix}.embeddings.{_EMBEDDINGS[part]}.{kind}",)
    if part == "norm":
        return (f"{family.prefix}.layernorm.{kind}",)
    if part in _HEADS:
        first = part == "head" and family.distillation == "head"
        return (f"{'cls_' if first else ''}{_HEADS[part]}.{kind}",)
    _, index, inside = ours.split(".", 2)
    block, inside = f"{family.prefix}.encoder.layer.{index}", inside.removesuffix(f".{kind}")
    if inside == "attn.qkv":
        return tuple(f"{block}.attention.attention.{third}.{kind}" for third in ("query", "key", "value"))
    if inside == "attn.proj":
        return (f"{block}.attention.output.dense.{kind}",)
    if f"{inside}.{kind}" in _DINO_BLOCK:
        return (f"{block}.{_DINO_BLOCK[f'{inside}.{kind}']}",)
    if swiglu and inside.startswith("mlp."):
        return (f"{block}.mlp.{'weights_in' if inside == 'mlp.fc1' else 'weights_out'}.{kind}",)
    return (f"{block}.{inside if family.dino else _VIT_BLOCK[inside]}.{kind}",)


def _classes(published: _Config, count: int, action: str) -> tuple[ClassLabel, ...] | None:
    """Return the class names of ``id2label``; transformers' placeholders LABEL_0, LABEL_1, … aren't names."""
    names = published.id2label
    if not names or all(name == f"LABEL_{index}" for index, name in names.items()):
        return None
    if sorted(names) != list(range(count)):
        hint = f"correct {CONFIG_JSON}, or name a file with --labels"
        raise ModelError(action, f"id2label names {len(names)} classes; the head has {count}", hint)
    listed = [names[index] for index in range(count)]
    return class_table(listed, [name if listed.count(name) == 1 else None for name in listed])


def _idle(name: str, family: _Family) -> bool:
    """Return the tensors that classification doesn't use: the mask token of pre-training, the bare model's pooler."""
    return name in (
        f"{family.prefix}.embeddings.mask_token",
        f"{family.prefix}.pooler.dense.weight",
        f"{family.prefix}.pooler.dense.bias",
    )
