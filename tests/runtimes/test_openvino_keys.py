"""Keys reach OpenVINO's attention kernel in two Transposes, which compute what the one did."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from vitedge.formats.architecture import BlockWidths, Rope, ViTConfig
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import attribute, pin_batch, to_bytes
from vitedge.runtimes.interpreter import run_graph
from vitedge.runtimes.openvino.detect import core
from vitedge.runtimes.openvino.keys import with_keys_by_rows

pytest.importorskip("openvino")

ODD = (
    BlockWidths(heads=3, query_key=6, value=13, mlp_hidden=24),
    BlockWidths(heads=1, query_key=5, value=8, mlp_hidden=8),
)
CONFIGS = {
    "plain": tiny(),
    "QK-norm": tiny(qk_norm=True),
    "rotary": tiny(rope=Rope(kind="mixed")),
    "odd heads": tiny(blocks=ODD),
}


def graph_of(config: ViTConfig) -> onnx.ModelProto:
    return author_vit(config, random_arrays(config), mean=MEAN, std=STD)


def orders(graph: onnx.ModelProto) -> list[list[int]]:
    return [list(attribute(node, "perm")) for node in graph.graph.node if node.op_type == "Transpose"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_same_numbers_in_two_steps(config: ViTConfig) -> None:
    graph, images = graph_of(config), random_images(config, 4)
    changed = with_keys_by_rows(graph)
    assert [0, 2, 3, 1] in orders(graph) and [0, 2, 3, 1] not in orders(changed)
    onnx.checker.check_model(changed, full_check=True)
    np.testing.assert_array_equal(run_graph(changed, images), run_graph(graph, images))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_no_transpose_of_keys_to_columns_is_executed(config: ViTConfig) -> None:
    """What is left of it outside the attention kernel moves whole rows."""
    read = core().read_model(to_bytes(pin_batch(with_keys_by_rows(graph_of(config)), 1)))
    compiled = core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    executed = compiled.get_runtime_model().get_ordered_ops()
    moved = [node for node in executed if str(node.get_rt_info()["layerType"].value) == "Transpose"]
    shapes = [list(node.get_output_shape(0)) for node in moved]
    assert not [shape for shape in shapes if len(shape) == 4 and shape[3] == config.tokens]


def test_keys_that_something_else_reads_stay() -> None:
    graph = graph_of(tiny())
    keys = next(node.output[0] for node in graph.graph.node if node.name == "blocks.0.attn.k.transpose")
    graph.graph.node.add(op_type="Identity", name="other", input=[keys], output=["other"])
    assert orders(with_keys_by_rows(graph)).count([0, 2, 3, 1]) == 1
