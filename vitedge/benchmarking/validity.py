"""Verdicts on a measurement, computed from its raw samples and readings.

They are kept apart: throttling is the machine's doing and shows in clocks and counters; instability shows in the
latencies themselves and has many causes, another busy process among them. A row with a verdict against it is kept and
shown, and left out of rankings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from vitedge.core.percentiles import median_of, percentile
from vitedge.formats.result import Latency, Reading, Row

CLOCK_FELL = 0.95  # last third's median clock over the first third's, below which the machine throttled
COVERED = 0.9  # of the run has to lie between the first and the last reading before "not throttled" may be said
MEDIAN_ROSE = 1.10  # last fifth's median latency over the first fifth's, above which the run was unstable
BLOCKS_SPREAD = 0.10  # interquartile range of the blocks' medians over their median, above which it was unstable
REPEATS_FASTER = 1.10  # changing inputs over one repeated input, above which outputs are cached …
PAIRS_AGREE = 0.85  # … when this fraction of the pairs shows it, each by the fastest of its samples
FEWEST_BLOCKS, FEWEST_SAMPLES = 5, 50  # with fewer, stability is unknown


@dataclass(frozen=True)
class Verdict:
    """The reasons against a row; ``reasons`` are phrases for people."""

    throttled: bool | None  # None: no sensor could tell
    unstable: bool | None  # None: too few samples to tell
    enough: bool | None  # samples, blocks, a warm-up that settled, an audit; None: no latency was measured
    audited: bool | None  # outputs and caching; None: not audited
    correct: bool  # no check failed
    reasons: tuple[str, ...]
    power_capped: bool | None = None  # the GPU kept to its power limit; nothing against the row
    noise: str = ""  # the reason that all interleaved artifacts may share

    @property
    def valid(self) -> bool:
        """Whether the row may be ranked, because no reason against it is known."""
        return self.right and self.enough is not False and not self.throttled and not self.unstable

    @property
    def right(self) -> bool:
        """Whether its outputs are right, as far as they were checked."""
        return self.audited is not False and self.correct


def assess(row: Row) -> Verdict:
    """Collect all reasons against one row."""
    reasons: list[str] = [f"{check.name}: {check.detail}" for check in row.checks if check.ok is False]
    correct = not reasons
    throttled = unstable = enough = audited = capped = None
    noise = ""
    if row.latency is not None:
        (throttled, why), (unstable, noise), (audited, what) = (
            rule(row.latency) for rule in (was_throttled, was_unstable, passed_audit)
        )
        lacking = what_lacks(row.latency)
        enough = not lacking
        reasons += [reason for reason in (why, noise, what) if reason]
        reasons += [f"not enough data: {', '.join(lacking)}"] if lacking else []
        capped = was_power_capped(row.latency)
    return Verdict(throttled, unstable, enough, audited, correct, tuple(reasons), capped, noise)


def what_lacks(latency: Latency) -> list[str]:
    """Return what is missing for a conclusion from a measurement, as phrases; empty: nothing."""
    samples, percent = latency.samples, latency.rules.percentile
    blocks = sum(block.samples > 0 for block in samples.blocks)
    lacking = []
    if len(samples) < FEWEST_SAMPLES or blocks < FEWEST_BLOCKS:
        lacking.append(f"{len(samples)} inferences in {blocks} blocks ({FEWEST_SAMPLES} in {FEWEST_BLOCKS} are needed)")
    elif samples.percentile_ns(percent) is None:
        lacking.append(f"{len(samples)} inferences support no p{percent:g}")
    if not latency.warmup.stable:
        lacking.append("the warm-up didn't settle")
    if latency.audit is None or not latency.audit.checked:
        lacking.append("its outputs weren't audited")
    return lacking


def was_throttled(latency: Latency) -> tuple[bool | None, str]:
    """Return (verdict, reason): a throttle counter rose, a live bit was set, or the clock fell; None: unknown.

    A Jetson's over-current counters (``soctherm``) count when the clocks fell, too: they rise at every short peak.
    """
    readings = latency.readings
    for reading in readings:
        live = [name for name, is_set in reading.throttle_live.items() if is_set]
        if live:
            return True, f"throttled: {', '.join(live)}"
    fell = [fall for fall in (_fall(readings, "clock_mhz"), _fall(readings, "gpu_clock_mhz")) if fall is not None]
    rose = _risen(readings, latency.resumed_ns)
    certain = [name for name in rose if not name.startswith("soctherm/") or not fell or _dipped(readings)]
    if certain:
        return True, f"throttled: {', '.join(certain)}"
    for what, first, last in fell:
        if last < CLOCK_FELL * first:
            return True, f"throttled: the {what} fell from {first:.0f} to {last:.0f} MHz"
    counted = len(readings) > 1 and bool(readings[0].throttle_events)
    observable = fell or counted or any(reading.throttle_live for reading in readings)
    return (False, "") if observable and _covered(latency) else (None, "")


def _fall(readings: Sequence[Reading], name: str) -> tuple[str, float, float] | None:
    """Return (sensor, first third's median, last third's); None with fewer than three readings of it."""
    clocks = [clock for reading in readings if (clock := getattr(reading, name)) is not None]
    third = len(clocks) // 3
    what = "GPU's clock" if name == "gpu_clock_mhz" else "clock"
    return (what, median(clocks[:third]), median(clocks[-third:])) if third else None


def _dipped(readings: Sequence[Reading]) -> bool:
    """Whether a clock fell below its own median far enough to count as throttling."""
    for name in ("clock_mhz", "gpu_clock_mhz"):
        clocks = [clock for reading in readings if (clock := getattr(reading, name)) is not None]
        if clocks and min(clocks) < CLOCK_FELL * median(clocks):
            return True
    return False


def _risen(readings: Sequence[Reading], resumed_ns: Sequence[int]) -> list[str]:
    """Return the throttle counters that rose while measuring, not between an interruption and its end."""
    rose: dict[str, None] = {}
    for before, after in pairwise(readings):
        if any(before.at_ns < at <= after.at_ns for at in resumed_ns):
            continue
        for name, count in after.throttle_events.items():
            if count > before.throttle_events.get(name, count):
                rose[name] = None
    return list(rose)


def _covered(latency: Latency) -> bool:
    """Whether the readings go on until the end of the run: a sensor that stopped proves nothing."""
    blocks = latency.samples.blocks
    if not blocks or not latency.readings:
        return False
    first, last = latency.readings[0].at_ns, latency.readings[-1].at_ns
    return last - first >= COVERED * (blocks[-1].end_ns - blocks[0].start_ns)


def was_power_capped(latency: Latency) -> bool | None:
    """Whether the GPU reached its power limit in any reading; None where it can't tell."""
    flags = [reading.power_capped for reading in latency.readings if reading.power_capped is not None]
    return any(flags) if flags else None


