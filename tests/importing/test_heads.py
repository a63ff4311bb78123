"""What a model's last values mean: logits, probabilities by any spelling, several labels, one number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.graph.test_author import run
from tests.graph.vits import MEAN, STD, random_images, tiny
from tests.importing.test_import import timm_folder
from vitedge.errors import ModelError
from vitedge.formats.model_folder import MODEL_ONNX
from vitedge.graph import mappings
from vitedge.importing import proof
from vitedge.importing.entry import import_model, summary
from vitedge.importing.onnx_file import convert
from vitedge.importing.probabilities import kind_of, rows_of
from vitedge.importing.proof import Imported

CLASSES = 4
Nodes = list[onnx.NodeProto]


def node(operator: str, source: str | list[str], output: str, /, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, [source] if isinstance(source, str) else source, [output], **attributes)


def ending(*steps: tuple[Any, ...]) -> Nodes:
    """Nodes from ``logits.0`` to ``scores``, one after the other: (operator, further inputs, attributes)."""
    nodes = []
    for number, (operator, *rest) in enumerate(steps):
        inputs, attributes = [part for part in rest if isinstance(part, str)], rest[-1] if rest else {}
        to = "scores" if number + 1 == len(steps) else f"logits.{number + 1}"
        attributes = attributes if isinstance(attributes, dict) else {}
        nodes.append(node(operator, [f"logits.{number}", *inputs], to, **attributes))
    return nodes


SOFTMAX = ("Softmax", {"axis": 1})
#: The softmax in the operators that it is made of, its largest logit taken away first.
DECOMPOSED = [
    node("ReduceMax", "logits.0", "largest", axes=[1], keepdims=1),
    node("Sub", ["logits.0", "largest"], "shifted"),
    node("Exp", "shifted", "powers"),
    node("ReduceSum", ["powers", "axis"], "sum", keepdims=1),
    node("Div", ["powers", "sum"], "scores"),
]
ENDINGS: dict[str, Nodes] = {
    "Softmax": ending(SOFTMAX),
    "Cast": ending(SOFTMAX, ("Cast", {"to": TensorProto.FLOAT16}), ("Cast", {"to": TensorProto.FLOAT})),
    "Identity": ending(SOFTMAX, ("Identity",)),
    "Reshape": ending(SOFTMAX, ("Reshape", "pairs"), ("Reshape", "rows")),
    "Unsqueeze": ending(SOFTMAX, ("Unsqueeze", "axis")),
    "Squeeze": ending(("Unsqueeze", "axis"), ("Softmax", {"axis": 2}), ("Squeeze", "axis")),
    "Flatten": ending(SOFTMAX, ("Flatten", {"axis": 1})),
    "LogSoftmax": ending(("LogSoftmax", {"axis": 1}), ("Identity",)),
    "decomposed": DECOMPOSED,
    "decomposed LogSoftmax": [*DECOMPOSED[:4], node("Log", "sum", "log"), node("Sub", ["shifted", "log"], "scores")],
    "temperature": ending(("Mul", "half"), SOFTMAX),
    "percent": ending(SOFTMAX, ("Mul", "hundred")),
}
#: In opsets before 13 a softmax takes all axes from ``axis`` on as one.
OLD_ENDINGS: dict[str, Nodes] = {
    "axis 1 of four": ending(("Reshape", "maps"), SOFTMAX, ("Flatten", {"axis": 1})),
    "default axis": ending(("Reshape", "maps"), ("Softmax",), ("Squeeze", {"axes": [2, 3]})),
    "Squeeze": ending(("Unsqueeze", {"axes": [2]}), SOFTMAX, ("Squeeze", {"axes": [2]})),
    "LogSoftmax": ending(("LogSoftmax",), ("Unsqueeze", {"axes": [1]})),
}
CONSTANTS = {
    "axis": np.asarray([1]), "pairs": np.asarray([0, 2, -1]), "rows": np.asarray([0, -1]),
    "maps": np.asarray([0, -1, 1, 1]), "half": np.asarray(0.5, np.float32), "hundred": np.asarray(100, np.float32),
    "one": np.asarray(1, np.float32),
}  # fmt: skip


def classifier(path: Path, nodes: Nodes, opset: int = 17, classes: int = CLASSES, batch: int | str = "N") -> Path:
    """Average pooling and one Linear, then ``nodes`` from ``logits.0`` to ``scores``."""
    random = np.random.default_rng(7)
    weights = {"w": random.standard_normal((3, classes)) * 5, "b": random.standard_normal(classes)}
    body = [
        node("ReduceMean", "pixels", "mean", axes=[2, 3], keepdims=0),
        node("MatMul", ["mean", "w"], "product"),
        node("Add", ["product", "b"], "logits.0"),
        *nodes,
    ]
    used = {name for each in body for name in each.input}
    constants = {**{name: values.astype(np.float32) for name, values in weights.items()}, **CONSTANTS}
    graph = helper.make_graph(
        body,
        "classifier",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, 32, 48])],
        [helper.make_empty_tensor_value_info("scores")],
        [numpy_helper.from_array(values, name) for name, values in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def logits_of(images: NDArray[np.uint8], nodes: Nodes) -> NDArray[np.float64]:
    """What numpy makes of the same pictures, without the ending."""
    random = np.random.default_rng(7)
    weight, bias = random.standard_normal((3, CLASSES)) * 5, random.standard_normal(CLASSES)
    means = ((images / 255 - np.asarray(MEAN)) / np.asarray(STD)).mean(axis=(1, 2))
    factor = 0.5 if any("half" in each.input for each in nodes) else 1.0
    return (means @ weight + bias) * factor


def converted(source: Path, **options: Any) -> Imported:
    """What import makes of an ONNX file, without the child process."""
    return convert(source, {"mean": MEAN, "std": STD, "size": (32, 48), **options}, None, "import a classifier")


def outputs(imported: Imported) -> NDArray[np.float32]:
    """The imported graph's answers to three pictures."""
    return run(onnx.load_model_from_string(imported.files[MODEL_ONNX]), random_images(tiny(), 3))


