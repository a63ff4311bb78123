"""``vitedge stream``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Device, Threads

FRAMES, CONNECTION, LABELS, OUTPUT, RUNNING = "Frames", "Connection", "Labels", "Output", "Running"


def stream(
    artifact: Annotated[str | None, typer.Argument(help="An artifact folder.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Argument(
            help="Sources, which share one session: 0 or /dev/video0, csi://0, rtsp://, http://, a video, a folder, a "
            "quoted pattern, test://; NAME=SOURCE names one."
        ),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option("--settings", help="A TOML file with these flags' names; flags here win.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="latest, every or every:N; by default latest for live sources and every for files.",
            rich_help_panel=FRAMES,
        ),
    ] = None,
    every: Annotated[
        int | None, typer.Option("--every", min=1, help="Classify one of so many frames.", rich_help_panel=FRAMES)
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option("--crop", help="LEFT,TOP,WIDTH,HEIGHT in pixels, or each with a % sign.", rich_help_panel=FRAMES),
    ] = None,
    flip: Annotated[
        str | None,
        typer.Option(
            "--flip",
            "--input-flip",
            help="none, counterclockwise, rotate-180, clockwise, horizontal, vertical, upper-right-diagonal, "
            "upper-left-diagonal; after the rotation that the stream asks for.",
            rich_help_panel=FRAMES,
        ),
    ] = None,
    input_loop: Annotated[
        int | None,
        typer.Option("--input-loop", min=-1, help="More passes over a file; -1: for ever.", rich_help_panel=FRAMES),
    ] = None,
    input_width: Annotated[
        int | None, typer.Option("--input-width", min=1, help="Asked of a camera, pixels.", rich_help_panel=FRAMES)
    ] = None,
    input_height: Annotated[
        int | None, typer.Option("--input-height", min=1, help="Asked of a camera, pixels.", rich_help_panel=FRAMES)
    ] = None,
    input_rate: Annotated[
        float | None,
        typer.Option(
            "--input-rate",
            min=0.01,
            help="Asked of a camera; given to pictures. Frames a second.",
            rich_help_panel=FRAMES,
        ),
    ] = None,
    input_codec: Annotated[
        str | None,
        typer.Option("--input-codec", help="Asked of a V4L2 camera: mjpeg, h264, yuyv422.", rich_help_panel=FRAMES),
    ] = None,
    hwaccel: Annotated[
        str | None,
        typer.Option(
            "--hwaccel",
            help="Decode by hardware: cuda, vaapi, qsv, … Refused where impossible.",
            rich_help_panel=FRAMES,
        ),
    ] = None,
    credentials: Annotated[
        str | None,
        typer.Option(
            "--credentials",
            help="A file, or env:NAME, with user:password or lines as in .netrc.",
            rich_help_panel=CONNECTION,
        ),
    ] = None,
    connect_timeout: Annotated[
        float | None,
        typer.Option("--connect-timeout", min=0.1, help="Seconds (5).", rich_help_panel=CONNECTION),
    ] = None,
    stall_timeout: Annotated[
        float | None,
        typer.Option("--stall-timeout", min=0.1, help="Seconds without a frame (10).", rich_help_panel=CONNECTION),
    ] = None,
    backoff_min: Annotated[
        float | None,
        typer.Option("--backoff-min", min=0.01, help="Seconds before reconnecting (1).", rich_help_panel=CONNECTION),
    ] = None,
    backoff_max: Annotated[
        float | None,
        typer.Option("--backoff-max", min=0.01, help="After many failures in a row (30).", rich_help_panel=CONNECTION),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            "--retries", min=0, help="Failures in a row until giving up; without it, never.", rich_help_panel=CONNECTION
        ),
    ] = None,
    gap: Annotated[
        float | None,
        typer.Option(
            "--gap", min=0.001, help="Seconds without a frame that begin labels anew (0.5).", rich_help_panel=CONNECTION
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", "-k", min=1, max=100, help="Classes in a record (5).", rich_help_panel=LABELS),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", min=0, max=1, help="Least probability of a label (0).", rich_help_panel=LABELS),
    ] = None,
    exit_threshold: Annotated[
        float | None,
        typer.Option("--exit-threshold", min=0, max=1, help="And to stay (the same).", rich_help_panel=LABELS),
    ] = None,
    smoothing: Annotated[
        float | None,
        typer.Option("--smoothing", min=0, help="Time constant in seconds (0: none).", rich_help_panel=LABELS),
    ] = None,
    switch_after: Annotated[
        float | None,
        typer.Option("--switch-after", min=0, help="Seconds that a new label must lead (0).", rich_help_panel=LABELS),
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Records as JSON Lines to a file, or - .", rich_help_panel=OUTPUT)
    ] = None,
    csv: Annotated[
        str | None, typer.Option("--csv", help="Records as a table to a file, or - .", rich_help_panel=OUTPUT)
    ] = None,
    events: Annotated[
        str | None, typer.Option("--events", help="Events as JSON Lines to a file, or - .", rich_help_panel=OUTPUT)
    ] = None,
    video: Annotated[
        str | None, typer.Option("--video", help="A video file with labels drawn in.", rich_help_panel=OUTPUT)
    ] = None,
    webhook: Annotated[
        str | None, typer.Option("--webhook", help="Events as JSON by HTTP POST to this URL.", rich_help_panel=OUTPUT)
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option("--mqtt", help="Records and events to mqtt://HOST:PORT/TOPIC.", rich_help_panel=OUTPUT),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="Prometheus metrics and health at HOST:PORT.", rich_help_panel=OUTPUT),
    ] = None,
    headless: Annotated[bool, typer.Option("--headless", help="No live page.", rich_help_panel=OUTPUT)] = False,
    page: Annotated[
        str | None, typer.Option("--page", help="HOST:PORT of the page (127.0.0.1:8042).", rich_help_panel=OUTPUT)
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token", help="A file, or env:NAME: what viewers from elsewhere must know.", rich_help_panel=OUTPUT
        ),
    ] = None,
    record: Annotated[
        str | None,
        typer.Option("--record", help="Keep frames and arrival times in this folder.", rich_help_panel=OUTPUT),
    ] = None,
    duration: Annotated[
        float | None, typer.Option("--duration", min=0, help="Stop after so many seconds.", rich_help_panel=RUNNING)
    ] = None,
    threads: Threads = None,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False,
) -> None:
    """Classify camera streams, for months if need be: every frame is accounted for, and none is invented.

    SIGINT and SIGTERM drain, print the frame counts, and exit with 0.

    **Examples**

    `vitedge stream artifact/ test:// --duration 10`

    `vitedge stream artifact/ clip.mp4 --headless --json -`

    `vitedge stream artifact/ front=rtsp://10.0.0.5/main --credentials env:CAMERA --smoothing 0.5`
    """
    from vitedge import api
    from vitedge.streaming.settings import read_settings

    given = {name: value for name, value in locals().items() if name not in ("api", "read_settings")}
    file = given.pop("settings")
    given["source"] = tuple(source) if source else None
    given["quiet"], given["headless"] = quiet or None, headless or None
    api.watch(read_settings(file, given))
