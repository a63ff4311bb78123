"""INT8 where activations have outliers: vitedge against other quantizers, on models whose float function is the same.

    python benchmarks/hard_cases.py [--data held-out] [--limit N] [--cases hidden,token] [--out FILE]

The embedded model gets outliers planted (see `outliers.py`), which its float logits don't notice. Each quantizer sees
the same 256 embedded calibration pictures. Per case: points of top-1 lost against the float graph with their paired
95 % interval, share of pictures called differently, mean KL from the float logits. "naive" is `quantize_static` with
plain ranges and one scale a tensor, for weights too, in both of its types. vitedge has its default recipe, and runs in
ONNX Runtime and OpenVINO; TensorRT's typed graph is interpreted. Exits with 7 where vitedge loses more than 0.5 points
in a case in which naive loses more than 5. `python benchmarks/tables.py` writes the table of
docs/quantization-results.md from `--out benchmarks/results/hard_cases.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from msgspec.structs import replace
from numpy.typing import NDArray
from outliers import CASES
from peer_bars import Bar, environment, frames, open_model, write

import vitedge
from vitedge.data.embedded import open_images
from vitedge.data.images import ImageSet
from vitedge.evaluation.fidelity import fidelity
from vitedge.formats.artifact import Artifact
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.model_folder import Model, write_model
from vitedge.formats.recipe import load_recipe
from vitedge.graph.surgery import load, to_bytes
from vitedge.reporting.rows import points
from vitedge.runtimes.interpreter import run_graph

ALLOWED, COLLAPSED = 0.5, 5.0
BATCH = 50
NAIVE = ("naive, u8 activations", "naive, symmetric s8")  # one scale a tensor
TARGETS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT, interpreted"}
Frames = NDArray[np.uint8]
Run = Callable[[Frames], NDArray[np.float32]]  # uint8 [n, h, w, 3] to logits [n, classes]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="embedded", help="or a model folder with a canonical graph")
    parser.add_argument("--data", default="held-out", help="labelled pictures, or the name of embedded ones")
    parser.add_argument("--limit", type=int, help="the first so many of a seeded order")
    parser.add_argument("--cases", default=",".join(["none", *CASES]))
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--ours", action="store_true", help="without the peers")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    bars: list[Bar] = []
    rows: list[dict[str, Any]] = []
    where = environment(("onnxruntime", "openvino", "nncf"), threads=1)
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        model = open_model(arguments.model, Path(folder))
        graph = load(model.onnx_path)
        calibration = frames(model, "calibration", load_recipe(arguments.recipe).observe.num_samples)
        images = open_images(arguments.data, action="evaluate hard cases")
        order = images.order(1)[: arguments.limit]
        pictures = np.stack([model.record.preprocessing.apply(images.read(index)) for index in order])
        labels = images.labels([each.folder for each in model.record.classes], action="evaluate hard cases")[order]
        exact = run_graph(graph, pictures, optimized=True)
        print(
            f"{len(pictures)} pictures of {images.source.name}, {100 * (exact.argmax(1) == labels).mean():.2f} % right"
        )
        print(f"{'case':8s}{'quantizer':34s}{'points lost (95 %)':>26s}{'flips':>9s}{'mean KL':>10s}")
        for case in arguments.cases.split(","):
            planted = CASES[case](graph, calibration[:64]) if case in CASES else graph
            same = float(np.abs(run_graph(planted, pictures[:64]) - exact[:64]).max())
            assert same < 1e-4 * np.abs(exact).max(), f"{case} changes the float logits by {same}"
            found: dict[str, Fidelity] = {}
            everyone = [*([] if arguments.ours else peers(planted, calibration))]
            for name, make in [*everyone, *ours(model, planted, arguments.recipe, Path(folder) / case)]:
                found[name] = fidelity_of(exact, make()(pictures), labels, images, order, model)
                rows.append({"case": case, "quantizer": name, **summary(found[name])})
                print(f"{case:8s}{name:34s}{line(found[name])}", flush=True)
            bars += case_bars(case, found)
            if arguments.out:  # as far as it got
                write(arguments.out, where, bars, {"pictures": len(pictures), "data": images.source.name, "rows": rows})
    for bar in bars:
        print(bar)
    return 0 if all(bar.met for bar in bars) else 7


def fidelity_of(
    exact: NDArray[np.float32],
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    images: ImageSet,
    order: list[int],
    model: Model,
) -> Fidelity:
    return fidelity(
        exact,
        np.asarray(logits, np.float32),
        pictures=[images.records[index].name for index in order],
        classes=[each.name for each in model.record.classes],
        labels=labels,
        source=images.source.name,
        split="held-out",
        executed_by="",
    )


def summary(found: Fidelity) -> dict[str, float]:
    assert found.top1_drop is not None
    return {
        "lost_pts": found.top1_drop.pp,
        "low_pts": found.top1_drop.low,
        "high_pts": found.top1_drop.high,
        "flips": 1 - found.agreement,
        "divergence": found.divergence,
    }


def line(found: Fidelity) -> str:
    assert found.top1_drop is not None
    interval = f"{points(found.top1_drop.pp)} ({points(found.top1_drop.low)} … {points(found.top1_drop.high)})"
    return f"{interval:>26s}{100 * (1 - found.agreement):8.2f}%{found.divergence:10.6f}"


def case_bars(case: str, found: dict[str, Fidelity]) -> Iterator[Bar]:
    """One bar a runtime, where naive quantization collapses."""
    naive = max((found[name].top1_drop.pp for name in NAIVE if name in found), default=0.0)
    if naive <= COLLAPSED:
        return
    for name in TARGETS.values():
        drop = found[f"vitedge, {name}"].top1_drop
        assert drop is not None
        yield Bar(
            f"{case}: points lost by {name}, naive loses {naive:.1f}",
            drop.pp,
            ALLOWED,
            at_least=False,
            low=drop.low,
            high=drop.high,
        )


# --- the quantizers --------------------------------------------------------------------------------------------------


def ours(model: Model, planted: onnx.ModelProto, recipe: str, folder: Path) -> Iterator[tuple[str, Callable[[], Run]]]:
    record = replace(model.record, files={}, architecture=None)
    variant = write_model(folder / "model", record, {"model.onnx": to_bytes(planted)})
    for target, name in TARGETS.items():

        def make(target: str = target) -> Run:
            artifact = vitedge.export(variant, target, "int8", folder / target, recipe=recipe)
            return interpreted(artifact) if target == "tensorrt" else executed(artifact)

        yield f"vitedge, {name}", make


def executed(artifact: Artifact) -> Run:
    """By the runtime itself."""

    def run(pictures: Frames) -> NDArray[np.float32]:
        with vitedge.open(artifact, threads=1) as session:
            return np.stack(list(session.map_batches(pictures)))

    return run


def interpreted(artifact: Artifact) -> Run:
    """Literally, operator by operator, half precision rounded where the graph says so."""
    graph = load(artifact.graph_path)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return lambda pictures: run_graph(graph, pictures)


def peers(graph: onnx.ModelProto, calibration: Frames) -> Iterator[tuple[str, Callable[[], Run]]]:
    """ONNX Runtime's quantizers with 7-bit weights, which every x86 multiplies exactly; NNCF where it's installed."""
    from onnxruntime import quantization as ort

    linears = ["MatMul", "Gemm"]
    types = {"activation_type": ort.QuantType.QUInt8, "weight_type": ort.QuantType.QInt8, "reduce_range": True}
    dynamic = {"weight_type": ort.QuantType.QInt8, "reduce_range": True, "per_channel": True}

    def quantized(quantize: Any, **options: Any) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            source, out = (str(Path(folder) / name) for name in ("source.onnx", "out.onnx"))
            Path(source).write_bytes(to_bytes(graph))
            if quantize is ort.quantize_static:
                options["calibration_data_reader"] = Reader(calibration)
            quantize(source, out, **options)
            return by_onnxruntime(onnx.load(out))

    naive = {"op_types_to_quantize": [*linears, "Conv"], **types}
    symmetric = {"activation_type": ort.QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}}
    yield NAIVE[0], lambda: quantized(ort.quantize_static, **naive)
    yield NAIVE[1], lambda: quantized(ort.quantize_static, **{**naive, **symmetric})
    yield "quantize_static", lambda: quantized(ort.quantize_static, per_channel=True, **types)
    yield (
        "quantize_static, linears only",
        lambda: quantized(ort.quantize_static, op_types_to_quantize=linears, per_channel=True, **types),
    )
    yield (
        "quantize_dynamic",
        lambda: quantized(ort.quantize_dynamic, extra_options={"MatMulConstBOnly": True}, **dynamic),
    )
    try:
        import nncf  # noqa: F401
    except ImportError:
        return
    yield "NNCF, TRANSFORMER, OpenVINO", lambda: by_nncf(graph, calibration)


class Reader:
    """What ``quantize_static`` draws its calibration pictures from."""

    def __init__(self, frames: Frames) -> None:
        self._frames = iter(frames)

    def get_next(self) -> dict[str, Frames] | None:
        frame = next(self._frames, None)
        return None if frame is None else {"image": frame[None]}


def by_onnxruntime(graph: onnx.ModelProto) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(to_bytes(graph), options, providers=["CPUExecutionProvider"])

    def run(pictures: Frames) -> NDArray[np.float32]:
        parts = [session.run(None, {"image": pictures[i : i + BATCH]})[0] for i in range(0, len(pictures), BATCH)]
        return np.concatenate(parts)

    return run


def by_nncf(graph: onnx.ModelProto, calibration: Frames) -> Run:
    import nncf
    import openvino

    source = openvino.Core().read_model(to_bytes(graph))
    source.reshape([1, *calibration.shape[1:]])
    data = nncf.Dataset(list(calibration), lambda frame: {0: frame[None]})
    with contextlib.redirect_stdout(io.StringIO()):  # its progress
        model = nncf.quantize(source, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibration))
    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", config)
    return lambda pictures: np.concatenate([compiled([frame[None]])[0] for frame in pictures])


if __name__ == "__main__":
    sys.exit(main())
