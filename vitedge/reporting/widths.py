"""The widths of each block as one table."""

from __future__ import annotations

from vitedge.formats.architecture import ViTConfig
from vitedge.reporting.rows import UNKNOWN

COLUMNS = (">block", ">heads", ">channels of a query", ">of a value", ">MLP units", ">tokens", ">MACs of a full block")


def table(config: ViTConfig) -> tuple[tuple[str, ...], ...]:
    """Return a row for each block, under :data:`COLUMNS`; nothing where all blocks are equal."""
    whole = config.whole_block_macs
    return tuple(
        (
            str(index),
            *(str(width or UNKNOWN) for width in (block.heads, block.query_key, block.value, block.mlp_hidden)),
            str(config.tokens_before(index)),
            f"{config.block_macs(block, config.tokens_before(index)) / whole:.0%}",
        )
        for index, block in enumerate(config.blocks or ())
    )
