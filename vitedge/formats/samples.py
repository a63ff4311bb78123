"""The data of a latency measurement: rules, raw samples, sensor readings, audit. Part of ``result.json``.

Every time is an integer number of nanoseconds on a monotonic clock that starts with the measurement; what a sensor
couldn't tell is null, never zero.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from vitedge.core.percentiles import percentile, samples_needed
from vitedge.core.schema import Count, PositiveReal, Record
from vitedge.device.reading import Reading

Scenario = Literal["single", "offline", "camera"]
#: Words of ``--like``.
Tool = Literal["trtexec10", "trtexec11", "benchmark-app", "loadgen", "loadgen-offline", "ultralytics"]
Column = tuple[Count, ...]


class Rules(Record):
    """The rules of a latency measurement; rows under different rules aren't ranked against each other."""

    scenario: Scenario
    warmup_s: Annotated[float, Meta(ge=0)]  # at least; it goes on until the latency is stable
    min_duration_s: Annotated[float, Meta(ge=0)]
    min_samples: Count
    percentile: Annotated[float, Meta(ge=1e-9, lt=100)]  # the claimed one: measuring goes on until it's supported
    block_s: PositiveReal  # sessions are interleaved in blocks of this length …
    block_samples: Count = 0  # … and of at least this many inferences, even if another process slows them down
    settle: Count  # untimed inferences at the start of every block
    seed: int  # of the order within each round of blocks
    pictures: str  # what was fed: "golden", or the name of a data set
    pictures_digest: str | None = None  # of the files of a data set that are fed
    rate_hz: PositiveReal | None = None  # arrivals a second of scenario ``camera``, on average
    replay: str | None = None  # the recorded clip whose arrival times are replayed, and its digest

    def __post_init__(self) -> None:
        if (self.scenario == "camera") != (self.rate_hz is not None):
            raise ValueError("the scenario 'camera', and no other, has a rate")
        if self.replay is not None and self.scenario != "camera":
            raise ValueError("arrivals are replayed in the scenario 'camera' alone")


class Block(Record):
    """One block of one session's inferences; block i of every session measured together belongs to round i."""

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
        """Return one percentile of the latency by :data:`METHOD`; None when there are too few samples for it."""
        if len(self) < samples_needed(percent):
            return None
        return percentile(sorted(self.latency_ns), percent)

    def block_latencies(self) -> list[Column]:
        """Return the latencies of each block."""
        latencies, start = [], 0
        for block in self.blocks:
            latencies.append(self.latency_ns[start : start + block.samples])
            start += block.samples
        return latencies

    def throughput(self, batch: int) -> float | None:
        """Return images per second: batch × inferences over the time that the blocks took; None without samples."""
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
    """The uncounted inferences before the measurement."""

    samples: Count
    duration_ns: Count
    stable: bool  # the windows' fastest stopped moving before time was up


class Audit(Record):
    """The harness's check of itself, after MLPerf's compliance tests."""

    checked: Count  # outputs of the timed run that were compared with the reference run
    differing: Count  # of those, further away than allowed
    max_deviation: float  # largest |difference| / largest |logit| that was seen
    allowed_deviation: float
    varied_ns: tuple[Column, ...] = ()  # latencies while the input changes, one column a repetition …
    repeated_ns: tuple[Column, ...] = ()  # … and while one input repeats, right after it

    def __post_init__(self) -> None:
        if len(self.varied_ns) != len(self.repeated_ns):
            raise ValueError("the columns of changing and of repeated inputs differ in number")
        if not all((*self.varied_ns, *self.repeated_ns)):
            raise ValueError("a column of changing or of repeated inputs is empty")


class Memory(Record):
    """The resident set of the process that had the artifact open, and its use of the GPU's memory; bytes."""

    before_bytes: Count | None  # before the artifact was opened
    after_bytes: Count | None  # after its first inference
    peak_bytes: Count | None  # the largest until then, or until the end of the run where it had the process to itself
    alone: bool = False  # read in a process of its own, because the run's had several artifacts open
    device_before_bytes: Count | None = None  # in use on the GPU, by whomever
    device_after_bytes: Count | None = None


