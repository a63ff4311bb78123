"""The allowed deviation of an artifact's logits from the exported ones, measured from sound runs that differ.

Kernels of other instruction sets add in another order, so a value next to a rounding boundary falls the other way. A
graph whose float32 constants are moved by a unit in the last place does the same, and so does the interpreter where the
runtime itself ran. ``benchmarks/verification_gap.py`` holds the tolerance against real kernels and against damage.
"""

from __future__ import annotations

import math
from dataclasses import replace as changed

from msgspec.structs import replace

from vitedge.core.deviation import relative_rms
from vitedge.exporting.candidates import Evaluated, ExportInputs
from vitedge.formats.artifact import Tolerance
from vitedge.runtimes.here import runs_here

#: Runs with moved constants.
MOVED = 3
#: Allowed: this multiple of the largest deviation of a sound run.
TIMES_MEASURED = 2.0
#: Always allowed, by precision: float32 sums in another order, and some values rounded otherwise.
LEAST_FLOAT, LEAST_ROUNDED = 1e-4, 4e-3
#: Allowed where no other run is possible, and on GPUs, whose kernels round intermediate values elsewhere.
LEAST_UNMEASURED, LEAST_CUDA = 1e-2, 5e-2


def with_tolerance(inputs: ExportInputs, evaluated: Evaluated) -> Evaluated:
    """Return the candidate with the tolerance of its golden logits in its manifest."""
    golden = replace(evaluated.manifest.golden, tolerance=tolerance(inputs, evaluated))
    return changed(evaluated, manifest=replace(evaluated.manifest, golden=golden))


def tolerance(inputs: ExportInputs, evaluated: Evaluated) -> Tolerance:
    """Measure a candidate's sound runs on the golden pictures, and allow twice the largest deviation among them."""
    from vitedge.runtimes.interpreter import nudged, run_graph

    graph, frames = evaluated.lowered.interpretable, inputs.golden_inputs
    measured = {}
    if graph is not None:
        literal = run_graph(graph, frames)
        for seed in range(MOVED):
            measured[f"constants moved, seed {seed}"] = relative_rms(run_graph(nudged(graph, seed), frames), literal)
        if runs_here(inputs.plan.target):
            measured["interpreted"] = relative_rms(literal, evaluated.golden_logits[: len(frames)])
    measured = {name: _two_digits(value) for name, value in measured.items()}
    return Tolerance(
        allowed=max(_least(inputs, evaluated), TIMES_MEASURED * max(measured.values(), default=0.0)), measured=measured
    )


def _least(inputs: ExportInputs, evaluated: Evaluated) -> float:
    precisions = {layer.precision for layer in evaluated.manifest.layers}
    if inputs.plan.target.device.startswith("cuda"):
        return LEAST_CUDA
    if evaluated.lowered.interpretable is None:
        return LEAST_UNMEASURED
    return LEAST_FLOAT if precisions <= {"fp32"} else LEAST_ROUNDED


def _two_digits(value: float) -> float:
    """Round up to two significant digits: the last bits differ between machines."""
    if not value or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.1e}")
