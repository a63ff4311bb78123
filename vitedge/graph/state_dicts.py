"""Find the model's tensors in a weights file: find state dicts, choose one, remove the prefixes of wrappers."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.errors import ModelError, UsageError, nearest
from vitedge.formats.model_folder import MODEL_WEIGHTS
from vitedge.formats.pickled_data import Attributes, Tensor
from vitedge.formats.torch_file import open_torch_file
from vitedge.graph.checkpoint import Arrays, read_safetensors

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")  # of weights; ".tar" ends ".pth.tar"
PICKLED_WEIGHTS = "pytorch_model.bin"  # transformers' and timm's, before safetensors
_MAX_TENSORS = 20_000
_MAX_NAME = 200  # characters
_MAX_PREFIXES = 16
_MAX_KEYS = 4  # names that are kept of a mapping that occurs several times
#: The parts that torch.compile, FSDP and activation checkpointing insert into a name.
_BETWEEN = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)", re.IGNORECASE)
_USUAL = ("state_dict", "model", "module", "")  # in timm's order; "" is the file itself


@dataclass(frozen=True)
class Choice:
    """The model that a file of weights holds, and the state dict to take.

    Args:
        arch: timm's name of the architecture; None: as the file or ``config.json`` says.
        num_classes: what its head must have; None: any number.
        key: the state dict's name in the file, such as ``state_dict_ema`` or ``state_dict.student``; None: the usual.
        use_ema: the state dict of averaged weights (EMA).
    """

    arch: str | None = None
    num_classes: int | None = None
    key: str | None = None
    use_ema: bool = False


@dataclass(frozen=True)
class Wanted:
    """The caller's choices for a checkpoint; everything else comes from the checkpoint.

    Args:
        given: fields of :class:`~vitedge.data.preprocessing.Preprocessing` that override the published ones; with
            another ``size`` position embeddings are resized.
        patch_size: side in pixels; the patch projection is resized. None: as it is.
        named: the caller names the classes; the source's names aren't read.
        choice: the architecture, and which of the file's state dicts.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    patch_size: int | None = None
    named: bool = False
    choice: Choice = Choice()


NOTHING_SAID = Wanted()


@dataclass(frozen=True)
class Weights:
    """One model's tensors from a file.

    Args:
        arrays: by the model's own names.
        details: what was chosen and left, in words, for ``model.json``.
        run: what else the file says of its training that is plain data: ``arch``, ``args``.
    """

    arrays: Arrays
    details: dict[str, str] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)


