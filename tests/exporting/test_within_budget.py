"""Budgets from end to end: layers go back to float until the budget holds, or nothing is published."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

import vitedge
from vitedge.errors import InvalidResultError, UsageError
from vitedge.exporting import sensitivity
from vitedge.formats.budget import Budget
from vitedge.formats.target import load_target
from vitedge.runtimes.session import Session


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 generated pictures without labels."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(3)
    for number in range(200):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def test_every_quantized_artifact_says_what_it_lost(small_model: Path, pictures: Path, tmp_path: Path) -> None:
    artifact = vitedge.export(small_model, "onnxruntime", "int8", tmp_path / "a", data=pictures, num_samples=64)
    found = artifact.manifest.fidelity
    assert found is not None and found.split == "held-out" and found.pictures == 136 and found.top1_drop is None
    assert 0 < found.divergence < 0.1 and 0.5 < found.agreement <= 1
    assert len(found.flips) <= round((1 - found.agreement) * 136)
    few = vitedge.export(small_model, "onnxruntime", "int8", tmp_path / "b", data=pictures, num_samples=190)
    assert few.manifest.fidelity is not None
    assert (few.manifest.fidelity.split, few.manifest.fidelity.pictures) == ("held-out", 10)
    plain = vitedge.export(small_model, "onnxruntime", "fp32", tmp_path / "c")
    assert plain.manifest.fidelity is None


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_layers_go_back_to_float_until_the_budget_holds(
    small_model: Path, pictures: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget between what everything in integers loses and what the least of it does."""
    from vitedge.exporting.hold_out import HoldOut

    evaluate = HoldOut.evaluate

    def strict(self: HoldOut, runnable: object, count: int | None = None) -> object:
        """As if one attention were what the agreement suffers from."""

        found = evaluate(self, runnable, count)  # type: ignore[arg-type]
        graph = getattr(runnable, "session", None)
        layers = graph.artifact.manifest.layers if graph is not None else ()
        broken = any(layer.name.startswith("blocks.0.attn") and layer.precision == "int8" for layer in layers)
        return replace(found, agreement=1 - 0.05 * broken)

    monkeypatch.setattr(HoldOut, "evaluate", strict)
    monkeypatch.setattr(sensitivity, "saved_time", lambda *_: None)  # the order of so small groups would be chance
    action = {"data": pictures, "num_samples": 64, "recipe": "fast"}
    if target == "tensorrt":  # interpreted: agreement is always whole, nothing goes back
        artifact = vitedge.export(small_model, target, "int8", tmp_path / "a", min_agreement=96.0, **action)  # type: ignore[arg-type]
        assert artifact.manifest.candidates[0].holds
        return
    artifact = vitedge.export(small_model, target, "int8", tmp_path / "a", min_agreement=96.0, **action)  # type: ignore[arg-type]
    precision = {layer.name: layer.precision for layer in artifact.manifest.layers}
    assert precision["blocks.0.attn.qkv"] == precision["blocks.0.attn.proj"] == "fp32"
    assert "int8" in precision.values()
    reverted = [layer for layer in artifact.manifest.layers if "budget" in layer.reason]
    assert {"blocks.0.attn.qkv", "blocks.0.attn.proj"} <= {layer.name for layer in reverted}
    assert all(layer.sensitivity is not None for layer in reverted)
    assert artifact.manifest.candidates[0].holds and artifact.manifest.candidates[0].chosen
    assert all(check.ok is not False for check in vitedge.verify(artifact))


