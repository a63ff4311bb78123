"""``vitedge stream``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.records import takes_records
from vitedge.streaming.settings import StreamSettings


@takes_records("classify a stream", file="settings")
def stream(
    artifact: Annotated[str | None, typer.Argument(help="An artifact folder.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Argument(
            help="Sources, which share one session: 0 or /dev/video0, csi://0, rtsp://, http://, "
            "http+snapshot://, a video, a folder, a quoted pattern, test://; NAME=SOURCE names one."
        ),
    ] = None,
    *,
    options: StreamSettings,
    settings: Annotated[
        Path | None,
        typer.Option("--settings", help="TOML file with these options; those on the command line override it."),
    ] = None,
) -> None:
    """Classify camera streams, also for months: every frame is counted once, and none is invented.

    SIGINT and SIGTERM classify the waiting frames, print the frame counts, and exit with 0.

    **Examples**

    `vitedge stream artifact/ test:// --duration 10`

    `vitedge stream artifact/ clip.mp4 --headless --json -`

    `vitedge stream artifact/ front=rtsp://10.0.0.5/main --credentials env:CAMERA --smoothing 0.5`
    """
    from vitedge import api

    api.watch(artifact, source, options)
