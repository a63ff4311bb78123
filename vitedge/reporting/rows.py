"""Turn results into lines: all values of one artifact in tables and pictures, computed once from raw samples.

Percentiles, intervals and verdicts come from :mod:`vitedge.formats.result`, :mod:`vitedge.evaluation.statistics` and
:mod:`vitedge.benchmarking.validity`; here they're only brought together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vitedge.benchmarking.validity import Verdict, assess
from vitedge.core.intervals import Interval, wilson
from vitedge.errors import ArtifactError, UsageError
from vitedge.evaluation.evaluate import reference_row
from vitedge.evaluation.statistics import Paired, calibration_error, compare, top_k
from vitedge.formats.model_folder import GIVE_NAMES, nameless
from vitedge.formats.result import (
    NOT_EXECUTED,
    RESULT_JSON,
    Environment,
    Result,
    Row,
    Rules,
    combine,
    decode_result,
    read_result,
)

UNKNOWN = "–"


@dataclass(frozen=True)
class Line:
    """One artifact on one machine."""

    letter: str  # a short name, the same in every table and picture
    row: Row
    result: Result
    reference: Row | None  # what its accuracy is compared with; None for the reference itself, or without accuracy

    @property
    def label(self) -> str:
        """Target and precision."""
        return f"{self.row.subject.target} {self.row.subject.precision}"

    @property
    def machine(self) -> str:
        """The machine in a few words."""
        return machine_name(self.result.environment)

    @cached_property
    def verdict(self) -> Verdict:
        """The reasons against this row."""
        return assess(self.row)

    @property
    def rules(self) -> Rules | None:
        """The rules of the latency measurement; None without one."""
        return self.row.latency.rules if self.row.latency else None

    @property
    def load_ms(self) -> float | None:
        """The time of opening the artifact in its runtime."""
        return self.row.latency.load_ns / 1e6 if self.row.latency else None

    @property
    def first_ms(self) -> float | None:
        """The first inference."""
        return self.row.latency.first_ns / 1e6 if self.row.latency else None

    @cached_property
    def p50_ms(self) -> float | None:
        """Median latency of one batch; None where the sample doesn't support it."""
        return self._percentile_ms(50)

    @cached_property
    def p95_ms(self) -> float | None:
        """95th percentile of the latency of one batch; None where the sample doesn't support it."""
        return self._percentile_ms(95)

    def _percentile_ms(self, percent: float) -> float | None:
        nanoseconds = self.row.latency.samples.percentile_ns(percent) if self.row.latency else None
        return None if nanoseconds is None else nanoseconds / 1e6

    @cached_property
    def overhead_ms(self) -> float | None:
        """The harness's median overhead: the null runtime through the same code."""
        overhead = self.row.latency.overhead if self.row.latency else None
        nanoseconds = overhead.percentile_ns(50) if overhead else None
        return None if nanoseconds is None else nanoseconds / 1e6

    @property
    def throughput(self) -> float | None:
        """Images a second."""
        return self.row.latency.samples.throughput(self.row.subject.batch) if self.row.latency else None

    @cached_property
    def cost_ms(self) -> float | None:
        """Milliseconds an image, by which artifacts are ranked: from the median, or the throughput of ``offline``."""
        if self.rules is not None and self.rules.scenario == "offline":
            return 1000 / self.throughput if self.throughput else None
        return None if self.p50_ms is None else self.p50_ms / self.row.subject.batch

    @property
    def images(self) -> int:
        """The number of images behind its accuracy."""
        return len(self.row.accuracy.rank) if self.row.accuracy else 0

    @cached_property
    def top1(self) -> float | None:
        """Top-1 accuracy, a fraction."""
        return top_k(self.row.accuracy, 1) / self.images if self.row.accuracy and self.images else None

    @cached_property
    def top1_interval(self) -> Interval | None:
        """Wilson's 95 % interval of the top-1 accuracy."""
        return wilson(top_k(self.row.accuracy, 1), self.images) if self.row.accuracy and self.images else None

    @cached_property
    def top5(self) -> float | None:
        """Top-5 accuracy, a fraction; None with five classes or fewer, where it is meaningless."""
        if self.row.accuracy is None or not self.images or self.result.data is None:
            return None
        return top_k(self.row.accuracy, 5) / self.images if len(self.result.data.classes) > 5 else None

    @cached_property
    def paired(self) -> Paired | None:
        """The comparison with the reference, on the same images."""
        if self.reference is None or self.reference.accuracy is None or self.row.accuracy is None:
            return None
        return compare(self.reference.accuracy, self.row.accuracy)

    @property
    def top1_drop_pp(self) -> float | None:
        """Top-1 drop against the reference, percentage points."""
        return None if self.paired is None else 0.0 - 100 * self.paired.difference

    @property
    def drop_interval(self) -> Interval | None:
        """95 % interval of :attr:`top1_drop_pp`."""
        if self.paired is None:
            return None
        return Interval(0.0 - 100 * self.paired.interval.high, 0.0 - 100 * self.paired.interval.low)

    @cached_property
    def calibration_error(self) -> float | None:
        """Expected calibration error, a fraction."""
        accuracy = self.row.accuracy
        return calibration_error(accuracy.calibrated) if accuracy and accuracy.calibrated else None

    @property
    def verified(self) -> bool | None:
        """Whether every decided check passed; None when there was none, or the runtime couldn't run."""
        decided = [check.ok for check in self.row.checks if check.ok is not None]
        if not all(decided):
            return False
        return True if decided and not self._not_executed else None

    @property
    def _not_executed(self) -> bool:
        return any(check.name == NOT_EXECUTED for check in self.row.checks)

    @property
    def verification(self) -> str:
        """The checks in words: ``7 of 7 checks``, or ``3 of 4 checks; not executed here``."""
        checks = self.row.checks
        if not checks:
            return UNKNOWN
        passed = f"{sum(check.ok is True for check in checks)} of {len(checks)} checks"
        return f"{passed}; not executed here" if self._not_executed else passed

    @property
    def notes(self) -> list[str]:
        """The remarks that a reader has to know before trusting the numbers."""
        notes = [self.row.note] if self.row.note else []
        notes += [f"{check.tool}: {check.detail}" for check in self.row.parser_checks]
        notes += self.verdict.reasons
        if self.row.accuracy is not None and self.result.data is not None and nameless(self.result.data.classes):
            notes.append(f"the classes have no names; {GIVE_NAMES}")
        if self.row.partial:
            notes.append("partial: the run was interrupted")
        latency = self.row.latency
        if latency is not None:
            if latency.resumed_ns:
                notes.append(f"interrupted and resumed {len(latency.resumed_ns)} times; the time between is left out")
            if latency.samples.missed:
                notes.append(f"{latency.samples.missed} of {latency.samples.arrivals} arrivals missed")
        executed = self.row.precision_executed
        if executed is not None and _differs(executed, self.row.subject.precision_planned):
            notes.append(f"executed as {fractions(executed)}")
        return notes


