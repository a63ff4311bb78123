"""The latency table: measured by real runtimes, read back, refused where it's another model's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from vitedge.core.progress import Progress, silent
from vitedge.core.schema import encode_json
from vitedge.errors import UsageError
from vitedge.exporting.plan import Plan
from vitedge.formats.model_folder import Model
from vitedge.graph.surgery import load, macs
from vitedge.graph.unused_tokens import without_unused_tokens
from vitedge.shrinking import timing
from vitedge.shrinking.choose import SCHEDULED
from vitedge.shrinking.components import components, truncate
from vitedge.shrinking.options import ShrinkOptions
from vitedge.shrinking.plan import plan_deployment
from vitedge.shrinking.prices import latency_table
from vitedge.shrinking.table import MOST_WIDTHS, Table, Width, increasing, macs_table, measure_table, read_table
from vitedge.shrinking.timing import Timing


@pytest.fixture(scope="module")
def deployed(small_model: Path) -> Plan:
    return plan_deployment(small_model, "onnxruntime", ShrinkOptions(precision="int8"), Path("table.json"))


@pytest.fixture(scope="module")
def table(deployed: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ENTRY_S", 0.05)
        patch.setenv("VITEDGE_CACHE", str(path.parent / "cache"))
        latency_table(deployed, path, ShrinkOptions(precision="int8", threads=1), "measure", silent)
    return path


def test_a_table_has_every_component_at_narrower_widths(table: Path, small_model: Path) -> None:
    content = json.loads(table.read_bytes())
    assert content["unit"] == "ns" and content["full"] > 0 and content["precision"] == "int8"
    names = {name for shape in content["shapes"] for name in shape["components"]}
    assert names == {each.name for each in components(load(Model.open(small_model).onnx_path))}
    assert len(content["shapes"]) == 6, "two blocks of one shape are measured together; tokens and embedding alone"
    for shape in content["shapes"]:
        widths = [each["width"] for each in shape["widths"]]
        assert widths and max(widths) < shape["width"] and len(set(widths)) == len(widths) <= MOST_WIDTHS
        assert all(each["low"] <= each["saved"] <= each["high"] for each in shape["widths"])


def test_what_was_written_is_read_for_this_model_alone(table: Path, small_model: Path, tmp_path: Path) -> None:
    parts = components(load(Model.open(small_model).onnx_path))
    assert encode_json(read_table(table, parts, "read")) == table.read_bytes()
    content = json.loads(table.read_bytes())
    content["shapes"] = content["shapes"][1:]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="of another shape"):
        read_table(other, parts, "read")
    content = json.loads(table.read_bytes())
    content["shapes"] = [shape for shape in content["shapes"] if shape["kind"] not in SCHEDULED]
    other.write_text(json.dumps(content))
    saved = read_table(other, parts, "read").saved
    assert not {"blocks.0.tokens", "embedding"} & set(saved), "as written before these were measured"
    with pytest.raises(UsageError, match="can't be read"):
        read_table(tmp_path / "absent.json", parts, "read")


def test_nothing_is_measured_twice_or_over_a_file(
    table: Path, deployed: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITEDGE_CACHE", str(table.parent / "cache"))
    monkeypatch.setattr(timing.Stopwatch, "times", lambda *_: pytest.fail("measured again"))
    options = ShrinkOptions(precision="int8", threads=1)
    again = latency_table(deployed, tmp_path / "again.json", options, "measure", silent)
    assert encode_json(again) == table.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        latency_table(deployed, tmp_path / "again.json", options, "measure", silent)


def test_without_measuring_work_is_counted(small_model: Path, deployed: Plan) -> None:
    graph = load(Model.open(small_model).onnx_path)
    counted: Table = macs_table(graph, components(graph), deployed)
    assert str(counted) == "multiply-accumulates; nothing was measured" and not counted.measured
    assert counted.full == sum(macs(graph).values())
    for name, width in (
        ("blocks.0.mlp", 64),
        ("blocks.1.attn.query_key", 8),
        ("blocks.0.attn.heads", 1),
        ("blocks.0.tokens", 5),
        ("embedding", 32),
    ):
        if width in counted.saved[name]:
            exact = counted.full - sum(macs(truncate(graph, {name: width})).values())
            assert counted.saved[name][width] == pytest.approx(exact, rel=1e-9)


@dataclass(frozen=True)
class Watch:
    """A stopwatch that takes multiply-accumulates for nanoseconds."""

    plan: Plan
    original: onnx.ModelProto
    threads: int | None = None

    def times(self, graphs: Sequence[onnx.ModelProto], _: Progress) -> tuple[float, list[Timing]]:
        full, *others = (float(sum(macs(without_unused_tokens(graph)).values())) for graph in (self.original, *graphs))
        return full, [Timing(ns=each, ratio=each / full, low=each / full, high=each / full) for each in others]


def test_a_branch_that_goes_saves_its_own_work_alone(small_model: Path, deployed: Plan) -> None:
    """Without any attention the head's class token would be all that is computed, and every branch would save that."""
    graph = load(Model.open(small_model).onnx_path)
    watch: Any = Watch(deployed, graph)
    saved = measure_table(watch, components(graph), silent).saved["blocks.0.attn.heads"]
    own = sum(count for name, count in macs(graph).items() if name.startswith("blocks.0.attn"))
    assert saved[0] == pytest.approx(own, rel=1e-9)


def test_narrower_widths_never_save_less() -> None:
    measured = {56: -5.0, 48: 30.0, 40: 10.0, 32: 40.0, 24: 38.0, 16: 90.0}
    widths = [Width(width=width, saved=saved, low=saved, high=saved) for width, saved in measured.items()]
    assert increasing(widths) == {56: 0.0, 48: 20.0, 40: 20.0, 32: 39.0, 24: 39.0, 16: 90.0}
