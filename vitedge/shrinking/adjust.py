"""Adjust all weights of a narrowed branch to its target, where least squares fits those of its last layer alone.

What an MLP's hidden units compute, and where an attention looks, enters the branch's output through GELU and Softmax.
So these weights are changed by gradient descent on the branch's own squared error (Adam, 1412.6980, its rate falling by
a cosine). No labels take part, and no gradient passes through another branch. Some pictures are held out: the weights
that are best on them count, the first ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitedge.core.randomness import generator
from vitedge.shrinking.rewrite import AttentionWeights, Side, read_attention
from vitedge.shrinking.structures import Attention, Pair

Float32 = NDArray[np.float32]
Parameters = dict[str, Float32]
Pullback = Callable[[Float32], Parameters]
Function = Callable[[Mapping[str, Float32], Float32], tuple[Float32, Pullback]]

ENOUGH_PICTURES = 1000  # with fewer ones, what is learned on them is lost on others
_HELD_OUT = 16  # one picture of so many
_PASSES, _CHECKS = 6, 8  # over the pictures; how often the weights are checked on those held out
_ROWS = 1 << 12  # rows of a step
_RATE = 0.02  # of the first step, as a fraction of a matrix's root mean square
_MOMENTUM, _SPREAD = 0.9, 0.99  # Adam's decay of the mean gradient and of its square
_ALIKE = 1e-3  # relative error up to which a branch counts as reproduced


class Branch(NamedTuple):
    """A branch's weights, and how it computes with them."""

    weights: Parameters  # a bias is named like its matrix, with "_bias"; none is there where the layer has none
    function: Function  # from tokens [N, T, K] to [N, T, C], and to the gradients of the weights


def reproduces(branch: Branch, inputs: NDArray[Any], output: NDArray[Any]) -> bool:
    """Return whether a branch computes what the graph does; with another activation, say, it doesn't."""
    difference = branch.function(branch.weights, inputs)[0] - output
    return bool(np.linalg.norm(difference) <= _ALIKE * np.linalg.norm(output - output.mean()))


