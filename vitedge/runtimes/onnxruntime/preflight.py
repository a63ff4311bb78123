"""An ONNX graph against the oldest ONNX Runtime that a target allows."""

from __future__ import annotations

from vitedge.graph.preflight import Limits, findings, read, type_name
from vitedge.graph.surgery import tensors
from vitedge.target import Target

#: Newest opset and IR version that a release loads, found by loading each; older releases aren't served.
_LIMITS = {(1, 23): (23, 11), (1, 31): (26, 13)}
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def check(graph: bytes, target: Target) -> list[str]:
    """What ``target.runtime_min`` can't take, in words; empty when it can take everything."""
    model = read(graph)
    if isinstance(model, str):
        return [model]
    oldest = tuple(int(part) for part in target.runtime_min.split("."))
    known = [limits for version, limits in _LIMITS.items() if version <= oldest]
    if not known:
        return [f"runtime_min {target.runtime_min}: vitedge knows ONNX Runtime from 1.23 on"]
    opset, ir_version = max(known)
    found = findings(model, Limits(f"ONNX Runtime {target.runtime_min}", (7, opset), ir_version))
    foreign = {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in _DOMAINS}
    found += [f"operator {name} isn't ONNX Runtime's" for name in sorted(foreign)]
    if target.device == "cpu":
        stored = {type_name(tensor.data_type) for tensor in tensors(model)} & {"float16", "bfloat16"}
        found += [f"{kind} constants: a CPU has no kernels for them" for kind in sorted(stored)]
    return found
