"""A target: the device an artifact is for, as one TOML file in ``targets/``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field

from vitedge.core import paths
from vitedge.core.schema import PositiveReal, Record, load_toml
from vitedge.errors import UsageError
from vitedge.formats.budget import Budget

Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8", "mixed"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8", "fp8", "mixed")
#: Precisions whose scales come from calibration images.
QUANTIZED = ("int8", "fp8", "mixed")
#: Instruction sets that multiply bytes and add the products in 32 bits, as targets and processors name them.
DOT_PRODUCTS = ("avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm", "sme")
#: Those in which 8-bit products are summed in 32 bits. NEON has no dot product, but widens before it adds.
WIDE_SUMS = (*DOT_PRODUCTS, "neon")
Positive = Annotated[int, Meta(ge=1)]
Version = Annotated[str, Meta(pattern=r"^\d+(\.\d+)*$")]  # "10.3"
Option = str | int | float | bool


class Candidate(Record):
    """One way to run a model on a target: a precision and the kernel variant that has it."""

    precision: Precision
    variant: str = field(name="form")


class BenchRules(Record):
    """The shortest measurement on this device before a number may be printed."""

    warmup_s: Annotated[float, Meta(ge=0)]
    min_duration_s: PositiveReal


class Provider(Record):
    """An execution provider of ONNX Runtime that runs the graph, whole but for a named remainder."""

    name: Literal["CUDA", "TensorRT", "NvTensorRtRtx", "OpenVINO", "CoreML", "QNN", "XNNPACK"]
    options: dict[str, Option] = field(default_factory=dict)  # the provider's own: "device_type", "trt_fp16_enable", …
    remainder: tuple[str, ...] = ()  # operators that may stay on the CPU: "Cast"


class Target(Record):
    """A device and its known properties. Keys carry their units; see ``docs/targets.md``."""

    summary: str
    runtime: Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "null"]
    runtime_min: Version  # oldest version of the runtime that the graph must load in
    arch: Literal["any", "x86_64", "aarch64"]
    device: str  # the runtime's own word: "cpu", "CPU", "GPU", "cuda:0"
    batch: Positive
    candidate: Annotated[tuple[Candidate, ...], Meta(min_length=1)]
    bench: BenchRules
    budget: Budget
    #: What int8 kernels may rely on. Without "vnni" in its name, x86 adds two products in saturating 16 bits
    #: ("any" and "avx2": two neighbouring weights add up to 128 at most). "dotprod" and "i8mm" are exact.
    isa: Literal["any", "avx2", "avx_vnni", "avx512_vnni", "neon", "dotprod", "i8mm"] = "any"
    threads: Annotated[int, Meta(ge=0)] = 0  # 0: the machine's physical cores
    sm: Version | None = None  # NVIDIA compute capability, "8.7"
    sms: tuple[Version, ...] = ()  # capabilities to build engines for ahead of time
    memory_mb: Positive | None = None
    refused: dict[Precision, str] = field(default_factory=dict)  # why a precision that people ask for isn't offered
    options: dict[str, Option] = field(default_factory=dict)  # passed to the runtime, read back, recorded
    providers: Annotated[tuple[Provider, ...], Meta(max_length=1)] = ()  # of ONNX Runtime; none: its CPU kernels
    name: str = ""  # the file's stem; not written in the file

    @property
    def wide_sums(self) -> bool:
        """Whether its promised instruction set sums 8-bit products in 32 bits."""
        return self.isa in WIDE_SUMS

    @property
    def plain(self) -> Candidate | None:
        """Its first float candidate, which a quantized one is compared with; None where it has none."""
        return next((each for each in self.candidate if each.precision not in QUANTIZED), None)

    def candidates(self, precision: str) -> tuple[Candidate, ...]:
        """Return the candidates of one precision, in the target's order of preference.

        Whatever has quantized variants can mix them with float: ``mixed`` need not stand in the file.

        Raises:
            UsageError: the target has none; its precisions are listed.
        """
        candidates = tuple(candidate for candidate in self.candidate if candidate.precision == precision)
        if precision == "mixed" and not candidates:
            whole = (candidate for candidate in self.candidate if candidate.precision in QUANTIZED)
            candidates = tuple(Candidate(precision="mixed", variant=candidate.variant) for candidate in whole)
        if not candidates:
            offered = ", ".join(dict.fromkeys(candidate.precision for candidate in self.candidate))
            reason = next((f"{why}; " for refused, why in self.refused.items() if refused == precision), "")
            raise UsageError(
                f"precision {precision} on target '{self.name}'",
                f"{reason}this target runs {offered}",
                f"choose one of them: --precision {self.candidate[0].precision}",
            )
        return candidates


def load_target(name: str | Path) -> Target:
    """Load the target called ``name``, or described by a TOML file.

    Raises:
        UsageError: unknown name (the nearest is given), unknown key or bad value (with its line).
    """
    from msgspec.structs import replace

    path = paths.find("targets", str(name))
    target = load_toml(path, Target, f"target '{name}'")
    if target.providers and target.runtime != "onnxruntime":
        raise UsageError(f"target '{name}'", f"{path}: {target.runtime} has no providers", "remove [[providers]]")
    if target.name:
        raise UsageError(f"target '{name}'", f"{path}: the key 'name' is the file's own name", "remove the key")
    return replace(target, name=path.stem)
