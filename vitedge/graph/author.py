"""Author: write the canonical ONNX graph from a configuration and named arrays, without torch and without an exporter.

The graph is the one that ``ARCHITECTURE`` calls canonical: opset 20, IR version 9, input ``image`` uint8
``[N, H, W, 3]``, output ``logits`` float32 ``[N, classes]``, symbolic batch ``N``. Its names are an interface:

- Node ``X`` writes the tensor ``X.out`` (``attn.split`` writes ``attn.split.q``, ``.k`` and ``.v``); its weights are
  the initialisers ``X.weight`` and ``X.bias``.
- A linear ``X`` is the node ``X`` (MatMul with ``X.weight`` ``[C_in, C_out]``) followed, if it has a bias, by the node
  ``X.bias`` (Add with the initialiser ``X.bias`` ``[C_out]``). A convolution is one node ``X``.
- Convolutions: ``patch_embed.proj`` and, with a convolutional stem, ``patch_embed.stem.{i}.conv``. Linears:
  ``blocks.{i}.attn.qkv``, ``blocks.{i}.attn.proj``, ``blocks.{i}.mlp.fc1``, ``blocks.{i}.mlp.fc2``, ``head`` and, for
  a distilled DeiT, ``head_dist``.
- Everything else: ``patch_embed.stem.{i}.pool``, ``.act``; ``blocks.{i}.norm1``, ``.attn.q.rope``, ``.attn.k.rope``,
  ``.attn.scores``, ``.attn.softmax``, ``.attn.context``, ``.add1``, ``.norm2``, ``.mlp.act``, ``.mlp.gate``, ``.add2``,
  ``.merge``;
  ``prefix_tokens``, ``pos_embed``, ``norm_pre``, ``pool.sizes``, ``pool``, ``norm`` or ``fc_norm``.

Folded exactly (in float64, then rounded once): mean and standard deviation into a patch convolution, BatchNorm into
its convolution (through a MaxPool where there's one), LayerScale into ``attn.proj`` and ``mlp.fc2``, the attention
scale head_dim^-½ into the query rows of ``attn.qkv`` (or, with QK-norm, into the affine of ``attn.q_norm``), the mean
of two heads into their weights, and the pairing of a rotary embedding into the order of q's and k's channels. A first
convolution with padding pads with the mean colour, so there the mean stays an explicit subtraction and only the factor
is folded.
The class, distillation and register tokens and the position embedding are one constant, added to the patch tokens
behind as many zero rows: no Shape, Expand or Concat, so the batch stays symbolic without any shape arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper

from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError
from vitedge.formats.architecture import BlockWidths, ConvStem, ViTConfig
from vitedge.graph.builder import GraphBuilder
from vitedge.graph.merging import sizes, with_prefix
from vitedge.graph.positions import block_angles, block_freqs, half_order

OPSET = 20
IR_VERSION = 9
BATCH_NORM_EPS = 1e-5  # torch's default; timm and our own training leave it there
MAX_TOKENS = 1 << 14
MAX_BYTES = (1 << 31) - 1  # one protobuf message

Float64 = NDArray[np.float64]


def author_vit(
    config: ViTConfig,
    arrays: Mapping[str, NDArray[np.generic]],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    rescale: float = 1 / 255,
    channel_order: Literal["rgb", "bgr"] = "rgb",
    name: str = "vit",
) -> onnx.ModelProto:
    """Write the canonical ONNX graph of a plain Vision Transformer.

    Args:
        config: the architecture.
        arrays: exactly the parameters of :func:`expected_parameters`, any float type, torch's axis order.
        mean: per channel, in the model's channel order and in units of the rescaled image.
        std: likewise.
        rescale: factor from uint8 pixels to the units of mean and std.
        channel_order: what the model was trained with; the graph's input is RGB, so "bgr" turns the first kernel.
        name: the ONNX graph's name.

    Returns:
        A checked model whose bytes depend on the arguments alone.

    Raises:
        ModelError: arrays missing, unknown, of another shape, or not finite.
    """
    arrays = checked_parameters(config, arrays)
    means, stds = (np.asarray(values, np.float64) for values in (mean, std))
    if (
        means.shape != (3,)
        or stds.shape != (3,)
        or not np.isfinite(means).all()
        or not (stds > 0).all()
        or rescale <= 0
    ):
        raise ModelError(
            f"author '{name}'",
            f"mean {list(mean)}, std {list(std)} and rescale {rescale} are not three finite numbers, three positive "
            "numbers and a positive number",
            "correct the preprocessing",
        )
    graph = _Graph(arrays)
    order = slice(None, None, -1) if channel_order == "bgr" else slice(None)
    _rotary_tables(graph, config)
    x = _embed(graph, config, mean=(means / rescale)[order], factor=(rescale / stds)[order], order=order)
    for index in range(config.depth):
        x = _block(graph, config, x, f"blocks.{index}", config.block(index))
        if config.block(index).tokens is not None:
            x = _merge(graph, config, x, f"blocks.{index}.merge")
    _classify(graph, config, x)
    return graph.checked(config, name)


def contract_of(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the fields of a preprocessing that :func:`author_vit` folds in, as its arguments."""
    return {name: getattr(preprocessing, name) for name in ("mean", "std", "rescale", "channel_order")}


