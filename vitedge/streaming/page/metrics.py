"""A status in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterator

from vitedge._version import __version__
from vitedge.streaming.records import STATES, Percentiles, Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OUTCOMES = ("classified", "skipped", "dropped", "corrupt")


def metrics(status: Status) -> str:
    """Return every figure of the status, without those that can't be read here."""
    lines = [
        *_family("vitedge_info", "gauge", "What runs.", _info(status)),
        *_family("vitedge_uptime_seconds", "gauge", "Since the stream began.", [({}, status.uptime_s)]),
        *_family("vitedge_frames_captured_total", "counter", "Frames decoded or found broken.",
                 [({"source": source.name}, source.counts.captured) for source in status.sources]),
        *_family("vitedge_frames_total", "counter", "Where the captured frames went.",
                 [({"source": source.name, "outcome": outcome}, getattr(source.counts, outcome))
                  for source in status.sources for outcome in _OUTCOMES]),
        *_family("vitedge_connections_total", "counter", "Successful connections.",
                 [({"source": source.name}, source.connections) for source in status.sources]),
        *_family("vitedge_gaps_total", "counter", "Jumps of the presentation time.",
                 [({"source": source.name}, source.gaps) for source in status.sources]),
        *_family("vitedge_source_state", "gauge", "1 for the state that a source is in.",
                 [({"source": source.name, "state": state}, float(source.state == state))
                  for source in status.sources for state in STATES]),
        *_family("vitedge_frames_per_second", "gauge", "Over the last seconds.",
                 [({"source": source.name, "of": kind}, rate) for source in status.sources
                  for kind, rate in (("captured", source.captured_hz), ("classified", source.classified_hz))]),
        *_family("vitedge_frame_age_seconds", "gauge", "From capture to result, of the latest frames.",
                 [sample for source in status.sources for sample in _quantiles(source.age, {"source": source.name})]),
        *_family("vitedge_silent_seconds", "gauge", "Since the last classified frame was captured.",
                 [({"source": source.name}, source.silent_s) for source in status.sources]),
        *_family("vitedge_label_probability", "gauge", "Smoothed, of the label that holds.",
                 [({"source": source.name, "label": source.label}, source.probability)
                  for source in status.sources if source.label is not None]),
        *_family("vitedge_inference_seconds", "gauge", "Of the latest batches.",
                 list(_quantiles(status.inference, {}))),
        *_family("vitedge_sink_items_total", "counter", "Items that went to a sink.",
                 [({"sink": sink.name, "outcome": kind}, value) for sink in status.sinks
                  for kind, value in (("written", sink.written), ("dropped", sink.dropped))]),
        *_family("vitedge_temperature_celsius", "gauge", "The hottest processor sensor.", [({}, status.temperature_c)]),
        *_family("vitedge_power_watts", "gauge", "Of the board, or of the processor.", [({}, status.power_w)]),
        *_family("vitedge_clock_hertz", "gauge", "The fastest core.",
                 [({}, None if status.clock_mhz is None else status.clock_mhz * 1e6)]),
        *_family("vitedge_throttled", "gauge", "1 while the device limits itself.",
                 [({}, None if status.throttled is None else float(status.throttled))]),
    ]  # fmt: skip
    return "".join(f"{line}\n" for line in lines)


Sample = tuple[dict[str, str], float | None]


def _info(status: Status) -> list[Sample]:
    labels = {"artifact": status.artifact, "precision": status.precision, "runtime": status.runtime}
    return [({**labels, "device": status.device, "version": __version__}, 1.0)]


def _quantiles(latest: Percentiles | None, labels: dict[str, str]) -> Iterator[Sample]:
    if latest is not None:
        for quantile, value in (("0.5", latest.p50_ms), ("0.95", latest.p95_ms), ("0.99", latest.p99_ms)):
            yield {**labels, "quantile": quantile}, value / 1000


def _family(name: str, kind: str, about: str, samples: list[Sample]) -> Iterator[str]:
    readable = [(labels, value) for labels, value in samples if value is not None]
    if readable:
        yield f"# HELP {name} {about}"
        yield f"# TYPE {name} {kind}"
    for labels, value in readable:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{{{inside}}} {value:.12g}" if inside else f"{name} {value:.12g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