def assert_logits(imported: Imported, nodes: Nodes) -> None:
    expected = logits_of(random_images(tiny(), 3), nodes)
    np.testing.assert_allclose(outputs(imported), expected, rtol=1e-4, atol=1e-4)


CASES = [
    *(pytest.param(nodes, opset, id=f"{name}-{opset}") for name, nodes in ENDINGS.items() for opset in (13, 17)),
    *(pytest.param(nodes, opset, id=f"{name}-{opset}") for name, nodes in OLD_ENDINGS.items() for opset in (9, 12)),
]


@pytest.mark.parametrize(("nodes", "opset"), CASES)
def test_probabilities_become_logits(nodes: Nodes, opset: int, tmp_path: Path) -> None:
    """However the softmax was written: the model gives the logits behind it, and no softmax is left."""
    imported = converted(classifier(tmp_path / "source.onnx", nodes, opset))
    assert_logits(imported, nodes)
    assert imported.preprocessing.activation == "softmax" and "before its" in imported.parity.reference
    operators = {each.op_type for each in onnx.load_model_from_string(imported.files[MODEL_ONNX]).graph.node}
    assert not {"Softmax", "LogSoftmax", "Exp"} & operators


def test_a_fixed_batch(tmp_path: Path) -> None:
    nodes = OLD_ENDINGS["axis 1 of four"]
    assert_logits(converted(classifier(tmp_path / "source.onnx", nodes, 9, batch=1)), nodes)


def test_logits_with_further_axes(tmp_path: Path) -> None:
    """[N, classes, 1, 1], as convolutional heads give them."""
    nodes = ending(("Reshape", "maps"))
    assert_logits(converted(classifier(tmp_path / "source.onnx", nodes)), nodes)