def expected_parameters(config: ViTConfig, *, folded_stem: bool = False) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every parameter, in the order of the forward pass.

    ``folded_stem`` chooses between the two forms of :class:`~vitedge.formats.architecture.ConvStem`; a patch stem has
    one.
    """
    dim = config.embed_dim
    if isinstance(config.stem, ConvStem):
        for index, stage in enumerate(config.stem.stages):
            name = f"patch_embed.stem.{index}"
            yield f"{name}.conv.weight", (stage.outputs, stage.inputs, stage.kernel, stage.kernel)
            if folded_stem or not stage.normalised:
                yield f"{name}.conv.bias", (stage.outputs,)
            else:
                for part in ("weight", "bias", "running_mean", "running_var"):
                    yield f"{name}.norm.{part}", (stage.outputs,)
        yield "patch_embed.proj.weight", (dim, config.stem.channels[-1], 1, 1)
    else:
        yield "patch_embed.proj.weight", (dim, 3, config.stem.patch_size, config.stem.patch_size)
    yield "patch_embed.proj.bias", (dim,)
    if config.class_token:
        yield "cls_token", (1, 1, dim)
    if config.distillation_token:
        yield "dist_token", (1, 1, dim)
    if config.register_tokens:
        yield "reg_token", (1, config.register_tokens, dim)
    if config.position_embedding == "learned":
        prefix = config.prefix_tokens if config.position_embedding_covers_prefix else 0
        yield "pos_embed", (1, prefix + config.grid[0] * config.grid[1], dim)
    mixed = config.rope is not None and config.rope.kind == "mixed"
    if mixed and not config.blocks:
        yield "rope.freqs", (2, config.depth, config.num_heads, config.head_dim // 2)
    if config.pre_norm:
        yield from _affine("norm_pre", dim)
    for index in range(config.depth):
        yield from _attention_parameters(config, config.block(index), f"blocks.{index}", mixed=mixed)
        yield from _mlp_parameters(config, config.block(index), f"blocks.{index}")
        if config.block(index).tokens is not None:
            merged = (config.tokens_before(i) - config.prefix_tokens for i in (index + 1, index))
            yield f"blocks.{index}.merge.weight", tuple(merged)
    yield from _affine(config.final_norm, dim)
    yield from _affine("head", config.num_classes, config.pooled_dim)
    if config.distillation_token:
        yield from _affine("head_dist", config.num_classes, dim)


def _attention_parameters(
    config: ViTConfig, widths: BlockWidths, block: str, *, mixed: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not widths.heads:
        return
    dim = config.embed_dim
    yield from _affine(f"{block}.norm1", dim)
    yield f"{block}.attn.qkv.weight", (sum(widths.qkv), dim)
    if config.qkv_bias:
        yield f"{block}.attn.qkv.bias", (sum(widths.qkv),)
    if config.qk_norm:
        yield from _affine(f"{block}.attn.q_norm", widths.query_key)
        yield from _affine(f"{block}.attn.k_norm", widths.query_key)
    if mixed and config.blocks:
        yield f"{block}.attn.rope.freqs", (2, widths.heads, widths.query_key // 2)
    yield from _affine(f"{block}.attn.proj", dim, widths.qkv[2])
    if config.layer_scale:
        yield f"{block}.ls1.gamma", (dim,)


def _mlp_parameters(config: ViTConfig, widths: BlockWidths, block: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not widths.mlp_hidden:
        return
    dim = config.embed_dim
    yield from _affine(f"{block}.norm2", dim)
    yield from _affine(f"{block}.mlp.fc1", config.fc1_rows * widths.mlp_hidden, dim)
    yield from _affine(f"{block}.mlp.fc2", dim, widths.mlp_hidden)
    if config.layer_scale:
        yield f"{block}.ls2.gamma", (dim,)


def has_folded_stem(names: Iterable[str]) -> bool:
    """Whether parameters with these names have no BatchNorm in the stem, as shipped weights do."""
    return not any(name.startswith("patch_embed.stem.") and ".norm." in name for name in names)


def checked_parameters(config: ViTConfig, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
    """Return the arrays as float32, after checking that they are exactly the finite parameters that ``config`` needs.

    torch's ``num_batches_tracked`` counters are dropped; they are no parameters.

    Raises:
        ModelError: names the first array at fault, with what was expected and what came.
    """
    action = "build a ViT graph from these weights"
    hint = "pass the weights and the configuration of one and the same model"
    arrays = {key: value for key, value in arrays.items() if not key.endswith(".num_batches_tracked")}
    if config.num_classes < 1:
        raise ModelError(
            action, "the model has no classification head (num_classes is 0)", "pass a fine-tuned classifier"
        )
    if config.depth > len(arrays) or config.tokens > MAX_TOKENS:
        raise ModelError(
            action, f"{config.depth} blocks of {config.tokens} tokens do not fit {len(arrays)} arrays", hint
        )
    checked: dict[str, NDArray[np.float32]] = {}
    for key, shape in expected_parameters(config, folded_stem=has_folded_stem(arrays)):
        if key not in arrays:
            raise ModelError(action, f"tensor '{key}' is missing; expected shape {list(shape)}", hint)
        array = np.asarray(arrays[key])
        if array.shape != shape:
            raise ModelError(
                action, f"tensor '{key}': expected shape {list(shape)}, received {list(array.shape)}", hint
            )
        if array.dtype.kind in "iubcOSU":  # bfloat16 is of kind V
            raise ModelError(action, f"tensor '{key}': expected a float type, received {array.dtype}", hint)
        with np.errstate(over="ignore"):
            checked[key] = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(checked[key]).all():
            raise ModelError(action, f"tensor '{key}' holds NaN or infinite values", "use a sound checkpoint")
    if unknown := sorted(arrays.keys() - checked.keys()):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        shape = np.shape(arrays[unknown[0]])
        raise ModelError(
            action, f"tensor '{unknown[0]}' {list(shape)}{more}: the configuration has no place for it", hint
        )
    if sum(array.nbytes for array in checked.values()) > MAX_BYTES // 2:
        raise ModelError(action, "the weights need more than 1 GiB in float32", "vitedge is for compact models")
    return checked


def _affine(name: str, outputs: int, inputs: int | None = None) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs,) if inputs is None else (outputs, inputs)
    yield f"{name}.bias", (outputs,)


class _Graph(GraphBuilder):
    """The graph under construction, and the parameters that go into it."""

    def __init__(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__()
        self.arrays = arrays

    def array(self, name: str) -> Float64:
        return self.arrays[name].astype(np.float64)

    def weight(self, name: str, values: ArrayLike) -> str:
        """Add a float32 initialiser."""
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(values, dtype=np.float32)
        if not np.isfinite(array).all():
            raise ModelError(
                "build a ViT graph from these weights", f"'{name}' overflows float32", "use a sound checkpoint"
            )
        return self.constant(name, array)

    def linear(self, name: str, x: str, weight: Float64, bias: Float64 | None, *, out: str | None = None) -> str:
        """[…, C_in] -> […, C_out]; ``weight`` comes as torch has it, [C_out, C_in]."""
        x = self.node("MatMul", name, x, self.weight(f"{name}.weight", weight.T), out=out if bias is None else None)
        return x if bias is None else self.node("Add", f"{name}.bias", x, self.weight(f"{name}.bias", bias), out=out)

    def layer_norm(
        self, name: str, x: str, eps: float, *, factor: float = 1.0, order: NDArray[np.intp] | slice = slice(None)
    ) -> str:
        """Normalise the last axis; ``factor`` and an ``order`` of the channels are folded into the affine."""
        weight = self.weight(f"{name}.weight", factor * self.array(f"{name}.weight")[order])
        bias = self.weight(f"{name}.bias", factor * self.array(f"{name}.bias")[order])
        return self.node("LayerNormalization", name, x, weight, bias, axis=-1, epsilon=eps)

    def gelu(self, name: str, x: str, kind: str = "gelu") -> str:
        return self.node("Gelu", name, x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def split(self, name: str, x: str, parts: Sequence[str], sizes: Sequence[int]) -> None:
        """Split the last axis into parts of these sizes, the tensors ``parts``."""
        self.node("Split", name, x, self.integers(f"{name}.sizes", sizes), out=parts, axis=-1)

    def slice_tokens(self, name: str, x: str, first: int, end: int) -> str:
        """[N, T, D] -> [N, end - first, D]."""
        bounds = [
            self.integers(f"{name}.{part}", [value]) for part, value in (("start", first), ("end", end), ("axis", 1))
        ]
        return self.node("Slice", name, x, *bounds)

    def token(self, name: str, x: str, index: int) -> str:
        """[N, T, D] -> [N, D]."""
        return self.node("Gather", name, x, self.constant(f"{name}.index", np.int64(index)), axis=1)

    def checked(self, config: ViTConfig, name: str) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *config.image_size, 3])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", config.num_classes])
        graph = helper.make_graph(self.nodes, name, [image], [logits], self.model.graph.initializer)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="vitedge"
        )
        onnx.checker.check_model(model)
        return model


def _embed(graph: _Graph, config: ViTConfig, *, mean: Float64, factor: Float64, order: slice) -> str:
    """uint8 RGB [N, H, W, 3] -> tokens [N, T, D]. The stem sees (pixel - mean)·factor, its channels in ``order``."""
    x = graph.node("Cast", "image.float", "image", to=TensorProto.FLOAT)  # TensorRT takes no uint8 Transpose
    x = graph.transpose("image.nchw", x, [0, 3, 1, 2])
    weight, bias = graph.array("patch_embed.proj.weight"), graph.array("patch_embed.proj.bias")
    if isinstance(config.stem, ConvStem):
        x = _convolve(graph, config.stem, x, mean=mean, factor=factor, order=order)
        patch = 1
    else:
        weight = weight[:, order] * factor[:, None, None]
        bias = bias - np.einsum("oikl,i->o", weight, mean)
        patch = config.stem.patch_size
    weight_name, bias_name = (
        graph.weight("patch_embed.proj.weight", weight),
        graph.weight("patch_embed.proj.bias", bias),
    )
    x = graph.node("Conv", "patch_embed.proj", x, weight_name, bias_name, kernel_shape=[patch] * 2, strides=[patch] * 2)
    x = graph.reshape("patch_embed.flatten", x, [0, config.embed_dim, -1])  # [N, D, rows, columns] -> [N, D, patches]
    x = graph.transpose("patch_embed.transpose", x, [0, 2, 1])  # -> [N, patches, D]

    prefix = config.prefix_tokens
    if prefix:
        x = graph.node("Pad", "prefix_tokens", x, graph.integers("prefix_tokens.pads", [0, prefix, 0, 0, 0, 0]))
    if prefix or config.position_embedding == "learned":
        offsets = np.zeros((1, config.tokens, config.embed_dim))
        tokens = (("cls_token", config.class_token), ("dist_token", config.distillation_token))
        names = [name for name, there in (*tokens, ("reg_token", config.register_tokens > 0)) if there]
        if names:
            offsets[:, :prefix] = np.concatenate([graph.array(name) for name in names], axis=1)
        if config.position_embedding == "learned":
            offsets[:, 0 if config.position_embedding_covers_prefix else prefix :] += graph.array("pos_embed")
        x = graph.node("Add", "pos_embed", x, graph.weight("pos_embed.weight", offsets))
    return graph.layer_norm("norm_pre", x, config.layer_norm_eps) if config.pre_norm else x


def _convolve(graph: _Graph, stem: ConvStem, x: str, *, mean: Float64, factor: Float64, order: slice) -> str:
    """Build the stages of a convolutional stem, pixels [N, 3, H, W] -> [N, channels, rows, columns]."""
    if stem.stages[0].padding:
        x = graph.node("Sub", "image.mean", x, graph.weight("image.mean.weight", mean.reshape(3, 1, 1)))
    for index, stage in enumerate(stem.stages):
        name = f"patch_embed.stem.{index}"
        kernel, offset = _folded_batch_norm(graph, name, pooled=stage.pool > 1)
        if index == 0:
            kernel = kernel[:, order] * factor[:, None, None]
            offset = offset if stage.padding else offset - np.einsum("oikl,i->o", kernel, mean)
        kernel_name, offset_name = (
            graph.weight(f"{name}.conv.weight", kernel),
            graph.weight(f"{name}.conv.bias", offset),
        )
        x = graph.node(
            "Conv",
            f"{name}.conv",
            x,
            kernel_name,
            offset_name,
            kernel_shape=[stage.kernel] * 2,
            strides=[stage.stride] * 2,
            pads=[stage.padding] * 4,
        )
        if stage.pool > 1:
            x = graph.node("MaxPool", f"{name}.pool", x, kernel_shape=[stage.pool] * 2, strides=[stage.pool] * 2)
        x = graph.gelu(f"{name}.act", x)
    return x


def _folded_batch_norm(graph: _Graph, stage: str, *, pooled: bool) -> tuple[Float64, Float64]:
    """Return kernel and bias of a stem convolution, with BatchNorm (Ioffe & Szegedy, 1502.03167) folded in.

    A MaxPool in between lets a positive scale pass alone.
    """
    kernel = graph.array(f"{stage}.conv.weight")
    if f"{stage}.conv.bias" in graph.arrays:
        return kernel, graph.array(f"{stage}.conv.bias")
    gamma, beta, mean, var = (
        graph.array(f"{stage}.norm.{part}") for part in ("weight", "bias", "running_mean", "running_var")
    )
    if (var < 0).any():
        raise ModelError(
            "build a ViT graph from these weights", f"'{stage}.norm.running_var' is negative", "use a sound checkpoint"
        )
    if pooled and (gamma <= 0).any():
        raise ModelError(
            "build a ViT graph from these weights",
            f"'{stage}.norm.weight' isn't positive, and a MaxPool stands before this BatchNorm",
            "keep the scale positive in training",
        )
    gain = gamma / np.sqrt(var + BATCH_NORM_EPS)
    return kernel * gain[:, None, None, None], beta - mean * gain


def _block(graph: _Graph, config: ViTConfig, x: str, block: str, widths: BlockWidths) -> str:
    """Compute x [N, T, D] -> x + attention(norm1(x)), then + mlp(norm2(x)); a removed branch adds nothing."""
    if widths.heads:
        y = graph.layer_norm(f"{block}.norm1", x, config.layer_norm_eps)
        scale = _layer_scale(graph, config, f"{block}.ls1")
        y = _attention(graph, config, y, f"{block}.attn", widths, scale=scale)
        x = graph.node("Add", f"{block}.add1", x, y)
    if widths.mlp_hidden:
        y = graph.layer_norm(f"{block}.norm2", x, config.layer_norm_eps)
        y = _mlp(graph, config, y, f"{block}.mlp", widths, scale=_layer_scale(graph, config, f"{block}.ls2"))
        x = graph.node("Add", f"{block}.add2", x, y)
    return x


def _merge(graph: _Graph, config: ViTConfig, x: str, name: str) -> str:
    """Merge tokens [N, T, D] -> [N, fewer, D]: a product from the left with a constant that keeps the prefix tokens."""
    matrix = with_prefix(graph.array(f"{name}.weight"), config.prefix_tokens)
    return graph.node("MatMul", name, graph.weight(f"{name}.weight", matrix), x)


def _mlp(graph: _Graph, config: ViTConfig, x: str, name: str, widths: BlockWidths, *, scale: Float64 | float) -> str:
    """Build two linears around an activation, [N, T, D] -> [N, T, D]; ``scale`` is the LayerScale of the output."""
    y = graph.linear(f"{name}.fc1", x, graph.array(f"{name}.fc1.weight"), graph.array(f"{name}.fc1.bias"))
    if config.mlp == "swiglu":  # silu(gate) · value
        gate, value = f"{name}.split.gate", f"{name}.split.value"
        graph.split(f"{name}.split", y, (gate, value), [widths.mlp_hidden] * 2)
        y = graph.node("Mul", f"{name}.act", gate, graph.node("Sigmoid", f"{name}.sigmoid", gate))
        y = graph.node("Mul", f"{name}.gate", y, value)
    else:
        y = graph.gelu(f"{name}.act", y, config.activation)
    return _scaled_linear(graph, f"{name}.fc2", y, scale)


def _rotary_tables(graph: _Graph, config: ViTConfig) -> None:
    """Add constants ``rope.cos`` and ``rope.sin`` [T, 1, d], or a pair for each block that has its own, [T, heads, d].

    Partners of a pair are half a head apart: turned = x · cos + (x, its halves swapped) · sin, the first half of sin
    negative. Prefix tokens have cos 1 and sin 0.
    """
    if config.rope is None:
        return
    written: set[str] = set()
    for index in range(config.depth):
        widths, name = config.block(index), _rotary_table(config, index)
        if not widths.heads or name in written:
            continue
        written.add(name)
        angles = block_angles(config, widths, block_freqs(config, graph.arrays, index))
        angles = np.concatenate([np.zeros((config.prefix_tokens, *angles.shape[1:])), angles])
        graph.weight(f"{name}.cos", np.concatenate([np.cos(angles)] * 2, axis=-1))
        graph.weight(f"{name}.sin", np.concatenate([-np.sin(angles), np.sin(angles)], axis=-1))


def _rotary_table(config: ViTConfig, index: int) -> str:
    """Return the name of a block's tables: the block's own where its frequencies or its kept pairs are its own."""
    assert config.rope is not None
    own = config.rope.kind == "mixed" or config.block(index).rope_pairs is not None
    return f"blocks.{index}.attn.rope" if own else "rope"


def _rotate(graph: _Graph, x: str, name: str, tables: str, pairs: int) -> str:
    """Apply the rotary embedding to [N, T, heads, d]; 5 operators, each elementwise or a copy."""
    first, second = f"{name}.rope.split.first", f"{name}.rope.split.second"
    graph.split(f"{name}.rope.split", x, (first, second), [pairs] * 2)
    swapped = graph.node("Concat", f"{name}.rope.swap", second, first, axis=-1)
    cos = graph.node("Mul", f"{name}.rope.cos", x, f"{tables}.cos")
    return graph.node("Add", f"{name}.rope", cos, graph.node("Mul", f"{name}.rope.sin", swapped, f"{tables}.sin"))


def _layer_scale(graph: _Graph, config: ViTConfig, name: str) -> Float64 | float:
    return graph.array(f"{name}.gamma") if config.layer_scale else 1.0


def _scaled_linear(graph: _Graph, name: str, x: str, scale: Float64 | float, *, out: str | None = None) -> str:
    """Compute scale · (W x + b), with the scale per output channel folded in."""
    bias = graph.array(f"{name}.bias") * scale
    return graph.linear(name, x, (graph.array(f"{name}.weight").T * scale).T, bias, out=out)


def _attention(
    graph: _Graph, config: ViTConfig, x: str, name: str, widths: BlockWidths, *, scale: Float64 | float
) -> str:
    """Build multi-head self-attention, [N, T, D] -> [N, T, D]; ``scale`` is the LayerScale of the output."""
    heads, channels = widths.heads, (widths.query_key, widths.query_key, widths.value)
    queries, _, values = widths.qkv
    weight = graph.array(f"{name}.qkv.weight")
    bias = graph.array(f"{name}.qkv.bias") if config.qkv_bias else None
    factor = config.head_dim**-0.5
    if not config.qk_norm:
        weight[:queries] *= factor
        if bias is not None:
            bias[:queries] *= factor
    order = half_order(widths.query_key, config.rope.pairs if config.rope is not None else "halves")
    turned = 2 * queries  # channels of q and k; their products don't depend on the order
    rows = (np.arange(0, turned, widths.query_key)[:, None] + order).ravel()
    weight[:turned] = weight[rows]
    if bias is not None:
        bias[:turned] = bias[rows]
    qkv = graph.linear(f"{name}.qkv", x, weight, bias)  # [N, T, queries + keys + values]
    parts = [f"{name}.split.{part}" for part in "qkv"]
    graph.split(f"{name}.split", qkv, parts, widths.qkv)
    q, k, v = (
        graph.reshape(f"{name}.{part}.reshape", split, [0, 0, heads, size])  # -> [N, T, heads, channels]
        for part, split, size in zip("qkv", parts, channels, strict=True)
    )
    if config.qk_norm:
        q = graph.layer_norm(f"{name}.q_norm", q, config.layer_norm_eps, factor=factor, order=order)
        k = graph.layer_norm(f"{name}.k_norm", k, config.layer_norm_eps, order=order)
    if config.rope is not None:
        tables = _rotary_table(config, int(name.split(".")[1]))
        q, k = (_rotate(graph, each, f"{name}.{part}", tables, channels[0] // 2) for part, each in (("q", q), ("k", k)))
    q = graph.transpose(f"{name}.q.transpose", q, [0, 2, 1, 3])  # -> [N, heads, T, query_key]
    k = graph.transpose(f"{name}.k.transpose", k, [0, 2, 3, 1])  # -> [N, heads, query_key, T]
    v = graph.transpose(f"{name}.v.transpose", v, [0, 2, 1, 3])
    scores = graph.node("MatMul", f"{name}.scores", q, k)  # [N, heads, T, T]
    attention = graph.node("Softmax", f"{name}.softmax", scores, axis=-1)
    context = graph.node("MatMul", f"{name}.context", attention, v)  # [N, heads, T, value]
    context = graph.transpose(f"{name}.context.transpose", context, [0, 2, 1, 3])
    context = graph.reshape(f"{name}.context.reshape", context, [0, 0, values])  # -> [N, T, heads · value]
    return _scaled_linear(graph, f"{name}.proj", context, scale)


def _merge_weights(graph: _Graph, config: ViTConfig) -> Iterator[Float64]:
    names = (f"blocks.{index}.merge.weight" for index in range(config.depth))
    return (graph.array(name) for name in names if name in graph.arrays)


def _classify(graph: _Graph, config: ViTConfig, x: str) -> None:
    """Compute ``logits`` [N, classes] from tokens [N, T, D]; of a selected token, only that token is normalised."""
    eps, norm = config.layer_norm_eps, config.final_norm
    if config.pool != "token":
        if norm == "norm":
            x = graph.layer_norm(norm, x, eps)
        token = graph.token("pool.token", x, 0) if config.pool == "token_avg" else None
        if config.prefix_tokens:
            x = graph.slice_tokens("pool.patches", x, config.prefix_tokens, config.tokens_before(config.depth))
        if config.merges:  # every patch counts once
            counts = sizes(_merge_weights(graph, config), config.grid[0] * config.grid[1])
            x = graph.node("Mul", "pool.sizes", x, graph.weight("pool.sizes.weight", (counts / counts.mean())[:, None]))
        x = graph.node("ReduceMean", "pool", x, graph.integers("pool.axes", [1]), keepdims=0)
        if token is not None:
            x = graph.node("Concat", "pool.concat", token, x, axis=-1)  # [N, 2 D]
        if norm == "fc_norm":
            x = graph.layer_norm(norm, x, eps)
    elif not config.distillation_token:
        x = graph.layer_norm(norm, graph.token("pool", x, 0), eps)
    if not config.distillation_token:
        _scaled_linear(graph, "head", x, 1.0, out="logits")
        return
    x = graph.layer_norm(norm, graph.slice_tokens("pool", x, 0, 2), eps)  # [N, 2, D]: class and distillation token
    heads = [
        _scaled_linear(graph, head, graph.token(f"{head}.token", x, index), 0.5)
        for index, head in enumerate(("head", "head_dist"))
    ]
    graph.node("Add", "head.mean", *heads, out="logits")
