"""Small random networks in torch, plain and hybrid, as people write them; and the ways in which people export them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tests.graph.vits import MEAN, STD, random_arrays, tiny
from vitedge.training.vit import VisionTransformer

SIZE = (32, 48)
SMALL: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "mlp_hidden": 20, "num_classes": 5, "depth": 1}


def ours(**options: Any) -> nn.Module:
    """A plain ViT of ours: packed query, key and value, torch's own attention, random parameters."""
    config = tiny(**{**SMALL, **options})
    module = VisionTransformer(config)
    module.load_state_dict({name: torch.from_numpy(values) for name, values in random_arrays(config).items()})
    return module


class SeparateBlock(nn.Module):
    """Query, key and value as layers of their own, the scale as a division of the scores, GELU spelled with tanh."""

    def __init__(self, dim: int, heads: int, hidden: int, *, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.before, self.after = nn.LayerNorm(dim, 1e-12), nn.LayerNorm(dim, 1e-12)
        self.value, self.key, self.query, self.output = (nn.Linear(dim, dim) for _ in range(4))
        self.wide, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        k, v, q = self.split(self.key(y)), self.split(self.value(y)), self.split(self.query(y))
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        y = y.permute(0, 2, 1, 3).flatten(2)
        x = self.output(y) + x
        y = self.wide(self.after(x))
        y = 0.5 * y * (1 + torch.tanh(0.7978845608028654 * (y + 0.044715 * torch.pow(y, 3))))
        return self.narrow(y) + x


class Separate(nn.Module):
    """A ViT in the manner of other libraries: separate projections, own LayerNorm spelling, class token expanded."""

    def __init__(self, dim: int = 16, *, fused: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 8, 8)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, dim)), nn.Parameter(torch.randn(1, 25, dim))
        self.blocks = nn.ModuleList(SeparateBlock(dim, 2, 20, fused=fused) for _ in range(2))
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


