"""Write what timm knows of every plain ViT: ``python -m tests.importing.references.make_architectures``. Needs timm.

For each name: the module that timm builds, as our configuration (checked against the module), and the preprocessing
and size of its default weights; for each other tag of it what differs.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import torch

from tests.importing.references.make import declare_torchvision
from vitedge.formats.architecture import ViTConfig
from vitedge.graph import timm_layout
from vitedge.graph.author import expected_parameters
from vitedge.graph.timm_architectures import TABLE

CLASSES = 7
KEYS = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")
ROPES = {"axial": "RotaryEmbeddingCat", "centred": "RotaryEmbeddingDinoV3", "mixed": "RotaryEmbeddingMixed"}
TURNS = {"row": "ij", "column": "xy"}


def checked_config(name: str) -> tuple[ViTConfig, torch.nn.Module]:
    """What we derive from a name and its tensors, which has to be what timm builds (no weights)."""
    import timm

    with torch.device("meta"):
        module: Any = timm.create_model(name, num_classes=CLASSES)
    fields = {"architecture": name, "global_pool": module.global_pool, "pretrained": preprocessing(name)}
    published = msgspec.convert(fields, timm_layout.Published)
    arrays = {key: np.broadcast_to(np.float32(0), tuple(value.shape)) for key, value in module.state_dict().items()}
    words, rope = timm_layout._words(published, name), getattr(module, "rope", None)
    arrays = timm_layout.unified(arrays, words, name)
    config = timm_layout._architecture(published, words, arrays, name)
    block = module.blocks[0]
    theirs: tuple[Any, ...] = (
        block.attn.num_heads, block.norm1.eps, module.patch_embed.grid_size, module.global_pool,
        type(block.norm1).__name__, type(block).__name__ in ("Block", "EvaBlock"),
    )  # fmt: skip
    ours: tuple[Any, ...] = (
        config.num_heads, config.layer_norm_eps, config.grid, config.pool, "LayerNorm", True
    )  # fmt: skip
    if rope is not None and config.rope is not None:
        theirs += (type(rope).__name__, rope.grid_indexing, getattr(rope, "rotate_half", False))
        ours += (ROPES[config.rope.kind], TURNS[config.rope.first_axis], config.rope.pairs == "halves")
        if config.rope.kind != "mixed":
            theirs += (rope.temperature, getattr(rope, "ref_feat_shape", None))
            ours += (config.rope.temperature, config.rope.reference_grid)
    expected = dict(expected_parameters(config))
    if config.pre_norm:
        del expected["patch_embed.proj.bias"]
    assert ours == theirs, (name, ours, theirs)
    assert expected == {key: value.shape for key, value in arrays.items()}, name
    assert (rope is None) == (config.rope is None), name
    return config, module


def preprocessing(name: str) -> dict[str, Any]:
    """Of a name or a name with its tag."""
    from timm.models import get_pretrained_cfg

    return {key: getattr(get_pretrained_cfg(name), key) for key in KEYS}


def row(name: str) -> dict[str, Any]:
    import timm

    config, module = checked_config(name)
    defaults = {field.name: field.default for field in msgspec.structs.fields(ViTConfig)}
    fields = msgspec.to_builtins(config).items()
    given = {key: value for key, value in fields if key != "num_classes" and getattr(config, key) != defaults[key]}
    usual = preprocessing(name)
    tags = {}
    for full in timm.list_pretrained(name + ".*"):
        other = preprocessing(full)
        tags[full.partition(".")[2]] = {key: value for key, value in other.items() if value != usual[key]}
    return {"name": name, "global_pool": module.global_pool, **usual, "config": given, "tags": tags}


def main() -> None:
    declared = declare_torchvision()
    import timm

    names = timm.list_models(["vit_*", "deit*", "flexivit*", "test_vit*"])
    plain = [name for name in names if all(map(timm_layout._WORDS.fullmatch, name.split("_")))]
    rows = [json.dumps(row(name), separators=(",", ":")) for name in plain]
    TABLE.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    others = sorted(set(names) - set(plain))
    print(f"timm {timm.__version__}: {len(plain)} names; {len(others)} refused: {', '.join(others)}")
    print(TABLE.stat().st_size, "bytes")
    del declared


if __name__ == "__main__":
    main()
