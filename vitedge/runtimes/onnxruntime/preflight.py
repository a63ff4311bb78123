"""Check an ONNX file for the oldest ONNX Runtime that a target allows."""

from __future__ import annotations

from onnx import TensorProto, defs

from vitedge.core.versions import as_of, older
from vitedge.formats.target import Target
from vitedge.graph.surgery import parse
from vitedge.runtimes.onnxruntime.rewriter import CONTRIB

#: Newest opset and IR version by release (onnxruntime.ai, "Compatibility").
_RELEASES = {"1.14": (18, 8), "1.15": (19, 9), "1.17": (20, 9), "1.18": (21, 10), "1.22": (23, 11)}
#: Operators of ONNX Runtime's own that our kernel variants use, with the first release in which they do what those need
#: (on CPUs MultiHeadAttention shares out rows since 1.19, MatMulNBits has 8-bit weights and a bias since 1.22; the
#: others are older than 1.14).
_OWN = {
    **dict.fromkeys(("Attention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention", "QGemm"), "1.14"),
    "MultiHeadAttention": "1.19",
    "MatMulNBits": "1.22",
}
_HALF = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


def check(graph: bytes, target: Target) -> list[str]:
    """Return what ``target.runtime_min`` doesn't support on a CPU, in words; empty when it supports everything."""
    model = parse(graph)
    opset, ir_version = as_of(_RELEASES, target.runtime_min, default=(17, 8))
    findings = []
    if model.ir_version > ir_version:
        findings.append(f"IR version {model.ir_version} (it takes {ir_version})")
    used = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if used.get("ai.onnx", 0) > opset:
        findings.append(f"opset {used['ai.onnx']} (it takes {opset})")
    for operator, domain in sorted({(node.op_type, node.domain or "ai.onnx") for node in model.graph.node}):
        if domain == CONTRIB and operator in _OWN and not older(target.runtime_min, _OWN[operator]):
            continue
        if domain != "ai.onnx" or not defs.has(operator, used.get("ai.onnx", opset)):
            findings.append(f"operator {operator} of {domain}")
    for tensor in model.graph.initializer:
        if tensor.data_type in _HALF:
            findings.append(f"{_HALF[tensor.data_type]} weights ({tensor.name}): there are no such kernels for CPUs")
            break
    return findings
