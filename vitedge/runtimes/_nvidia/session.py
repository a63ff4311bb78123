"""A session on an NVIDIA GPU, for TensorRT and TensorRT-RTX.

Opening finds the engine whose metadata fit (beside the artifact or in the cache), or builds it once from the
artifact's ONNX file. How an inference is started (copies or shared memory, kernel by kernel or as a CUDA graph) is
measured on first opening and noted beside the engine. Asynchronous work runs in several contexts.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge.core.cache import optional_writes
from vitedge.core.files import sha256, write_atomic
from vitedge.core.progress import lines
from vitedge.device.hardware import gpus
from vitedge.errors import ArtifactError, ResourceError, UsageError, nearest
from vitedge.formats.artifact import Artifact
from vitedge.formats.target import Option
from vitedge.runtimes._nvidia import engine, engines, layers, metadata
from vitedge.runtimes._nvidia.driver import Cuda, GpuFacts
from vitedge.runtimes._nvidia.slot import LaunchMode, Slot, Tensors, fastest, measured
from vitedge.runtimes.base import Executed, LayerTime, OpenOptions, Stages

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BUILD_KEYS = {"tf32": bool, "optimization_level": int, "workspace_mb": int, "aux_streams": int}
_SESSION_KEYS = {"cuda_graph": bool, "zero_copy": bool, "contexts": int}
#: Asynchronous inferences at once: one computes while the next one's picture is copied.
CONTEXTS = 2


def read_contract(artifact: Artifact) -> dict[str, str] | None:
    """Return the preprocessing contract in the ONNX file's metadata; None where the package onnx isn't installed."""
    try:
        from vitedge.graph.surgery import get_metadata, parse
    except ImportError:  # a device needs no onnx
        return None
    return get_metadata(parse(artifact.graph_path.read_bytes(), f"read {artifact.graph_path}")) or None


def open_backend(package: str, version: str, artifact: Artifact, options: OpenOptions) -> TensorRTBackend:
    """Open an artifact on this machine's GPU.

    Raises:
        NotInstalledError: the package or cuda-bindings isn't here.
        ResourceError: no GPU, or not enough of its memory.
        UsageError: a device other than "cuda:0", or an option that TensorRT hasn't.
        ArtifactError: the engine can't be built or loaded.
    """
    action = f"open the artifact {artifact.path}"
    trt = engine.load(package, action)
    device = options.device or artifact.manifest.target.device
    if device != "cuda:0":
        raise UsageError(action, f"the device is '{device}'; vitedge opens the first that CUDA shows", "use cuda:0")
    wanted = {**artifact.manifest.runtime_options, **options.options}
    build, mode = build_options(wanted, action), session_options(wanted)
    if not gpus():
        raise ResourceError(
            action,
            f"no NVIDIA GPU answers here, and {engine.NAMES[package]} runs on nothing else",
            "copy the artifact to the device and open it there; its engine is built on first opening",
        )
    cuda = Cuda(action, package)
    gpu = cuda.gpu()
    refuse_missing_types(artifact, gpu.sm, action)
    this_gpu = metadata.here(package, version, sha256(artifact.graph_path.read_bytes()), build, cuda)
    obtained = engines.obtain(
        artifact, this_gpu, build, may_build=options.build, progress=options.progress or lines(), action=action
    )
    info: dict[str, Option] = {
        "runtime": package,
        "version": version,
        "device": f"{device} {gpu.name}",
        "sm": gpu.sm,
        "strongly_typed": True,
        **{key: value for key, value in this_gpu.options.items() if value is not None},
        "engine": obtained.metadata.engine[:12],
    }
    return TensorRTBackend(trt, cuda, gpu, obtained, artifact, info, mode)


def build_options(options: Mapping[str, Option], action: str) -> engine.BuildOptions:
    """Turn the options of a manifest (and of the caller) into build options.

    Raises:
        UsageError: an unknown option, a value of another type, or a graph that isn't strongly typed.
    """
    kinds = _BUILD_KEYS | _SESSION_KEYS
    for key, value in options.items():
        if key != "strongly_typed" and (key not in kinds or type(value) is not kinds[key]):
            raise UsageError(
                action,
                f"there is no option '{key}' = {value!r}{nearest(key, kinds)}",
                f"use {', '.join(f'{name} ({kind.__name__})' for name, kind in kinds.items())}",
            )
    if options.get("strongly_typed") is not True:
        raise UsageError(action, "its graph isn't meant to be strongly typed", "export it again")
    settings = {key: value for key, value in options.items() if key in _BUILD_KEYS}
    assert settings.keys() <= {field.name for field in fields(engine.BuildOptions)}
    return engine.BuildOptions(**settings)  # type: ignore[arg-type]  # checked just above


def session_options(options: Mapping[str, Option]) -> dict[str, Option]:
    """Return those of the checked options that a session reads."""
    return {key: value for key, value in options.items() if key in _SESSION_KEYS}


def refuse_missing_types(artifact: Artifact, sm: str, action: str) -> None:
    """Refuse FP8 on a GPU without it, before the builder refuses it in a message of its own.

    Raises:
        UsageError: the GPU's compute capability, and what to export instead.
    """
    planned = {layer.precision for layer in artifact.manifest.layers}
    if "fp8" in planned and tuple(map(int, sm.split("."))) < (8, 9):
        raise UsageError(
            action, f"FP8 needs compute capability 8.9; this GPU has {sm}", "export it with --precision fp16 or int8"
        )


class TensorRTBackend:
    """One engine and its slots. See :class:`vitedge.runtimes.base.Backend`."""

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        gpu: GpuFacts,
        obtained: engines.ObtainedEngine,
        artifact: Artifact,
        info: Mapping[str, Option],
        options: Mapping[str, Option],
    ) -> None:
        self.batch = artifact.manifest.batch
        self._trt, self._cuda = trt, cuda
        self._action = f"open the artifact {artifact.path}"
        self._slots: list[Slot] = []
        self._tickets = itertools.count()
        self._pending: dict[int, Slot] = {}  # ticket -> where it runs
        self._done: dict[int, NDArray[np.float32]] = {}
        self.slots = max(1, int(options.get("contexts", CONTEXTS)))
        self._runtime_cache: Any = None
        self._config: Any = None
        self._cache_file = engines.cache_of(obtained.metadata.graph, artifact.manifest.name) / f"{info['engine']}.jit"
        height, width = artifact.manifest.preprocessing.size
        try:
            self._load(obtained.plan)
            shapes = (self.batch, height, width, 3), (self.batch, len(artifact.manifest.classes))
            self._tensors = self._described(*shapes)
            note = self._cache_file.with_suffix(".json")
            mode, times = self._choose(launch_modes(gpu, options), note)
            self._slots = self._slots or [self._slot(mode)]
        except BaseException:
            self.close()
            raise
        self.info: Mapping[str, Option] = {
            **info,
            "contexts": self.slots,
            "cuda_graph": mode.graph,
            "zero_copy": mode.zero_copy,
            **{f"{name}_us": us for name, us in times.items()},
        }

    def _load(self, plan: bytes) -> None:
        self._runtime = self._trt.Runtime(engine.logger(self._trt))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ArtifactError(
                self._action,
                "the engine can't be loaded, although its metadata fit",
                f"delete {self._cache_file.parent}, and open again",
            )
        if hasattr(self._engine, "create_runtime_config") and self._trt.__name__ == "tensorrt_rtx":
            self._config = self._engine.create_runtime_config()
            self._runtime_cache = self._config.create_runtime_cache()
            with contextlib.suppress(OSError):  # TensorRT-RTX compiles its kernels when they first run
                self._runtime_cache.deserialize(self._cache_file.read_bytes())

    def _described(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Tensors:
        """Return the engine's tensors, after checking that they are the manifest's.

        Raises:
            ArtifactError: they aren't.
        """
        trt = self._trt
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = [self._engine.get_tensor_mode(name) for name in names]
        if sorted(mode == trt.TensorIOMode.INPUT for mode in modes) != [False, True]:
            raise ArtifactError(self._action, f"the engine has the tensors {', '.join(names)}", "export it again")
        source, target = names[modes.index(trt.TensorIOMode.INPUT)], names[modes.index(trt.TensorIOMode.OUTPUT)]
        for name, shape in ((source, inputs), (target, outputs)):
            if tuple(self._engine.get_tensor_shape(name)) != shape:
                reason = f"the engine's '{name}' is {list(self._engine.get_tensor_shape(name))}; expected {list(shape)}"
                raise ArtifactError(self._action, reason, "export it again")
        return Tensors(source, inputs, target, outputs)

    def _slot(self, mode: LaunchMode) -> Slot:
        return Slot(self._cuda, self._context, self._tensors, mode, self._action)

    def _context(self) -> Any:
        if self._runtime_cache is None:
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        config.set_runtime_cache(self._runtime_cache)
        return self._engine.create_execution_context(config)

    def _choose(self, modes: list[LaunchMode], note: Path) -> tuple[LaunchMode, dict[str, int]]:
        """Return the fastest launch mode on this GPU, and median microseconds by mode, measured once for each engine.

        A mode that doesn't open here (a graph that can't be captured) isn't taken.
        """
        if len(modes) == 1:
            return modes[0], {}
        names = [mode.description for mode in modes]
        try:
            noted = json.loads(note.read_bytes())
            return modes[names.index(noted["way"])], {str(name): int(us) for name, us in noted["us"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        slots: list[Slot] = []
        try:
            for mode in modes:
                with contextlib.suppress(ResourceError) if slots else contextlib.nullcontext():
                    slots.append(self._slot(mode))
            times = measured(slots, np.zeros(self._tensors.inputs, np.uint8))
            chosen = slots[fastest([slot.mode for slot in slots], times)]
            taken = {slot.mode.description: round(time / 1000) for slot, time in zip(slots, times, strict=True)}
            slots.remove(chosen)
            self._slots = [chosen]
        finally:
            for slot in slots:
                slot.close()
        with optional_writes():
            write_atomic(note, json.dumps({"way": chosen.mode.description, "us": taken}).encode(), self._action)
        return chosen.mode, taken

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Stages]:
        """Run the contract's ``infer``; the stages are CUDA events' times."""
        slot = self._slots[0]
        self._settle(slot)
        slot.start(images)
        logits = slot.wait()
        return logits, slot.stages()

    def submit(self, images: NDArray[np.uint8]) -> int:
        """Run the contract's ``submit``; ``contexts`` inferences are in flight at a time, the rest waits here."""
        while len(self._slots) < self.slots:
            self._slots.append(self._slot(self._slots[0].mode))
        ticket = next(self._tickets)
        slot = self._slots[ticket % len(self._slots)]
        self._settle(slot)
        slot.start(images)
        self._pending[ticket] = slot
        return ticket

    def wait(self, ticket: int) -> None:
        """Run the contract's ``wait``; if the slot was given to a later inference meanwhile, wait for that one."""
        if (slot := self._pending.get(ticket)) is not None:
            slot.synchronize()

    def collect(self, ticket: int) -> NDArray[np.float32]:
        """Run the contract's ``collect``."""
        if ticket in self._pending:
            self._settle(self._pending[ticket])
        return self._done.pop(ticket)

    def _settle(self, slot: Slot) -> None:
        """Keep the logits of the inference in this slot, whose memory is needed again."""
        for ticket in [ticket for ticket, where in self._pending.items() if where is slot]:
            self._done[ticket] = slot.wait().copy()
            del self._pending[ticket]

    def executed(self) -> list[Executed]:
        """Return the engine's layers under the names of the ONNX nodes in them, with the narrowest type they read."""
        return layers.executed(self.layer_information())

    def layer_information(self) -> str:
        """Return the engine inspector's JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def profile(self, images: NDArray[np.uint8], repeats: int) -> list[list[LayerTime]]:
        """Return per-layer times from a profiler of the context; without a CUDA graph, which would hide the layers."""
        slot = self._slots[0]
        self._settle(slot)
        types = {layer.name: layer for layer in layers.parse(self.layer_information())}
        rounds: list[list[LayerTime]] = []

        class Profiler(self._trt.IProfiler):  # type: ignore[misc, name-defined]  # the module has no stubs
            def __init__(self, trt: Any) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, name: str, ms: float) -> None:
                layer = types.get(name)
                kind, type_ = (layer.kind, layer.type) if layer else ("", "")
                nodes = "+".join(layer.nodes) if layer else ""  # the model's names tell more than the engine's
                rounds[-1].append(LayerTime(nodes or name, kind, type_, round(ms * 1e6)))

        slot.context.profiler = profiler = Profiler(self._trt)
        try:
            for _ in range(repeats):
                rounds.append([])
                slot.start(images, captured=False)
                slot.wait()
        finally:
            slot.context.profiler = None
            del profiler
        return rounds

    def close(self) -> None:
        """Run the contract's ``close`` after waiting for work in flight, whose memory is released."""
        for slot in self._slots:
            slot.wait()
        while self._slots:
            self._slots.pop().close()
        self._pending.clear()
        if self._runtime_cache is not None and not self._cache_file.exists():
            with optional_writes():
                write_atomic(self._cache_file, bytes(self._runtime_cache.serialize()), self._action)
        self._runtime_cache = self._config = self._engine = self._runtime = None


def launch_modes(gpu: GpuFacts, options: Mapping[str, Option]) -> list[LaunchMode]:
    """Return the launch modes to try on this GPU, the simplest first; an option leaves only modes of its kind."""
    copies = [bool(options["zero_copy"])] if "zero_copy" in options else [False, True] if gpu.integrated else [False]
    graphs = [bool(options["cuda_graph"])] if "cuda_graph" in options else [False, True]
    return [LaunchMode(zero_copy, graph) for zero_copy in copies for graph in graphs]
