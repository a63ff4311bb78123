"""A checkpoint from the user's own training under timm's names; the caller or the file names the architecture.

timm's ``train.py`` keeps its arguments in the file. They say which architecture, image size and preprocessing the
weights were trained with, as timm's ``resolve_data_config`` reads them; the rest is timm's default of the architecture.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from vitedge.errors import ModelError, UsageError
from vitedge.graph import timm_architectures
from vitedge.graph.author import expected_parameters
from vitedge.graph.checkpoint import Arrays, Checkpoint, taken_defaults
from vitedge.graph.state_dicts import NOTHING_SAID, Choice, Wanted, Weights, weights_in
from vitedge.graph.task import require_one_class
from vitedge.graph.timm_architectures import Architecture
from vitedge.graph.timm_layout import ANCHORS, Published, checkpoint_of, unified
from vitedge.graph.timm_transform import DEFAULTS, FIELDS

Scalar = int | float | bool | str | None


class _Run(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of train.py that are read. None: timm uses the architecture's default."""

    model: str | None = None
    img_size: int | None = None
    input_size: tuple[int, int, int] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    gp: str | None = None
    model_kwargs: dict[str, Scalar | list[int]] | None = None
    bce_loss: bool | None = None


#: Arguments of the module that leave its tensors as the name says, but for position embeddings and the head.
_NEUTRAL = {"img_size", "num_classes", "dynamic_img_size", "strict_img_size", "drop_rate", "drop_path_rate"}


def read_trained(path: Path, wanted: Wanted = NOTHING_SAID) -> Checkpoint:
    """Read weights as training leaves them: ``.pth``, ``.pt``, ``.ckpt``, ``.bin`` or ``.safetensors``.

    Args:
        path: the file, or a folder with ``model.safetensors`` or ``pytorch_model.bin``.
        wanted: what the caller says of it; nothing in such a file names its classes.

    Raises:
        UsageError: no architecture named, an unknown one, or preprocessing that isn't one.
        ModelError: not a sound file, or tensors that don't fit the architecture.
    """
    given = wanted.given
    action = f"import the checkpoint {path}"
    weights = weights_in(path, ANCHORS, wanted.choice, action)
    run = _run(weights.run.get("args"), action)
    architecture = _architecture(wanted.choice, run, weights, action)
    require_one_class({"bce_loss": run.bce_loss}, path.name, given.get("activation"), action)
    if not set(run.model_kwargs or ()) - _NEUTRAL:
        _refuse_misfit(architecture, weights.arrays, action)
    published, trained = _published(architecture, run)
    checkpoint = checkpoint_of(published, weights, wanted, action, file=path.name)
    contract = checkpoint.preprocessing
    usual = [FIELDS.get(key, key) for key in DEFAULTS if key not in trained]
    defaults = {"from": f"timm's for {architecture.name}", **{name: getattr(contract, name) for name in usual}}
    return replace(checkpoint, details={**checkpoint.details, **taken_defaults(defaults, given)})


def _run(arguments: object, action: str) -> _Run:
    if not isinstance(arguments, dict):
        return _Run()
    fields = {name: arguments[name] for name in _Run.__struct_fields__ if name in arguments}
    try:
        return msgspec.convert(fields, _Run)
    except msgspec.ValidationError as error:
        raise ModelError(
            action, f"the training arguments in it aren't timm's: {error}", "save its weights alone"
        ) from error


def _architecture(choice: Choice, run: _Run, weights: Weights, action: str) -> Architecture:
    """Return the architecture that was named, else the file's."""
    name = run.model or weights.run.get("arch")
    name = name[:100] if isinstance(name, str) else ""
    trained = timm_architectures.known(name)
    if choice.arch is not None:
        architecture = timm_architectures.find(choice.arch, action)
        if trained is not None and trained.name != architecture.name:
            reason = f"its training arguments say {trained.name}, and --arch {architecture.name}"
            raise UsageError(action, reason, f"leave out --arch, or give --arch {trained.name}")
        return architecture
    if trained is not None:
        return trained
    if run.model:
        return timm_architectures.find(name, action)
    fitting = [row.name for row in timm_architectures.architectures().values() if _fits(row, weights.arrays)]
    if fitting:
        reason = f"the file doesn't say which architecture it has; its tensors fit {', '.join(fitting[:8])}"
        raise UsageError(action, reason, f"name the architecture that was trained, for instance --arch {fitting[0]}")
    names = ", ".join(f"'{name}' {list(values.shape)}" for name, values in list(weights.arrays.items())[:4])
    reason = f"the file doesn't say which architecture it has, and its tensors fit none that is known: {names}, …"
    raise UsageError(action, reason, _elsewhere(weights.arrays))


