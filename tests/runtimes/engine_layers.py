"""Layer information as the engine inspector writes it, constructed: no engine of ours has been inspected yet.

The form follows what NVIDIA's issue threads show of TensorRT 10: keys and words of issue 4020 (``Reformat`` with
``Format/Datatype``) and of issue 4397 (``gemm`` and ``kgen`` kernels of ``_myl0``, ``_gemm_mha_v2`` for a fused
attention, and the ONNX nodes in ``Metadata``).
"""

from __future__ import annotations

import json
from typing import Any

ENDS = ("Input", "Output")


def tensor(kind: str) -> dict[str, Any]:
    return {"Name": "t", "Dimensions": [1, 197, 192], "Format/Datatype": kind}


def layer(name: str, kind: str, types: list[str], nodes: list[str], tactic: str = "") -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor(one) for one in types],
        "Outputs": [tensor(types[0])],
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": "".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


def block(number: int, *, int8: bool, fused: bool, reformats: bool) -> list[dict[str, Any]]:
    """One block of a ViT as an engine has it."""
    name = f"blocks.{number}"
    linear = "Int8" if int8 else "Half"
    attention = [f"{name}.attn.{part}" for part in ("scores", "softmax", "context")]
    moved = [layer(f"Reformatting CopyNode for {end} Tensor 0 of {name}.mha", "Reformat", ["Int8"], []) for end in ENDS]
    if fused:
        kernels = [layer(f"_gemm_mha_v2_myl0_{number}", "kgen", ["Half"] * 3, attention, "_gemm_mha_v2_0x95")]
    else:
        kernels = [layer(f"{node}_myl0_{number}", "gemm", ["Half", "Half"], [node]) for node in attention]
    return [
        layer(f"{name}.attn.qkv_myl0", "gemm", [linear, linear], [f"{name}.attn.qkv"], "sm80_xmma_gemm"),
        *moved[: 1 if reformats else 0],
        *kernels,
        *moved[1 if reformats else 2 :],
        layer(f"{name}.attn.proj_myl0", "gemm", [linear, linear], [f"{name}.attn.proj"]),
        layer(f"{name}.mlp.fc1_myl0", "gemm", [linear, linear], [f"{name}.mlp.fc1", f"{name}.mlp.gelu"]),
        layer(f"{name}.mlp.fc2_myl0", "gemm", [linear, linear], [f"{name}.mlp.fc2", f"{name}.add2"]),
    ]


def information(blocks: int, *, int8: bool, fused: bool = True, reformats: bool = False) -> str:
    found = [one for number in range(blocks) for one in block(number, int8=int8, fused=fused, reformats=reformats)]
    return json.dumps({"Layers": found, "Bindings": ["image", "logits"]})
