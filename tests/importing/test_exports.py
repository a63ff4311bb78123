"""ONNX files as exporters write them: their normalisation, layout and class names from what lies beside the tensors.

The graphs are small; interface, metadata and neighbours are those of Ultralytics, Azure Custom Vision, Teachable
Machine (through tf2onnx) and torch.onnx. Each is compared with the file itself on values prepared as its exporter's
code does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageOps

from tests.graph.test_author import run
from tests.importing.references import grey_levels, photographs, prepared
from tests.importing.test_published_preprocessing import options_in
from vitedge.errors import ModelError, UsageError
from vitedge.importing import declared
from vitedge.importing.onnx_file import convert
from vitedge.importing.proof import Imported

NAMES = ("cat", "dog", "bird")
SIDE = 32
PICTURE = photographs()["3x4"]  # 128×96
SQUARE = photographs()["7x7"]
Values = NDArray[np.float32]


def weight(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(shape)).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return numpy_helper.from_array(values.astype(np.float32), name)


def network(path: Path, source: str, output: str, shape: list[Any], opset: int, tail: str = "Softmax") -> Path:
    """Convolution, average, linear layer; ``tail``: "Softmax", "" for logits, or "ZipMap" for a map of class names."""
    channels_last = shape[-1] == 3
    nodes = [helper.make_node("Transpose", [source], ["nchw"], perm=[0, 3, 1, 2])] if channels_last else []
    nodes += [
        helper.make_node("Conv", ["nchw" if channels_last else source, "kernel"], ["features"], strides=[4, 4]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], [output if not tail else "scores"]),
    ]
    weights, outputs = [weight("kernel", 8, 3, 4, 4), weight("head", 8, 3)], [(output, TensorProto.FLOAT)]
    domains = [helper.make_opsetid("", opset)]
    if tail:
        nodes.append(helper.make_node("Softmax", ["scores"], [output if tail == "Softmax" else "probs"], axis=1))
    values = [helper.make_tensor_value_info(name, kind, [shape[0], 3]) for name, kind in outputs]
    if tail == "ZipMap":
        weights.append(helper.make_tensor("names", TensorProto.STRING, [1, 3], [name.encode() for name in NAMES]))
        nodes += [
            helper.make_node("ArgMax", ["probs"], ["best"], axis=1, keepdims=0),
            helper.make_node("ArrayFeatureExtractor", ["names", "best"], ["classLabel"], domain="ai.onnx.ml"),
            helper.make_node("ZipMap", ["probs"], [output], domain="ai.onnx.ml", classlabels_strings=NAMES),
        ]
        domains.append(helper.make_opsetid("ai.onnx.ml", 1))
        scores = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        values = [
            helper.make_tensor_value_info("classLabel", TensorProto.STRING, [1, "N"]),
            helper.make_value_info(output, helper.make_sequence_type_proto(scores)),
        ]
    inputs = [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, values, weights), opset_imports=domains)
    model.ir_version, model.producer_name = 7, "tf2onnx" if channels_last else "pytorch"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def write_metadata(path: Path, **entries: object) -> Path:
    model = onnx.load(path)
    helper.set_model_props(model, {key.replace("__", "."): str(value) for key, value in entries.items()})
    path.write_bytes(model.SerializeToString())
    return path


def ultralytics(path: Path, side: Any = SIDE, **changes: object) -> Path:
    network(path, "images", "output0", [1, 3, side, side], 17)
    entries = {
        "description": "Ultralytics YOLO11n-cls model trained on pets", "author": "Ultralytics",
        "date": "2025-06-01T12:00:00", "version": "8.3.40", "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com", "stride": 1, "task": "classify", "batch": 1, "imgsz": [SIDE, SIDE],
        "names": dict(enumerate(NAMES)), "args": {"batch": 1, "half": False}, "channels": 3,
    }  # fmt: skip
    return write_metadata(path, **{**entries, **changes})


def custom_vision(path: Path, **entries: object) -> Path:
    network(path, "data", "loss", ["None", 3, SIDE, SIDE], 9, "ZipMap")
    return write_metadata(path, **entries)


def teachable_machine(path: Path) -> Path:
    network(path, "sequential_1_input", "sequential_3", ["unk__1", SIDE, SIDE, 3], 13)
    (path.parent / "labels.txt").write_text("".join(f"{index} {name}\n" for index, name in enumerate(NAMES)))
    return path


def hub_classifier(path: Path) -> Path:
    return network(path, "input.1", "495", [1, 3, SIDE, SIDE], 14, "")


def as_ultralytics(picture: Image.Image) -> Values:
    """torchvision's Resize(shortest side, bilinear), CenterCrop, ToTensor."""
    ratio = SIDE / min(picture.size)
    resized = picture.resize((int(picture.width * ratio), int(picture.height * ratio)), Image.Resampling.BILINEAR)
    left, top = round((resized.width - SIDE) / 2), round((resized.height - SIDE) / 2)
    return nchw(np.asarray(resized.crop((left, top, left + SIDE, top + SIDE))) / 255)


