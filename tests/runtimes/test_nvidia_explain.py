"""``--explain`` and ``--autotune``: layer information in sentences, and the fastest candidate within the budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtimes.engine_layers import information
from vitedge.benchmarking.speeds import Speed
from vitedge.building import choices, engines
from vitedge.building.choices import choose
from vitedge.errors import ArtifactError, InvalidResultError, UsageError
from vitedge.formats.artifact import LayerPlan
from vitedge.formats.budget import Budget
from vitedge.runtimes._nvidia.explain import Explanation, compare, explain
from vitedge.runtimes._nvidia.layers import executed, parse
from vitedge.runtimes.base import LayerTime
from vitedge.runtimes.choice import Timed
from vitedge.runtimes.executed import unmet_layers

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
ATTENTION = ("attn.scores", "attn.context")


def plan(precision: str, blocks: int = 2) -> list[LayerPlan]:
    kinds = [(name, "linear", precision) for name in LINEARS] + [(name, "attention", "fp16") for name in ATTENTION]
    return [
        LayerPlan(name=f"blocks.{number}.{name}", kind=kind, precision=one, macs=1000)
        for number in range(blocks)
        for name, kind, one in kinds
    ]


def profile(text: str, ns: int = 1000) -> list[list[LayerTime]]:
    """Each layer takes ``ns``, and one outlier is no matter."""
    once = [LayerTime("+".join(layer.nodes) or layer.name, layer.kind, layer.type, ns) for layer in parse(text)]
    return [once, once, [one._replace(ns=50 * ns) for one in once]]


def explained(**form: Any) -> Explanation:
    text = information(2, **form)
    return explain(parse(text), plan("int8" if form["int8"] else "fp16"), profile(text))


def test_layers_are_read() -> None:
    layers = parse(information(1, int8=True, reformats=True))
    assert [layer.type for layer in layers] == ["int8", "int8", "fp16", "int8", "int8", "int8", "int8"]
    assert [layer.reformats for layer in layers] == [False, True, False, True, False, False, False]
    assert [layer.attends for layer in layers] == [False, False, True, False, False, False, False]
    assert layers[2].nodes == ("blocks.0.attn.scores", "blocks.0.attn.softmax", "blocks.0.attn.context")
    assert unmet_layers(plan("int8", 1), executed(information(1, int8=True))) == []
    assert unmet_layers(plan("int8", 1), executed(information(1, int8=False)))[0] == (
        "blocks.0.attn.qkv in fp16 instead of int8"
    )


def test_an_engine_without_detail_tells_names_alone() -> None:
    layers = parse('{"Layers": ["one", "two"]}')
    assert [(layer.name, layer.type, layer.nodes) for layer in layers] == [("one", "", ()), ("two", "", ())]
    assert explain(layers, plan("fp16")).type_fractions == {"unknown": 1.0}


@pytest.mark.parametrize("text", ["", "[]", '{"Layers": 3}', '{"Layers": [3]}', '{"Layers": null}', "\x00"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="the inspector's answer has another structure"):
        parse(text)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
@settings(max_examples=40, deadline=None)
def test_any_json_is_read_or_refused(value: object) -> None:
    import json

    with pytest.raises(ArtifactError):
        parse(json.dumps(value))


def test_a_good_engine_in_sentences() -> None:
    one = explained(int8=True)
    assert one.sentences == (
        "Of the time: 80% int8, 20% fp16.",
        "Every layer of the plan runs in its type.",
        "2 of 2 attentions run as one fused kernel.",
        "No reformat stands between layers.",
    )
    assert one.ns == 10_000


def test_a_bad_engine_in_sentences() -> None:
    text = information(2, int8=False, fused=False, reformats=True)
    one = explain(parse(text), plan("int8"))
    assert one.sentences == (
        "Of its 18 layers: 78% fp16, 22% moving.",
        "8 of 8 layers planned in int8 run in another type.",
        "0 of 2 attentions run as one fused kernel; the others are several kernels each.",
        "4 reformats move tensors between layouts or types; 4 stand next to attention.",
    )


def test_why_int8_is_slower_here() -> None:
    named = {"int8": explained(int8=True, fused=False, reformats=True), "fp16": explained(int8=False)}
    assert compare(named) == [
        "int8 is 80% slower than fp16 here: 4 reformats, 4 of them next to attention, take 22% of its time; "
        "2 of 2 attentions aren't fused."
    ]
    assert compare({"fp16": named["fp16"]}) == []
    alike = {"a": explained(int8=False), "b": explained(int8=True)}
    assert all("shows no other cause" in sentence for sentence in compare(alike)) and len(compare(alike)) == 1


# --- autotune ---


def timed(name: str, p50: float, drop: float | None, p95: float | None = None) -> Timed:
    return Timed(artifact=name, precision=name, latency_p50_ms=p50, latency_p95_ms=p95 or p50 * 1.1, top1_drop_pp=drop)


def test_the_fastest_within_the_budget() -> None:
    found = choose(
        [timed("fp16", 2.0, 0.0), timed("int8", 1.5, 0.4), timed("fp8", 1.0, 0.8)], Budget(max_top1_drop_pp=0.5)
    )
    assert [one.artifact for one in found if one.chosen] == ["int8"]
    assert [one.reason for one in found] == [
        "1.33× the time of int8",
        "the fastest within the budget",
        "has a top-1 drop of 0.80 pp; the budget is 0.5 pp",
    ]


def test_a_budget_of_latency_counts_too() -> None:
    candidates = [timed("fp16", 2.0, 0.0, p95=5.0), timed("int8", 2.5, 0.4, p95=3.0)]
    found = choose(candidates, Budget(max_top1_drop_pp=0.5, latency_p95_ms=4.0))
    assert found[0].reason == "p95 is 5.00 ms; the budget is 4 ms" and found[1].chosen
    with pytest.raises(InvalidResultError, match="fp16 p95 is"):
        choose(candidates, Budget(max_top1_drop_pp=0.5, latency_p95_ms=1.0))


@given(
    st.lists(st.tuples(st.floats(0.5, 50), st.floats(0, 5, allow_subnormal=False)), min_size=1, max_size=6),
    st.floats(0, 5, allow_subnormal=False),
)
@settings(max_examples=60, deadline=None)
def test_nothing_faster_was_within_the_budget(candidates: list[tuple[float, float]], budget: float) -> None:
    given_ = [timed(str(number), p50, drop) for number, (p50, drop) in enumerate(candidates)]
    allowed = [one for one in given_ if one.top1_drop_pp is not None and one.top1_drop_pp <= budget]
    if not allowed:
        with pytest.raises(InvalidResultError):
            choose(given_, Budget(max_top1_drop_pp=budget))
        return
    (chosen,) = (one for one in choose(given_, Budget(max_top1_drop_pp=budget)) if one.chosen)
    assert chosen.latency_p50_ms == min(one.latency_p50_ms for one in allowed)


def test_artifacts_of_other_runtimes_need_no_engine(small_model: Path, tmp_path: Path) -> None:
    import vitedge

    made = vitedge.export(small_model, "onnxruntime", "fp32", tmp_path / "artifact")
    with pytest.raises(UsageError, match="onnxruntime opens its files as they are"):
        vitedge.build(made)
    with pytest.raises(UsageError, match="two or more artifacts of one model"):
        choices.autotune([made])
    with pytest.raises(UsageError, match="opens its files as they are"):
        engines.explain([made])


def test_times_and_losses_of_the_same_run() -> None:
    """Losses are against the candidate that changes the model least, whatever the order."""
    from types import SimpleNamespace as Names

    artifacts: Any = [
        Names(digest=name, path=Path(name), manifest=Names(precision=name, variant=name, fidelity=None))
        for name in ("int8", "fp16")
    ]
    rows = [
        Names(subject=Names(digest=name), accuracy=Names(rank=ranks))
        for name, ranks in (("int8", [0, 1, 1, 0]), ("fp16", [0, 0, 1, 0]))
    ]
    measured = [Speed(p50_ms=1.0, p95_ms=2.1), Speed(p50_ms=2.0, p95_ms=2.0)]
    judged: Any = Names(rows=rows)
    found = choices._timed(artifacts, measured, judged)
    assert [(one.precision, one.latency_p50_ms, one.top1_drop_pp) for one in found] == [("int8", 1, 25), ("fp16", 2, 0)]
    assert [one.latency_p95_ms for one in found] == [2.1, 2.0]
    assert choices._timed(artifacts, measured, None)[0].top1_drop_pp is None


def test_tensorrt_11_names_types_otherwise() -> None:
    """It splits a tensor's ``Format/Datatype`` into two keys, and the format names another type."""
    older = information(2, int8=True, reformats=True)
    told: dict[str, Any] = json.loads(older)
    for layer in told["Layers"]:
        for tensor in (*layer["Inputs"], *layer["Outputs"]):
            tensor |= {"Datatype": tensor.pop("Format/Datatype"), "Format": "Row major linear FP8 format (kLINEAR)"}
    told["I/O Tensors"] = [{"Name": name, "DataType": "Float"} for name in told.pop("Bindings")]
    assert parse(json.dumps(told)) == parse(older)
    assert {layer.type for layer in parse(older)} == {"int8", "fp16"}
