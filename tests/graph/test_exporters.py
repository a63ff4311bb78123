"""What torch's older exporter makes of plain and hybrid networks, in every opset, layout, type and choice of axes.

The graphs are made while the tests run; `exports/` holds those of the newer exporter.
"""

from __future__ import annotations

import inspect
import itertools
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from tests.graph.test_canonical import checker, run
from tests.graph.vits import MEAN, STD, random_images, tiny
from vitedge.core.deviation import deviation
from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.architecture import BlockWidths
from vitedge.graph import canonical, interface, surgery
from vitedge.graph.canonical import TOLERANCE, Report
from vitedge.importing.onnx_file import convert

torch = pytest.importorskip("torch", reason="the graphs are exported by torch")
if "dynamo" not in inspect.signature(torch.onnx.export).parameters:
    pytest.skip("this torch has no older exporter", allow_module_level=True)
networks = pytest.importorskip("tests.graph.networks")

IMAGES = random_images(tiny(), 3)
#: Widths as shrinking leaves them, of 16 channels in 2 heads: heads, channels and branches are gone.
NARROW = (
    BlockWidths(heads=3, query_key=5, value=3, mlp_hidden=9),
    BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=12),
    BlockWidths(heads=1, query_key=2, value=6, mlp_hidden=0),
    BlockWidths(heads=2, query_key=8, value=4, mlp_hidden=20),
)
FAMILIES = {
    "packed": lambda: networks.ours(layer_scale=True, register_tokens=1),
    "pooled": lambda: networks.ours(class_token=False, pool="avg", final_norm="fc_norm"),
    "narrow": lambda: networks.ours(depth=4, blocks=NARROW),
    "normed": lambda: networks.ours(qk_norm=True, blocks=(BlockWidths(heads=3, query_key=8, value=4, mlp_hidden=9),)),
    "separate": networks.Separate,
    "fused": lambda: networks.Separate(fused=True),
    "hybrid": networks.Hybrid,
    "windows": networks.Windows,
    "rows": networks.Rows,
    "folded": networks.Folded,
}
PLAIN = ("packed", "pooled", "narrow", "normed", "separate", "fused")
#: opset, axes, layout, input, normalisation inside, half precision
WAYS = list(
    itertools.product(
        (13, 14, 17, 18, 20),
        ("fixed", "batch", "all"),
        ("nchw", "nhwc"),
        ("float", "uint8"),
        (True, False),
        (False,),
    )
)
CHOSEN = [
    ("packed", (14, "batch", "nchw", "float", False, False)),
    ("packed", (17, "all", "nhwc", "float", True, False)),
    ("packed", (20, "fixed", "nhwc", "uint8", True, False)),
    ("packed", (18, "batch", "nchw", "float", False, True)),
    ("pooled", (16, "fixed", "nchw", "uint8", True, False)),
    ("narrow", (17, "batch", "nchw", "float", True, False)),
    ("normed", (14, "all", "nchw", "float", False, False)),
    ("separate", (13, "all", "nchw", "float", True, False)),
    ("separate", (17, "batch", "nhwc", "float", False, True)),
    ("fused", (14, "all", "nchw", "float", False, False)),
    ("hybrid", (13, "fixed", "nhwc", "float", True, False)),
    ("hybrid", (20, "batch", "nchw", "uint8", True, False)),
    ("hybrid", (17, "batch", "nchw", "float", False, True)),
    ("windows", (13, "batch", "nchw", "float", False, False)),
    ("windows", (18, "fixed", "nhwc", "uint8", True, False)),
    ("rows", (13, "batch", "nchw", "float", False, False)),
    ("rows", (20, "fixed", "nchw", "float", True, False)),
    ("folded", (14, "batch", "nchw", "float", False, False)),
    ("folded", (17, "fixed", "nhwc", "float", False, False)),
]
Way = tuple[int, str, str, str, bool, bool]


def label(value: object) -> str:
    if isinstance(value, str):
        return value
    opset, axes, layout, kind, inside, half = value  # type: ignore[misc]
    return "-".join([str(opset), axes, layout, kind, *(["inside"] if inside else []), *(["half"] if half else [])])


@cache
def network(family: str) -> torch.nn.Module:
    torch.manual_seed(1)
    return networks.randomised(FAMILIES[family]())


def exported(family: str, way: Way) -> tuple[onnx.ModelProto, NDArray[np.float32], Preprocessing]:
    """The graph, torch's logits, and the preprocessing that a user would give."""
    import copy

    opset, axes, layout, kind, inside, half = way
    module = networks.Export(copy.deepcopy(network(family)), layout, kind, inside=inside).eval()
    module = module.half() if half else module
    pixels = module.pictures(IMAGES)
    with torch.inference_mode():
        logits = module(pixels).float().numpy()
    told = {"mean": (0, 0, 0), "std": (1, 1, 1), "rescale": 1.0} if inside else {"mean": MEAN, "std": STD}
    graph = onnx.load_model_from_string(networks.older_export(module, pixels, opset, axes))
    return graph, logits, Preprocessing(size=networks.SIZE, **told)


