"""Publish the result of a run: the model folder, its record, and the picture of the curve."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vitedge._version import __version__
from vitedge.data.images import ImageSet
from vitedge.device.hardware import processor
from vitedge.formats.model_folder import MODEL_ONNX, MODEL_WEIGHTS, ModelRecord, Origin, class_table, write_model
from vitedge.graph.author import author_vit, contract_of
from vitedge.training.options import as_fields

if TYPE_CHECKING:
    from vitedge.training.trainer import Trainer


def write_trained(
    out: Path,
    trainer: Trainer,
    images: ImageSet,
    accuracy: dict[str, Any],
    *,
    command: str,
    overwrite: bool,
) -> Path:
    """Write ``model.safetensors`` (float16), ``model.onnx`` of its float32 upcast, ``model.json`` and the log.

    Raises:
        UsageError, ResourceError: as :func:`vitedge.core.files.new_folder`.
    """
    from safetensors.numpy import save

    preprocessing, options, arrays = trainer.data.preprocessing, trainer.options, trainer.shipped()
    name = options.model or trainer.start.name or "vit"
    graph = author_vit(
        trainer.config,
        {name: value.astype(np.float32) for name, value in arrays.items()},
        **contract_of(preprocessing),
        name=name,
    )
    training = {
        "command": command,
        "options": _recorded(trainer),
        "seed": options.seed,
        "epochs": options.epochs,
        "steps": trainer.step,
        "best_epoch": trainer.best["epoch"],
        "training_images": len(trainer.data.training),
        "held_out_images": len(trainer.data.hold_out),
        "wall_time_s": round(trainer.elapsed_s, 1),
        "parameters": sum(value.size for value in arrays.values()),
        "macs": trainer.config.macs(),
        "processes": trainer.group.count,
        **environment(trainer.group.device, bf16=trainer.bf16),
    }
    if trainer.start.digest is not None:
        training["initial_weights"] = {"name": trainer.start.name, "sha256": trainer.start.digest}
    if trainer.teacher_outputs is not None:
        training["teacher"] = {
            "name": trainer.teacher_outputs.teacher.name,
            "digest": trainer.teacher_outputs.teacher.digest,
        }
    record = ModelRecord(
        name=name,
        classes=class_table(images.classes),
        preprocessing=preprocessing,
        origin=Origin(kind="train", source=name),
        architecture=trainer.config,
        training=training,
        accuracy=accuracy,
    )
    files = {
        MODEL_WEIGHTS: save(dict(arrays)),
        MODEL_ONNX: graph.SerializeToString(deterministic=True),
        **trainer.logs(),
    }
    return write_model(out, record, files, overwrite=overwrite, action=trainer.action).path


def _recorded(trainer: Trainer) -> dict[str, Any]:
    """Return the options, with names in place of this machine's paths."""
    options = as_fields(trainer.options) | {"init_from": trainer.start.name}
    if trainer.teacher_outputs is not None:
        options["distillation"] |= {"teacher": trainer.teacher_outputs.teacher.name, "cache": None}
    return options


def environment(device: torch.device, *, bf16: bool) -> dict[str, Any]:
    """Return the device, settings and versions of a run."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": processor().model,
        "threads": torch.get_num_threads(),
        "precision": "bf16 autocast" if bf16 else "fp32",
        "versions": {"vitedge": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
    }
