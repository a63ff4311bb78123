"""The hard cases: outliers planted into a canonical float graph whose function stays the same.

======  ===============================================================================================================
case    where the outliers stand
======  ===============================================================================================================
norms   behind every LayerNormalization: its strongest channels times 50, the rows of the linears behind divided by 50
values  at the input of every attn.proj: the strongest channels of the values times 50, the rows of proj divided by 50;
        exact, because softmax's rows sum to 1
hidden  at the input of every mlp.fc2, in units that carry what the layer says: gelu(z) = z + gelu(-z), so that a unit
        turns into gelu(-z) and a new one, gelu(50 z + b) = 50 z + b, whose row of fc2 is divided by 50
token   at one position alone: two new channels of the residual stream differ from zero there by next to nothing, and
        every LayerNormalization has a gain that makes 50 times its largest output of it, which the linears ignore;
        two new units of every MLP are 50 times its largest hidden value there and nothing elsewhere, and cancel each
        other by rows of fc2 that are divided by 50
stem    at the input of every convolution of the stem but the first: two channels that are 50 times its largest value,
        gelu(g (z + b)) = g (z + b) of a channel z, which the convolution behind takes from each other
all     all of them but the stem's
======  ===============================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vitedge.graph.surgery import array, copy, initializers, to_bytes

FACTOR = 50.0
_CHANNELS = 3  # of each tensor
_NEW = 8  # channels that the residual stream grows by; two are used
_MLP = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
_GELU_IS_LINEAR = 8.0  # from here on gelu(x) = x in float32

Float64 = NDArray[np.float64]
Frames = NDArray[np.uint8]


class _Constants:
    """A copy of a graph whose initialisers are read as float64 and written as what they were."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = copy(model)
        self._tensors = initializers(self.model)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Float64:
        return array(self._tensors[name]).astype(np.float64)

    def __setitem__(self, name: str, values: NDArray[np.generic]) -> None:
        type_ = array(self._tensors[name]).dtype
        self._tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, type_), name))

    def names(self, ending: str) -> list[str]:
        """What stands before the ending of the initialisers' names, in graph order."""
        return [name.removesuffix(ending) for name in self._tensors if name.endswith(ending)]


def norms(model: onnx.ModelProto, frames: Frames) -> onnx.ModelProto:
    """Channels of every LayerNormalization times 50."""
    constants = _Constants(model)
    scaled = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    for node, y in zip(scaled, _tensors(model, [node.output[0] for node in scaled], frames), strict=True):
        chosen = _strongest(y)
        readers = [other.name for other in model.graph.node if node.output[0] in other.input]
        for name in (f"{node.name}.weight", f"{node.name}.bias"):
            constants[name] = _scaled(constants[name], chosen, FACTOR)
        for name in readers:
            constants[f"{name}.weight"] = _scaled(constants[f"{name}.weight"], chosen, 1 / FACTOR)
    return constants.model


def values(model: onnx.ModelProto, frames: Frames) -> onnx.ModelProto:
    """Channels of every attention's values times 50."""
    constants = _Constants(model)
    for block in constants.names(".attn.proj.weight"):
        qkv, projection = f"{block}.attn.qkv", f"{block}.attn.proj.weight"
        width = len(constants[projection])
        chosen = np.argsort(-np.linalg.norm(constants[f"{qkv}.weight"][:, 2 * width :], axis=0))[:_CHANNELS]
        constants[f"{qkv}.weight"] = _scaled(constants[f"{qkv}.weight"].T, 2 * width + chosen, FACTOR).T
        constants[f"{qkv}.bias"] = _scaled(constants[f"{qkv}.bias"], 2 * width + chosen, FACTOR)
        constants[projection] = _scaled(constants[projection], chosen, 1 / FACTOR)
    return constants.model


