"""One HTML file: the decision, every number behind it, and the raw data. It loads no other file and no other host."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from vitedge import runtimes
from vitedge.benchmarking import protocols, sustained
from vitedge.core.intervals import CONFIDENCE
from vitedge.data.images import ImageSet
from vitedge.errors import NotInstalledError, printable
from vitedge.evaluation.statistics import ClassScore, class_scores
from vitedge.exporting.explain import Explained, explain_profiles
from vitedge.formats.result import METHOD, Result, encode_result
from vitedge.reporting import curves, gallery, plots, rows, widths
from vitedge.reporting.decision import decide, drop
from vitedge.reporting.gallery import Shown
from vitedge.reporting.rows import Line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

TEMPLATES = Path(__file__).resolve().parent / "templates"
MOST_BYTES = 5_000_000
MOST_CLASSES = 200  # in the table class by class; those with the largest drop
PLAIN_JSON_BYTES = 1_000_000  # more is embedded compressed
STAGES = (
    ("prepare a picture", "preprocess_ns"),
    ("transfer in", "transfer_in_ns"),
    ("compute", "compute_ns"),
    ("transfer out", "transfer_out_ns"),
    ("read the answer", "postprocess_ns"),
)


def render(results: Sequence[Result], *, shown: Sequence[Shown] = (), images: ImageSet | None = None) -> str:
    """Return the report as the text of one HTML file of less than :data:`MOST_BYTES` in UTF-8.

    Args:
        results: what :func:`vitedge.reporting.rows.read` gives.
        shown: sample pictures with their answers.
        images: the pictures that accuracy was measured on, to show those on which answers differ.

    Raises:
        NotInstalledError: jinja2 or matplotlib is missing.
        UsageError: ``images`` aren't the ones that accuracy was measured on.
    """
    lines = rows.lines(results)
    if images is not None:
        gallery.check_images(images, lines)
    jinja = _jinja()
    stages = [(line, _stages(line)) for line in lines if line.row.latency is not None]
    overheads = sorted(line.overhead_ms for line in lines if line.overhead_ms is not None)
    page: dict[str, Any] = {
        "decisions": decide(lines),
        "lines": lines,
        "by_label": {line.label: line for line in reversed(lines)},
        "results": results,
        "title": _title(lines),
        "created": max((result.created for result in results), default=""),
        "longest_ms": max((line.p95_ms or line.p50_ms or 0.0 for line in lines), default=0.0),
        "pictures": _pictures(lines),
        "stages": stages,
        "energies": {line.letter: _energy_mj(line) for line, _ in stages},
        "bursts": _bursts(lines),
        "explained": _explained(lines),
        "widths": [(line, widths.table(config)) for line in lines if (config := line.row.subject.architecture)],
        "width_columns": [column.lstrip(">") for column in widths.COLUMNS],
        "burst_s": sustained.BURST_S,
        "protocol_runs": _protocol_runs(lines),
        "tables": [(line, _class_scores(line)) for line in _detailed(lines)],
        "separated": [name for name, _ in STAGES if any(medians[name] is not None for _, medians in stages)],
        "flips": [(line, _embedded(gallery.flips(line, images))) for line in _detailed(lines)],
        "shown": _embedded(shown),
        "environments": _environments(results),
        "confidence": round(100 * CONFIDENCE),
        "method": METHOD,
        "overheads": [overheads[0], overheads[-1]] if overheads else [],
    }
    template = jinja.get_template("report.html")
    page["css"] = _trusted((TEMPLATES / "report.css").read_text())
    page["script"] = _trusted((TEMPLATES / "report.js").read_text())
    digest = hashlib.sha256(str(page["script"]).encode()).digest()
    page["script_digest"] = base64.b64encode(digest).decode()
    document = ""
    for raw in _raw(results):
        document = str(template.render(page, raw=raw))
        if len(document.encode()) < MOST_BYTES:
            break
    return document


def _jinja() -> Any:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise NotInstalledError.for_extra("write the report", "jinja2", "report") from error
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    jinja.filters.update(
        ms=rows.milliseconds,
        percent=rows.percent,
        points=rows.points,
        rate=rows.rate,
        fractions=rows.fractions,
        drop=drop,
        series=plots.series,
        digits=_digits,
        microseconds=lambda value: rows.UNKNOWN if value is None else f"{value:.0f}",
        machine=rows.machine_name,
    )
    return jinja


def _shown(value: Any) -> Any:
    """Return strings without control characters; a percent sign stays beside its number."""
    return re.sub(r"(?<=\d) %", "\u00a0%", printable(value)) if type(value) is str else value


def _trusted(text: str) -> Markup:
    """Mark text of our own that goes into the page unescaped."""
    from markupsafe import Markup

    return Markup(text)


def _title(lines: Sequence[Line]) -> str:
    """Return the models' name: the common part of the artifacts' names before target and precision."""
    names = []
    for line in lines:
        about = line.row.subject
        names.append(about.name.removesuffix(f"-{about.target}-{about.precision}"))
    return ", ".join(dict.fromkeys(names)) or "nothing"


_FRONT = "The dashed line is the Pareto front: nothing is both faster and more accurate. "


def _pictures(lines: Sequence[Line]) -> list[tuple[str, str, Markup]]:
    """Return (title, what to see, SVG) of every picture that the data allows."""
    pictures: list[tuple[str, str, str | None]] = []
    for decision in decide(lines):
        where = f", {decision.machine}" if len({line.machine for line in lines}) > 1 else ""
        group = decision.lines
        pictures += [
            (
                f"Accuracy against latency{where}",
                f"Up and left is better. {_FRONT if len(plots.front(group)) > 1 else ''}"
                "Bars are 95 % intervals; hollow marks aren't valid.",
                plots.tradeoff(group, f"Accuracy against latency{where}"),
            ),
            (
                f"How latency is distributed{where}",
                "The percentage of inferences that took at most so long. A steep curve is a steady artifact.",
                plots.distributions(group, f"Distribution of latency{where}"),
            ),
            (
                f"Latency during the run{where}",
                "A level curve is good; a slope shows heat or another process. A long run is drawn as medians "
                "and, thinner, 95th percentiles; below them the sensors' readings.",
                curves.over_time(group, f"Latency during the run{where}"),
            ),
        ]
    pictures.append(
        (
            "Reliability of the probabilities",
            "On the dotted line, answers given with 80 % confidence are right 80 % of the time.",
            plots.reliability(lines, "Reliability of the probabilities"),
        )
    )
    pictures += [
        (
            f"Where the time goes: {line.letter}, {line.label}",
            "Block by block, by the runtime's profiler. Profiling costs time, so only the proportions are comparable.",
            curves.layers(line, f"Layers, {line.label}"),
        )
        for line in lines
    ]
    pictures += [
        (
            f"Accuracy against latency of the selection: {line.letter}, {line.label}",
            "Down and left is better. Groups of layers go back to float one after the other, first those that cost "
            "most accuracy for the time they save; the numbers say how many. Squares are other candidates.",
            plots.selection(line.row.subject.steps, line.row.subject.candidates, f"Selection, {line.label}"),
        )
        for line in lines
    ]
    for line in _detailed(lines):
        pictures += [
            (
                f"Top-1 by class: {line.letter}, {line.label}",
                "The drop is seldom even across the classes.",
                plots.classes(line, f"Top-1 by class, {line.label}"),
            ),
            (
                f"Confusion matrix: {line.letter}, {line.label}",
                "Images of each true class (down) by the answer (across). Wrong ones are drawn four times as strong.",
                plots.confusions(line, f"Confusion matrix, {line.label}"),
            ),
        ]
    return [(title, note, _trusted(svg)) for title, note, svg in pictures if svg is not None]


def _detailed(lines: Sequence[Line]) -> list[Line]:
    """Return rows to show class by class: the choice of each decision, or the first with a reference."""
    detailed = []
    for decision in decide(lines):
        compared = [line for line in decision.lines if line.paired is not None]
        quantized = [line for line in compared if line.row.subject.precision != "fp32"]
        candidates = [decision.choice] if decision.choice in quantized else quantized or compared
        detailed += [line for line in candidates[:1] if line is not None]
    return detailed


def _stages(line: Line) -> dict[str, float | None]:
    """Return medians in milliseconds, None where a stage wasn't separated."""
    assert line.row.latency is not None
    samples = line.row.latency.samples
    return {
        name: median(column) / 1e6 if (column := getattr(samples, attribute)) else None for name, attribute in STAGES
    }


