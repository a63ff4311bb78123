"""Make the ONNX files of this folder: small random networks as torch's two exporters write them.

    python tests/graph/exports/make.py

needs torch and onnxscript; the tests need neither. Beside each ``NAME.onnx`` stand the logits that torch computed for
the pictures of :func:`tests.graph.vits.random_images`, all in ``logits.npz``.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent.parent))

from tests.graph.networks import (  # noqa: E402
    SMALL,
    Export,
    Folded,
    Hybrid,
    Rows,
    Separate,
    Windows,
    newer_export,
    older_export,
    ours,
    randomised,
)
from tests.graph.vits import random_images, tiny  # noqa: E402


def export(name: str, module: nn.Module, *, dynamo: bool, opset: int, dynamic: bool = False) -> np.ndarray:
    torch.manual_seed(0)
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)
    pixels = Export(module).pictures(random_images(tiny(**SMALL), 3))
    file = HERE / f"{name}.onnx"
    if dynamo:
        newer_export(module, pixels, file, opset, dynamic=dynamic)
        model = onnx.load(file)
        for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
            del part.metadata_props[:]  # stack traces and local paths
        onnx.save(model, file)
    else:
        file.write_bytes(older_export(module, pixels, opset, "batch" if dynamic else "fixed"))
    with torch.inference_mode():
        return module(pixels).numpy()


def optimized(name: str, module: nn.Module, opset: int) -> np.ndarray:
    """As optimum saves a network: fused by ONNX Runtime."""
    import onnxruntime

    logits = export(name, module, dynamo=False, opset=opset, dynamic=True)
    file = HERE / f"{name}.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(file), 3
    onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    return logits


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    rich = {"layer_scale": True, "register_tokens": 1}
    average = {"class_token": False, "pool": "avg", "final_norm": "fc_norm"}
    logits = {
        "dynamo-20": export("dynamo-20", ours(**rich), dynamo=True, opset=20),
        "dynamo-18-dynamic": export("dynamo-18-dynamic", ours(qk_norm=True), dynamo=True, opset=18, dynamic=True),
        "dynamo-23": export("dynamo-23", ours(**rich), dynamo=True, opset=23),
        "legacy-17-dynamic": export("legacy-17-dynamic", ours(**rich), dynamo=False, opset=17, dynamic=True),
        "legacy-14": export("legacy-14", ours(**average), dynamo=False, opset=14),
        "legacy-17-distilled": export("legacy-17-distilled", ours(distillation_token=True), dynamo=False, opset=17),
        "separate-13": export("separate-13", Separate(), dynamo=False, opset=13, dynamic=True),
        "separate-20": export("separate-20", Separate(), dynamo=True, opset=20),
        "hybrid-17": export("hybrid-17", Hybrid(), dynamo=False, opset=17),
        "windows-23": export("windows-23", Windows(), dynamo=True, opset=23, dynamic=True),
        "rows-18": export("rows-18", randomised(Rows()), dynamo=True, opset=18),
        "folded-20": export("folded-20", randomised(Folded()), dynamo=True, opset=20, dynamic=True),
        "hybrid-20": export("hybrid-20", Hybrid(), dynamo=True, opset=20, dynamic=True),
        "optimized-17": optimized("optimized-17", Separate(), 17),
    }
    np.savez_compressed(HERE / "logits.npz", **logits)


if __name__ == "__main__":
    main()
