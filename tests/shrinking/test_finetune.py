"""Repair by the trainer: unlabelled pictures, or class folders; the widths stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vitedge
from vitedge.core.progress import silent
from vitedge.formats.model_folder import Model
from vitedge.graph.surgery import load, macs
from vitedge.runtimes.interpreter import run_graph
from vitedge.shrinking.adapting import at_size
from vitedge.shrinking.finetune import finetuned
from vitedge.shrinking.options import ShrinkOptions
from vitedge.shrinking.plan import plan_shrink
from vitedge.shrinking.shrinkage import shrinkage_of
from vitedge.shrinking.subject import subject

threads = pytest.importorskip("torch").get_num_threads


@pytest.mark.parametrize("labelled", [False, True], ids=["what the whole model says", "class folders"])
def test_the_whole_model_teaches(labelled: bool, small_model: Path, small_data: Path, tmp_path: Path) -> None:
    how = {"macs": 0.7, "data": small_data, "num_samples": 24}
    more = {"labelled": small_data} if labelled else {}
    before = vitedge.shrink(small_model, "onnxruntime", tmp_path / "plain", **how)  # type: ignore[arg-type]
    after = vitedge.shrink(small_model, "onnxruntime", tmp_path / "tuned", finetune=1, **how, **more)  # type: ignore[arg-type]
    first, second = (shrinkage_of(model.record.origin) for model in (before, after))
    assert first is not None and second is not None
    assert second.finetuned_epochs == 1 and first.finetuned_epochs is None
    assert second.removed == first.removed
    assert work(after) == work(before) == second.macs_after
    assert after.record.architecture == before.record.architecture
    assert after.record.files["model.onnx"] != before.record.files["model.onnx"], "the weights were trained"
    assert after.record.classes == Model.open(small_model).record.classes
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "tuned"}


def work(model: Model) -> int:
    return sum(macs(load(model.onnx_path)).values())


def test_a_smaller_input_learns_from_whole_pictures(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    options, cores = ShrinkOptions(macs=0.5, finetune=1, data=str(small_data), num_samples=24, threads=1), threads()
    whole = subject(plan_shrink(small_model, "onnxruntime", tmp_path / "small", options), silent)
    with at_size(whole.plan.deployed.model, (16, 16), "shrink") as model:
        student = whole.of(model)
    trained = finetuned(whole, student, student.inputs.graph)
    assert threads() == cores, "--threads speaks of what is measured"
    assert sum(macs(trained).values()) == sum(macs(student.inputs.graph).values())
    pictures = student.hold_out.frames
    assert pictures.shape[1:] == (16, 16, 3)
    assert not np.array_equal(run_graph(trained, pictures), run_graph(student.inputs.graph, pictures))
