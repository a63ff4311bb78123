"""Whether blocks of other widths run as fast as their multiply-accumulates promise, on ONNX Runtime and OpenVINO.

Every block of a model gets the same widths. All of them run interleaved in one process, float32 and INT8 by the
targets' first candidates; a line has the time over the full model's, and the same of multiply-accumulates.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino as ov
from numpy.typing import NDArray
from peer_bars import clock_of, environment, frames, lowering_of, median_ms, race
from quantize_peers import session
from random_models import random_model

from vitedge.formats.architecture import BlockWidths
from vitedge.formats.model_folder import Model
from vitedge.formats.target import Candidate
from vitedge.graph.surgery import parse

CALIBRATED = 16  # pictures: only time is asked
FULL = "full"


def forms(model: Model) -> dict[str, BlockWidths]:
    """What is measured: halves, unequal and odd ones, beside the full widths."""
    config = model.record.architecture
    assert config is not None
    heads, dim, hidden = config.num_heads, config.head_dim, config.mlp_hidden
    cuts: dict[str, tuple[int, int, int, int]] = {
        "MLP half": (heads, dim, dim, hidden // 2),
        "MLP odd": (heads, dim, dim, hidden // 2 + 13),
        "query/key half": (heads, dim // 2, dim, hidden),
        "value three quarters": (heads, dim, dim * 3 // 4, hidden),
        "both": (heads, dim // 2, dim * 3 // 4, hidden),
        "both equal": (heads, dim * 3 // 4, dim * 3 // 4, hidden),
        "both odd": (heads, dim // 2 + 3, dim * 3 // 4 - 3, hidden),
        "one head less": (heads - 1, dim, dim, hidden),
        "all": (heads, dim // 2, dim * 3 // 4, hidden // 2),
    }
    names = ("heads", "query_key", "value", "mlp_hidden")
    return {name: BlockWidths(**dict(zip(names, widths, strict=True))) for name, widths in cuts.items()}


def calls_of(
    label: str, model: Model, arguments: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], object], str]]:
    """(row, one inference, the operators that attention became) for each runtime and precision."""
    pictures = frames(model, "calibration", CALIBRATED)
    threads = 1 if arguments.cpu_time else arguments.threads
    for name in arguments.targets:
        arguments.target = name
        target, lower = lowering_of(model, pictures, arguments)
        for candidate in (target.candidates("fp32")[0], target.candidates("int8")[0]):
            opened = (on_openvino if target.runtime == "openvino" else on_onnxruntime)(
                lower, candidate, pictures, threads
            )
            yield f"{target.runtime}, {candidate.precision}|{label}", *opened


def on_onnxruntime(
    lower: Callable[[Candidate], Any], candidate: Candidate, pictures: NDArray[np.uint8], threads: int
) -> tuple[Callable[[], object], str]:
    """One inference, and the operators whose names end in Attention."""
    lowered = lower(candidate)
    graph = parse(lowered.files[lowered.graph])
    opened: onnxruntime.InferenceSession = session(graph, dict(lowered.runtime_options), threads)
    fused = Counter(node.op_type for node in graph.graph.node if node.op_type.endswith(("Attention", "Softmax")))
    return lambda: opened.run(None, {"image": pictures[:1]}), spelled(fused)


def on_openvino(
    lower: Callable[[Candidate], Any], candidate: Candidate, pictures: NDArray[np.uint8], threads: int
) -> tuple[Callable[[], object], str]:
    """One inference, and the executed nodes that compute attention's products."""
    lowered, core = lower(candidate), ov.Core()
    wanted = {**lowered.runtime_options, "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(*lowered.files.values()), "CPU", wanted)
    request = compiled.create_infer_request()
    request.get_input_tensor().data[:] = pictures[:1]
    kinds = ("ScaledDotProductAttention", "Subgraph", "Softmax", "MHA")
    nodes = (node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops())
    return request.infer, spelled(Counter(kind for kind in nodes if kind in kinds))


def spelled(kinds: Counter[str]) -> str:
    """``QAttention ×5, MultiHeadAttention ×1``."""
    return ", ".join(f"{kind} ×{count}" for kind, count in kinds.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="vit_mini_patch4_32")
    parser.add_argument("--targets", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="one thread, and the processor time that it takes")
    parser.add_argument("--only", nargs="+", help="of the forms")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--isa", help="what the target promises: avx2, avx512_vnni, …")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    calls: dict[str, Callable[[], object]] = {}
    fused: dict[str, str] = {}
    macs: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        full = Model.open(random_model(arguments.model, Path(folder) / FULL))
        chosen = {FULL: None, **{name: w for name, w in forms(full).items() if name in (arguments.only or forms(full))}}
        for label, widths in chosen.items():
            path = Path(folder) / label.replace("/", " ") if widths else None
            model = Model.open(random_model(arguments.model, path, widths=widths)) if path else full
            assert model.record.architecture is not None
            macs[label] = model.record.architecture.macs()
            for row, call, kinds in calls_of(label, model, arguments):
                calls[row], fused[row] = call, kinds
    rounds = race(calls, arguments.rounds, clock=clock_of(arguments))
    rows = []
    for row, taken in rounds.items():
        runtime, _, label = row.partition("|")
        ratio = median_ms(taken) / median_ms(rounds[f"{runtime}|{FULL}"])
        rows.append((runtime, label, median_ms(taken), ratio, macs[label] / macs[FULL], fused[row]))
    print(f"{'runtime':<20}{'widths':<22}{'ms':>8}{'time':>8}{'MACs':>8}  attention")
    for runtime, label, ms, ratio, work, kinds in rows:
        print(f"{runtime:<20}{label:<22}{ms:>8.3f}{ratio:>8.0%}{work:>8.0%}  {kinds}")
    if arguments.out:
        names = ("runtime", "widths", "ms", "time_over_full", "macs_over_full", "attention")
        record = {
            "circumstances": environment(("onnxruntime", "openvino"), arguments.threads),
            "clock": "processor time" if arguments.cpu_time else "latency",
            "model": arguments.model,
            "rows": [dict(zip(names, row, strict=True)) for row in rows],
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
