"""Does `vitedge compare` see a slow-down of 5 % or of 2 %, and does it leave equal artifacts alone?

    python benchmarks/compare_power.py [ARTIFACT] [--runs 200] [--duration 2] [--threads 1]
        [--slowdown 5 2] [--out FILE]

Each run opens the artifact twice, as `vitedge compare` does, and measures both interleaved. The runs of all kinds take
turns: equal ones, and ones in which the second session takes so many percent longer, because after every inference it
computes on for that share of the time that the inference took.
The embedded model on ONNX Runtime is exported where no ARTIFACT is named. Prints how often a difference was called, the
estimates' spread and the seconds per run; with --out, every run's ratio and interval as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from vitedge import api
from vitedge.comparison.compare import Comparison
from vitedge.comparison.options import PairedConfig
from vitedge.device.hardware import processor
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.session import Session


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("artifact", nargs="?")
    parser.add_argument("--runs", type=int, default=200, help="of each kind")
    parser.add_argument("--duration", type=float, default=2.0, help="seconds of each artifact in a run")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds of each artifact in a run, at least")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slowdown", type=float, nargs="+", default=[5.0, 2.0], help="percent")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = PairedConfig(duration_s=arguments.duration, warmup_s=arguments.warmup)
    slowdowns = {"equal": 0.0, **{f"{percent:g} % slower": percent for percent in arguments.slowdown}}
    kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in slowdowns}
    with tempfile.TemporaryDirectory() as folder:
        artifact = arguments.artifact or exported(Path(folder))
        for number in range(arguments.runs):
            for kind, slowdown in slowdowns.items():
                start = time.perf_counter()
                found = run(artifact, slowdown, config, arguments.threads)
                kinds[kind].append(summary(found, time.perf_counter() - start))
            print(f"\r{number + 1} of {arguments.runs}", end="", file=sys.stderr, flush=True)
    print(f"{processor().model}, {arguments.threads} threads")
    for kind, runs in kinds.items():
        verdicts = [run["verdict"] for run in runs]
        print(
            f"{kind:>12}: called slower {verdicts.count('slower')}, faster {verdicts.count('faster')} of {len(runs)}; "
            f"ratio {statistics.median(run['ratio'] for run in runs):.4f}, "
            f"half of an interval {statistics.median((run['high'] - run['low']) / 2 for run in runs):.4f}, "
            f"{statistics.median(run['seconds'] for run in runs):.1f} s a run"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({"arguments": {**vars(arguments), "out": ""}, **kinds}, default=str))


def run(artifact: str | Path, slowdown: float, config: PairedConfig, threads: int) -> Comparison:
    """One comparison of an artifact with itself, the second one's session slowed down by so many percent."""
    with slowed(slowdown):
        _, (found,) = api.compare(artifact, [artifact], None, OpenOptions(threads=threads), config=config)
    return found


@contextmanager
def slowed(percent: float) -> Iterator[None]:
    """Sessions that are opened second, fourth, … compute on after every inference."""
    from vitedge.benchmarking import opened

    count = 0

    def open_session(*arguments: Any) -> Session:
        nonlocal count
        session = open_session_of(*arguments)
        count += 1
        if count % 2 == 0 and percent:
            infer = session._backend.infer  # type: ignore[union-attr]

            def longer(images: Any) -> Any:
                start = time.perf_counter_ns()
                answer = infer(images)
                end = time.perf_counter_ns()
                while time.perf_counter_ns() < end + (end - start) * percent / 100:
                    pass
                return answer

            session._backend.infer = longer  # type: ignore[union-attr, method-assign]
        return session

    open_session_of = opened.open_session
    with mock.patch.object(opened, "open_session", open_session):
        yield


def summary(found: Comparison, seconds: float) -> dict[str, Any]:
    assert found.best_case_ratio is not None
    ratio = found.best_case_ratio
    return {"verdict": found.verdict, "ratio": ratio.value, "low": ratio.low, "high": ratio.high, "seconds": seconds}


def exported(folder: Path) -> Path:
    """The embedded model in float32 for ONNX Runtime."""
    api.import_model("embedded", folder / "model")
    return api.export(folder / "model", "onnxruntime", "fp32", folder / "artifact").path


if __name__ == "__main__":
    main()