def test_a_budget_that_nothing_holds_publishes_nothing(
    small_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    from vitedge.exporting.hold_out import HoldOut

    evaluate = HoldOut.evaluate
    monkeypatch.setattr(HoldOut, "evaluate", lambda *given: replace(evaluate(*given), agreement=0.5))
    action = {"data": pictures, "num_samples": 64, "recipe": "fast", "min_agreement": 90.0}
    shipped = load_target("onnxruntime")
    target = replace(shipped, candidate=(*shipped.candidates("int8")[:2], *shipped.candidates("fp32")))
    with pytest.raises(
        InvalidResultError,
        match=r"no candidate stays within the budget, a top-1 agreement of at least 90 %: "
        r"linears-int8 has a top-1 agreement of 50\.00 %; gemm-int8 has a top-1 agreement of 50",
    ):
        vitedge.export(small_model, target, "int8", tmp_path / "a", **action)  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()
    chosen = vitedge.export(small_model, target, "auto", tmp_path / "b", **action)  # type: ignore[arg-type]
    assert chosen.manifest.precision == "fp32"
    judged = [(each.precision, each.holds, each.chosen) for each in chosen.manifest.candidates]
    assert judged == [("int8", False, False)] * 2 + [("fp32", None, True)]


def test_budgets_that_cannot_be_shown_are_refused(
    small_model: Path, pictures: Path, small_data: Path, tmp_path: Path
) -> None:
    def refused(**action: object) -> str:
        with pytest.raises(UsageError) as caught:
            vitedge.export(small_model, "onnxruntime", "int8", tmp_path / "a", recipe="fast", **action)  # type: ignore[arg-type]
        return str(caught.value)

    assert "--max-drop needs labels" in refused(data=pictures, num_samples=64, max_drop=1.0)
    assert "40 hold-out pictures can't show" in refused(
        data=pictures, num_samples=64, max_drop=1.0, held_out=small_data
    )
    assert "10 hold-out pictures can't show a top-1 agreement of 90 %" in refused(
        data=pictures, num_samples=190, min_agreement=90.0
    )
    assert "hold-out pictures of pictures0 are calibrated on" in refused(
        data=pictures, num_samples=64, held_out=pictures, min_agreement=50.0
    )
    assert "aren't among the model's: airplane" in refused(data=pictures, num_samples=64, held_out="display")
    with pytest.raises(UsageError, match="nothing is quantized"):
        vitedge.export(small_model, "onnxruntime", "fp32", tmp_path / "a", max_drop=1.0)


def test_auto_holds_the_whole_budget_of_the_target(
    small_model: Path, small_data: Path, pictures: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held-out"
    classes = sorted(path.name for path in small_data.iterdir())
    for number, path in enumerate(sorted(pictures.iterdir())):
        folder = held_out / classes[number % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    shipped = load_target("onnxruntime")
    action = {"data": small_data, "num_samples": 16, "recipe": "fast", "held_out": held_out}

    def exported(budget: Budget, name: str) -> vitedge.Artifact:
        return vitedge.export(small_model, replace(shipped, budget=budget), "auto", tmp_path / name, **action)

    made = exported(Budget(max_top1_drop_pp=20.0, min_top1_agreement_pct=50.0), "a").manifest
    assert made.precision == "int8"
    assert (made.max_top1_drop_pp, made.min_top1_agreement_pct) == (20.0, 50.0)
    with pytest.raises(UsageError, match=r"200 hold-out pictures can't show a top-1 agreement of 99\.9 %"):
        exported(Budget(max_top1_drop_pp=20.0, min_top1_agreement_pct=99.9), "b")


def test_the_fastest_that_holds_is_taken_and_remembered(
    small_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle candidate is made to look fastest; the second export doesn't measure again."""
    from types import SimpleNamespace

    from vitedge.benchmarking import bench as measuring

    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "cache"))
    variants = ["linears-int8", "gemm-int8", "static-int8", "dynamic-int8", "weights-int8"]
    calls: list[list[str]] = []

    def bench(artifacts: list[vitedge.Artifact], *_: object, **__: object) -> object:
        calls.append([artifact.manifest.variant for artifact in artifacts])
        times = [1_000_000 if artifact.manifest.variant == "static-int8" else 2_000_000 for artifact in artifacts]
        rows = [
            SimpleNamespace(latency=SimpleNamespace(samples=SimpleNamespace(latency_ns=(ns,))), checks=())
            for ns in times
        ]
        return SimpleNamespace(rows=rows)

    monkeypatch.setattr(measuring, "bench", bench)
    action = {"data": pictures, "num_samples": 64, "recipe": "fast", "autotune": True}
    for number in range(2):
        artifact = vitedge.export(small_model, "onnxruntime", "int8", tmp_path / str(number), **action)  # type: ignore[arg-type]
        assert artifact.manifest.variant == "static-int8"
        assert [each.variant for each in artifact.manifest.candidates] == variants
        assert [each.latency_p50_ms for each in artifact.manifest.candidates] == [2, 2, 1, 2, 2]
        assert [each.chosen for each in artifact.manifest.candidates] == [False, False, True, False, False]
        assert all(each.divergence is not None and each.bytes for each in artifact.manifest.candidates)
    assert calls == [variants]
    with pytest.raises(UsageError, match="--with-candidates"):
        vitedge.export(small_model, "raspberry-pi-5", "int8", tmp_path / "pi", **action)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_runtime_that_computes_something_else_is_caught(
    target: str, small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(target)
    infer = Session.map_batches

    def fused_wrongly(session: Session, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return (logits[::-1] for logits in infer(session, images))

    monkeypatch.setattr(Session, "map_batches", fused_wrongly)
    with pytest.raises(InvalidResultError, match="computes something else than the graph says") as caught:
        vitedge.export(small_model, target, "int8", tmp_path / "a", data=small_data, num_samples=16)
    assert caught.value.exit_code == 7 and not (tmp_path / "a").exists()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_float32_may_deviate_by_rounding_alone(
    target: str, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INT8 kernels round to the neighbouring step; float32 has no steps."""
    pytest.importorskip(target)
    infer = Session.map_batches

    def slightly_wrong(session: Session, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return (logits + 0.01 * np.abs(logits).max() for logits in infer(session, images))

    vitedge.export(small_model, target, "fp32", tmp_path / "right")
    monkeypatch.setattr(Session, "map_batches", slightly_wrong)
    with pytest.raises(InvalidResultError, match=r"its logits are off by 1\.0% of the largest"):
        vitedge.export(small_model, target, "fp32", tmp_path / "wrong")
