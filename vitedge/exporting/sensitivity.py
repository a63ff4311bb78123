"""The sensitivity scan: the divergence that quantizing each group of layers alone adds, and the time that it saves."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from msgspec.structs import replace

from vitedge.core.cache import optional_writes
from vitedge.core.files import sha256, write_atomic
from vitedge.core.paths import cache_folder
from vitedge.core.progress import Progress
from vitedge.core.schema import Record, decode_json, encode_json
from vitedge.errors import InputError
from vitedge.exporting.candidates import Evaluated, ExportInputs
from vitedge.exporting.groups import Group, Scan, divergences, fastest, saved_ns
from vitedge.exporting.runnable import interpreted, opened
from vitedge.runtimes.base import Lowered
from vitedge.runtimes.here import runs_here

if TYPE_CHECKING:
    import onnx

#: Hold-out pictures per group.
PICTURES = 64
#: Inferences per profile.
PROFILED = 30


class _Divergence(Record):
    """One graph's divergence in the cache folder; runtimes that round to the same integers share it."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    divergence: float


def scan_groups(inputs: ExportInputs, evaluated: Evaluated, groups: Sequence[Group], progress: Progress) -> Scan:
    """Measure divergence and gain of every group of a candidate's quantized layers.

    The gain is in nanoseconds where the target's runtime runs here, else in multiply-accumulates.
    """
    candidate, measured = evaluated.candidate, inputs.divergences

    def divergence(layers: frozenset[str]) -> float:
        key = (candidate.variant, layers)
        if key not in measured:
            measured[key] = _divergence(inputs, evaluated, inputs.lower(candidate, layers))
        return measured[key]

    costs = divergences(groups, divergence, progress)
    saved = saved_time(inputs, evaluated, groups)
    if saved is not None:
        return Scan(costs, saved, measured=True)
    macs = {layer.name: layer.macs for layer in evaluated.manifest.layers}
    work = {group.name: float(sum(macs[layer] for layer in group.layers)) for group in groups}
    return Scan(costs, work, measured=False)


def saved_time(inputs: ExportInputs, evaluated: Evaluated, groups: Sequence[Group]) -> dict[str, float] | None:
    """Return the nanoseconds that quantizing each group saves, from profiles of the float and the quantized graph.

    None where the target has no float candidate or its runtime doesn't run here.
    """
    lowered_float = inputs.lowered_float
    if lowered_float is None or not runs_here(inputs.plan.target):
        return None
    profiles = []
    for lowered in (lowered_float, evaluated.lowered):
        with opened(evaluated.manifest, lowered, inputs.plan.action) as runnable:
            if runnable.session is None:
                return None
            profiles.append(fastest(runnable.session.profile(inputs.golden_batch, PROFILED)))
    return saved_ns(groups, *profiles)


def _divergence(inputs: ExportInputs, evaluated: Evaluated, lowered: Lowered) -> float:
    """Return a graph's mean KL divergence to the float graph on the first hold-out pictures, nats; it's cached."""
    hold_out, action = inputs.hold_out, inputs.plan.action
    assert hold_out is not None
    if lowered.interpretable is None:  # only its runtime implements its arithmetic
        manifest = replace(evaluated.manifest, layers=lowered.layers)
        with opened(manifest, lowered, action) as runnable:
            return hold_out.evaluate(runnable, PICTURES).divergence
    path = _cache_path(hold_out.digest, inputs.graph, lowered.interpretable)
    with contextlib.suppress(OSError, InputError):
        return decode_json(path.read_bytes(), _Divergence, action=action, file=path.name).divergence
    divergence = hold_out.evaluate(interpreted(lowered.interpretable), PICTURES).divergence
    with optional_writes():
        write_atomic(path, encode_json(_Divergence(divergence=divergence)), action)
    return divergence


def _cache_path(pictures: str, float_graph: onnx.ModelProto, graph: onnx.ModelProto) -> Path:
    """Return the path of a graph's divergence on pictures of this digest."""
    key = sha256("\0".join([pictures, str(PICTURES), *_rounding(float_graph, graph)]).encode())
    return cache_folder() / "sensitivity" / f"{key[:32]}.json"


def _rounding(float_graph: onnx.ModelProto, graph: onnx.ModelProto) -> Iterator[str]:
    """Yield the effects of rounding as text: constants that the float graph lacks, and the number of rounding nodes.

    Layout and fusions, in which runtimes differ, change nothing of it; so the order within integer weights doesn't
    count.
    """
    from vitedge.graph.surgery import array, initializers

    constants = initializers(float_graph)
    for name, tensor in sorted(initializers(graph).items()):
        if name in constants and constants[name] == tensor:
            continue
        values = array(tensor)
        ordered = np.sort(values, axis=None) if values.dtype.kind in "iu" else values
        yield f"{name} {values.dtype} {sha256(np.ascontiguousarray(ordered).tobytes())}"
    kinds = Counter(node.op_type for node in graph.graph.node if "Quantize" in node.op_type or node.op_type == "Cast")
    yield from (f"{kind} {count}" for kind, count in sorted(kinds.items()))
