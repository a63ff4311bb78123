"""INT8 on ONNX Runtime: vitedge's recipes against the quantizers that ONNX Runtime ships, on the same pictures.

    python benchmarks/quantize_peers.py MODEL DATA [--calibrate 256] [--evaluate 1000] [--rounds 30] [--threads 2]

MODEL is a folder of `vitedge import`, DATA a folder (or archive) of labelled pictures; the first of a seeded order
calibrate, the next ones evaluate. All graphs are raced in one process, turn by turn, at batch 1. Columns: top-1 lost in
points, share of pictures whose top-1 changed, mean KL divergence from the float32 logits, latency relative to float32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from msgspec.structs import replace
from numpy.typing import NDArray

from vitedge.graph.surgery import load, pin_batch, to_bytes
from vitedge.hardware import processor
from vitedge.images import ImageSet
from vitedge.model_folder import Model
from vitedge.quantize.observe import observe
from vitedge.recipe import load_recipe
from vitedge.runtimes.contract import Request
from vitedge.runtimes.onnxruntime.placement import place
from vitedge.target import Candidate, load_target

BATCH = 50
RECIPES = ("fast", "default", "thorough")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--calibrate", type=int, default=256)
    parser.add_argument("--evaluate", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="avx2", help="what the target promises: avx2, avx512_vnni, …")
    arguments = parser.parse_args()
    model = Model.open(arguments.model)
    graph = load(model.onnx_path)
    images = ImageSet.open(arguments.data)
    order = images.order(0)[: arguments.calibrate + arguments.evaluate]
    frames = np.stack([model.record.preprocessing.apply(images.read(index)) for index in order])
    calibration, held_out = frames[: arguments.calibrate], frames[arguments.calibrate :]
    folders = [label.folder for label in model.record.classes]
    labels = images.labels(folders, asked="label the pictures")[order][arguments.calibrate :]

    graphs: dict[str, onnx.ModelProto] = {"float32": graph}
    seconds: dict[str, float] = {}
    for name, candidate in [*peers(graph, calibration), *ours(model, graph, calibration, arguments.isa)]:
        start = time.perf_counter()
        graphs[name] = candidate()
        seconds[name] = time.perf_counter() - start
    exact = logits(graph, held_out)
    latency = race(graphs, held_out[:1], arguments.rounds, arguments.threads)
    cpu = processor()
    print(f"{model.record.name}; {cpu.model}, {' '.join(cpu.isa or ())}; ONNX Runtime {onnxruntime.__version__}")
    print(f"{len(calibration)} pictures calibrated, {len(held_out)} evaluated; batch 1, {arguments.threads} threads")
    print(f"{'':34s} {'drop':>7s} {'flips':>7s} {'mean KL':>9s} {'ms':>8s} {'speed':>6s} {'made in':>8s}")
    for name, candidate_graph in graphs.items():
        found = logits(candidate_graph, held_out)
        flips = (found.argmax(1) != exact.argmax(1)).mean()
        drop = (exact.argmax(1) == labels).mean() - (found.argmax(1) == labels).mean()
        print(
            f"{name:34s} {100 * drop:6.2f}p {100 * flips:6.2f}% {divergence(exact, found):9.6f} {latency[name]:8.3f} "
            f"{latency['float32'] / latency[name]:5.2f}x {seconds.get(name, 0.0):6.1f} s"
        )


def ours(model: Model, graph: onnx.ModelProto, calibration: NDArray[np.uint8], isa: str) -> Iterator[tuple[str, Any]]:
    target = replace(load_target("onnxruntime"), isa=isa)
    for name in RECIPES:
        recipe = load_recipe(name)

        def make(recipe: Any = recipe) -> onnx.ModelProto:
            wish = Request(
                graph=graph,
                target=target,
                candidate=Candidate(precision="int8", form="linears-int8"),
                batch=1,
                preprocessing=model.record.preprocessing,
                classes=model.record.classes,
                recipe=recipe,
                statistics=observe(graph, calibration, recipe.observe, key="benchmark"),
            )
            placed = place(wish)
            return unpinned(onnx.load_from_string(placed.files[placed.graph]))

        yield f"vitedge, recipe {name}", make


def peers(graph: onnx.ModelProto, calibration: NDArray[np.uint8]) -> Iterator[tuple[str, Any]]:
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

    static = {"activation_type": u8}
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


class Reader:
    """What ``quantize_static`` draws its calibration pictures from."""

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        self._frames = iter(frames)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        frame = next(self._frames, None)
        return None if frame is None else {"image": frame[None]}


def unpinned(graph: onnx.ModelProto) -> onnx.ModelProto:
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return graph


def session(graph: onnx.ModelProto, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return onnxruntime.InferenceSession(to_bytes(graph), options, providers=["CPUExecutionProvider"])


def logits(graph: onnx.ModelProto, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    opened = session(graph, 1)
    parts = [opened.run(None, {"image": frames[i : i + BATCH]})[0] for i in range(0, len(frames), BATCH)]
    return np.concatenate(parts).astype(np.float64)


def race(graphs: dict[str, onnx.ModelProto], frame: NDArray[np.uint8], rounds: int, threads: int) -> dict[str, float]:
    """Median over rounds of each graph's best of ten, in ms; every round goes through all graphs."""
    opened = {name: session(pin_batch(graph, 1), threads) for name, graph in graphs.items()}
    best: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, one in opened.items():
            times = []
            for _ in range(12):
                start = time.perf_counter()
                one.run(None, {"image": frame})
                times.append(time.perf_counter() - start)
            best[name].append(1000 * min(times[2:]))
    return {name: float(np.median(times)) for name, times in best.items()}


def divergence(exact: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Mean KL(softmax exact ‖ softmax found), in nats."""
    p, q = log_softmax(exact), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


if __name__ == "__main__":
    main()
