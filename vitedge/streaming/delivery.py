"""The sinks that deliver outside of the process: page, metrics, video, snapshots, webhook, MQTT."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vitedge.streaming.mqtt import MqttSink
from vitedge.streaming.page.sink import PageSink, parse_address, read_token
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.snapshots import SnapshotSink
from vitedge.streaming.systemd import systemd_sinks
from vitedge.streaming.video import VideoSink
from vitedge.streaming.webhook import WebhookSink

if TYPE_CHECKING:
    from vitedge.streaming.records import Sink

Address = tuple[str, int]


def addresses(settings: StreamSettings) -> tuple[Address | None, Address | None, str | None]:
    """Return (page, metrics, token) of the settings.

    Raises:
        UsageError: an address that isn't one, or that others can reach without a token.
    """
    token = read_token(settings.token)
    page = None if settings.headless else parse_address(settings.page, token, "--page")
    metrics = None if settings.metrics is None else parse_address(settings.metrics, token, "--metrics")
    return page, metrics, token


def delivering(settings: StreamSettings, sources: tuple[str, ...]) -> list[Sink]:
    """Open the settings' sinks that deliver outside of the process.

    Args:
        settings: how.
        sources: names of the sources.

    Raises:
        UsageError, ResourceError, NotInstalledError: one of them can't be opened; none is left open.
    """
    page, metrics, token = addresses(settings)
    sinks: list[Sink] = []
    try:
        if settings.webhook is not None:
            sinks.append(WebhookSink(settings.webhook))
        if settings.mqtt is not None:
            sinks.append(
                MqttSink(settings.mqtt, settings.mqtt_publish, announce=settings.mqtt_discovery, sources=sources)
            )
        if settings.snapshot_on is not None:
            event, folder = settings.snapshot_on
            age_s = settings.snapshot_days * 86_400
            sinks.append(SnapshotSink(event, folder, most=settings.snapshot_count, age_s=age_s))
        if settings.video is not None:
            sinks.append(VideoSink(settings.video, sources))
        if page is not None or metrics is not None:
            served = PageSink(page, metrics, token, len(sources))
            sinks.append(served)
            if not settings.quiet:
                sys.stderr.write("".join(f"serving {address}\n" for address in served.addresses))
        sinks += systemd_sinks()
    except BaseException:
        for sink in sinks:
            sink.close(0.1)
        raise
    return sinks