def test_the_summary_says_what_was_cut_off(tmp_path: Path) -> None:
    options = {"mean": MEAN, "std": STD}
    model = import_model(
        classifier(tmp_path / "source.onnx", ENDINGS["Cast"]), tmp_path / "model", preprocessing=options
    )
    row = summary(model)
    assert "softmax at the end cut off" in row["rewrites"]
    assert row["compared_with"] == "the source, widened to float32, in ONNX Runtime, before its softmax"


def test_a_reference_that_gives_probabilities(tmp_path: Path) -> None:
    """A torch module that ends in a softmax is compared with what its logits give after one."""
    source = classifier(tmp_path / "source.onnx", ENDINGS["Softmax"])
    kept = converted(source, activation="none")
    probabilities = run(
        onnx.load_model_from_string(kept.files[MODEL_ONNX]), proof.frames_of(None, kept.preprocessing, "test")
    )
    assert probabilities.shape == (proof.PICTURES, CLASSES)
    options = {"mean": MEAN, "std": STD, "size": (32, 48)}
    imported = convert(source, options, None, "test", ("the module", probabilities))
    assert imported.parity.relative < 1e-5 and imported.parity.reference == "the module"
    assert_logits(imported, ENDINGS["Softmax"])


SIGMOID = ending(("Sigmoid",), ("Identity",))
#: A sigmoid in the operators that it is made of.
OWN_SIGMOID = [
    node("Neg", "logits.0", "negated"),
    node("Exp", "negated", "power"),
    node("Add", ["power", "one"], "below"),
    node("Div", ["one", "below"], "scores"),
]
#: The mean of two softmaxes, as ensembles give it: no logits exist.
ENSEMBLE = [
    node("Softmax", "logits.0", "first", axis=1),
    node("Mul", ["logits.0", "half"], "cooler"),
    node("Softmax", "cooler", "second", axis=1),
    node("Add", ["first", "second"], "both"),
    node("Mul", ["both", "half"], "scores"),
]


@pytest.mark.parametrize(
    ("nodes", "options", "classes", "text"),
    [
        (SIGMOID, {}, CLASSES, r"sigmoid of each class, as multi-label models have; these aren't offered"),
        (OWN_SIGMOID, {}, CLASSES, r"sigmoid of each class, as multi-label models have"),
        (SIGMOID, {"activation": "softmax"}, CLASSES, r"sigmoid of each class, as multi-label models have"),
        (ENSEMBLE, {}, CLASSES, r"holds probabilities .* they aren't the softmax of any tensor"),
        (ending(("HardSigmoid",)), {}, CLASSES, r"lies between 0 and 1 on every picture"),
        (ending(SOFTMAX), {"activation": "sigmoid"}, CLASSES, r"sum to 1: a softmax over all classes, no sigmoid"),
        (ending(("Identity",)), {}, 1, r"one value a picture: a regression or a yes-or-no score"),
        (ending(("Sigmoid",), ("Squeeze", "axis")), {}, 1, r"one value a picture"),
        (ending(("ArgMax", {"axis": 1})), {}, CLASSES, r"one value a picture"),
    ],
)
def test_what_is_no_softmax_over_classes_is_refused(
    nodes: Nodes, options: dict[str, Any], classes: int, text: str, tmp_path: Path
) -> None:
    source = classifier(tmp_path / "source.onnx", nodes, classes=classes)
    with pytest.raises(ModelError, match=text):
        converted(source, **options)


def test_a_sigmoid_of_one_class_a_picture_is_cut_off_when_asked(tmp_path: Path) -> None:
    imported = converted(classifier(tmp_path / "a.onnx", SIGMOID), activation="sigmoid")
    assert_logits(imported, SIGMOID)
    assert imported.preprocessing.activation == "sigmoid"


