"""``result.json``: raw samples with their circumstances.

Tables, pictures and verdicts are computed from it, never stored instead of it. Every time is an integer number of
nanoseconds on a monotonic clock that starts with the measurement; what a sensor couldn't tell is null, never zero.
"""

from __future__ import annotations

import math
import platform
import re
import signal
from collections.abc import Sequence
from datetime import datetime, timezone
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from msgspec import Meta, field
from msgspec.structs import replace

from vitedge import hardware
from vitedge._version import __version__
from vitedge.artifact import Artifact
from vitedge.errors import ArtifactError, InterruptedError_, UsageError
from vitedge.files import write_atomic
from vitedge.schema import PositiveReal, Record, decode_json, encode_json
from vitedge.target import Budget, Option

RESULT_JSON = "result.json"
Scenario = Literal["single", "offline", "camera"]
Column = tuple[int, ...]
Count = Annotated[int, Meta(ge=0)]

# --- percentiles -----------------------------------------------------------------------------------------------------

Method = Literal["nearest-rank", "loadgen", "trtexec"]
#: The method of every percentile that vitedge prints: the smallest sample that at least p % of the samples don't
#: exceed, without interpolation. benchmark_app's is the same.
METHOD: Method = "nearest-rank"


def percentile(ordered: Sequence[int], percent: float, method: Method = METHOD) -> int:
    """One percentile of ascending samples, by the rule of the tool that is named.

    With N samples, counted from 0, and p = percent / 100:

    - ``nearest-rank``: ⌈p·N⌉ − 1 (benchmark_app);
    - ``loadgen``: ⌊p·N⌋, MLPerf LoadGen;
    - ``trtexec``: N − 1 − ⌊(1 − p)·N⌋.

    Raises:
        ValueError: no samples, or a percentage outside 0 … 100.
    """
    count = len(ordered)
    if not count or not 0 <= percent <= 100:
        raise ValueError(f"{percent}th percentile of {count} samples")
    part = Fraction(str(percent)) / 100  # exact, so that 99.9 % of 1000 is 999
    index = {
        "nearest-rank": math.ceil(part * count) - 1,
        "loadgen": math.floor(part * count),
        "trtexec": count - 1 - math.floor((1 - part) * count),
    }[method]
    return ordered[min(max(index, 0), count - 1)]


@cache
def samples_needed(percent: float) -> int:
    """How many samples a percentile needs before it may be printed: 11, 64, 130, 662, 6636 for p50, 90, 95, 99, 99.9.

    The smallest N for which at most one of N samples beyond the true percentile has a probability of at most 1 %, as
    in MLPerf LoadGen's early stopping: pᴺ + N·(1 − p)·pᴺ⁻¹ ≤ 0.01.
    """
    p = percent / 100
    if not 0 < p < 1:
        return 1
    count = 1
    while p**count + count * (1 - p) * p ** (count - 1) > 0.01:
        count += 1
    return count


# --- what was measured -----------------------------------------------------------------------------------------------


class Rules(Record):
    """How a latency was measured; rows under different rules aren't ranked against each other."""

    scenario: Scenario
    warmup_s: Annotated[float, Meta(ge=0)]  # at least; it goes on until the rolling median is stable
    min_duration_s: Annotated[float, Meta(ge=0)]
    min_samples: Count
    percentile: Annotated[float, Meta(ge=1e-9, lt=100)]  # the claimed one: measuring goes on until it's supported
    block_s: PositiveReal  # sessions take turns in blocks of this length
    settle: Count  # untimed inferences at the start of every block
    seed: int  # of the order within each round of blocks
    pictures: str  # what was fed: "golden", or the name of a data set
    rate_hz: PositiveReal | None = None  # arrivals a second of scenario ``camera``

    def __post_init__(self) -> None:
        if (self.scenario == "camera") != (self.rate_hz is not None):
            raise ValueError("the scenario 'camera', and no other, has a rate")


class Block(Record):
    """One turn of one session; block i of every session measured together belongs to round i."""

    start_ns: Count
    end_ns: Count  # the last inference had been answered
    samples: Count
    arrivals: Count = 0  # scenario ``camera``: scheduled arrivals, of which ``samples`` were served


