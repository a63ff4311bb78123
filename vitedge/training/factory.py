"""A user's own torch module: built by name, its weights loaded, run, and exported by torch's exporter.

It is the user's code and runs as such; what comes from elsewhere, the weights, is read as data alone.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError, NotInstalledError, UsageError, nearest
from vitedge.graph.state_dicts import SUFFIXES, Choice, read_weights
from vitedge.graph.timm_transform import DEFAULTS, evaluation_transform

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Factory:
    """The origin of a torch module.

    Args:
        name: ``package.module:function``. The function takes no arguments and returns a ``torch.nn.Module`` from
            float32 pictures [N, 3, H, W], normalised, to logits [N, classes].
        weights: a state dict to load into it, as safetensors or of ``torch.save``, of which the tensors alone are read.
    """

    name: str
    weights: Path | None = None

    def check(self, action: str) -> None:
        """Refuse what can be refused without running anything.

        Raises:
            UsageError: no ``package.module:function``, or no such file of weights.
        """
        module, colon, function = self.name.partition(":")
        if not colon or not all(part.isidentifier() for part in [*module.split("."), *function.split(".")]):
            hint = "write, say, --factory my_package.models:small_swin"
            raise UsageError(action, f"'{self.name}' isn't package.module:function", hint)
        if self.weights is None:
            return
        if not self.weights.is_file():
            raise UsageError(action, f"there are no weights {self.weights}", "check the name")
        suffix = self.weights.suffix.lower()
        if suffix not in SUFFIXES:
            raise UsageError(action, f"weights ending in '{suffix}' aren't supported", "give a .safetensors file")


def build(factory: Factory, action: str, choice: Choice = Choice()) -> tuple[torch.nn.Module, dict[str, str]]:  # noqa: B008
    """Call the factory and load the weights; return a module for inference, float32, on the CPU, and which were loaded.

    Raises:
        UsageError: the module or the function doesn't exist.
        ModelError: the user's code raises, returns no module, or the weights don't fit.
        NotInstalledError: no torch.
    """
    try:
        import torch
    except ImportError as error:
        raise NotInstalledError.for_extra(action, "torch", "train") from error
    factory.check(action)
    function = _function(factory.name, action)
    try:
        module = function()
    except Exception as error:  # the user's code may raise anything
        raise ModelError(action, f"{factory.name} raised {_described(error)}", "correct the function") from error
    if not isinstance(module, torch.nn.Module):
        kind = type(module).__name__
        raise ModelError(action, f"{factory.name} returned {kind}, not a torch.nn.Module", "return the module itself")
    module = module.float().cpu()
    loaded: dict[str, str] = {}
    if factory.weights is not None:
        loaded = _load(module, factory.weights, choice, action)
    return module.eval().requires_grad_(False), loaded


def declared_preprocessing(
    module: torch.nn.Module, given: Mapping[str, Any], action: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a timm module's declared preprocessing (``pretrained_cfg``), as fields of the contract; else nothing.

    Returns:
        The fields, and those of them that come from timm's defaults.

    Raises:
        UsageError: a crop that the contract can't express, and the caller, in ``given``, says no other.
    """
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not isinstance(config, Mapping) or not config.get("mean"):
        return {}, {}
    size = tuple(config.get("input_size") or DEFAULTS["input_size"])[1:]
    return evaluation_transform(config, (size[0], size[1]), given, action)


def logits(module: torch.nn.Module, pixels: NDArray[np.float32], action: str) -> NDArray[np.float32]:
    """Compute float32 [N, 3, H, W] -> logits [N, classes].

    Raises:
        ModelError: the module can't take such pictures, or gives something else.
    """
    import torch

    shape = list(pixels.shape[1:])
    try:
        with torch.inference_mode():
            outputs = [_tensor(module(torch.from_numpy(piece[None]))) for piece in pixels]
    except Exception as error:  # the user's code may raise anything
        reason = f"the module can't take float32 [1, {', '.join(map(str, shape))}]: {_described(error)}"
        raise ModelError(action, reason, "give the size that it is for with --size, or correct the module") from error
    if any(not isinstance(piece, torch.Tensor) for piece in outputs):
        reason = f"the module returns {type(outputs[0]).__name__}; a tensor of logits [N, classes] is expected"
        raise ModelError(action, reason, "return the logits alone")
    if any(piece.ndim != 2 or piece.shape[0] != 1 or piece.shape[1] < 1 for piece in outputs):
        reason = f"the module gives {list(outputs[0].shape)} for one picture; logits [1, classes] are expected"
        raise ModelError(action, reason, "export the classifier, head included")
    values: NDArray[np.float32] = torch.cat(outputs).float().numpy()
    return values


