"""One reading of all sensors."""

from __future__ import annotations

from msgspec import field

from vitedge.core.schema import Count, Record


class Reading(Record, omit_defaults=True):
    """The sensors at one moment; null where a value couldn't be read."""

    at_ns: Count
    clock_mhz: float | None = None  # of the fastest processor
    temperature_c: float | None = None  # the hottest sensor of the processor
    power_w: float | None = None  # the sum of what :attr:`Latency.power_of` names, on average since the last reading
    throttle_events: dict[str, int] = field(default_factory=dict)  # counters since boot, by name
    throttle_live: dict[str, bool] = field(default_factory=dict)  # what says so at this moment
    gpu_clock_mhz: float | None = None
    gpu_temperature_c: float | None = None
    power_capped: bool | None = None  # the GPU is at its power limit: no fault, and distinct from throttling
