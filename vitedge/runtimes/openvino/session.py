"""Run OpenVINO's intermediate representation (IR)."""

from __future__ import annotations

import itertools
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge.core.paths import utf8_path
from vitedge.errors import ArtifactError, UsageError, nearest
from vitedge.formats.artifact import COPY_AGAIN, Artifact
from vitedge.formats.target import Option
from vitedge.runtimes.base import Executed, LayerTime, OpenOptions, Stages
from vitedge.runtimes.openvino.detect import core, installed

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: OpenVINO's element types as the manifest names them; types of indices and the like have no name.
_TYPES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "u8": "int8", "i8": "int8"}
#: Executed operators that multiply by weights. A bias is fused into them; on some paths only the bias's name is left.
_WEIGHTED = ("FullyConnected", "MatMul", "Convolution")


def read_contract(artifact: Artifact) -> dict[str, str] | None:
    """Return the preprocessing contract in the IR: the entries of ``rt_info/vitedge``, or None where it has none.

    Raises:
        ArtifactError: the file isn't XML.
    """
    try:
        section = ElementTree.parse(artifact.graph_path).getroot().find("rt_info/vitedge")
    except (OSError, ElementTree.ParseError) as error:
        raise ArtifactError(f"read {artifact.graph_path}", f"it isn't an OpenVINO IR: {error}", COPY_AGAIN) from error
    return None if section is None else {f"vitedge.{entry.tag}": entry.get("value", "") for entry in section}


def open_backend(artifact: Artifact, options: OpenOptions) -> OpenVINOBackend:
    """Compile an artifact's graph for exactly the device and options asked for.

    Raises:
        UsageError: a device that isn't here, an unknown option, or one whose value the device replaces by another.
        ArtifactError: this OpenVINO can't load the graph, or it isn't the one that the manifest describes.
    """
    manifest = artifact.manifest
    action = f"open the artifact {artifact.path}"
    device = options.device or manifest.target.device
    if device not in core().available_devices:
        here = list(core().available_devices)
        raise UsageError(
            action, f"OpenVINO finds no device '{device}' here; it finds {', '.join(here)}", f"add: --device {here[0]}"
        )
    wanted: dict[str, Option] = {**manifest.runtime_options, **options.options}
    threads = manifest.target.threads if options.threads is None else options.threads
    if threads and device == "CPU":
        wanted["INFERENCE_NUM_THREADS"] = threads
    _expect_known(device, wanted, action)
    try:
        with utf8_path(artifact.graph_path) as path:
            model = core().read_model(path)
        compiled = _compiled(model, device, wanted, action)
        image, logits = compiled.input(), compiled.output()  # raises unless there is one of each
    except RuntimeError as error:
        raise ArtifactError(
            action, f"OpenVINO {installed()} can't load {manifest.graph} on {device}: {_reason(error)}", COPY_AGAIN
        ) from error
    height, width = manifest.preprocessing.size
    _expect(action, "image", image, "u8", (manifest.batch, height, width, 3))
    _expect(action, "logits", logits, "f32", (manifest.batch, len(manifest.classes)))
    effective = _effective(compiled, wanted, device, action)
    info: dict[str, Option] = {
        "runtime": "openvino",
        "version": installed() or "",
        "device": device,
        "device_name": str(core().get_property(device, "FULL_DEVICE_NAME")),
        "threads": _plain(compiled.get_property("INFERENCE_NUM_THREADS")) if device == "CPU" else 0,
        **effective,
    }
    return OpenVINOBackend(model, compiled, device, wanted, info, {layer.name for layer in manifest.layers})


