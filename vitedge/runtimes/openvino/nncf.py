"""NNCF's quantization as one more candidate, where NNCF is installed; nothing else needs it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vitedge.errors import NotInstalledError
from vitedge.runtimes.openvino.detect import NNCF, load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Operators between an operator and the FakeQuantize of its input that change no value.
_MOVING: tuple[str, ...] = ("Reshape", "Squeeze", "Transpose", "Unsqueeze")
#: Operators between an operator and its stored integers.
_DEQUANTIZING: tuple[str, ...] = ("Convert", "Multiply", "Subtract", *_MOVING)


def require(action: str) -> str:
    """Return NNCF's version.

    Raises:
        NotInstalledError: it isn't here.
    """
    if importlib.util.find_spec(NNCF) is None:
        raise NotInstalledError.for_extra(action, NNCF, NNCF)
    return importlib.metadata.version(NNCF)


def quantized(model: Any, pictures: Iterable[NDArray[np.uint8]], ignored: Collection[str], wide_sums: bool) -> Any:
    """Quantize an OpenVINO model by ``nncf.quantize`` with its preset for transformers.

    Args:
        model: float32, batch 1 or more.
        pictures: for calibration, all of them, uint8 [h, w, 3].
        ignored: names of operators to leave in float.
        wide_sums: False keeps the products of processors without VNNI from saturating, by 7-bit weights (NNCF's
            "overflow fix").
    """
    batch = int(model.input().shape[0])
    frames = [frame[None].repeat(batch, axis=0) for frame in pictures]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nncf: Any = load(NNCF)
        nncf.set_log_level("ERROR")
        return nncf.quantize(
            model,
            nncf.Dataset(frames),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(frames),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.DISABLE if wide_sums else nncf.OverflowFix.ENABLE
            ),
            ignored_scope=nncf.IgnoredScope(names=sorted(ignored), validate=False) if ignored else None,
        )


def precisions(model: Any, operators: Mapping[str, str]) -> dict[str, str]:
    """Return "int8" for the layers whose two inputs are integers.

    Args:
        model: of :func:`quantized`.
        operators: layer by the friendly name of its MatMul or Convolution.
    """
    return {
        operators[operation.get_friendly_name()]: "int8"
        for operation in model.get_ordered_ops()
        if operation.get_type_name() in ("MatMul", "Convolution")
        and operation.get_friendly_name() in operators
        and all(_integers(value) for value in operation.input_values())
    }


def _integers(value: Any) -> bool:
    """Whether a tensor comes from FakeQuantize, or from stored integers and their scale."""
    operation = value.get_node()
    between = _DEQUANTIZING if _constant(operation) else _MOVING
    while operation.get_type_name() in between:
        operation = operation.input_value(0).get_node()
    if operation.get_type_name() == "Constant":
        return str(operation.get_element_type().to_string()) in ("i8", "u8")
    return bool(operation.get_type_name() == "FakeQuantize")


def _constant(operation: Any) -> bool:
    """Whether an operator depends on constants only."""
    if operation.get_type_name() in ("Constant", "Parameter"):
        return bool(operation.get_type_name() == "Constant")
    return all(_constant(value.get_node()) for value in operation.input_values())
