"""From a typed ONNX graph to a serialised engine, with either package; in a child process, where a crash is a message.

Both packages have one Python API. TensorRT builds for the GPU it finds; TensorRT-RTX builds for any compute capability
it knows, GPU or none.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from typing import Any

from vitedge.errors import ArtifactError, NotInstalledError, ResourceError, UsageError

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
WORDS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class BuildOptions:
    """What is set explicitly on every build."""

    tf32: bool = False  # on by default in TensorRT: float32 products with 10 bits of mantissa
    sm: str | None = None  # TensorRT-RTX: compute capability to build for; None: the GPU that is here
    optimization_level: int | None = None  # 0 to 5; None: TensorRT's default, 3
    workspace_mb: int | None = None  # None: all the GPU has


def installed(package: str) -> str | None:
    """Version of the installed package, or None; it's imported only where it has no record of its version."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(importlib.import_module(package).__version__)


def load(package: str, asked: str) -> Any:
    """The module ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        NotInstalledError: it, or a library that it needs, isn't here.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = NotInstalledError.for_extra(asked, package, EXTRAS[package])
        if importlib.util.find_spec(package) is not None:
            missing = NotInstalledError(asked, f"'{package}' can't be imported: {error}", "install it anew")
        raise missing from error


def build(package: str, graph: bytes, options: BuildOptions = BuildOptions()) -> bytes:
    """A serialised engine. Call it through :func:`vitedge.isolation.run_isolated`: builders have crashed.

    Args:
        package: "tensorrt" or "tensorrt_rtx".
        graph: an ONNX file that passed :func:`vitedge.runtimes._nvidia.table.check`.
        options: see :class:`BuildOptions`.

    Raises:
        ArtifactError: the parser or the builder refuses the graph; node and operator are named.
        UsageError: a compute capability that this version doesn't build for.
        ResourceError: no GPU where one is needed, or not enough memory.
        NotInstalledError: the package isn't here.
    """
    asked = f"build an engine with {WORDS[package]}"
    trt = load(package, asked)
    log = logger(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # how the bindings say that there is no CUDA
        raise ResourceError(asked, f"no builder: {log.text()}", "run it where the GPU is") from error
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 knows nothing else
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)] or [log.text()]
        raise ArtifactError(
            asked,
            f"{WORDS[package]} {trt.__version__} can't parse the graph: {'; '.join(errors[:4])}",
            "export in another precision, or report this graph",
        )
    config = _configure(trt, builder, options, asked)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _build_error(f"{WORDS[package]} {trt.__version__}", log.text(), asked)
    return bytes(plan)


def capability_names(trt: Any) -> list[str]:
    """The compute capabilities that this TensorRT-RTX builds for, as "8.6"."""
    names = [re.fullmatch(r"SM(\d+)(\d)", name) for name in dir(trt.ComputeCapability)]
    return sorted((f"{found[1]}.{found[2]}" for found in names if found), key=lambda sm: float(sm))


def _configure(trt: Any, builder: Any, options: BuildOptions, asked: str) -> Any:
    config = builder.create_builder_config()
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names and types of layers can be read back
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.sm is not None:
        known = capability_names(trt)
        if options.sm not in known:
            raise UsageError(
                asked, f"compute capability {options.sm} isn't among {', '.join(known)}", "choose one of these"
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{options.sm.replace('.', '')}"), 0)
    return config


def _build_error(builder: str, text: str, asked: str) -> ArtifactError | ResourceError:
    if re.search(r"out ?of ?memory|insufficient memory", text, re.IGNORECASE):
        return ResourceError(
            asked, f"{builder} ran out of memory: {text}", "lower the batch or workspace_mb, or free GPU memory"
        )
    return ArtifactError(asked, f"{builder} can't build it: {text}", "export in another precision, or report it")


def _parser_error(error: Any) -> str:
    where = f"node '{error.node_name()}' ({error.node_operator()}): " if error.node_operator() else ""
    text, _, _ = " ".join(error.desc().split()).partition(" [checkMacros.cpp")  # a complaint that no driver is here
    return f"{where}{text}"


def logger(trt: Any) -> Any:
    """A logger that keeps errors and prints nothing."""

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
