"""Open each kind of source, and yield its frames. In the reader's process only."""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitedge.core.environment import for_children
from vitedge.errors import InputError
from vitedge.streaming.address import split_url
from vitedge.streaming.causes import UNAUTHORIZED, Failure, Unavailable, cause_in_file, refuse_elsewhere, same_server
from vitedge.streaming.container import FilmIndex, NoFilm, choose_stream
from vitedge.streaming.frames import Captured, Frames
from vitedge.streaming.http_client import MOST_REDIRECTS
from vitedge.streaming.http_source import Opener as HttpOpener
from vitedge.streaming.pattern import parse_pattern, show
from vitedge.streaming.polling import poll
from vitedge.streaming.rtsp import redirect_of
from vitedge.streaming.task import Task

if TYPE_CHECKING:
    import av.container

ASK_S = 2.0  # time limit for finding an address's redirect
#: FFmpeg opens every address in a playlist or a container; a file may name only files.
PROTOCOLS = {
    "videos": "file,crypto,data",
    "http": "http,https",
    "rtsp": "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https,crypto",
}

Opened = Callable[[str, bool], None]  # (codec, whether there's an end by nature)


def captured(task: Task, opened: Opened, cut: Callable[[str], None]) -> Generator[Captured, None, None]:
    """Yield every frame of one connection.

    Args:
        task: of the reader.
        opened: called once it stands.
        cut: called with what is missing when a film ends early.

    Raises:
        Failure: it can't be opened, or goes no further.
    """
    if task.kind == "test":
        yield from _pattern(task, opened)
        return
    passes = task.loops
    while True:
        if task.kind == "pictures":
            yield from _pictures(task, opened)
        elif task.kind == "csi":
            yield from _csi(task, opened)
        elif task.kind == "polled":
            yield from _polled(task, opened)
        else:
            for url in task.urls:
                if task.kind == "videos":
                    url = f"file:{url}"  # else a colon in its name would end a protocol
                missing = yield from _decoded(url, task, opened, **_how(task, url))
                if missing is not None:
                    name = f"{Path(url).name}: " if len(task.urls) > 1 else ""
                    cut(f"{name}{missing}")
        if task.live or passes == 0:
            return
        passes -= passes > 0


def _pattern(task: Task, opened: Opened) -> Iterator[Captured]:
    pattern = parse_pattern(task.targets[0])
    opened("test", not pattern.live)
    for shown in show(pattern):
        content = None if shown.corrupt else shown.picture
        yield Captured(
            content, shown.presentation_s, time.monotonic_ns(), time.time_ns(), truth=shown.truth, rule="pts"
        )


def _pictures(task: Task, opened: Opened) -> Iterator[Captured]:
    """Yield picture files; an unreadable one is a corrupt frame. They have presentation times only at a given rate."""
    import numpy as np

    from vitedge.data.images import read_picture
    from vitedge.data.preprocessing import to_rgb

    opened("pictures", True)
    rate = float(task.camera["rate"]) if "rate" in task.camera else None
    for number, path in enumerate(task.targets):
        now, wall = time.monotonic_ns(), time.time_ns()
        try:
            content = np.asarray(to_rgb(read_picture(Path(path)), task.preprocessing))
        except InputError:
            content = None
        if rate is None:
            yield Captured(content, None, now, wall)
        else:
            yield Captured(content, number / rate, now, wall, rule="rate")


def _polled(task: Task, opened: Opened) -> Iterator[Captured]:
    """Yield pictures that are requested one by one. A broken one is a corrupt frame; times are those of arrival."""
    import av

    codec, begin = av.CodecContext.create("mjpeg", "r"), 0
    with closing(poll(task)) as pictures:
        for data in pictures:
            monotonic, wall = time.monotonic_ns(), time.time_ns()
            if not begin:
                begin = monotonic
                opened("mjpeg", False)
            try:
                frames = codec.decode(av.Packet(data))
            except av.error.FFmpegError:
                frames = []
            sound = len(frames) == 1 and not frames[0].is_corrupt
            yield Captured(frames[0] if sound else None, (monotonic - begin) / 1e9, monotonic, wall, rule="arrival")


