"""``result.json``: raw samples with the environment that they were taken in.

Tables, pictures and verdicts are computed from it, never stored instead of it. Every time is an integer number of
nanoseconds on a monotonic clock that starts with the measurement; what a sensor couldn't tell is null, never zero.
"""

from __future__ import annotations

import platform
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType, field
from msgspec.structs import force_setattr, replace

from vitedge._version import __version__
from vitedge.core.files import FileKind, read_whole, write_atomic
from vitedge.core.percentiles import METHOD as METHOD
from vitedge.core.percentiles import percentile as percentile
from vitedge.core.percentiles import samples_needed as samples_needed
from vitedge.core.schema import Count as Count
from vitedge.core.schema import PositiveCount, Record, decode_json, encode_json, seal
from vitedge.device import hardware
from vitedge.device.clocks import power_mode
from vitedge.device.reading import Reading as Reading
from vitedge.errors import ArtifactError, Interrupted, UsageError, signal_of
from vitedge.formats.architecture import ViTConfig
from vitedge.formats.artifact import Artifact, CandidateResult, LayerPlan, Step
from vitedge.formats.budget import Budget
from vitedge.formats.samples import Audit as Audit
from vitedge.formats.samples import Block as Block
from vitedge.formats.samples import Column as Column
from vitedge.formats.samples import Latency as Latency
from vitedge.formats.samples import Layer as Layer
from vitedge.formats.samples import Memory as Memory
from vitedge.formats.samples import Profile as Profile
from vitedge.formats.samples import ProtocolRun as ProtocolRun
from vitedge.formats.samples import Rules as Rules
from vitedge.formats.samples import Samples as Samples
from vitedge.formats.samples import Scenario as Scenario
from vitedge.formats.samples import Warmup as Warmup
from vitedge.formats.target import QUANTIZED, Option

RESULT_JSON = "result.json"
#: 2: profile, dialects, GPU readings, device memory, what was resumed; 3: record_digest, pictures_digest, partial rows;
#: 4: architectures whose blocks have widths of their own. Results without them are written as 3.
SCHEMA_VERSION, WITHOUT_WIDTHS = 4, 3


class Calibrated(Record):
    """Reliability diagram: equal-width bins of the top-1 probability, from 0 to 1."""

    count: tuple[Count, ...]
    correct: tuple[Count, ...]
    confidence_sum: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.count) == len(self.correct) == len(self.confidence_sum):
            raise ValueError("the columns of a reliability diagram differ in length")


class Divergence(Record):
    """Kullback–Leibler divergence KL(reference ‖ this) of the softmax outputs, in nats."""

    reference: str  # artifact digest
    images: Count
    total: float


class Accuracy(Record):
    """An artifact's predictions for the first images of :attr:`Result.data`, one entry for each image.

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
    """The images that accuracy was measured on."""

    source: str  # its name, not a path
    digest: str  # SHA-256 over the sorted SHA-256 of the images
    classes: tuple[str, ...]  # the model's class names by id
    names: tuple[str, ...]  # of the images that could be read, in the order of the columns
    label: Column  # class id of each
    skipped: tuple[str, ...] = ()  # names of unreadable images

    def __post_init__(self) -> None:
        if len(self.names) != len(self.label):
            raise ValueError("names and labels differ in length")
        if self.label and max(self.label) >= len(self.classes):
            raise ValueError("a label isn't among the classes")


#: The check that stands for all that need the runtime, where it can't run.
NOT_EXECUTED = "versions, golden logits, executed precision, options"


class Check(Record):
    """One check and its outcome."""

    name: str
    ok: bool | None  # None: can't be decided on this machine
    detail: str


class ParserCheck(Record):
    """The verdict of another tool about an artifact that can't run on this machine."""

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
    variant: str = field(name="form")
    batch: PositiveCount
    bytes: Count  # graph and weights
    input_size: tuple[int, int]  # height, width
    budget: Budget
    precision_planned: dict[str, float] = field(default_factory=dict)  # fraction of multiply-accumulates by type
    layers: tuple[LayerPlan, ...] = ()  # of a quantized artifact
    steps: tuple[Step, ...] = ()  # of the selection, where the export was to explain itself
    candidates: tuple[CandidateResult, ...] = ()  # what it was chosen from
    architecture: ViTConfig | UnsetType = UNSET  # where blocks have widths of their own

    @classmethod
    def of(cls, artifact: Artifact) -> Subject:
        """Return the row's facts about its artifact."""
        manifest = artifact.manifest
        return cls(
            digest=artifact.digest,
            name=manifest.name,
            model_digest=manifest.model_digest,
            target=manifest.target.name,
            runtime=manifest.target.runtime,
            precision=manifest.precision,
            variant=manifest.variant,
            batch=manifest.batch,
            bytes=artifact.bytes,
            input_size=manifest.preprocessing.size,
            budget=manifest.target.budget,
            precision_planned=manifest.precision_obtained,
            layers=manifest.layers if manifest.precision in QUANTIZED else (),
            steps=manifest.steps,
            candidates=manifest.candidates if len(manifest.candidates) > 1 else (),
            architecture=manifest.architecture,
        )


