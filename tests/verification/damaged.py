"""Artifacts whose weights were damaged on purpose, with right digests: what verify has to find by running them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import numpy_helper

from vitedge.formats.artifact import Artifact, write_artifact
from vitedge.graph.surgery import array, parse, to_bytes

Constants = dict[str, NDArray[np.generic]]
_TYPES = {"i8": np.int8, "u8": np.uint8, "f32": np.float32}
WEIGHTS, SCALE = ".weight.q", ".weight.scale"


def constants(artifact: Artifact) -> Constants:
    """The named constants of an artifact's graph, ONNX or OpenVINO IR."""
    if artifact.manifest.graph.endswith(".onnx"):
        return {tensor.name: array(tensor) for tensor in _onnx(artifact).graph.initializer}
    data = artifact.graph_path.with_suffix(".bin").read_bytes()
    return {
        name: np.frombuffer(data, type_, size // np.dtype(type_).itemsize, offset)
        for name, type_, offset, size in _openvino(artifact)
    }


def damaged(artifact: Artifact, out: Path, changes: Mapping[str, NDArray[np.generic]]) -> Artifact:
    """A copy of the artifact with other constants, without the candidates that it carries."""
    files = {name: (artifact.path / name).read_bytes() for name in artifact.manifest.files}
    files = {name: data for name, data in files.items() if not name.startswith("candidates/")}
    graph = artifact.manifest.graph
    if graph.endswith(".onnx"):
        model = _onnx(artifact)
        for tensor in model.graph.initializer:
            if tensor.name in changes:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changes[tensor.name]), tensor.name))
        files[graph] = to_bytes(model)
    else:
        weights = graph.replace(".xml", ".bin")
        data = bytearray(files[weights])
        for name, _, offset, size in _openvino(artifact):
            if name in changes:
                data[offset : offset + size] = changes[name].tobytes()
        files[weights] = bytes(data)
    manifest = replace(artifact.manifest, candidates=())
    return write_artifact(out, manifest, files, overwrite=False, action="damage an artifact")


def cut_to_4_bits(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Integers that are multiples of the largest one's seventh part."""
    wide = values.astype(np.int32) - (128 if values.dtype == np.uint8 else 0)
    step = -(-int(np.abs(wide).max()) // 7)
    wide = np.rint(wide / step).astype(np.int32) * step
    return np.clip(wide, -127, 127).astype(np.int8) if values.dtype == np.int8 else (wide + 128).astype(np.uint8)


def blocks_in_4_bits(named: Constants) -> Iterator[tuple[str, Constants]]:
    """Each block in turn with its weights cut to 4 bits."""
    weights = {name: values for name, values in named.items() if name.endswith(WEIGHTS)}
    for block in sorted({match[1] for name in weights if (match := re.match(r"(blocks\.\d+)\.", name))}):
        cut = {name: cut_to_4_bits(values) for name, values in weights.items() if name.startswith(f"{block}.")}
        yield f"{block} in 4 bits", cut


def layers(named: Constants) -> dict[str, list[str]]:
    """What the names of each quantized layer's constants begin with; queries, keys and values are one layer."""
    found: dict[str, list[str]] = {}
    for name in named:
        if name.endswith(SCALE):
            prefix = name.removesuffix(SCALE)
            found.setdefault(prefix.split("/")[0], []).append(prefix)
    return found


def layers_in_4_bits(named: Constants) -> Iterator[tuple[str, Constants]]:
    """Each layer in turn with its weights cut to 4 bits."""
    for layer, prefixes in layers(named).items():
        yield f"{layer} in 4 bits", {f"{each}{WEIGHTS}": cut_to_4_bits(named[f"{each}{WEIGHTS}"]) for each in prefixes}


def biases_zeroed(named: Constants) -> Iterator[tuple[str, Constants]]:
    """Each layer in turn without its bias."""
    for layer, prefixes in layers(named).items():
        names = [f"{each}{end}" for each in prefixes for end in (".bias", ".bias.q") if f"{each}{end}" in named]
        if names:
            yield f"{layer} without bias", {name: np.zeros_like(named[name]) for name in names}


def zero_points_moved(named: Constants) -> Iterator[tuple[str, Constants]]:
    """Each layer in turn with the zero point of its input 8 higher, for rounding and multiplying alike."""
    for name, values in named.items():
        if name.endswith(".input.zero_point") and values.dtype == np.uint8:
            yield f"{name} + 8", {name: np.clip(values.astype(np.int32) + 8, 0, 255).astype(np.uint8)}


def channels_swapped(named: Constants) -> Iterator[tuple[str, Constants]]:
    """Each layer in turn with the weights of its first two output channels exchanged."""
    for layer, prefixes in layers(named).items():
        swapped = {}
        for name, scale in ((f"{each}{WEIGHTS}", named[f"{each}{SCALE}"]) for each in prefixes):
            values = named[name]
            rows = values.T if values.ndim == 2 else values.reshape(len(scale), -1)  # [output channels, …]
            other = np.concatenate([rows[1::-1], rows[2:]])
            swapped[name] = other.T if values.ndim == 2 else other.reshape(values.shape)
        yield f"{layer} with two channels exchanged", swapped


def scales_times(factor: float, named: Constants) -> Iterator[tuple[str, Constants]]:
    """Each layer in turn with its weights' scales multiplied."""
    for layer, prefixes in layers(named).items():
        scaled = {f"{prefix}{SCALE}": named[f"{prefix}{SCALE}"] for prefix in prefixes}
        yield f"{layer} × {factor}", {name: (values * factor).astype(values.dtype) for name, values in scaled.items()}


def _onnx(artifact: Artifact) -> onnx.ModelProto:
    return parse(artifact.graph_path.read_bytes())


def _openvino(artifact: Artifact) -> Iterator[tuple[str, type[np.generic], int, int]]:
    """(name, type, offset, size in bytes) of every constant of a known type in an OpenVINO IR."""
    for layer in ElementTree.parse(artifact.graph_path).iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None and data.get("element_type") in _TYPES:
            name = str(layer.get("name")).removesuffix(".value")
            yield name, _TYPES[str(data.get("element_type"))], int(data.get("offset", 0)), int(data.get("size", 0))
