"""ONNX Runtime's execution providers: other devices and libraries through the same package.

A target names one, with its options. The provider has to take the whole graph: what it leaves to the CPU is refused,
unless the target names those operators as its remainder. ONNX Runtime itself would fall back without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from vitedge.errors import ArtifactError, NotInstalledError
from vitedge.formats.target import Provider
from vitedge.installation import pip

CPU = "CPUExecutionProvider"
#: The provider names in targets, with ONNX Runtime's name and distribution for each.
NAMES = {
    "CUDA": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "TensorRT": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "NvTensorRtRtx": ("NvTensorRTRTXExecutionProvider", "onnxruntime-trt-rtx"),
    "OpenVINO": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "CoreML": ("CoreMLExecutionProvider", "onnxruntime"),
    "QNN": ("QNNExecutionProvider", "onnxruntime-qnn"),
    "XNNPACK": ("XnnpackExecutionProvider", "a build of your own"),
}


def unknown(all_providers: Iterable[str]) -> list[str]:
    """Return the table's providers that no build of this ONNX Runtime has: providers come and go with versions."""
    return sorted({full for full, _ in NAMES.values()} - set(all_providers))


def missing(provider: Provider, available: Iterable[str], unknown: Iterable[str] = ()) -> str:
    """Return why this ONNX Runtime lacks the provider, or an empty string; no build of it has the ``unknown`` ones."""
    full, distribution = NAMES[provider.name]
    if full in available:
        return ""
    if full in unknown:
        return f"this version of ONNX Runtime knows no {full}, whatever its build; another version may have it"
    return f"this ONNX Runtime has no {full}; {distribution} brings it"


def require(provider: Provider, available: Iterable[str], unknown: Iterable[str], action: str) -> None:
    """Demand the provider.

    Raises:
        NotInstalledError: the distribution that brings it is named.
    """
    if why := missing(provider, available, unknown):
        full, distribution = NAMES[provider.name]
        own_build = " " in distribution or distribution == "onnxruntime"
        if full in unknown:
            whose = "ONNX Runtime" if own_build else distribution
            hint = f"install a version of {whose} that has it, or use another target"
        elif own_build:
            hint = "build ONNX Runtime with it, or use another target"
        else:
            hint = f"run: {pip()} uninstall onnxruntime && {pip()} install {distribution}"
        raise NotInstalledError(action, why, hint)


def arguments(provider: Provider) -> dict[str, Any]:
    """Return a session's arguments: the provider, the CPU only for a named remainder, and no fall-back."""
    options = {key: _text(value) for key, value in provider.options.items()}
    wanted = [(NAMES[provider.name][0], options)]
    return {"providers": [*wanted, (CPU, {})] if provider.remainder else wanted, "enable_fallback": 0}


def configure(settings: Any, provider: Provider) -> None:
    """Configure that creating the session fails where a node would go to the CPU, unless a remainder is allowed."""
    if not provider.remainder:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")


def check_kernels(provider: Provider, events: Iterable[Mapping[str, Any]], action: str) -> str:
    """Return where the kernels of one profiled inference ran: ``"OpenVINO 1, CPU: Cast 1"``.

    Raises:
        ArtifactError: an operator ran on the CPU that the target doesn't name, or the provider ran none.
    """
    full = NAMES[provider.name][0]
    ran: Counter[str] = Counter()
    on_cpu: Counter[str] = Counter()
    for event in events:
        where, operator = str(event["args"].get("provider", "")), str(event["args"].get("op_name", ""))
        if where == full:
            ran[operator] += 1
        else:
            on_cpu[operator] += 1
    unnamed = sorted(on_cpu.keys() - set(provider.remainder))
    if unnamed or not ran:
        what = (
            f"leaves {', '.join(f'{name} ({on_cpu[name]})' for name in unnamed)} to the CPU"
            if unnamed
            else "takes none"
        )
        raise ArtifactError(
            action,
            f"{provider.name} doesn't take the graph whole: it {what}",
            "export for another target; or name the operators that may run on the CPU as the provider's remainder",
        )
    rest = "".join(f", CPU: {name} {count}" for name, count in sorted(on_cpu.items()))
    return f"{provider.name} {sum(ran.values())}{rest}"


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
