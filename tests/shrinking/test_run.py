"""From a model folder to a narrower one, by real runtimes: budget, provenance, refusals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from PIL import Image

import vitedge
from tests.cli.command import fails
from tests.cli.command import vitedge as run
from vitedge.core.progress import Progress
from vitedge.data import images
from vitedge.errors import InvalidResultError, UsageError
from vitedge.exporting import hold_out
from vitedge.formats.fidelity import Drop, Fidelity
from vitedge.formats.model_folder import Model
from vitedge.graph.surgery import array, load, macs
from vitedge.quantization import calibrate
from vitedge.quantization.observe import Observer
from vitedge.runtimes.interpreter import run_graph
from vitedge.shrinking import timing
from vitedge.shrinking.adapting import of_classes
from vitedge.shrinking.options import ShrinkOptions
from vitedge.shrinking.run import EMBEDDINGS
from vitedge.shrinking.shrinkage import Shrinkage, shrinkage_of
from vitedge.shrinking.subject import Subject
from vitedge.shrinking.timing import Stopwatch, Timing

SMALL = {"num_samples": 24}


def shrinkage(model: Model) -> Shrinkage:
    done = shrinkage_of(model.record.origin)
    assert done is not None
    return done


@pytest.fixture(scope="module")
def counted(small_model: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The small model at 60 % of its multiply-accumulates."""
    out = tmp_path_factory.mktemp("shrunk") / "small"
    return vitedge.shrink(small_model, "onnxruntime", out, macs=0.6, data=small_data, **SMALL)  # type: ignore[arg-type]


def test_counted_work_meets_the_budget_and_is_recorded(counted: Model, small_model: Path) -> None:
    done, before = shrinkage(counted), Model.open(small_model)
    work = sum(macs(load(counted.onnx_path)).values())
    assert done.macs_after == work and work <= 1.02 * 0.6 * done.macs_before
    assert done.macs_before == sum(macs(load(before.onnx_path)).values())
    assert done.model_digest == before.digest and done.table_digest is None
    assert done.chosen_by == "multiply-accumulates; nothing was measured"
    assert done.removed and all(each.after < each.before and each.saves > 0 for each in done.removed)
    assert done.loss is not None and done.loss.pictures == 16, "those that shrinking did not use"
    assert counted.record.classes == before.record.classes and counted.record.licence == before.record.licence


