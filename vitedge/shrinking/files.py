"""The files of a shrunk model's folder, and its architecture where it's a plain ViT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitedge.errors import ModelError
from vitedge.formats.architecture import ViTConfig
from vitedge.formats.model_folder import MODEL_ONNX, MODEL_WEIGHTS, ModelRecord
from vitedge.graph.authored import read_authored
from vitedge.graph.surgery import to_bytes

if TYPE_CHECKING:
    import onnx


def model_files(graph: onnx.ModelProto, record: ModelRecord) -> tuple[dict[str, bytes], ViTConfig | None]:
    """Return ``model.onnx`` and, for a plain ViT, ``model.safetensors`` to train from, and its architecture.

    Args:
        graph: the shrunk one.
        record: of the whole model.
    """
    from safetensors.numpy import save

    files = {MODEL_ONNX: to_bytes(graph)}
    if record.architecture is None:
        return files, None
    try:
        config, arrays = read_authored(graph, record.architecture, record.preprocessing)
    except ModelError:  # something was added that a plain ViT has no place for
        return files, None
    return {**files, MODEL_WEIGHTS: save(arrays)}, config
