"""Narrower graphs compute what the whole ones compute once what is cut is zero."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from tests.graph.test_canonical import EXPORTS, IMAGES, LOGITS, convert, run
from tests.graph.vits import authored, configs, random_images, tiny
from vitedge.errors import UsageError
from vitedge.formats.architecture import ConvStem, Rope, ViTConfig
from vitedge.graph import surgery
from vitedge.shrinking.components import check_widths, components, truncate
from vitedge.shrinking.structures import Attention, structures


def zeroed(model: onnx.ModelProto, name: str, rows: NDArray[np.intp] | slice) -> onnx.ModelProto:
    """The graph whose initialiser has zeros at these rows of its last axis but one, or columns of a bias."""
    model = surgery.copy(model)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor).copy()
            values[rows] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model


def same(first: onnx.ModelProto, second: onnx.ModelProto, images: NDArray[np.uint8]) -> bool:
    return bool(np.allclose(run(first, images), run(second, images), rtol=1e-4, atol=2e-5))


def present(model: onnx.ModelProto) -> dict[str, int]:
    return {name: width for each in structures(model) for name, width in each.present().items()}


def test_the_components_of_a_vit() -> None:
    model = authored(tiny(embed_dim=48, mlp_hidden=400, stem=ConvStem(channels=(24, 16), strides=(2, 4))))
    found = {each.name: each for each in components(model)}
    kinds = {"mlp": "hidden", "attn.heads": "heads", "attn.query_key": "query_key", "attn.value": "value"}
    blocks = {f"blocks.{i}.{part}": kind for i in (0, 1) for part, kind in kinds.items()}
    stem = {f"patch_embed.stem.{i}": "channels" for i in (0, 1)}
    assert {name: each.kind for name, each in found.items()} == {
        **blocks,
        **stem,
        "blocks.0.tokens": "tokens",
        "embedding": "embedding",
    }
    assert found["blocks.1.attn.heads"].offered == (0, 1, 2, 3)
    assert found["blocks.0.attn.query_key"].offered == (8, 16)
    assert found["patch_embed.stem.0"].offered == (8, 16, 24)
    hidden = found["blocks.0.mlp"]
    assert not any(width % 16 for width in hidden.offered), "kernels compute 16 channels at once"
    assert hidden.width == hidden.offered[-1] == 400 and hidden.offered[:3] == (0, 32, 64) and len(hidden.offered) < 18


def test_what_ties_channels_together_keeps_them() -> None:
    """Of normed queries and keys none can go; what is read elsewhere, or isn't added to its input, can't go whole."""
    names = {each.name for each in components(authored(tiny(embed_dim=48, qk_norm=True)))}
    assert "blocks.0.attn.value" in names and "blocks.0.attn.query_key" not in names
    model = authored(tiny(depth=1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("blocks.0.mlp.act.out", 1, None))
    assert {each.kind for each in components(model)} == {"heads", "branch", "embedding"}  # the MLP as a whole


@given(configs(), st.data())
@settings(max_examples=25, deadline=None)
def test_a_truncated_graph_has_the_widths_asked_for(config: ViTConfig, data: st.DataObject) -> None:
    model = authored(config)
    widths = {}
    for each in structures(model):
        for name, width in each.present().items():
            channels = isinstance(each, Attention) and name.endswith(("query_key", "value"))
            least = 0 if each.residual is not None and not channels else 1
            step = 2 if isinstance(each, Attention) and each.rotary and name.endswith("query_key") else 1
            if not (isinstance(each, Attention) and each.normed and name.endswith("query_key")):
                widths[name] = step * data.draw(st.integers(least, width // step))
    narrow = truncate(model, widths)
    onnx.checker.check_model(narrow, full_check=True)
    assert np.isfinite(run(narrow, random_images(config, 2))).all()
    gone = [name.rpartition(".")[0] for name, width in widths.items() if width == 0 and name.endswith("heads")]
    expected = {name: width for name, width in (present(model) | widths).items() if width}
    expected = {name: width for name, width in expected.items() if name.rpartition(".")[0] not in gone}
    assert present(narrow) == expected
    assert run(truncate(model, {}), random_images(config, 2)).tolist() == run(model, random_images(config, 2)).tolist()


@pytest.mark.parametrize("mlp", ["plain", "swiglu"])
def test_hidden_units_are_cut_behind(mlp: str) -> None:
    model = authored(tiny(mlp=mlp))
    narrow = truncate(model, {"blocks.1.mlp": 9})
    assert same(narrow, zeroed(model, "blocks.1.mlp.fc2.weight", slice(9, None)), IMAGES)
    for part, parameters in (("fc1", 9 * (2 if mlp == "swiglu" else 1)), ("fc2", 24)):
        assert surgery.initializers(narrow)[f"blocks.1.mlp.{part}.weight"].dims[1] == parameters


def test_other_units_than_the_first_may_stay() -> None:
    model, last = authored(tiny(rope=Rope(kind="axial"))), "blocks.1.attn"
    narrow = truncate(model, {"blocks.1.mlp": 9}, {"blocks.1.mlp": range(31, 40)})
    assert same(narrow, zeroed(model, "blocks.1.mlp.fc2.weight", slice(31)), IMAGES)
    narrow = truncate(
        model, {f"{last}.heads": 2, f"{last}.value": 3}, {f"{last}.heads": [0, 2], f"{last}.value": [5, 6, 7]}
    )
    cut = [row for row in range(24) if row // 8 == 1 or row % 8 < 5]
    assert same(narrow, zeroed(model, f"{last}.proj.weight", np.array(cut)), IMAGES)
    narrow, expected = truncate(model, {f"{last}.query_key": 4}, {f"{last}.query_key": [1, 3]}), model
    for kind, rows in (("weight", (slice(None), slice(0, 24, 2))), ("bias", slice(0, 24, 2))):  # pairs 0 and 2
        expected = zeroed(expected, f"{last}.qkv.{kind}", rows)  # type: ignore[arg-type]
    assert same(narrow, expected, IMAGES)


def test_channels_of_a_convolutional_stem_are_cut() -> None:
    model = authored(tiny(stem=ConvStem(channels=(6, 10), strides=(2, 4))))
    narrow = truncate(model, {"patch_embed.stem.0": 4, "patch_embed.stem.1": 3})
    expected = model
    for name, kept in (("patch_embed.stem.1.conv", 4), ("patch_embed.proj", 3)):
        tensor = next(each for each in expected.graph.initializer if each.name == f"{name}.weight")
        values = numpy_helper.to_array(tensor).copy()
        values[:, kept:] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert same(narrow, expected, IMAGES)


ROTARY = [None, Rope(kind="axial"), Rope(kind="mixed", pairs="halves")]


@pytest.mark.parametrize("rope", ROTARY, ids=["none", "axial", "mixed"])
def test_channels_of_queries_and_values_and_heads_are_cut(rope: Rope | None) -> None:
    model = authored(tiny(embed_dim=48, rope=rope))
    name, heads = "blocks.0.attn", np.arange(3)[:, None]
    narrow = truncate(model, {f"{name}.query_key": 10})
    channels = np.arange(16)
    cut = channels[(channels % 8 >= 5) if rope else (channels >= 10)]
    expected = model
    for kind in ("weight", "bias"):
        columns = (heads * 16 + cut).ravel()
        rows = (slice(None), columns) if kind == "weight" else columns
        expected = zeroed(expected, f"{name}.qkv.{kind}", rows)  # type: ignore[arg-type]
    assert same(narrow, expected, IMAGES)
    narrow = truncate(model, {f"{name}.value": 5})
    assert same(narrow, zeroed(model, f"{name}.proj.weight", (heads * 16 + np.arange(5, 16)).ravel()), IMAGES)
    narrow = truncate(model, {f"{name}.heads": 2, f"{name}.value": 5})
    expected = zeroed(model, f"{name}.proj.weight", (heads * 16 + np.arange(5, 16)).ravel())
    assert same(narrow, zeroed(expected, f"{name}.proj.weight", slice(32, None)), IMAGES)


def test_a_block_goes_whole() -> None:
    """And two branches behind each other, of which one reads what the other wrote."""
    model = authored(tiny())
    narrow = truncate(model, {f"blocks.{i}.{part}": 0 for i in (0, 1) for part in ("attn.heads", "mlp")})
    onnx.checker.check_model(narrow, full_check=True)
    assert not [node.name for node in narrow.graph.node if node.name.startswith("blocks.")]
    assert np.isfinite(run(narrow, IMAGES)).all()


def test_a_whole_branch_goes() -> None:
    model = authored(tiny())
    narrow = truncate(model, {"blocks.0.attn.heads": 0, "blocks.1.mlp": 0})
    assert not [node.name for node in narrow.graph.node if node.name.startswith(("blocks.0.attn", "blocks.0.norm1"))]
    assert "blocks.1.add2" not in {node.name for node in narrow.graph.node}
    expected = model
    for name in ("blocks.0.attn.proj", "blocks.1.mlp.fc2"):
        expected = zeroed(zeroed(expected, f"{name}.weight", slice(None)), f"{name}.bias", slice(None))
    assert same(narrow, expected, IMAGES)


@pytest.mark.parametrize("name", ["hybrid-17", "folded-20", "rows-18"])
def test_hybrids_are_cut_where_patterns_are_found(name: str) -> None:
    """An inverted bottleneck, separate queries, keys and values, weights that two LayerNorms share, other branches."""
    model, _ = convert(surgery.load(EXPORTS / f"{name}.onnx"), LOGITS[name])
    for component, width in present(model).items():
        for narrower in {width // 2, 0 if width == 1 or component.endswith((".heads", "wide")) else 1}:
            narrow = truncate(model, {component: narrower})
            onnx.checker.check_model(narrow, full_check=True)
            assert np.isfinite(run(narrow, IMAGES)).all()
            assert present(narrow).get(component, 0) == narrower
    assert len(present(model)) == {"hybrid-17": 5, "folded-20": 4, "rows-18": 1}[name]


@pytest.mark.parametrize(
    ("widths", "text"),
    [
        ({"blocks.0.mpl": 8}, "no component 'blocks.0.mpl'; the nearest is 'blocks.0.mlp'"),
        ({"blocks.0.mlp": 41}, r"the width of 'blocks\.0\.mlp' \(hidden\) can be 0 to 40, not 41"),
        ({"blocks.0.attn.value": 0}, r"'blocks\.0\.attn\.value' \(value\) can be 1 to 8, not 0"),
        ({"blocks.0.attn.query_key": 3}, "and even, because a rotary embedding rotates pairs of channels, not 3"),
    ],
)
def test_impossible_widths_are_refused(widths: dict[str, int], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        check_widths(authored(tiny(rope=Rope(kind="axial"))), widths)