def test_the_embedding_that_loses_least_is_taken(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several widths of it are tried in earnest by half of the pictures, and the best one is fitted to all."""
    losses, last = dict[int, float](), list[float]()
    measured = Subject.loss

    def noted(whole: Subject, graph: onnx.ModelProto) -> Fidelity:
        loss = measured(whole, graph)
        width = next(array(each).size for each in graph.graph.initializer if each.name == "blocks.0.norm1.weight")
        losses.setdefault(width, loss.divergence)
        last.append(loss.divergence)
        return loss

    counts = dict[str, list[int]]()
    monkeypatch.setattr(Subject, "loss", noted)
    model = vitedge.shrink(
        small_model,
        "onnxruntime",
        tmp_path / "small",
        macs=0.6,
        data=small_data,
        progress=lambda task, done, _: counts.setdefault(task, []).append(done),
        **SMALL,  # type: ignore[arg-type]
    )
    assert {"budget 1", "budget 3", "shrink 1", "shrink 3", "shrink"} <= counts.keys()
    assert all(done == sorted(done) for done in counts.values()), "no bar begins again"
    assert len(losses) == EMBEDDINGS and len(last) == EMBEDDINGS + 1
    assert losses[model.record.architecture.embed_dim] == min(losses.values())
    assert shrinkage(model).loss.divergence == last[-1]


def test_every_picture_is_decoded_once_and_nothing_is_observed_for_int8(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = Counter[str]()
    opened = images.open_picture

    def counted(data: bytes, name: str) -> Image.Image:
        decoded[name] += 1
        return opened(data, name)

    for module in (calibrate, hold_out):
        monkeypatch.setattr(module, "open_picture", counted)
    monkeypatch.setattr(Observer, "__init__", lambda *_: pytest.fail("INT8 statistics, which nothing reads"))
    how = {"macs": 0.6, "data": small_data, "precision": "int8", "num_samples": 24}
    vitedge.shrink(small_model, "onnxruntime", tmp_path / "small", **how)  # type: ignore[arg-type]
    assert len(decoded) == 40 and set(decoded.values()) == {1}


def test_the_shrunk_model_is_exported_as_any_other(counted: Model, small_data: Path, tmp_path: Path) -> None:
    artifact = vitedge.export(counted, "onnxruntime", "fp32", tmp_path / "artifact")
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    with vitedge.open(artifact, threads=1) as session:
        expected = run_graph(load(counted.onnx_path), frames)
        np.testing.assert_allclose(session.run(frames), expected, atol=1e-4 * np.abs(expected).max())
    facts = vitedge.inspect(counted.path).facts
    assert facts["widths chosen by"] == "multiply-accumulates; nothing was measured"
    assert "of 32×32" not in facts["shrunk from"] and facts["shrunk from"].startswith("small (")


@pytest.fixture(scope="module")
def table(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ENTRY_S", 0.05)
        vitedge.latency_table(small_model, "onnxruntime", path, precision="int8", threads=1)
    return path


def test_a_table_from_elsewhere_is_added_up_and_called_so(
    table: Path, small_model: Path, small_data: Path, tmp_path: Path
) -> None:
    """As if it had been measured on another machine: there, an MLP's units are all that takes time."""
    content = json.loads(table.read_bytes()) | {"hardware": "a board", "full": 4e6}
    for shape in content["shapes"]:
        for each in shape["widths"]:
            cost = 1.5e6 / len(shape["components"]) if shape["kind"] == "hidden" else 0.0
            each["saved"] = each["low"] = each["high"] = cost * (1 - each["width"] / shape["width"])
    elsewhere = tmp_path / "board.json"
    elsewhere.write_text(json.dumps(content))
    out = tmp_path / "small"
    how = ("--precision", "int8", "--table", elsewhere, "--speedup", 1.25, "--data", small_data, "--num-samples", 24)
    done = run("shrink", small_model, "--target", "onnxruntime", *how, "--out", out, "--json", "-")
    assert done.code == 0, done.err
    row = json.loads(done.out)
    shrunk = row["shrunk"]
    assert shrunk["verified"] is False and "a board" in shrunk["chosen_by"]
    assert shrunk["cost"] <= 1.02 * 4e6 / 1.25
    assert {each["kind"] for each in shrunk["removed"]} == {"hidden"}, "nothing else saves any time there"


class Simulated:
    """In place of real time: what a graph takes, by its multiply-accumulates, and which widths were measured."""

    def __init__(self) -> None:
        self.measured: list[int] = []

    def times(
        self, watch: Stopwatch, graphs: Sequence[onnx.ModelProto], progress: Progress
    ) -> tuple[float, list[Timing]]:
        works = [sum(macs(graph).values()) for graph in (watch.original, *graphs)]
        full, *others = (1e6 + float(work) - work**2 / (3 * works[0]) for work in works)
        self.measured += works[1:]
        return full, [Timing(each, each / full, each / full, each / full) for each in others]


def test_whole_models_are_measured_and_the_table_once(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Simulated()
    monkeypatch.setattr(Stopwatch, "times", lambda *given: clock.times(*given))
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "cache"))

    def shrink(speedup: float) -> Shrinkage:
        out = tmp_path / f"small-{speedup}"
        return shrinkage(
            vitedge.shrink(small_model, "onnxruntime", out, speedup=speedup, data=small_data, num_samples=24)
        )

    done, entries = shrink(1.2), len(clock.measured)
    assert done.verified and done.unit == "ns" and done.table_digest is not None
    twice = (done.macs_after, done.macs_after)
    assert twice in pairwise(clock.measured), "the model that is written is measured itself, and once more"
    assert done.full / 1.2 * 0.9 <= done.cost <= done.full / 1.2 * 1.02, "within the budget, as near as widths permit"
    again = shrink(1.1)
    assert again.table_digest == done.table_digest and len(clock.measured) - entries < 10, "trials alone"
    with pytest.raises(UsageError, match="within the budget"):
        vitedge.shrink(small_model, "onnxruntime", tmp_path / "x", latency=1e3, data=small_data, num_samples=24)


