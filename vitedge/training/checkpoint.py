"""The checkpoint of a run: everything its next step depends on, in one file that is replaced atomically."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vitedge.core.files import resource_errors, write_atomic
from vitedge.errors import ModelError, UsageError
from vitedge.training.engine import Processes

CHECKPOINT = "checkpoint.pt"


def prepare_run(run: Path, *, resume: bool, overwrite: bool, action: str) -> None:
    """Prepare an empty run folder, or with ``resume`` open the one that holds a checkpoint.

    Raises:
        UsageError: there is no checkpoint to resume, or one that may not be replaced.
    """
    checkpoint = run / CHECKPOINT
    if resume and not checkpoint.is_file():
        raise UsageError(action, f"there is no checkpoint {checkpoint} to resume", "leave out --resume")
    if not resume and checkpoint.exists():
        if not overwrite:
            raise UsageError(
                action,
                f"{run} holds the checkpoint of an earlier run",
                "add --resume to go on, or --overwrite to start over",
            )
        shutil.rmtree(run)
    with resource_errors(action):
        run.mkdir(parents=True, exist_ok=True)


def save(run: Path, state: Mapping[str, Any], action: str) -> None:
    """Write the state of a run into its folder.

    Raises:
        ResourceError: it can't be written.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomic(run / CHECKPOINT, buffer.getvalue(), action)


def load(run: Path, identity: Mapping[str, Any], group: Processes, action: str) -> dict[str, Any]:
    """Load the state in a run's folder, which the first process reads.

    Args:
        run: the folder.
        identity: what must be equal for the run to be continued.
        group: the processes of the run.
        action: for error texts.

    Raises:
        UsageError: it belongs to other options or data.
        ModelError: it can't be read.
    """
    path = run / CHECKPOINT
    try:
        data = group.on_first(path.read_bytes)
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=group.device, weights_only=True)
        theirs = state["identity"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise group.fail(
            ModelError(action, f"{path} can't be read: {type(error).__name__}: {error}", "start over with --overwrite")
        ) from error
    for name in identity:
        if theirs.get(name) != identity[name]:
            raise group.fail(
                UsageError(
                    action,
                    f"the checkpoint was written with {name} {theirs.get(name)}, and this run has {identity[name]}",
                    "resume with the same options and data, or start over with --overwrite",
                )
            )
    return state