def as_custom_vision(bgr: bool, full_range: bool) -> Callable[[Image.Image], Values]:
    """Its sample code: resize as Pillow does by default; BGR and 0 to 255 where the metadata says so."""

    def prepare(picture: Image.Image) -> Values:
        values = np.asarray(picture.resize((SIDE, SIDE)), np.float64)
        return nchw((values[..., ::-1] if bgr else values) / (1 if full_range else 255))

    return prepare


def as_teachable_machine(picture: Image.Image) -> Values:
    """Its sample code: ImageOps.fit with Lanczos, then x / 127.5 - 1, channels last."""
    fitted = ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.LANCZOS)
    return (np.asarray(fitted, np.float32) / 127.5 - 1)[None]


def nchw(values: NDArray[Any]) -> Values:
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None].astype(np.float32))


def theirs(path: Path, values: Values) -> NDArray[np.float64]:
    """The file's own scores of one prepared picture, in the order of NAMES; softmaxed where they are logits."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores = session.run(None, {session.get_inputs()[0].name: values})[-1]
    if isinstance(scores, list):
        return np.asarray([scores[0][name] for name in NAMES])
    row = np.asarray(scores[0], np.float64)
    return row if row.min() >= 0 and abs(row.sum() - 1) < 1e-3 else np.exp(row) / np.exp(row).sum()


def compare(imported: Imported, path: Path, prepare: Callable[[Image.Image], Values], picture: Image.Image) -> None:
    """Prepared values within a grey level of the exporter's, and scores that follow from them."""
    contract, values = imported.preprocessing, prepare(picture)
    mine = prepared(contract, picture)
    if contract.channel_order == "bgr":
        swapped = contract.apply(picture)[..., ::-1] * contract.rescale
        mine = (swapped - np.asarray(contract.mean)) / np.asarray(contract.std)
    rows = values[0].transpose(1, 2, 0) if values.shape[1] == 3 else values[0]
    assert grey_levels(mine - rows, contract).max() <= 1.0001
    np.testing.assert_allclose(ours(imported, picture), theirs(path, values), atol=2e-3)


def ours(imported: Imported, picture: Image.Image) -> NDArray[np.float64]:
    """The imported model's probabilities of a picture, from the picture on."""
    graph = onnx.load_model_from_string(imported.files["model.onnx"])
    logits = run(graph, imported.preprocessing.apply(picture)[None])
    return imported.preprocessing.probabilities(logits)[0].astype(np.float64)


def imported_from(path: Path, *, named: bool = False, **options: Any) -> Imported:
    return convert(path, options, None, "test", named=named)


def classes(imported: Imported) -> list[str]:
    return [label.name for label in imported.classes or ()]


def test_ultralytics(tmp_path: Path) -> None:
    path = ultralytics(tmp_path / "yolo11n-cls.onnx")
    imported = imported_from(path)
    assert classes(imported) == list(NAMES) and imported.licence == "AGPL-3.0"
    compare(imported, path, as_ultralytics, PICTURE)
    taken = imported.details["preprocessing_defaults"]
    assert taken["from"] == "Ultralytics" and taken["interpolation"] == "bilinear" and "size" not in taken
    given = imported_from(path, interpolation="bicubic", mean=(0.5, 0.5, 0.5))
    assert (given.preprocessing.interpolation, given.preprocessing.mean) == ("bicubic", (0.5, 0.5, 0.5))
    assert "mean" not in given.details["preprocessing_defaults"]