def hidden(model: onnx.ModelProto, frames: Frames) -> onnx.ModelProto:
    """The strongest units of every MLP, 50 times as large."""
    constants = _Constants(model)
    blocks = constants.names(".mlp.fc2.weight")
    before = _tensors(model, [f"{block}.mlp.fc1.bias.out" for block in blocks], frames)
    for block, z in zip(blocks, before, strict=True):
        fc1, bias1, fc2, bias2 = (f"{block}.mlp.{one}" for one in _MLP)
        w1, b1, w2, b2 = (constants[name] for name in (fc1, bias1, fc2, bias2))
        chosen = _strongest(z)
        reach = 2 * np.abs(z[..., chosen]).max(axis=(0, 1))  # twice what these pictures show
        offset = FACTOR * reach + _GELU_IS_LINEAR
        constants[fc1] = np.concatenate([_scaled(w1.T, chosen, -1).T, FACTOR * w1[:, chosen]], axis=1)
        constants[bias1] = np.concatenate([_scaled(b1, chosen, -1), FACTOR * b1[chosen] + offset])
        constants[fc2] = np.concatenate([w2, w2[chosen] / FACTOR])
        constants[bias2] = b2 - offset @ w2[chosen] / FACTOR
    return constants.model


def token(model: onnx.ModelProto, frames: Frames, position: int = 0) -> onnx.ModelProto:
    """One position with huge channels behind every LayerNormalization and huge units in every MLP."""
    blocks = _Constants(model).names(".mlp.fc2.weight")
    grown = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    stream = _tensors(model, [node.input[0] for node in grown], frames)
    normed = _tensors(model, [node.output[0] for node in grown], frames)
    units = _tensors(model, [f"{block}.mlp.act.out" for block in blocks], frames)
    constants = _Constants(_centred(model))
    width = len(constants["patch_embed.proj.weight"])
    new = slice(width, width + 2)
    small = 0.01 * min(float(x.std()) for x in stream)

    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias"):
        constants[name] = _grown(constants[name], 0)
    constants["patch_embed.flatten.shape"] = np.array([0, width + _NEW, -1])
    offsets = _grown(constants["pos_embed.weight"], 2)
    offsets[0, position, new] = small, -small  # the mean stays zero
    constants["pos_embed.weight"] = offsets
    largest: dict[str, float] = {}  # of the new channels, by LayerNormalization
    for node, x, y in zip(grown, stream, normed, strict=True):
        gamma = _grown(constants[f"{node.name}.weight"] * np.sqrt(width / (width + _NEW)), 0)
        if x.ndim == 3:  # token by token
            largest[node.name] = FACTOR * float(np.abs(y).max())
            gamma[new] = largest[node.name] * x[:, position].std(axis=-1).mean() / small
        constants[f"{node.name}.weight"] = gamma
        constants[f"{node.name}.bias"] = _grown(constants[f"{node.name}.bias"], 0)
        for reader in (other.name for other in model.graph.node if node.output[0] in other.input):
            constants[f"{reader}.weight"] = _grown(constants[f"{reader}.weight"], 0)
    for node in constants.model.graph.node:
        for each in node.attribute:
            if each.name == "epsilon":
                each.f *= width / (width + _NEW)
    for block, g in zip(blocks, units, strict=True):
        fc1, fc2, gains = f"{block}.mlp.fc1", f"{block}.mlp.fc2", np.array([1.0, 0.7])
        huge = np.zeros((width + _NEW, 2))
        huge[width] = gains * FACTOR * float(np.abs(g).max()) / largest[f"{block}.norm2"]
        constants[f"{fc1}.weight"] = np.concatenate([constants[f"{fc1}.weight"], huge], axis=1)
        constants[f"{fc1}.bias"] = _grown(constants[f"{fc1}.bias"], 0, 2)
        rows = constants[f"{fc2}.weight"]
        row = rows[np.argmax(np.linalg.norm(rows, axis=1))]
        constants[f"{fc2}.weight"] = np.concatenate([rows, row / FACTOR / gains[:, None] * [[1], [-1]]])
        for name in (fc2, f"{block}.attn.proj"):
            constants[f"{name}.weight"] = _grown(constants[f"{name}.weight"], 1)
            constants[f"{name}.bias"] = _grown(constants[f"{name}.bias"], 0)
    return constants.model


