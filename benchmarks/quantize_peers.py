"""INT8 on ONNX Runtime against the quantizers that there are for it: latency, divergence and time, with a bar for each.

    python benchmarks/quantize_peers.py [MODEL ...] [--threads 2] [--rounds 40] [--out FILE]

MODEL is ``embedded``, ``ViT-Ti/16`` or ``ViT-S/16`` (all three by default; the last two have random weights, on which
latency doesn't depend), or the folder of ``vitedge import``. Ours is what ``vitedge export --target onnxruntime
--precision int8`` writes: the target's first kernel variant, the recipe default; the target's others are shown, and no
bar is held against them. Peers: ``quantize_static`` and ``quantize_dynamic`` of ONNX Runtime in their usual settings,
and NNCF through its ONNX backend. All of one model get the same calibration pictures, and race in one process,
interleaved, batch 1.

Bars (docs/quantization-results.md): speed against the fastest of ``quantize_*`` and against float32, mean KL from the
float32 logits against the least of all peers', seconds to quantize ViT-Ti/16 with 300 pictures against NNCF's, five
times, interleaved. Exits with 7 where one isn't met. On a machine with other load, ``--cpu-time`` takes one thread's
processor time instead of latency.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
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
    median_ms,
    pictures,
    speedup,
    time_bar,
    timed,
)

from vitedge.formats.model_folder import Model
from vitedge.formats.target import Candidate
from vitedge.graph.surgery import load, pin_batch, to_bytes
from vitedge.runtimes.base import Lowered

FEW = 32  # pictures for a model of which only latency is asked
#: (at least so many times as fast as the best peer, as float32)
SPEEDS = {"embedded": (1.0, 1.0), "ViT-Ti/16": (1.2, 2.0), "ViT-S/16": (1.2, 1.0)}
Graphs = dict[str, tuple[onnx.ModelProto, dict[str, Any]]]  # by candidate: the graph, and session options
Make = Callable[[], onnx.ModelProto]


def main() -> int:
    parser = command_line(__doc__, "onnxruntime")
    parser.add_argument("--only-ours", action="store_true", help="without the peers: float32 and our variants")
    return hold(parser.parse_args(), ("onnxruntime", "onnx", "nncf"), measure)


def measure(name: str, model: Model, arguments: argparse.Namespace, threads: int) -> tuple[list[Bar], dict[str, Any]]:
    """The bars of one model, and a row for each candidate."""
    graph = load(model.onnx_path)
    calibration = pictures(name, model, arguments, FEW)
    graphs: Graphs = {FLOAT: (pin_batch(graph, 1), {})}
    seconds: dict[str, Seconds] = {}
    for label, make in ours(model, calibration, arguments):
        lowered, seconds[label] = timed(make)
        graphs[label] = onnx.load_from_string(lowered.files[lowered.graph]), dict(lowered.runtime_options)
    others = {} if arguments.only_ours else dict(peers(graph, calibration))
    for label, quantize in others.items():
        made, seconds[label] = timed(quantize)
        graphs[label] = pin_batch(made, 1), {}
    opened = {label: session(*each, threads) for label, each in graphs.items()}
    calls = {label: caller(one, calibration[:1]) for label, one in opened.items()}
    answers = {label: partial(logits, one) for label, one in opened.items()}
    raced, lost, rows = contest(name, model, calls, answers, seconds, len(calibration), arguments)
    quick = time_bar(name, model, calibration, others.get(NNCF), arguments)
    return [*bars_of(name, raced, lost), *quick], rows


def bars_of(name: str, raced: Any, lost: dict[str, float]) -> Iterator[Bar]:
    """What is demanded of a model, and what was found."""
    over_peer, over_float = SPEEDS.get(name, (1.0, 1.0))
    shipped = [label for label in raced if label.startswith("quantize_")]
    speed = speedup(raced[FLOAT], raced[OURS])
    yield Bar(f"{name}, speed over float32", speed.value, over_float, low=speed.low, high=speed.high)
    if not shipped:
        return
    best = min(shipped, key=lambda label: median_ms(raced[label]))
    speed = speedup(raced[best], raced[OURS])
    yield Bar(f"{name}, speed over {best}", speed.value, over_peer, low=speed.low, high=speed.high)
    if lost:
        least = min((label for label in (*shipped, NNCF) if label in lost), key=lambda label: lost[label])
        yield Bar(f"{name}, mean KL against {least}", lost[OURS], lost[least], at_least=False)


# --- candidates ------------------------------------------------------------------------------------------------------


def ours(
    model: Model, calibration: NDArray[np.uint8], arguments: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Lowered]]]:
    """The target's kernel variants: the first is what an export gives, and the one whose time counts."""
    target, lower = lowering_of(model, calibration, arguments)
    first = target.candidates("int8")[0]
    yield OURS, lambda: lower(first)
    for candidate in target.candidate:
        if candidate not in (first, Candidate(precision="fp32", variant="float")):
            yield f"  variant {candidate.variant}", lambda candidate=candidate: lower(candidate)


