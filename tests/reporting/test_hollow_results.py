"""A result may be hollow: whatever list of it is empty, it's refused when it's read, or can be shown in every way."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import vitedge
from tests.reporting.results import demo
from vitedge.errors import ArtifactError, UsageError
from vitedge.formats.artifact import CandidateResult, LayerPlan, Step
from vitedge.formats.result import Result, decode_result, encode_result
from vitedge.formats.samples import Layer, Profile, ProtocolRun
from vitedge.reporting import csv, html, markdown, measured

Place = tuple[str | int, ...]


def full() -> Result:
    """Two rows; the first has everything that a row may have."""
    result = demo()
    first = result.rows[0]
    assert first.latency is not None and first.latency.audit is not None
    audit = replace(first.latency.audit, varied_ns=((5, 6), (7, 8)), repeated_ns=((5, 6), (7, 8)))
    plans = [LayerPlan(name=name, kind="linear", precision="int8", macs=100) for name in ("blocks.0.attn.qkv", "head")]
    steps = [Step(quantized=share, groups_in_float=1, divergence=0.1, agreement=90.0) for share in (1.0, 0.5)]
    candidates = [CandidateResult(precision=name, variant=name, chosen=name == "int8") for name in ("int8", "fp32")]
    runs = ProtocolRun(
        tool="trtexec10", samples=first.latency.samples, first_ns=5, min_duration_s=3.0, shortened=False
    )  # fmt: skip
    row = replace(
        first,
        latency=replace(first.latency, audit=audit),
        subject=replace(first.subject, layers=tuple(plans), steps=tuple(steps), candidates=tuple(candidates)),
        profile=Profile(layers=(Layer(name="head", operator="MatMul", type="int8", ns=(5, 6, 7)),)),
        protocol_runs=(runs,),
    )
    return replace(result, rows=(row, result.rows[1]))


def lists(value: Any, place: Place = ()) -> Iterator[Place]:
    """Where the lists lie, and the mappings; of a list, those in its first item stand for all."""
    if isinstance(value, dict | list) and place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        yield from lists(item, (*place, key))


def with_empty(fields: dict[str, Any], place: Place) -> bytes:
    fields = copy.deepcopy(fields)
    inner: Any = fields
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = type(inner[place[-1]])()
    return json.dumps(fields).encode()


def show(result: Result, path: Path, *, page: bool) -> None:
    """In every way, of which the page takes longest."""
    markdown.render([result])
    csv.render([result])
    measured.show_result(result)
    vitedge.inspect(path)
    if page:
        html.render([result])
    with contextlib.suppress(UsageError):  # rows that can't be compared
        vitedge.compare_results([result])


def test_every_list_may_be_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = json.loads(encode_result(full()))
    del fields["record_digest"]
    places = list(lists(fields))
    shown = 0
    for place in places:
        (tmp_path / "result.json").write_bytes(with_empty(fields, place))
        try:
            result = decode_result((tmp_path / "result.json").read_bytes(), "result.json")
        except ArtifactError:
            continue
        shown += 1
        show(result, tmp_path / "result.json", page="audit" in place or len(place) == 1)
    capsys.readouterr()
    assert len(places) > 60 and shown > 20


@pytest.mark.parametrize("column", ["varied_ns", "repeated_ns"])
def test_an_audit_without_times_is_refused(column: str) -> None:
    fields = json.loads(encode_result(full()))
    del fields["record_digest"]
    fields["rows"][0]["latency"]["audit"][column][0] = []
    with pytest.raises(ArtifactError, match="a column of changing or of repeated inputs is empty"):
        decode_result(json.dumps(fields).encode(), "result.json")


@pytest.mark.parametrize(("place", "value"), [(("subject", "batch"), 0), (("latency", "load_ns"), -1)])
def test_a_number_that_cannot_be_is_refused(place: tuple[str, str], value: int) -> None:
    fields = json.loads(encode_result(full()))
    del fields["record_digest"]
    fields["rows"][0][place[0]][place[1]] = value
    with pytest.raises(ArtifactError, match=f"`int` >= {value + 1}"):
        decode_result(json.dumps(fields).encode(), "result.json")