def _csi(task: Task, opened: Opened) -> Iterator[Captured]:
    """Yield a CSI camera's frames through GStreamer's program: NVIDIA's source on a Jetson, libcamera's elsewhere."""
    launch, inspect = shutil.which("gst-launch-1.0"), shutil.which("gst-inspect-1.0")
    if launch is None or inspect is None:
        raise Failure("GStreamer's gst-launch-1.0 isn't installed; on Debian: apt install gstreamer1.0-tools")
    width, height, rate = (task.camera.get(key, usual) for key, usual in _CSI_USUAL.items())
    size = f"width={width},height={height},framerate={rate}/1"
    nvidia = subprocess.run([inspect, "--exists", "nvarguscamerasrc"], check=False, env=for_children()).returncode == 0
    if nvidia:
        source = f"nvarguscamerasrc sensor-id={task.targets[0]} ! video/x-raw(memory:NVMM),{size} ! nvvidconv"
    else:
        names = _libcamera_names()
        chosen = f"camera-name={names[int(task.targets[0])]}" if int(task.targets[0]) < len(names) else ""
        source = f"libcamerasrc {chosen} ! video/x-raw,{size} ! videoconvert"
    pipeline = f"{source} ! video/x-raw,format=I420 ! y4menc ! fdsink fd=1 sync=false"
    child = subprocess.Popen(
        [launch, "-q", *pipeline.split()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=for_children(),
    )
    assert child.stdout is not None
    try:
        yield from _decoded(f"pipe:{child.stdout.fileno()}", task, opened, format="yuv4mpegpipe", options={})
    finally:
        child.kill()
        child.wait()


_CSI_USUAL = {"width": "1280", "height": "720", "rate": "30"}


def _libcamera_names() -> list[str]:
    """Return the names of libcamera's cameras, in its order; empty where its tool isn't installed."""
    tool = shutil.which("cam")
    if tool is None:
        return []
    listing = subprocess.run([tool, "--list"], capture_output=True, text=True, check=False, env=for_children()).stdout
    return re.findall(r"^\d+:.*\((.+)\)\s*$", listing, re.MULTILINE)


def _how(task: Task, url: str) -> dict[str, Any]:
    """Return format and options for FFmpeg."""
    if task.kind == "videos":
        return {"format": None, "options": {"protocol_whitelist": PROTOCOLS["videos"]}}
    if task.kind == "camera":
        names = {"rate": "framerate", "codec": "input_format"}
        options = {names[key]: value for key, value in task.camera.items() if key in names}
        if "width" in task.camera:
            options["video_size"] = f"{task.camera['width']}x{task.camera['height']}"
        return {"format": "v4l2", "options": options}
    scheme = url.split("://", 1)[0]
    options = {"fpsprobesize": "0"} if task.live else {}  # opens in a third of the time, without a loss
    family = {"rtsps": "rtsp", "https": "http"}.get(scheme, scheme)
    if family in PROTOCOLS:
        options["protocol_whitelist"] = PROTOCOLS[family]
    if family == "rtsp":
        options["rtsp_transport"] = task.transport
    return {"format": None, "options": options}


def patient(task: Task) -> bool:
    """Whether the source waits for somebody to connect to it, without a time limit."""
    return any("listen=1" in target for target in task.targets)


def _decoded(
    url: str, task: Task, opened: Opened, *, format: str | None, options: dict[str, str]
) -> Generator[Captured, None, str | None]:
    """Decode everything; a frame's time is that of its packet's arrival.

    Returns:
        What is missing of a film that ended early; None: nothing that is known of.
    """
    import av

    av.logging.set_level(None)
    openers: dict[str, Callable[..., AbstractContextManager[av.container.InputContainer]]] = {
        "http": _open_http,
        "https": _open_http,
        "rtsp": _open_rtsp,
        "rtsps": _open_rtsp,
    }
    with openers.get(url.partition("://")[0], _open)(url, task, format, options) as container:
        try:
            stream = choose_stream(container, task.stream)
        except NoFilm as error:
            raise Failure(str(error)) from None
        stream.thread_type = "SLICE" if task.live else "AUTO"  # whole frames in parallel would come late
        ends = container.format.name == "hls" and container.duration is not None
        opened(stream.codec_context.name, ends or not task.live)
        index, frames = FilmIndex.of(container, stream), Frames(container, stream, live=task.live, gap_s=task.gap_s)
        try:
            yield from frames
        except av.error.PermissionError:  # PyAV raises it for hardware that it can't use
            raise Failure(f"hardware decoding by {task.hardware} isn't possible here") from None
        except Unavailable as error:
            if task.live or not frames.packets:
                raise
            return f"the film can't be read to its end: {error}"
        if frames.error is not None:
            transport = "tcp" if frames.packets else task.transport  # what once came is let through
            text = _failure_text(frames.error, f"silent for {task.stall_s:g} s", transport)
            if task.live or not frames.packets:
                raise Failure(text)
            return f"the film can't be read to its end: {text}"
        return None if task.live else index.shortfall(frames)


def _open(
    url: str, task: Task, format: str | None, options: dict[str, str], io_open: HttpOpener | None = None
) -> av.container.InputContainer:
    """Open any address or file with FFmpeg, by ``io_open`` where it's given.

    Raises:
        Failure: it can't.
    """
    import av.error

    try:
        return _av_open(url, task, format, options, io_open)
    except av.error.FFmpegError as error:
        cause = cause_in_file(Path(url.removeprefix("file:"))) if task.kind == "videos" else None
        raise Failure(cause or _failure_text(error, f"no answer within {task.connect_s:g} s", task.transport)) from None
    except (OSError, ValueError) as error:
        raise Failure(getattr(error, "strerror", None) or type(error).__name__) from None


@contextmanager
def _open_http(
    url: str, task: Task, format: str | None, options: dict[str, str]
) -> Iterator[av.container.InputContainer]:
    """Open an HTTP address, all bytes of which our own client reads.

    Raises:
        Failure: it can't be opened.
    """
    with HttpOpener(task, split_url(url, "open it").url) as opener:
        format = format or opener.format
        if format == "mjpeg":
            options = options | {"analyzeduration": "1"}
        if format == "hls":
            options = options | {"http_persistent": "0", "http_multiple": "0"}
        with _open(opener.url, task, format, options, opener) as container:
            yield container


def _open_rtsp(url: str, task: Task, format: str | None, options: dict[str, str]) -> av.container.InputContainer:
    """Open an RTSP address; redirects are followed like those of HTTP.

    Raises:
        Failure: it can't be opened.
    """
    named = bare = split_url(url, "open it").url
    for _ in range(MOST_REDIRECTS):
        credentials = task.credentials if same_server(named, bare) else None
        location = redirect_of(bare, credentials, min(ASK_S, task.connect_s / 4))
        if location is None:
            return _open(credentials.in_url(bare) if credentials else bare, task, format, options)
        refuse_elsewhere(bare, location, other_hosts=task.other_hosts)
        bare = split_url(location, "open it").url
    raise Failure("it redirects too many times")


def _av_open(
    url: str, task: Task, format: str | None, options: dict[str, str], io_open: HttpOpener | None
) -> av.container.InputContainer:
    import av
    from av.codec.hwaccel import HWAccel

    hardware = None if task.hardware is None else HWAccel(task.hardware, allow_software_fallback=False)
    timeout = None if not task.live or patient(task) else (task.connect_s, task.stall_s)
    return av.open(url, "r", format=format, options=options, timeout=timeout, hwaccel=hardware, io_open=io_open)


def _failure_text(error: Any, silence: str, transport: str = "tcp") -> str:
    """Describe a failure, without PyAV's own text, which names the URL with its password."""
    import av.error

    if isinstance(error, av.error.ExitError):
        return f"{silence}: does a firewall drop packets over UDP?" if transport == "udp" else silence
    if error.errno == errno.EPROTONOSUPPORT:  # RTSP's answer 461
        other = "udp" if transport == "tcp" else "tcp"
        return (
            f"it doesn't send RTP over {transport.upper()}: try --rtsp-transport {other}, or permit it in its settings"
        )
    if isinstance(error, av.error.HTTPUnauthorizedError):
        return UNAUTHORIZED
    return str(getattr(error, "strerror", None) or type(error).__name__)