def weights_file(path: Path, action: str) -> Path:
    """Return the file itself, or a published folder's: safetensors first, else torch's.

    Raises:
        ModelError: a folder with neither, or with weights in several files.
    """
    if not path.is_dir():
        return path
    for name in (MODEL_WEIGHTS, PICKLED_WEIGHTS):
        if (path / name).is_file():
            return path / name
    if any((path / f"{name}.index.json").is_file() for name in (MODEL_WEIGHTS, PICKLED_WEIGHTS)):
        reason = "its weights lie in several files"
        raise ModelError(action, reason, "vitedge is for compact models: choose a smaller one")
    others = sorted(file.name for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    there = f"; it has {', '.join(others[:6])}" if others else ""
    reason = f"it has neither {MODEL_WEIGHTS} nor {PICKLED_WEIGHTS}{there}"
    raise ModelError(action, reason, f"name the file of its weights: {path / others[0] if others else 'model.pth'}")


def weights_in(path: Path, expected: Collection[str], choice: Choice, action: str) -> Weights:
    """Return the tensors of a folder or a file; as :func:`weights_file` and :func:`read_weights`."""
    return read_weights(weights_file(path, action), expected, choice, action)


def read_weights(path: Path, expected: Collection[str], choice: Choice, action: str) -> Weights:
    """Return the tensors of one model in a file of safetensors or of ``torch.save``; no code in the file runs.

    Args:
        path: the file; its first bytes say what it is, whatever its name.
        expected: names that the model has; what stands before them in the file is a wrapper's.
        choice: which state dict, where there are several.
        action: for error texts.

    Raises:
        UsageError: no such file, or a choice that it doesn't offer.
        ModelError: not a sound file, no model in it, or several without a choice.
    """
    if not path.is_file():
        raise UsageError(action, f"there is no file {path}", "check the name")
    content: Any
    array: Callable[[Any], Any]
    with ExitStack() as stack:
        if _is_safetensors(path):
            content, array = read_safetensors(path), lambda values: values
        else:
            opened = stack.enter_context(open_torch_file(path, action))
            content, array = opened.content, opened.array
        found = _models(content, expected)
        model = _chosen(found, choice, path.name, action)
        _check_size(model.tensors, path.stat().st_size, action)
        arrays = {name: array(tensor) for name, tensor in model.tensors.items()}
    run = {key: content[key] for key in ("arch", "args") if isinstance(content, dict) and key in content}
    return Weights(arrays, _details(model, found), {key: _plain(value) for key, value in run.items()})


def _is_safetensors(path: Path) -> bool:
    """Whether it's a safetensors file, by its name or by the JSON behind the length at its beginning."""
    with path.open("rb") as stream:
        return path.suffix.lower() == ".safetensors" or stream.read(9)[8:] == b"{"


@dataclass(frozen=True)
class _Model:
    """A candidate: a state dict, or the part of one below a prefix."""

    label: str  # "state_dict.model"; "" is the file itself
    tensors: Mapping[str, Any]
    others: int  # tensors of the state dict outside the prefix

    @property
    def averaged(self) -> bool:
        return _AVERAGED.search(self.label) is not None


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _state_dicts(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield mappings from names to tensors in the content and two levels below it, each under a few names at most."""
    seen: Counter[int] = Counter()
    waiting = deque([("", content, 0)])
    while waiting:
        key, value, depth = waiting.popleft()
        if not isinstance(value, dict) or seen[id(value)] == _MAX_KEYS:
            continue
        seen[id(value)] += 1
        named = {name: entry for name, entry in value.items() if isinstance(name, str) and len(name) <= _MAX_NAME}
        tensors = {name: entry for name, entry in named.items() if _is_tensor(entry)}
        if any(len(tensor.shape) for tensor in tensors.values()):
            yield key, {_BETWEEN.sub("", name): tensor for name, tensor in tensors.items()}
        if depth < 2:
            waiting.extend((f"{key}.{name}" if key else name, entry, depth + 1) for name, entry in named.items())


def _models(content: Any, expected: Collection[str]) -> list[_Model]:
    """Return the state dicts, below any prefix, with most of the expected names; all whole ones where none has any.

    A prefix is what stands before one of the longest names, which are the least likely to be a part of others.
    """
    anchors = sorted(expected, key=len)[-3:]
    state_dicts = list(_state_dicts(content))
    found: list[tuple[int, _Model]] = []
    for key, tensors in state_dicts:
        prefixes = {name[: -len(anchor)]: None for anchor in anchors for name in tensors if name.endswith(anchor)}
        for prefix in [prefix for prefix in prefixes if not prefix or prefix.endswith(".")][:_MAX_PREFIXES]:
            inside = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            left = sum(not name.startswith(prefix) and len(tensor.shape) > 0 for name, tensor in tensors.items())
            label = ".".join(filter(None, (key, prefix.rstrip("."))))
            found.append((sum(name in inside for name in expected), _Model(label, inside, left)))
    most = max((count for count, _ in found), default=0)
    return [model for count, model in found if count == most] or [_Model(key, named, 0) for key, named in state_dicts]


def _chosen(found: list[_Model], choice: Choice, file: str, action: str) -> _Model:
    labels = [model.label or "the file itself" for model in found]
    listed = ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
    if not found:
        hint = "name the file of the model's weights, not of an optimizer or of options"
        raise ModelError(action, f"{file} holds no state dict: no mapping from names to tensors", hint)
    if choice.key is not None:
        fitting = [model for model in found if f"{model.label}.".startswith(f"{choice.key}.")]
        if not fitting:
            reason = f"{file} has no '{choice.key}'{nearest(choice.key, labels)}; it holds {listed}"
            raise UsageError(action, reason, "choose one of these with --weights-key")
    else:
        fitting = [model for model in found if model.averaged is choice.use_ema]
        if not fitting and choice.use_ema:
            raise UsageError(
                action, f"{file} holds no averaged weights (EMA); it holds {listed}", "leave out --use-ema"
            )
    return _first(fitting or found, file, action)


def _first(models: list[_Model], file: str, action: str) -> _Model:
    """Return the model in the place that training scripts use; refuse several in other places."""

    def rank(model: _Model) -> int:
        places = [place for place in _USUAL if f"{model.label}.".startswith(f"{place}.") or place == ""]
        return _USUAL.index(places[0])

    best = min(map(rank, models))
    first = [model for model in models if rank(model) == best]
    if len(first) > 1:
        listed = ", ".join(model.label or "the file itself" for model in first[:8])
        raise ModelError(action, f"{file} holds {len(first)} models: {listed}", "choose one with --weights-key")
    return first[0]


def _details(model: _Model, found: list[_Model]) -> dict[str, str]:
    """Describe the tensors that were taken, the other state dicts, and the tensors left out."""
    words = [model.label] if model.label else []
    if others := [other for other in found if other is not model]:
        ways = ["--use-ema" if other.averaged and not model.averaged else "--weights-key" for other in others]
        there = [f"{other.label or 'the file itself'} ({way})" for other, way in zip(others, ways, strict=True)]
        words = [model.label or "the file itself", "also there: " + ", ".join(there[:4])]
    if model.others:
        words.append(f"{model.others} tensor{'s' * (model.others > 1)} beside it left out")
    return {"weights": "; ".join(words)} if words else {}


def _check_size(tensors: Mapping[str, Any], file_bytes: int, action: str) -> None:
    """Check that tensors, which may share a storage, together need no more than about the file's size."""
    needed = sum(int(np.prod(tensor.shape, dtype=object)) * 4 for tensor in tensors.values())
    if len(tensors) > _MAX_TENSORS or needed > 8 * file_bytes:
        reason = f"its {len(tensors)} tensors need {needed >> 20} MiB, far more than the file has"
        raise ModelError(action, reason, "save the model's own state dict")


def _plain(value: Any) -> Any:
    """Return attributes of a namespace as a mapping."""
    return value.values if isinstance(value, Attributes) else value