def export(module: torch.nn.Module, preprocessing: Preprocessing, path: Path, action: str) -> dict[str, Any]:
    """Write the module as ONNX, its batch symbolic where the module permits; return the facts for ``model.json``.

    Raises:
        ModelError: torch can't export it.
        NotInstalledError: no onnxscript, which torch's exporter works with.
    """
    import torch

    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise NotInstalledError.for_extra(action, "onnxscript", "train") from error
    from vitedge.graph.author import OPSET

    pixels = torch.zeros(2, 3, *preprocessing.size)
    with torch.inference_mode():
        plain = isinstance(module(pixels[:1]), torch.Tensor)
    wrapped = module if plain else _only_logits(module)
    dim = torch.export.Dim("batch", min=1)
    failures = []
    for example, shapes in ((pixels, ({0: dim},)), (pixels[:1], None)):
        try:
            torch.onnx.export(
                wrapped,
                (example,),
                path,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=["pixels"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter's exceptions, and any that the user's code raises while it is traced
            failures.append(_described(error))
            continue
        return {"torch": str(torch.__version__), **({"batch_fixed_because": failures[0]} if failures else {})}
    hint = "make it exportable (torch.export explains how), or export it yourself and import the ONNX file"
    raise ModelError(action, f"torch {torch.__version__} can't export it: {failures[-1]}", hint)


def _function(name: str, action: str) -> Any:
    """Return the object behind ``package.module:function``, looked up in the current folder first."""
    path, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise ModelError(action, f"importing {path} raised {_described(error)}", "install it") from error
        reason = f"there is no module '{error.name}' in this folder or among the installed packages"
        raise UsageError(
            action, reason, "run it from the folder that holds the module, or install the package"
        ) from error
    except Exception as error:  # the user's code may raise anything
        raise ModelError(action, f"importing {path} raised {_described(error)}", "correct the module") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            functions = [key for key, value in vars(target).items() if callable(value) and not key.startswith("_")]
            reason = f"{path} has no '{attribute}'{nearest(attribute, functions)}"
            raise UsageError(action, reason, "name a function of this module")
        target = getattr(target, part)
    if not callable(target):
        raise UsageError(
            action, f"'{name}' is {type(target).__name__}, not a function", "name a function without arguments"
        )
    return target


def _load(module: torch.nn.Module, path: Path, choice: Choice, action: str) -> dict[str, str]:
    """Load exactly every parameter and buffer of the module from a file; return which of its state dicts was taken."""
    import torch

    expected, file = module.state_dict(), path.name
    read = read_weights(path, expected, choice, action)
    weights, hint = read.arrays, "give the weights of this very module"
    for name, tensor in expected.items():
        if name not in weights:
            more = sum(other not in weights for other in expected) - 1
            others = f", and {more} more" if more else ""
            raise ModelError(action, f"{file} has no '{name}' {list(tensor.shape)}{others}", hint)
        if weights[name].shape != tensor.shape:
            reason = f"'{name}': expected {list(tensor.shape)}, {file} has {list(weights[name].shape)}"
            raise ModelError(action, reason, hint)
    if unknown := [name for name in weights if name not in expected]:
        others = f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        reason = f"{file} has '{unknown[0]}' {list(weights[unknown[0]].shape)}{others}, which the module doesn't"
        raise ModelError(action, reason, hint)
    module.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in weights.items()})
    return read.details


def _tensor(output: Any) -> Any:
    """Return the logits in a module's output: the output itself, or its field ``logits`` (Hugging Face)."""
    return getattr(output, "logits", output)


def _only_logits(module: torch.nn.Module) -> torch.nn.Module:
    """Wrap the module in one that returns only the logits."""
    import torch

    class Logits(torch.nn.Module):
        """A module whose output is only the logits, [N, 3, H, W] -> [N, classes]."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, pixels: torch.Tensor) -> Any:
            """Compute float32 pictures -> logits."""
            return _tensor(self.module(pixels))

    return Logits().eval()


def _described(error: BaseException) -> str:
    """Describe kind, message and place of an exception in the user's code."""
    while error.__cause__ is not None:  # the exporter wraps what it met
        error = error.__cause__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if "site-packages" not in frame.filename and "<" not in frame.filename]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {_first_line(error)}{place}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
