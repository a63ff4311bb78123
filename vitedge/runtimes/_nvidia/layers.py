"""Parse the engine inspector's JSON about an engine's layers; ``ProfilingVerbosity.DETAILED`` gives the details.

TensorRT 11 split a tensor's ``Format/Datatype`` into ``Format`` and ``Datatype``
(https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from vitedge.errors import ArtifactError
from vitedge.runtimes.base import Executed

_TYPE = re.compile(r"\b(fp32|float|fp16|half|bf16|bfloat16|int8|fp8|e4m3)\b", re.IGNORECASE)
_WORDS = {"float": "fp32", "half": "fp16", "bfloat16": "bf16", "e4m3": "fp8"}
_WIDTHS = ("fp8", "int8", "fp16", "bf16", "fp32")


class Layer(NamedTuple):
    """One layer of an engine: a kernel, with the ONNX nodes that were fused into it."""

    name: str
    kind: str  # the inspector's LayerType: "gemm", "kgen", "Reformat", …
    type: str  # the narrowest that it reads: "int8", "fp16", …; "" where it's unknown
    nodes: tuple[str, ...]  # of the ONNX file
    tactic: str = ""

    @property
    def reformats(self) -> bool:
        """Whether it computes nothing but moves a tensor into another layout or type."""
        return self.kind.lower() == "reformat" or self.name.startswith("Reformatting CopyNode")

    @property
    def attends(self) -> bool:
        """Whether it's a whole attention in one kernel: scores, softmax and context together."""
        if self.reformats:
            return False
        if re.search(r"mha|flash", f"{self.name} {self.tactic}", re.IGNORECASE):
            return True
        ends = {node.rsplit(".", 1)[-1] for node in self.nodes}
        return {"scores", "softmax", "context"} <= ends


def parse(text: str) -> list[Layer]:
    """Return the layers of ``get_engine_information(LayerInformationFormat.JSON)``.

    Raises:
        ArtifactError: the text isn't that.
    """
    try:
        entries = json.loads(text)["Layers"]
        return [_layer(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            "read an engine's layers", f"the inspector's answer has another structure: {error}", "report this version"
        ) from error


def executed(text: str) -> list[Executed]:
    """Return the layers under the names of the ONNX nodes in them; a layer without is listed under its own."""
    return [Executed(node, layer.kind, layer.type) for layer in parse(text) for node in (layer.nodes or (layer.name,))]


def _layer(entry: Mapping[str, Any] | str) -> Layer:
    if isinstance(entry, str):  # an engine without detail tells names alone
        return Layer(entry, "", "", ())
    tensors = entry.get("Inputs") or entry.get("Outputs") or []
    described = " ".join(str(tensor.get("Format/Datatype") or tensor.get("Datatype", "")) for tensor in tensors)
    type_names = map(str.lower, _TYPE.findall(described))
    types = {_WORDS.get(word, word) for word in type_names}
    nodes = re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(entry.get("Metadata", "")))
    return Layer(
        name=str(entry.get("Name", "")),
        kind=str(entry.get("LayerType", "")),
        type=next((name for name in _WIDTHS if name in types), ""),
        nodes=tuple(dict.fromkeys(nodes)),
        tactic=str(entry.get("TacticName", "")),
    )
