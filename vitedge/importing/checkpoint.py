"""Import a published checkpoint: author its graph, and compare it with a float64 forward pass in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from vitedge.core.files import sha256_file
from vitedge.data.images import ImageSet
from vitedge.errors import ModelError
from vitedge.formats.model_folder import MODEL_ONNX, MODEL_WEIGHTS
from vitedge.importing.contract import contract_of
from vitedge.importing.proof import Imported, frames_of, parity_of, runner

if TYPE_CHECKING:
    from vitedge.graph.mappings import Checkpoint
    from vitedge.graph.state_dicts import Choice


def import_checkpoint(
    kind: str,
    path: Path,
    options: dict[str, Any],
    images: str | Path | ImageSet | None,
    action: str,
    *,
    named: bool = False,
    choice: Choice | None = None,
) -> Imported:
    """Author the graph of a published checkpoint, and compare it with a float64 forward pass in numpy.

    ``named``: the classes are named by the caller, so that what the checkpoint calls them isn't read.
    """
    from vitedge.graph import author, mappings, reference, state_dicts, surgery, task

    patch_size = options.pop("patch_size", None)
    checkpoint: Checkpoint
    if kind == "published":
        task.require_one_class_beside(path if path.is_dir() else path.parent, options.get("activation"), action)
        choice = choice or state_dicts.Choice()
        checkpoint = mappings.read_published(path, options, patch_size=patch_size, named=named, choice=choice)
    else:
        checkpoint = mappings.read_own(path)
    task.require_several_classes(checkpoint.config.num_classes, "its classification head", action)
    contract = contract_of({**msgspec.structs.asdict(checkpoint.preprocessing), **options}, action)
    if contract.size != checkpoint.config.image_size or patch_size not in (None, checkpoint.config.stem.stride):
        reason = f"its weights are for images of {checkpoint.config.image_size}; size {contract.size} was given"
        raise ModelError(
            action, reason, "leave the sizes out, or continue training at another size: vitedge train --init-from"
        )
    normalisation: dict[str, Any] = {"mean": contract.mean, "std": contract.std, "rescale": contract.rescale}
    graph = author.author_vit(
        checkpoint.config, checkpoint.arrays, channel_order=contract.channel_order, **normalisation
    )
    frames = frames_of(images, contract, action)
    ordered = frames[..., ::-1] if contract.channel_order == "bgr" else frames
    step = max(1, (1 << 16) // (frames.shape[1] * frames.shape[2]))  # pictures at once, so that memory stays small
    pieces = [ordered[first : first + step] for first in range(0, len(ordered), step)]
    expected = np.concatenate(
        [reference.reference_logits(checkpoint.config, checkpoint.arrays, piece, **normalisation) for piece in pieces]
    )
    parity = parity_of("float64 forward pass in numpy", runner(graph, action)(frames), expected, action)
    files, record = {MODEL_ONNX: surgery.to_bytes(graph)}, checkpoint.record
    if record is not None:
        files[MODEL_WEIGHTS] = (path / MODEL_WEIGHTS).read_bytes()
    return Imported(
        kind=checkpoint.kind if record is None else record.origin.kind if kind != "embedded" else kind,
        name=checkpoint.name,
        num_classes=checkpoint.config.num_classes,
        files=files,
        preprocessing=contract,
        parity=parity,
        details={**checkpoint.details, "weights_sha256": sha256_file(state_dicts.weights_file(path, action))},
        classes=checkpoint.classes,
        licence=checkpoint.licence,
        architecture=checkpoint.config,
        training=record.training if record is not None else None,
        accuracy=record.accuracy if record is not None else None,
    )