def was_unstable(latency: Latency) -> tuple[bool | None, str]:
    """Return (verdict, reason): the median drifted upwards, or the blocks' medians lie too far apart."""
    samples = latency.samples
    fifth = len(samples) // 5
    medians = sorted(median_of(block) for block in samples.block_latencies() if block)
    if len(samples) < FEWEST_SAMPLES or len(medians) < FEWEST_BLOCKS:
        return None, ""
    first, last = median_of(samples.latency_ns[:fifth]), median_of(samples.latency_ns[-fifth:])
    if last > MEDIAN_ROSE * first:
        return True, f"unstable: the median rose by {100 * (last / first - 1):.0f} % during the run"
    spread = (percentile(medians, 75) - percentile(medians, 25)) / median_of(medians)
    if spread > BLOCKS_SPREAD:
        return True, f"unstable: half of the blocks' medians lie {100 * spread:.0f} % apart"
    return False, ""


def passed_audit(latency: Latency) -> tuple[bool | None, str]:
    """Return (verdict, reason): outputs of the timed run as in the reference run, and no gain from repeated inputs.

    Noise only ever adds time, so each column counts by its fastest sample, and most pairs of columns have to agree. The
    harness's overhead is taken off what changing inputs take: feeding different memory costs time, too.
    """
    audit = latency.audit
    if audit is None:
        return None, ""
    if audit.differing:
        return False, f"{audit.differing} of {audit.checked} audited outputs differ from the reference run"
    overhead = median_of(latency.overhead.latency_ns) if latency.overhead is not None and len(latency.overhead) else 0
    pairs = [
        (min(varied) - overhead, min(repeated))
        for varied, repeated in zip(audit.varied_ns, audit.repeated_ns, strict=True)
    ]
    faster = [varied / max(1, repeated) for varied, repeated in pairs if varied > REPEATS_FASTER * repeated]
    if faster and len(faster) >= PAIRS_AGREE * len(pairs):
        return False, f"a repeated input is answered in 1/{median(faster):.2g} of the time of changing ones"
    return True, ""