def adjusted(branch: Branch, inputs: Float32, targets: Float32, rows: Float32) -> Parameters:
    """Return the weights with the smallest error on held-out pictures.

    Args:
        branch: as it is.
        inputs: what it reads, [pictures, T, K].
        targets: what it's to give, [pictures, T, C].
        rows: weight of each token's squared error, [T].
    """
    held, random = -(-len(inputs) // _HELD_OUT), generator(0)
    at_once = max(1, _ROWS // len(rows))
    batches = [slice(i, min(i + at_once, held)) for i in range(0, held, at_once)]
    steps = _PASSES * max(1, (len(inputs) - held) // at_once)
    checks = {round((1 + check) * steps / _CHECKS) for check in range(_CHECKS)}
    weights = {name: values.copy() for name, values in branch.weights.items()}
    means, squares = ({name: np.zeros_like(values) for name, values in weights.items()} for _ in range(2))
    rates = {name: _RATE * _size(weights[name.removesuffix("_bias")]) for name in weights}

    def error() -> float:
        differences = (branch.function(weights, inputs[batch])[0] - targets[batch] for batch in batches)
        return sum(float(np.vdot(rows[:, None] * difference, difference)) for difference in differences)

    def gradients(pictures: NDArray[np.intp]) -> Parameters:
        output, back = branch.function(weights, inputs[pictures])
        return back(np.float32(2 / len(pictures)) * rows[:, None] * (output - targets[pictures]))

    best, least = dict(branch.weights), error()
    for step in range(1, steps + 1):
        chosen = held + random.choice(len(inputs) - held, min(at_once, len(inputs) - held), replace=False)
        falling = 0.5 * (1 + np.cos(np.pi * (step - 1) / steps))
        for name, gradient in gradients(np.sort(chosen)).items():
            means[name] += (1 - _MOMENTUM) * (gradient - means[name])
            squares[name] += (1 - _SPREAD) * (np.square(gradient) - squares[name])
            spread = np.sqrt(squares[name] / (1 - _SPREAD**step)) + 1e-20
            weights[name] -= np.float32(falling * rates[name] / (1 - _MOMENTUM**step)) * means[name] / spread
        if step in checks and (now := error()) < least:
            best, least = {name: values.copy() for name, values in weights.items()}, now
    return best


def _size(values: Float32) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


# --- MLP -------------------------------------------------------------------------------------------------------------


def mlp(pair: Pair) -> Branch | None:
    """Return two linears with GELU in between as a branch; None: of two convolutions, or gated."""
    if pair.split is not None or pair.first.linear.kind != "linear":
        return None
    weights = {"first": pair.first.matrix, "second": pair.second.matrix}
    biases = {"first_bias": pair.first.bias, "second_bias": pair.second.bias}
    return Branch(_float32(weights, biases), _mlp)


def _mlp(weights: Mapping[str, Float32], inputs: Float32) -> tuple[Float32, Pullback]:
    read = inputs.reshape(-1, inputs.shape[-1])
    hidden, slope = _gelu(read @ weights["first"] + weights.get("first_bias", np.float32(0)))
    output = hidden @ weights["second"] + weights.get("second_bias", np.float32(0))

    def back(gradient: Float32) -> Parameters:
        behind = gradient.reshape(len(read), -1)
        ahead = (behind @ weights["second"].T) * slope
        sums = {"first": read.T @ ahead, "second": hidden.T @ behind}
        return _of(weights, {**sums, "first_bias": ahead.sum(axis=0), "second_bias": behind.sum(axis=0)})

    return output.reshape(*inputs.shape[:-1], -1), back


def _gelu(values: Float32) -> tuple[Float32, Float32]:
    """Return x Φ(x) and its derivative; Φ as in Abramowitz & Stegun 7.1.26, as NumPy has no erf: error below 1e-7."""
    bell = np.exp(np.float32(-0.5) * np.square(values))
    t = 1 / (1 + np.float32(0.3275911 / np.sqrt(2)) * np.abs(values))
    tail = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = (tail + np.float32(factor)) * t
    tail *= np.float32(0.5) * bell
    below = np.where(values < 0, tail, 1 - tail)  # Φ
    return values * below, below + values * bell * np.float32(1 / np.sqrt(2 * np.pi))


# --- attention -------------------------------------------------------------------------------------------------------

_SIDES = ("query", "key", "value")


def attention(found: Attention) -> Branch | None:
    """Return an attention as a branch; None: queries, keys and values read different tensors."""
    if len({getattr(found, side).layer.linear.input for side in _SIDES}) > 1:
        return None
    whole = read_attention(found)
    weights = {"projection": whole.projection, **{side: getattr(whole, side).weight for side in _SIDES}}
    biases = {"projection_bias": whole.bias, **{f"{side}_bias": getattr(whole, side).bias for side in _SIDES}}
    return Branch(_float32(weights, biases), _attention)


def attention_weights(weights: Mapping[str, Float32]) -> AttentionWeights:
    """Return a branch's weights as those of an attention."""
    wide = {name: values.astype(np.float64) for name, values in weights.items()}
    query, key, value = (Side(wide[side], wide.get(f"{side}_bias")) for side in _SIDES)
    return AttentionWeights(query, key, value, wide["projection"], wide.get("projection_bias"))


def _attention(weights: Mapping[str, Float32], inputs: Float32) -> tuple[Float32, Pullback]:
    pictures, tokens, channels = inputs.shape
    read = inputs.reshape(-1, channels)

    def by_head(side: str) -> Float32:
        _, heads, width = weights[side].shape
        made = read @ weights[side].reshape(channels, -1) + weights.get(f"{side}_bias", np.zeros(1, np.float32)).ravel()
        return _swapped(made.reshape(pictures, tokens, heads, width))

    query, key, value = map(by_head, _SIDES)
    scores = query @ key.swapaxes(2, 3)
    looks = np.exp(scores - scores.max(axis=-1, keepdims=True))
    looks /= looks.sum(axis=-1, keepdims=True)
    context = _swapped(looks @ value).reshape(len(read), -1)
    output = context @ weights["projection"] + weights.get("projection_bias", np.float32(0))

    def back(gradient: Float32) -> Parameters:
        behind = gradient.reshape(len(read), -1)
        inside = _swapped((behind @ weights["projection"].T).reshape(pictures, tokens, *value.shape[1::2]))
        ahead = inside @ value.swapaxes(2, 3)
        ahead -= (ahead * looks).sum(axis=-1, keepdims=True)
        ahead *= looks
        sums = {"projection": context.T @ behind, "projection_bias": behind.sum(axis=0)}
        sides = (ahead @ key, ahead.swapaxes(2, 3) @ query, looks.swapaxes(2, 3) @ inside)
        for side, by_head in zip(_SIDES, sides, strict=True):
            rows, shape = _swapped(by_head).reshape(len(read), -1), weights[side].shape
            sums |= {side: (read.T @ rows).reshape(shape), f"{side}_bias": rows.sum(axis=0).reshape(shape[1:])}
        return _of(weights, sums)

    return output.reshape(pictures, tokens, -1), back


def _swapped(values: Float32) -> Float32:
    """Swap the axes of tokens and heads."""
    return np.ascontiguousarray(values.swapaxes(1, 2))


def _float32(weights: Mapping[str, NDArray[Any]], biases: Mapping[str, NDArray[Any] | None]) -> Parameters:
    present = {name: bias for name, bias in biases.items() if bias is not None}
    return {name: values.astype(np.float32) for name, values in {**weights, **present}.items()}


def _of(weights: Mapping[str, Float32], sums: Parameters) -> Parameters:
    return {name: values for name, values in sums.items() if name in weights}
