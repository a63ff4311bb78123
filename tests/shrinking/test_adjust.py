"""Branches that are adjusted by gradient descent: exact gradients, never worse, and left alone where they can't be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.graph.vits import authored, random_images, tiny
from vitedge.runtimes.interpreter import run_graph
from vitedge.shrinking import shrink as shrinking
from vitedge.shrinking.activations import Activations
from vitedge.shrinking.adjust import Branch, Function, adjusted, attention, mlp, reproduces
from vitedge.shrinking.shrink import shrink
from vitedge.shrinking.structures import Attention, Pair, structures

WIDTHS = {"blocks.0.mlp": 24, "blocks.0.attn.query_key": 4, "blocks.1.mlp": 24}


def branches(model: onnx.ModelProto) -> dict[str, tuple[Branch, str, str]]:
    """Every attention and MLP of a model, with the tensors that it reads and makes."""
    found = {}
    for each in structures(model):
        if isinstance(each, Attention):
            branch, reads = attention(each), each.query.layer.linear.input
        else:
            assert isinstance(each, Pair)
            branch, reads = mlp(each), each.first.linear.input
        assert branch is not None
        found[each.name] = (branch, reads, each.last.linear.output)
    return found


@pytest.mark.parametrize("bias", [True, False])
def test_a_branch_computes_what_the_graph_does(bias: bool) -> None:
    model = authored(tiny(pool="avg", class_token=False, qkv_bias=bias))
    found = branches(model)
    assert len(found) == 2 * tiny().depth
    for branch, reads, makes in found.values():
        (values,) = Activations(model, random_images(tiny(), 3), 3).run(model, [reads, makes])
        assert reproduces(branch, values[reads], values[makes])


def test_another_activation_isnt_taken_for_gelu() -> None:
    model = authored(tiny(pool="avg", class_token=False))
    for node in model.graph.node:
        if node.op_type == "Gelu":
            node.op_type = "Relu"
            del node.attribute[:]
    for name, (branch, reads, makes) in branches(model).items():
        (values,) = Activations(model, random_images(tiny(), 3), 3).run(model, [reads, makes])
        assert reproduces(branch, values[reads], values[makes]) == name.endswith("attn")


@pytest.mark.parametrize("name", ["blocks.0.attn", "blocks.1.mlp"])
def test_gradients_are_those_of_the_function(name: str) -> None:
    branch, random = branches(authored(tiny(depth=2, qkv_bias=True)))[name][0], np.random.default_rng(0)
    weights = {key: values.astype(np.float64) for key, values in branch.weights.items()}
    channels = tiny().embed_dim
    inputs, towards = random.standard_normal((2, 2, 5, channels))
    function: Callable[..., Any] = branch.function  # of float64 here
    gradients = function(weights, inputs)[1](towards)
    assert set(gradients) == set(weights)
    for key, values in weights.items():
        direction = random.standard_normal(values.shape)
        sides = [function({**weights, key: values + step * direction}, inputs)[0] for step in (1e-4, -1e-4)]
        measured = float(np.vdot(sides[0] - sides[1], towards)) / 2e-4
        assert float(np.vdot(gradients[key], direction)) == pytest.approx(measured, rel=1e-3, abs=1e-4), key


def test_an_mlp_learns_what_a_wider_one_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitedge.shrinking.adjust._ROWS", 64)
    model, random = authored(tiny(depth=1)), np.random.default_rng(0)
    branch = branches(model)["blocks.0.mlp"][0]
    inputs = random.standard_normal((256, 8, tiny().embed_dim)).astype(np.float32)
    targets = branch.function(branch.weights, inputs)[0]
    kept = slice(0, branch.weights["first"].shape[1] // 2)
    weights = {**branch.weights, "first": branch.weights["first"][:, kept], "second": branch.weights["second"][kept]}
    weights["first_bias"] = weights["first_bias"][kept]
    narrow = Branch(weights, branch.function)
    rows = np.full(8, 1 / 8, np.float32)
    other = random.standard_normal((64, 8, tiny().embed_dim)).astype(np.float32)

    def error(weights: dict[str, NDArray[np.float32]]) -> float:
        difference = branch.function(weights, other)[0] - branch.function(branch.weights, other)[0]
        return float(np.square(difference).mean())

    assert error(adjusted(narrow, inputs, targets, rows)) < 0.7 * error(weights)


def test_weights_that_help_no_held_out_picture_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    branch = branches(authored(tiny(depth=1)))["blocks.0.mlp"][0]
    inputs = np.random.default_rng(0).standard_normal((64, 4, tiny().embed_dim)).astype(np.float32)
    targets = branch.function(branch.weights, inputs)[0]
    monkeypatch.setattr("vitedge.shrinking.adjust._RATE", 10.0)
    unchanged = adjusted(branch, inputs, targets, np.full(4, 1 / 4, np.float32))
    assert all(np.array_equal(values, unchanged[name]) for name, values in branch.weights.items())


def test_few_pictures_change_nothing() -> None:
    model, frames = authored(tiny(depth=2)), random_images(tiny(), 40)
    first, second = (shrink(model, WIDTHS, frames, adjust=adjust).model for adjust in (False, True))
    assert first == second


def test_an_adjusted_model_loses_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, "ENOUGH_PICTURES", 300)
    monkeypatch.setattr("vitedge.shrinking.adjust._ROWS", 128)
    model, frames = authored(tiny(depth=2, pool="avg", class_token=False)), random_images(tiny(), 600)
    whole, others = run_graph(model, frames[300:]), frames[300:]

    def error(adjust: bool) -> float:
        narrow = shrink(model, WIDTHS, frames[:300], adjust=adjust).model
        return float(np.square(run_graph(narrow, others) - whole).mean())

    assert error(True) < 0.97 * error(False)


def test_the_last_block_of_a_class_token_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, "ENOUGH_PICTURES", 100)
    called: list[Function] = []

    def noted(branch: Branch, *_: object) -> dict[str, NDArray[np.float32]]:
        called.append(branch.function)
        return branch.weights

    monkeypatch.setattr(shrinking, "adjusted", noted)
    shrink(authored(tiny(depth=2)), WIDTHS, random_images(tiny(), 100), adjust=True)
    assert len(called) == 2, "the first block's attention and MLP; of the second one row a picture is read"