class Samples(Record):
    """Columns of equal length, one entry an inference, in order of their blocks.

    A stage's column is empty where the runtime can't separate the stage. In ``single`` and ``offline`` the pictures are
    prepared beforehand: preprocessing and postprocessing are timed beside the inferences, some in every block, and
    their columns have lengths of their own. In ``camera`` they lie within every sample.
    """

    start_ns: Column  # the call; ``camera``: the scheduled arrival
    latency_ns: Column  # from ``start_ns`` until the logits (``camera``: the prediction) are the caller's
    blocks: tuple[Block, ...]
    preprocess_ns: Column = ()  # one decoded picture to the model's input
    transfer_in_ns: Column = ()
    compute_ns: Column = ()
    transfer_out_ns: Column = ()
    postprocess_ns: Column = ()  # one batch of logits to its predictions

    def __post_init__(self) -> None:
        count = len(self.latency_ns)
        columns = (self.transfer_in_ns, self.compute_ns, self.transfer_out_ns)
        if len(self.start_ns) != count or any(len(column) not in (0, count) for column in columns):
            raise ValueError("the columns of samples differ in length")
        if sum(block.samples for block in self.blocks) != count:
            raise ValueError("the blocks don't hold as many samples as there are")

    def __len__(self) -> int:
        return len(self.latency_ns)

    def percentile_ns(self, percent: float) -> int | None:
        """One percentile of the latency by :data:`METHOD`; None when there are too few samples for it."""
        if len(self) < samples_needed(percent):
            return None
        return percentile(sorted(self.latency_ns), percent)

    def block_latencies(self) -> list[Column]:
        """The latencies of each block."""
        found, start = [], 0
        for block in self.blocks:
            found.append(self.latency_ns[start : start + block.samples])
            start += block.samples
        return found

    def throughput(self, batch: int) -> float | None:
        """Images a second: batch × inferences over the time that the blocks took; None without samples."""
        span_ns = sum(block.end_ns - block.start_ns for block in self.blocks)
        return batch * len(self) * 1e9 / span_ns if span_ns else None

    @property
    def missed(self) -> int:
        """Scheduled arrivals that were never served because a newer one had come (``camera``)."""
        return sum(max(0, block.arrivals - block.samples) for block in self.blocks)

    @property
    def arrivals(self) -> int:
        """Scheduled arrivals (``camera``)."""
        return sum(block.arrivals for block in self.blocks)


class Warmup(Record):
    """What was run before anything was counted."""

    samples: Count
    duration_ns: Count
    stable: bool  # the rolling median stopped moving before time was up


class Reading(Record):
    """The sensors at one moment; null where nothing could be read."""

    at_ns: Count
    clock_mhz: float | None = None  # of the fastest processor
    temperature_c: float | None = None  # the hottest sensor of the processor
    power_w: float | None = None
    throttle_events: dict[str, int] = field(default_factory=dict)  # counters since boot, by name
    throttle_live: dict[str, bool] = field(default_factory=dict)  # what says so at this moment


class Audit(Record):
    """The harness watching itself, after MLPerf's compliance tests."""

    checked: Count  # outputs of the timed run that were compared with the reference run
    differing: Count  # of those, further away than allowed
    max_deviation: float  # largest |difference| / largest |logit| that was seen
    allowed_deviation: float
    varied_ns: tuple[Column, ...] = ()  # latencies while the input changes, one column a turn …
    repeated_ns: tuple[Column, ...] = ()  # … and while one input repeats, in the turn after it

    def __post_init__(self) -> None:
        if len(self.varied_ns) != len(self.repeated_ns):
            raise ValueError("the turns of changing and of repeated inputs differ in number")


class Memory(Record):
    """Resident set of the process, bytes."""

    before_bytes: Count | None  # before the artifact was opened
    after_bytes: Count | None  # after its first inference
    peak_bytes: Count | None  # of the process until the end of the run, whatever else it had open


class Latency(Record):
    """One artifact under one set of rules."""

    rules: Rules
    load_ns: Count  # opening the artifact in its runtime
    first_ns: Count  # the first inference
    warmup: Warmup
    samples: Samples
    memory: Memory
    floor: Samples | None = None  # the null runtime through the same code, in the same rounds: the harness's own cost
    readings: tuple[Reading, ...] = ()
    audit: Audit | None = None


class Calibrated(Record):
    """Reliability diagram: equal-width bins of the top-1 probability, from 0 to 1."""

    count: tuple[Count, ...]
    correct: tuple[Count, ...]
    confidence_sum: tuple[float, ...]


class Divergence(Record):
    """Kullback–Leibler divergence KL(reference ‖ this) of the softmax outputs, in nats."""

    reference: str  # artifact digest
    images: Count
    total: float


