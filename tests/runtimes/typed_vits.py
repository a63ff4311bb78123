"""Requests and pictures for the tests of typed graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from safetensors.numpy import load_file

from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.architecture import ViTConfig
from vitedge.formats.model_folder import class_table
from vitedge.formats.recipe import load_recipe
from vitedge.formats.target import Candidate, load_target
from vitedge.graph.author import author_vit, expected_parameters
from vitedge.graph.builder import GraphBuilder
from vitedge.graph.surgery import to_bytes
from vitedge.quantization.observe import observe
from vitedge.runtimes.base import Request
from vitedge.training.zoo import zoo_config

#: Not every target that the tests use has a GPU for it.
FP8 = Candidate(precision="fp8", variant="linears-fp8-rest-fp16")

VIT_TI = zoo_config("vit_tiny_patch16_224", num_classes=1000)


def trained_like(config: ViTConfig, seed: int = 0) -> onnx.ModelProto:
    """A ViT with weights as timm initialises them: normal, 0.02; LayerNorms at one."""
    random = np.random.default_rng(seed)
    arrays = {
        name: np.ones(shape, np.float32)
        if "norm" in name and name.endswith("weight")
        else (0.02 * random.standard_normal(shape)).astype(np.float32)
        for name, shape in expected_parameters(config, folded_stem=True)
    }
    contract = Preprocessing(size=config.image_size, resize="squash", interpolation="bilinear")
    return author_vit(config, arrays, mean=contract.mean, std=contract.std)


def residual_network(head: str = "Gemm") -> onnx.ModelProto:
    """Convolutions with a residual branch, also one that a convolution writes, and two of different kernels that read
    one tensor and meet again."""
    random = np.random.default_rng(3)
    builder = GraphBuilder()

    def convolution(name: str, x: str, channels: tuple[int, int], size: int, group: int = 1) -> str:
        shape = (channels[1], channels[0] // group, size, size)
        weight = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        weights = builder.constant(f"{name}.weight", weight.astype(np.float32))
        bias = builder.constant(f"{name}.bias", np.zeros(channels[1], np.float32))
        return builder.node(
            "Conv", name, x, weights, bias, kernel_shape=[size, size], pads=[size // 2] * 4, group=group
        )

    x = builder.transpose("planes", builder.node("Cast", "float", "image", to=TensorProto.FLOAT), [0, 3, 1, 2])
    x = builder.node("Mul", "scaled", x, builder.constant("scale", np.float32(0.02)))
    x = builder.node("Relu", "stem.act", convolution("stem.conv", x, (3, 32), 3))
    inner = builder.node("Relu", "a.act", convolution("a.conv1", x, (32, 32), 3))
    inner = convolution("a.conv2", inner, (32, 32), 3)
    x = builder.node("Relu", "a.out", builder.node("Add", "a.sum", inner, x))
    x = convolution("c.conv1", x, (32, 32), 1)
    x = builder.node("Add", "c.sum", convolution("c.conv2", x, (32, 32), 3), x)
    x = convolution("c.conv3", x, (32, 32), 1)
    x = builder.node("Relu", "dw.act", convolution("dw.conv", x, (32, 32), 3, group=32))
    branches = [convolution("b.conv", x, (32, 32), 3), convolution("b.shortcut", x, (32, 32), 1)]
    x = builder.node("Gelu", "b.out", builder.node("Add", "b.sum", *branches))
    x = builder.node("GlobalAveragePool", "pool", x)
    if head == "Conv":
        builder.node("Flatten", "flat", convolution("head", x, (32, 16), 1), out="logits")
    else:
        weight = builder.constant("head.weight", random.standard_normal((32, 16)).astype(np.float32))
        builder.node("Gemm", "head", builder.node("Flatten", "flat", x), weight, out="logits")
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 32, 48, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 16])
    graph = helper.make_graph(builder.nodes, "g", [image], [logits], list(builder.model.graph.initializer))
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)])


def embedded() -> tuple[onnx.ModelProto, ViTConfig]:
    """The model that ships with vitedge, authored from its weights; skips where it isn't in this checkout."""
    import vitedge
    from vitedge.formats.model_folder import MODEL_WEIGHTS, read_model_record

    folder = Path(vitedge.__file__).parent / "data" / "embedded"
    if not (folder / MODEL_WEIGHTS).exists():
        pytest.skip("the embedded model isn't in this checkout")
    record = read_model_record(folder, "read the embedded model")
    assert record.architecture is not None
    contract = record.preprocessing
    graph = author_vit(
        record.architecture,
        load_file(folder / MODEL_WEIGHTS),
        mean=contract.mean,
        std=contract.std,
        rescale=contract.rescale,
    )
    return graph, record.architecture


def pictures(config: ViTConfig, count: int, seed: int = 5) -> NDArray[np.uint8]:
    """Smooth coloured pictures, uint8 [count, H, W, 3]."""
    random = np.random.default_rng(seed)
    height, width = config.image_size
    coarse = random.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    smooth = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in coarse]
    return np.stack([np.asarray(one) for one in smooth])


def request(
    graph: onnx.ModelProto,
    config: ViTConfig,
    precision: str,
    target: str = "tensorrt",
    *,
    images: NDArray[np.uint8] | None = None,
    batch: int = 1,
    by: str = "fast",
) -> Request:
    """What export would hand to a lowering; ``images`` calibrate a quantized precision by the recipe ``by``."""
    device = load_target(target)
    recipe = statistics = None
    if precision in ("int8", "fp8"):
        assert images is not None
        recipe = load_recipe(by)
        recipe = replace(recipe, observe=replace(recipe.observe, num_samples=len(images)))
        statistics = observe(graph, iter(images), recipe.observe, key="test")
    return Request(
        graph=graph,
        target=device,
        candidate=FP8 if precision == "fp8" else device.candidates(precision)[0],
        batch=batch,
        preprocessing=Preprocessing(size=config.image_size, resize="squash", interpolation="bilinear"),
        classes=class_table([f"class {index}" for index in range(config.num_classes)]),
        recipe=recipe,
        statistics=statistics,
    )


def interpret(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits, operator by operator: no fusion changes a type."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def deviation(received: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest absolute difference over largest absolute logit."""
    return float(np.abs(received - expected).max() / np.abs(expected).max())
