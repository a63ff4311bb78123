"""From settings to a running engine: sources, sinks, and the checks before anything runs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitedge.core.isolation import ChildError, run_isolated
from vitedge.errors import InputError, NotInstalledError, StreamError, UsageError, VitedgeError
from vitedge.formats.artifact import Artifact
from vitedge.runtimes.choice import open_artifact as open_chosen
from vitedge.streaming.delivery import addresses, delivering
from vitedge.streaming.engine import Engine
from vitedge.streaming.outputs import CsvLines, JsonLines, TerminalSink, writing
from vitedge.streaming.records import Event, FrameRecord, Sink, Status
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.uri import Source, parse_sources

if TYPE_CHECKING:
    from vitedge.runtimes.session import Session

ACTION = "classify a stream"


def check(settings: StreamSettings) -> list[Source]:
    """Return the sources, after checking everything that can be known beforehand.

    Raises:
        UsageError: something that is impossible here.
        StreamError: a file that isn't there.
        NotInstalledError: a package or program is missing.
        ResourceError: the folder for recordings can't be written.
    """
    sources = parse_sources(settings.source, settings.credentials)
    kinds = {source.kind for source in sources}
    if kinds - {"pictures", "test"}:
        _require_av()
    if "csi" in kinds and shutil.which("gst-launch-1.0") is None:
        raise NotInstalledError(
            ACTION,
            "a CSI camera is read by GStreamer, which isn't installed",
            "on Debian: apt install gstreamer1.0-tools",
        )
    if settings.stream is not None and not kinds - {"pictures", "test", "csi"}:
        raise UsageError(ACTION, "no source here has several streams", "leave --stream out")
    if settings.hwaccel is not None:
        check_hardware(settings.hwaccel)
    addresses(settings)
    if settings.record is not None:
        with writing(settings.record):
            Path(settings.record).mkdir(parents=True, exist_ok=True)
    return sources


@contextmanager
def running(session: Session, settings: StreamSettings) -> Iterator[Engine]:
    """Open an engine with the sinks of the settings, ready to run.

    Args:
        session: open.
        settings: how.

    Raises:
        UsageError, StreamError, NotInstalledError, ResourceError: as :func:`check`, or a sink can't be opened.
    """
    sources = check(settings)
    engine = Engine(session, sources, settings)
    try:
        engine.sinks += line_sinks(settings, engine.stop)
        engine.sinks += delivering(settings, tuple(source.name for source in sources))
    except BaseException:
        for sink in engine.sinks:
            sink.close(0.1)
        raise
    yield engine


def line_sinks(settings: StreamSettings, broken: Callable[[], None]) -> list[Sink]:
    """Return the sinks that write lines."""
    sinks: list[Sink] = []
    if settings.json is not None:
        sinks.append(JsonLines("json", settings.json, (FrameRecord,), broken))
    if settings.csv is not None:
        sinks.append(CsvLines("csv", settings.csv, broken))
    if settings.events is not None:
        sinks.append(JsonLines("events", settings.events, (Event,), broken))
    return sinks


def terminal_sink(settings: StreamSettings, broken: Callable[[], None]) -> Sink:
    """Return the sink that writes text for a person in a terminal."""
    stdout_taken = "-" in (settings.json, settings.csv, settings.events)
    return TerminalSink(labels=not stdout_taken, narrate=not settings.quiet, broken=broken)


def refuse_failed(status: Status, *, stopped: bool) -> None:
    """Turn a source that failed, or never gave a frame, into an error.

    Args:
        status: the last one.
        stopped: whether a person ended the run; then a camera may still have been unreachable.

    Raises:
        InputError: a file can't be decoded.
        StreamError: a camera gave up, or never answered.
        VitedgeError: some frames weren't counted, or counted twice.
    """
    for source in status.sources:
        action = f"classify the stream {source.uri}"
        if not source.counts.complete:
            raise VitedgeError(action, f"not every frame was counted once: {source.counts}", "report this as a bug")
        if source.state == "failed" and not source.live:
            raise InputError(action, source.reason or "it can't be decoded", "try another file, or convert it")
        all_damaged = 0 < source.counts.captured == source.counts.corrupt and not stopped
        if all_damaged and source.state != "failed":
            kind, hint = (StreamError, "check the connection") if source.live else (InputError, "copy it again")
            raise kind(action, f"all {source.counts.captured} frames are damaged", f"{hint}, or try another")
        no_frame = source.counts.captured == 0 and not stopped
        if source.state == "failed" or no_frame:
            if not source.live:
                raise InputError(action, source.reason or "it holds no frame", "try another file, or convert it")
            raise StreamError(
                action, source.reason or "it gave no frame", "check the address, and that the camera is on"
            )


def check_hardware(name: str) -> None:
    """Decode a frame with the requested hardware.

    Raises:
        UsageError: FFmpeg doesn't know it, or it can't be used here.
        NotInstalledError: PyAV isn't installed.
    """
    _require_av()
    action = f"decode by hardware '{name}'"
    from av.codec.hwaccel import hwdevices_available

    devices = hwdevices_available()
    if name not in devices:
        raise UsageError(
            action, f"this FFmpeg offers: {', '.join(devices) or 'none'}", "name one of these, or leave out --hwaccel"
        )
    try:
        run_isolated(_decode_by_hardware, name, timeout_s=30)
    except ChildError as error:
        raise UsageError(action, f"it can't be used on this machine ({error})", "leave --hwaccel out") from error


def _decode_by_hardware(name: str) -> None:
    import av
    from av.codec.hwaccel import HWAccel

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 256, "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame(320, 256, "yuv420p")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, hwaccel=HWAccel(name, allow_software_fallback=False)) as container:
        next(container.decode(video=0))


def _require_av() -> None:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise NotInstalledError.for_extra(ACTION, "av", "stream") from error


def open_artifact(settings: StreamSettings) -> Artifact:
    """Open the artifact of the settings, or the one of its candidates that was chosen for this machine.

    Raises:
        UsageError: none is named.
        ArtifactError: it's damaged.
    """
    if settings.artifact is None:
        raise UsageError(ACTION, "no artifact is given", "name an artifact folder")
    return open_chosen(settings.artifact)
