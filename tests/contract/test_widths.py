"""Blocks with widths of their own, in every kernel variant of every runtime: what is planned runs and is right."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from tests.contract import artifacts, portable
from vitedge import runtimes
from vitedge.formats.architecture import BlockWidths
from vitedge.formats.target import Candidate, Target, load_target
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.session import open_session

#: Odd numbers of heads, values wider and narrower than queries, branches that are gone, and tokens that are merged.
CONFIG = replace(
    artifacts.CONFIG,
    depth=4,
    blocks=(
        BlockWidths(heads=3, query_key=24, value=40, mlp_hidden=72, tokens=20),
        BlockWidths(heads=2, query_key=16, value=16, mlp_hidden=0),
        BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=40, tokens=9),
        BlockWidths(heads=1, query_key=40, value=8, mlp_hidden=104),
    ),
)
CASES = {
    f"{target.name}-{candidate.variant}": (target, candidate)
    for target in (load_target("onnxruntime"), load_target("openvino"))
    for candidate in target.candidate
}


#: What handles attention in a way of its own; the others run with the slow suites.
FAST = ("float", "float-attention", "linears-int8", "linears-convs-int8", "pointwise-int8")


def _marks(candidate: Candidate) -> tuple[pytest.MarkDecorator, ...]:
    return () if candidate.variant in FAST else (pytest.mark.slow,)


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(case[1])) for name, case in CASES.items()])
def test_what_is_planned_runs_and_computes_right(name: str, tmp_path: Path) -> None:
    target, candidate = CASES[name]
    _skip_missing(target, candidate)
    made = artifacts.make(tmp_path / "artifact", target, candidate, config=CONFIG)
    with open_session(made, OpenOptions(threads=1)) as session:
        portable.executed(made, session)
        portable.logits(made, session)
        frames = portable.frames_of(session, 3, seed=3)
        found = np.stack(list(session.map_batches(frames)))
    allowed = {"fp32": 1e-5, "bf16": 0.1}.get(candidate.precision, 0.2)
    assert portable.relative(found, artifacts.reference(frames, CONFIG)) <= allowed
    assert sum(layer.macs for layer in made.manifest.layers) == CONFIG.macs()


def _skip_missing(target: Target, candidate: Candidate) -> None:
    if runtimes.installed(target.runtime) is None:
        pytest.skip(f"the runtime {target.runtime} isn't installed")
    if (package := runtimes.package(target.runtime, candidate.variant)) and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package}, which makes {candidate.variant}, isn't installed")