def _differs(executed: dict[str, float], planned: dict[str, float]) -> bool:
    return any(abs(executed.get(name, 0.0) - planned.get(name, 0.0)) > 0.005 for name in {*executed, *planned})


def machine_name(where: Environment) -> str:
    """Describe a machine in a few words: its board, or its processor and cores."""
    if where.board.model and where.processor.architecture == "aarch64":
        return where.board.model
    cores = where.processor.physical_cores
    count = "" if cores is None else f", {cores} core{'' if cores == 1 else 's'}"
    return f"{where.processor.model or where.board.model or 'unknown machine'}{count}"


def fractions(by_type: dict[str, float]) -> str:
    """Format fractions by type as ``93 % int8, 7 % fp32``, the largest first."""
    ordered = sorted(by_type.items(), key=lambda item: -item[1])
    return ", ".join(f"{fraction:.0%} {name}".replace("%", " %") for name, fraction in ordered) or UNKNOWN


def milliseconds(value: float | None) -> str:
    """Format three significant digits: 0.123, 1.23, 12.3, 123."""
    if value is None:
        return UNKNOWN
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3}f}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """Format a fraction as a percentage without its sign: 86.2."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.{digits}f}"


def points(value: float | None, digits: int = 2) -> str:
    """Format percentage points, with a true minus sign."""
    return UNKNOWN if value is None else f"{value:.{digits}f}".replace("-", "−")


def rate(value: float | None) -> str:
    """Format images per second."""
    return UNKNOWN if value is None else f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}"


# --- reading and merging ---------------------------------------------------------------------------------------------


def read(sources: Iterable[str | Path | Result]) -> list[Result]:
    """Read the results in files and folders, and those that were read before, merged where they belong together.

    A folder stands for the ``.json`` files in it and the ``result.json`` in each of its folders; what isn't a result
    is passed over.

    Raises:
        UsageError: nothing there.
        ArtifactError: not a result, or written by a newer version.
    """
    read_results: list[Result] = []
    for each in sources:
        if isinstance(each, Result):
            read_results.append(each)
            continue
        source = Path(each)
        if not source.is_dir():
            read_results.append(read_result(source))
            continue
        inside = [*sorted(source.glob("*.json")), *sorted(source.glob(f"*/{RESULT_JSON}"))]
        results = [result for path in inside if (result := _read_if_result(path)) is not None]
        if not results:
            raise UsageError(
                f"report on {source}", "the folder holds no result", "run: vitedge bench ARTIFACT --out result.json"
            )
        read_results += results
    return merge(read_results)


def _read_if_result(path: Path) -> Result | None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"read the result {path}", f"{error.strerror}", "permit reading it, or move it") from error
    if path.name != RESULT_JSON and not (b'"rows"' in data and b'"circumstances"' in data):
        return None
    return decode_result(data, str(path))


def merge(results: Sequence[Result]) -> list[Result]:
    """Join results of one machine that measured different things of the same artifacts, the oldest first.

    What can't be joined without losing a measurement stays apart.
    """
    merged: list[Result] = []
    for result in sorted(results, key=lambda result: result.created):
        for number, earlier in enumerate(merged):
            if _joinable(earlier, result):
                merged[number] = combine(earlier, result)
                break
        else:
            merged.append(result)
    return merged


def _joinable(first: Result, second: Result) -> bool:
    if first.environment != second.environment or (first.data and second.data and first.data != second.data):
        return False
    rows = {row.subject.digest: row for row in first.rows}
    pairs = [(rows[row.subject.digest], row) for row in second.rows if row.subject.digest in rows]
    return not any((a.latency and b.latency) or (a.accuracy and b.accuracy) for a, b in pairs)


def lines(results: Sequence[Result]) -> list[Line]:
    """Return one line for each row, with letters in their order."""
    lettered: list[Line] = []
    for result in results:
        for row in result.rows:
            reference = _reference(row, result, results)
            lettered.append(Line(letter(len(lettered)), row, result, None if reference is row else reference))
    return lettered


def _reference(row: Row, result: Result, results: Sequence[Result]) -> Row | None:
    """Return the float row of the same model on the same images, of this result if it has one."""
    if row.accuracy is None:
        return None
    beside = [other for other in results if other is not result and other.data == result.data]
    for candidates in (result, *beside):
        same_model = [other for other in candidates.rows if other.subject.model_digest == row.subject.model_digest]
        reference = reference_row(same_model)
        if reference is not None and reference.subject.precision == "fp32":
            return reference
    return None


def letter(number: int) -> str:
    """Return A, B, …, Z, AA, AB, …"""
    before, last = divmod(number, 26)
    return (letter(before - 1) if before else "") + chr(ord("A") + last)