class Row(Record):
    """One artifact on one machine: what was measured, or a note why nothing was."""

    subject: Subject
    note: str = ""
    session: dict[str, Option] = field(default_factory=dict)  # runtime, version, device, threads, options: as read back
    precision_executed: dict[str, float] | None = None  # the same, from the executed graph
    latency: Latency | None = None
    accuracy: Accuracy | None = None
    checks: tuple[Check, ...] = ()
    parser_checks: tuple[ParserCheck, ...] = field(default=(), name="referees")
    profile: Profile | None = None
    protocol_runs: tuple[ProtocolRun, ...] = field(default=(), name="dialects")  # measured as other tools measure it
    partial: bool = False  # its measurement was interrupted


class Environment(Record):
    """A measurement's machine and versions; changing values are in :class:`Reading`. No host name, user or path."""

    processor: hardware.Processor
    board: hardware.Board
    gpus: tuple[hardware.Gpu, ...]
    memory_mb: int | None  # main memory, as far as this process may use it
    virtual: bool | None  # runs under a hypervisor
    power_source: str | None  # "mains", "battery"
    versions: dict[str, str]  # python, vitedge, numpy
    power_mode: str | None = None  # of a Jetson

    @classmethod
    def here(cls, root: Path = hardware.ROOT) -> Environment:
        """Describe this machine, from the trees below ``root``."""
        return cls(
            processor=hardware.processor(root),
            board=hardware.board(root),
            gpus=tuple(hardware.gpus(root)),
            memory_mb=hardware.memory(root).total_mb,
            virtual=_virtual(root),
            power_source=_power_source(root),
            power_mode=power_mode(root),
            versions={"python": platform.python_version(), "vitedge": __version__, "numpy": np.__version__},
        )