def _energy_mj(line: Line) -> float | None:
    """Return millijoules per image; None where no power meter could be read."""
    joules = sustained.energy_j(line.row.latency) if line.row.latency is not None else None
    return None if joules is None else 1e3 * joules / line.row.subject.batch


def _explained(lines: Sequence[Line]) -> list[tuple[Line, Explained]]:
    """Return every quantized row's layers and sentences; with times where it and a float row were profiled."""
    explained = []
    for line in lines:
        about, where = line.row.subject, line.result.environment
        if not about.layers:
            continue
        floats = [
            other.row.profile
            for other in lines
            if other.result is line.result
            and other.row.profile is not None
            and not other.row.subject.layers
            and (other.row.subject.model_digest, other.row.subject.runtime, other.row.subject.batch)
            == (about.model_digest, about.runtime, about.batch)
        ]
        float_profile = floats[0] if floats and line.row.profile is not None else None
        isa = None if runtimes.on_gpu(about.runtime) else where.processor.isa
        explained.append(
            (line, explain_profiles(line.label, about.precision, about.layers, float_profile, line.row.profile, isa))
        )
    return explained


def _bursts(lines: Sequence[Line]) -> list[tuple[Line, sustained.Sustained]]:
    """Return the sustained load of the long runs."""
    timed = [(line, line.row.latency) for line in lines if line.row.latency is not None]
    loads = [(line, sustained.burst_and_sustained(latency, line.row.subject.batch)) for line, latency in timed]
    return [(line, load) for line, load in loads if load is not None]


