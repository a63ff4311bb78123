"""No benchmark: puts a model folder of `vitedge train` in the place of the embedded model.

    python benchmarks/embed_model.py MODEL [--test test.tar.gz]

``--test`` evaluates the model on these pictures, once, and records the figure. ``model.onnx`` isn't copied, because
importing makes it from the weights. The licence becomes that of vitedge. Of the paths in the recorded command the last
two parts are kept.
"""

from __future__ import annotations

import argparse
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from peer_bars import decoded, portable

from vitedge.core.schema import encode_json, seal
from vitedge.data.embedded import FOLDER
from vitedge.data.images import ImageSet
from vitedge.formats.model_folder import MODEL_JSON, MODEL_ONNX, Model
from vitedge.graph.surgery import load
from vitedge.runtimes.interpreter import run_graph
from vitedge.training.advice import with_interval


def tested(model: Model, images: ImageSet) -> dict[str, Any]:
    """Top-1 (percent) with its interval, and the mean cross-entropy, of the float32 graph in ONNX Runtime."""
    labels = images.labels([each.folder for each in model.record.classes], action="evaluate")[images.order(0)]
    logits = run_graph(load(model.onnx_path), decoded(model, images, len(images)), optimized=True).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    figure = {
        "images": len(labels),
        "loss": float(losses.mean()),
        "top1_percent": 100 * float((logits.argmax(axis=1) == labels).mean()),
    }
    return with_interval(figure) | {"data": "CIFAR-10 test, evaluated once, after training"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--test", help="labelled pictures")
    arguments = parser.parse_args()
    model = Model.open(arguments.model)
    training, accuracy = dict(model.record.training or {}), dict(model.record.accuracy or {})
    training["command"] = portable(training["command"])
    if arguments.test:
        accuracy["test"] = tested(model, ImageSet.open(arguments.test))
    files = {name: digest for name, digest in model.record.files.items() if name != MODEL_ONNX}
    licence = metadata("vitedge")["License-Expression"]
    record = replace(model.record, licence=licence, training=training, accuracy=accuracy, files=files)
    for name in files:
        (FOLDER / name).write_bytes((model.path / name).read_bytes())
    (FOLDER / MODEL_JSON).write_bytes(seal(encode_json(record)))
    print(f"{FOLDER}: {record.name}, {accuracy}")


if __name__ == "__main__":
    main()