def test_ultralytics_with_an_open_size(tmp_path: Path) -> None:
    path = ultralytics(tmp_path / "yolo.onnx", side="height", imgsz=[48, SIDE])
    fields = declared.read_declared(path, onnx.load(path), (), "test").fields(onnx.load(path))
    assert fields["size"] == (48, SIDE) and fields["resize"] == "squash"


@pytest.mark.parametrize(
    ("entries", "bgr", "full_range"),
    [
        ({"Image__BitmapPixelFormat": "Bgr8", "Image__NominalPixelRange": "NominalRange_0_255"}, True, True),
        ({"Image__BitmapPixelFormat": "Rgb8", "Image__NominalPixelRange": "Normalized_0_1"}, False, False),
    ],
)
def test_custom_vision(tmp_path: Path, entries: dict[str, str], bgr: bool, full_range: bool) -> None:
    path = custom_vision(tmp_path / "model.onnx", Image__ColorSpaceGamma="SRGB", **entries)
    imported = imported_from(path)
    assert classes(imported) == list(NAMES)
    compare(imported, path, as_custom_vision(bgr, full_range), PICTURE)
    assert imported.details["preprocessing_defaults"] == {
        "from": "Custom Vision's sample code", "resize": "squash", "interpolation": "bicubic", "crop_fraction": 1.0,
    }  # fmt: skip


def test_older_custom_vision_is_asked_for(tmp_path: Path) -> None:
    """Without metadata nothing tells; the refusal has the values of these exports, and they work."""
    path = custom_vision(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="--mean, --std is missing") as refusal:
        imported_from(path)
    answer = options_in(refusal.value.hint.split("Custom Vision:")[1])
    imported = imported_from(path, **{**answer, "rescale": float(answer["rescale"])}, resize="squash")
    compare(imported, path, as_custom_vision(bgr=True, full_range=True), PICTURE)


def test_files_beside_custom_visions_model(tmp_path: Path) -> None:
    path = network(tmp_path / "model.onnx", "data", "model_output", ["N", 3, SIDE, SIDE], 12)
    properties = {
        "CustomVision.Postprocess.Method": "ClassificationMultiClass", "CustomVision.Preprocess.CropHeight": "32",
        "CustomVision.Preprocess.CropMethod": "OneCropCenter", "CustomVision.Preprocess.CropWidth": "32",
        "CustomVision.Preprocess.NormalizeMean": "[0.5, 0.25, 0.0]",
        "CustomVision.Preprocess.NormalizeStd": "[0.5, 0.5, 0.25]",
        "CustomVision.Preprocess.ResizeMethod": "ByShorterSide", "CustomVision.Preprocess.TargetHeight": "40",
        "Image.BitmapPixelFormat": "Rgb8", "Image.ColorSpaceGamma": "SRGB", "Image.NominalPixelRange": "Normalized_0_1",
    }  # fmt: skip
    (tmp_path / "metadata_properties.json").write_text(json.dumps(properties))
    manifest = {"DomainType": "Classification", "ModelFileName": "model.onnx", "LabelFileName": "classes.txt"}
    (tmp_path / "cvexport.manifest").write_text(json.dumps(manifest))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    found = declared.read_declared(path, onnx.load(path), (), "test")
    fields = found.fields(onnx.load(path))
    assert found.names == tmp_path / "classes.txt" and (fields["mean"], fields["std"]) == (
        (0.5, 0.25, 0.0),
        (0.5, 0.5, 0.25),
    )
    assert (fields["resize"], fields["crop_fraction"], fields["size"]) == ("shortest", 0.8, (SIDE, SIDE))
    network(tmp_path / "other.onnx", "data", "out", ["N", 3, SIDE, SIDE], 12)  # the files may be either's
    found = declared.read_declared(path, onnx.load(path), (), "test")
    assert found.names == () and "mean" not in found.fields(onnx.load(path))