def _protocol_runs(lines: Sequence[Line]) -> list[tuple[Line, protocols.ToolProtocol, list[protocols.Field], str]]:
    """Return (row, tool, fields, both durations) of every run under another tool's protocol."""
    runs = []
    for line in lines:
        latency = line.row.latency
        for run in () if latency is None else line.row.protocol_runs:
            assert latency is not None
            tool = protocols.TOOLS[run.tool]
            duration = f"{run.min_duration_s:g} s instead of the tool's {tool.min_duration_s:g} s"
            fields = protocols.fields(run, latency, line.row.subject.batch)
            runs.append((line, tool, fields, duration if run.shortened else ""))
    return runs


def _class_scores(line: Line) -> list[ClassScore]:
    """Return the classes with the largest drop, at most :data:`MOST_CLASSES`."""
    assert line.row.accuracy is not None and line.result.data is not None
    reference = line.reference.accuracy if line.reference is not None else None
    return class_scores(line.row.accuracy, line.result.data, reference)[:MOST_CLASSES]


def _digits(value: float | None) -> str:
    """Format four significant digits; thousands in full."""
    if value is None:
        return rows.UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _embedded(shown: Sequence[Shown]) -> list[tuple[Shown, str | None]]:
    """Return each picture with its data URI."""
    return [
        (picture, gallery.data_uri(picture.picture, picture.name) if picture.picture else None) for picture in shown
    ]


def _environments(results: Sequence[Result]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (machine, facts) of every result."""
    environments = []
    for result in results:
        where = result.environment
        processor, board = where.processor, where.board
        facts: list[tuple[str, object]] = [
            ("board", board.model),
            ("processor", processor.model),
            ("architecture", processor.architecture),
            ("instructions", None if processor.isa is None else " ".join(processor.isa)),
            ("cores", _cores(result)),
            ("governor", processor.governor),
            ("highest clock", processor.max_mhz and f"{processor.max_mhz} MHz"),
            ("memory", where.memory_mb and f"{where.memory_mb:,} MiB"),
            *(("NVIDIA GPU", f"{gpu.name}, compute capability {gpu.compute_capability}") for gpu in where.gpus),
            ("system", board.os),
            ("kernel", board.kernel),
            *([("JetPack", f"{board.jetpack} (L4T {board.l4t})")] if board.l4t else []),
            ("virtual machine", None if where.virtual is None else "yes" if where.virtual else "no"),
            ("power", where.power_source),
            *where.versions.items(),
            ("measured", result.created),
        ]
        environments.append((rows.machine_name(where), [(name, str(value or "unknown")) for name, value in facts]))
    return environments


def _cores(result: Result) -> str | None:
    processor = result.environment.processor
    if processor.logical_cores is None:
        return None
    text = f"{processor.physical_cores or 'unknown'} physical, {processor.logical_cores} logical"
    if processor.allowed_cores not in (None, processor.logical_cores):
        text += f", {processor.allowed_cores} allowed"
    return text if processor.quota_cores is None else f"{text}, limited to {processor.quota_cores:g}"


def _raw(results: Sequence[Result]) -> list[Mapping[str, Any]]:
    """Return ways to embed the results, the fullest first: plain, compressed, and without raw samples."""
    data = b"[" + b",".join(encode_result(result).strip() for result in results) + b"]"
    packed = base64.b64encode(gzip.compress(data, mtime=0)).decode()
    ways: list[Mapping[str, Any]] = []
    if len(data) <= PLAIN_JSON_BYTES:
        # "<" can't occur in JSON outside strings; written as an escape it can't end the script element either.
        ways.append({"type": "application/json", "text": _trusted(data.decode().replace("<", "\\u003c"))})
    ways.append({"type": "application/gzip", "text": packed})
    ways.append({"type": "", "text": ""})
    return ways