def _published(architecture: Architecture, run: _Run) -> tuple[Published, set[str]]:
    """Return timm's equivalent ``config.json``, and the keys of the preprocessing that the run set itself."""
    size = run.input_size or ((3, run.img_size, run.img_size) if run.img_size else None)
    mean, std = (tuple(value * 3 if len(value) == 1 else value) if value else None for value in (run.mean, run.std))
    trained = {
        "input_size": size, "mean": mean, "std": std, "crop_pct": run.crop_pct, "crop_mode": run.crop_mode,
        "interpolation": run.interpolation,
    }  # fmt: skip
    usual = {name: getattr(architecture, name) for name in trained}
    trained = {name: value for name, value in trained.items() if value}
    published = msgspec.convert(
        {
            "architecture": architecture.name,
            "pretrained": {**usual, **trained},
            "global_pool": run.gp or architecture.global_pool,
            "model_args": run.model_kwargs or {},
        },
        Published,
    )
    of_module = {"input_size"} if "img_size" in (run.model_kwargs or {}) else set()
    return published, {*trained, *of_module}


# --- tensors that don't fit ------------------------------------------------------------------------------------------


def _expected(architecture: Architecture, arrays: Arrays) -> dict[str, tuple[int, ...]]:
    head = arrays.get("head.weight")
    config = architecture.configured(head.shape[0] if head is not None and head.ndim == 2 else 1)
    headless = head is None  # refused in words of its own
    expected = {name: shape for name, shape in expected_parameters(config) if not (headless and name[:4] == "head")}
    if config.pre_norm and "patch_embed.proj.bias" not in arrays:  # CLIP's patch convolution has none
        del expected["patch_embed.proj.bias"]
    if "pos_embed" in expected and "pos_embed" in arrays and arrays["pos_embed"].ndim == 3:  # it's resized
        expected["pos_embed"] = (1, arrays["pos_embed"].shape[1], config.embed_dim)
    return expected


def _fits(architecture: Architecture, arrays: Arrays) -> bool:
    """Whether all tensors are those of the architecture."""
    try:
        arrays = unified(arrays, architecture.name.split("_"), "")
    except ModelError:
        return False
    return _expected(architecture, arrays) == {name: values.shape for name, values in arrays.items()}


def _misfits(architecture: Architecture, arrays: Arrays, action: str) -> list[str]:
    """Describe the tensors that don't fit, the simplest first."""
    arrays = unified(arrays, architecture.name.split("_"), action)
    expected = _expected(architecture, arrays)
    shapes = [
        f"'{name}' is {list(arrays[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in arrays and arrays[name].shape != shape
    ]
    missing = {name: shape for name, shape in expected.items() if name not in arrays}
    unknown = {name: arrays[name].shape for name in arrays if name not in expected}
    if not missing:
        return [*shapes, *(f"{_named(name, shape)} has no place" for name, shape in unknown.items())]
    pairs = sorted((_nearest(name, missing, unknown) for name in list(missing)[:40]), reverse=True)
    found: dict[str, str] = {}  # the file's name: the expected one
    for likeness, name, other in pairs:
        if likeness >= _NEAR and other not in found:
            found[other] = name
    near = [
        f"expected {_named(name, missing[name])}, the file has {_named(other, unknown[other])}"
        for other, name in found.items()
    ]
    absent = {name: shape for name, shape in missing.items() if name not in found.values()}
    rest = {name: shape for name, shape in unknown.items() if name not in found}
    return [*shapes, *near, *([f"expected {_listed(absent)}; the file has {_listed(rest)}"] if absent else [])]


_NEAR = 0.75  # of 1: an equal shape counts a half, the names' likeness the other


def _nearest(
    name: str, missing: Mapping[str, tuple[int, ...]], unknown: Mapping[str, tuple[int, ...]]
) -> tuple[float, str, str]:
    """Return the likeness of the nearest tensor in the file, from 0 to 1; the expected name, and the file's name."""

    def likeness(other: str) -> float:
        same = unknown[other] == missing[name]
        return (difflib.SequenceMatcher(None, name, other).ratio() + same) / 2

    best = max(list(unknown)[:200], key=likeness, default="")
    return (likeness(best) if best else 0.0), name, best


def _named(name: str, shape: tuple[int, ...]) -> str:
    return f"'{name}' {list(shape)}"


def _listed(tensors: Mapping[str, tuple[int, ...]]) -> str:
    """Return the first three, and the number of the others."""
    first = ", ".join(_named(name, shape) for name, shape in list(tensors.items())[:3])
    return (first or "no others") + (f" and {len(tensors) - 3} more" if len(tensors) > 3 else "")


def _refuse_misfit(architecture: Architecture, arrays: Arrays, action: str) -> None:
    """Refuse tensors that aren't those of the architecture, the file's own names beside the expected ones."""
    if _fits(architecture, arrays):
        return
    misfits = _misfits(architecture, arrays, action)
    shown = "; ".join(misfits[:4]) + (f"; and {len(misfits) - 4} more" if len(misfits) > 4 else "")
    others = [row.name for row in timm_architectures.architectures().values() if _fits(row, arrays)]
    hint = f"its tensors fit {', '.join(others[:5])}: give --arch {others[0]}" if others else _elsewhere(arrays)
    raise ModelError(action, f"its tensors don't fit {architecture.name}: {shown}", hint)


def _elsewhere(arrays: Arrays) -> str:
    if any(".patch_embeddings." in name for name in arrays):
        return "these are transformers' names: put the model's config.json beside the file, and name the folder"
    return "load it into your own code with --factory and --weights, or export the model to ONNX"