def test_teachable_machine(tmp_path: Path) -> None:
    """The file doesn't say its normalisation: the refusal has Teachable Machine's, and it works; names come along."""
    path = teachable_machine(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="--mean, --std is missing") as refusal:
        imported_from(path)
    answer = options_in(refusal.value.hint.split("Teachable Machine:")[1])
    imported = imported_from(path, **answer)
    assert classes(imported) == list(NAMES) and imported.details["class_names_from"] == "labels.txt"
    compare(imported, path, as_teachable_machine, SQUARE)  # of others ImageOps.fit cuts fractions of pixels


def test_a_classifier_of_torch_onnx(tmp_path: Path) -> None:
    path = hub_classifier(tmp_path / "resnet18.onnx")
    with pytest.raises(UsageError, match="--mean, --std is missing") as refusal:
        imported_from(path)
    imported = imported_from(path, **options_in(refusal.value.hint))
    assert imported.classes is None
    assert imported.details["preprocessing_defaults"] == {
        "from": "vitedge", "resize": "shortest", "interpolation": "bicubic", "crop_fraction": 1.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "at_0", "at_255"),
    [
        ("NominalRange_0_255", 0, 255), ("Normalized_0_1", 0, 1), ("normalized_1_1", -1, 1),
        ("NominalRange_16_235", 16, 235),
    ],
)  # fmt: skip
def test_pixel_ranges(tmp_path: Path, name: str, at_0: float, at_255: float) -> None:
    path = write_metadata(hub_classifier(tmp_path / "m.onnx"), Image__NominalPixelRange=name)
    said = declared.read_declared(path, onnx.load(path), (), "test").said
    values = [(pixel * said["rescale"] - np.asarray(said["mean"])) / np.asarray(said["std"]) for pixel in (0, 255)]
    np.testing.assert_allclose(values, [[at_0] * 3, [at_255] * 3], atol=1e-9)


def other_domain(path: Path) -> Path:
    (path.parent / "cvexport.manifest").write_text(json.dumps({"DomainType": "ObjectDetection"}))
    return hub_classifier(path)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: ultralytics(path, task="detect"), "says task 'detect'; a classifier is expected"),
        (
            lambda path: custom_vision(
                path, Image__BitmapPixelFormat="Rgb8", CustomVision__Postprocess__Method="ClassificationMultiLabel"
            ),
            "says ClassificationMultiLabel; a classifier of one class",
        ),
        (other_domain, r"cvexport\.manifest says ObjectDetection"),
    ],
)
def test_other_tasks_are_refused_by_name(tmp_path: Path, make: Callable[[Path], Path], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        imported_from(make(tmp_path / "model.onnx"))


@pytest.mark.parametrize("names", ["{0: 'cat'}", "{0: 'cat', 2: 'dog'}", "{0: 'cat'", "[" * 9000, "'cat'"])
def test_names_that_do_not_fit_ask_for_labels(tmp_path: Path, names: str) -> None:
    path = ultralytics(tmp_path / "yolo.onnx", names=names)
    with pytest.raises(ModelError, match=r"names in (the|its) metadata.*\n.*--labels F"):
        imported_from(path)
    assert imported_from(path, named=True).classes is None


def test_unknown_image_metadata_is_asked_for(tmp_path: Path) -> None:
    path = write_metadata(hub_classifier(tmp_path / "m.onnx"), Image__NominalPixelRange="Normalized_0_9")
    with pytest.raises(UsageError, match=r"--mean, --std is missing(.|\n)*Normalized_0_9"):
        imported_from(path)
    assert imported_from(path, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).num_classes == len(NAMES)


def test_the_command(tmp_path: Path) -> None:
    """One command, and the summary says what was taken from where."""
    from tests.cli.command import vitedge

    path = ultralytics(tmp_path / "yolo11n-cls.onnx")
    done = vitedge("import", path, "--out", tmp_path / "model")
    assert done.code == 0, done.err
    said = re.sub(r"\s+", " ", done.out)
    assert "class names from names in the metadata" in said and "(Ultralytics)" in said
    assert "licence AGPL-3.0" in said
