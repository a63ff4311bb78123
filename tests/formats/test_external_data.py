"""Tensors outside an ONNX file are found wherever they may stand, and an artifact that has any is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

import vitedge
from tests.cli.command import fails
from vitedge.core.files import sha256
from vitedge.formats.artifact import MANIFEST, MANIFEST_DIGEST, Artifact
from vitedge.formats.external_data import external_tensor


def tensor(name: str, location: str | None) -> TensorProto:
    made = numpy_helper.from_array(np.ones(4, np.float32), name)
    if location is not None:
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value=location)
    return made


def initializer(made: TensorProto) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([], "g", [], [], initializer=[made]))


def constant(made: TensorProto) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([helper.make_node("Constant", [], ["c"], value=made)], "g", [], []))


def list_of_tensors(made: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Odd", [], ["c"], values=[tensor("inside", None), made])
    return helper.make_model(helper.make_graph([node], "g", [], []))


def branch(made: TensorProto) -> onnx.ModelProto:
    inner = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=constant(made).graph)], "inner", [], [])
    return helper.make_model(helper.make_graph([helper.make_node("If", ["x"], ["y"], else_branch=inner)], "g", [], []))


def sparse(made: TensorProto) -> onnx.ModelProto:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    model.graph.sparse_initializer.add().values.CopyFrom(made)
    return model


def function(made: TensorProto) -> onnx.ModelProto:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    model.functions.add(name="f", domain="d").node.extend(constant(made).graph.node)
    return model


def training(made: TensorProto) -> onnx.ModelProto:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    model.training_info.add().algorithm.CopyFrom(constant(made).graph)
    return model


PLACES = [initializer, constant, list_of_tensors, branch, sparse, function, training]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "a\0b", ""])
def test_a_tensor_outside_is_found(place: Callable[[TensorProto], onnx.ModelProto], location: str) -> None:
    assert external_tensor(memoryview(place(tensor("w", location)).SerializeToString())) == "w"
    assert external_tensor(memoryview(place(tensor("w", None)).SerializeToString())) is None


@pytest.mark.parametrize("change", ["location alone", "entries alone"])
def test_half_a_reference_is_a_reference(change: str) -> None:
    made = tensor("w", "weights.bin")
    made.ClearField("external_data" if change == "location alone" else "data_location")
    assert external_tensor(memoryview(initializer(made).SerializeToString())) == "w"


def test_what_onnx_reads_is_what_is_searched() -> None:
    """Of damaged messages: whatever onnx takes for a model with a tensor outside is found."""
    draw = random.Random(5)
    read = 0
    for seed in range(3000):
        data = bytearray(PLACES[seed % len(PLACES)](tensor("w", "weights.bin")).SerializeToString())
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            model = onnx.ModelProto.FromString(bytes(data))
        except DecodeError:
            model = None
        try:
            external = external_tensor(memoryview(data)) is not None
        except ValueError:
            continue  # a group, which no ONNX file has; its artifact is refused by the runtime or read without it
        if model is not None:
            read += 1
            assert external or "EXTERNAL" not in str(model)
    assert read > 500


@pytest.fixture(scope="module")
def artifact(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("external") / "artifact"
    return vitedge.export(small_model, target="onnxruntime", precision="fp32", out=out).path


def with_external_data(folder: Path, location: str) -> None:
    """Move the largest tensor to a file, and make every digest right again."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    largest = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    (folder / "weights.bin").write_bytes(largest.raw_data)
    largest.ClearField("raw_data")
    largest.data_location = TensorProto.EXTERNAL
    largest.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["files"]["model.onnx"] = sha256((folder / "model.onnx").read_bytes())
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / MANIFEST_DIGEST).write_text(f"{sha256((folder / MANIFEST).read_bytes())}  {MANIFEST}\n")


@pytest.mark.parametrize("kind", ["unlisted", "listed", "hard link", "NUL"])
def test_an_artifact_whose_graph_names_files_is_refused(kind: str, artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    with_external_data(copy, "weights.bin\0x" if kind == "NUL" else "weights.bin")
    if kind == "hard link":
        (copy / "weights.bin").rename(tmp_path / "secret")
        os.link(tmp_path / "secret", copy / "weights.bin")
    if kind == "listed":
        manifest = json.loads((copy / MANIFEST).read_bytes())
        manifest["files"]["weights.bin"] = sha256((copy / "weights.bin").read_bytes())
        (copy / MANIFEST).write_text(json.dumps(manifest))
        (copy / MANIFEST_DIGEST).write_text(f"{sha256((copy / MANIFEST).read_bytes())}  {MANIFEST}\n")
    picture = next((copy / "golden").glob("*.png"))
    _, reason, _ = fails(3, "classify", copy, picture)
    assert "model.onnx keeps the tensor " in reason and "in another file" in reason


@pytest.mark.parametrize("name", [MANIFEST, MANIFEST_DIGEST])
def test_a_manifest_that_is_a_link_is_refused(name: str, artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    (copy / name).unlink()
    (copy / name).symlink_to(artifact / name)
    assert fails(3, "verify", copy)[1] == f"{name} can't be read: it's a link"


def test_a_manifest_that_is_a_pipe_is_refused(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    (copy / MANIFEST).unlink()
    os.mkfifo(copy / MANIFEST)
    assert fails(3, "verify", copy)[1] == f"{MANIFEST} can't be read: it isn't a file"


def test_a_manifest_of_a_terabyte_is_refused_unread(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    os.truncate(copy / MANIFEST, 1 << 40)
    assert fails(3, "verify", copy)[1] == f"{MANIFEST} can't be read: it's larger than 256 MiB"


def test_a_model_whose_record_is_a_link_is_refused(small_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model, model)
    (model / "model.json").unlink()
    (model / "model.json").symlink_to(small_model / "model.json")
    command = ["export", model, "--target", "onnxruntime", "--precision", "fp32", "--out", tmp_path / "a"]
    assert fails(3, *command)[1] == "model.json can't be read: it's a link"


def test_a_sound_artifact_opens(artifact: Path) -> None:
    assert Artifact.open(artifact).manifest.graph == "model.onnx"
