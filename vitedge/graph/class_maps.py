"""Convert classifiers whose outputs map class names to scores, as converters for WinML and CoreML write them.

Such a graph ends in ``ZipMap`` (``ai.onnx.ml``), beside the name of the best class as a string. The scores that go into
the map are the output that everything else here works with; the map's keys are the class names.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from vitedge.graph import folding, surgery
from vitedge.graph.surgery import attribute


def without_class_maps(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model with the scores as outputs instead of their maps, and the class names.

    Args:
        model: any graph; unchanged.

    Returns:
        The model itself and no names where no output is such a map.
    """
    made = surgery.producers(model)
    maps = [made[value.name] for value in model.graph.output if value.name in made]
    maps = [node for node in maps if node.op_type == "ZipMap"]
    if not maps:
        return model, ()
    new = surgery.copy(model)
    del new.graph.output[:]
    for node in maps:
        new.graph.output.append(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, ["N", "classes"]))
    folding.prune(new)
    if not any(node.domain == "ai.onnx.ml" for node in new.graph.node):
        kept = [entry for entry in new.opset_import if entry.domain != "ai.onnx.ml"]
        del new.opset_import[:]
        new.opset_import.extend(kept)
    names = [attribute(maps[0], key, []) for key in ("classlabels_strings", "classlabels_int64s")]
    return new, tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names[0])
