"""Build a serialised engine from a typed ONNX graph, in a child process, so that a crash becomes an error message.

Both packages have one Python API. TensorRT builds for the GPU it finds; TensorRT-RTX builds for any compute capability
it knows, GPU or none.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vitedge.core import isolation
from vitedge.core.progress import Progress, silent
from vitedge.device import cuda, hardware
from vitedge.device.sensors import resident_bytes
from vitedge.errors import ArtifactError, NotInstalledError, ResourceError, UsageError

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
BUILD_TIMEOUT_S = 3600.0  # small boards take many minutes
STEPS = 1000  # of the progress bar


@dataclass(frozen=True)
class BuildOptions:
    """The settings that every build sets explicitly."""

    tf32: bool = False  # on by default in TensorRT: float32 products with 10 bits of mantissa
    sms: tuple[str, ...] = ()  # TensorRT-RTX: compute capabilities of the one engine; none: the GPU that is here
    optimization_level: int | None = None  # 0 to 5; None: TensorRT's default, 3
    workspace_mb: int | None = None  # None: all the GPU has
    aux_streams: int | None = None  # further streams of one inference; None: TensorRT's own choice


@dataclass(frozen=True)
class Built:
    """The result of a build."""

    plan: bytes
    timing_cache: bytes = b""  # empty where the package keeps none
    seconds: float = 0.0
    peak_mb: int | None = None  # largest resident memory of the process that built it, in MiB


def installed(package: str) -> str | None:
    """Return the version of the installed package, or None; it's imported only where no record has its version."""
    if importlib.util.find_spec(package) is None:
        return None
    for name in (package, f"{package}-cu13", f"{package}-cu12"):  # wheels of one CUDA may come without the first
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return str(importlib.import_module(package).__version__)


def extra(package: str) -> str:
    """Return the extra that brings a package; for TensorRT the newest CUDA's that this machine's driver serves."""
    served = cuda.served(hardware.gpus(), hardware.board()) if package == "tensorrt" else None
    return f"{EXTRAS[package]}-cu{served[0]}" if served else EXTRAS[package]


def load(package: str, action: str) -> Any:
    """Import the module ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        NotInstalledError: it, or a library that it needs, isn't here.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = NotInstalledError.for_extra(action, package, extra(package))
        if importlib.util.find_spec(package) is not None:
            missing = NotInstalledError(action, f"'{package}' can't be imported: {error}", "install it again")
        raise missing from error


def build_isolated(
    package: str,
    version: str,
    graph: bytes,
    options: BuildOptions,
    timing_cache: bytes = b"",
    *,
    action: str,
    progress: Progress = silent,
) -> Built:
    """Run :func:`build` in a child process; a crash or a hang of the builder is an error like any other.

    Raises:
        ArtifactError: the graph is refused, or the builder crashed.
        UsageError, ResourceError, NotInstalledError: as :func:`build`.
    """
    task = f"build for SM {', '.join(options.sms)}" if options.sms else "build"

    def heard(line: str) -> None:
        if line.isdigit():
            progress(task, min(int(line), STEPS), STEPS)

    progress(task, 0, STEPS)
    try:
        built: Built = isolation.run_isolated(
            build, package, graph, options, timing_cache, timeout_s=BUILD_TIMEOUT_S, heard=heard
        )
    except isolation.ChildError as error:
        raise ArtifactError(
            action,
            f"building the engine with {NAMES[package]} {version}: {error}",
            "export in another precision, or report this graph",
        ) from error
    progress(task, STEPS, STEPS)
    return built


def build(package: str, graph: bytes, options: BuildOptions = BuildOptions(), timing_cache: bytes = b"") -> Built:
    """Build and serialise an engine. Call it through :func:`build_isolated`: builders have crashed.

    Args:
        package: "tensorrt" or "tensorrt_rtx".
        graph: an ONNX file that passed :func:`vitedge.runtimes._nvidia.table.check`.
        options: see :class:`BuildOptions`.
        timing_cache: what earlier builds on this GPU measured.

    Raises:
        ArtifactError: the parser or the builder refuses the graph; node and operator are named.
        UsageError: a compute capability that this version doesn't build for.
        ResourceError: no GPU where one is needed, or not enough memory.
        NotInstalledError: the package isn't here.
    """
    action = f"build an engine with {NAMES[package]}"
    started = time.monotonic()
    trt = load(package, action)
    log = logger(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # the bindings raise it where there is no CUDA
        raise ResourceError(action, f"no builder: {log.text()}", "run it where the GPU is") from error
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 has no other mode
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)] or [log.text()]
        raise ArtifactError(
            action,
            f"{NAMES[package]} {trt.__version__} can't parse the graph: {'; '.join(errors[:4])}",
            "export in another precision, or report this graph",
        )
    config = _configure(trt, builder, options, action)
    monitor = progress_monitor(trt, lambda fraction: isolation.tell(str(round(fraction * STEPS))))
    config.progress_monitor = monitor
    keeps_timings = package == "tensorrt"  # TensorRT-RTX times nothing ahead of time
    if keeps_timings:
        cache = config.create_timing_cache(timing_cache)
        if not config.set_timing_cache(cache, ignore_mismatch=False):  # another GPU's or version's: begin empty
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _build_error(f"{NAMES[package]} {trt.__version__}", log.text(), action)
    timings = bytes(config.get_timing_cache().serialize()) if keeps_timings else b""
    _, peak = resident_bytes()
    return Built(bytes(plan), timings, time.monotonic() - started, None if peak is None else peak >> 20)


def capability_names(trt: Any) -> list[str]:
    """Return the compute capabilities that this TensorRT-RTX builds for, as "8.6"."""
    names = [re.fullmatch(r"SM(\d+)(\d)", name) for name in dir(trt.ComputeCapability)]
    return sorted((f"{match[1]}.{match[2]}" for match in names if match), key=lambda sm: float(sm))


def _configure(trt: Any, builder: Any, options: BuildOptions, action: str) -> Any:
    config = builder.create_builder_config()
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names and types of layers can be read back
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if options.sms:
        _set_capabilities(trt, config, options.sms, action)
    return config


def _set_capabilities(trt: Any, config: Any, sms: Sequence[str], action: str) -> None:
    """Raises: UsageError: one that this version doesn't build for."""
    capabilities = capability_names(trt)
    for sm in sms:
        if sm not in capabilities:
            reason = f"compute capability {sm} isn't among {', '.join(capabilities)}"
            raise UsageError(action, reason, "choose one of these")
    config.num_compute_capabilities = len(sms)
    for index, sm in enumerate(sms):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm.replace('.', '')}"), index)


