"""INT8 on OpenVINO against NNCF: latency, divergence and the time it takes to quantize, with a bar for each.

    python benchmarks/openvino_peers.py [MODEL ...] [--threads 2] [--rounds 40] [--out FILE]

MODEL is ``embedded``, ``ViT-Ti/16`` or ``ViT-S/16`` (all three by default; the last two have random weights, on which
latency doesn't depend), or the folder of ``vitedge import``. Ours is what an INT8 export for ``--target`` writes: the
target's first kernel variant, the recipe default; the target's others are shown, and no bar is held against them. The
peer is ``nncf.quantize(model_type=TRANSFORMER)`` of the same graph with the same pictures, under the hint f32, and
under bf16 where the processor has it. All of one model race in one process, interleaved, batch 1.

Bars: at least as fast as NNCF under f32, and under bf16 where the target asks for it (a target that doesn't promise
bfloat16 can't), mean KL from the float32 logits not above NNCF's (embedded pictures that calibration doesn't see),
seconds to quantize ViT-Ti/16 with 300 pictures not above NNCF's, five times, interleaved. Exits with 7 where one isn't
met. ``--profile`` prints where the time goes, by operator. On a machine with other load, ``--cpu-time`` takes one
thread's processor time instead of latency.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from peer_bars import (
    FLOAT,
    NNCF,
    OURS,
    Bar,
    Seconds,
    command_line,
    contest,
    hold,
    lowering_of,
    pictures,
    speedup,
    time_bar,
    timed,
)

from vitedge.formats.model_folder import Model
from vitedge.formats.target import Candidate, Option
from vitedge.graph.surgery import load, pin_batch, to_bytes
from vitedge.runtimes.openvino.detect import load as load_openvino

FEW = 16  # pictures for a model of which only latency is asked
COMMON: dict[str, Option] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
Made = tuple[Any, dict[str, Option]]  # OpenVINO's model, and the options it is compiled with

ov: Any = load_openvino()


def main() -> int:
    parser = command_line(__doc__, "openvino")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by operator")
    return hold(parser.parse_args(), ("openvino", "nncf", "onnx"), measure)


def measure(name: str, model: Model, arguments: argparse.Namespace, threads: int) -> tuple[list[Bar], dict[str, Any]]:
    """The bars of one model, and a row for each candidate."""
    calibration = pictures(name, model, arguments, FEW)
    core, seconds = ov.Core(), dict[str, Seconds]()
    requests, models = dict[str, Any](), dict[str, Made]()
    makes = dict((*ours(model, calibration, arguments), *peers(model, calibration)))
    for label, make in makes.items():
        models[label], seconds[label] = timed(make)
    if NNCF in models and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        models[f"{NNCF}, bf16"] = models[NNCF][0], {**COMMON, "INFERENCE_PRECISION_HINT": "bf16"}
    for label, (graph, options) in models.items():
        wanted = {**options, "INFERENCE_NUM_THREADS": threads}
        requests[label] = core.compile_model(graph, "CPU", wanted).create_infer_request()
        requests[label].get_input_tensor().data[:] = calibration[:1]
    calls = {label: caller(one) for label, one in requests.items()}
    answers = {label: partial(logits, one) for label, one in requests.items()}
    raced, lost, rows = contest(name, model, calls, answers, seconds, len(calibration), arguments)
    if arguments.profile:
        for label in (FLOAT, OURS, *(word for word in requests if word.startswith(NNCF))):
            graph, options = models[label]
            rows[label]["operators_us"] = profile(label, graph, {**options, "INFERENCE_NUM_THREADS": threads})
    quick = time_bar(name, model, calibration, makes.get(NNCF), arguments)
    hint = models[OURS][1]["INFERENCE_PRECISION_HINT"]
    return [*bars_of(name, raced, lost, {NNCF, f"{NNCF}, {hint}"}), *quick], rows


def bars_of(name: str, raced: Any, lost: dict[str, float], peers: set[str]) -> Iterator[Bar]:
    """What is demanded of a model, and what was found."""
    for label in (word for word in raced if word in peers):
        speed = speedup(raced[label], raced[OURS])
        yield Bar(f"{name}, speed over {label}", speed.value, 1.0, low=speed.low, high=speed.high)
    if NNCF in lost:
        yield Bar(f"{name}, mean KL against {NNCF}", lost[OURS], lost[NNCF], at_least=False)


# --- candidates ------------------------------------------------------------------------------------------------------


def ours(
    model: Model, calibration: NDArray[np.uint8], arguments: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Made]]]:
    """The target's kernel variants: the first is what an export gives, and the one whose time counts; then float32."""
    target, lower = lowering_of(model, calibration, arguments)

    def make(candidate: Candidate) -> Made:
        lowered = lower(candidate)
        return ov.Core().read_model(*lowered.files.values()), dict(lowered.runtime_options)

    first = target.candidates("int8")[0]
    yield OURS, lambda: make(first)
    yield FLOAT, lambda: make(Candidate(precision="fp32", variant="float"))
    for candidate in target.candidate:
        if candidate.precision in ("int8", "bf16") and candidate not in (first,) and "nncf" not in candidate.variant:
            yield f"  variant {candidate.variant}", lambda candidate=candidate: make(candidate)


def peers(model: Model, calibration: NDArray[np.uint8]) -> Iterator[tuple[str, Callable[[], Made]]]:
    """NNCF's default for transformers; nothing where it isn't installed."""
    try:
        import nncf
    except ImportError:
        print("NNCF isn't installed: pip install nncf", file=sys.stderr)
        return

    def make() -> Made:
        graph: onnx.ModelProto = pin_batch(load(model.onnx_path), 1)
        images = nncf.Dataset([frame[None] for frame in calibration])
        made = nncf.quantize(
            ov.Core().read_model(to_bytes(graph)),
            images,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
        )
        return made, {**COMMON, "INFERENCE_PRECISION_HINT": "f32"}

    yield NNCF, make


# --- running ---------------------------------------------------------------------------------------------------------


def caller(request: Any) -> Callable[[], object]:
    return lambda: request.infer(share_outputs=True)


def logits(request: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    found = []
    for image in images:
        request.get_input_tensor().data[:] = image[None]
        request.infer()
        found.append(request.get_output_tensor().data.copy())
    return np.concatenate(found)


def profile(label: str, graph: Any, options: dict[str, Option], repeats: int = 30) -> dict[str, float]:
    """Microseconds by operator and kernel: each node's fastest of ``repeats``, summed; printed, the longest first."""
    request = ov.Core().compile_model(graph, "CPU", {**options, "PERF_COUNT": True}).create_infer_request()
    fastest: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for _ in range(repeats):
        request.infer()
        for node in request.profiling_info:
            if node.real_time:
                taken = node.real_time.total_seconds() * 1e6
                fastest[node.node_name] = min(taken, fastest.get(node.node_name, taken))
                kinds[node.node_name] = f"{node.node_type} {node.exec_type}"
    total: dict[str, float] = {}
    for name, taken in fastest.items():
        total[kinds[name]] = total.get(kinds[name], 0.0) + taken
    print(f"\n{label}, µs by operator")
    for kind, taken in sorted(total.items(), key=lambda entry: -entry[1])[:12]:
        print(f"  {kind:52s} {list(kinds.values()).count(kind):3d} {taken:9.0f}")
    return total


if __name__ == "__main__":
    sys.exit(main())
