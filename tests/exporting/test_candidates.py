"""Candidates that travel with an artifact, and the device that chooses among them by measuring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

import vitedge
from tests.cli.command import fails
from tests.cli.command import vitedge as run
from vitedge import runtimes
from vitedge.benchmarking import speeds as measured
from vitedge.benchmarking.speeds import Speed, key
from vitedge.building import choices
from vitedge.core.files import sha256
from vitedge.errors import ArtifactError, InvalidResultError, UsageError
from vitedge.exporting import write
from vitedge.formats.artifact import Artifact
from vitedge.formats.target import load_target
from vitedge.reporting.inspection import inspect
from vitedge.reporting.terminal import show_exports
from vitedge.runtimes import choice as chosen
from vitedge.runtimes import here
from vitedge.runtimes.base import Request
from vitedge.runtimes.onnxruntime import lowering

#: Three kernel variants, and no patience: what is tested is what's done with the times.
BOARD = """
summary = "a quick board"
runtime = "{runtime}"
runtime_min = "{version}"
arch = "any"
device = "{device}"
threads = 1
batch = 1
{candidates}
[bench]
warmup_s = 0
min_duration_s = 0.05

[budget]
max_accuracy_drop_pts = 0.5
"""
WISH: dict[str, Any] = {"num_samples": 16, "recipe": "fast", "with_candidates": True}


def board(folder: Path, runtime: str, **variants: str) -> Path:
    """A target with these kernel variants, each with its precision."""
    version, device = {"onnxruntime": ("1.23", "cpu"), "openvino": ("2025.4", "CPU")}[runtime]
    words = [
        f'[[candidate]]\nprecision = "{precision}"\nform = "{variant}"\n' for variant, precision in variants.items()
    ]
    text = BOARD.format(runtime=runtime, version=version, device=device, candidates="\n".join(words))
    (folder / "board.toml").write_text(text)
    return folder / "board.toml"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    variants = {"linears-int8": "int8", "static-int8": "int8", "dynamic-int8": "int8"}
    return board(tmp_path_factory.mktemp("target"), "onnxruntime", **variants)


@pytest.fixture(scope="module")
def carrier(small_model: Path, small_data: Path, target: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("carrier") / "artifact"
    return vitedge.export(small_model, target, "int8", out, data=small_data, **WISH)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def timed(monkeypatch: pytest.MonkeyPatch, carrier: Artifact, *, fastest: str, wrong: str = "") -> None:
    """Times as a device would measure them."""

    def speeds(artifacts: list[Artifact], **_: object) -> tuple[Speed, ...]:
        variants = [artifact.manifest.variant for artifact in artifacts]
        return tuple(
            Speed(p50_ms=1.0 if variant == fastest else 2.0, p95_ms=3.0, wrong="deviates" if variant == wrong else "")
            for variant in variants
        )

    monkeypatch.setattr(choices, "speeds", speeds)


def test_every_candidate_travels_whole(carrier: Artifact) -> None:
    results = carrier.manifest.candidates
    (preferred,) = (one for one in results if one.chosen)
    assert preferred.variant == carrier.manifest.variant == "linears-int8" and preferred.folder is None
    others = [one for one in results if not one.chosen]
    assert len(others) == 2 and all(one.folder == f"candidates/int8-{one.variant}" for one in others)
    for candidate, one in zip(chosen.candidates_of(carrier)[1:], others, strict=True):
        assert candidate.manifest.variant == one.variant and candidate.bytes == one.bytes
        assert candidate.manifest.golden.deviation == one.deviation
        assert candidate.manifest.fidelity is not None and candidate.manifest.fidelity.divergence == one.divergence
        assert all(check.ok is not False for check in vitedge.verify(candidate))
        for file, digest in candidate.manifest.files.items():
            assert carrier.manifest.files[f"{one.folder}/{file}"] == digest
        manifest = (candidate.path / "manifest.json").read_bytes()
        assert carrier.manifest.files[f"{one.folder}/manifest.json"] == sha256(manifest)
    assert carrier.bytes == preferred.bytes, "what travels along isn't its size"


def test_the_preference_runs_until_something_was_measured(carrier: Artifact) -> None:
    opened = chosen.open_artifact(carrier.path)
    assert opened.path == carrier.path and "2 more candidates weren't measured here" in opened.because
    with vitedge.open(carrier.path) as session:
        assert session.info["candidate"] == "linears-int8" and "preference" in str(session.info["because"])
    words = inspect(carrier.path)
    assert "weren't measured here" in words.facts["opened here"]
    (section,) = (section for section in words.sections if section.title == "Candidates")
    assert [row[2] for row in section.rows].count("this artifact") == 1 and len(section.rows) == 3


def test_the_device_chooses_by_measuring_and_remembers(carrier: Artifact, cache: Path) -> None:
    done = run("build", carrier.path, "--json", "-")
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    (winner,) = (row for row in rows if row["chosen"])
    assert len(rows) == 3 and winner["reason"] == "the fastest within the budget"
    assert winner["latency_p50_ms"] == min(row["latency_p50_ms"] for row in rows)
    with vitedge.open(carrier.path) as session:
        assert str(session.artifact.path) == winner["artifact"] and session.info["candidate"] == winner["form"]
        assert "the fastest within the budget" in str(session.info["because"])
        frame = np.zeros(session.input_shape, np.uint8)
        assert np.isfinite(session.run(frame)).all()
    before = {path: path.read_bytes() for path in cache.rglob("*.json")}
    assert json.loads(run("build", carrier.path, "--json", "-").out) == rows, "measured once"
    assert {path: path.read_bytes() for path in cache.rglob("*.json")} == before
    assert Artifact.open(carrier.path).digest == carrier.digest, "the artifact itself stays as it was"
    assert winner["form"] in inspect(carrier.path).facts["opened here"]


def test_a_choice_holds_for_one_version_and_one_processor(
    carrier: Artifact, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    timed(monkeypatch, carrier, fastest="static-int8")
    choices.autotune([carrier])
    assert chosen.open_artifact(carrier.path).manifest.variant == "static-int8"
    with monkeypatch.context() as other:
        other.setattr(runtimes, "installed", lambda runtime: "9.9")
        assert chosen.open_artifact(carrier.path).manifest.variant == "linears-int8"
    with monkeypatch.context() as other:
        other.setattr(chosen, "hardware_description", lambda target: "another processor")
        assert chosen.open_artifact(carrier.path).manifest.variant == "linears-int8"
    (choice,) = cache.rglob("choice.json")
    choice.write_text(choice.read_text().replace("candidates/int8-static-int8", "../elsewhere"))
    assert chosen.open_artifact(carrier.path).manifest.variant == "linears-int8", "a foreign choice isn't followed"
    choice.write_bytes(b"{")
    assert chosen.open_artifact(carrier.path).manifest.variant == "linears-int8"


def test_measuring_again_and_copying_the_chosen(
    carrier: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed(monkeypatch, carrier, fastest="static-int8")
    assert choices.autotune([carrier], out=tmp_path / "best")[1].chosen
    assert Artifact.open(tmp_path / "best").manifest.variant == "static-int8"
    timed(monkeypatch, carrier, fastest="dynamic-int8")
    assert choices.autotune([carrier])[1].chosen, "what was measured before counts"
    assert choices.autotune([carrier], overwrite=True)[2].chosen
    assert [row["chosen"] for row in vitedge.build(carrier.path)] == [False, False, True]


def test_one_that_computes_something_else_here_isnt_chosen(carrier: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, carrier, fastest="dynamic-int8", wrong="dynamic-int8")
    found = {one.variant: one for one in choices.autotune([carrier])}
    assert not found["dynamic-int8"].chosen and "doesn't compute here what was exported" in found["dynamic-int8"].reason
    assert sum(one.chosen for one in found.values()) == 1


@pytest.fixture
def unplanned(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have a variant give the float graph instead of what it plans."""

    def plant(variant: str) -> None:
        real = lowering.VARIANTS[variant]

        def instead(request: Request) -> lowering.Variant:
            _, standard, precisions, reasons = real(request)
            return request.graph, standard, precisions, reasons

        monkeypatch.setitem(lowering.VARIANTS, variant, instead)

    return plant


