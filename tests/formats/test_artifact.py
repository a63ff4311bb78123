"""Artifacts and model folders: reproducible, immutable, and refused when anything about them isn't what was written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.contract import artifacts
from tests.contract.conftest import NULL
from vitedge.core.files import sha256
from vitedge.core.schema import encode_json
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ArtifactError, ModelError, UsageError
from vitedge.formats.artifact import GOLDEN_INPUTS, GOLDEN_LOGITS, Artifact, Manifest, npy, write_artifact
from vitedge.formats.model_folder import Model, ModelRecord, Origin, class_table, contract_metadata, write_model
from vitedge.installation import upgrade_hint


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifacts.make(tmp_path_factory.mktemp("artifact") / "artifact", NULL, NULL.candidate[0])


@pytest.fixture
def copy(artifact: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact.path, tmp_path / "copy"))


def contents(artifact: Artifact) -> dict[str, bytes]:
    return {name: (artifact.path / name).read_bytes() for name in artifact.manifest.files}


def sign(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the manifest and write the digest that belongs to it, as somebody who knows the format would."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    data = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(data)
    (folder / "manifest.sha256").write_text(f"{sha256(data)}  manifest.json\n")


def refused(folder: Path) -> ArtifactError:
    with pytest.raises(ArtifactError) as raised:
        Artifact.open(folder)
    assert raised.value.exit_code == 3 and len(str(raised.value).splitlines()) == 3
    return raised.value


def test_what_was_written_is_opened(artifact: Artifact) -> None:
    opened = Artifact.open(str(artifact.path))
    assert opened.manifest == artifact.manifest and opened.digest == artifact.digest
    assert opened.digest == sha256((artifact.path / "manifest.json").read_bytes())
    assert opened.graph_path.is_file() and opened.bytes == 0
    inputs = opened.array(GOLDEN_INPUTS)
    assert inputs.dtype == np.uint8 and inputs.shape == (6, 32, 48, 3) and opened.array(GOLDEN_LOGITS).shape == (6, 7)
    on_disk = {path.relative_to(artifact.path).as_posix() for path in artifact.path.rglob("*") if path.is_file()}
    assert on_disk == {*artifact.manifest.files, "manifest.json", "manifest.sha256"}


def test_equal_contents_give_an_equal_digest_wherever_they_lie(artifact: Artifact, tmp_path: Path) -> None:
    files = dict(reversed(contents(artifact).items()))
    other = write_artifact(tmp_path / "elsewhere", artifact.manifest, files, overwrite=False, action="write it")
    assert other.digest == artifact.digest
    assert (other.path / "manifest.json").read_bytes() == (artifact.path / "manifest.json").read_bytes()
    assert str(tmp_path) not in (other.path / "manifest.json").read_text()
    changed = write_artifact(
        tmp_path / "changed", artifact.manifest, {**files, GOLDEN_LOGITS: npy(np.ones(3))}, overwrite=False, action="x"
    )
    assert changed.digest != artifact.digest


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_in_any_file_is_found_and_named(artifact: Artifact, copy: Path, data: st.DataObject) -> None:
    names = sorted({*artifact.manifest.files, "manifest.json", "manifest.sha256"} - {artifact.manifest.graph})  # empty
    name = data.draw(st.sampled_from(names))
    original = (artifact.path / name).read_bytes()
    place, bit = data.draw(st.integers(0, len(original) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(original)
    damaged[place] ^= 1 << bit
    (copy / name).write_bytes(damaged)
    try:
        assert name.removesuffix(".sha256").removesuffix(".json") in refused(copy).reason
    finally:
        (copy / name).write_bytes(original)


def test_missing_longer_shorter_and_replaced_files(artifact: Artifact, copy: Path) -> None:
    for name in artifact.manifest.files:
        path, original = copy / name, (copy / name).read_bytes()
        path.unlink()
        assert f"the file {name} is missing" in refused(copy).reason
        path.mkdir()
        assert f"the file {name} is missing" in refused(copy).reason
        path.rmdir()
        os.mkfifo(path)
        assert f"the file {name} is missing" in refused(copy).reason
        path.unlink()
        path.write_bytes(original + b"\0")
        assert f"the file {name} isn't what was written" in refused(copy).reason
        path.write_bytes(original)
    for name in ("manifest.json", "manifest.sha256"):
        kept = (copy / name).read_bytes()
        (copy / name).unlink()
        assert f"{name} can't be read: {os.strerror(errno.ENOENT)}" in refused(copy).reason
        (copy / name).write_bytes(kept)
    assert Artifact.open(copy).digest == artifact.digest


def test_links_are_refused_even_to_the_right_content(artifact: Artifact, copy: Path, tmp_path: Path) -> None:
    picture = artifact.manifest.golden.pictures[0]
    (copy / picture).unlink()
    (copy / picture).symlink_to(artifact.path / picture)
    assert f"the file {picture} is a link" in refused(copy).reason
    shutil.rmtree(copy / "golden")
    (copy / "golden").symlink_to(artifact.path / "golden")
    assert "is a link" in refused(copy).reason


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "golden/../../secret", "..", "/", "", ".", "x" * 5000, "a\0b", "\x1b[31m/x", "golden"],
)
def test_names_that_leave_the_folder_are_refused(name: str, copy: Path) -> None:
    (copy.parent / "secret").write_text("secret")
    sign(copy, lambda manifest: manifest["files"].update({name: sha256(b"secret")}))  # type: ignore[attr-defined]
    error = refused(copy)
    assert "\x1b" not in str(error) and re.search("leaves the folder|is missing|can't be read", error.reason)


def test_a_newer_artifact_says_which_vitedge_opens_it(copy: Path) -> None:
    sign(copy, lambda manifest: manifest.update(schema_version=4, vitedge_version="7.5", extra=[1]))
    error = refused(copy)
    assert "manifest.json has schema version 4; this vitedge reads up to 3" in error.reason
    assert error.hint == upgrade_hint("7.5")


def test_a_manifest_that_does_not_fit_its_files(copy: Path) -> None:
    kept = (copy / "manifest.json").read_bytes()
    for change, said in (
        (lambda manifest: manifest.update(graph="other.graph"), "manifest.json doesn't list other.graph"),
        (lambda manifest: manifest["files"].pop(GOLDEN_LOGITS), f"doesn't list {GOLDEN_LOGITS}"),
        (lambda manifest: manifest.update(colour="red"), "unknown key 'colour'"),
        (lambda manifest: manifest.pop("target"), "the key 'target' is missing"),
        (lambda manifest: manifest.update(batch="many"), " in [batch]"),
    ):
        (copy / "manifest.json").write_bytes(kept)
        sign(copy, change)
        assert said in refused(copy).reason


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", npy(np.zeros(3))[:-1], b"PK\x03\x04", npy(np.zeros(9))[:90]])
def test_arrays_that_are_none(content: bytes, artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / GOLDEN_LOGITS).write_bytes(content)
    with pytest.raises(ArtifactError, match=GOLDEN_LOGITS):
        Artifact(tmp_path, artifact.manifest).array(GOLDEN_LOGITS)


def test_arrays_hold_no_objects(artifact: Artifact, tmp_path: Path) -> None:
    """``.npy`` may carry a pickle, hence a program; it isn't loaded."""
    (tmp_path / "golden").mkdir()
    np.save(tmp_path / GOLDEN_LOGITS, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ArtifactError, match=GOLDEN_LOGITS):
        Artifact(tmp_path, artifact.manifest).array(GOLDEN_LOGITS)


