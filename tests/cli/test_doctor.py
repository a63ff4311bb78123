"""``vitedge doctor``."""

from __future__ import annotations

import json
import platform

import pytest

from tests.cli.command import vitedge
from vitedge import doctor
from vitedge.core import paths
from vitedge.doctor import EXTRAS, RuntimeState


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtimes are asked in tests/test_doctor.py; here one of them is broken."""

    def state(name: str, targets: object) -> RuntimeState:
        problem = "the process was killed by SIGSEGV" if name == "openvino" else None
        runs_on = {} if problem else {"cpu": True}
        facts = {"version": "1", "providers": ["CPUExecutionProvider"]}
        return RuntimeState(name=name, extra=name, version="99.0", facts=facts, runs_on=runs_on, problem=problem)

    monkeypatch.setattr(doctor, "runtime_state", state)


def test_everything_is_told_and_a_broken_runtime_breaks_nothing() -> None:
    done = vitedge("doctor")
    assert done.code == 0, done.err
    for words in (
        platform.machine(),
        f"Python           {platform.python_version()}".split()[1],
        "CPUExecutionProvider",
        "SIGSEGV",
        str(paths.cache_folder()),
        *EXTRAS,
        *paths.names("targets"),
    ):
        assert words in done.out, words


def test_json_alone() -> None:
    found = json.loads(vitedge("doctor", "--json", "-").out)
    assert found["schema_version"] == 1 and found["processor"]["architecture"] == platform.machine()
    runs = {target["name"]: target["runs"] for target in found["targets"]}
    assert runs["onnxruntime"] and not runs["openvino"]
