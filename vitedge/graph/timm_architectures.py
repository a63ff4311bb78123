"""timm's plain ViTs by name: each one's configuration, and its default preprocessing.

``timm_architectures.json`` is written by ``tests/importing/references/make_architectures.py`` from timm itself.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from vitedge.errors import UsageError, nearest
from vitedge.formats.architecture import ViTConfig

TABLE = Path(__file__).with_name("timm_architectures.json")


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """One of timm's names. Fields are those of timm's ``pretrained_cfg``; ``config`` is ours, without the classes."""

    name: str
    global_pool: str
    input_size: tuple[int, int, int]  # (channels, height, width)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    crop_mode: str
    interpolation: str
    config: dict[str, Any]
    tags: dict[str, dict[str, Any]]  # of published weights, with what differs from the fields above

    def configured(self, num_classes: int) -> ViTConfig:
        """Return the module that timm builds for the name."""
        return msgspec.convert({**self.config, "num_classes": num_classes}, ViTConfig)


@cache
def architectures() -> dict[str, Architecture]:
    """Return all architectures, by name."""
    return {row.name: row for row in msgspec.json.decode(TABLE.read_bytes(), type=list[Architecture])}


def known(name: str) -> Architecture | None:
    """Return the architecture of a name as timm takes it: with or without a tag, or with ``hf-hub:timm/`` before it."""
    base, _, tag = name.rpartition("/")[2].partition(".")
    row = architectures().get(base)
    if row is None or not tag:
        return row
    return msgspec.structs.replace(row, **msgspec.convert(row.tags[tag], dict[str, Any])) if tag in row.tags else None


def find(name: str, action: str) -> Architecture:
    """Return the architecture of a name.

    Raises:
        UsageError: no plain ViT of timm has it.
    """
    found = known(name)
    if found is not None:
        return found
    base, _, tag = name.rpartition("/")[2].partition(".")
    if base in architectures():
        reason = f"timm's {base} has no tag '{tag[:40]}'{nearest(tag, architectures()[base].tags)}"
        raise UsageError(action, reason, f"give --arch {base}, and --mean, --std, … where they aren't its default's")
    reason = f"'{name[:80]}' isn't one of timm's plain ViTs that are known here{nearest(name, architectures())}"
    raise UsageError(action, reason, "give timm's name, or import another network with --factory or as ONNX")
