"""Verify catches what may happen to an artifact between export and device, one planted fault at a time."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import vitedge
from tests.benchmarking.nulls import TARGET, null_artifact, rewritten
from vitedge import runtimes
from vitedge.errors import ArtifactError, NotInstalledError
from vitedge.formats.artifact import GOLDEN_REFERENCE, Artifact, npy, write_artifact
from vitedge.formats.model_folder import class_table, contract_metadata
from vitedge.formats.result import Check
from vitedge.formats.target import load_target
from vitedge.installation import install_command
from vitedge.runtimes.base import Executed, OpenOptions
from vitedge.runtimes.executed import executed_fractions, executed_types, unmet_layers
from vitedge.runtimes.session import open_session
from vitedge.verification.golden import golden_check
from vitedge.verification.verify import check_contract, check_executed, check_versions, verify

ONE = OpenOptions(threads=1)
GRAPHS = [("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32"), ("openvino", "int8")]


@pytest.fixture(scope="module", params=GRAPHS, ids=["-".join(graph) for graph in GRAPHS])
def artifact(
    request: pytest.FixtureRequest, small_model: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    target, precision = request.param
    if runtimes.installed(target) is None:
        pytest.skip(f"{target} isn't installed")
    options = {"data": small_data, "num_samples": 16, "recipe": "fast"} if precision == "int8" else {}
    return vitedge.export(small_model, target, precision, tmp_path_factory.mktemp("a") / "artifact", **options)


def verdicts(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.ok for check in checks}


def failing(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.ok is False]


def test_a_whole_artifact_passes_every_check(artifact: Artifact) -> None:
    assert verdicts(verify(artifact, ONE)) == dict.fromkeys(
        (
            "digests",
            "preprocessing",
            "versions",
            "contract in the graph file",
            "options",
            "golden logits",
            "executed precision",
        ),
        True,
    )


def test_a_flipped_bit_is_refused_on_opening(artifact: Artifact, tmp_path: Path) -> None:
    shutil.copytree(artifact.path, tmp_path / "a")
    graph = tmp_path / "a" / artifact.manifest.graph
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(ArtifactError, match=artifact.manifest.graph):
        Artifact.open(tmp_path / "a")


def test_changed_preprocessing_is_found_twice(artifact: Artifact, tmp_path: Path) -> None:
    contract = replace(artifact.manifest.preprocessing, interpolation="nearest")
    checks = verify(rewritten(artifact, tmp_path / "a", preprocessing=contract), ONE)
    assert failing(checks) == ["preprocessing", "contract in the graph file"]
    assert "golden/0" in checks[1].detail and "vitedge.preprocessing" in next(
        check.detail for check in checks if check.name == "contract in the graph file"
    )


def test_changed_classes_are_found_in_the_graph_file(artifact: Artifact, tmp_path: Path) -> None:
    classes = class_table(["bee", "ant", "cat", "dog", "eel"])
    assert failing(verify(rewritten(artifact, tmp_path / "a", classes=classes), ONE)) == ["contract in the graph file"]


def test_altered_logits_are_found(artifact: Artifact, tmp_path: Path) -> None:
    files = {name: (artifact.path / name).read_bytes() for name in artifact.manifest.files}
    files[GOLDEN_REFERENCE] = npy(np.roll(artifact.array(GOLDEN_REFERENCE), 1, axis=1))
    other = write_artifact(tmp_path / "a", artifact.manifest, files, overwrite=False, action="alter")
    assert failing(verify(other, ONE)) == ["golden logits"]


def test_plan_that_the_runtime_does_not_meet_is_found(artifact: Artifact, tmp_path: Path) -> None:
    layers = artifact.manifest.layers
    last = max(index for index, layer in enumerate(layers) if layer.kind == "linear")
    other = "fp32" if layers[last].precision == "int8" else "int8"
    wished = tuple(replace(layer, precision=other) if index == last else layer for index, layer in enumerate(layers))
    checks = verify(rewritten(artifact, tmp_path / "a", layers=wished), ONE)
    assert failing(checks) == ["executed precision"]
    assert f"{layers[last].name} in {layers[last].precision} instead of {other}" in checks[-1].detail


def test_runtime_that_is_not_here_names_the_extra(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = runtimes.part(artifact.manifest.target.runtime, "detect")
    monkeypatch.setattr(facts, "installed", lambda: None)
    with pytest.raises(NotInstalledError, match=re.escape(install_command(facts.EXTRA))):
        verify(artifact)


# --- artifacts for elsewhere -----------------------------------------------------------------------------------------


def test_artifact_for_another_processor_leaves_the_rest_for_the_device(tmp_path: Path) -> None:
    elsewhere = null_artifact(tmp_path / "a", target=replace(TARGET, arch="aarch64" if _x86() else "x86_64"))
    checks = verify(elsewhere)
    assert verdicts(checks[:2]) == {"digests": True, "preprocessing": True}
    assert checks[-1].ok is None and "run on the device: vitedge verify a" in checks[-1].detail
    assert not failing(checks)


def test_artifact_for_an_nvidia_gpu_is_checked_as_far_as_it_goes(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitedge.device import hardware

    monkeypatch.setattr(hardware, "gpus", lambda *_: [])
    artifact = vitedge.export(small_model, "tensorrt", "fp16", tmp_path / "a")
    checks = verify(artifact)
    assert verdicts(checks[:3]) == {"digests": True, "preprocessing": True, "contract in the graph file": True}
    assert checks[-1].ok is None and "no" in checks[-1].detail


def _x86() -> bool:
    import platform

    return platform.machine() == "x86_64"


# --- single checks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "ok"), [("1.23", True), ("1.23.2", True), ("1.9", False), ("1.31.1+build", True), ("2.0", True)]
)
def test_versions_are_compared_as_numbers(tmp_path: Path, running: str, ok: bool) -> None:
    artifact = null_artifact(tmp_path / "a", target=replace(load_target("onnxruntime"), runtime="null"))
    check = check_versions(artifact, running)
    assert check.ok is ok and "built with vitedge 0.1" in check.detail


def test_copies_of_the_contract(tmp_path: Path) -> None:
    artifact = null_artifact(tmp_path / "a")
    right = contract_metadata(artifact.manifest.preprocessing, artifact.manifest.classes)
    assert check_contract(artifact, {**right, "someone's": "own"}).ok is True
    assert check_contract(artifact, None).ok is None
    missing = {key: value for key, value in right.items() if key != "vitedge.classes"}
    assert check_contract(artifact, missing).ok is False


def test_golden_check_allows_three_times_what_export_saw(tmp_path: Path) -> None:
    exact = null_artifact(tmp_path / "a")
    reference = exact.array(GOLDEN_REFERENCE)
    for scale, recorded, ok in ((1.02, 0.01, True), (1.05, 0.01, False), (1.0, 0.0, True), (1.001, 0.0, False)):
        files = {name: (exact.path / name).read_bytes() for name in exact.manifest.files}
        files[GOLDEN_REFERENCE] = npy((reference * scale).astype(np.float32))
        manifest = replace(exact.manifest, golden=replace(exact.manifest.golden, deviation=recorded))
        path = tmp_path / f"{scale}-{recorded}"
        with open_session(write_artifact(path, manifest, files, overwrite=False, action="scale")) as session:
            assert golden_check(session).ok is ok, (scale, recorded)


def test_executed_precision_by_layer(artifact: Artifact) -> None:
    layers = artifact.manifest.layers[:2]
    first, second = (layer.name for layer in layers)
    planned = (replace(layers[0], precision="int8", macs=300), replace(layers[1], precision="fp32", macs=100))
    as_planned = [
        Executed(first, "Quantize", "fp32"),
        Executed(first, "Gemm", "int8"),
        Executed(second, "Gemm", "fp32"),
    ]
    assert unmet_layers(planned, as_planned) == []
    assert executed_fractions(planned, as_planned) == {"fp32": 0.25, "int8": 0.75}
    fell_back = [Executed(first, "Gemm", "fp32"), Executed(second, "Gemm", "bf16")]
    assert unmet_layers(planned, fell_back) == [f"{first} in fp32 instead of int8", f"{second} in bf16 instead of fp32"]
    assert executed_fractions(planned, fell_back) == {"bf16": 0.25, "fp32": 0.75}
    silent = [Executed(first, "Fused", ""), Executed(second, "Fused", "")]
    assert executed_types(planned, silent) == {first: "unknown", second: "unknown"}
    assert unmet_layers(planned, silent) == [f"{first} in unknown instead of int8"]  # int8 has to be proven
    assert executed_fractions((), []) is None


def test_nothing_planned_is_nothing_decided(tmp_path: Path) -> None:
    with open_session(null_artifact(tmp_path / "a")) as session:
        assert check_executed(session).ok is None
