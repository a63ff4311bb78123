"""Run an ONNX file in ONNX Runtime. Needs numpy and onnxruntime only."""

from __future__ import annotations

import itertools
import json
import queue
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge.core.paths import utf8_path
from vitedge.device.hardware import processor
from vitedge.errors import ArtifactError, ResourceError, UsageError, VitedgeError, nearest
from vitedge.formats.artifact import COPY_AGAIN, Artifact
from vitedge.formats.target import Option, Provider
from vitedge.runtimes.base import Executed, LayerTime, OpenOptions, Stages
from vitedge.runtimes.onnxruntime import detect, providers

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Attributes of SessionOptions that may be set; other keys are ONNX Runtime's own configuration entries ("session.…").
SETTINGS = ("graph_optimization_level", "execution_mode", "enable_cpu_mem_arena", "enable_mem_pattern")
LEVELS = {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED"}
LEVELS["all"] = "ORT_ENABLE_ALL"
MODES = {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"}
#: Asynchronous inferences at once: one computes while the next one's input is copied.
SLOTS = 2

_INT8 = re.compile(
    r"MatMulInteger|^Q(Gemm|Attention|Linear)|^ConvInteger$|^DynamicQuantize(MatMul|LSTM)$|^MatMulNBits$"
)
_ELEMENT_TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_TIMED = "_kernel_time"


def read_contract(artifact: Artifact) -> dict[str, str] | None:
    """Return the preprocessing contract in the file's ``metadata_props``, or None where it has none.

    Raises:
        ArtifactError: ONNX Runtime can't read the file.
    """
    package = detect.load()
    options = package.SessionOptions()
    options.graph_optimization_level = package.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _create(package, artifact, options, f"read {artifact.graph_path}")
    entries = session.get_modelmeta().custom_metadata_map
    return {key: value for key, value in entries.items() if key.startswith("vitedge.")} or None


def open_backend(artifact: Artifact, options: OpenOptions) -> OnnxRuntimeBackend:
    """Load an artifact's graph for exactly the device and options asked for.

    Raises:
        UsageError: another device than the CPU, an option that doesn't exist or has no such value.
        ArtifactError: this ONNX Runtime can't load the graph (its reason is given), or it isn't the manifest's.
        ResourceError: memory ran out.
    """
    manifest = artifact.manifest
    action = f"open the artifact {artifact.path}"
    device = options.device or manifest.target.device
    provider = next(iter(manifest.target.providers), None)
    if device != (manifest.target.device if provider else "cpu"):
        raise UsageError(action, f"ONNX Runtime runs on 'cpu' here, not on '{device}'", "add: --device cpu")
    package = detect.load()
    wanted = {**manifest.runtime_options, **options.options}
    threads = manifest.target.threads if options.threads is None else options.threads
    settings = _settings(package, wanted, threads or _available_cores(), action)
    if provider is not None:
        unknown = providers.unknown(package.get_all_providers())
        providers.require(provider, package.get_available_providers(), unknown, action)
    session = _create(package, artifact, settings, action, provider)
    if provider is None and session.get_providers() != [providers.CPU]:
        raise UsageError(action, f"ONNX Runtime took the providers {session.get_providers()}", "report this build")
    height, width = manifest.preprocessing.size
    _expect(action, "image", session.get_inputs(), "tensor(uint8)", [manifest.batch, height, width, 3])
    _expect(action, "logits", session.get_outputs(), "tensor(float)", [manifest.batch, len(manifest.classes)])
    info: dict[str, Option] = {
        "runtime": "onnxruntime",
        "version": detect.installed() or "",
        "device": device,
        "provider": session.get_providers()[0],
        "threads": session.get_session_options().intra_op_num_threads,
        **_read_back(session.get_session_options(), wanted),
    }
    backend = OnnxRuntimeBackend(artifact, session, wanted, info)
    if provider is not None:
        backend.info["ran_by"] = providers.check_kernels(provider, backend.kernels(), action)
    return backend


class OnnxRuntimeBackend:
    """One ONNX Runtime session; satisfies :class:`vitedge.runtimes.base.Backend`."""

    def __init__(
        self, artifact: Artifact, session: Any, wanted: Mapping[str, Option], info: Mapping[str, Option]
    ) -> None:
        self.batch, self.slots = artifact.manifest.batch, SLOTS
        self.info: dict[str, Option] = {**info, "slots": SLOTS}
        self._artifact, self._session, self._wanted = artifact, session, wanted
        self._planned = [layer.name for layer in artifact.manifest.layers]
        self._slot = _Slot(session)
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._workers: futures.ThreadPoolExecutor | None = None  # asynchronous slots are made when they're first wanted
        self._pending: dict[int, futures.Future[NDArray[np.float32]]] = {}
        self._tickets = itertools.count()

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Stages]:
        """Run the contract's ``infer``: the picture is copied once; logits are read where the runtime wrote them."""
        self._slot.images[...] = images
        start = time.perf_counter_ns()
        self._slot.run(self._session)
        return self._slot.logits, Stages(None, time.perf_counter_ns() - start, None)

    def submit(self, images: NDArray[np.uint8]) -> int:
        """Run the contract's ``submit``."""
        if self._workers is None:
            self._workers = futures.ThreadPoolExecutor(SLOTS, "onnxruntime")
            for _ in range(SLOTS):
                self._free.put(_Slot(self._session))
        slot = self._free.get()
        slot.images[...] = images
        ticket = next(self._tickets)
        self._pending[ticket] = self._workers.submit(self._work, slot)
        return ticket

    def wait(self, ticket: int) -> None:
        """Run the contract's ``wait``."""
        if (future := self._pending.get(ticket)) is not None:
            futures.wait([future])

    def collect(self, ticket: int) -> NDArray[np.float32]:
        """Run the contract's ``collect``."""
        return self._pending.pop(ticket).result()

    def _work(self, slot: _Slot) -> NDArray[np.float32]:
        try:
            slot.run(self._session)
            logits: NDArray[np.float32] = slot.logits.copy()
            return logits
        finally:
            self._free.put(slot)

    def executed(self) -> list[Executed]:
        """Return the nodes of one profiled inference; one that computes several planned layers is listed once for each.

        Quantized attention is such a node: its linear multiplies integers, its two products are float32.
        """
        nodes = []
        for event in self._profiled(np.zeros_like(self._slot.images), 1)[0]:
            names, operator, type_ = self._facts(event)
            nodes += [Executed(name, operator, type_ if i == 0 else "fp32") for i, name in enumerate(names)]
        return nodes

    def kernels(self) -> list[dict[str, Any]]:
        """Return the kernel events of one profiled inference, as ONNX Runtime writes them."""
        return self._profiled(np.zeros_like(self._slot.images), 1)[0]

    def profile(self, images: NDArray[np.uint8], repeats: int) -> list[list[LayerTime]]:
        """Run the contract's ``profile``; ONNX Runtime counts whole microseconds."""
        rounds = []
        for events in self._profiled(images, repeats):
            layers = []
            for event in events:
                names, operator, type_ = self._facts(event)
                layers.append(LayerTime(names[0], operator, type_, int(event["dur"]) * 1000))
            rounds.append(layers)
        return rounds

    def close(self) -> None:
        """Run the contract's ``close``."""
        if self._workers is not None:
            self._workers.shutdown()
        self._pending.clear()
        self._workers = self._session = None

    def _profiled(self, images: NDArray[np.uint8], repeats: int) -> list[list[dict[str, Any]]]:
        """Return kernel events of each of ``repeats`` inferences, in a session of its own with the same options."""
        package = detect.load()
        with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
            settings = _settings(package, self._wanted, int(self.info["threads"]), "profile")
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            provider = next(iter(self._artifact.manifest.target.providers), None)
            action = f"profile the artifact {self._artifact.path}"
            session = _create(package, self._artifact, settings, action, provider)
            slot = _Slot(session)
            slot.images[...] = images
            for _ in range(repeats + 1):  # the first one allocates
                slot.run(session)
            events = _profile(Path(session.end_profiling()))
        rounds: list[list[dict[str, Any]]] = [[]]
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(_TIMED):
                rounds[-1].append(event)
            elif event["name"] == "model_run":  # written when the run is over
                rounds.append([])
        return rounds[1 : repeats + 1]

    def _facts(self, event: Mapping[str, Any]) -> tuple[list[str], str, str]:
        """Return (planned layers or the node's own name, operator, type) of a kernel event."""
        operator = str(event["args"]["op_name"])
        names = [self._canonical(name) for name in event["name"].removesuffix(_TIMED).split("+")]
        if _INT8.search(operator):
            return names, operator, "int8"
        outputs = event["args"].get("output_type_shape") or [{}]
        return names, operator, _ELEMENT_TYPES.get(next(iter(outputs[0]), ""), "")

    def _canonical(self, name: str) -> str:
        """Return the planned layer of an optimiser's node name: "blocks.0.mlp.fc1/MatMulAddFusion", "…_nchwc"."""
        made_from = [
            layer for layer in self._planned if re.match(rf"{re.escape(layer)}($|/|_token_|\.out_nchwc)", name)
        ]
        return max(made_from, key=len, default=name)


class _Slot:
    """Buffers of one inference, bound to a session's input and output once."""

    def __init__(self, session: Any) -> None:
        image, logits = session.get_inputs()[0], session.get_outputs()[0]
        self.images: NDArray[np.uint8] = np.zeros(image.shape, np.uint8)
        self.logits: NDArray[np.float32] = np.zeros(logits.shape, np.float32)
        self._binding = session.io_binding()
        self._binding.bind_input(image.name, "cpu", 0, np.uint8, image.shape, self.images.ctypes.data)
        self._binding.bind_output(logits.name, "cpu", 0, np.float32, logits.shape, self.logits.ctypes.data)

    def run(self, session: Any) -> None:
        """Compute ``logits`` from ``images``.

        Raises:
            ResourceError, ArtifactError: memory ran out; another failure inside the runtime.
        """
        try:
            session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise _explained(error, "run an inference") from error


def _profile(path: Path) -> Any:
    """Return the events that ONNX Runtime wrote.

    Raises:
        ResourceError: it couldn't write all of them, which it doesn't say itself.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        reason = "ONNX Runtime's profile of one inference is cut off"
        hint = "free space in the folder for temporary files, or raise the limit: ulimit -f"
        raise ResourceError("read the executed graph", reason, hint) from error


def _create(package: Any, artifact: Artifact, settings: Any, action: str, provider: Provider | None = None) -> Any:
    how: dict[str, Any] = {"providers": [providers.CPU]}
    if provider is not None:
        providers.configure(settings, provider)
        how = providers.arguments(provider)
    try:
        with utf8_path(artifact.graph_path) as path:
            return package.InferenceSession(str(path), settings, **how)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise _explained(error, action, provider) from error


def _explained(error: Exception, action: str, provider: Provider | None = None) -> VitedgeError:
    """Turn an ONNX Runtime error into ours, in our words where the text is known; no decision depends on the text."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", first.strip())
    if isinstance(error, MemoryError) or re.search(r"bad.?alloc|[Ff]ailed to allocate memory", str(error)):
        return ResourceError(action, f"memory ran out: {reason}", "use a smaller batch, or free memory")
    if "pthread" in str(error).lower():
        return ResourceError(
            action, f"no more threads can be started: {reason}", "end other processes, or use: --threads 1"
        )
    version = detect.installed()
    if "fallback to CPU EP has been explicitly disabled" in str(error):
        return ArtifactError(
            action,
            "the target's provider doesn't take the graph whole, and ONNX Runtime would run the rest on the CPU",
            "export for another target; or name the operators that may run on the CPU as the provider's remainder",
        )
    if provider is not None:
        hint = "export for another target; or name the operators that it leaves as its remainder in the target"
        return ArtifactError(action, f"ONNX Runtime {version} refuses the graph on {provider.name}: {reason}", hint)
    return ArtifactError(action, f"ONNX Runtime {version} refuses the graph: {reason}", COPY_AGAIN)


