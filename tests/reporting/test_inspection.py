"""What inspect says of models, artifacts, results and ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from tests.reporting import results
from vitedge.core.schema import encode_json
from vitedge.data.golden import golden_pictures
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ArtifactError, ModelError, UsageError
from vitedge.formats.architecture import BlockWidths, uneven
from vitedge.formats.artifact import Artifact, Golden, LayerPlan, Manifest, npy, write_artifact
from vitedge.formats.model_folder import Model, write_model
from vitedge.formats.result import write_result
from vitedge.formats.target import load_target
from vitedge.reporting.inspection import contract_in_words, inspect, layers


def artifact(model: Path, out: Path) -> Artifact:
    """An artifact as export writes it, with a graph that nobody opens."""
    record = Model.open(model).record
    pictures = golden_pictures()
    plan = [LayerPlan(name=f"blocks.{n}.attn.qkv", kind="linear", precision="int8", macs=300) for n in range(2)]
    head = LayerPlan(name="head", kind="linear", precision="fp32", macs=400, reason="kept in float")
    manifest = Manifest(
        name="small-onnxruntime-int8",
        target=load_target("onnxruntime"),
        precision="int8",
        variant="linears-int8",
        batch=1,
        graph="model.onnx",
        classes=record.classes,
        preprocessing=record.preprocessing,
        layers=(*plan, head),
        precision_obtained={"int8": 0.6, "fp32": 0.4},
        runtime_options={"intra_op": 2},
        built_with={"onnx": "1.23.2"},
        model_digest="m" * 64,
        origin=record.origin,
        golden=Golden(pictures=tuple(pictures), executed_by="onnxruntime 1.31.1", deviation=0.0031),
        candidates=(),
        licence="CC0-1.0",
        architecture=uneven(record.architecture),
    )
    arrays = {f"golden/{name}.npy": npy(np.zeros((6, 5), np.float32)) for name in ("inputs", "logits", "reference")}
    files = {"model.onnx": b"graph", **pictures, **arrays}
    return write_artifact(out, manifest, files, overwrite=False, action="write it")


def test_a_model_folder(small_model: Path) -> None:
    found = inspect(small_model)
    assert found.kind == "model" and found.facts["licence"] == "CC0-1.0"
    assert found.facts["classes"] == "5: ant, bee, cat, dog, eel"
    assert found.facts["input"] == "uint8 RGB [batch, 32, 32, 3]"
    assert found.facts["architecture"].startswith("2 blocks of 64 channels, 2 heads, 17 tokens")
    assert found.facts["digest"] == Model.open(small_model).digest
    assert found.record["architecture"]["depth"] == 2
    assert encode_json(found)


def test_widths_of_each_block_are_one_table(small_model: Path, tmp_path: Path) -> None:
    model = Model.open(small_model)
    assert "Widths" not in [section.title for section in inspect(small_model).sections]
    assert model.record.architecture is not None
    blocks = (
        BlockWidths(heads=3, query_key=24, value=40, mlp_hidden=0, tokens=9),
        BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=200),
    )
    record = replace(model.record, architecture=replace(model.record.architecture, blocks=blocks))
    write_model(tmp_path / "narrow", record, {"model.onnx": b"graph"})
    found = inspect(tmp_path / "narrow")
    assert found.facts["architecture"].startswith("2 blocks of 64 channels, widths of their own, 17 tokens")
    table = next(section for section in found.sections if section.title == "Widths")
    assert len(table.columns) == 7
    assert [row[:6] for row in table.rows] == [("0", "3", "24", "40", "–", "17"), ("1", "–", "–", "–", "200", "9")]
    assert all(row[6].endswith("%") for row in table.rows)
    made = artifact(tmp_path / "narrow", tmp_path / "artifact")
    assert made.manifest.schema_version == 3
    assert table in inspect(made.path).sections


def test_an_artifact(small_model: Path, tmp_path: Path) -> None:
    made = artifact(small_model, tmp_path / "artifact")
    found = inspect(made.path)
    assert found.facts["precision"] == "int8 as linears-int8, MACs: 60 % int8, 40 % fp32"
    assert found.facts["digest"] == made.digest and found.facts["built with"] == "onnx 1.23.2"
    sections = {section.title: section for section in found.sections}
    assert sections["Precision planned"].rows == (
        ("blocks.*.attn.qkv", "2", "int8", "60.0%", ""),
        ("head", "1", "fp32", "40.0%", "kept in float"),
    )
    assert ("model.onnx", "5", made.manifest.files["model.onnx"]) in sections["Files"].rows
    each = {section.title: section for section in inspect(made.path, everything=True).sections}
    assert [row[0] for row in each["Precision planned"].rows] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv", "head"]


def test_a_damaged_artifact_is_refused_by_its_file(small_model: Path, tmp_path: Path) -> None:
    made = artifact(small_model, tmp_path / "artifact")
    (made.path / "model.onnx").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        inspect(made.path)


def test_a_result(tmp_path: Path) -> None:
    write_result(results.demo(), tmp_path / "result.json")
    for path in (tmp_path, tmp_path / "result.json"):
        found = inspect(path)
        assert found.kind == "result" and found.facts["images"] == "600 of cifar10-held-out.zip, 10 classes"
        (section,) = found.sections
        assert section.rows[3][:4] == ("cifar-vit-openvino-int8", "800", "600", "3")


def test_an_onnx_file(small_model: Path) -> None:
    found = inspect(small_model / "model.onnx")
    sections = {section.title: section for section in found.sections}
    assert sections["Inputs and outputs"].rows == (
        ("inputs", "image", "uint8", "[N, 32, 32, 3]"),
        ("outputs", "logits", "float32", "[N, 5]"),
    )
    assert ("LayerNormalization", "5") in sections["Operators"].rows
    assert found.facts["linear layers"] == "10" and found.record["opsets"] == {"ai.onnx": 20}
    assert "quantized" not in found.facts


def test_a_quantized_onnx_file(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    graph = helper.make_graph([node], "graph", [value], [value])
    onnx.save(helper.make_model(graph, producer_name="onnx.quantize"), tmp_path / "x.onnx")
    assert "by ONNX Runtime: DynamicQuantizeLinear ×1" in inspect(tmp_path / "x.onnx").facts["quantized"]


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x08\xff" * 40)
    with pytest.raises(ModelError, match="not an ONNX model"):
        inspect(tmp_path / "x.onnx")


def test_what_is_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such path"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="a result, a folder of engines nor an ONNX file"):
        inspect(tmp_path)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ArtifactError, match="isn't a valid record"):
        inspect(tmp_path / "other.json")


def test_long_tables_are_cut_unless_everything_is_asked_for(small_model: Path, tmp_path: Path) -> None:
    made = artifact(small_model, tmp_path / "artifact")
    from vitedge.formats.model_folder import class_table

    many = replace(made.manifest, classes=class_table([f"class {number}" for number in range(100)]))
    files = {name: (made.path / name).read_bytes() for name in made.manifest.files}
    path = write_artifact(tmp_path / "many", many, files, overwrite=False, action="").path
    tables = {section.title: section for section in inspect(path).sections}
    assert len(tables["Classes"].rows) == 25 and tables["Classes"].rows[-1] == ("…", "76 more", "")
    assert len({section.title: section for section in inspect(path, everything=True).sections}["Classes"].rows) == 100


@pytest.mark.parametrize(
    ("contract", "expected"),
    [
        (
            Preprocessing(size=(224, 224), crop_fraction=0.875),
            "resize it (bicubic): the shortest side becomes 256 pixels | cut the central 224×224 pixels",
        ),
        (
            Preprocessing(size=(32, 32), resize="squash", antialias=False, interpolation="bilinear"),
            "resize it (bilinear without antialias): it becomes 32×32 pixels, whatever its shape",
        ),
        (
            Preprocessing(size=(64, 96), resize="pad", fill=(1, 2, 3)),
            "resize it (bicubic): it fits into 64×96 pixels, the rest is filled with (1, 2, 3)",
        ),
    ],
)
def test_the_contract_in_words(contract: Preprocessing, expected: str) -> None:
    assert " | ".join(contract_in_words(contract)[2:-2]) == expected


def test_the_graph_s_part_of_the_contract_in_words() -> None:
    contract = Preprocessing(size=(8, 8), channel_order="bgr", activation="sigmoid", exif_orientation=False)
    steps = contract_in_words(contract)
    assert steps[0] == "leave EXIF's orientation aside" and steps[-1] == "sigmoid of each logit"
    assert steps[-2].startswith("in the graph: swap to BGR, multiply by 0.00392157, subtract (0.485, 0.456, 0.406)")


def test_layers_of_one_role_with_two_precisions_are_two_lines() -> None:
    plan = [
        LayerPlan(name=f"blocks.{n}.mlp.fc1", kind="linear", precision=precision, macs=1)
        for n, precision in enumerate(("int8", "fp32", "int8"))
    ]
    assert [row[:3] for row in layers(plan).rows] == [
        ("blocks.*.mlp.fc1", "2", "int8"),
        ("blocks.*.mlp.fc1", "1", "fp32"),
    ]
