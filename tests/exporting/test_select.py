"""Mixtures of quantized and float groups, the steps of the selection, and the scan that runtimes share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import vitedge
from tests.cli.command import vitedge as run
from vitedge.api import plan_export
from vitedge.errors import InvalidResultError, UsageError
from vitedge.exporting import sensitivity, write
from vitedge.exporting.groups import Group
from vitedge.exporting.hold_out import HoldOut
from vitedge.exporting.plan import _auto_candidates
from vitedge.formats.artifact import Artifact, CandidateResult, Step
from vitedge.formats.target import Candidate, load_target
from vitedge.reporting import plots, selection
from vitedge.runtimes import here
from vitedge.runtimes.base import NO_GAIN, PRICE

QUICK: dict[str, Any] = {"num_samples": 16, "recipe": "fast"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def gains(monkeypatch: pytest.MonkeyPatch, slower: Sequence[str] = (), others: float = 1000.0) -> None:
    """What profiles would say of each group."""

    def saved(inputs: object, evaluated: object, groups: Sequence[Group]) -> Mapping[str, float]:
        return {group.name: -1.0 if group.name in slower else others for group in groups}

    monkeypatch.setattr(sensitivity, "saved_time", saved)


def test_every_target_with_quantized_forms_mixes_them() -> None:
    assert load_target("jetson-orin-nano").candidates("mixed") == (
        Candidate(precision="mixed", variant="linears-convs-int8-rest-fp16"),
        Candidate(precision="mixed", variant="linears-int8-rest-fp16"),
    )
    assert [one.variant for one in load_target("tensorrt").candidates("mixed")] == [
        "linears-convs-int8-rest-fp16",
        "linears-int8-rest-fp16",
        "linears-convs-fp8-rest-fp16",
        "linears-fp8-rest-fp16",
    ]
    with pytest.raises(UsageError, match="this target runs fp16, fp32"):
        load_target("tensorrt-rtx").candidates("mixed")


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_what_gains_nothing_and_what_costs_too_much_stays_in_float(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    gains(monkeypatch, slower=["blocks.0.attn"])
    made = vitedge.export(small_model, target, "mixed", tmp_path / "a", data=small_data, **QUICK)
    manifest = made.manifest
    reasons = {layer.name: layer.reason for layer in manifest.layers}
    assert manifest.precision == "mixed" and reasons["blocks.0.attn.qkv"] == NO_GAIN
    assert PRICE in reasons.values(), "some group costs more than the average"
    quantized = {layer.name for layer in manifest.layers if layer.precision == "int8"}
    assert quantized and not any(reasons[name] for name in quantized)
    assert set(manifest.precision_obtained) == {"int8", "fp32" if target != "tensorrt" else "fp16"}
    assert all(layer.sensitivity is not None for layer in manifest.layers if layer.name in quantized)
    assert manifest.fidelity is not None
    assert all(check.ok is not False for check in vitedge.verify(made))
    assert set(write.summary(made)["left_in_float"]) == {
        name for name, reason in reasons.items() if reason in (NO_GAIN, PRICE)
    }


def test_a_mixture_of_nothing_is_refused(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains(monkeypatch, others=-1.0)
    with pytest.raises(InvalidResultError, match="no group of layers gains time"):
        vitedge.export(small_model, "tensorrt", "mixed", tmp_path / "a", data=small_data, **QUICK)
    assert not (tmp_path / "a").exists()


def test_auto_has_a_mixture_where_all_are_wanted() -> None:
    target = load_target("onnxruntime")
    assert _auto_candidates(target, all_wanted=False) == target.candidate
    assert _auto_candidates(target, all_wanted=True)[-1] == Candidate(precision="mixed", variant="linears-int8")
    assert _auto_candidates(load_target("tensorrt-rtx"), all_wanted=True) == load_target("tensorrt-rtx").candidate


def test_an_export_draws_the_steps_of_its_selection(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    words = ("--data", small_data, "--num-samples", "16", "--recipe", "fast", "--explain")
    done = run("export", small_model, "-t", "onnxruntime", "--int8", "--out", tmp_path / "a", "--json", "-", *words)
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)
    steps = Artifact.open(tmp_path / "a").manifest.steps
    assert len(steps) > 3 and [step.chosen for step in steps] == [True, *[False] * (len(steps) - 1)]
    assert [step.quantized for step in steps] == sorted((step.quantized for step in steps), reverse=True)
    assert steps[0].groups_in_float == 0 and steps[-1].quantized == 0 and steps[-1].divergence < 1e-9
    assert steps[0].divergence > steps[-1].divergence
    assert all(step.latency_ms is not None and step.latency_ms > 0 for step in steps)
    picture = tmp_path / "a.selection.svg"
    assert row["picture"] == str(picture) and "all quantized, chosen" in picture.read_text()
    assert "picture" not in Artifact.open(tmp_path / "a").manifest.files
    again = run("export", small_model, "-t", "onnxruntime", "--int8", "--out", tmp_path / "a", *words)
    assert again.code == 2 and "already exists" in again.err


def test_steps_for_another_machine_have_no_times(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    target = load_target("raspberry-pi-5")
    if not here.why_not_here(target):
        pytest.skip("this is a machine of its kind")
    plan = plan_export(small_model, target, "int8", tmp_path / "a", data=small_data, explain=True, **QUICK)
    made = write.export(plan)
    assert made.manifest.steps and all(step.latency_ms is None for step in made.manifest.steps)
    drawn = selection.draw(plan, made)
    assert drawn is not None and "multiply-accumulates in float" in Path(drawn).read_text()


def test_one_scan_serves_runtimes_that_round_to_the_same_integers(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    pytest.importorskip("openvino")
    counts: list[int | None] = []
    evaluate = HoldOut.evaluate

    def counted(self: HoldOut, runnable: Any, count: int | None = None) -> Any:
        counts.append(count)
        return evaluate(self, runnable, count)

    monkeypatch.setattr(HoldOut, "evaluate", counted)
    sensitivities = {}
    for target in ("onnxruntime", "openvino"):
        plan = plan_export(small_model, target, "int8", tmp_path / target, data=small_data, explain=True, **QUICK)
        before = counts.count(sensitivity.PICTURES)
        layers = write.export(plan).manifest.layers
        sensitivities[target] = {layer.name: layer.sensitivity for layer in layers if layer.name.startswith("blocks")}
        scanned = counts.count(sensitivity.PICTURES) - before
        assert scanned >= 4 if target == "onnxruntime" else scanned <= 1, "only the head is new"
    assert sensitivities["onnxruntime"] == sensitivities["openvino"]


# --- the picture ---


def step(quantized: float, divergence: float, latency: float | None = None, *, chosen: bool = False) -> Step:
    floats = round(10 * (1 - quantized))
    return Step(
        quantized=quantized,
        groups_in_float=floats,
        divergence=divergence,
        agreement=1.0,
        latency_ms=latency,
        chosen=chosen,
    )


STEPS = (step(1.0, 3e-4, 1.1), step(0.8, 1e-4, 1.3, chosen=True), step(0.5, 5e-5, 1.5), step(0.0, 0.0, 1.9))


def test_the_picture_marks_what_was_chosen_and_what_else_there_was() -> None:
    other = CandidateResult(
        precision="int8", variant="dynamic<int8>", bytes=1, deviation=0.1, latency_p50_ms=2.2, divergence=4e-4
    )
    svg = plots.selection(STEPS, (other,), "Selection")
    assert svg is not None
    for words in ("all quantized", "2, chosen", "all in float", "dynamic&lt;int8&gt;", "latency, ms", "10⁻⁴"):
        assert words in svg, words
    alone = plots.standalone(svg)
    assert alone.startswith("<svg xmlns=") and "prefers-color-scheme: dark" in alone and "--accent: #" in alone


def test_few_steps_make_no_picture() -> None:
    assert plots.selection(STEPS[:2], (), "Selection") is None
    still = [step(1.0, 0.0), step(0.5, 0.0), step(0.0, 0.0)]
    assert plots.selection(still, (), "Selection") is not None, "no divergence at all"