class Accuracy(Record):
    """What an artifact answered to the first images of :attr:`Result.data`, one entry an image.

    Everything paired (McNemar, agreement, flips, confusion, drop per class) is recomputed from these columns.
    """

    predicted: Column  # class id of the largest logit
    rank: Column  # classes before the true one; 0 is top-1 correct, below 5 is top-5 correct
    calibrated: Calibrated | None = None  # None: the model's outputs aren't probabilities
    divergence: Divergence | None = None
    duration_ns: Count = 0  # of its inferences

    def __post_init__(self) -> None:
        if len(self.predicted) != len(self.rank):
            raise ValueError("the columns of an accuracy differ in length")


class DataSet(Record):
    """What accuracy was measured on."""

    source: str  # its name, not a path
    digest: str  # SHA-256 over the sorted SHA-256 of the images
    classes: tuple[str, ...]  # the model's class names by id
    names: tuple[str, ...]  # of the images that could be read, in the order of the columns
    label: Column  # class id of each
    skipped: tuple[str, ...] = ()  # names of unreadable images

    def __post_init__(self) -> None:
        if len(self.names) != len(self.label):
            raise ValueError("names and labels differ in length")


class Check(Record):
    """One thing that was looked at."""

    name: str
    ok: bool | None  # None: can't be decided on this machine
    detail: str


class Referee(Record):
    """What another tool says of an artifact that can't run on this machine."""

    tool: str  # name and version
    ok: bool
    detail: str


class Subject(Record):
    """The artifact that a row is about."""

    digest: str
    name: str
    model_digest: str
    target: str
    runtime: str
    precision: str  # asked for
    form: str
    batch: Count
    bytes: Count  # graph and weights
    input_size: tuple[int, int]  # height, width
    budget: Budget
    precision_planned: dict[str, float] = field(default_factory=dict)  # share of multiply-accumulates by type

    @classmethod
    def of(cls, artifact: Artifact) -> Subject:
        """What a row says of its artifact."""
        manifest = artifact.manifest
        return cls(
            digest=artifact.digest,
            name=manifest.name,
            model_digest=manifest.model_digest,
            target=manifest.target.name,
            runtime=manifest.target.runtime,
            precision=manifest.precision,
            form=manifest.form,
            batch=manifest.batch,
            bytes=artifact.bytes,
            input_size=manifest.preprocessing.size,
            budget=manifest.target.budget,
            precision_planned=manifest.precision_obtained,
        )


class Row(Record):
    """One artifact on one machine: what was measured, or a note why nothing was."""

    subject: Subject
    note: str = ""
    session: dict[str, Option] = field(default_factory=dict)  # runtime, version, device, threads, options: as read back
    precision_executed: dict[str, float] | None = None  # share of multiply-accumulates by type, from the executed graph
    latency: Latency | None = None
    accuracy: Accuracy | None = None
    checks: tuple[Check, ...] = ()
    referees: tuple[Referee, ...] = ()


class Circumstances(Record):
    """Where it was measured; what changes while measuring stands in :class:`Reading`. No host name, user or path."""

    processor: hardware.Processor
    board: hardware.Board
    gpus: tuple[hardware.Gpu, ...]
    memory_mb: int | None  # main memory, as far as this process may use it
    virtual: bool | None  # runs under a hypervisor
    power_source: str | None  # "mains", "battery"
    versions: dict[str, str]  # python, vitedge, numpy

    @classmethod
    def here(cls, root: Path = hardware.ROOT) -> Circumstances:
        """This machine, from the trees below ``root``."""
        return cls(
            processor=hardware.processor(root),
            board=hardware.board(root),
            gpus=tuple(hardware.gpus(root)),
            memory_mb=hardware.memory(root).total_mb,
            virtual=_virtual(root),
            power_source=_power_source(root),
            versions={"python": platform.python_version(), "vitedge": __version__, "numpy": np.__version__},
        )