def _expect(action: str, name: str, ports: Sequence[Any], type_: str, shape: list[int]) -> None:
    """Check that there is one tensor of this name, type and shape.

    Raises:
        ArtifactError: the file isn't the graph that the manifest describes.
    """
    tensors = [(tensor.name, tensor.type, list(tensor.shape)) for tensor in ports]
    if tensors != [(name, type_, shape)]:
        raise ArtifactError(action, f"expected one tensor {(name, type_, shape)}, the graph has {tensors}", COPY_AGAIN)


# --- options ---------------------------------------------------------------------------------------------------------


def _settings(package: Any, wanted: Mapping[str, Option], threads: int, action: str) -> Any:
    """Return SessionOptions with everything set explicitly.

    Raises:
        UsageError: an unknown option or value.
    """
    settings = package.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 3
    enumerations = {
        "graph_optimization_level": (LEVELS, package.GraphOptimizationLevel),
        "execution_mode": (MODES, package.ExecutionMode),
    }
    for key, value in wanted.items():
        if key in enumerations:
            members, kind = enumerations[key]
            if value not in members:
                raise UsageError(action, f"option {key} is '{value}'", f"use {', '.join(members)}")
            setattr(settings, key, getattr(kind, members[str(value)]))
        elif key in SETTINGS:
            if not isinstance(value, bool):
                raise UsageError(action, f"option {key} is {value!r}", "use true or false")
            setattr(settings, key, value)
        elif "." in key:
            settings.add_session_config_entry(key, str(int(value)) if isinstance(value, bool) else str(value))
        else:
            known_keys = (*SETTINGS, *SPINNING)
            raise UsageError(
                action,
                f"ONNX Runtime has no option '{key}'{nearest(key, known_keys)}",
                f"use {', '.join(known_keys)}, or a configuration key with its dots",
            )
    return settings


SPINNING = ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning")


def _read_back(settings: Any, wanted: Mapping[str, Option]) -> dict[str, Option]:
    """Return the options as the session has them."""
    level = {value: word for word, value in LEVELS.items()}[settings.graph_optimization_level.name]
    mode = {value: word for word, value in MODES.items()}[settings.execution_mode.name]
    return {
        "graph_optimization_level": level,
        "execution_mode": mode,
        "enable_cpu_mem_arena": bool(settings.enable_cpu_mem_arena),
        "enable_mem_pattern": bool(settings.enable_mem_pattern),
        **{key: _entry(settings.get_session_config_entry(key), value) for key, value in wanted.items() if "." in key},
    }


def _entry(text: str, like: Option) -> Option:
    """Return a configuration entry, which ONNX Runtime keeps as text; a boolean is set as "1"."""
    return text == "1" if isinstance(like, bool) else text


def _available_cores() -> int:
    """Return the number of physical cores that this process may use, at least one."""
    cpu = processor()
    limits = [cpu.physical_cores, cpu.allowed_cores, cpu.quota_cores]
    return max(1, int(min((limit for limit in limits if limit is not None), default=1)))
