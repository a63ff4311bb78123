"""The author against its reference, and the names that are an interface."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from tests.graph.vits import MEAN, STD, configs, narrowed, random_arrays, random_images, tiny
from vitedge.errors import ModelError
from vitedge.formats.architecture import ConvStem, ViTConfig
from vitedge.graph.author import author_vit, expected_parameters
from vitedge.graph.reference import reference_logits


def run(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(None, {"image": images})[0]
    return logits


def relative(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@settings(max_examples=60, deadline=None)
@given(config=configs() | narrowed(), batch=st.integers(1, 3), folded=st.booleans(), seed=st.integers(0, 99))
def test_any_configuration_equals_the_reference(config: ViTConfig, batch: int, folded: bool, seed: int) -> None:
    arrays = random_arrays(config, folded_stem=folded, seed=seed)
    model = author_vit(config, arrays, mean=MEAN, std=STD)
    images = random_images(config, batch, seed)
    expected = reference_logits(config, arrays, images, mean=MEAN, std=STD)
    logits = run(model, images)
    assert logits.shape == (batch, config.num_classes) and logits.dtype == np.float32
    assert np.abs(logits - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def test_the_bytes_depend_on_the_arguments_alone() -> None:
    config = tiny(layer_scale=True)
    arrays = random_arrays(config)
    shuffled = dict(reversed(arrays.items()))
    first = author_vit(config, arrays, mean=MEAN, std=STD).SerializeToString()
    assert author_vit(config, shuffled, mean=MEAN, std=STD).SerializeToString() == first
    assert author_vit(config, arrays, mean=MEAN, std=(0.22, 0.23, 0.25)).SerializeToString() != first


def test_the_form_is_canonical() -> None:
    model = author_vit(tiny(), random_arrays(tiny()), mean=MEAN, std=STD)
    assert model.ir_version == 9
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    image, logits = model.graph.input[0], model.graph.output[0]
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim] == ["N", 32, 48, 3]
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    assert [dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim] == ["N", 7]
    assert [node.op_type for node in model.graph.node][:2] == ["Cast", "Transpose"]  # TensorRT's order


def test_node_names_are_an_interface() -> None:
    names = [
        node.name for node in author_vit(tiny(depth=1), random_arrays(tiny(depth=1)), mean=MEAN, std=STD).graph.node
    ]
    assert names == [
        "image.float", "image.nchw", "patch_embed.proj", "patch_embed.flatten", "patch_embed.transpose",
        "prefix_tokens", "pos_embed",
        "blocks.0.norm1", "blocks.0.attn.qkv", "blocks.0.attn.qkv.bias", "blocks.0.attn.split",
        "blocks.0.attn.q.reshape", "blocks.0.attn.k.reshape", "blocks.0.attn.v.reshape",
        "blocks.0.attn.q.transpose", "blocks.0.attn.k.transpose", "blocks.0.attn.v.transpose",
        "blocks.0.attn.scores", "blocks.0.attn.softmax", "blocks.0.attn.context",
        "blocks.0.attn.context.transpose", "blocks.0.attn.context.reshape",
        "blocks.0.attn.proj", "blocks.0.attn.proj.bias", "blocks.0.add1",
        "blocks.0.norm2", "blocks.0.mlp.fc1", "blocks.0.mlp.fc1.bias", "blocks.0.mlp.act",
        "blocks.0.mlp.fc2", "blocks.0.mlp.fc2.bias", "blocks.0.add2",
        "pool", "norm", "head", "head.bias",
    ]  # fmt: skip


def test_a_bgr_model_takes_rgb_images() -> None:
    for config in (tiny(), tiny(stem=ConvStem(channels=(5,), strides=(8,)))):
        arrays, images = random_arrays(config), random_images(config, 2)
        model = author_vit(config, arrays, mean=MEAN, std=STD, channel_order="bgr")
        expected = reference_logits(config, arrays, images[..., ::-1], mean=MEAN, std=STD)
        assert relative(run(model, images), expected) <= 1e-5


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_float_types_are_widened(dtype: str) -> None:
    kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    arrays = {name: array.astype(kind) for name, array in random_arrays(tiny()).items()}
    widened = {name: array.astype(np.float32) for name, array in arrays.items()}
    model = author_vit(tiny(), arrays, mean=MEAN, std=STD)
    assert model.SerializeToString() == author_vit(tiny(), widened, mean=MEAN, std=STD).SerializeToString()


def test_a_missing_an_unknown_and_a_misshapen_tensor_are_named() -> None:
    arrays = random_arrays(tiny())
    without = {name: array for name, array in arrays.items() if name != "blocks.1.norm2.weight"}
    with pytest.raises(ModelError, match=r"'blocks\.1\.norm2\.weight' is missing; expected shape \[24\]"):
        author_vit(tiny(), without, mean=MEAN, std=STD)
    with pytest.raises(ModelError, match=r"'blocks\.0\.ls1\.gamma' \[24\]: the configuration has no place"):
        author_vit(tiny(), {**arrays, "blocks.0.ls1.gamma": np.ones(24, np.float32)}, mean=MEAN, std=STD)
    with pytest.raises(ModelError, match=r"'pos_embed': expected shape \[1, 25, 24\], received \[1, 26, 24\]"):
        author_vit(tiny(), {**arrays, "pos_embed": np.zeros((1, 26, 24), np.float32)}, mean=MEAN, std=STD)
    with pytest.raises(ModelError, match=r"'head\.bias': expected a float type, received int64"):
        author_vit(tiny(), {**arrays, "head.bias": np.zeros(7, np.int64)}, mean=MEAN, std=STD)


def test_a_scale_that_a_max_pool_would_not_let_pass_is_refused() -> None:
    config = tiny(stem=ConvStem(channels=(4, 5), strides=(2, 4), reduction="max"))
    arrays = random_arrays(config)
    arrays["patch_embed.stem.1.norm.weight"][2] = -0.5
    with pytest.raises(ModelError, match=r"'patch_embed\.stem\.1\.norm\.weight' isn't positive, and a MaxPool"):
        author_vit(config, arrays, mean=MEAN, std=STD)
    author_vit(replace(config, stem=replace(config.stem, reduction="stride")), arrays, mean=MEAN, std=STD)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    arrays = random_arrays(tiny())
    arrays["blocks.1.mlp.fc2.weight"][3, 5] = value
    with pytest.raises(ModelError, match=r"'blocks\.1\.mlp\.fc2\.weight' holds NaN or infinite"):
        author_vit(tiny(), arrays, mean=MEAN, std=STD)


def test_a_fold_that_overflows_is_refused() -> None:
    config = tiny(layer_scale=True)
    arrays = random_arrays(config)
    arrays["blocks.0.ls1.gamma"][:] = 3e38
    arrays["blocks.0.attn.proj.weight"] *= 100
    with pytest.raises(ModelError, match="overflows float32"):
        author_vit(config, arrays, mean=MEAN, std=STD)


def test_sizes_out_of_all_proportion_are_refused_at_once() -> None:
    for config in (tiny(depth=10**9), tiny(image_size=(2**30, 2**30)), tiny(num_classes=0)):
        with pytest.raises(ModelError):
            author_vit(config, random_arrays(tiny()), mean=MEAN, std=STD)


def test_a_senseless_normalisation_is_refused() -> None:
    for mean, std in (((0.5,) * 3, (0.5, 0.0, 0.5)), ((0.5,) * 2, (0.5,) * 3), ((np.nan,) * 3, (0.5,) * 3)):
        with pytest.raises(ModelError, match="preprocessing"):
            author_vit(tiny(), random_arrays(tiny()), mean=mean, std=std)


def test_expected_parameters_have_no_name_twice() -> None:
    for config in (tiny(qk_norm=True, layer_scale=True), tiny(distillation_token=True)):
        names = [name for name, _ in expected_parameters(config)]
        assert len(names) == len(set(names))
