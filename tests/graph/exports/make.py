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
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent.parent))

from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny  # noqa: E402
from vitedge.architecture import ViTConfig  # noqa: E402
from vitedge.models.vit import VisionTransformer  # noqa: E402

SMALL = tiny(embed_dim=16, num_heads=2, mlp_hidden=20, num_classes=5, depth=1)


def ours(config: ViTConfig) -> nn.Module:
    module = VisionTransformer(config)
    module.load_state_dict({name: torch.from_numpy(values) for name, values in random_arrays(config).items()})
    return module


class SeparateBlock(nn.Module):
    """Query, key and value as layers of their own, the scale as a division of the scores, GELU spelled with tanh."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(dim, 1e-12), nn.LayerNorm(dim, 1e-12)
        self.value, self.key, self.query, self.output = (nn.Linear(dim, dim) for _ in range(4))
        self.wide, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        k, v, q = self.split(self.key(y)), self.split(self.value(y)), self.split(self.query(y))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        y = (weights @ v).permute(0, 2, 1, 3).flatten(2)
        x = self.output(y) + x
        y = self.wide(self.after(x))
        y = 0.5 * y * (1 + torch.tanh(0.7978845608028654 * (y + 0.044715 * torch.pow(y, 3))))
        return self.narrow(y) + x


class Separate(nn.Module):
    """A ViT in the manner of other libraries: separate projections, own LayerNorm spelling, class token expanded."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 8, 8)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, dim)), nn.Parameter(torch.randn(1, 25, dim))
        self.blocks = nn.ModuleList(SeparateBlock(dim, 2, 20) for _ in range(2))
        self.norm, self.classifier = nn.LayerNorm(dim, 1e-12), nn.Linear(dim, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.norm(x)[:, 0, :])


class Hybrid(nn.Module):
    """Convolutions with BatchNorm, then one attention block over 12 positions, then average pooling: no plain ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.SiLU(),
            nn.Conv2d(8, 16, 4, 4),
        )  # fmt: skip
        self.block, self.head = SeparateBlock(16, 2, 20), nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        y = self.block(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        return self.head(functional.adaptive_avg_pool2d(y, 1).flatten(1))


def export(name: str, module: nn.Module, *, dynamo: bool, opset: int, dynamic: bool = False) -> np.ndarray:
    torch.manual_seed(0)
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)
    images = torch.from_numpy(random_images(SMALL, 3)).float() / 255
    pixels = ((images - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    example, file = pixels[: 2 if dynamic else 1], HERE / f"{name}.onnx"
    names = {"input_names": ["pixel_values"], "output_names": ["scores"], "opset_version": opset}
    if dynamo:
        shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
        torch.onnx.export(module, (example,), file, dynamo=True, external_data=False, dynamic_shapes=shapes, **names)
    else:
        axes = {"pixel_values": {0: "batch"}, "scores": {0: "batch"}} if dynamic else None
        torch.onnx.export(module, (example,), file, dynamo=False, dynamic_axes=axes, **names)
    if dynamo:  # stack traces and local paths
        model = onnx.load(file)
        for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
            del part.metadata_props[:]
        onnx.save(model, file)
    with torch.inference_mode():
        return module(pixels).numpy()


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    rich = {"layer_scale": True, "register_tokens": 1}
    average = {"class_token": False, "pool": "avg", "final_norm": "fc_norm"}
    changed = lambda **options: ours(tiny(embed_dim=16, num_heads=2, mlp_hidden=20, num_classes=5, depth=1, **options))  # noqa: E731
    logits = {
        "dynamo-20": export("dynamo-20", changed(**rich), dynamo=True, opset=20),
        "dynamo-18-dynamic": export("dynamo-18-dynamic", changed(qk_norm=True), dynamo=True, opset=18, dynamic=True),
        "dynamo-23": export("dynamo-23", changed(**rich), dynamo=True, opset=23),
        "legacy-17-dynamic": export("legacy-17-dynamic", changed(**rich), dynamo=False, opset=17, dynamic=True),
        "legacy-14": export("legacy-14", changed(**average), dynamo=False, opset=14),
        "legacy-17-distilled": export("legacy-17-distilled", changed(distillation_token=True), dynamo=False, opset=17),
        "separate-13": export("separate-13", Separate(), dynamo=False, opset=13, dynamic=True),
        "separate-20": export("separate-20", Separate(), dynamo=True, opset=20),
        "hybrid-17": export("hybrid-17", Hybrid(), dynamo=False, opset=17),
        "hybrid-20": export("hybrid-20", Hybrid(), dynamo=True, opset=20, dynamic=True),
    }
    np.savez_compressed(HERE / "logits.npz", **logits)


if __name__ == "__main__":
    main()
