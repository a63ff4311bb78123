"""Import of hybrid families from timm, random weights: parity with torch on photographs, and what can be quantized.

    python benchmarks/import_families.py --images photographs/ --json families.json

needs timm, and torchvision or a torch without it: timm imports beside a torch built for the CPU once torchvision's
operator names are declared, which :func:`declare_torchvision` does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FAMILIES = {
    "Swin": "swin_tiny_patch4_window7_224",
    "TinyViT": "tiny_vit_5m_224",
    "EfficientViT": "efficientvit_b0",
    "EfficientViT (Microsoft)": "efficientvit_m0",
    "MobileViT": "mobilevit_xxs",
    "MobileViT v2": "mobilevitv2_050",
    "FastViT": "fastvit_t8",
    "RepViT": "repvit_m0_9",
    "LeViT": "levit_128s",
}


def declare_torchvision() -> None:
    """Declare the operators that torchvision's Python code names, where its compiled part doesn't fit this torch."""
    import torch

    names = ["nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"]
    backward = [f"_{name}_backward" for name in names[2:]]
    declare_torchvision.library = torch.library.Library("torchvision", "DEF")  # type: ignore[attr-defined]
    for name in [*names, *backward]:
        declare_torchvision.library.define(f"{name}(Tensor a) -> Tensor")  # type: ignore[attr-defined]


def _make(name: str) -> Any:
    import torch

    declare_torchvision()
    import timm

    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=100).eval()
    for part in module.modules():  # the statistics of an untrained network would hide what a fold does wrong
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(part.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
    return module


def __getattr__(name: str) -> Any:
    """A factory for each family, by timm's name."""
    if name in FAMILIES.values():
        return lambda: _make(name)
    raise AttributeError(name)


def main() -> None:
    import onnx

    from vitedge.graph import surgery
    from vitedge.importing.entry import import_model
    from vitedge.training.factory import Factory

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--family", action="append", choices=FAMILIES)
    parser.add_argument("--keep", type=Path, help="keep the model folders here")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for family in options.family or FAMILIES:
            began = time.perf_counter()
            out = (options.keep or Path(folder)) / FAMILIES[family]
            factory = Factory(f"{Path(__file__).stem}:{FAMILIES[family]}")
            model = import_model(factory, out, images=options.images, overwrite=True)
            graph, parity = onnx.load(model.onnx_path), model.record.origin.parity
            assert parity is not None
            left = model.record.origin.details.get("operators_left_alone", {})
            rows.append(
                {
                    "family": family,
                    "timm": FAMILIES[family],
                    "images": parity.images,
                    "relative": parity.relative,
                    "layers": len(surgery.linear_layers(graph)),
                    "nodes": len(graph.graph.node),
                    "left_alone": {name: len(nodes) for name, nodes in sorted(left.items())},
                    "batch": surgery.batch_size(graph),
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
            print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
