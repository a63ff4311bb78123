"""Every architecture in every kernel variant of TensorRT: operator tables, where Q/DQ stand, TensorRT-RTX's builder.

    python benchmarks/tensorrt_matrix.py [MODEL ...] [--sms 8.6,12.0] [--out FILE]

MODEL is a member of the zoo (all of them by default), with random weights but for the embedded model, or a model
folder; `import_families.py --keep` leaves those of hybrid families. What TensorRT takes doesn't depend on weights, so a
few pictures calibrate. Each lowered graph is held against the tables of TensorRT 10.3, 10.16 and 11, its Q/DQ against
NVIDIA's rules, and TensorRT-RTX parses it and builds it for every compute capability that it knows: FP8 from 8.9 on,
float32 products from 8.0 on, and no FP8 convolutions, which it hasn't. Exits with 7 where a graph is refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from msgspec.structs import replace
from peer_bars import environment, frames, lowering_of, write
from random_models import random_model

import vitedge
from vitedge import runtimes
from vitedge.formats.model_folder import Model
from vitedge.formats.target import Target
from vitedge.graph.surgery import parse
from vitedge.runtimes._nvidia.fusing import unfused
from vitedge.runtimes._nvidia.parser_check import parse_and_build
from vitedge.runtimes.base import Lowered
from vitedge.runtimes.executed import mac_fractions
from vitedge.training.zoo import EMBEDDED, ZOO

VERSIONS = ("10.3", "10.16", "11")
#: Turing, Ampere, Ada and Blackwell: every compute capability that TensorRT-RTX 1.7 knows.
SMS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
CALIBRATE = 4  # pictures


@dataclass
class Outcome:
    """What became of one model in one kernel variant."""

    model: str
    variant: str
    macs: dict[str, float]  # fraction of the multiply-accumulates by precision
    refused: dict[str, list[str]] = field(default_factory=dict)  # by TensorRT's version: what its table can't take
    unfused: dict[str, int] = field(default_factory=dict)  # by rule: Q/DQ that wouldn't fuse
    built: list[str] = field(default_factory=list)  # compute capabilities
    errors: dict[str, str] = field(default_factory=dict)  # by compute capability: why not
    note: str = ""  # why nothing was built

    @property
    def passed(self) -> bool:
        """Whether every table and every builder that was asked takes the graph."""
        return not any(self.refused.values()) and not self.errors

    @property
    def row(self) -> str:
        """A row of the printed table."""
        shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in self.macs.items())
        tables = "; ".join(f"{version}: {texts[0]}" for version, texts in self.refused.items() if texts) or "all"
        rules = ", ".join(f"{rule} {count}" for rule, count in self.unfused.items()) or "–"
        built = "; ".join([", ".join(self.built) or self.note, *(f"{sm}: {text}" for sm, text in self.errors.items())])
        return f"| {self.model} | {self.variant} | {shares} | {tables} | {rules} | {built} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", default=list(ZOO), help="members of the zoo, or model folders")
    parser.add_argument("--sms", type=lambda words: words.split(","), default=SMS, help="compute capabilities")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    head = ("model", "variant", "multiply-accumulates", "tables", "Q/DQ that wouldn't fuse", "TensorRT-RTX builds")
    print(f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|")
    outcomes = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            for outcome in outcomes_of(name, open_model(name, Path(folder)), arguments.sms):
                outcomes.append(outcome)
                print(outcome.row, flush=True)
                if arguments.out:  # as far as it got
                    where = environment(("onnx", "tensorrt-rtx"), threads=1)
                    write(arguments.out, where, [], {"rows": [asdict(each) for each in outcomes]})
    return 0 if all(outcome.passed for outcome in outcomes) else 7


def open_model(name: str, folder: Path) -> Model:
    """A member of the zoo, written into ``folder``, or a model folder by its path."""
    if name == EMBEDDED:
        return vitedge.import_model("embedded", out=folder / name)
    return Model.open(random_model(name, folder / name) if name in ZOO else name)


def outcomes_of(name: str, model: Model, sms: Sequence[str] = SMS) -> Iterator[Outcome]:
    """One for each of TensorRT's kernel variants, but for those that are another one's graph."""
    options = argparse.Namespace(target="tensorrt", recipe="fast", isa=None)
    target, lower = lowering_of(model, frames(model, "calibration", CALIBRATE), options)
    graphs: set[bytes] = set()
    for candidate in target.candidate:
        lowered = lower(candidate)
        if lowered.files[lowered.graph] not in graphs:
            yield outcome_of(Path(name).name, candidate.variant, lowered, target, sms)
        graphs.add(lowered.files[lowered.graph])


def outcome_of(name: str, variant: str, lowered: Lowered, target: Target, sms: Sequence[str]) -> Outcome:
    """Tables, rules and builders for one graph."""
    data = lowered.files[lowered.graph]
    graph, check = parse(data), runtimes.part("tensorrt", "preflight").check
    outcome = Outcome(
        name,
        variant,
        macs=mac_fractions(lowered.layers, {layer.name: layer.precision for layer in lowered.layers}),
        refused={version: check(data, replace(target, runtime_min=version)) for version in VERSIONS},
        unfused=dict(Counter(each.rule for each in unfused(graph))),
    )
    oldest = 8.9 if "fp8" in outcome.macs else 8.0 if "fp32" in outcome.macs else 0.0
    if any(layer.kind == "conv" and layer.precision == "fp8" for layer in lowered.layers):
        outcome.note = "none: it has no FP8 convolutions"
    else:
        report = parse_and_build(data, [sm for sm in sms if float(sm) >= oldest])
        outcome.built, outcome.errors = list(report.engines), report.errors
    return outcome


if __name__ == "__main__":
    sys.exit(main())
