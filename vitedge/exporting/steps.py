"""The steps of a selection: divergence and latency from everything quantized to everything in float."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from vitedge.core.progress import Progress
from vitedge.core.randomness import generator
from vitedge.exporting.candidates import Evaluated, ExportInputs, evaluate_candidate
from vitedge.exporting.groups import Group, layers_except, layers_of
from vitedge.exporting.runnable import opened
from vitedge.exporting.sensitivity import scan_groups
from vitedge.formats.artifact import Step
from vitedge.formats.fidelity import Fidelity
from vitedge.runtimes.base import BUDGET, NO_GAIN, PRICE, Lowered
from vitedge.runtimes.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Hold-out pictures per step.
PICTURES = 256
#: Steps at most beside the chosen one and the float graph.
STEPS = 8
#: Each is timed by the median over this number of rounds of the round's fastest inference.
ROUNDS, INFERENCES = 15, 5


@dataclass(frozen=True)
class _Point:
    """The graph of one step."""

    quantized: frozenset[str]  # layers; none: the float graph
    lowered: Lowered


def with_steps(inputs: ExportInputs, evaluated: Evaluated, progress: Progress) -> Evaluated:
    """Return the candidate with its layers' sensitivities and the steps of its selection in its manifest.

    Groups go back to float as for a budget, the worst first. Of many steps some are taken, the one that was chosen
    among them. Each is lowered, evaluated, and timed where the target's runtime runs here.
    """
    reverted = any(layer.reason in (BUDGET, NO_GAIN, PRICE) for layer in evaluated.manifest.layers)
    fully = evaluate_candidate(inputs, evaluated.candidate, progress) if reverted else evaluated
    groups = fully.quantized_groups
    scan = scan_groups(inputs, fully, groups, progress)
    chosen = layers_of(group for group in groups if evaluated.quantized_layers.issuperset(group.layers))
    points = _points(inputs, evaluated, groups, scan.worst_first(groups), chosen)
    fidelities, latencies = _measure(inputs, evaluated, points, progress)
    macs = {layer.name: layer.macs for layer in evaluated.manifest.layers}
    total = sum(macs.values()) or 1
    steps = [
        Step(
            quantized=sum(macs[layer] for layer in point.quantized) / total,
            groups_in_float=sum(not point.quantized.issuperset(group.layers) for group in groups),
            divergence=fidelity.divergence,
            agreement=fidelity.agreement,
            latency_ms=latency,
            chosen=point.quantized == chosen,
        )
        for point, fidelity, latency in zip(points, fidelities, latencies, strict=True)
    ]
    steps.sort(key=lambda step: -step.quantized)
    annotated = evaluated.with_sensitivity(scan.divergence)
    return changed(annotated, manifest=replace(annotated.manifest, steps=tuple(steps)))


def _points(
    inputs: ExportInputs, evaluated: Evaluated, groups: Sequence[Group], order: Sequence[Group], chosen: frozenset[str]
) -> list[_Point]:
    """Return the graphs of the steps: evenly from no group in float on, the chosen one, and the float graph."""
    counts = sorted({round(number * len(order) / STEPS) for number in range(STEPS)})
    quantized = dict.fromkeys([*(layers_except(groups, order[:count]) for count in counts), chosen])
    points = [
        _Point(layers, evaluated.lowered if layers == chosen else inputs.lower(evaluated.candidate, layers))
        for layers in quantized
    ]
    if inputs.lowered_float is not None:
        points.append(_Point(frozenset(), inputs.lowered_float))
    return points


def _measure(
    inputs: ExportInputs, evaluated: Evaluated, points: Sequence[_Point], progress: Progress
) -> tuple[list[Fidelity], Sequence[float | None]]:
    """Measure each graph's fidelity, and its milliseconds per inference where the target's runtime runs here."""
    hold_out = inputs.hold_out
    assert hold_out is not None
    fidelities, sessions = [], []
    with contextlib.ExitStack() as stack:
        for number, point in enumerate(points):
            progress("steps", number, len(points))
            options = dict(point.lowered.runtime_options)
            manifest = replace(evaluated.manifest, layers=point.lowered.layers, runtime_options=options)
            runnable = stack.enter_context(opened(manifest, point.lowered, inputs.plan.action, threads=None))
            fidelities.append(hold_out.evaluate(runnable, PICTURES))
            if runnable.session is not None:
                sessions.append(runnable.session)
        progress("steps", len(points), len(points))
        if len(sessions) < len(points):
            return fidelities, [None] * len(points)
        return fidelities, _interleaved_ms(sessions, inputs.golden_batch)


def _interleaved_ms(sessions: Sequence[Session], frames: NDArray[np.uint8]) -> list[float]:
    """Measure an inference of each session, interleaved, in ms: the median over rounds of each round's fastest."""
    fastest_ns: list[list[int]] = [[] for _ in sessions]
    order = generator(0)
    for _ in range(ROUNDS):
        for number in order.permutation(len(sessions)):
            sessions[number].run(frames)  # the inference before it filled the caches with other data
            times_ns = []
            for _ in range(INFERENCES):
                start = time.perf_counter_ns()
                sessions[number].run(frames)
                times_ns.append(time.perf_counter_ns() - start)
            fastest_ns[number].append(min(times_ns))
    return [median(times_ns) / 1e6 for times_ns in fastest_ns]