def _virtual(root: Path) -> bool | None:
    """Tell whether the machine is virtual; None on ARM, where the kernel doesn't tell."""
    flags = re.search(r"^flags\s*:(.*)$", hardware.read_text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return None if flags is None else "hypervisor" in flags[1].split()


def _power_source(root: Path) -> str | None:
    """Return the power source; None where the machine doesn't tell, as on boards."""
    kinds: set[str] = set()
    for supply in (root / "sys/class/power_supply").glob("*"):
        kind, online, scope = (hardware.read_text(supply / name) for name in ("type", "online", "scope"))
        if kind in ("Mains", "USB") and online == "1":
            kinds.add("mains")
        elif kind == "Battery" and scope != "Device":  # a peripheral's battery doesn't power the machine
            kinds.add("battery")
    return "mains" if "mains" in kinds else "battery" if kinds else None


class Result(Record):
    """The contents of ``result.json``."""

    SCHEMA_VERSION: ClassVar[int] = SCHEMA_VERSION
    schema_version: int = WITHOUT_WIDTHS
    vitedge_version: str = __version__
    created: str  # UTC, ISO 8601
    environment: Environment = field(name="circumstances")
    rows: tuple[Row, ...]
    data: DataSet | None = None
    partial: bool = False  # a run was interrupted: what had been measured by then
    resumed: tuple[str, ...] = ()  # when an interrupted measurement went on; UTC, ISO 8601

    def __post_init__(self) -> None:
        if any(row.subject.architecture for row in self.rows):
            force_setattr(self, "schema_version", SCHEMA_VERSION)
        for row in self.rows:
            if row.accuracy and (self.data is None or len(row.accuracy.predicted) > len(self.data.label)):
                raise ValueError("an accuracy has more images than the data set")
            if row.accuracy and self.data and max(row.accuracy.predicted, default=0) >= len(self.data.classes):
                raise ValueError("a predicted class isn't among the data set's")


class Stopped(Interrupted):
    """A measurement was interrupted; ``result`` holds the measurements so far, marked partial."""

    def __init__(self, action: str, result: Result, stop: KeyboardInterrupt) -> None:
        number = signal_of(stop)
        super().__init__(
            action,
            f"received {number.name}; what was measured until then is kept and marked partial",
            "run the command again for a whole result",
            signal_number=number,
        )
        self.result = result


def now() -> str:
    """Return the time for :attr:`Result.created`."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def combine(first: Result, second: Result) -> Result:
    """Join two results of one machine: rows of the same artifact are joined, and ``second`` wins.

    An artifact that was measured several ways (a sweep of threads) keeps its rows, and each gets the accuracy.

    Raises:
        ValueError: another environment, or other data.
    """
    if first.environment != second.environment:
        raise ValueError("the results were measured in different environments")
    if first.data and second.data and first.data != second.data:
        raise ValueError("the results were measured on different data")
    rows, unmatched = [], list(second.rows)
    for old in first.rows:
        new = next((row for row in unmatched if row.subject.digest == old.subject.digest), None)
        if new is not None:
            unmatched.remove(new)
        rows.append(_evaluated(old, second.rows) if new is None else _joined(old, new))
    return replace(
        second,
        rows=(*rows, *unmatched),
        data=second.data or first.data,
        partial=first.partial or second.partial,
        resumed=(*first.resumed, *second.resumed),
        schema_version=WITHOUT_WIDTHS,
    )


def _evaluated(row: Row, others: tuple[Row, ...]) -> Row:
    accuracy = next((other.accuracy for other in others if other.subject.digest == row.subject.digest), None)
    return replace(row, accuracy=row.accuracy or accuracy)


def _joined(old: Row, new: Row) -> Row:
    return Row(
        subject=new.subject,
        note=new.note or old.note,
        session=new.session or old.session,
        precision_executed=old.precision_executed if new.precision_executed is None else new.precision_executed,
        latency=new.latency or old.latency,
        accuracy=new.accuracy or old.accuracy,
        checks=new.checks or old.checks,
        parser_checks=new.parser_checks or old.parser_checks,
        profile=new.profile or old.profile,
        protocol_runs=new.protocol_runs or old.protocol_runs,
        partial=old.partial or new.partial,
    )


def with_partial_rows(result: Result) -> Result:
    """Mark every measured row of an interrupted run, unless the rows say themselves which were interrupted."""
    if not result.partial or any(row.partial for row in result.rows):
        return result
    rows = (replace(row, partial=row.latency is not None or row.accuracy is not None) for row in result.rows)
    return replace(result, rows=tuple(rows))


# --- the file --------------------------------------------------------------------------------------------------------

_NUMBERS = re.compile(rb"\[\n\s*-?\d[-+\d.eE,\s]*\]")


def encode_result(result: Result) -> bytes:
    """Encode as indented JSON with its digest, each column of numbers on one line."""
    text = encode_json(replace(result, schema_version=WITHOUT_WIDTHS))
    return seal(_NUMBERS.sub(lambda match: re.sub(rb"\s+", b"", match.group()), text))


def decode_result(data: bytes, file: str) -> Result:
    """Decode a result of :func:`encode_result`.

    Raises:
        ArtifactError: not a result, or written by a newer version.
    """
    return with_partial_rows(decode_json(data, Result, action=f"read the result {file}", file=file))


def read_result(path: str | Path) -> Result:
    """Read a result file, or the ``result.json`` of a folder.

    Raises:
        UsageError: there is none.
        ArtifactError: not a result, or written by a newer version.
    """
    path = Path(path)
    path = path / RESULT_JSON if path.is_dir() else path
    try:
        data = read_whole(path, follow_links=True)
    except FileNotFoundError as error:
        raise UsageError(
            f"read the result {path}", "there is no such file", "run: vitedge bench ARTIFACT --out result.json"
        ) from error
    except OSError as error:
        raise ArtifactError(f"read the result {path}", f"{error.strerror}", "name a readable file") from error
    return decode_result(data, str(path))


class _Head(msgspec.Struct):
    """The keys that distinguish a result from other JSON."""

    schema_version: int
    rows: msgspec.Raw


def _is_result(content: bytes) -> bool:
    try:
        msgspec.json.decode(content, type=_Head)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


RESULT = FileKind("a result", _is_result)


def write_result(result: Result, path: str | Path) -> None:
    """Write a result so that readers see the old file or the new one.

    Raises:
        ResourceError: disk, permission.
    """
    write_atomic(Path(path), encode_result(result), f"write the result {path}")