def peers(graph: onnx.ModelProto, calibration: NDArray[np.uint8]) -> Iterator[tuple[str, Make]]:
    """ONNX Runtime's own quantizers, with 7-bit weights beside their default of 8 (``reduce_range``), and NNCF."""
    from onnxruntime import quantization as ort

    u8, s8 = ort.QuantType.QUInt8, ort.QuantType.QInt8
    linears = ["MatMul", "Gemm"]

    def run(quantize: Any, **options: Any) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            source, clean, out = (str(Path(folder) / name) for name in ("source.onnx", "clean.onnx", "out.onnx"))
            Path(source).write_bytes(to_bytes(graph))
            ort.quant_pre_process(source, clean)
            if quantize is ort.quantize_static:
                options["calibration_data_reader"] = Reader(calibration)
            quantize(clean, out, per_channel=True, weight_type=s8, **options)
            return onnx.load(out)

    static: dict[str, Any] = {"activation_type": u8}
    for bits, reduced in (("", False), (", 7 bits", True)):
        yield (
            f"quantize_dynamic{bits}",
            lambda reduced=reduced: run(
                ort.quantize_dynamic, reduce_range=reduced, extra_options={"MatMulConstBOnly": True}
            ),
        )
        yield (
            f"quantize_static, U8S8{bits}",
            lambda reduced=reduced: run(ort.quantize_static, reduce_range=reduced, **static),
        )
        yield (
            f"quantize_static, U8S8 linears{bits}",
            lambda reduced=reduced: run(
                ort.quantize_static, reduce_range=reduced, op_types_to_quantize=linears, **static
            ),
        )
    yield "quantize_static, S8S8", lambda: run(ort.quantize_static, activation_type=s8)
    yield NNCF, lambda: by_nncf(graph, calibration)


def by_nncf(graph: onnx.ModelProto, calibration: NDArray[np.uint8]) -> onnx.ModelProto:
    """NNCF's default for transformers through its ONNX backend, from the same pictures."""
    import nncf

    images = nncf.Dataset([{"image": frame[None]} for frame in calibration])
    made: onnx.ModelProto = nncf.quantize(
        graph, images, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibration)
    )
    return made


class Reader:
    """What ``quantize_static`` draws its calibration pictures from."""

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        self._frames = iter(frames)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        frame = next(self._frames, None)
        return None if frame is None else {"image": frame[None]}


# --- running ---------------------------------------------------------------------------------------------------------


def session(graph: onnx.ModelProto, wanted: dict[str, Any], threads: int) -> Any:
    """Opened with a peer's defaults, or with the options of our manifest that differ from them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    for key, value in wanted.items():
        if "." in key:
            options.add_session_config_entry(key, str(int(value)) if isinstance(value, bool) else str(value))
    return onnxruntime.InferenceSession(to_bytes(graph), options, providers=["CPUExecutionProvider"])


def caller(opened: Any, frame: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: opened.run(None, {"image": frame})


def logits(opened: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([opened.run(None, {"image": image[None]})[0] for image in images])


if __name__ == "__main__":
    sys.exit(main())