class Windows(nn.Module):
    """Attention within shifted windows with a bias by position, as in Swin (2103.14030), and patches merged."""

    def __init__(self, dim: int = 16, window: int = 4) -> None:
        super().__init__()
        self.window, self.patches = window, nn.Conv2d(3, dim, 4, 4)
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.randn(2, window**2, window**2))
        self.merge, self.head = nn.Linear(4 * dim, dim, bias=False), nn.Linear(dim, 5)

    def attend(self, x: Tensor) -> Tensor:
        batch, rows, columns, dim = x.shape
        x = torch.roll(x, (-2, -2), (1, 2)).view(batch, rows // 4, 4, columns // 4, 4, dim)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, dim)
        q, k, v = self.qkv(x).reshape(-1, 16, 3, 2, dim // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * (dim // 2) ** -0.5) @ k.transpose(-2, -1) + self.bias).softmax(-1)
        x = self.proj((weights @ v).transpose(1, 2).reshape(-1, 16, dim))
        x = x.view(-1, rows // 4, columns // 4, 4, 4, dim).permute(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, dim)
        return torch.roll(x, (2, 2), (1, 2))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).permute(0, 2, 3, 1)
        x = x + self.attend(self.norm(x))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.head(self.merge(torch.cat(parts, -1)).mean((1, 2)))


class Rows(nn.Module):
    """Linear layers with BatchNorm of rows and a norm before the head, as in LeViT (2104.01136)."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dim, 8, 8, bias=False), nn.BatchNorm2d(dim), nn.Hardswish())
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm1d(3 * dim), nn.BatchNorm1d(dim), nn.BatchNorm1d(dim)])
        self.bias, self.head = nn.Parameter(torch.randn(2, 24, 24)), nn.Linear(dim, 5)

    @staticmethod
    def normed(x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x.flatten(0, 1)).reshape_as(x)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        batch, tokens, dim = x.shape
        y = self.normed(self.qkv(x), self.norms[0]).view(batch, tokens, 2, -1)
        q, k, v = y.permute(0, 2, 1, 3).split(dim // 2, -1)
        weights = (q @ k.transpose(-2, -1) * (dim // 2) ** -0.5 + self.bias).softmax(-1)
        y = functional.hardswish((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))
        x = x + self.normed(self.proj(y), self.norms[1])
        return self.head(self.norms[2](x.mean(1)))


class Folded(nn.Module):
    """Convolutions and attention over the pixels of each patch, unfolded and folded, as in MobileViT (2110.02178)."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dim, 3, 4, 1, bias=False), nn.BatchNorm2d(dim), nn.SiLU())
        self.block, self.fuse = SeparateBlock(dim, 2, 20), nn.Conv2d(2 * dim, dim, 3, padding=1)
        self.head = nn.Linear(dim, 5)

    def forward(self, image: Tensor) -> Tensor:
        before = self.stem(image)
        batch, dim, rows, columns = before.shape
        high, wide = rows // 2, columns // 2
        x = before.reshape(batch * dim * high, 2, wide, 2).transpose(1, 2)
        x = x.reshape(batch, dim, high * wide, 4).transpose(1, 3).reshape(batch * 4, high * wide, dim)
        x = self.block(x).contiguous().view(batch, 4, high * wide, dim)
        x = x.transpose(1, 3).reshape(batch * dim * high, wide, 2, 2).transpose(1, 2)
        x = torch.cat([before, x.reshape(batch, dim, rows, columns)], 1)
        return self.head(self.fuse(x).mean((2, 3)))


class Export(nn.Module):
    """A network behind the input that somebody chose: its layout, its type, normalisation inside or outside."""

    def __init__(self, module: nn.Module, layout: str = "nchw", kind: str = "float", *, inside: bool = False) -> None:
        super().__init__()
        self.module, self.layout, self.kind, self.inside = module, layout, kind, inside
        shape = (3, 1, 1) if layout == "nchw" else (3,)
        self.register_buffer("mean", torch.tensor(MEAN).view(shape))
        self.register_buffer("std", torch.tensor(STD).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "uint8":
            x = x.float()
        if self.inside:
            x = (x / 255 - self.mean) / self.std
        if self.layout == "nhwc":
            x = x.permute(0, 3, 1, 2)
        return self.module(x)

    def pictures(self, images: NDArray[np.uint8]) -> Tensor:
        """uint8 RGB [N, H, W, 3] as this export takes them."""
        x = torch.from_numpy(images)
        if self.kind != "uint8":
            x = x.to(self.mean.dtype)
        if not self.inside:
            x = (x / 255 - self.mean.view(3)) / self.std.view(3)
        return x.permute(0, 3, 1, 2).contiguous() if self.layout == "nchw" else x


def randomised(module: nn.Module) -> nn.Module:
    """The module for inference, the statistics of its BatchNorms not those of an untrained network."""
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for values, low, high in ((part.running_mean, -1, 1), (part.running_var, 0.5, 2), (part.weight, 0.5, 2)):
                nn.init.uniform_(values, low, high)
            nn.init.uniform_(part.bias, -1, 1)
    return module.eval()


def older_export(module: nn.Module, example: Tensor, opset: int, axes: str) -> bytes:
    """The module as torch's older exporter writes it; axes: "fixed", "batch" or "all" dynamic."""
    names = {"batch": ["batch"], "all": ["batch", "channels", "height", "width"]}.get(axes, [])
    dynamic = {"pixel_values": dict(enumerate(names)), "scores": {0: "batch"}} if names else None
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example[: 1 if axes == "fixed" else 2],),
            stream,
            dynamo=False,
            opset_version=opset,
            dynamic_axes=dynamic,
            input_names=["pixel_values"],
            output_names=["scores"],
        )
    return stream.getvalue()


def newer_export(module: nn.Module, example: Tensor, path: Path, opset: int, *, dynamic: bool) -> None:
    """The module as torch's newer exporter writes it; it needs onnxscript."""
    torch.onnx.export(
        module,
        (example[: 2 if dynamic else 1],),
        path,
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
        input_names=["pixel_values"],
        output_names=["scores"],
        external_data=False,
        verbose=False,
    )