def test_one_that_doesnt_run_as_planned_is_left_out_of_a_choice(
    unplanned: Callable[[str], None],
    small_model: Path,
    small_data: Path,
    target: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unplanned("linears-int8")
    made = vitedge.export(small_model, target, "int8", tmp_path / "a", data=small_data, **WISH)
    results = {one.variant: one for one in made.manifest.candidates}
    failed = results.pop("linears-int8")
    assert failed.failed is not None and "don't run as planned in onnxruntime" in failed.failed
    assert (failed.bytes, failed.divergence, failed.folder, failed.chosen) == (None, None, None, False)
    assert made.manifest.variant == "static-int8" and all(one.failed is None for one in results.values())
    assert [one.manifest.variant for one in chosen.candidates_of(made)] == ["static-int8", "dynamic-int8"]
    (section,) = (section for section in inspect(made.path).sections if section.title == "Candidates")
    assert failed.failed in [row[-1] for row in section.rows]
    show_exports([write.summary(made)])
    assert "linears-int8 (int8) was left out" in capsys.readouterr().out
    with pytest.raises(InvalidResultError, match="don't run as planned"):  # the preference alone was wanted
        vitedge.export(
            small_model, target, "int8", tmp_path / "b", data=small_data, **WISH | {"with_candidates": False}
        )
    for variant in results:
        unplanned(variant)
    with pytest.raises(InvalidResultError, match="don't run as planned"):
        vitedge.export(small_model, target, "int8", tmp_path / "b", data=small_data, **WISH)
    assert not (tmp_path / "b").exists()


def test_one_that_deviates_while_it_is_measured_is_left_out(
    small_model: Path, small_data: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speeds(artifacts: list[Artifact], **_: object) -> tuple[Speed, ...]:
        variants = [artifact.manifest.variant for artifact in artifacts]
        return tuple(
            Speed(p50_ms=5.0, p95_ms=6.0)
            if variant == good
            else Speed(p50_ms=1.0, p95_ms=3.0, wrong=f"{variant} deviates")
            for variant in variants
        )

    monkeypatch.setattr(write, "speeds", speeds)
    good, wish = "dynamic-int8", {"num_samples": 16, "recipe": "fast", "autotune": True}
    made = vitedge.export(small_model, target, "int8", tmp_path / "a", data=small_data, **wish)  # type: ignore[arg-type]
    assert made.manifest.variant == good
    assert [one.failed for one in made.manifest.candidates] == [None, "linears-int8 deviates", "static-int8 deviates"]
    good = "none"
    with pytest.raises(InvalidResultError, match="static-int8 deviates"):
        vitedge.export(small_model, target, "int8", tmp_path / "b", data=small_data, **wish)  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


def test_the_budget_of_the_target_counts_where_none_was_asked_for(
    carrier: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, carrier, fastest="dynamic-int8")
    losing = replace(carrier.manifest.target.budget, max_top1_drop_pp=0.0)
    everyone = chosen.candidates_of(carrier)

    def lossy(artifact: Artifact) -> list[Artifact]:
        def worse(one: Artifact) -> Artifact:
            fidelity = one.manifest.fidelity
            assert fidelity is not None and fidelity.top1_drop is not None
            drop_pp = 1.0 if one.manifest.variant == "dynamic-int8" else 0.0
            fidelity = replace(fidelity, top1_drop=replace(fidelity.top1_drop, pp=drop_pp))
            target = replace(one.manifest.target, budget=losing)
            return Artifact(one.path, replace(one.manifest, fidelity=fidelity, target=target))

        return [worse(one) for one in everyone]

    monkeypatch.setattr(choices, "candidates_of", lossy)
    found = {one.variant: one for one in choices.autotune([carrier])}
    assert found["dynamic-int8"].reason == "has a top-1 drop of 1.00 pp; the budget is 0 pp"
    monkeypatch.setattr(choices, "_timed", lambda *_: [replace(one, top1_drop_pp=2.0) for one in found.values()])
    with pytest.raises(InvalidResultError, match=r"has a top-1 drop of 2\.00 pp"):
        choices.autotune([carrier], overwrite=True)


def test_openvino_chooses_among_precisions(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    draw = np.random.default_rng(5)
    (tmp_path / "held-out").mkdir()
    for number in range(16):
        picture = Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        picture.save(tmp_path / "held-out" / f"{number}.png")
    made = vitedge.export(
        small_model,
        board(tmp_path, "openvino", **{"linears-int8": "int8", "float": "fp32"}),
        "auto",
        tmp_path / "a",
        data=small_data,
        held_out=tmp_path / "held-out",
        min_agreement=10.0,
        **WISH,
    )
    assert (made.manifest.min_top1_agreement_pct, made.manifest.max_top1_drop_pp) == (10.0, None)
    assert inspect(made.path).facts["budget"] == "a top-1 agreement of at least 10 %, held with 95 % confidence"
    rows = choices.autotune([made])
    assert {row.precision for row in rows} >= {"int8", "fp32"}
    (winner,) = (row for row in rows if row.chosen)
    with vitedge.open(made.path) as session:
        assert session.info["candidate"] == winner.variant


def test_what_was_measured_is_kept_by_graph_options_and_machine(
    carrier: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = chosen.candidates_of(carrier)
    first = key(everyone, None, "test")
    assert key(everyone, None, "test") == first
    assert first not in {key(everyone[::-1], None, "test"), key(everyone[1:], None, "test"), key(everyone, 9.0, "test")}
    options = {**carrier.manifest.runtime_options, "session.intra_op.allow_spinning": False}
    other = Artifact(carrier.path, replace(carrier.manifest, runtime_options=options))
    assert key([other, *everyone[1:]], None, "test") != first
    golden = replace(carrier.manifest.golden, tolerance=None)
    other = Artifact(carrier.path, replace(carrier.manifest, golden=golden))
    assert key([other, *everyone[1:]], None, "test") != first
    monkeypatch.setattr(measured, "hardware_description", lambda target: "another processor")
    assert key(everyone, None, "test") != first


def test_a_choice_answers_another_duration_by_measuring(carrier: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, carrier, fastest="static-int8")
    choices.autotune([carrier])
    timed(monkeypatch, carrier, fastest="dynamic-int8")
    for duration_s, fastest in ((None, "static-int8"), (0.1, "dynamic-int8"), (None, "dynamic-int8")):
        (winner,) = (row for row in choices.autotune([carrier], duration_s=duration_s) if row.chosen)
        assert winner.variant == fastest


def test_a_damaged_candidate_is_named(carrier: Artifact, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(carrier.path, tmp_path / "copy"))
    graph = copy / "candidates" / "int8-static-int8" / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"candidates/int8-static-int8/model\.onnx"):
        chosen.open_artifact(copy)


def test_for_another_machine(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    target = load_target("raspberry-pi-5")
    if not here.why_not_here(target):
        pytest.skip("this is a machine of its kind")
    made = vitedge.export(small_model, target, "int8", tmp_path / "a", data=small_data, **WISH)
    everyone = chosen.candidates_of(made)
    assert len(everyone) == len(target.candidates("int8"))
    assert all("interpreted" in one.manifest.golden.executed_by for one in everyone)
    assert "run on the device: vitedge build a" in " ".join(fails(2, "build", made.path))
    with pytest.raises(UsageError, match="--with-candidates"):
        vitedge.plan_export(small_model, target, "int8", tmp_path / "b", data=small_data, autotune=True)


def test_one_candidate_is_no_choice(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has one candidate in fp16"):
        vitedge.plan_export(small_model, "tensorrt", "fp16", tmp_path / "a", data=small_data, with_candidates=True)


def test_equal_exports_are_equal(
    carrier: Artifact, small_model: Path, small_data: Path, target: Path, tmp_path: Path
) -> None:
    again = vitedge.export(small_model, target, "int8", tmp_path / "again", data=small_data, **WISH)
    assert again.digest == carrier.digest
