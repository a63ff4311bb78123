"""Parity: compare a graph's logits on pictures with the source's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitedge.core.deviation import deviation
from vitedge.data import embedded
from vitedge.data.images import ImageSet
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError, NotInstalledError
from vitedge.formats.architecture import ViTConfig
from vitedge.formats.model_folder import ClassLabel, Parity

if TYPE_CHECKING:
    import onnx

Frames = NDArray[np.uint8]
Logits = NDArray[np.float32]

TOLERANCE = 1e-4  # largest absolute difference over largest absolute logit
PICTURES = 8  # for parity, where the caller names none


@dataclass(frozen=True)
class Imported:
    """The result of every way of importing."""

    kind: str
    name: str
    num_classes: int
    files: Mapping[str, bytes]
    preprocessing: Preprocessing
    parity: Parity
    details: dict[str, Any]
    classes: tuple[ClassLabel, ...] | None = None
    licence: str | None = None
    architecture: ViTConfig | None = None
    training: dict[str, Any] | None = None
    accuracy: dict[str, Any] | None = None


def frames_of(images: str | Path | ImageSet | None, contract: Preprocessing, action: str) -> Frames:
    """Preprocess pictures by the contract, uint8 [N, H, W, 3]."""
    if images is None:
        pictures = embedded.pictures("calibration")
        pictures = pictures.subset(pictures.order(0)[:PICTURES])
    else:
        pictures = images if isinstance(images, ImageSet) else ImageSet.open(images, action=action)
    return np.stack([contract.apply(pictures.read(index)) for index in range(len(pictures))])


def outputs_of(
    model: onnx.ModelProto, action: str, names: Sequence[str]
) -> Callable[[NDArray[Any]], list[NDArray[Any]]]:
    """Return a function that runs a graph on [N, …] in ONNX Runtime, in pieces of its batch size.

    Args:
        model: any graph with one input.
        action: for error texts.
        names: the tensors to return, outputs of the graph or not; those of pieces are joined along their first axis.

    Raises:
        NotInstalledError: no onnxruntime.
        ModelError: ONNX Runtime refuses the graph.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]  # it ships no types
    except ImportError as error:
        raise NotInstalledError.for_extra(action, "onnxruntime", "host") from error
    from onnx import ValueInfoProto

    from vitedge.graph import surgery

    if more := [name for name in names if name not in {value.name for value in model.graph.output}]:
        model = surgery.copy(model)
        model.graph.output.extend(ValueInfoProto(name=name) for name in more)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    hint = "export the model again; check the file with onnx.checker"
    try:
        session = onnxruntime.InferenceSession(surgery.to_bytes(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds
        raise ModelError(action, f"ONNX Runtime refuses the graph: {_first_line(error)}", hint) from error

    def run(pictures: NDArray[Any]) -> list[NDArray[Any]]:
        value = session.get_inputs()[0]
        piece = value.shape[0] if value.shape and isinstance(value.shape[0], int) else len(pictures)
        try:
            padded = np.concatenate([pictures, np.repeat(pictures[:1], -len(pictures) % piece, axis=0)])
            parts = [session.run(names, {value.name: padded[i : i + piece]}) for i in range(0, len(padded), piece)]
            return [
                np.concatenate(list(map(np.atleast_1d, each)))[: len(pictures)] for each in zip(*parts, strict=True)
            ]
        except Exception as error:  # the runtime's own kinds
            raise ModelError(action, f"ONNX Runtime can't run the graph: {_first_line(error)}", hint) from error

    return run


def runner(model: onnx.ModelProto, action: str, output: str = "logits") -> Callable[[NDArray[Any]], Logits]:
    """Return a function that runs a graph on [N, …] and returns one output as float32 (:func:`outputs_of`).

    Raises:
        NotInstalledError, ModelError: as :func:`outputs_of`.
    """
    run = outputs_of(model, action, [output])
    return lambda pictures: run(pictures)[0].astype(np.float32)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def parity_of(reference: str, logits: NDArray[Any], expected: NDArray[Any], action: str) -> Parity:
    """Measure the deviation of logits [N, classes] from the expected ones.

    Raises:
        ModelError: NaN or infinite logits on either side.
    """
    if not np.isfinite(expected).all() or not np.isfinite(logits).all():
        raise ModelError(action, "its logits are NaN or infinite", "check the source's weights")
    return Parity(
        reference=reference,
        images=len(expected),
        max_abs_difference=float(np.abs(logits - expected).max()),
        relative=deviation(logits, expected),
    )
