"""Exact changes of the float graph that make it easier to round: outliers move from activations into weights.

What stands behind a tensor x [.., C] takes (x - shift) / scale instead, and undoes it in its own constants. In front,
LayerNormalization and attention's values take it up in theirs; elsewhere it's worth operators of its own. Shift and
scale are chosen by the output error that is left once both sides are rounded, "not at all" among the candidates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vitedge.formats.recipe import Improve
from vitedge.graph.builder import GraphBuilder
from vitedge.graph.folding import Index
from vitedge.graph.surgery import array, attribute, consumers, copy, initializers
from vitedge.quantization.integers import Codes, Scheme, affine
from vitedge.quantization.prepare import replaced
from vitedge.quantization.statistics import Observed, Statistics
from vitedge.quantization.views import Layer, quantizable

#: Fractions of a channel's spread that move into the weights; None changes neither shift nor scale.
ALPHAS: tuple[float | None, ...] = (None, 0.0, 0.25, 0.5, 0.75, 1.0)
#: Fraction of the squared error that a migration must stay below. Migration is for outliers: where every channel
#: fills its whole grid, values beyond the calibration images' are clipped, and smaller gains over the calibration
#: images were losses on other images.
WORTHWHILE = 0.1
#: Ratio of the range of all channels together to the typical channel's, from which on an operator is considered:
#: with more even ranges the error doesn't fall below a tenth.
_UNEVEN = 8.0
#: Factor by which the squared error may grow where a LayerNormalization's scale and bias move into the linears behind.
#: That saves an operator; a narrow limit keeps both where channels have outliers.
_PLAIN = 2.0
#: OpenVINO 2026.4 fuses the rounding behind these operators into them, and takes channel constants along a wrong axis.
_REDUCTIONS = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceSum")
_ROWS = 1024  # rows of the reservoir that the choice is made with
_SMALLEST = 1e-3  # fraction of the largest spread to which smaller spreads are raised

Float64 = NDArray[np.float64]


def improve(
    model: onnx.ModelProto, statistics: Statistics, settings: Improve, scheme: Scheme, layers: Collection[str]
) -> tuple[onnx.ModelProto, Statistics]:
    """Apply the recipe's improvements, one after the other.

    Args:
        model: a float graph whose layers have constants of their own
            (:func:`vitedge.quantization.prepare.with_own_constants`).
        statistics: of its layers.
        settings: which improvements.
        scheme: what it will be rounded to.
        layers: names of the layers that will be rounded.

    Returns:
        A graph of the same function, and its statistics.
    """
    if settings.layernorm_migration:
        model, statistics = migrate_layernorms(model, statistics, scheme, layers)
    if settings.value_migration:
        model, statistics = migrate_values(model, statistics, scheme, layers)
    if settings.input_migration or (settings.gelu_shift and scheme.symmetric):
        model, statistics = migrate_inputs(model, statistics, settings, scheme, layers)
    if settings.input_migration:
        model, statistics = migrate_convolutions(model, statistics, scheme, layers)
    return model, statistics


def migrate_layernorms(
    model: onnx.ModelProto, statistics: Statistics, scheme: Scheme, layers: Collection[str]
) -> tuple[onnx.ModelProto, Statistics]:
    """Shift and scale every LayerNormalization's channels, and undo it in the linears behind it (RepQ-ViT, 2212.08254).

    With γ, β of the LayerNormalization and y = x W + b behind it: γ' = γ/s, β' = (β - c)/s, W' = diag(s) W,
    b' = b + Wᵀ c. Only where nothing but linears of ``layers`` reads the LayerNormalization. The strength is chosen
    for each by the output error over the kept rows, "not at all" among the candidates. Where the runtime rounds inside
    a LayerNormalization without scale and bias (``scheme.plain_norms``), s = γ and c = β unless that loses too much.

    Args:
        model: a float graph whose layers have constants of their own
            (:func:`vitedge.quantization.prepare.with_own_constants`).
        statistics: of its layers.
        scheme: what it will be rounded to.
        layers: names of the layers that will be rounded.

    Returns:
        The graph with other constants and the same function, and its statistics.
    """
    model = _with_affine(model)
    constants, readers = initializers(model), consumers(model)
    by_name = {layer.name: layer for layer in quantizable(model)[0] if layer.name in layers}
    outputs = {value.name for value in model.graph.output}
    values: dict[str, Float64] = {}
    observed = dict(statistics.observed)
    for node in model.graph.node:
        behind = readers.get(node.output[0], [])
        if node.op_type != "LayerNormalization" or node.output[0] in outputs or node.output[0] not in observed:
            continue
        if not behind or any(reader.name not in by_name for reader in behind):
            continue
        if any(name not in constants or len(readers[name]) > 1 for name in node.input[1:]):
            continue
        linears = [by_name[reader.name] for reader in behind]
        together = np.concatenate([layer.matrix for layer in linears], axis=1)
        gamma, beta = (array(constants[name]).astype(np.float64) for name in node.input[1:])
        whole = (beta, gamma) if scheme.plain_norms and (gamma > _SMALLEST * gamma.max()).all() else None
        shift, scale = choose_migration(observed[node.output[0]], together, scheme, whole)
        values[node.input[1]], values[node.input[2]] = gamma / scale, (beta - shift) / scale
        for layer in linears:
            values.update(_absorbed(layer, shift, scale))
        observed[node.output[0]] = observed[node.output[0]].moved(shift, scale)
    return replaced(model, values), replace(statistics, observed=observed)


def migrate_values(
    model: onnx.ModelProto, statistics: Statistics, scheme: Scheme, layers: Collection[str]
) -> tuple[onnx.ModelProto, Statistics]:
    """Shift and scale attention's output, by its values, and undo it in the projection behind.

    Softmax's rows sum to 1, so values v' = (v - c)/s give the context (softmax v - c)/s: W_v' = W_v diag(1/s),
    b_v' = (b_v - c)/s; then W_proj' = diag(s) W_proj, b_proj' = b_proj + W_projᵀ c. Arguments as :func:`improve`.
    """
    observed = dict(statistics.observed)
    for projection, source, channels in list(_attention_values(model, quantizable(model)[0])):
        key = projection.view.key
        if projection.name not in layers or key not in observed:
            continue
        shift, scale = choose_migration(observed[key], projection.matrix, scheme)
        linear, matrix, bias = source.linear, source.matrix, source.bias
        assert bias is not None and linear.bias is not None
        bias = bias.astype(np.float64)
        matrix[:, channels] /= scale
        bias[channels] = (bias[channels] - shift) / scale
        values = {linear.weight: source.from_matrix(matrix), linear.bias: bias}
        model = replaced(model, _absorbed(projection, shift, scale) | values)
        observed[key] = observed[key].moved(shift, scale)
    return model, replace(statistics, observed=observed)


class _AttentionValues(NamedTuple):
    """The projection behind an attention, and the linear that computes the attention's values."""

    projection: Layer
    source: Layer
    channels: slice  # output channels of the source that are values


