"""Smaller inputs that compete under one budget: what each of them is, and which is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import vitedge
from tests.cli.command import fails
from tests.cli.command import vitedge as run
from tests.graph.vits import random_arrays
from vitedge.core.progress import silent
from vitedge.errors import ModelError, UsageError
from vitedge.formats.model_folder import Model, write_model
from vitedge.graph.adapting import with_resolution
from vitedge.graph.reference import reference_logits
from vitedge.graph.surgery import load, macs
from vitedge.runtimes.interpreter import run_graph
from vitedge.shrinking import timing
from vitedge.shrinking.adapting import at_size
from vitedge.shrinking.options import ShrinkOptions, parse_sizes
from vitedge.shrinking.plan import plan_deployment
from vitedge.shrinking.shrinkage import Shrinkage, shrinkage_of
from vitedge.shrinking.timing import Stopwatch


def shrinkage(model: Model) -> Shrinkage:
    done = shrinkage_of(model.record.origin)
    assert done is not None
    return done


def test_a_smaller_model_has_its_positions_resized_and_nothing_else(small_model: Path) -> None:
    whole = Model.open(small_model)
    assert whole.record.architecture is not None
    own = whole.record.architecture
    config, arrays = with_resolution(own, {**random_arrays(own, seed=7)}, (24, 16))
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 16, 3), dtype=np.uint8)
    contract = whole.record.preprocessing
    expected = reference_logits(config, arrays, frames, mean=contract.mean, std=contract.std)
    with at_size(whole, (24, 16), "shrink") as smaller:
        assert smaller.record.preprocessing == replace(contract, size=(24, 16))
        assert smaller.record.architecture == config
        np.testing.assert_allclose(run_graph(load(smaller.onnx_path), frames), expected, atol=1e-4)


@pytest.fixture(scope="module")
def chosen(small_model: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    out = tmp_path_factory.mktemp("shrunk") / "small"
    how = {"macs": 0.5, "resolutions": [(16, 16), 32], "data": small_data, "num_samples": 24}
    return vitedge.shrink(small_model, "onnxruntime", out, **how)  # type: ignore[arg-type]


def test_the_size_that_loses_least_within_the_budget_is_written(chosen: Model, small_model: Path) -> None:
    done, whole = shrinkage(chosen), Model.open(small_model)
    assert [each.size for each in done.resolutions] == [(32, 32), (16, 16)]
    losses = {each.size: each.loss.divergence for each in done.resolutions if each.loss is not None}
    assert len(losses) == 2 and done.loss is not None and done.loss.divergence == min(losses.values())
    assert losses[done.size or (0, 0)] == done.loss.divergence
    assert chosen.record.preprocessing == replace(whole.record.preprocessing, size=done.size)
    assert all(each.cost is not None and each.cost <= 1.02 * 0.5 * done.full for each in done.resolutions)
    assert done.full == done.macs_before == sum(macs(load(whole.onnx_path)).values())
    assert done.cost == done.macs_after == sum(macs(load(chosen.onnx_path)).values())
    assert done.model_digest == whole.digest


@pytest.fixture(scope="module")
def table(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ENTRY_S", 0.02)
        vitedge.latency_table(small_model, "onnxruntime", path, precision="fp32", threads=1, resolutions=[16])
    return path


def test_a_table_carries_the_sizes_that_were_measured(
    table: Path, small_model: Path, small_data: Path, tmp_path: Path
) -> None:
    """As if it came from a board on which half of each side is three times as fast."""
    content = json.loads(table.read_bytes())
    assert [each["size"] for each in (content, *content["resized"])] == [[32, 32], [16, 16]]
    for each, full in ((content, 3e6), (content["resized"][0], 1e6)):
        each |= {"hardware": "a board", "full": full}
        for shape in each["shapes"]:
            for width in shape["widths"]:
                width["saved"] = width["low"] = width["high"] = 0.0
    elsewhere = tmp_path / "board.json"
    elsewhere.write_text(json.dumps(content))
    options = ("--precision", "fp32", "--table", elsewhere, "--data", small_data, "--num-samples", 24)
    how = ("shrink", small_model, "--target", "onnxruntime", *options, "--out", tmp_path / "small")
    done = run(*how, "--speedup", 3, "--resolutions", 16)
    assert done.code == 0 and "not within the budget" in done.out and "the least KL is chosen" in done.out, done.err
    model = Model.open(tmp_path / "small")
    shrunk = shrinkage(model)
    assert shrunk.size == (16, 16) and not shrunk.removed and (shrunk.full, shrunk.cost) == (3e6, 1e6)
    assert [each.cost for each in shrunk.resolutions] == [None, 1e6], "nothing can be saved at 32×32"
    assert vitedge.inspect(model.path).facts["shrunk input"] == "16×16 pixels, chosen from 32×32 and 16×16"
    artifact = vitedge.export(model, "onnxruntime", "fp32", tmp_path / "artifact")
    with vitedge.open(artifact, threads=1) as session:
        assert session.input_shape[1:3] == (16, 16)
    _, reason, hint = fails(2, *how, "--speedup", 3, "--resolutions", "24", "--overwrite")
    assert reason.endswith("board.json has no times for inputs of 24x24 pixels") and "--resolutions 24x24" in hint


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_smaller_input_is_measured_beside_the_whole_model(precision: str, small_model: Path) -> None:
    whole = Model.open(small_model)
    deployed = plan_deployment(whole, "onnxruntime", ShrinkOptions(precision=precision), Path("out"))
    watch = Stopwatch(deployed, load(whole.onnx_path), threads=1, duration_s=0.05)
    with at_size(whole, (16, 16), "shrink") as smaller:
        full, (found,) = watch.times([load(smaller.onnx_path)], silent)
    assert 0 < found.ns < full and found.low <= found.ratio <= found.high


@pytest.mark.parametrize(
    ("given", "reason", "hint"),
    [
        ("20", "image height 20 is not a positive multiple of the stem's stride 8", "choose a multiple of 8"),
        ("16,40", "40×40 pixels are more than the 32×32 that the model takes", "name smaller sizes"),
        ("16x", "'16x' isn't a number of pixels", "write for example --resolutions 24,28"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(given: str, reason: str, hint: str, small_model: Path) -> None:
    how = ("shrink", small_model, "--target", "onnxruntime", "--macs", 0.5, "--resolutions", given, "--out", "x")
    done = run(*how)
    assert done.code in (2, 3) and reason in done.err and hint in done.err, done.err


def test_a_model_that_is_no_plain_vit_keeps_its_size(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    whole = Model.open(small_model)
    record = replace(whole.record, architecture=None)
    hybrid = write_model(tmp_path / "hybrid", record, {"model.onnx": whole.onnx_path.read_bytes()})
    how = {"data": small_data, "num_samples": 24, "resolutions": [16]}
    with pytest.raises(ModelError, match="isn't a plain ViT, and only a plain ViT's input size can be changed"):
        vitedge.shrink(hybrid, "onnxruntime", tmp_path / "x", macs=0.5, **how)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a frontier is drawn for one input size"):
        vitedge.shrink_frontier(whole, "onnxruntime", tmp_path / "x", **how)  # type: ignore[arg-type]


def test_sizes_are_sides_or_heights_and_widths() -> None:
    assert parse_sizes("24, 96x160,32×48") == (24, (96, 160), (32, 48))
    assert ShrinkOptions(resolutions=(16, (24, 24), 24, (16, 32))).sizes == [(24, 24), (16, 32), (16, 16)]
