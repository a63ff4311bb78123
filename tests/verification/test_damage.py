"""Verify finds damage that leaves an INT8 artifact's top-1 as it was, and lets sound kernels pass."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from tests.contract.elsewhere import artifacts_for
from tests.verification.damaged import blocks_in_4_bits, constants, damaged, scales_times
from vitedge import runtimes
from vitedge.formats.artifact import GOLDEN_INPUTS, GOLDEN_LOGITS, GOLDEN_REFERENCE, Artifact
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.session import open_session
from vitedge.verification.golden import golden_check

ONE = OpenOptions(threads=1)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def embedded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The embedded model in INT8, as the demo has it."""
    if runtimes.installed(request.param) is None:
        pytest.skip(f"{request.param} isn't installed")
    return Artifact.open(artifacts_for(request.param, tmp_path_factory)[1])


def test_the_tolerance_was_measured(embedded: Artifact) -> None:
    tolerance = embedded.manifest.golden.tolerance
    assert tolerance is not None and len(tolerance.measured) == 4 and "interpreted" in tolerance.measured
    assert 0 < max(tolerance.measured.values()) <= tolerance.allowed / 2 and tolerance.allowed < 0.02
    views = 4 * len(embedded.array(GOLDEN_INPUTS))
    assert len(embedded.array(GOLDEN_LOGITS)) == len(embedded.array(GOLDEN_REFERENCE)) == views


def test_weights_in_4_bits_and_scales_off_by_a_tenth_are_found(embedded: Artifact, tmp_path: Path) -> None:
    named, passed, top1_alone = constants(embedded), [], 0
    damages = list(itertools.chain(blocks_in_4_bits(named), scales_times(1.1, named)))
    for name, changes in damages:
        with open_session(damaged(embedded, tmp_path / name.replace(" ", "-"), changes), ONE) as session:
            check = golden_check(session)
        passed += [f"{name}: {check.detail}"] * (check.ok is not False)
        top1_alone += "another top-1" not in check.detail
    assert not passed
    assert top1_alone > len(damages) / 2, "the labels would have told most of it"


@pytest.mark.parametrize("options", [{"threads": 2}, {"options": "otherwise"}], ids=["two threads", "unfused"])
def test_sound_runs_of_other_kernels_pass(embedded: Artifact, options: dict[str, object]) -> None:
    if "threads" in options and embedded.manifest.target.runtime == "openvino" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("OpenVINO takes no more threads than there are cores, and this worker has one")
    unfused = {"onnxruntime": {"graph_optimization_level": "none"}, "openvino": {"EXECUTION_MODE_HINT": "ACCURACY"}}
    how = OpenOptions(threads=1, options=unfused[embedded.manifest.target.runtime]) if "options" in options else None
    with open_session(embedded, how or OpenOptions(threads=2)) as session:
        check = golden_check(session)
    assert check.ok, check.detail


def test_an_artifact_without_a_tolerance_is_held_against_float32_alone(embedded: Artifact, tmp_path: Path) -> None:
    """As version 0.1.0 wrote them: what it doesn't have isn't made up."""
    from vitedge.formats.artifact import write_artifact

    files = {name: (embedded.path / name).read_bytes() for name in embedded.manifest.files}
    golden = replace(embedded.manifest.golden, tolerance=None)
    manifest = replace(embedded.manifest, golden=golden, schema_version=1)
    older = write_artifact(tmp_path / "older", manifest, files, overwrite=False, action="write")
    assert b"tolerance" not in (older.path / "manifest.json").read_bytes()
    with open_session(older, ONE) as session:
        check = golden_check(session)
    assert check.ok and "from the export" not in check.detail and "from float32" in check.detail


def test_logits_of_another_artifact_are_found(embedded: Artifact, tmp_path: Path) -> None:
    from vitedge.formats.artifact import npy, write_artifact

    files = {name: (embedded.path / name).read_bytes() for name in embedded.manifest.files}
    exported = embedded.array(GOLDEN_LOGITS)
    files[GOLDEN_LOGITS] = npy((exported * 1.05).astype(np.float32))
    other = write_artifact(tmp_path / "other", embedded.manifest, files, overwrite=False, action="write")
    with open_session(other, ONE) as session:
        check = golden_check(session)
    assert check.ok is False and "from the export" in check.detail and "copy the artifact again" in check.detail