def _attention_values(model: onnx.ModelProto, layers: Collection[Layer]) -> Iterator[_AttentionValues]:
    """Yield every canonical attention whose values only its product with the probabilities reads."""
    index = Index(model)
    linears = {layer.linear.output: layer for layer in layers if layer.linear.kind == "linear"}
    for projection in layers:
        values = _values_of(index, projection)
        maker = None if values is None else _made_by(index, linears, values, width=len(projection.matrix))
        if maker is not None:
            yield _AttentionValues(projection, *maker)


def _values_of(index: Index, projection: Layer) -> str | None:
    """Find the tensor [N, T, D] of an attention's values backward from its projection; None behind anything else."""
    context = _backward(index, projection.linear.input, "Reshape", "Transpose", "MatMul")
    if context is None:
        return None
    joined, heads_last, product = context  # [N, T, D] <- [N, T, heads, d] <- [N, heads, T, d]
    values = _backward(index, product.input[1], "Transpose", "Reshape")
    if values is None or _backward(index, product.input[0], "Softmax") is None:
        return None
    heads_first, split = values  # [N, heads, T, d] <- [N, T, heads, d] <- [N, T, D]
    transposed = all(attribute(node, "perm") == [0, 2, 1, 3] for node in (heads_last, heads_first))
    whole = _target_shape(index, joined) == [0, 0, len(projection.matrix)]
    if not (transposed and whole and _target_shape(index, split)[:2] == [0, 0]) or index.reader(split.input[0]) is None:
        return None
    return str(split.input[0])


