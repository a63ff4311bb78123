"""Tables of measurements, verifications and classifications."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitedge.formats.model_folder import GIVE_NAMES, nameless
from vitedge.reporting import latency_details, rows, terminal
from vitedge.reporting.rows import Line, milliseconds, percent, points, rate
from vitedge.reporting.terminal import BAD, GOOD, UNSURE, facts, mark, megabytes, table, text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from vitedge.evaluation.attribution import Map, PictureExplanation
    from vitedge.evaluation.classify import Classified
    from vitedge.evaluation.many import ClassifiedShards
    from vitedge.formats.result import Check, Result


MOST_CLASSES = 5  # of each artifact, those with the largest drop


def show_result(result: Result) -> None:
    """Print latency, accuracy, and the remarks to know before trusting them."""
    lines = rows.lines([result])
    setting = text(_setting(result), terminal.QUIET)
    terminal.show(
        _latency(lines),
        _beside(lines),
        *latency_details.tables(lines),
        _accuracy(lines),
        _classes(lines),
        _notes(lines),
        setting,
    )


def _latency(lines: Sequence[Line]) -> RenderableType | None:
    measured = [line for line in lines if line.row.latency is not None]
    if not measured:
        return None
    claimed = max(line.rules.percentile for line in measured if line.rules is not None)
    return table(
        [
            "",
            "artifact",
            "runtime",
            ">p50 ms",
            *([f">p{claimed:g} ms"] if claimed != 50 else []),
            ">images/s",
            "verdict",
        ],
        [
            (
                line.letter,
                line.label,
                _runtime(line),
                milliseconds(line.p50_ms),
                *([milliseconds(_claimed_ms(line))] if claimed != 50 else []),
                rate(line.throughput),
                _verdict(line),
            )
            for line in measured
        ],
        "Latency of one batch",
    )


def _beside(lines: Sequence[Line]) -> RenderableType | None:
    """Return times outside of the latency: preparing a picture, opening, the first inference; and the overhead."""
    measured = [line for line in lines if line.row.latency is not None]
    if not measured:
        return None
    return table(
        ["", "artifact", ">prepare ms", ">open ms", ">first ms", ">overhead ms", ">MB"],
        [
            (
                line.letter,
                line.label,
                milliseconds(_prepare_ms(line)),
                milliseconds(line.load_ms),
                milliseconds(line.first_ms),
                milliseconds(line.overhead_ms),
                megabytes(line.row.subject.bytes),
            )
            for line in measured
        ],
        "Beside it",
    )


def _runtime(line: Line) -> str:
    session = line.row.session
    count = session.get("threads")
    threads = f", {count} thread{'' if count == 1 else 's'}" if count else ""
    batch = f", batch {line.row.subject.batch}" if line.row.subject.batch > 1 else ""
    return f"{session.get('runtime', '')} {session.get('version', '')}{threads}{batch}"


def _claimed_ms(line: Line) -> float | None:
    assert line.row.latency is not None
    nanoseconds = line.row.latency.samples.percentile_ns(line.row.latency.rules.percentile)
    return None if nanoseconds is None else nanoseconds / 1e6


def _prepare_ms(line: Line) -> float | None:
    from statistics import median

    assert line.row.latency is not None
    column = line.row.latency.samples.preprocess_ns
    return median(column) / 1e6 if column else None


def _verdict(line: Line) -> Text:
    verdict = line.verdict
    if verdict.valid:
        return text("valid" if verdict.throttled is False else "valid, clocks unknown", GOOD)
    against = {
        "throttled": verdict.throttled,
        "unstable": verdict.unstable,
        "not enough data": verdict.enough is False,
        "failed its audit": verdict.audited is False,
        "wrong outputs": not verdict.correct,
    }
    return text(", ".join(word for word, is_so in against.items() if is_so), BAD)


def _accuracy(lines: Sequence[Line]) -> RenderableType | None:
    evaluated = [line for line in lines if line.images]
    if not evaluated:
        return None
    data = evaluated[0].result.data
    assert data is not None
    return table(
        [
            "",
            "artifact",
            ">top-1 %",
            "95 %",
            ">top-5 %",
            ">top-1 drop (pp)",
            "95 %",
            ">p",
            ">top-1 agreement (%)",
            ">KL",
            ">ECE %",
        ],
        [(line.letter, line.label, *_accuracy_cells(line)) for line in evaluated],
        f"Accuracy on {evaluated[0].images:,} images of {data.source}",
    )


def _accuracy_cells(line: Line) -> list[str]:
    paired, drop, interval = line.paired, line.drop_interval, line.top1_interval
    divergence = line.row.accuracy.divergence if line.row.accuracy else None
    return [
        percent(line.top1, 2),
        "" if interval is None else f"{percent(interval.low)} … {percent(interval.high)}",
        percent(line.top5, 2),
        points(line.top1_drop_pp),
        "" if drop is None else f"{points(drop.low)} … {points(drop.high)}",
        rows.UNKNOWN if paired is None else f"{paired.p_value:.2g}",
        rows.UNKNOWN if paired is None else percent(paired.agreement, 2),
        rows.UNKNOWN if divergence is None or paired is None else f"{divergence.total / max(1, divergence.images):.2g}",
        percent(line.calibration_error),
    ]


def _classes(lines: Sequence[Line]) -> RenderableType | None:
    """Return the classes with the largest drop of each artifact against its reference; the report has them all."""
    from vitedge.evaluation.statistics import class_scores

    scores: list[tuple[object, ...]] = []
    for line in lines:
        data, accuracy, reference = line.result.data, line.row.accuracy, line.reference
        if data is None or accuracy is None or reference is None or reference.accuracy is None:
            continue
        worse = [score for score in class_scores(accuracy, data, reference.accuracy) if (score.top1_drop_pp or 0.0) > 0]
        scores += [
            (
                line.letter,
                score.name,
                score.images,
                percent(score.top1),
                percent(score.reference_top1),
                points(score.top1_drop_pp, 1),
            )
            for score in worse[:MOST_CLASSES]
        ]
    columns = ["", "class", ">images", ">top-1 %", ">float32 %", ">top-1 drop (pp)"]
    return table(columns, scores, "Classes with the largest drop") if scores else None


def _notes(lines: Sequence[Line]) -> RenderableType | None:
    notes = [(line.letter, text(note, UNSURE)) for line in lines for note in line.notes]
    return table(["", "note"], notes) if notes else None


def _setting(result: Result) -> str:
    where = f"{rows.machine_name(result.environment)}, {result.environment.board.os or 'unknown system'}"
    rules = next((row.latency.rules for row in result.rows if row.latency is not None), None)
    how = (
        ""
        if rules is None
        else f" · {rules.scenario}, interleaved blocks of {rules.block_s:.3g} s, percentiles by nearest rank"
    )
    skipped = result.data.skipped if result.data is not None else ()
    unread = f" · {len(skipped)} images couldn't be read: {', '.join(skipped[:5])}" if skipped else ""
    return f"{where}{how}{unread}"


def show_checks(checks: Sequence[Check]) -> None:
    """Print one row for each check."""
    terminal.show(table(["", "check", "detail"], [(mark(check.ok), check.name, check.detail) for check in checks]))


def show_classified(classified: Sequence[Classified]) -> None:
    """Print one row for each picture; and, where the classes have no names, how to give them."""
    labels = [answer.label for entry in classified for answer in entry.answers]
    terminal.show(
        table(
            ["picture", "label", ">%", "then"],
            [
                (
                    entry.picture,
                    entry.answers[0].label if entry.answers else text(entry.problem, BAD),
                    percent(entry.answers[0].probability) if entry.answers else "",
                    ", ".join(f"{answer.label} {percent(answer.probability)}" for answer in entry.answers[1:]),
                )
                for entry in classified
            ],
        ),
        text(f"The classes have no names; {GIVE_NAMES}", UNSURE) if nameless(labels) else None,
    )


def show_picture_explanation(explanation: PictureExplanation) -> None:
    """Print the class, and the most important patch of each map."""
    place, fall = _strongest(explanation.occlusion)
    pairs = [
        ("picture", explanation.picture),
        ("class", f"{explanation.label} {percent(explanation.probability)} %"),
        ("occlusion", f"hiding the patch in {place} lowers the probability most, by {points(100 * fall)} pp"),
    ]
    if explanation.rollout is None:
        pairs.append(("attention rollout", f"none: {explanation.no_rollout}"))
    else:
        place, share = _strongest(explanation.rollout)
        pairs.append(("attention rollout", f"most of it, {percent(share)} %, comes from the patch in {place}"))
    terminal.show(facts(pairs))


def _strongest(values: Map) -> tuple[str, float]:
    """Return the position of a map's largest value, counted from 1, and the value."""
    value, row, column = max((value, -r, -c) for r, line in enumerate(values) for c, value in enumerate(line))
    return f"row {1 - row}, column {1 - column}", value


def show_classified_shards(classified: ClassifiedShards) -> None:
    """Print the counts of a classification by an engine, and the folder of the answers."""
    terminal.show(
        facts(
            [
                ("pictures", f"{classified.pictures:,} in {classified.shards:,} shards"),
                ("unreadable", f"{classified.unreadable:,}"),
                ("answers", f"{classified.answers}/*.parquet"),
            ]
        )
    )
