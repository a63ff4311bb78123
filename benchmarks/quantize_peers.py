"""INT8 on ONNX Runtime against the quantizers that there are for it: latency, divergence and time, with a bar for each.

    python benchmarks/quantize_peers.py [MODEL ...] [--threads 2] [--rounds 40] [--out FILE]

MODEL is ``embedded``, ``ViT-Ti/16`` or ``ViT-S/16`` (all three by default; the last two have random weights, on which
latency doesn't depend), or the folder of ``vitedge import``. Ours is what ``vitedge export --target onnxruntime
--precision int8`` writes: the target's first form, the recipe default; the target's other forms are shown, and not
judged by. Peers: ``quantize_static`` and ``quantize_dynamic`` of ONNX Runtime in their usual settings, and NNCF through
its ONNX backend. All of one model get the same calibration pictures, and race in one process, turn by turn, batch 1.

Bars (docs/quantization.md): speed against the fastest of ``quantize_*`` and against float32, mean KL from the float32
logits against the least of all peers', seconds to quantize ViT-Ti/16 with 300 pictures against NNCF's. Exits with 7
where one isn't met. On a machine with neighbours, ``--cpu-time`` takes one thread's processor time instead of latency.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from msgspec.structs import replace
from numpy.typing import NDArray
from peer_bars import MODELS, Bar, circumstances, divergence, frames, open_model, race, speedup, typical, write

from vitedge.graph.surgery import load, pin_batch, to_bytes
from vitedge.model_folder import Model
from vitedge.quantize.observe import observe
from vitedge.quantize.statistics import Statistics
from vitedge.recipe import load_recipe
from vitedge.runtimes.contract import Placed, Request
from vitedge.runtimes.onnxruntime.placement import place
from vitedge.target import Candidate, load_target

CALIBRATED = 300
FEW = 32  # pictures for a model of which only latency is asked
#: (at least so many times as fast as the best peer, as float32)
SPEEDS = {"embedded": (1.0, 1.0), "ViT-Ti/16": (1.2, 2.0), "ViT-S/16": (1.2, 1.0)}
OURS, FLOAT, NNCF = "vitedge", "float32", "NNCF"
Graphs = dict[str, tuple[onnx.ModelProto, dict[str, Any]]]  # by contender: the graph, and session options
Make = Callable[[], onnx.ModelProto]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--calibrate", type=int, default=CALIBRATED)
    parser.add_argument("--evaluate", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--isa", help="what the target promises: avx2, avx512_vnni, …")
    parser.add_argument("--only-ours", action="store_true", help="without the peers: float32 and our forms")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, and the processor time that it takes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    threads = 1 if arguments.cpu_time else arguments.threads
    where = circumstances(("onnxruntime", "onnx", "nncf"), threads)
    print(f"{where['processor']}, {' '.join(where['isa'])}; {where['versions']}; {threads} threads, batch 1")
    bars, details = list[Bar](), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            found, rows = judge(name, open_model(name, Path(folder)), arguments, threads)
            bars += found
            details[name] = rows
    print(*bars, sep="\n")
    if arguments.out:
        where["clock"] = "processor time" if arguments.cpu_time else "latency"
        write(arguments.out, where, bars, {"models": details})
    return 0 if all(bar.met for bar in bars) else 7


def judge(name: str, model: Model, arguments: argparse.Namespace, threads: int) -> tuple[list[Bar], dict[str, Any]]:
    """The bars of one model, and a row for each contender."""
    graph = load(model.onnx_path)
    trained = name not in MODELS or name == "embedded"
    calibration = frames(model, "calibration", FEW if name == "ViT-S/16" else arguments.calibrate)
    graphs: Graphs = {FLOAT: (pin_batch(graph, 1), {})}
    seconds: dict[str, tuple[float, float]] = {}
    forms, rest = dict[str, Placed](), ours(model, graph, calibration, arguments)
    for label, make in rest:
        forms[label], seconds[label] = timed(make)
        graphs[label] = (
            onnx.load_from_string(forms[label].files[forms[label].graph]),
            dict(forms[label].runtime_options),
        )
    for label, quantize in () if arguments.only_ours else peers(graph, calibration):
        made, seconds[label] = timed(quantize)
        graphs[label] = pin_batch(made, 1), {}
    opened = {label: session(*each, threads) for label, each in graphs.items()}
    clock = time.thread_time_ns if arguments.cpu_time else time.perf_counter_ns
    calls = {label: caller(one, calibration[:1]) for label, one in opened.items()}
    raced = race(calls, arguments.rounds, clock=clock)
    lost = {}
    if trained:
        held_out = frames(model, "held-out", arguments.evaluate)
        exact = logits(opened[FLOAT], held_out)
        lost = {label: float(divergence(exact, logits(one, held_out)).mean()) for label, one in opened.items()}
    rows = {}
    print(f"\n{name}: {len(calibration)} pictures calibrated")
    for label in opened:
        speed, (wall, cpu) = speedup(raced[FLOAT], raced[label]), seconds.get(label, (0.0, 0.0))
        divergent = f"{lost[label]:11.3g}" if trained else ""
        print(
            f"{label:32s} {typical(raced[label]):9.3f} ms {speed.value:6.2f}x [{speed.low:.2f}, {speed.high:.2f}]"
            f"{divergent}  made in {wall:6.1f} s ({cpu:.1f} s of processors)"
        )
        rows[label] = {"rounds_ns": raced[label], "mean_kl": lost.get(label), "made_s": wall, "made_cpu_s": cpu}
    return list(bars_of(name, raced, lost, seconds, arguments)), rows


def bars_of(
    name: str, raced: Any, lost: dict[str, float], seconds: Any, arguments: argparse.Namespace
) -> Iterator[Bar]:
    """What is demanded of a model, and what was found."""
    over_peer, over_float = SPEEDS.get(name, (1.0, 1.0))
    shipped = [label for label in raced if label.startswith("quantize_")]
    speed = speedup(raced[FLOAT], raced[OURS])
    yield Bar(f"{name}, speed over float32", speed.value, over_float, low=speed.low, high=speed.high)
    if not shipped:
        return
    best = min(shipped, key=lambda label: typical(raced[label]))
    speed = speedup(raced[best], raced[OURS])
    yield Bar(f"{name}, speed over {best}", speed.value, over_peer, low=speed.low, high=speed.high)
    if lost:
        least = min((label for label in (*shipped, NNCF) if label in lost), key=lambda label: lost[label])
        yield Bar(f"{name}, mean KL against {least}", lost[OURS], lost[least], at_least=False)
    if name == "ViT-Ti/16" and NNCF in seconds:
        at = 1 if arguments.cpu_time else 0
        what = "processor seconds" if arguments.cpu_time else "seconds"
        yield Bar(f"{name}, {what} to quantize", seconds[OURS][at], seconds[NNCF][at], at_least=False)


def timed(make: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """What it makes, and (seconds, seconds of processors) that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = make()
    return made, (time.perf_counter() - wall, time.process_time() - cpu)


# --- contenders ------------------------------------------------------------------------------------------------------


def ours(
    model: Model, graph: onnx.ModelProto, calibration: NDArray[np.uint8], arguments: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Placed]]]:
    """The target's forms: the first is what an export gives, and the one whose time counts."""
    target, recipe = load_target(arguments.target), load_recipe(arguments.recipe)
    if arguments.isa:
        target = replace(target, isa=arguments.isa)
    kept: list[Statistics] = []

    def make(candidate: Candidate) -> Placed:
        quantized = candidate.precision == "int8"
        if quantized and not kept:
            kept.append(observe(graph, calibration, recipe.observe, key="benchmark"))
        return place(
            Request(
                graph=graph,
                target=target,
                candidate=candidate,
                batch=1,
                preprocessing=model.record.preprocessing,
                classes=model.record.classes,
                recipe=recipe if quantized else None,
                statistics=kept[0] if quantized else None,
            )
        )

    first = target.candidates("int8")[0]
    yield OURS, lambda: make(first)
    for candidate in target.candidate:
        if candidate not in (first, Candidate(precision="fp32", form="float")):
            yield f"  form {candidate.form}", lambda candidate=candidate: make(candidate)


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
