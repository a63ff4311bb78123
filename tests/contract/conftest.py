"""One artifact of each kernel variant of each runtime that is installed, opened once."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from tests.contract import artifacts, portable
from vitedge import runtimes
from vitedge.formats.artifact import Artifact
from vitedge.formats.target import Candidate, Target, load_target
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.session import Session, open_session

portable.REOPEN = 8  # enough to see a leak in every opening; the script does it 20 times

NULL = replace(
    load_target("onnxruntime"),
    name="null",
    runtime="null",
    runtime_min="0.1",
    candidate=(Candidate(precision="fp32", variant="null"),),
)


def _cases() -> Iterator[tuple[Target, Candidate, int]]:
    for target in (load_target("onnxruntime"), load_target("openvino"), NULL):
        for number, candidate in enumerate(target.candidate):
            yield target, candidate, 1 if number else 3
    if platform.machine() == "x86_64":
        yield load_target("intel-cpu"), load_target("intel-cpu").candidates("int8")[0], 1


CASES = {
    f"{target.name}-{candidate.variant}-batch{batch}": (target, candidate, batch)
    for target, candidate, batch in _cases()
}


@pytest.fixture(scope="session", params=CASES)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    target, candidate, batch = CASES[request.param]
    if runtimes.installed(target.runtime) is None:
        pytest.skip(f"the runtime {target.runtime} isn't installed")
    if (package := runtimes.package(target.runtime, candidate.variant)) and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package}, which makes {candidate.variant}, isn't installed")
    return artifacts.make(tmp_path_factory.mktemp("artifact") / request.param, target, candidate, batch)


@pytest.fixture(scope="session")
def session(artifact: Artifact) -> Iterator[Session]:
    with open_session(artifact, OpenOptions(threads=1)) as opened:
        yield opened
