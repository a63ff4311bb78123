"""The start of a run: fresh weights of a zoo member, or a trained model's, with another head, size, or frozen parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from vitedge.core.randomness import seed_of
from vitedge.data import embedded
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError, UsageError
from vitedge.formats.architecture import ConvStem, ViTConfig
from vitedge.formats.model_folder import MODEL_JSON
from vitedge.graph.author import has_folded_stem
from vitedge.graph.merging import MERGED
from vitedge.graph.positions import resize_positions
from vitedge.training.optimizer import layer_of
from vitedge.training.options import TrainOptions
from vitedge.training.vit import VisionTransformer
from vitedge.training.whitening import most_channels
from vitedge.training.zoo import zoo_config

if TYPE_CHECKING:
    from vitedge.graph.mappings import Arrays, Checkpoint

HEADS = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")


@dataclass(frozen=True)
class Start:
    """The architecture to train, and its first weights."""

    config: ViTConfig
    weights: dict[str, Tensor] | None = None  # None: fresh ones. Without heads, where the classes are others
    folded: bool = False  # a convolutional stem has biases instead of BatchNorm, as shipped models do
    preprocessing: Preprocessing | None = None  # its mean and standard deviation go on being used
    name: str | None = None
    digest: str | None = None  # hex SHA-256 of the weights as they were read

    @property
    def needs_heads(self) -> bool:
        """Whether the weights are trained ones of other classes."""
        return self.weights is not None and "head.weight" not in self.weights

    def model(self, options: TrainOptions) -> VisionTransformer:
        """Return the module at step 0; frozen parts need no gradient and stay in evaluation mode."""
        torch.manual_seed(seed_of(options.seed, "initial weights"))
        model = VisionTransformer(self.config, drop_path=options.drop_path, folded=self.folded)
        if self.weights is not None:
            model.load_state_dict(self.weights, strict=False)
        elif options.identity_stem:
            _start_as_identity(model)
        if options.freeze is not None:
            _freeze(model, options.freeze)
        return model


def starting_point(options: TrainOptions, classes: Sequence[str], action: str) -> Start:
    """Return the start of a run with ``options``, for data with these class folders.

    Raises:
        UsageError: an unknown model, weights of another architecture than ``model``, or more frozen blocks than there
            are.
        ModelError: weights that can't be read.
    """
    if options.init_from is None:
        config = zoo_config(str(options.model), num_classes=len(classes), image_size=options.image_size)
        start = Start(_with_token(config, action) if options.distillation_token else config)
    elif options.distillation_token:
        raise UsageError(
            action, "a distillation token is part of a model from its first step", "leave out --distillation-token"
        )
    else:
        start = _from_model(options, classes, action)
    _check_stem_options(options, start.config, action)
    if options.small_first:
        small_size(start.config, action)
    if options.freeze is not None and options.freeze > start.config.depth:
        raise UsageError(
            action,
            f"{options.freeze} blocks are to be frozen; the model has {start.config.depth}",
            f"use --freeze {start.config.depth} or less",
        )
    if options.init_from is None and options.freeze is not None:
        raise UsageError(action, "fresh weights would be frozen", "name trained ones with --init-from")
    return start


def _with_token(config: ViTConfig, action: str) -> ViTConfig:
    try:
        return replace(config, distillation_token=True)
    except ValueError as error:
        raise UsageError(action, f"{error}", "choose a model with a class token, say vit_mini_patch4_32") from error


def _from_model(options: TrainOptions, classes: Sequence[str], action: str) -> Start:
    checkpoint = _read(str(options.init_from), action)
    theirs, contract = checkpoint.config, checkpoint.preprocessing
    try:
        config = replace(theirs, num_classes=len(classes), image_size=options.image_size or theirs.image_size)
    except ValueError as error:
        hint = f"choose a multiple of {theirs.stem.stride} pixels"
        raise UsageError(action, str(error), hint) from error
    if options.model is not None:
        member = zoo_config(options.model, num_classes=len(classes), image_size=config.image_size)
        if member != config:
            reason = f"{options.init_from} isn't a {options.model}"
            raise UsageError(action, reason, "leave out --model; the architecture is that of --init-from")
    if theirs.merges and config.grid != theirs.grid:
        raise UsageError(
            action, f"{options.init_from}: {MERGED}", "leave out --image-size, or start from the whole model"
        )
    arrays = dict(checkpoint.arrays)
    if "pos_embed" in arrays:
        prefix = theirs.prefix_tokens if theirs.position_embedding_covers_prefix else 0
        arrays["pos_embed"] = resize_positions(arrays["pos_embed"], theirs.grid, config.grid, prefix)
    weights = {key: torch.from_numpy(np.array(value, np.float32)) for key, value in arrays.items()}
    if (
        contract is not None and contract.channel_order == "bgr"
    ):  # training uses RGB, so the first kernel's channels are reversed
        first = next(key for key in weights if key.endswith("weight") and weights[key].ndim == 4)
        weights[first] = weights[first].flip(1)
        contract = replace(contract, channel_order="rgb", mean=contract.mean[::-1], std=contract.std[::-1])
    if checkpoint.classes is None or [label.folder for label in checkpoint.classes] != list(classes):
        for key in HEADS:
            weights.pop(key, None)
    return Start(
        config,
        weights,
        folded=has_folded_stem(weights),
        preprocessing=contract,
        name=checkpoint.name,
        digest=_digest(checkpoint.arrays),
    )


_FITTED = {
    "resize": "squash",
    "interpolation": "bicubic",
    "crop_fraction": 1.0,
}  # training fits pictures by its options


def _read(source: str, action: str) -> Checkpoint:
    from vitedge.graph import mappings
    from vitedge.graph.hf_processor import PREPROCESSOR

    path = embedded.FOLDER if source == "embedded" else Path(source)
    if not path.exists():
        raise UsageError(action, f"{path} doesn't exist", "name a model folder, a published checkpoint, or: embedded")
    if not (path / MODEL_JSON).is_file():
        try:
            return mappings.read_published(path, _FITTED)
        except UsageError as error:
            if PREPROCESSOR not in error.reason:
                raise
            hint = f"put the {PREPROCESSOR} of the model that it was fine-tuned from into the folder"
            raise UsageError(action, f"can't start from {source}: {error.reason}", hint) from error
    try:
        return mappings.read_own(path)
    except ModelError as error:
        hint = "name the checkpoint that it was imported from"
        raise ModelError(action, f"can't start from {source}: {error.reason}", hint) from error


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _check_stem_options(options: TrainOptions, config: ViTConfig, action: str) -> None:
    """Refuse options of a convolutional stem where there's none, or where its weights are trained ones.

    Raises:
        UsageError: one of them can't be followed.
    """
    asked = [name for name in ("whiten", "identity_stem") if getattr(options, name)]
    if not asked:
        return
    option = f"--{asked[0].replace('_', '-')}"
    if options.init_from is not None:
        raise UsageError(action, f"{option} is for fresh weights", f"leave out {option} or --init-from")
    if not isinstance(config.stem, ConvStem):
        hint = "choose a model with a convolutional stem, say vit_edge_pool_32"
        raise UsageError(action, f"{option} is for convolutional stems; {options.name} cuts patches", hint)
    first = config.stem.stages[0]
    if options.whiten and first.outputs > most_channels(first.kernel):
        reason = f"a {first.kernel}×{first.kernel} convolution has {most_channels(first.kernel)} whitening filters"
        hint = "leave out --whiten, or choose another --model"
        raise UsageError(action, f"{reason}; the first one of {options.name} has {first.outputs} channels", hint)


def small_size(config: ViTConfig, action: str) -> tuple[int, int]:
    """Return the (height, width) of the pictures of ``small_first``: three quarters, rounded to what the stem takes.

    Raises:
        UsageError: the model takes pictures of one size only, or of none that is smaller.
    """
    hint = "leave out --small-first"
    if config.rope is not None or config.merges:
        what = "merged tokens" if config.merges else "a rotary position embedding"
        raise UsageError(action, f"with {what} a model learns from pictures of its own size alone", hint)
    stride = config.stem.stride
    height, width = (int(0.75 * side / stride + 0.5) * stride for side in config.image_size)
    if (height, width) == config.image_size or min(config.grid_of((height, width))) < 1:
        raise UsageError(action, f"pictures of {config.image_size[0]}×{config.image_size[1]} can't be smaller", hint)
    return height, width


def _start_as_identity(model: VisionTransformer) -> None:
    """Let 3×3 convolutions copy their input channels at first (Jordan, 2404.00498); further channels stay random."""
    for module in model.patch_embed.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            torch.nn.init.dirac_(module.weight.data[: module.in_channels])


def _freeze(model: VisionTransformer, blocks: int) -> None:
    """Freeze the stem, the tokens, the positions and the first blocks."""
    for name, parameter in model.named_parameters():
        if layer_of(name, model.config.depth) <= blocks:
            parameter.requires_grad_(False)
    for part in (model.patch_embed, model.norm_pre, *list(model.blocks)[:blocks]):
        part.eval()