def test_more_loss_than_allowed_writes_nothing(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Subject.loss

    def worse(whole: Subject, graph: onnx.ModelProto) -> Fidelity:
        return replace(measured(whole, graph), agreement=0.25, top1_drop=Drop(pp=60.0, low=30.0, high=80.0))

    monkeypatch.setattr(Subject, "loss", worse)
    given = {"macs": 0.6, "max_drop": 40.0, "data": str(small_data), "num_samples": 24}
    with pytest.raises(InvalidResultError) as caught:
        vitedge.shrink(small_model, "onnxruntime", tmp_path / "small", ShrinkOptions(**given))  # type: ignore[arg-type]
    assert caught.value.reason == (
        "the loss exceeds the limit, a top-1 drop of at most 40 pp: top-1 drops by 60.00 pp (95 % interval 30.00 to "
        "80.00), and 25.00% of 16 pictures keep their label"
    )
    assert "--finetune 10" in caught.value.hint and not list(tmp_path.iterdir())


def test_classes_that_are_not_needed_go(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("dog\nant\n\n")
    whole = Model.open(small_model)
    how = {"macs": 0.999, "data": small_data, "num_samples": 24, "classes": names}
    model = vitedge.shrink(whole, "onnxruntime", tmp_path / "small", **how)  # type: ignore[arg-type]
    assert [(label.id, label.name) for label in model.record.classes] == [(0, "ant"), (1, "dog")]
    done = shrinkage(model)
    assert done.model_digest == whole.digest and done.classes == 2
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    with of_classes(whole, str(names), "shrink") as fewer:
        kept, every = (run_graph(load(each.onnx_path), frames) for each in (fewer, whole))
    np.testing.assert_allclose(kept, every[:, [0, 3]], rtol=1e-5, atol=1e-6)
    names.write_text("dgo\n")
    with pytest.raises(UsageError, match="no class 'dgo'; the nearest is 'dog'"):
        vitedge.shrink(whole, "onnxruntime", tmp_path / "x", **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "reason", "hint"),
    [
        ([], "exactly one budget is needed, but none was given", "--frontier"),
        (["--macs", 0.5, "--speedup", 2], "one budget is needed, but --speedup and --macs were given", "choose"),
        (["--macs", 0.5, "--table", "t.json"], "--macs counts multiply-accumulates and uses no", "leave out"),
        (["--macs", 0.5, "--labelled", "x"], "--labelled names pictures for --finetune", "--finetune EPOCHS"),
        (["--speedup", 2, "--precision", "fp16"], "ONNX Runtime has no fp16 kernels", "--precision"),
        (["--speedup", 2, "--table", "absent.json"], "absent.json can't be read", "measure it on the device"),
        (["--macs", 0.001, "--data", "DATA"], "0.001", ""),
    ],
)
def test_refusals_come_before_any_work(
    given: list[object], reason: str, hint: str, small_model: Path, small_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    options = [str(small_data) if each == "DATA" else each for each in given]
    data = [] if "DATA" in given else ["--data", small_data, "--num-samples", 24]
    done = run("shrink", small_model, "--target", "onnxruntime", *options, *data, "--out", out)
    assert done.code == 2 and reason in done.err and hint in done.err, done.err
    assert not out.exists()


def test_a_table_of_another_model_or_precision_is_refused(
    table: Path, small_model: Path, small_data: Path, tmp_path: Path
) -> None:
    how = ("--table", table, "--speedup", 1.5, "--data", small_data, "--num-samples", 24, "--out", tmp_path / "x")
    _, reason, hint = fails(2, "shrink", small_model, "--target", "onnxruntime", "--precision", "fp32", *how)
    assert "measured for onnxruntime in int8, not for onnxruntime in fp32" in reason and "--precision int8" in hint
    content = json.loads(table.read_bytes())
    content["shapes"] = content["shapes"][1:]
    table = tmp_path / "other.json"
    table.write_text(json.dumps(content))
    how = ("--table", table, *how[2:])
    _, reason, _ = fails(2, "shrink", small_model, "--target", "onnxruntime", "--precision", "int8", *how)
    assert "was measured with a model of another shape" in reason


def test_without_an_output_it_says_what_to_add(small_model: Path) -> None:
    _, reason, hint = fails(2, "shrink", small_model, "--target", "onnxruntime", "--macs", 0.5)
    assert reason == "no model folder to write was named" and "--out MODEL" in hint
