"""``vitedge demo``: the whole pipeline on the embedded model, from its weights to a recommendation."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from vitedge import runtimes
from vitedge.benchmarking.bench import bench
from vitedge.benchmarking.options import DEMO_SECONDS, ROUNDS, BenchConfig
from vitedge.core.files import FolderKind, new_folder
from vitedge.core.progress import Progress, silent
from vitedge.data import embedded
from vitedge.errors import NotInstalledError
from vitedge.evaluation.evaluate import evaluate
from vitedge.exporting import plan, write
from vitedge.formats.artifact import Artifact
from vitedge.formats.model_folder import MODEL_JSON, Model
from vitedge.formats.result import RESULT_JSON, Check, Result, Row, Subject, combine, write_result
from vitedge.formats.target import load_target
from vitedge.importing.entry import import_model
from vitedge.reporting.decision import decide
from vitedge.reporting.gallery import Answer, Shown
from vitedge.reporting.html import render
from vitedge.reporting.rows import lines
from vitedge.runtimes.here import runs_here
from vitedge.runtimes.session import open_session
from vitedge.verification.verify import verify

#: The target of this machine's processor.
LONGER = (1, 2, 4)  # times the duration, until the choice is firm
_OPENVINO = "openvino-arm" if platform.machine() == "aarch64" else "openvino"
#: Target and precision of every row, float first.
ROWS = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    (_OPENVINO, "fp32"),
    (_OPENVINO, "int8"),
    ("tensorrt", "fp16"),
    ("tensorrt", "int8"),
)
REPORT_HTML = "report.html"
DEMO = FolderKind("a demo folder", (f"model/{MODEL_JSON}", RESULT_JSON, REPORT_HTML))
SHOWN = 8  # pictures that are classified to be looked at


@dataclass
class Demo:
    """The results of the demo."""

    out: Path
    result: Result
    shown: list[Shown]  # pictures that nothing was chosen by, and every artifact's answer


def demo(
    out: Path,
    *,
    overwrite: bool = False,
    duration_s: float = DEMO_SECONDS,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda words: None,
) -> Demo:
    """Export, verify, measure, evaluate and classify with the embedded model.

    Args:
        out: a new folder: ``model/``, ``artifacts/``, ``result.json``, ``report.html``.
        overwrite: replace an older demo folder.
        duration_s: seconds of latency measurement for each artifact.
        progress: called with (task, done, total).
        say: called with one sentence a step.

    Raises:
        UsageError: the output exists.
        NotInstalledError: the packages that write graphs and reports (extra ``demo``) aren't installed.
        ResourceError: disk, memory, permission.
    """
    action = f"run the demo into {out}"
    plan.require_host(action, "jinja2", "matplotlib", extra="demo")  # now, not after two minutes
    with new_folder(out, DEMO, overwrite=overwrite, action=action) as folder:
        say("import the embedded model")
        model = import_model("embedded", out=folder / "model")
        artifacts: dict[tuple[str, str], Artifact] = {}
        rows: dict[tuple[str, str], Row] = {}
        for target, precision in ROWS:
            say(f"export to {target} in {precision}, and verify")
            try:
                planned = plan.plan_export(model, target, precision, folder / "artifacts" / f"{target}-{precision}")
                artifact = write.export(planned, progress)
            except NotInstalledError as error:
                rows[target, precision] = _absent(model, target, precision, error)
                continue
            artifacts[target, precision] = artifact
            rows[target, precision] = _verified(artifact)
        running = [artifact for artifact in artifacts.values() if runs_here(artifact.manifest.target)]
        say(f"evaluate {len(running)} artifacts on the hold-out pictures")
        evaluated = evaluate(running, embedded.pictures("held-out"), progress=progress)
        result = _with_every_row(_measured(running, evaluated, duration_s, progress, say), list(rows.values()))
        write_result(result, folder / RESULT_JSON)
        say("classify test pictures")
        shown = _classified(running)
        say("draw the report")
        (folder / REPORT_HTML).write_text(
            render([result], shown=shown, images=embedded.pictures("held-out")), encoding="utf-8"
        )
    return Demo(out, result, shown)


def _measured(
    artifacts: list[Artifact], evaluated: Result, duration_s: float, progress: Progress, say: Callable[[str], None]
) -> Result:
    """Measure latency beside the accuracy, for longer where that settles which artifact to deploy."""
    for factor in LONGER:
        seconds = factor * duration_s
        say(f"measure their latency, interleaved, {seconds:g} s each")
        config = BenchConfig(duration_s=seconds, rounds=factor * ROUNDS, memory_alone=False)
        result = combine(bench(artifacts, config, progress=progress), evaluated)
        (decision,) = decide(lines([result]))
        if all(doubt.of_accuracy for doubt in decision.unsure):
            break
    return result


def _absent(model: Model, target: str, precision: str, error: NotInstalledError) -> Row:
    """Return the row of an artifact that couldn't be written because a package is missing."""
    described = load_target(target)
    subject = Subject(
        digest="",
        name=f"{model.record.name}-{target}-{precision}",
        model_digest=model.digest,
        target=target,
        runtime=described.runtime,
        precision=precision,
        variant=described.candidates(precision)[0].variant,
        batch=described.batch,
        bytes=0,
        input_size=model.record.preprocessing.size,
        budget=described.budget,
    )
    return Row(subject=subject, note=f"{error.reason}; {error.hint}")


def _verified(artifact: Artifact) -> Row:
    """Return the row of an artifact after verification: its checks, and a parser check where the runtime has one."""
    checks: list[Check] = verify(artifact)
    row = Row(subject=Subject.of(artifact), checks=tuple(checks))
    target = artifact.manifest.target
    if runs_here(target) or not runtimes.has(target.runtime, "parser_check"):
        return row
    parser_check = runtimes.part(target.runtime, "parser_check").check(artifact.graph_path.read_bytes())
    return replace(
        row,
        note="portable: build on the device: copy the folder there and run: vitedge verify FOLDER",
        parser_checks=() if parser_check is None else (parser_check,),
    )


def _with_every_row(measured: Result, verified: list[Row]) -> Result:
    """Add the checks, notes and parser checks of ``verified`` to the measured result, in the order of ``verified``."""
    by_digest = {row.subject.digest: row for row in measured.rows}
    rows = []
    for row in verified:
        other = by_digest.get(row.subject.digest)
        if other is not None and row.subject.digest:
            row = replace(other, checks=row.checks, note=row.note, parser_checks=row.parser_checks)
        rows.append(row)
    return replace(measured, rows=tuple(rows))


def _classified(running: list[Artifact]) -> list[Shown]:
    """Classify some display pictures of different classes with each artifact."""
    images = embedded.pictures("display")
    picked: dict[str | None, int] = {}
    for index in images.order(1):
        picked.setdefault(images.records[index].folder, index)
    chosen = images.subset(sorted(list(picked.values())[:SHOWN]))
    answers: list[list[Answer]] = [[] for _ in range(len(chosen))]
    for artifact in running:
        by = f"{artifact.manifest.target.name} {artifact.manifest.precision}"
        with open_session(artifact) as session:
            for index, record in enumerate(chosen.records):
                best = session.classify(chosen.read(index), top_k=1)[0]
                answers[index].append(Answer(by, best.label, best.probability, best.label == record.folder))
    return [
        Shown(record.name, chosen.read_bytes(index), record.folder, tuple(answers[index]))
        for index, record in enumerate(chosen.records)
    ]