def stem(model: onnx.ModelProto, frames: Frames) -> onnx.ModelProto:
    """Two huge channels in front of every convolution of the stem but the first, one of them 0.7 times the other."""
    constants = _Constants(model)
    stages = constants.names(".conv.weight")
    before = _tensors(model, [f"{stage}.conv.out" for stage in stages[:-1]], frames)  # [n, C, H, W]
    for (stage, behind), z in zip(pairwise(stages), before, strict=True):
        chosen = _strongest(np.moveaxis(z, 1, -1))[:1]
        offset = 2 * np.abs(z[:, chosen]).max()  # of z + offset nothing is negative
        gains = FACTOR * z.max() / (1.5 * offset) * np.array([1.0, 0.7])
        weight, bias, next_weight = f"{stage}.conv.weight", f"{stage}.conv.bias", f"{behind}.conv.weight"
        rows, biases, columns = constants[weight], constants[bias], constants[next_weight]
        column = columns[:, chosen]
        constants[weight] = np.concatenate([rows, gains[:, None, None, None] * rows[chosen]])
        constants[bias] = np.concatenate([biases, gains * (biases[chosen] + offset)])
        constants[next_weight] = np.concatenate([columns, column / gains[0], -column / gains[1]], axis=1)
    return constants.model


def everything(model: onnx.ModelProto, frames: Frames) -> onnx.ModelProto:
    """All of the blocks' outliers, one after the other."""
    for plant in (token, values, hidden, norms):
        model = plant(model, frames)
    return model


Plant = Callable[[onnx.ModelProto, Frames], onnx.ModelProto]
#: By name: the float graph and a few pictures uint8 [n, h, w, 3], by whose activations sizes are set, to the float
#: graph of the same function.
CASES: Mapping[str, Plant] = {
    "norms": norms,
    "values": values,
    "hidden": hidden,
    "token": token,
    "stem": stem,
    "all": everything,
}


def _centred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function, for everything that is added to the residual stream has a mean of zero over channels."""
    constants = _Constants(model)
    for name, axis in (("patch_embed.proj.weight", 0), ("patch_embed.proj.bias", 0), ("pos_embed.weight", -1)):
        constants[name] = constants[name] - constants[name].mean(axis=axis, keepdims=True)
    for block in constants.names(".mlp.fc2.weight"):
        for name in (f"{block}.mlp.fc2", f"{block}.attn.proj"):
            for part in (f"{name}.weight", f"{name}.bias"):
                constants[part] = constants[part] - constants[part].mean(axis=-1, keepdims=True)
    return constants.model


def _strongest(y: Float64) -> NDArray[np.intp]:
    """Channels of the largest typical magnitude; of values [.., C], most of which are there at every position."""
    return np.argsort(-np.median(np.abs(y).reshape(-1, y.shape[-1]), axis=0))[:_CHANNELS]


def _scaled(values: Float64, chosen: NDArray[np.intp], factor: float) -> Float64:
    """With these entries of the first axis times a factor."""
    values = values.copy()
    values[chosen] *= factor
    return values


def _grown(values: Float64, axis: int, by: int = _NEW) -> Float64:
    """With zeros at the end of an axis."""
    return np.pad(values, [(0, by if each == axis else 0) for each in range(values.ndim)])


def _tensors(model: onnx.ModelProto, names: list[str], frames: Frames) -> list[Float64]:
    """What the graph computes there, float64, pictures first."""
    import onnxruntime

    watched = copy(model)
    watched.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(to_bytes(watched), options, providers=["CPUExecutionProvider"])
    found: list[Float64] = [value.astype(np.float64) for value in session.run(names, {"image": frames})]
    return found