def prove(family: str, way: Way) -> Report:
    """Convert, and hold the result against torch."""
    raw, logits, contract = exported(family, way)
    prepared, report = canonical.prepare(raw, "test")
    source = interface.describe(prepared, contract, "test")
    assert source.layout == way[2]
    model = interface.with_image_input(prepared, source, contract, 5)
    allowed = 1e-5
    if way[-1]:  # weights and products of half precision: the source, widened, is the reference
        assert report.rewrites["half precision widened"] and not half_precision(prepared)
        assert deviation(run(model, IMAGES), logits) < 0.05
        logits, allowed = run(model, IMAGES), TOLERANCE  # constants of GELU, rounded, become exact
    model, report = canonical.canonicalise(model, report, contract, checker(logits))
    assert deviation(run(model, IMAGES), logits) <= allowed
    assert report.rejected == {} and surgery.batch_size(model) is None
    assert report.opset == way[0]
    if family in PLAIN:
        assert report.architecture is not None and report.left_alone == {}
        assert {"patch_embed.proj", "blocks.0.attn.qkv", "head"} <= {node.name for node in model.graph.node}
    else:
        assert report.architecture is None and report.left_alone
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"BatchNormalization", "Gemm", "Shape", "Erf", "Identity", "Constant"}
        assert len(surgery.linear_layers(model)) == {"hybrid": 10, "windows": 5, "rows": 4, "folded": 9}[family]
    return report


def half_precision(model: onnx.ModelProto) -> bool:
    return any(tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for tensor in surgery.tensors(model))


@pytest.mark.parametrize(("family", "way"), CHOSEN, ids=label)
def test_an_export_becomes_canonical(family: str, way: Way) -> None:
    prove(family, way)


def test_widths_of_each_block_are_read_off_an_export() -> None:
    """The heads of the model that it was cut from are some number that fits; queries take up what the scale differs."""
    report = prove("narrow", (20, "batch", "nchw", "float", False, False))
    assert report.architecture is not None and report.architecture.blocks == NARROW
    report = prove("normed", (17, "fixed", "nchw", "float", False, False))
    assert report.architecture is not None
    assert (report.architecture.num_heads, report.architecture.block(0).heads) == (2, 3)


def test_an_optimized_graph_becomes_canonical(tmp_path: Path) -> None:
    """As optimum saves it, fused by this ONNX Runtime; `exports/` holds one whose fused operators don't change.

    What it fuses is its own matter: operators that we don't know are left alone, and nothing else changes.
    """
    import onnxruntime

    raw, logits, contract = exported("separate", (17, "batch", "nchw", "float", False, False))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "model.onnx"), 3
    onnxruntime.InferenceSession(raw.SerializeToString(), options, providers=["CPUExecutionProvider"])
    prepared, report = canonical.prepare(surgery.load(tmp_path / "model.onnx"), "test")
    model = interface.with_image_input(prepared, interface.describe(prepared, contract, "test"), contract, 5)
    model, report = canonical.canonicalise(model, report, contract, checker(logits))
    assert deviation(run(model, IMAGES), logits) <= 1e-5 and report.rejected == {}
    known = report.architecture is not None and report.left_alone == {}
    assert known or any(node.domain for node in model.graph.node), "only what ONNX Runtime alone has may be left"


@pytest.mark.parametrize("opset", [21, 22, 23])
def test_newer_opsets_with_older_operators(opset: int) -> None:
    raw, logits, contract = exported("rows", (20, "batch", "nchw", "float", False, False))
    del raw.opset_import[:]
    raw.opset_import.append(onnx.helper.make_opsetid("", opset))
    prepared, report = canonical.prepare(raw, "test")
    assert report.opset == opset
    model = interface.with_image_input(prepared, interface.describe(prepared, contract, "test"), contract, 5)
    model, report = canonical.canonicalise(model, report, contract, checker(logits))
    assert deviation(run(model, IMAGES), logits) <= 1e-5 and report.rejected == {}


@pytest.mark.parametrize("opset", [14, 17])
@pytest.mark.parametrize("ending", [torch.nn.Softmax(1), torch.nn.LogSoftmax(1)])
def test_a_softmax_behind_a_plain_vit_is_cut_off(ending: torch.nn.Module, opset: int, tmp_path: Path) -> None:
    """What is left is recognised as a plain ViT."""
    _, logits, _ = exported("packed", (opset, "batch", "nchw", "float", False, False))
    module = torch.nn.Sequential(network("packed"), ending).eval()
    pixels = networks.Export(module).pictures(IMAGES)
    (tmp_path / "a.onnx").write_bytes(networks.older_export(module, pixels, opset, "batch"))
    imported = convert(tmp_path / "a.onnx", {"mean": MEAN, "std": STD, "size": networks.SIZE}, None, "test")
    assert imported.architecture is not None and imported.parity.relative <= 1e-5
    assert deviation(run(onnx.load_model_from_string(imported.files["model.onnx"]), IMAGES), logits) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=label)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_exporting(family: str, way: Way) -> None:
    if way[0] == 13 and family in ("packed", "pooled", "narrow", "normed", "fused"):
        pytest.skip("torch exports its attention from opset 14 on")
    if way[3] == "uint8" and not way[4]:
        pytest.skip("a graph that takes bytes normalises them")
    prove(family, way)
