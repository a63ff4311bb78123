"""What people would pick instead: one float model through each tool's own path, raced against what vitedge makes of it.

    python benchmarks/alternatives.py [MODEL] [--rounds 40] [--threads 2] [--python TOOL=PYTHON …] [--only TEXT …]
        [--out FILE]

Every tool runs in a process of its own (``alternative_workers.py``), and all take turns, each round in another order:
they settle, then classify pictures one by one for a quarter of a second. Of each turn the fastest inference counts
(noise only adds time), and a round's turns are compared with each other. ``--python executorch=/path/python`` names the
Python in whose environment a tool is installed (tools don't agree on versions of torch); the others run in this one.
A tool that can't take the model is shown with its reason, and one whose answers aren't the model's is called wrong.

Accuracy: top-1 on the embedded hold-out pictures; deviation: mean KL divergence from the float32 logits there, in
millionths, and the percentage of pictures whose class is the same. MODEL is ``embedded`` or a model folder with our
parameter names.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np
import onnx
import torch
from alternative_workers import RIGHT, TOOLS
from peer_bars import decoded, frames, open_model, speedup

import vitedge
from vitedge.data import embedded
from vitedge.device.hardware import processor
from vitedge.evaluation.fidelity import divergence
from vitedge.formats.model_folder import Model
from vitedge.graph.author import has_folded_stem
from vitedge.graph.mappings import read_own
from vitedge.graph.surgery import load, pin_batch, to_bytes
from vitedge.training.vit import VisionTransformer

CALIBRATED, SHOWN = 300, 1000
OURS = ("onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-int8", "x86-server-int8")
#: What the others' times are compared with: the first that runs here. x86-server needs bfloat16, which OpenVINO's own
#: default uses where the processor has it.
BASELINES = ("vitedge x86-server int8", "vitedge openvino int8")


class Pixels(torch.nn.Module):
    """The torch module with its preprocessing: uint8 [1, h, w, 3] -> logits [1, classes]."""

    def __init__(self, module: torch.nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", 255 * torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("factor", 1 / (255 * torch.tensor(std).reshape(1, 3, 1, 1)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = (image.permute(0, 3, 1, 2).float() - self.mean) * self.factor
        logits: torch.Tensor = self.module(pixels)
        return logits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="embedded")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python", action="append", default=[], metavar="TOOL=PYTHON")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in options.python)
    chosen = [name for name in TOOLS if not options.only or any(text in name for text in options.only)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(open_model(options.model, folder), folder)
        rows = race(chosen, folder, pythons, options.rounds, options.threads)
    show(rows)
    if options.out:
        about = {
            "processor": processor().model,
            "threads": options.threads,
            "rounds": options.rounds,
            "model": options.model,
            "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
            "rows": rows,
        }
        options.out.write_text(json.dumps(about, indent=1) + "\n")
    return 0


def prepare(model: Model, folder: Path) -> None:
    """What the workers take, into ``folder``."""
    graph = pin_batch(load(model.onnx_path), 1)
    onnx.save(onnx.load_from_string(to_bytes(graph)), folder / "model.onnx")
    np.save(folder / "calibration.npy", frames(model, "calibration", CALIBRATED))
    held_out = embedded.pictures("held-out")
    order = held_out.order(0)[:SHOWN]
    np.save(folder / "pictures.npy", decoded(model, held_out, SHOWN))
    names = [label.folder for label in model.record.classes]
    np.save(folder / "labels.npy", [names.index(str(held_out.records[index].folder)) for index in order])
    for name in OURS:
        target, precision = name.rsplit("-", 1)
        data = None if precision == "fp32" else "calibration"
        vitedge.export(model, target=target, precision=precision, data=data, out=folder / name)
    own, about = read_own(model.path), model.record.preprocessing
    module = VisionTransformer(own.config, folded=has_folded_stem(own.arrays)).eval()
    module.load_state_dict({key: torch.from_numpy(np.array(value, np.float32)) for key, value in own.arrays.items()})
    example = torch.from_numpy(np.load(folder / "pictures.npy")[:1])
    torch.export.save(
        torch.export.export(Pixels(module, about.mean, about.std).eval(), (example,)), folder / "module.pt2"
    )
    pixels = torch.zeros(1, 3, *about.size)
    torch.jit.save(torch.jit.trace(module, pixels), str(folder / "scripted.pt"))
    facts = {"mean": about.mean, "std": about.std, "classes": len(model.record.classes)}
    (folder / "preprocessing.json").write_text(json.dumps(facts))


class Worker:
    """One tool's process."""

    def __init__(self, name: str, python: str, folder: Path, threads: int) -> None:
        script = Path(__file__).with_name("alternative_workers.py")
        command = [python, str(script), name, str(folder), "--threads", str(threads)]
        self._log = (folder / f"{name}.log").open("w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.ready = self.answer() or {"error": f"ended; its log ends: {self._last_line()}"}

    def _last_line(self) -> str:
        lines = Path(self._log.name).read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "empty"

    def answer(self) -> Any:
        stream: IO[str] | None = self._process.stdout
        line = stream.readline() if stream else ""
        return json.loads(line) if line else None

    def turn(self) -> list[int]:
        assert self._process.stdin is not None
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        taken: list[int] = self.answer()
        return taken

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def race(names: list[str], folder: Path, pythons: dict[str, str], rounds: int, threads: int) -> list[dict[str, Any]]:
    """One row a tool, in the order of the table; those that couldn't take the model have an ``error``."""
    workers = {}
    for name in names:
        print(f"prepare {name}", file=sys.stderr, flush=True)
        python = next((path for tool, path in pythons.items() if name.startswith(tool)), sys.executable)
        workers[name] = Worker(name, python, folder, threads)
    running = {name: worker for name, worker in workers.items() if "error" not in worker.ready}
    turns: dict[str, list[list[int]]] = {name: [] for name in running}
    order = random.Random(0)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for name in order.sample(sorted(running), len(running)):
            turns[name].append(running[name].turn())
    for worker in workers.values():
        worker.close()
    labels = np.load(folder / "labels.npy")
    baseline = next((name for name in BASELINES if name in running), "")
    reference = np.load(folder / f"{'onnxruntime float' if 'onnxruntime float' in running else baseline}.npy")
    rows = []
    for name, worker in workers.items():
        row: dict[str, Any] = {"tool": name, **worker.ready}
        if name in running:
            logits = np.load(folder / f"{name}.npy")
            row["fastest_ms"] = round(median(min(turn) for turn in turns[name]) / 1e6, 4)
            row["median_ms"] = round(median(median(turn) for turn in turns[name]) / 1e6, 4)
            row["kl_millionths"] = round(1e6 * float(divergence(reference, logits).mean()), 2)
            row["top1_pct"] = round(100 * float((logits.argmax(1) == labels).mean()), 2)
            row["same_class_pct"] = round(100 * float((logits.argmax(1) == reference.argmax(1)).mean()), 2)
            if baseline:
                times = speedup(turns[name], turns[baseline])
                row["times"] = [round(times.value, 3), round(times.low, 3), round(times.high, 3)]
        rows.append(row)
    return sorted(rows, key=lambda row: row.get("fastest_ms", float("inf")))


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'tool':26} {'version':>14} {'ms':>7}  {'times':>18}  {'KL ·10⁻⁶':>9}  same class  top-1")
    for row in rows:
        if "error" in row:
            print(f"{row['tool']:26} {row['error']}")
            continue
        if row["same_class_pct"] < RIGHT:
            print(f"{row['tool']:26} wrong answers: {row['same_class_pct']:.1f} % the same class")
            continue
        times = "{:.2f} ({:.2f} to {:.2f})".format(*row["times"]) if "times" in row else ""
        print(
            f"{row['tool']:26} {row['version']:>14} {row['fastest_ms']:7.3f}  {times:>18}  "
            f"{row['kl_millionths']:9.1f}  {row['same_class_pct']:8.1f} %  {row['top1_pct']:.1f} %"
        )


if __name__ == "__main__":
    sys.exit(main())
