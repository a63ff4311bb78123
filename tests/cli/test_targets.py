"""``vitedge targets``."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from tests.cli.command import fails, vitedge
from vitedge.core import paths
from vitedge.formats.budget import Budget
from vitedge.formats.target import BenchRules, Candidate, Provider, Target, load_target
from vitedge.reporting.catalogue_files import TEMPLATE


def test_all_of_them_with_runtime_device_and_precisions() -> None:
    done = vitedge("targets")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()[2:]}
    assert set(lines) == set(paths.names("targets"))
    assert "tensorrt" in lines["jetson-orin-nano"] and "cuda:0" in lines["jetson-orin-nano"]
    assert lines["jetson-orin-nano"].rstrip().endswith("int8 fp16 fp32")


@pytest.mark.parametrize("name", list(paths.names("targets")))
def test_one_of_them_fully(name: str) -> None:
    target = load_target(name)
    done = vitedge("targets", name)
    assert done.code == 0 and target.summary in done.out
    for candidate in target.candidate:
        assert candidate.variant in done.out
    for why in target.refused.values():
        assert why in done.out
    assert msgspec.convert(json.loads(vitedge("targets", name, "--json", "-").out), Target) == target


def test_unknown_and_nearest() -> None:
    _, reason, hint = fails(2, "targets", "rasberry-pi")
    assert reason == "no target has this name; the nearest is 'raspberry-pi-5'" and hint == "run: vitedge targets"


def test_a_new_one_loads_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "board.toml"
    done = vitedge("targets", "--new", out)
    assert done.code == 0 and "edit it, then: vitedge targets" in done.out
    assert load_target(out).name == "board"
    assert vitedge("targets", out).code == 0


def test_a_new_one_may_start_from_another(tmp_path: Path) -> None:
    assert vitedge("targets", "jetson-thor", "--new", tmp_path / "mine.toml").code == 0
    assert load_target(tmp_path / "mine.toml").sm == load_target("jetson-thor").sm


def test_the_template_speaks_of_every_key() -> None:
    text = TEMPLATE.read_text()
    for record in (Target, Candidate, BenchRules, Budget, Provider):
        for field in msgspec.structs.fields(record):
            if (record, field.name) != (Target, "name"):
                assert field.encode_name in text, field.name


def test_what_the_template_leaves_out_can_be_put_in(tmp_path: Path) -> None:
    keys = ("isa", "threads", "memory_mb", "sm", "sms", "latency_p95_ms", "[refused]", "fp16", "[options]", '"session')
    lines = TEMPLATE.read_text().splitlines()
    bare = [line[2:] if line.startswith(tuple(f"# {key}" for key in keys)) else line for line in lines]
    (tmp_path / "full.toml").write_text("\n".join(bare))
    target = load_target(tmp_path / "full.toml")
    assert target.sms and target.refused and target.options and target.budget.latency_p95_ms


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("mine")
    _, reason, _ = fails(2, "targets", "--new", tmp_path / "mine.toml")
    assert reason.endswith("already exists") and (tmp_path / "mine.toml").read_text() == "mine"


def test_a_new_one_is_called_toml(tmp_path: Path) -> None:
    _, reason, hint = fails(2, "targets", "--new", tmp_path / "board")
    assert reason == "a target file ends in .toml" and hint.endswith("board.toml")