class Layer(Record):
    """One executed node, as the runtime's profiler saw it."""

    name: str  # as near to the canonical node's name as the runtime tells
    operator: str  # the runtime's own word
    type: str  # "fp32", "int8", …; "" where the runtime doesn't tell
    ns: Column  # one entry a profiled inference

    def __post_init__(self) -> None:
        if not self.ns:
            raise ValueError("a layer was never profiled")


class Profile(Record):
    """The time of each node in the order of execution. Profiling costs time: compare only proportions."""

    layers: tuple[Layer, ...]


class ProtocolRun(Record):
    """The same artifact, measured by another tool's protocol: the samples that its fields are computed from."""

    tool: Tool
    samples: Samples
    first_ns: Count  # the inference before the timed run
    min_duration_s: float  # that was kept to …
    shortened: bool  # … which isn't the tool's own


class Latency(Record):
    """The measurement of one artifact under one set of rules."""

    rules: Rules
    load_ns: Count  # opening the artifact in its runtime
    first_ns: Count  # the first inference
    warmup: Warmup
    samples: Samples
    memory: Memory
    #: The harness's own cost: the null runtime through the same code, in the same rounds.
    overhead: Samples | None = field(default=None, name="floor")
    readings: tuple[Reading, ...] = ()
    audit: Audit | None = None
    power_of: tuple[str, ...] = ()  # what the readings' power is of: "board", "processor", "GPU"
    resumed_ns: Column = ()  # when an interrupted run went on; the time in between is left out


def first_blocks(samples: Samples, count: int) -> Samples:
    """Return the first ``count`` blocks, with equal parts of the columns that were timed beside them."""
    inside = sum(block.samples for block in samples.blocks[:count])

    def part(column: Column) -> Column:
        each_sample = len(column) == len(samples)
        return column[:inside] if each_sample else column[: len(column) * count // max(1, len(samples.blocks))]

    return Samples(
        start_ns=samples.start_ns[:inside],
        latency_ns=samples.latency_ns[:inside],
        blocks=samples.blocks[:count],
        preprocess_ns=part(samples.preprocess_ns),
        transfer_in_ns=samples.transfer_in_ns[:inside],
        compute_ns=samples.compute_ns[:inside],
        transfer_out_ns=samples.transfer_out_ns[:inside],
        postprocess_ns=part(samples.postprocess_ns),
    )


def join_samples(earlier: Samples, later: Samples) -> Samples:
    """Join the two parts of a run that was interrupted; a stage that only one part separates is left out."""

    def stage(name: str) -> Column:
        first, second = getattr(earlier, name), getattr(later, name)
        separated = len(first) == len(earlier) and len(second) == len(later)
        return (*first, *second) if separated else ()

    return Samples(
        start_ns=(*earlier.start_ns, *later.start_ns),
        latency_ns=(*earlier.latency_ns, *later.latency_ns),
        blocks=(*earlier.blocks, *later.blocks),
        preprocess_ns=(*earlier.preprocess_ns, *later.preprocess_ns),
        transfer_in_ns=stage("transfer_in_ns"),
        compute_ns=stage("compute_ns"),
        transfer_out_ns=stage("transfer_out_ns"),
        postprocess_ns=(*earlier.postprocess_ns, *later.postprocess_ns),
    )


def join_audits(earlier: Audit, later: Audit) -> Audit:
    """Join the audits of an interrupted run and of its second part."""
    return Audit(
        checked=earlier.checked + later.checked,
        differing=earlier.differing + later.differing,
        max_deviation=max(earlier.max_deviation, later.max_deviation),
        allowed_deviation=later.allowed_deviation,
        varied_ns=(*earlier.varied_ns, *later.varied_ns),
        repeated_ns=(*earlier.repeated_ns, *later.repeated_ns),
    )
