"""An ONNX Runtime that is newer than any we know: another version, and another list of providers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace
from PIL import Image

import vitedge
from tests.newer_onnxruntime import AVAILABLE, DROPPED, NEW, VERSION, plant
from vitedge import doctor
from vitedge.benchmarking.bench import BenchConfig
from vitedge.core.schema import encode_json
from vitedge.errors import NotInstalledError
from vitedge.formats.artifact import Artifact
from vitedge.formats.target import Provider, Target, load_target
from vitedge.installation import pip
from vitedge.reporting import terminal
from vitedge.runtimes import here
from vitedge.runtimes.here import runs_here
from vitedge.runtimes.onnxruntime import detect, providers
from vitedge.runtimes.session import open_session


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)


@pytest.fixture
def exported(newer: None, small_model: Path, tmp_path: Path) -> Artifact:
    return vitedge.export(small_model, "onnxruntime", "fp32", tmp_path / "float")


def on(provider: str, device: str = "cpu") -> Target:
    return replace(load_target("onnxruntime"), providers=(Provider(name=provider),), device=device)


def for_provider(artifact: Artifact, provider: str) -> Artifact:
    """The same files, for a target that names the provider."""
    return Artifact(artifact.path, replace(artifact.manifest, target=on(provider)))


def test_artifacts_are_exported_and_verified(
    exported: Artifact, small_model: Path, small_data: Path, tmp_path: Path
) -> None:
    quantized = vitedge.export(
        small_model, "onnxruntime", "int8", tmp_path / "int8", data=small_data, num_samples=16, recipe="fast"
    )
    for artifact in (exported, quantized):
        assert artifact.manifest.built_with["onnxruntime"] == VERSION
        assert {check.name: check.ok for check in vitedge.verify(artifact) if check.ok is not True} == {}


def test_artifacts_are_measured_and_classify(exported: Artifact, small_data: Path) -> None:
    (row,) = vitedge.bench([exported], BenchConfig(duration_s=0.05, warmup_s=0.0, percentile=50)).rows
    assert row.latency is not None and row.session["version"] == VERSION
    with vitedge.open(exported) as session:
        assert session.info["version"] == VERSION and session.info["provider"] == "CPUExecutionProvider"
        (answer, *_) = session.classify(Image.open(small_data / "bee" / "3.png"))
        assert answer.label in [label.name for label in exported.manifest.classes]
    (told,) = vitedge.classify(exported, [small_data / "bee" / "3.png"])
    assert told.answers and not told.problem


@pytest.mark.usefixtures("newer")
def test_the_doctor_finds_nothing_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "run_isolated", lambda function, *arguments, **_: function(*arguments))
    found = doctor.examine()
    (state,) = (state for state in found.runtimes if state.name == "onnxruntime")
    assert (state.version, state.problem, state.runs_on["cpu"]) == (VERSION, None, True)
    assert state.facts["providers"] == AVAILABLE
    assert next(target for target in found.targets if target.name == "onnxruntime").runs
    assert encode_json(found)
    terminal.show_doctor(found)
    assert NEW in capsys.readouterr().out
    reasons = {
        name: doctor.fit(on(name), found.processor, found.gpus, found.runtimes).reasons for name in providers.NAMES
    }
    assert reasons.pop(DROPPED) == (
        "this version of ONNX Runtime knows no CUDAExecutionProvider, whatever its build; another version may have it",
    )
    assert reasons["OpenVINO"] == (
        "this ONNX Runtime has no OpenVINOExecutionProvider; onnxruntime-openvino brings it",
    )
    assert all(len(why) == 1 and "this ONNX Runtime has no " in why[0] for why in reasons.values())


@pytest.mark.usefixtures("newer")
def test_a_new_provider_opens_nothing() -> None:
    """What no target can name doesn't stand for a device."""
    assert detect.runs_here("cpu") and not detect.runs_here("cuda:0") and not detect.runs_here("npu")
    assert runs_here(load_target("onnxruntime"))


@pytest.mark.parametrize("name", providers.NAMES)
def test_every_provider_of_ours_is_missing_for_a_true_reason(exported: Artifact, name: str) -> None:
    full, distribution = providers.NAMES[name]
    made = for_provider(exported, name)
    with pytest.raises(NotInstalledError, match=full) as refused:
        open_session(made)
    assert (
        refused.value.reason == here.why_not_here(made.manifest.target) == detect.missing_provider(made.manifest.target)
    )
    (undecided,) = (check for check in vitedge.verify(made) if check.ok is None)
    assert refused.value.reason in undecided.detail
    assert ("brings it" in refused.value.reason) is (name != DROPPED)
    if name == DROPPED:
        assert refused.value.hint == "install a version of onnxruntime-gpu that has it, or use another target"
    elif re.fullmatch(r"onnxruntime-[a-z-]+", distribution):
        assert refused.value.hint == f"run: {pip()} uninstall onnxruntime && {pip()} install {distribution}"
    else:
        assert refused.value.hint == "build ONNX Runtime with it, or use another target"


def test_where_a_build_of_ones_own_cannot_help() -> None:
    full, _ = providers.NAMES["XNNPACK"]
    with pytest.raises(NotInstalledError, match=f"knows no {full}") as refused:
        providers.require(Provider(name="XNNPACK"), AVAILABLE, [full], "open it")
    assert refused.value.hint == "install a version of ONNX Runtime that has it, or use another target"
