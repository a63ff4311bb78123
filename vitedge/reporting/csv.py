"""Write every number of every row as CSV, with units in the columns' names; unmeasured values are empty."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from vitedge.errors import printable
from vitedge.formats.result import Result
from vitedge.reporting import rows
from vitedge.reporting.decision import decide
from vitedge.reporting.rows import Line


def records(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one flat record for each row, in their order; numbers unrounded, None where nothing was measured."""
    lines = rows.lines(results)
    groups = decide(lines)
    flat = {}
    for number, decision in enumerate(groups, 1):
        for line in decision.lines:
            rank = decision.ranking.index(line) + 1 if line in decision.ranking else None
            flat[line.letter] = {
                "comparable": number,
                "apart": decision.apart or None,
                "rank": rank,
                "recommended": line is decision.choice and not decision.provisional,
                **_record(line),
            }
    return [flat[line.letter] for line in lines]


def _record(line: Line) -> dict[str, Any]:
    about, where, rules = line.row.subject, line.result.environment, line.rules
    memory = line.row.latency.memory if line.row.latency else None
    top1, drop = line.top1_interval, line.drop_interval
    return {
        "machine": line.machine,
        "artifact": about.name,
        "target": about.target,
        "runtime": about.runtime,
        "runtime_version": line.row.session.get("version"),
        "device": line.row.session.get("device"),
        "threads": line.row.session.get("threads"),
        "precision": about.precision,
        "variant": about.variant,
        "batch": about.batch,
        "input_height": about.input_size[0],
        "input_width": about.input_size[1],
        "bytes": about.bytes,
        "scenario": rules.scenario if rules else None,
        "samples": len(line.row.latency.samples) if line.row.latency else None,
        "load_ms": line.load_ms,
        "first_ms": line.first_ms,
        "latency_p50_ms": line.p50_ms,
        "latency_p95_ms": line.p95_ms,
        "images_per_s": line.throughput,
        "overhead_p50_ms": line.overhead_ms,
        "memory_bytes": memory.after_bytes if memory else None,
        "images": line.images or None,
        "top1": line.top1,
        "top1_low": top1.low if top1 else None,
        "top1_high": top1.high if top1 else None,
        "top5": line.top5,
        "top1_drop_pp": line.top1_drop_pp,
        "top1_drop_low_pp": drop.low if drop else None,
        "top1_drop_high_pp": drop.high if drop else None,
        "top1_agreement": line.paired.agreement if line.paired else None,
        "mcnemar_p": line.paired.p_value if line.paired else None,
        "calibration_error": line.calibration_error,
        "verified": line.verified,
        "throttled": line.verdict.throttled,
        "unstable": line.verdict.unstable,
        "valid": line.verdict.valid if line.row.latency else None,
        "notes": "; ".join(line.notes),
        "processor": where.processor.model,
        "architecture": where.processor.architecture,
        "os": where.board.os,
        "artifact_digest": about.digest,
        "created": line.result.created,
    }


def render(results: Sequence[Result]) -> str:
    """Format the records as RFC 4180 CSV with a header."""
    stream = io.StringIO()
    flat = records(results)
    writer = csv.writer(stream)
    writer.writerow(flat[0] if flat else [])
    writer.writerows([_cell(value) for value in record.values()] for record in flat)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    """Return a cell; text that a spreadsheet would run as a formula gets an apostrophe."""
    if not isinstance(value, str):
        return value
    clean = printable(value).replace("\n", " ")
    return f"'{clean}" if clean.startswith(("=", "+", "-", "@", "\t")) else clean
