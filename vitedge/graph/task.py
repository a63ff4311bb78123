"""The task that a published model was trained for: one class for a picture, or a task that vitedge doesn't support."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from vitedge.errors import ModelError
from vitedge.graph.checkpoint import CONFIG_JSON

OTHER_MODEL = "use a model that was trained to tell one class a picture"
#: Values of transformers' ``problem_type``.
_REFUSED = {
    "multi_label_classification": "several labels a picture (multi-label), which isn't offered",
    "regression": "a number (regression), which isn't offered",
}
_MULTI_LABEL = ("multi_label", "multilabel", "multi-label", "is_multi_label")
#: timm's training script leaves its options in this file.
TIMM_OPTIONS = "args.yaml"


def require_one_class(settings: Mapping[str, Any], where: str, activation: str | None, action: str) -> None:
    """Refuse a model whose settings say that it answers anything but one class out of several.

    Args:
        settings: of ``config.json``, or of a training run.
        where: what holds them, for error texts.
        activation: what the caller says of the outputs; None: nothing.
        action: for error texts.

    Raises:
        ModelError: several labels a picture, a regression, or a loss that trains a sigmoid of each class where the
            caller doesn't say that these are wanted.
    """
    problem = settings.get("problem_type")
    if problem not in (None, "single_label_classification"):
        meaning = _REFUSED.get(str(problem), "something that isn't known here")
        raise ModelError(action, f"{where} says problem_type '{str(problem)[:60]}': {meaning}", OTHER_MODEL)
    if key := next((key for key in _MULTI_LABEL if settings.get(key)), None):
        raise ModelError(action, f"{where} says {key}: {_REFUSED['multi_label_classification']}", OTHER_MODEL)
    if settings.get("bce_loss") and activation != "sigmoid":
        reason = f"{where} says bce_loss: it was trained as a sigmoid of each class, so no softmax gives probabilities"
        hint = "if every picture has one class, add: --activation sigmoid; several labels a picture aren't offered"
        raise ModelError(action, reason, hint)


def require_several_classes(count: int, where: str, action: str) -> None:
    """Refuse a head of one output.

    Raises:
        ModelError: ``count`` is 1.
    """
    if count == 1:
        reason = f"{where} has one value a picture: a regression or a yes-or-no score, not a class out of several"
        raise ModelError(action, reason, "use a model with one output a class; for yes or no, two outputs")


def require_one_class_beside(folder: Path, activation: str | None, action: str) -> None:
    """Apply :func:`require_one_class` to the files beside weights or a graph: ``config.json`` and timm's ``args.yaml``.

    What isn't there or can't be read says nothing; who needs a file reads it himself.
    """
    try:
        config = msgspec.json.decode((folder / CONFIG_JSON).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        config = {}
    for part in (config, config.get("pretrained_cfg"), config.get("model_args")):
        if isinstance(part, Mapping):
            require_one_class(part, CONFIG_JSON, activation, action)
    with contextlib.suppress(OSError):
        text = (folder / TIMM_OPTIONS).read_text(encoding="utf-8", errors="replace")
        trained = re.search(r"^bce_loss:\s*true\s*$", text, re.MULTILINE | re.IGNORECASE)
        require_one_class({"bce_loss": trained is not None}, TIMM_OPTIONS, activation, action)
