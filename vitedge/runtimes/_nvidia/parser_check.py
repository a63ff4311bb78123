"""The parser check: TensorRT-RTX parses, types and builds a graph for GPUs that this machine doesn't have.

It judges whether TensorRT's parser and builder take a graph. It proves nothing about INT8 execution: its builder takes
INT8 Q/DQ for every GPU, although TensorRT-RTX runs INT8 weights alone. Nor does it know SM 8.7 (Jetson Orin).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from vitedge.core import isolation
from vitedge.errors import NotInstalledError, VitedgeError
from vitedge.formats.result import ParserCheck
from vitedge.runtimes._nvidia.engine import EXTRAS, BuildOptions, build, installed

PACKAGE = "tensorrt_rtx"
#: The compute capabilities that a graph for any current NVIDIA GPU should build for.
CURRENT = ("8.6", "8.9", "12.0")


@dataclass(frozen=True)
class ParserReport:
    """TensorRT-RTX's results by compute capability."""

    version: str
    engines: dict[str, int] = field(default_factory=dict)  # built: bytes of the engine, which may serve others, too
    errors: dict[str, str] = field(default_factory=dict)  # not built: why
    seconds: float = 0.0

    @property
    def detail(self) -> str:
        """The compute capabilities that build, and those that are refused, in one line."""
        built = f"builds for SM {', '.join(self.engines)}" if self.engines else ""
        refused = "; ".join(f"SM {sm}: {reason}" for sm, reason in self.errors.items())
        return "; ".join(filter(None, (built, refused)))

    @property
    def passed(self) -> bool:
        """Whether every engine was built."""
        return bool(self.engines) and not self.errors


def check(graph: bytes) -> ParserCheck | None:
    """Return the report for a row of a result; None where TensorRT-RTX isn't installed."""
    if installed(PACKAGE) is None:
        return None
    report = parse_and_build(graph)
    return ParserCheck(tool=f"TensorRT for RTX {report.version}", ok=report.passed, detail=report.detail)


def parse_and_build(graph: bytes, sms: Sequence[str] = CURRENT, *, timeout_s: float = 300.0) -> ParserReport:
    """Parse ``graph`` and build an engine for each of ``sms``, in a child process; a crash is an error in the report.

    Args:
        graph: an ONNX file.
        sms: compute capabilities, "8.6".
        timeout_s: for all builds together, and again for each if one of them crashes.

    Raises:
        NotInstalledError: TensorRT-RTX isn't here.
    """
    version = installed(PACKAGE)
    if version is None:
        raise NotInstalledError.for_extra("check a graph with TensorRT's parser", "tensorrt-rtx", EXTRAS[PACKAGE])
    started = time.monotonic()
    engines: dict[str, int] = {}
    errors: dict[str, str] = {}
    try:
        sizes = isolation.run_isolated(_sizes, graph, tuple(sms), timeout_s=timeout_s)
        engines = {sm: size for sm, size in sizes.items() if isinstance(size, int)}
        errors = {sm: size for sm, size in sizes.items() if isinstance(size, str)}
    except isolation.ChildError as error:
        if len(sms) == 1:
            errors = {sms[0]: str(error)}
        else:  # to find the one that crashed, build each in a process of its own
            for sm in sms:
                alone = parse_and_build(graph, [sm], timeout_s=timeout_s)
                engines |= alone.engines
                errors |= alone.errors
    return ParserReport(version, engines, errors, time.monotonic() - started)


def _sizes(graph: bytes, sms: tuple[str, ...]) -> dict[str, int | str]:
    """Return the size of the engine for each compute capability, or why there is none.

    One engine for all of them takes no longer to build than one for one; where there is none, each alone says why.
    """
    try:
        return dict.fromkeys(sms, len(build(PACKAGE, graph, BuildOptions(sms=sms)).plan))
    except VitedgeError as error:
        if len(sms) == 1:
            return {sms[0]: error.reason}
        return {name: outcome for sm in sms for name, outcome in _sizes(graph, (sm,)).items()}