def _virtual(root: Path) -> bool | None:
    """None on ARM, where the kernel doesn't tell."""
    flags = re.search(r"^flags\s*:(.*)$", hardware.read_text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return None if flags is None else "hypervisor" in flags[1].split()


def _power_source(root: Path) -> str | None:
    """None when the machine doesn't tell, as boards don't."""
    kinds: set[str] = set()
    for supply in (root / "sys/class/power_supply").glob("*"):
        kind, online, scope = (hardware.read_text(supply / name) for name in ("type", "online", "scope"))
        if kind in ("Mains", "USB") and online == "1":
            kinds.add("mains")
        elif kind == "Battery" and scope != "Device":  # a mouse's battery feeds no computer
            kinds.add("battery")
    return "mains" if "mains" in kinds else "battery" if kinds else None


class Result(Record):
    """``result.json``."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    vitedge_version: str = __version__
    created: str  # UTC, ISO 8601
    circumstances: Circumstances
    rows: tuple[Row, ...]
    data: DataSet | None = None
    partial: bool = False  # interrupted: what had been measured by then

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.accuracy and (self.data is None or len(row.accuracy.predicted) > len(self.data.label)):
                raise ValueError("an accuracy has more images than the data set")


class Stopped(InterruptedError_):
    """Interrupted by a signal while measuring; ``result`` holds what had been measured, marked partial."""

    def __init__(self, asked: str, result: Result, stop: BaseException) -> None:
        number = stop.exit_code - 128 if isinstance(stop, InterruptedError_) else signal.SIGINT
        super().__init__(
            asked,
            f"received {signal.Signals(number).name}; what was measured until then is kept and marked partial",
            "run the command again for a whole result",
            signal_number=number,
        )
        self.result = result


def now() -> str:
    """The time of :attr:`Result.created`."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def combine(first: Result, second: Result) -> Result:
    """One result of two runs on one machine: rows of the same artifact are joined, ``second`` winning.

    Raises:
        ValueError: other circumstances, or other data.
    """
    if first.circumstances != second.circumstances:
        raise ValueError("the results were measured under different circumstances")
    if first.data and second.data and first.data != second.data:
        raise ValueError("the results were measured on different data")
    rows = {row.subject.digest: row for row in first.rows}
    for row in second.rows:
        old = rows.get(row.subject.digest)
        rows[row.subject.digest] = row if old is None else _joined(old, row)
    return replace(
        second,
        rows=tuple(rows.values()),
        data=second.data or first.data,
        partial=first.partial or second.partial,
    )


def _joined(old: Row, new: Row) -> Row:
    return Row(
        subject=new.subject,
        note=new.note or old.note,
        session=new.session or old.session,
        precision_executed=old.precision_executed if new.precision_executed is None else new.precision_executed,
        latency=new.latency or old.latency,
        accuracy=new.accuracy or old.accuracy,
        checks=new.checks or old.checks,
        referees=new.referees or old.referees,
    )


# --- the file --------------------------------------------------------------------------------------------------------

_NUMBERS = re.compile(rb"\[\n\s*-?\d[-+\d.eE,\s]*\]")


def encode_result(result: Result) -> bytes:
    """Indented JSON, each column of numbers on one line."""
    return _NUMBERS.sub(lambda match: re.sub(rb"\s+", b"", match.group()), encode_json(result))


def decode_result(data: bytes, file: str) -> Result:
    """The inverse of :func:`encode_result`.

    Raises:
        ArtifactError: not a result, or written by a newer version.
    """
    return decode_json(data, Result, asked=f"read the result {file}", file=file)


def read_result(path: str | Path) -> Result:
    """Read a result file, or the ``result.json`` of a folder.

    Raises:
        UsageError: there is none.
        ArtifactError: not a result, or written by a newer version.
    """
    path = Path(path)
    path = path / RESULT_JSON if path.is_dir() else path
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(
            f"read the result {path}", "there is no such file", "run: vitedge bench ARTIFACT --out result.json"
        ) from error
    except OSError as error:
        raise ArtifactError(f"read the result {path}", f"{error.strerror}", "name a readable file") from error
    return decode_result(data, str(path))


def refuse_existing_result(out: Path, *, overwrite: bool, asked: str) -> None:
    """Refuse an output file before any work.

    Raises:
        UsageError: it exists and ``overwrite`` is false, or it isn't a file.
    """
    if out.is_dir():
        raise UsageError(asked, f"{out} is a folder", f"name a file: --out {out / RESULT_JSON}")
    if out.exists() and not overwrite:
        raise UsageError(asked, f"{out} already exists", "name another --out, or add --overwrite")


def write_result(result: Result, path: str | Path) -> None:
    """Write a result so that readers see the old file or the new one.

    Raises:
        ResourceError: disk, permission.
    """
    write_atomic(Path(path), encode_result(result), f"write the result {path}")
