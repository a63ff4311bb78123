"""Published checkpoint layouts: read a folder of weights as configuration, named arrays, preprocessing and classes.

Nothing of the publishing library is needed. What the tensors' names and shapes tell is read from them; what they can't
tell (heads, pooling, LayerNorm's epsilon, the activation) is read from the configuration file, then from the
architecture's name, and where neither says it the checkpoint is refused rather than guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from vitedge.errors import ModelError
from vitedge.formats.model_folder import MODEL_WEIGHTS, check_digests, read_model_record
from vitedge.graph.author import checked_parameters
from vitedge.graph.checkpoint import CONFIG_JSON, Arrays, Checkpoint, read_json, read_safetensors
from vitedge.graph.hf_layout import read_huggingface
from vitedge.graph.state_dicts import Choice, Wanted
from vitedge.graph.timm_layout import read_timm
from vitedge.graph.timm_run import read_trained

__all__ = [
    "Arrays",
    "Checkpoint",
    "read_huggingface",
    "read_own",
    "read_published",
    "read_safetensors",
    "read_timm",
    "read_trained",
]


class _Head(msgspec.Struct, frozen=True):
    """The keys that distinguish the layouts."""

    architecture: Any = None  # timm
    architectures: Any = None  # transformers


def read_published(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    patch_size: int | None = None,
    named: bool = False,
    choice: Choice = Choice(),  # noqa: B008 - it's frozen
) -> Checkpoint:
    """Read a folder with ``config.json`` beside its weights, or the weights file in it: timm's or transformers'.

    A file of weights without ``config.json`` beside it, or with an architecture named, is read as training leaves it.

    Args:
        path: the folder or the file.
        given: fields of :class:`~vitedge.data.preprocessing.Preprocessing` that override the published ones; with
            another ``size`` position embeddings are resized.
        patch_size: side in pixels; the patch projection is resized.
        named: the caller names the classes; the source's names aren't read.
        choice: the architecture, and which of the file's state dicts.

    Raises:
        UsageError: no such file, or preprocessing that isn't one.
        ModelError: malformed files, another architecture, tensors that don't fit, or something that can't be derived.
    """
    folder = path if path.is_dir() else path.parent
    action = f"import the checkpoint {path}"
    trained = choice.arch is not None or not (folder / CONFIG_JSON).is_file()
    read = read_trained if trained else _reader(folder, action)
    checkpoint = read(path, Wanted(given or {}, patch_size, named, choice))
    count = checkpoint.config.num_classes
    if choice.num_classes not in (None, count):
        reason = f"its head has {count} classes; --num-classes says {choice.num_classes}"
        raise ModelError(action, reason, "leave out --num-classes, or name the checkpoint that was fine-tuned")
    return checkpoint


def _reader(folder: Path, action: str) -> Callable[..., Checkpoint]:
    """Return the reader of the layout that ``config.json`` has."""
    head = read_json(folder / CONFIG_JSON, _Head, action)
    if head.architecture is None and head.architectures is None:
        hint = "name a folder of timm or transformers, or export the model to ONNX and import that"
        raise ModelError(action, f"{CONFIG_JSON} names no architecture", hint)
    return read_timm if head.architecture is not None else read_huggingface


def read_own(path: Path) -> Checkpoint:
    """Read a model folder that ``vitedge train`` wrote, or the embedded one: ``model.json`` and ``model.safetensors``.

    Raises:
        ModelError: altered files, or a model without its architecture or weights.
    """
    action = f"read the model {path}"
    record = read_model_record(path, action)
    check_digests(path, record.files, action, ModelError, "copy the folder again")
    if record.architecture is None or MODEL_WEIGHTS not in record.files:
        raise ModelError(
            action, f"it holds no {MODEL_WEIGHTS} with an architecture; it is imported already", "export it"
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
