"""The tools that people would pick instead, one process each: what ``alternatives.py`` starts and asks.

    python benchmarks/alternative_workers.py TOOL FOLDER [--threads 2]

FOLDER holds ``model.onnx`` and ``module.pt2`` (one picture: uint8 [1, h, w, 3] -> float32 logits [1, classes]),
``scripted.pt`` (TorchScript, float32 [1, 3, h, w]), ``calibration.npy`` and ``pictures.npy`` (uint8 [n, h, w, 3]),
``preprocessing.json`` (mean, std, scale) and, for vitedge's own rows, artifacts by name. A worker needs NumPy and its
tool, not vitedge. It writes ``TOOL.npy``, the pictures' logits, says so in a line of JSON, and then answers each line
``turn`` with the nanoseconds of that many inferences. What tools print themselves goes to stderr.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Any], Any]  # uint8 [1, h, w, 3] -> float32 [1, classes]
SETTLE_S, TURN_S, LEAST = 0.15, 0.25, 10
RIGHT = 90.0  # percent of the pictures with the same class, below which a tool answers wrongly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=sorted(TOOLS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    package, prepare = TOOLS[options.tool]
    began = time.perf_counter()
    try:
        run = prepare(options.folder, options.threads)
        pictures = np.load(options.folder / "pictures.npy")
        logits = np.concatenate([np.array(run(picture[None])).reshape(1, -1) for picture in pictures])
    except Exception as error:  # whatever a tool raises is its result here
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}) + "\n")
        return
    np.save(options.folder / f"{options.tool}.npy", logits.astype(np.float32))
    ready = {"version": importlib.metadata.version(package), "prepared_s": time.perf_counter() - began}
    answers.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        if line.strip() != "turn":
            break
        timed(run, pictures, SETTLE_S)
        answers.write(json.dumps(timed(run, pictures, TURN_S)) + "\n")


def timed(run: Run, pictures: Any, seconds: float) -> list[int]:
    """Nanoseconds of each inference, for so long; other pictures each time."""
    taken: list[int] = []
    began = time.perf_counter()
    while len(taken) < LEAST or time.perf_counter() - began < seconds:
        picture = pictures[len(taken) % len(pictures)][None]
        start = time.perf_counter_ns()
        run(picture)
        taken.append(time.perf_counter_ns() - start)
    return taken


# --- onnxruntime -----------------------------------------------------------------------------------------------------


def onnxruntime_session(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda picture: session.run(None, {name: picture})[0]


def onnxruntime_float(folder: Path, threads: int) -> Run:
    return onnxruntime_session(folder / "model.onnx", threads)


def onnxruntime_dynamic(folder: Path, threads: int) -> Run:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(folder / "model.onnx", folder / "dynamic.onnx")
    return onnxruntime_session(folder / "dynamic.onnx", threads)


def onnxruntime_static(folder: Path, threads: int) -> Run:
    """As onnxruntime's documentation advises: pre-processing, then QDQ with per-channel weights."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quant_pre_process, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.pictures = iter(np.load(folder / "calibration.npy"))

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self.pictures, None)
            return None if picture is None else {"image": picture[None]}

    quant_pre_process(str(folder / "model.onnx"), str(folder / "prepared.onnx"))
    quantize_static(
        str(folder / "prepared.onnx"),
        str(folder / "static.onnx"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
    )
    return onnxruntime_session(folder / "static.onnx", threads)


# --- OpenVINO --------------------------------------------------------------------------------------------------------


def openvino_request(model: Any, threads: int) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(
        model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    )
    request = compiled.create_infer_request()
    return lambda picture: request.infer([picture], share_inputs=True)[0]


def openvino_float(folder: Path, threads: int) -> Run:
    import openvino

    return openvino_request(openvino.Core().read_model(folder / "model.onnx"), threads)


def openvino_nncf(folder: Path, threads: int) -> Run:
    import nncf
    import openvino

    pictures = nncf.Dataset(list(np.load(folder / "calibration.npy")[:, None]))
    model = openvino.Core().read_model(folder / "model.onnx")
    return openvino_request(nncf.quantize(model, pictures, model_type=nncf.ModelType.TRANSFORMER), threads)


# --- torch and ExecuTorch --------------------------------------------------------------------------------------------


def torch_module(folder: Path, threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    return torch.export.load(folder / "module.pt2").module()


def torch_run(module: Any) -> Run:
    import torch

    def run(picture: Any) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(picture)).numpy()

    return run


def torch_eager(folder: Path, threads: int) -> Run:
    return torch_run(torch_module(folder, threads))


def torch_compiled(folder: Path, threads: int) -> Run:
    import torch

    return torch_run(torch.compile(torch_module(folder, threads)))


def executorch_program(exported: Any, folder: Path, name: str, threads: int) -> Run:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib

    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    (folder / name).write_bytes(program.buffer)
    portable_lib._threadpool_get_thread_count  # noqa: B018  # the pool that XNNPACK uses; fails where there's none
    if hasattr(portable_lib, "_unsafe_reset_threadpool"):
        portable_lib._unsafe_reset_threadpool(threads)
    loaded = portable_lib._load_for_executorch(str(folder / name))
    return lambda picture: loaded.forward([torch.from_numpy(picture)])[0].numpy()


def executorch_float(folder: Path, threads: int) -> Run:
    import torch

    return executorch_program(torch.export.load(folder / "module.pt2"), folder, "float.pte", threads)


def executorch_int8(folder: Path, threads: int) -> Run:
    """As ExecuTorch's page on XNNPACK quantization has it: symmetric, per channel, static, through PT2E."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    pictures = np.load(folder / "calibration.npy")
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch_module(folder, threads), quantizer)
    with torch.inference_mode():
        for picture in pictures:
            prepared(torch.from_numpy(picture[None]))
    example = (torch.from_numpy(pictures[:1]),)
    return executorch_program(torch.export.export(convert_pt2e(prepared), example), folder, "int8.pte", threads)


# --- MNN, tract, LiteRT, ncnn ----------------------------------------------------------------------------------------


def mnn(folder: Path, threads: int, *flags: str) -> Run:
    import _tools  # MNN's converter; its command line would install a package that reports what was converted
    import MNN

    path = folder / f"{'-'.join(flag.strip('-') for flag in flags) or 'float'}.mnn"
    _tools.mnnconvert(
        ["mnnconvert", "-f", "ONNX", "--modelFile", str(folder / "model.onnx"), "--MNNModel", str(path), *flags]
    )
    runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "normal"},))
    module = MNN.nn.load_module_from_file(str(path), ["image"], ["logits"], runtime_manager=runtime)

    def run(picture: Any) -> Any:
        image = MNN.expr.const(picture, list(picture.shape), MNN.expr.NCHW, MNN.expr.uint8)
        return module.forward([image])[0].read()

    return run


def mnn_float(folder: Path, threads: int) -> Run:
    return mnn(folder, threads)


def mnn_int8(folder: Path, threads: int) -> Run:
    """Weights of 8 bits, which MNN's documentation advises for transformers."""
    return mnn(folder, threads, "--weightQuantBits", "8")


def tract_float(folder: Path, threads: int) -> Run:
    import tract

    model = tract.onnx().load(folder / "model.onnx").into_model().into_runnable()
    return lambda picture: model.run([picture])[0].to_numpy()


def litert_float(folder: Path, threads: int) -> Run:
    import litert_torch
    import torch

    example = (torch.from_numpy(np.load(folder / "calibration.npy")[:1]),)
    litert_torch.convert(torch_module(folder, threads), example).export(str(folder / "float.tflite"))
    return litert_interpreter(folder / "float.tflite", threads)


def litert_int8(folder: Path, threads: int) -> Run:
    """Static, weights and activations of 8 bits, by LiteRT's own quantizer."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    litert_float(folder, threads)
    path = str(folder / "float.tflite")
    ((signature, about),) = Interpreter(path).get_signature_list().items()
    (given,) = about["inputs"]
    pictures = np.load(folder / "calibration.npy")
    tool = quantizer.Quantizer(path, recipe.static_wi8_ai8())
    seen = tool.calibrate({signature: [{given: picture[None]} for picture in pictures]})
    tool.quantize(seen).export_model(str(folder / "int8.tflite"), overwrite=True)
    return litert_interpreter(folder / "int8.tflite", threads)


def litert_interpreter(path: Path, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    given, answer = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]
    scale, zero = answer["quantization"] if answer["dtype"] is np.int8 else (1.0, 0)

    def run(picture: Any) -> Any:
        interpreter.set_tensor(given, picture)
        interpreter.invoke()
        return (interpreter.get_tensor(answer["index"]).astype(np.float32) - zero) * scale

    return run


def ncnn_float(folder: Path, threads: int) -> Run:
    """Through pnnx, ncnn's own converter; the pixels are normalised here, as ncnn's users do."""
    import ncnn
    import pnnx
    import torch

    about = json.loads((folder / "preprocessing.json").read_text())
    size = np.load(folder / "pictures.npy", mmap_mode="r").shape[1:3]
    scripted = folder / "scripted.pt"
    pnnx.convert(str(scripted), [torch.zeros(1, 3, *size)])
    net = ncnn.Net()
    net.opt.num_threads = threads
    if net.load_param(str(folder / "scripted.ncnn.param")) or net.load_model(str(folder / "scripted.ncnn.bin")):
        raise RuntimeError("ncnn can't load what pnnx made of the model")
    mean, factor = np.float32(about["mean"]), 1 / (255 * np.float32(about["std"]))

    def run(picture: Any) -> Any:
        pixels = (picture[0] - 255 * mean) * factor
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)).clone())
            return np.array(extractor.extract("out0")[1])

    return run


# --- vitedge ---------------------------------------------------------------------------------------------------------


def artifact(name: str) -> Callable[[Path, int], Run]:
    def prepare(folder: Path, threads: int) -> Run:
        import vitedge

        session = vitedge.open(folder / name, threads=threads)
        return session.run

    return prepare


#: By name: the package whose version is shown, and what prepares it.
TOOLS: dict[str, tuple[str, Callable[[Path, int], Run]]] = {
    "vitedge onnxruntime fp32": ("onnxruntime", artifact("onnxruntime-fp32")),
    "vitedge onnxruntime int8": ("onnxruntime", artifact("onnxruntime-int8")),
    "vitedge openvino fp32": ("openvino", artifact("openvino-fp32")),
    "vitedge openvino int8": ("openvino", artifact("openvino-int8")),
    "vitedge x86-server int8": ("openvino", artifact("x86-server-int8")),
    "onnxruntime float": ("onnxruntime", onnxruntime_float),
    "onnxruntime dynamic int8": ("onnxruntime", onnxruntime_dynamic),
    "onnxruntime static int8": ("onnxruntime", onnxruntime_static),
    "openvino float": ("openvino", openvino_float),
    "openvino nncf int8": ("nncf", openvino_nncf),
    "torch eager float": ("torch", torch_eager),
    "torch compile float": ("torch", torch_compiled),
    "executorch xnnpack float": ("executorch", executorch_float),
    "executorch xnnpack int8": ("executorch", executorch_int8),
    "mnn float": ("MNN", mnn_float),
    "mnn weights int8": ("MNN", mnn_int8),
    "tract float": ("tract", tract_float),
    "litert float": ("ai-edge-litert", litert_float),
    "litert int8": ("ai-edge-litert", litert_int8),
    "ncnn float": ("ncnn", ncnn_float),
}


if __name__ == "__main__":
    main()
