"""Other models in a frontier's picture: trained ones with their accuracy, members of the zoo by their latency alone."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from vitedge.core.randomness import generator
from vitedge.errors import UsageError, nearest
from vitedge.formats.model_folder import MODEL_ONNX, Model, ModelRecord, write_model
from vitedge.graph.author import author_vit, contract_of, expected_parameters
from vitedge.graph.surgery import to_bytes
from vitedge.training.zoo import ZOO, zoo_config

ALL = "zoo"  # all members with the model's input size


@dataclass(frozen=True)
class Neighbour:
    """A model that is measured beside a shrunk one."""

    name: str
    model: Model
    trained: bool  # False: its weights are random, so only its latency means something


def check_beside(named: Sequence[str], record: ModelRecord, action: str) -> None:
    """Refuse names that are neither a member of the zoo nor a model folder with the same classes.

    Raises:
        UsageError: it's something else.
        ModelError: a damaged model folder.
    """
    ours = [label.name for label in record.classes]
    for name in named:
        if name == ALL or name in ZOO:
            continue
        if not Path(name).is_dir():
            hint = f"name a model folder, a member of the zoo, or {ALL} for all members of this input size"
            raise UsageError(
                action, f"--beside {name} is neither a model folder nor in the zoo{nearest(name, ZOO)}", hint
            )
        theirs = [label.name for label in Model.open(name).record.classes]
        if theirs != ours:
            reason = (
                f"{name} has other classes than {record.name} ({len(theirs)} and {len(ours)}), or another order of them"
            )
            raise UsageError(action, reason, "name models with the same classes in the same order: --beside MODEL")


@contextlib.contextmanager
def neighbours(named: Sequence[str], record: ModelRecord) -> Iterator[list[Neighbour]]:
    """Open the named models; members of the zoo are written into a temporary folder.

    Args:
        named: that :func:`check_beside` let pass.
        record: of the model that is shrunk.
    """
    fitting = [name for name, member in ZOO.items() if member.config.image_size == record.preprocessing.size]
    members = [member for name in named for member in (fitting if name == ALL else [name])]
    with tempfile.TemporaryDirectory(prefix="vitedge-zoo-") as folder:
        yield [_neighbour(name, record, Path(folder)) for name in dict.fromkeys(members)]


def _neighbour(name: str, record: ModelRecord, folder: Path) -> Neighbour:
    if name not in ZOO:
        model = Model.open(name)
        return Neighbour(model.record.name, model, trained=True)
    return Neighbour(name, _of_the_zoo(name, record, folder / name), trained=False)


def _of_the_zoo(name: str, record: ModelRecord, out: Path) -> Model:
    """Write a zoo member with random weights, and with the classes and normalization of a record."""
    config, draw = zoo_config(name, num_classes=len(record.classes)), generator(0)

    def values(parameter: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if len(shape) == 1:
            return np.full(shape, float(parameter.endswith(("weight", "gamma"))), np.float32)
        return np.asarray(draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)

    arrays = {parameter: values(parameter, shape) for parameter, shape in expected_parameters(config, folded_stem=True)}
    preprocessing = replace(record.preprocessing, size=config.image_size)
    member = replace(record, name=name, architecture=config, preprocessing=preprocessing)
    graph = author_vit(config, arrays, **contract_of(preprocessing), name=name)
    return write_model(out, member, {MODEL_ONNX: to_bytes(graph)})
