"""No benchmark: one teacher made of several models.

    python benchmarks/ensemble.py MODEL [MODEL ...] --out TEACHER

MODEL and TEACHER are model folders. The teacher's logits are the mean of all models' logits for a picture and for its
mirror image; what ``vitedge train --teacher`` learns from it, one model keeps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from msgspec.structs import replace
from onnx import TensorProto, compose, helper, numpy_helper

from vitedge.formats.model_folder import MODEL_ONNX, Model, ModelRecord, write_model
from vitedge.graph.surgery import load, to_bytes


def alike(document: str | None, trait: Callable[[ModelRecord], object], what: str) -> tuple[list[Model], str]:
    """The command line's model folders, which must have one trait in common, and ``--out``."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--out", required=True, help="model folder to write")
    arguments = parser.parse_args()
    models = [Model.open(folder) for folder in arguments.models]
    for model in models:
        if trait(model.record) is None or trait(model.record) != trait(models[0].record):
            sys.exit(f"{model.path} doesn't have {what} of {models[0].path}")
    return models, arguments.out


def main() -> None:
    models, out = alike(__doc__, lambda record: (record.classes, record.preprocessing.size), "the classes and the size")
    graph = mean_of([load(model.onnx_path) for model in models])
    record = replace(models[0].record, name="ensemble", architecture=None, files={}, accuracy=None, training=None)
    write_model(out, record, {MODEL_ONNX: to_bytes(graph)})


def mean_of(graphs: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """The mean of the logits of canonical graphs, for ``image`` uint8 [N, H, W, 3] and for its columns in reverse."""
    image, logits = graphs[0].graph.input[0], graphs[0].graph.output[0]
    bounds = {"start": -1, "end": np.iinfo(np.int64).min, "axis": 2, "step": -1}
    weights = [numpy_helper.from_array(np.array([value]), f"mirror.{part}") for part, value in bounds.items()]
    nodes = [helper.make_node("Slice", ["image", *(f"mirror.{part}" for part in bounds)], ["mirrored"], "mirror")]
    parts = []
    for number, model in enumerate(graphs):
        for view in ("image", "mirrored"):
            graph = compose.add_prefix(model, f"{number}.{view}.").graph
            for node in graph.node:
                node.input[:] = [view if name == graph.input[0].name else name for name in node.input]
            nodes += graph.node
            weights += graph.initializer
            parts.append(graph.output[0].name)
    nodes.append(helper.make_node("Mean", parts, [logits.name], "mean"))
    classes = logits.type.tensor_type.shape.dim[1].dim_value
    outputs = [helper.make_tensor_value_info(logits.name, TensorProto.FLOAT, ["N", classes])]
    graph = helper.make_graph(nodes, "ensemble", [image], outputs, weights)
    return helper.make_model(graph, opset_imports=graphs[0].opset_import, ir_version=graphs[0].ir_version)


if __name__ == "__main__":
    main()