class OpenVINOBackend:
    """One compiled model; satisfies :class:`vitedge.runtimes.base.Backend`."""

    def __init__(
        self,
        model: Any,
        compiled: Any,
        device: str,
        options: Mapping[str, Option],
        info: Mapping[str, Option],
        planned: set[str],
    ) -> None:
        self.batch = int(compiled.input(0).shape[0])
        self._model, self._compiled, self._planned = model, compiled, planned
        self._device, self._options = device, options
        self._request = compiled.create_infer_request()
        self.slots = max(2, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
        self.info = {**info, "slots": self.slots}
        self._free = [compiled.create_infer_request() for _ in range(self.slots)]
        self._running: dict[int, Any] = {}  # by ticket, the oldest first
        self._done: dict[int, NDArray[np.float32]] = {}
        self._tickets = itertools.count()

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Stages]:
        """Run the contract's ``infer``; OpenVINO doesn't separate the copies from the computation."""
        start = time.perf_counter_ns()
        self._request.get_input_tensor().data[:] = images
        self._request.infer(share_outputs=True)  # in this thread: start_async would wait for another to be scheduled
        logits: NDArray[np.float32] = self._request.get_output_tensor().data
        return logits, Stages(None, time.perf_counter_ns() - start, None)

    def submit(self, images: NDArray[np.uint8]) -> int:
        """Run the contract's ``submit``. When all slots are busy, the oldest one's logits are kept, its slot reused."""
        if not self._free:
            self._finish(next(iter(self._running)))
        request = self._free.pop()
        _start(request, images)
        ticket = next(self._tickets)
        self._running[ticket] = request
        return ticket

    def wait(self, ticket: int) -> None:
        """Run the contract's ``wait``; if the request was given to a later inference meanwhile, wait for that one."""
        if (request := self._running.get(ticket)) is not None:
            request.wait()

    def collect(self, ticket: int) -> NDArray[np.float32]:
        """Run the contract's ``collect``."""
        if ticket in self._running:
            self._finish(ticket)
        return self._done.pop(ticket)

    def _finish(self, ticket: int) -> None:
        request = self._running.pop(ticket)
        request.wait()
        self._done[ticket] = request.get_output_tensor().data.copy()
        self._free.append(request)

    def executed(self) -> list[Executed]:
        """Return the compiled graph without parts computed once from constants; planned layers have their own names.

        A node that several planned layers were fused into (attention) is listed once for each. OpenVINO tells the type
        of such a node's first input alone: where that is int8, the layers behind the first may be of another type,
        which isn't told. (Seen with AVX-512: products of queries and keys in int8, of weights and values in float32.)
        """
        return [
            Executed(name, operator, type_ if type_ != "int8" or name == names[0] else "")
            for names, operator, type_ in self._nodes(self._compiled).values()
            for name in names
        ]

    def profile(self, images: NDArray[np.uint8], repeats: int) -> list[list[LayerTime]]:
        """Run the contract's ``profile``; OpenVINO counts whole microseconds."""
        compiled = core().compile_model(self._model, self._device, {**self._options, "PERF_COUNT": True})
        nodes, request = self._nodes(compiled), compiled.create_infer_request()
        rounds: list[list[LayerTime]] = []
        for _ in range(repeats + 1):  # the first round allocates
            _start(request, images)
            request.wait()
            rounds.append(
                [
                    LayerTime(names[0], operator, type_, entry.real_time // timedelta(microseconds=1) * 1000)
                    for entry in request.profiling_info
                    if entry.node_name in nodes
                    for names, operator, type_ in [nodes[entry.node_name]]
                ]
            )
        return rounds[1:]

    def close(self) -> None:
        """Run the contract's ``close``."""
        for request in self._running.values():
            request.wait()
        self._running.clear()
        self._free.clear()
        self._done.clear()
        self._request = self._compiled = self._model = None

    def _nodes(self, compiled: Any) -> dict[str, tuple[list[str], str, str]]:
        """Map executed names to (canonical names, operator, type), in the order of execution, without constants."""
        nodes: dict[str, tuple[list[str], str, str]] = {}
        constant: set[str] = set()
        for node in compiled.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            operator, name = str(facts["layerType"].value), node.get_friendly_name()
            inputs = [value.get_node().get_friendly_name() for value in node.input_values()]
            if operator == "Const" or (inputs and constant.issuperset(inputs)):
                constant.add(name)
            elif operator not in ("Input", "Output"):
                originals = [word for word in str(facts["originalLayersNames"].value).split(",") if word]
                type_ = _TYPES.get(str(facts["runtimePrecision"].value), "")
                nodes[name] = (self._canonical(name, originals, operator), operator, type_)
        return nodes

    def _canonical(self, name: str, originals: list[str], operator: str) -> list[str]:
        planned = [original for original in originals if original in self._planned]
        if not planned and operator in _WEIGHTED:
            stems = (original.removesuffix(".bias") for original in originals)
            planned = [stem for stem in stems if stem in self._planned]
        return list(dict.fromkeys(planned)) or [*originals[:1], name][:1]


def _start(request: Any, images: NDArray[np.uint8]) -> None:
    request.get_input_tensor().data[:] = images
    request.start_async()


def _expect_known(device: str, wanted: Mapping[str, Option], action: str) -> None:
    properties = [str(key) for key in core().get_property(device, "SUPPORTED_PROPERTIES")]
    for key in wanted:
        if key not in properties:
            raise UsageError(action, f"{device} has no option '{key}'{nearest(key, properties)}", "correct the option")


def _compiled(model: Any, device: str, options: Mapping[str, Option], action: str) -> Any:
    try:
        return core().compile_model(model, device, dict(options))
    except RuntimeError as error:
        core().compile_model(model, device)  # raises where the graph is at fault, not an option
        raise UsageError(action, f"{device} refuses an option: {_reason(error)}", "correct the option") from error


def _effective(compiled: Any, wanted: Mapping[str, Option], device: str, action: str) -> dict[str, Option]:
    """Return the options as the compiled model has them; OpenVINO silently replaces options that a processor lacks."""
    readable = {str(key) for key in compiled.get_property("SUPPORTED_PROPERTIES")}
    effective = {key: _plain(compiled.get_property(key)) for key in wanted if key in readable}
    for key, value in effective.items():
        if str(value).lower() != str(wanted[key]).lower():
            raise UsageError(
                action,
                f"{key} was to be {wanted[key]}; {device} of this machine makes it {value}",
                f"open it on another machine, or with {key} {value}",
            )
    return effective


def _plain(value: Any) -> Option:
    """Return a property's value as a plain one: element types and enumerations become their names."""
    if isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "to_string"):  # an element type: "f32"
        return str(value.to_string())
    return str(getattr(value, "name", value))


def _expect(action: str, name: str, port: Any, type_: str, shape: tuple[int, ...]) -> None:
    actual = f"{port.get_element_type().to_string()} {list(port.get_shape())}"
    expected = f"{type_} {list(shape)}"
    if actual != expected:
        raise ArtifactError(
            action, f"the tensor '{name}' is {actual}; the manifest says {expected}", "export the model again"
        )


def _reason(error: Exception) -> str:
    """Return the last informative line of an OpenVINO message, which has many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [type(error).__name__])[-1][:300]
