"""Check an IR for the oldest OpenVINO that a target allows."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from vitedge.core.versions import as_of
from vitedge.formats.target import Target

#: Newest operation set by release (docs.openvino.ai, "Available Operation Sets").
_OPSETS = {"2023.0": 11, "2023.2": 12, "2023.3": 13, "2024.0": 14, "2024.2": 15, "2025.0": 16, "2026.0": 17}
_IR_VERSIONS = ("10", "11")


def check(graph: bytes, target: Target) -> list[str]:
    """Return what ``target.runtime_min`` doesn't support, in words; empty when it supports everything."""
    net = ElementTree.fromstring(graph)
    findings = []
    if net.get("version") not in _IR_VERSIONS:
        findings.append(f"IR version {net.get('version')}")
    newest_opset = as_of(_OPSETS, target.runtime_min, default=10)
    for layer in net.iter("layer"):
        opset = re.fullmatch(r"opset(\d+)", layer.get("version", ""))
        if opset is None or int(opset[1]) > newest_opset:
            findings.append(f"operator {layer.get('type')} of {layer.get('version')} ({layer.get('name')})")
    return findings