def _made_by(index: Index, linears: Mapping[str, Layer], values: str, *, width: int) -> tuple[Layer, slice] | None:
    """Return the linear that computes values [N, T, width], and its channels: all, or those of one Split output."""
    if values in linears:
        return linears[values], slice(0, width)
    split = index.producers.get(values)
    if split is None or split.op_type != "Split" or attribute(split, "axis", 0) not in (-1, 2):
        return None
    packed = linears.get(split.input[0])
    if packed is None or index.reader(split.input[0]) is None:
        return None
    columns, parts = packed.matrix.shape[1], list(split.output)
    sizes = index.constant(split.input[1]) if len(split.input) > 1 else np.full(len(parts), columns // len(parts))
    place = parts.index(values)
    if sizes is None or sizes.sum() != columns or sizes[place] != width:
        return None
    first = int(sizes[:place].sum())
    return packed, slice(first, first + width)


def _backward(index: Index, tensor: str, *operators: str) -> list[onnx.NodeProto] | None:
    """Return the nodes behind a tensor, by their first inputs, if they are these operators with one reader each."""
    nodes: list[onnx.NodeProto] = []
    for operator in operators:
        node = index.producers.get(tensor)
        if node is None or node.op_type != operator or index.reader(tensor) is None:
            return None
        nodes.append(node)
        tensor = node.input[0]
    return nodes


def _target_shape(index: Index, reshape: onnx.NodeProto) -> list[int]:
    """Return the shape that a Reshape produces; empty where it isn't constant."""
    shape = index.constant(reshape.input[1])
    return [] if shape is None else [int(size) for size in shape]


def migrate_inputs(
    model: onnx.ModelProto, statistics: Statistics, settings: Improve, scheme: Scheme, layers: Collection[str]
) -> tuple[onnx.ModelProto, Statistics]:
    """Shift and scale inputs of linears with operators of their own, where no earlier layer can absorb it.

    GELU isn't homogeneous, so outliers of a hidden unit can't move into the layer that makes it. Behind the node ``X``
    a Sub ``X.shift`` and a Mul ``X.scale`` are added, each where it's needed; the linears of ``layers`` behind read
    that and undo it, and whatever else reads ``X`` still does. Only where that brings the squared error under a tenth,
    as an operator costs time. Besides, where grids are symmetric, what leaves a GELU is centred by one number, where
    that halves the error: its values lie between -0.17 and M, so that half of the grid is never used. Arguments as
    :func:`improve`.
    """
    builder = GraphBuilder(model)
    readers = consumers(builder.model)
    by_name = {layer.name: layer for layer in quantizable(builder.model)[0] if layer.name in layers}
    observed = dict(statistics.observed)
    values: dict[str, Float64] = {}
    for node in builder.model.graph.node:
        builder.nodes.append(node)
        tensor = node.output[0] if len(node.output) == 1 else ""
        behind = [reader for reader in readers.get(tensor, []) if reader.name in by_name]
        linears = [by_name[reader.name] for reader in behind if by_name[reader.name].view.key == tensor]
        if not linears or len(linears) < len(behind) or tensor not in observed or node.op_type in _REDUCTIONS:
            continue
        together = np.concatenate([layer.matrix for layer in linears], axis=1)
        shift, scale = by_operators(observed[tensor], together, scheme, settings, centred=node.op_type == "Gelu")
        moved = tensor
        for operator, part, constant, neutral in (("Sub", "shift", shift, 0.0), ("Mul", "scale", 1 / scale, 1.0)):
            if (constant == neutral).all():
                continue
            name = f"{node.name}.{part}"
            same = bool((constant == constant[0]).all())
            by = builder.constant(f"{name}.by", constant[: 1 if same else None].astype(np.float32))
            moved = builder.node(operator, name, moved, by)
        if moved == tensor:
            continue
        for layer in linears:
            values.update(_absorbed(layer, shift, scale))
        for reader in behind:
            reader.input[0] = moved
        observed[moved] = observed[tensor].moved(shift, scale)
    return replaced(builder.written(), values), replace(statistics, observed=observed)


def by_operators(
    observed: Observed, matrix: Float64, scheme: Scheme, settings: Improve, *, centred: bool
) -> tuple[Float64, Float64]:
    """Return the shift and scale [C] that are worth an operator. Scales are powers of two, exact in half precision."""
    low, high = observed.minimum.astype(np.float64), observed.maximum.astype(np.float64)
    ones, nothing = np.ones(len(matrix)), np.zeros(len(matrix))
    candidates: list[tuple[float, Float64, Float64]] = []  # the fraction of the error to come under; shift, scale
    if centred and settings.gelu_shift and scheme.symmetric:
        candidates.append((0.5, _halves(np.full(len(matrix), (low.min() + high.max()) / 2)), ones))
    if settings.input_migration and high.max() - low.min() > _UNEVEN * float(np.median(high - low)):
        for alpha in ALPHAS[1:]:
            shift, scale = migration(observed, matrix, alpha)
            candidates.append((WORTHWHILE, _halves(shift), np.exp2(np.rint(np.log2(scale)))))
    if not candidates:
        return nothing, ones
    rows = observed.rows[:_ROWS].astype(np.float32)
    exact = rows @ matrix.astype(np.float32)
    unmoved = least = _rounded_error(observed, rows, exact, matrix, scheme, nothing, ones)
    best = nothing, ones
    for fraction, shift, scale in candidates:
        error = _rounded_error(observed, rows, exact, matrix, scheme, shift, scale)
        if error < least and error <= fraction * unmoved:
            best, least = (shift, scale), error
    return best


def migrate_convolutions(
    model: onnx.ModelProto, statistics: Statistics, scheme: Scheme, layers: Collection[str]
) -> tuple[onnx.ModelProto, Statistics]:
    """Scale inputs of convolutions with an operator of its own, where outliers in some channels make it worthwhile.

    Behind the node ``X`` a Mul ``X.scale`` divides each channel by a power of two, exact in half precision, and
    the convolutions of ``layers`` behind undo it in their weights. Zeros of the padding stay zeros: there is no shift.
    Only where the same convolutions' receptive fields are read. Arguments as :func:`improve`.
    """
    builder = GraphBuilder(model)
    readers = consumers(builder.model)
    convolutions = {layer.name: layer for layer in quantizable(builder.model)[0] if layer.linear.kind == "conv"}
    observed = dict(statistics.observed)
    values: dict[str, Float64] = {}
    for node in builder.model.graph.node:
        builder.nodes.append(node)
        tensor = node.output[0] if len(node.output) == 1 else ""
        behind = [reader for reader in readers.get(tensor, []) if reader.name in layers]
        reading = [convolutions[reader.name] for reader in behind if reader.name in convolutions]
        keys = {layer.view.key for layer in reading}
        if not reading or len(reading) < len(behind) or len(keys) > 1 or not keys <= observed.keys():
            continue
        key = keys.pop()
        matrix = np.concatenate([layer.matrix for layer in reading], axis=1)
        scale = _channel_scales(observed[key], matrix, scheme)
        if scale is None:
            continue
        by = builder.constant(f"{node.name}.scale.by", (1 / scale).astype(np.float32).reshape(-1, 1, 1))
        moved = builder.node("Mul", f"{node.name}.scale", tensor, by)
        wide = np.repeat(scale, len(matrix) // len(scale))
        for layer in reading:
            values[layer.linear.weight] = layer.from_matrix(layer.matrix * wide[:, None])
        for reader in behind:
            reader.input[0] = moved
        observed[moved + key.removeprefix(tensor)] = observed[key].moved(np.zeros(len(scale)), scale)
    return replaced(builder.written(), values), replace(statistics, observed=observed)


def _channel_scales(observed: Observed, matrix: Float64, scheme: Scheme) -> Float64 | None:
    """Return powers of two [C] for the input of convolutions with weights [C·taps, C_out]; None: not worth a Mul."""
    low, high = observed.minimum.astype(np.float64), observed.maximum.astype(np.float64)
    if high.max() - low.min() <= _UNEVEN * float(np.median(high - low)):
        return None
    taps = len(matrix) // len(low)
    fields = replace(observed, minimum=np.repeat(observed.minimum, taps), maximum=np.repeat(observed.maximum, taps))
    rows = observed.rows[:_ROWS].astype(np.float32)
    exact, nothing = rows @ matrix.astype(np.float32), np.zeros(len(matrix))

    def error(scale: Float64) -> float:
        return _rounded_error(fields, rows, exact, matrix, scheme, nothing, np.repeat(scale, taps))

    scales = [migration(observed, matrix.reshape(len(low), -1), alpha)[1] for alpha in ALPHAS[1:]]
    best = min((np.exp2(np.rint(np.log2(scale))) for scale in scales), key=error)
    return best if error(best) <= WORTHWHILE * error(np.ones(len(low))) else None


def _halves(values: Float64) -> Float64:
    """Return the nearest numbers of half precision, within its range."""
    limit = float(np.finfo(np.float16).max)
    return np.where(np.abs(values) < limit, np.clip(values, -limit, limit).astype(np.float16), values)


# --- choosing --------------------------------------------------------------------------------------------------------


def choose_migration(
    observed: Observed, matrix: Float64, scheme: Scheme, preferred: tuple[Float64, Float64] | None = None
) -> tuple[Float64, Float64]:
    """Choose the shift and scale [C] with the least output error once inputs and weights [C, C_out] are rounded.

    A preferred one is taken where its error is at most twice as large.
    """
    candidates = [migration(observed, matrix, alpha) for alpha in ALPHAS]
    rows = observed.rows[:_ROWS].astype(np.float32)
    exact = rows @ matrix.astype(np.float32)

    def error(candidate: tuple[Float64, Float64]) -> float:
        return _rounded_error(observed, rows, exact, matrix, scheme, *candidate)

    errors = [error(candidate) for candidate in candidates]
    best = int(np.argmin(errors))
    best = best if errors[best] < WORTHWHILE * errors[0] else 0
    if preferred is not None and error(preferred) <= _PLAIN * errors[best]:
        return preferred
    return candidates[best]


def migration(observed: Observed, matrix: Float64, alpha: float | None) -> tuple[Float64, Float64]:
    """Return shift c = (max + min)/2 and scale s = r^α / max|W|^(1-α), r = (max - min)/2, both [C]; None: no change.

    s is normalised to a geometric mean of 1, which no rounding notices and half precision likes.
    """
    if alpha is None:
        return np.zeros(len(matrix)), np.ones(len(matrix))
    low, high = observed.minimum.astype(np.float64), observed.maximum.astype(np.float64)
    spread, weight = (high - low) / 2, np.abs(matrix).max(axis=1)
    spread = np.maximum(spread, max(_SMALLEST * spread.max(), 1e-12))
    weight = np.maximum(weight, max(_SMALLEST * weight.max(), 1e-12))
    logarithm = alpha * np.log(spread) - (1 - alpha) * np.log(weight)
    return (high + low) / 2, np.exp(logarithm - logarithm.mean())


def _rounded_error(
    observed: Observed,
    rows: NDArray[np.float32],
    exact: NDArray[np.float32],
    matrix: Float64,
    scheme: Scheme,
    shift: Float64,
    scale: Float64,
) -> float:
    """Return the mean squared output error without its mean, with plain ranges on both sides."""
    grid = affine(((observed.minimum - shift) / scale).min(), ((observed.maximum - shift) / scale).max(), scheme)
    inputs = np.asarray((rows - shift.astype(np.float32)) / scale.astype(np.float32), np.float32)
    weights = matrix * scale[:, None]
    codes = Codes.of(scheme, len(weights))
    steps = codes.scale(weights)
    rounded = codes.round(weights, steps) * steps
    error = exact - grid.fake(inputs) @ rounded  # less the constant shift @ matrix, which the variance ignores
    return float(error.var(axis=0, dtype=np.float64).sum())


def _absorbed(layer: Layer, shift: Float64, scale: Float64) -> dict[str, Float64]:
    """Return weight and bias initialisers of a linear whose input became (x - shift)/scale."""
    matrix = layer.matrix
    assert layer.bias is not None and layer.linear.bias is not None
    weight: Float64 = layer.from_matrix(matrix * scale[:, None])
    return {layer.linear.weight: weight, layer.linear.bias: layer.bias + shift @ matrix}


def _with_affine(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in which every LayerNormalization with a constant scale has a bias."""
    model = copy(model)
    constants = initializers(model)
    for node in model.graph.node:
        if node.op_type != "LayerNormalization" or node.input[1] not in constants:
            continue
        if len(node.input) == 2 or not node.input[2]:
            zeros = np.zeros_like(array(constants[node.input[1]]))
            del node.input[2:]
            node.input.append(f"{node.name}.bias'")
            model.graph.initializer.append(numpy_helper.from_array(zeros, node.input[2]))
    return model