def test_what_the_caller_says_of_the_outputs_is_taken(tmp_path: Path) -> None:
    between = converted(classifier(tmp_path / "a.onnx", ending(("HardSigmoid",))), activation="softmax")
    assert 0 <= outputs(between).min() <= outputs(between).max() <= 1
    kept = converted(classifier(tmp_path / "b.onnx", ENDINGS["Softmax"]), activation="none")
    assert np.allclose(outputs(kept).sum(axis=1), 1, atol=1e-5)


def test_kinds_of_values() -> None:
    logits = np.random.default_rng(0).standard_normal((6, 5)) * 4
    powers = np.exp(logits)
    softmax = powers / powers.sum(axis=1, keepdims=True)
    assert kind_of(logits) is None and kind_of(np.abs(logits)) is None and kind_of(logits * 0) == "sigmoid"
    assert kind_of(softmax) == "softmax" and kind_of(np.log(softmax)) == "log-softmax"
    assert kind_of(softmax.astype(np.float16)) == "softmax"
    assert kind_of(powers / (1 + powers)) == "sigmoid"


def test_rows() -> None:
    assert [rows_of(np.zeros(shape), 3) is None for shape in ((3, 4), (3, 4, 1, 1), (1, 3, 4), (3,), (3, 7, 7, 4))] == [
        False, False, False, False, True,
    ]  # fmt: skip
    assert rows_of(np.zeros((3, 3)), 3) is not None and rows_of(np.zeros((3, 0)), 3) is None


# --- what configurations say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"problem_type": "multi_label_classification"}, "problem_type .*several labels a picture"),
        ({"problem_type": "regression"}, r"problem_type .*a number \(regression\)"),
        ({"problem_type": "ranking"}, "problem_type 'ranking': something that isn't known here"),
        ({"multi_label": True}, "config.json says multi_label: several labels a picture"),
        ({"bce_loss": True}, "config.json says bce_loss: .*no softmax gives probabilities"),
    ],
)
def test_checkpoints_and_graphs_that_say_what_they_answer(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "timm", **settings)
    with pytest.raises(ModelError, match=text):
        import_model(folder, tmp_path / "model")
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "config.json").write_text(json.dumps({"architectures": ["ViT"], **settings}))
    classifier(tmp_path / "graph" / "model.onnx", ending(("Identity",)))
    with pytest.raises(ModelError, match=text):
        import_model(tmp_path / "graph", tmp_path / "model", preprocessing={"mean": MEAN, "std": STD})
    assert not (tmp_path / "model").exists()


def test_any_head_is_good_enough_to_start_training_from(tmp_path: Path) -> None:
    config = tiny(embed_dim=192, image_size=(32, 32), depth=1, num_classes=1)
    folder = timm_folder(tmp_path / "timm", config, problem_type="regression", label_names=["a", "b"])
    assert mappings.read_published(folder, named=True).config.num_classes == 1


def test_timm_s_own_record_of_its_loss(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "timm", problem_type="single_label_classification")
    (folder / "args.yaml").write_text("batch_size: 64\nbce_loss: true\nbce_sum: false\n")
    with pytest.raises(ModelError, match=r"args.yaml says bce_loss") as refusal:
        import_model(folder, tmp_path / "model")
    assert "--activation sigmoid" in refusal.value.hint
    model = import_model(folder, tmp_path / "model", preprocessing={"activation": "sigmoid"})
    assert model.record.preprocessing.activation == "sigmoid"
    (folder / "args.yaml").write_text("bce_loss: false\n")
    assert import_model(folder, tmp_path / "other").record.preprocessing.activation == "softmax"


def test_a_checkpoint_with_one_output(tmp_path: Path) -> None:
    config = tiny(embed_dim=192, image_size=(32, 32), depth=1, num_classes=1)
    with pytest.raises(ModelError, match="its classification head has one value a picture"):
        import_model(timm_folder(tmp_path / "timm", config), tmp_path / "model")
