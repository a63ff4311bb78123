"""Every target in every precision it offers: export, preflight, verification as far as this machine goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

import vitedge
from vitedge import runtimes
from vitedge.core import paths, system
from vitedge.device import hardware
from vitedge.formats.target import load_target
from vitedge.runtimes.here import runs_here

WISHES = [
    (name, precision)
    for name in paths.names("targets")
    for precision in dict.fromkeys(candidate.precision for candidate in load_target(name).candidate)
]


@pytest.mark.parametrize(("name", "precision"), WISHES)
def test_export_and_verify(name: str, precision: str, small_model: Path, small_data: Path, tmp_path: Path) -> None:
    target = load_target(name)
    if target.runtime == "openvino" and runtimes.installed("openvino") is None:
        pytest.skip("OpenVINO isn't installed")
    data = {"data": small_data, "num_samples": 32} if precision in ("int8", "fp8", "mixed") else {}
    artifact = vitedge.export(small_model, name, precision, tmp_path / "artifact", **data)
    checks = vitedge.verify(artifact)
    assert [check for check in checks if check.ok is False] == []
    undecided = [check for check in checks if check.ok is None]
    assert bool(undecided) != runs_here(target)
    here = artifact.manifest.golden.executed_by.startswith(target.runtime)
    assert here == runs_here(target)
    assert sum(artifact.manifest.precision_obtained.values()) == pytest.approx(1)
    assert artifact.manifest.precision_obtained.get(precision, 0) > 0.4
    assert artifact.manifest.golden.deviation < {"fp32": 1e-5, "fp16": 5e-3}.get(precision, 0.1)


def test_instructions_that_are_missing_here_leave_checks_to_the_device(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8-bit weights saturate without VNNI: such an artifact is neither run nor judged here."""
    plain = hardware.Processor.__struct_fields__
    values = {name: getattr(hardware.processor(), name) for name in plain}
    monkeypatch.setattr(hardware, "processor", lambda *_: hardware.Processor(**{**values, "isa": ("avx2",)}))
    artifact = vitedge.export(small_model, "x86-server", "int8", tmp_path / "artifact", data=small_data, num_samples=32)
    assert artifact.manifest.golden.executed_by.startswith("interpreted")
    checks = vitedge.verify(artifact)
    assert "avx512_vnni" in next(check.detail for check in checks if check.ok is None)


def test_more_threads_than_cores_leave_checks_to_the_device(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO would take fewer threads than the target names, and say nothing."""
    able = replace(hardware.processor(), isa=("avx2", "avx_vnni"))
    monkeypatch.setattr(hardware, "processor", lambda *_: able)
    target = replace(load_target("intel-n100"), arch="any", threads=len(system.processors()) + 1)
    artifact = vitedge.export(small_model, target, "int8", tmp_path / "artifact", data=small_data, num_samples=32)
    assert artifact.manifest.golden.executed_by.startswith("interpreted")
    checks = vitedge.verify(artifact)
    assert f"it's for {target.threads} threads" in next(check.detail for check in checks if check.ok is None)
