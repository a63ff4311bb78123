"""Graphs that are quantized already are recognised, whoever quantized them; half-precision ones import."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.graph.test_author import relative, run
from tests.graph.vits import MEAN, STD, random_images, tiny
from tests.importing.test_heads import classifier, ending
from vitedge.errors import ModelError
from vitedge.formats.model_folder import MODEL_ONNX
from vitedge.graph import folding, surgery
from vitedge.graph.quantized import quantized_form, refuse_quantized
from vitedge.importing.onnx_file import convert, graph_summary

EXPORTS = Path(__file__).resolve().parent.parent / "graph" / "exports"
OPTIONS = {"mean": MEAN, "std": STD, "size": (32, 48)}
FLOAT = [helper.make_node("Identity", ["logits.0"], ["scores"])]


class Pictures:
    """What ONNX Runtime calibrates with."""

    def __init__(self, count: int = 2) -> None:
        random = np.random.default_rng(0)
        self.waiting: list[NDArray[np.float32]] = list(random.standard_normal((count, 2, 3, 32, 48)).astype(np.float32))

    def get_next(self) -> dict[str, Any] | None:
        return {"pixels": self.waiting.pop()} if self.waiting else None


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("float") / "float.onnx", ending(("Identity",)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def by_onnx_runtime(source: Path, form: str, out: Path) -> Path:
    from onnxruntime import quantization

    with quiet():
        if form == "dynamic":
            quantization.quantize_dynamic(source, out)
        else:
            kind = quantization.QuantFormat[form]
            quantization.quantize_static(source, out, Pictures(), quant_format=kind)  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("dynamic", r"dynamically .* by ONNX Runtime: DynamicQuantizeLinear ×1, MatMulInteger ×1"),
        ("QOperator", r"in the QOperator format .* by ONNX Runtime: .*QLinearMatMul ×1"),
        ("QDQ", r"in the QDQ format .* by ONNX Runtime: QuantizeLinear ×\d"),
    ],
)
def test_what_onnx_runtime_quantized(form: str, text: str, float_model: Path, tmp_path: Path) -> None:
    source = by_onnx_runtime(float_model, form, tmp_path / "quantized.onnx")
    with pytest.raises(ModelError, match=f"it is quantized already, {text}") as refusal:
        convert(source, OPTIONS, None, "import")
    assert "import the float model" in refusal.value.hint


def test_what_nncf_quantized(float_model: Path) -> None:
    nncf = pytest.importorskip("nncf")
    pictures = nncf.Dataset(list(iter(Pictures().get_next, None)))
    with quiet():
        model = nncf.quantize(onnx.load(float_model), pictures, subset_size=2)
    quantized = quantized_form(model)
    assert quantized is not None and quantized.tool == "NNCF" and "QDQ" in quantized.form


def marked(model: onnx.ModelProto, **metadata: str) -> onnx.ModelProto:
    return surgery.set_metadata(model, metadata)


def graph(*nodes: onnx.NodeProto, producer: str = "pytorch") -> onnx.ModelProto:
    """Nodes alone: enough to be recognised by."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph(list(nodes), "graph", [value], [value]), producer_name=producer)


def pair(name: str = "", prefix: str = "", **attributes: Any) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """Quantize and dequantize, under somebody's names."""
    return (
        helper.make_node(f"{prefix}QuantizeLinear", ["x", "s"], ["q"], name, **attributes),
        helper.make_node(f"{prefix}DequantizeLinear", ["q", "s"], ["y"], **attributes),
    )


@pytest.mark.parametrize(
    ("model", "form", "tool"),
    [
        (marked(graph(*pair(), producer="onnx.quantize"), olive_version="0.9.1"), "QDQ", "Olive"),
        (graph(*pair("/blocks.0/attn/qkv/input_quantizer/QuantizeLinear")), "QDQ", "NVIDIA ModelOpt"),
        (graph(*pair(prefix="TRT_FP8", domain="trt")), "QDQ", "NVIDIA ModelOpt"),
        (graph(helper.make_node("FakeQuantize", ["x"], ["y"], domain="org.openvinotoolkit")), "FakeQuantize", "NNCF"),
        (marked(graph(*pair()), **{"vitedge.schema_version": "1"}), "QDQ", "vitedge"),
        (graph(helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft")), "weights alone", None),
        (graph(pair()[1]), "weights alone", None),
        (graph(*pair()), "QDQ", None),
    ],
)
def test_marks_of_tools(model: onnx.ModelProto, form: str, tool: str | None) -> None:
    quantized = quantized_form(model)
    assert quantized is not None and form in quantized.form and quantized.tool == tool
    with pytest.raises(ModelError, match=f"quantized already, .*{f' by {tool}' if tool else ': '}"):
        refuse_quantized(model, "import")


def test_nodes_inside_nodes_and_functions_are_looked_at() -> None:
    inner = helper.make_graph(list(pair()), "branch", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    nested = graph(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    function = helper.make_function("pkg", "Fake", ["x"], ["y"], list(pair()), [helper.make_opsetid("", 17)])
    called = graph(helper.make_node("Fake", ["x"], ["y"], domain="pkg"))
    called.functions.append(function)
    assert quantized_form(nested) is not None and quantized_form(called) is not None


def test_a_float_graph_isn_t_taken_for_quantized(float_model: Path) -> None:
    paths = [float_model, *sorted(EXPORTS.glob("*.onnx"))]
    assert len(paths) > 10 and all(quantized_form(onnx.load(path)) is None for path in paths)


# --- half precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_io_types", [True, False])
@pytest.mark.parametrize("name", ["legacy-17-dynamic", "hybrid-17"])
def test_half_precision_imports(name: str, keep_io_types: bool, tmp_path: Path) -> None:
    """As ONNX Runtime, Olive and onnxconverter-common convert: casts at both ends, or float16 in and out.

    The casts stand behind everything that reads them.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        half = convert_float_to_float16(
            onnx.load(EXPORTS / f"{name}.onnx"), keep_io_types=keep_io_types, op_block_list=["LayerNormalization"]
        )
    onnx.save(half, tmp_path / "half.onnx")
    imported = convert(tmp_path / "half.onnx", OPTIONS, None, "import")
    assert imported.parity.relative <= 1e-4
    assert imported.parity.reference == "the source, widened to float32, in ONNX Runtime"
    assert 0 < graph_summary(imported.details)["half_precision_difference"] <= 2e-2, "against the source as it came"
    model = onnx.load_model_from_string(imported.files[MODEL_ONNX])
    assert {tensor.data_type for tensor in surgery.tensors(model)} <= {TensorProto.FLOAT, TensorProto.INT64}
    logits = np.load(EXPORTS / "logits.npz")[name]
    assert relative(run(model, random_images(tiny(), 3)), logits) <= 2e-2


def test_nodes_in_any_order() -> None:
    model = onnx.load(EXPORTS / "hybrid-17.onnx")
    expected = [node.output[0] for node in model.graph.node]
    surgery.write_nodes(model, list(model.graph.node)[::-1])
    folding.sort(model)
    onnx.checker.check_model(model)
    assert sorted(expected) == sorted(node.output[0] for node in model.graph.node)
    before = model.SerializeToString()
    folding.sort(model)
    assert model.SerializeToString() == before


def test_a_cycle_is_left_to_the_checker() -> None:
    model = graph(helper.make_node("Neg", ["b"], ["a"]), helper.make_node("Neg", ["a"], ["b"]))
    before = model.SerializeToString()
    folding.sort(model)
    assert model.SerializeToString() == before