def test_an_array_that_claims_terabytes(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    data = npy(np.zeros((1, 7))).replace(b"(1, 7)", b"(10**9, 7)").replace(b"(10**9, 7)", b"(99999999999, 7)")
    (tmp_path / GOLDEN_LOGITS).write_bytes(data)
    with pytest.raises(ArtifactError):
        Artifact(tmp_path, artifact.manifest).array(GOLDEN_LOGITS)


@pytest.mark.parametrize("name", ["nowhere", "x" * 5000, "file"])
def test_what_is_no_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for opener, verb in ((Artifact.open, "vitedge export"), (Model.open, "vitedge import")):
        with pytest.raises(UsageError, match="there is no such folder") as raised:
            opener(tmp_path / name)  # type: ignore[operator]
        assert verb in raised.value.hint


def test_a_folder_that_is_something_else(tmp_path: Path) -> None:
    assert "manifest.json can't be read" in refused(tmp_path).reason
    with pytest.raises(ModelError, match=r"model\.json can't be read"):
        Model.open(tmp_path)


def test_existing_artifacts_are_kept_or_replaced_whole(artifact: Artifact, copy: Path) -> None:
    files = contents(artifact)
    with pytest.raises(UsageError, match="already exists"):
        write_artifact(copy, artifact.manifest, files, overwrite=False, action="write it")
    (copy / "stray").write_text("left over")
    renamed = replace(artifact.manifest, name="another")
    assert write_artifact(copy, renamed, files, overwrite=True, action="write it").manifest.name == "another"
    assert not (copy / "stray").exists()


def test_the_cache_is_keyed_by_artifact_runtime_and_hardware(artifact: Artifact) -> None:
    here = artifact.cache("10.3", "sm87")
    assert here == artifact.cache("10.3", "sm87") and not here.exists()
    renamed = Artifact(artifact.path, replace(artifact.manifest, name="../../../../etc/\n; rm -rf"))
    others = [artifact.cache("10.4", "sm87"), artifact.cache("10.3", "sm86"), renamed.cache("10.3", "sm87")]
    assert len({here, *others}) == 4
    assert all(path.parent == here.parent and ".." not in path.parts for path in others)


# --- model folders ---------------------------------------------------------------------------------------------------

RECORD = ModelRecord(
    name="model",
    classes=class_table(["cat", "dog"], ["n01", None]),
    preprocessing=Preprocessing(size=(32, 32)),
    origin=Origin(kind="onnx", source="somewhere"),
)


def test_model_folders(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", RECORD, {"model.onnx": b"graph", "model.safetensors": b"weights"})
    again = write_model(tmp_path / "again", RECORD, {"model.safetensors": b"weights", "model.onnx": b"graph"})
    assert model.digest == again.digest and model.onnx_path.read_bytes() == b"graph"
    assert Model.open(model.path).record == model.record
    (again.path / "model.onnx").write_bytes(b"grapf")
    with pytest.raises(ModelError, match=r"the file model\.onnx isn't what was written"):
        Model.open(again.path)
    with pytest.raises(ModelError, match=r"model\.json doesn't list model\.onnx"):
        write_model(tmp_path / "empty", RECORD, {})


def test_a_newer_model_says_which_vitedge_opens_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", RECORD, {"model.onnx": b"graph"})
    data = json.loads(encode_json(model.record))
    (model.path / "model.json").write_text(
        json.dumps({**data, "schema_version": 9, "vitedge_version": "3.0", "new": 1})
    )
    with pytest.raises(ModelError, match="has schema version 9") as raised:
        Model.open(model.path)
    assert raised.value.hint == upgrade_hint("3.0")


def test_classes_are_numbered_from_zero(tmp_path: Path) -> None:
    for wrong in ((), RECORD.classes[1:], RECORD.classes[::-1]):
        with pytest.raises(ValueError, match="numbered"):
            replace(RECORD, classes=wrong)
    model = write_model(tmp_path / "model", RECORD, {"model.onnx": b""})
    path = model.path / "model.json"
    path.write_text(path.read_text().replace('"id": 1', '"id": 7'))
    with pytest.raises(ModelError, match="numbered"):
        Model.open(model.path)


def test_the_contracts_copy() -> None:
    told = contract_metadata(RECORD.preprocessing, RECORD.classes)
    assert set(told) == {"vitedge.preprocessing", "vitedge.classes", "vitedge.schema_version"}
    assert json.loads(told["vitedge.classes"]) == ["cat", "dog"]
    assert json.loads(told["vitedge.preprocessing"])["size"] == [32, 32]


def test_manifests_are_records(artifact: Artifact) -> None:
    assert isinstance(artifact.manifest, Manifest)
    with pytest.raises(AttributeError):
        artifact.manifest.batch = 2  # type: ignore[misc]