def _build_error(builder: str, text: str, action: str) -> ArtifactError | ResourceError:
    if re.search(r"out ?of ?memory|insufficient memory", text, re.IGNORECASE):
        return ResourceError(
            action,
            f"{builder} ran out of memory: {text}",
            "lower the batch, or workspace_mb in the target's [options]; or free memory (docs/jetson.md says how)",
        )
    return ArtifactError(action, f"{builder} can't build it: {text}", "export in another precision, or report it")


def _parser_error(error: Any) -> str:
    where = f"node '{error.node_name()}' ({error.node_operator()}): " if error.node_operator() else ""
    text, _, _ = " ".join(error.desc().split()).partition(" [checkMacros.cpp")  # a complaint that no driver is here
    return f"{where}{text}"


def logger(trt: Any) -> Any:
    """Return a logger that keeps errors and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the module has no stubs
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))

        def text(self) -> str:
            return "; ".join(dict.fromkeys(self.errors[-4:])) or "it gave no reason"

    return Logger()


class Phases:
    """The progress of a build: phases have steps, and a phase may be a step of another. Called by several threads."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report, self._lock = report, threading.Lock()
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # name -> (parent, steps, done)
        self._furthest = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase."""
        with self._lock:
            self._phases[name] = (parent, max(1, steps), 0)

    def step(self, name: str) -> None:
        """Count a finished step of a phase."""
        with self._lock:
            parent, steps, done = self._phases.get(name, (None, 1, 0))
            self._phases[name] = (parent, steps, min(done + 1, steps))
            fraction = max(
                (self._fraction(root) for root, (above, _, _) in self._phases.items() if above is None), default=0
            )
            if fraction > self._furthest:  # it never goes back, although a phase may be started again
                self._furthest = fraction
                self._report(fraction)

    def finish(self, name: str) -> None:
        """End a phase, whether its steps are done or not."""
        with self._lock:
            self._phases.pop(name, None)

    def _fraction(self, name: str) -> float:
        _, steps, done = self._phases[name]
        inside = max(
            (self._fraction(child) for child, (parent, _, _) in self._phases.items() if parent == name), default=0
        )
        return min(1.0, (done + min(inside, 0.99)) / steps)


def progress_monitor(trt: Any, report: Callable[[float], None]) -> Any:
    """Return an ``IProgressMonitor`` that reports the fraction of the build that is done, 0 to 1."""
    phases = Phases(report)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module has no stubs
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase or None, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
