"""A Vision Transformer (Dosovitskiy et al., 2010.11929) in plain torch, to be read from top to bottom.

B pictures, N tokens, D channels of a token, d = D / heads channels of a head.
"""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Every token reads from all tokens, in several heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)  # queries, keys and values in one layer
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        # each [B, N, D] -> [B, heads, N, d]
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # [B, heads, N, N]
        x = scores.softmax(dim=-1) @ v  # [B, heads, N, d]
        return self.proj(x.transpose(1, 2).flatten(2))  # the heads side by side again: [B, N, D]


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, for each token by itself."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention, then an MLP; each reads normalised tokens and adds its answer to them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Cuts the picture into patches and projects each to one token."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, patches, D]."""
        return self.proj(image).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """A picture goes in, one number for each class comes out."""

    def __init__(self, size: int, patch: int, dim: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(patch, dim)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)

    def tokens(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + patches, D]."""
        x = self.patch_embed(image)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, classes]."""
        x = self.blocks(self.tokens(image))
        return self.head(self.norm(x)[:, 0])


def small_vit() -> ViT:
    """Return the network of the tutorial: 32×32 pixels in patches of 4×4, four blocks, ten classes."""
    return ViT(size=32, patch=4, dim=96, depth=4, heads=3, classes=10)
