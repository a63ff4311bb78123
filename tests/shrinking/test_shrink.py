"""Shrunk graphs compute what the whole ones do, as nearly as their widths permit."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from tests.graph.test_canonical import EXPORTS, LOGITS, convert, run
from tests.graph.vits import MEAN, STD, configs, random_arrays, random_images, tiny
from tests.shrinking.test_components import authored, present
from vitedge.data import embedded
from vitedge.errors import InvalidResultError, UsageError
from vitedge.formats.architecture import ConvStem, Rope, ViTConfig
from vitedge.graph import surgery
from vitedge.graph.author import author_vit
from vitedge.importing.entry import import_model
from vitedge.shrinking.components import truncate
from vitedge.shrinking.shrink import shrink
from vitedge.shrinking.structures import Attention, Pair, structures

PICTURES = random_images(tiny(), 24, seed=7)


def distance(narrow: onnx.ModelProto, model: onnx.ModelProto, images: NDArray[np.uint8] = PICTURES) -> float:
    """Mean squared difference of the logits over their variance."""
    logits, expected = run(narrow, images), run(model, images)
    return float(np.square(logits - expected).mean() / np.square(expected - expected.mean(axis=0)).mean())


@pytest.mark.parametrize("sequential", [True, False])
def test_where_nothing_goes_nothing_changes(sequential: bool) -> None:
    model = authored(tiny())
    assert distance(shrink(model, present(model), PICTURES, sequential=sequential).model, model) == 0.0


@given(configs(), st.data())
@settings(max_examples=5, deadline=None)
def test_what_makes_no_difference_goes_without_loss(config: ViTConfig, data: st.DataObject) -> None:
    """Units that are never active, units that are copies, and channels that queries, keys and values don't use."""
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    model = authored(config)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    widths: dict[str, int] = {}
    for each in structures(model):
        if isinstance(each, Pair) and each.first.linear.kind == "linear" and each.width > 1:
            weight, bias = (constants[f"{each.first.name}.{part}"] for part in ("weight", "bias"))
            for tensor in (weight, bias):
                values = numpy_helper.to_array(tensor).copy()
                copied = values.reshape(*values.shape[:-1], -1, each.width)
                copied[..., each.width // 2 :] = copied[..., : each.width - each.width // 2]
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            widths[each.name] = (each.width + 1) // 2
        elif isinstance(each, Attention) and each.rotary is None and not each.normed and each.query_key > 2:
            rank = each.query_key // 2
            matrix = numpy_helper.to_array(constants[f"{each.query.layer.name}.weight"]).copy()
            bias_name = f"{each.query.layer.name}.bias"
            for start in range(each.query.start, each.query.stop, each.query_key):
                mixed = random.standard_normal((rank, each.query_key)) / np.sqrt(rank)
                columns = slice(start, start + each.query_key)
                matrix[:, columns] = matrix[:, start : start + rank] @ mixed
                if bias_name in constants:
                    bias = numpy_helper.to_array(constants[bias_name]).copy()
                    bias[columns] = bias[start : start + rank] @ mixed
                    constants[bias_name].CopyFrom(numpy_helper.from_array(bias, bias_name))
            tensor = constants[f"{each.query.layer.name}.weight"]
            tensor.CopyFrom(numpy_helper.from_array(matrix.astype(np.float32), tensor.name))
            widths[f"{each.name}.query_key"] = rank
    images = random_images(config, 16)
    for sequential in (True, False):
        narrow = shrink(model, widths, images, sequential=sequential).model
        onnx.checker.check_model(narrow, full_check=True)
        assert {name: present(narrow)[name] for name in widths} == widths
        change, logits = run(narrow, images) - run(model, images), run(model, images)
        assert np.square(change).mean() <= 2e-3 * np.square(logits).mean()  # what the ridge holds back


@pytest.mark.parametrize(
    ("changes", "widths"),
    [
        ({}, {"blocks.0.mlp": 24, "blocks.1.mlp": 24}),
        ({"mlp": "swiglu"}, {"blocks.0.mlp": 24, "blocks.1.mlp": 20}),
        ({"embed_dim": 48}, {"blocks.0.attn.query_key": 8, "blocks.1.attn.value": 8}),
        ({"embed_dim": 48}, {"blocks.0.attn.heads": 2, "blocks.1.attn.heads": 2, "blocks.1.attn.value": 12}),
        ({"embed_dim": 48, "rope": Rope(kind="axial")}, {"blocks.0.attn.query_key": 10, "blocks.1.attn.query_key": 12}),
        ({"embed_dim": 48, "rope": Rope(kind="mixed")}, {"blocks.0.attn.query_key": 10, "blocks.1.attn.heads": 2}),
        ({"qk_norm": True, "qkv_bias": False}, {"blocks.0.attn.heads": 2, "blocks.0.attn.value": 6}),
        ({"stem": ConvStem(channels=(12, 16), strides=(2, 4))}, {"patch_embed.stem.0": 6, "patch_embed.stem.1": 10}),
        ({"class_token": False, "pool": "avg"}, {"blocks.0.attn.heads": 0, "blocks.1.mlp": 0}),
        ({"position_embedding": "none"}, {"blocks.0.attn.heads": 0}),
        ({"pre_norm": True}, {"blocks.0.mlp": 0}),
        ({}, {"blocks.0.attn.heads": 0, "blocks.0.mlp": 0, "blocks.1.attn.heads": 0}),
    ],
)
def test_what_stays_makes_up_for_what_goes(changes: dict[str, object], widths: dict[str, int]) -> None:
    """Much nearer than the same widths cut, by a graph of the same structure."""
    model = authored(tiny(**changes))
    shrunk = shrink(model, widths, PICTURES)
    onnx.checker.check_model(shrunk.model, full_check=True)
    assert set(shrunk.kept) >= set(widths)
    assert {name: each.width for name, each in shrunk.kept.items()} | widths == {
        name: each.width for name, each in shrunk.kept.items()
    }
    assert all(0 <= each.error <= 1.0 + 1e-6 for each in shrunk.kept.values())
    cut = truncate(model, widths)
    assert surgery.macs(shrunk.model) == surgery.macs(cut)
    assert [node.name for node in shrunk.model.graph.node] == [node.name for node in cut.graph.node]
    assert distance(shrunk.model, model) < 0.8 * distance(cut, model)


def streams(model: onnx.ModelProto, name: str) -> NDArray[np.float32]:
    """A tensor inside the graph, on all pictures."""
    import onnxruntime

    watched = surgery.copy(model)
    del watched.graph.output[:]
    watched.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": PICTURES})[0])


def test_layers_make_up_for_what_those_before_them_lost() -> None:
    model = authored(tiny(class_token=False, pool="avg"))
    widths = {"blocks.0.mlp": 16, "blocks.1.mlp": 16}
    expected, errors = streams(model, "blocks.1.add2.out"), []
    for sequential, target in ((False, "layer"), (True, "layer"), (True, "stream")):
        narrow = shrink(model, widths, PICTURES, sequential=sequential, target=target).model  # type: ignore[arg-type]
        errors.append(float(np.square(streams(narrow, "blocks.1.add2.out") - expected).mean()))
    assert errors[2] < errors[1] < errors[0]


def test_the_branch_of_a_block_is_replaced_by_what_it_adds_on_average() -> None:
    """Into a constant that is added before; the graph has no node more."""
    model = authored(tiny(depth=1))
    narrow = shrink(model, {"blocks.0.mlp": 0}, PICTURES).model
    assert "blocks.0.add2" not in {node.name for node in narrow.graph.node}
    before = surgery.array(surgery.initializers(model)["blocks.0.attn.proj.bias"])
    after = surgery.array(surgery.initializers(narrow)["blocks.0.attn.proj.bias"])
    added = streams(model, "blocks.0.mlp.fc2.bias.out")[:, 0]  # the class token: nothing reads the others
    assert np.allclose(after - before, added.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("name", ["hybrid-17", "folded-20", "rows-18"])
def test_hybrids(name: str) -> None:
    """An inverted bottleneck by way of its depthwise convolution, separate queries, keys and values, lone branches."""
    model, _ = convert(surgery.load(EXPORTS / f"{name}.onnx"), LOGITS[name])
    width = {"rows-18": 0}.get(name, 6)
    for component, now in present(model).items():
        widths = {component: 1 if component.endswith("heads") else min(width, now - 1)}
        shrunk = shrink(model, widths, PICTURES)
        onnx.checker.check_model(shrunk.model, full_check=True)
        assert shrunk.kept[component].width == widths[component]
        assert distance(shrunk.model, model) < distance(truncate(model, widths), model)


@cache
def trained() -> tuple[onnx.ModelProto, NDArray[np.uint8]]:
    """The embedded model and 64 pictures that it's calibrated by."""
    images = embedded.pictures("calibration")
    frames = np.stack([np.asarray(images.read(i).convert("RGB")) for i in images.order(0)[:64]])
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        import_model("embedded", out=f"{folder}/model")
        return surgery.load(f"{folder}/model/model.onnx"), frames


def test_half_of_a_trained_models_mlps_are_hardly_missed() -> None:
    model, frames = trained()
    held_out = embedded.pictures("held-out")
    images = np.stack([np.asarray(held_out.read(i).convert("RGB")) for i in held_out.order(0)[:200]])
    widths = {name: width // 2 for name, width in present(model).items() if name.endswith(".mlp")}
    labels = run(model, images).argmax(axis=1)
    narrow = run(shrink(model, widths, frames).model, images).argmax(axis=1)
    cut = run(truncate(model, widths), images).argmax(axis=1)
    assert (narrow != labels).sum() <= 3 < (cut != labels).sum()


def test_few_pictures_do_no_harm() -> None:
    """One picture has fewer rows than a layer has inputs: the weights stay near to what they were."""
    model, frames = trained()
    whole = present(model)
    widths = {name: whole[name] * rest // 12 for name, rest in (("blocks.0.mlp", 10), ("blocks.1.attn.query_key", 9))}
    narrow = shrink(model, widths, frames[:1]).model
    assert distance(narrow, model, frames) < 0.05


def test_a_fixed_batch() -> None:
    model = surgery.pin_batch(authored(tiny()), 5)
    shrunk = shrink(model, {"blocks.1.mlp": 24}, PICTURES)
    assert surgery.batch_size(shrunk.model) == 5 and shrunk.kept["blocks.1.mlp"].width == 24
    assert distance(shrunk.model, model, PICTURES[:20]) < distance(
        truncate(model, {"blocks.1.mlp": 24}), model, PICTURES[:20]
    )


def test_what_overflows_is_said() -> None:
    arrays = random_arrays(tiny())
    arrays["blocks.0.mlp.fc1.weight"] *= 1e30
    model = author_vit(tiny(), arrays, mean=MEAN, std=STD)
    with pytest.raises(InvalidResultError, match="overflow float32"):
        shrink(model, {"blocks.0.mlp": 20}, PICTURES)


def test_no_pictures_and_no_such_component() -> None:
    with pytest.raises(UsageError, match="no component"):
        shrink(authored(tiny()), {"x": 1}, PICTURES)
    with pytest.raises(UsageError, match="no pictures were given"):
        shrink(authored(tiny()), {"blocks.0.mlp": 20}, PICTURES[:0])
