"""Opening each kind of source, and the frames that come out of it. This runs in the reader's process alone."""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitedge.core.environment import for_children
from vitedge.core.paths import utf8_path
from vitedge.errors import InputError
from vitedge.streaming.address import Credentials, redact, split_url
from vitedge.streaming.causes import ask, cause_in_answer, cause_in_file, same_server
from vitedge.streaming.container import FilmIndex, NoFilm, choose_stream
from vitedge.streaming.frames import Captured, Frames
from vitedge.streaming.pattern import parse_pattern, show
from vitedge.streaming.rtsp import redirect_of
from vitedge.streaming.task import Task

if TYPE_CHECKING:
    import av.container

MOST_REDIRECTS = 5  # of an address with a password
ASK_S = 2.0  # to learn why an address can't be opened
#: FFmpeg follows whatever a playlist or a container names; a file may name nothing but files.
PROTOCOLS = {
    "videos": "file,crypto,data",
    "http": "http,https,httpproxy,tcp,tls,crypto,data",
    "rtsp": "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https,crypto",
}

Opened = Callable[[str, bool], None]  # (codec, whether there's an end by nature)


class Failure(Exception):
    """Why a source can't be opened, or went no further; its text is for people and holds no credentials."""


def captured(task: Task, opened: Opened, cut: Callable[[str], None]) -> Generator[Captured, None, None]:
    """Every frame of one connection.

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
        else:
            for url in task.urls:
                if task.kind == "videos":
                    url = f"file:{url}"  # else what precedes a colon in its name is taken for a protocol
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
    """Picture files; an unreadable one is a corrupt frame. They have presentation times only at a given rate."""
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


def _csi(task: Task, opened: Opened) -> Iterator[Captured]:
    """A CSI camera through GStreamer's own program: NVIDIA's source on a Jetson, libcamera's elsewhere."""
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
    """Names of libcamera's cameras, in its order; empty where its tool isn't there."""
    tool = shutil.which("cam")
    if tool is None:
        return []
    listing = subprocess.run([tool, "--list"], capture_output=True, text=True, check=False, env=for_children()).stdout
    return re.findall(r"^\d+:.*\((.+)\)\s*$", listing, re.MULTILINE)


def _how(task: Task, url: str) -> dict[str, Any]:
    """Format and options for FFmpeg."""
    if task.kind == "videos":
        return {"format": None, "options": {"protocol_whitelist": PROTOCOLS["videos"]}}
    if task.kind == "camera":
        names = {"rate": "framerate", "codec": "input_format"}
        options = {names[key]: value for key, value in task.camera.items() if key in names}
        if "width" in task.camera:
            options["video_size"] = f"{task.camera['width']}x{task.camera['height']}"
        return {"format": "v4l2", "options": options}
    scheme = url.split("://", 1)[0]
    options = {"fpsprobesize": "0"} if task.live else {}  # opens in a third of the time, and loses nothing
    family = {"rtsps": "rtsp", "https": "http"}.get(scheme, scheme)
    if family in PROTOCOLS:
        options["protocol_whitelist"] = PROTOCOLS[family]
    if family == "rtsp":
        options["rtsp_transport"] = "tcp"
    return {"format": None, "options": options}


def patient(task: Task) -> bool:
    """Whether the source waits for somebody to connect to it, for as long as that takes."""
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
    openers = {"http": _open_http, "https": _open_http, "rtsp": _open_rtsp, "rtsps": _open_rtsp}
    container = openers.get(url.partition("://")[0], _open)(url, task, format, options)
    with container:
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
        except av.error.PermissionError:  # what PyAV says of hardware that it can't use
            raise Failure(f"hardware decoding by {task.hardware} isn't possible here") from None
        if frames.error is not None:
            text = _failure_text(frames.error, f"silent for {task.stall_s:g} s")
            if task.live or not frames.packets:
                raise Failure(text)
            return f"the film can't be read to its end: {text}"
        return None if task.live else index.shortfall(frames.packets, frames.times)


def _open(url: str, task: Task, format: str | None, options: dict[str, str]) -> av.container.InputContainer:
    """Open whatever FFmpeg opens.

    Raises:
        Failure: it can't.
    """
    import av.error

    try:
        return _av_open(url, task, format, options)
    except av.error.FFmpegError as error:
        cause = cause_in_file(Path(url.removeprefix("file:"))) if task.kind == "videos" else None
        raise Failure(cause or _failure_text(error, f"no answer within {task.connect_s:g} s")) from None
    except (OSError, ValueError) as error:
        raise Failure(getattr(error, "strerror", None) or type(error).__name__) from None


def _open_http(url: str, task: Task, format: str | None, options: dict[str, str]) -> av.container.InputContainer:
    """Open an address of HTTP. With a password a redirect is followed within its server alone.

    JPEG pictures that FFmpeg doesn't find its way among, because no boundary precedes the first, are read as such.

    Raises:
        Failure: it can't be opened.
    """
    import av.error

    bare = split_url(url, "open it").url
    if task.user is not None:
        options = options | {"max_redirects": "0"}
    for _ in range(MOST_REDIRECTS):
        try:
            return _av_open(_with_credentials(bare, task), task, format, options)
        except av.error.InvalidDataError as error:
            answer = ask(bare, ASK_S)
            if answer is None or not answer.holds_pictures or format == "mjpeg":
                raise Failure(cause_in_answer(answer) or str(error.strerror)) from None
            format, options = "mjpeg", options | {"analyzeduration": "1"}
        except av.error.FFmpegError as error:
            answer = ask(bare, ASK_S) if task.user is not None and error.errno == errno.EIO else None
            if answer is None or not answer.location:
                raise Failure(_failure_text(error, f"no answer within {task.connect_s:g} s")) from None
            _refuse_elsewhere(bare, answer.location)
            bare = answer.location
        except (OSError, ValueError) as error:
            raise Failure(getattr(error, "strerror", None) or type(error).__name__) from None
    raise Failure("it redirects again and again")


def _open_rtsp(url: str, task: Task, format: str | None, options: dict[str, str]) -> av.container.InputContainer:
    """Open an address of RTSP. With a password a redirect is followed within its server alone.

    Raises:
        Failure: it can't be opened.
    """
    if task.user is None:
        return _open(url, task, format, options)
    bare, credentials = split_url(url, "open it").url, Credentials(task.user, task.password or "")
    for _ in range(MOST_REDIRECTS):
        location = redirect_of(bare, credentials, min(ASK_S, task.connect_s / 4))
        if location is None:
            return _open(_with_credentials(bare, task), task, format, options)
        _refuse_elsewhere(bare, location)
        bare = split_url(location, "open it").url
    raise Failure("it redirects again and again")


def _refuse_elsewhere(url: str, location: str) -> None:
    if not same_server(url, location):
        elsewhere = redact(location.partition("?")[0])
        raise Failure(f"it redirects to {elsewhere}, which doesn't get the password")


def _with_credentials(url: str, task: Task) -> str:
    return url if task.user is None else Credentials(task.user, task.password or "").in_url(url)


def _av_open(url: str, task: Task, format: str | None, options: dict[str, str]) -> av.container.InputContainer:
    import av
    from av.codec.hwaccel import HWAccel

    hardware = None if task.hardware is None else HWAccel(task.hardware, allow_software_fallback=False)
    timeout = None if not task.live or patient(task) else (task.connect_s, task.stall_s)
    with utf8_path(Path(url)) if task.kind == "videos" and not url.startswith("file:") else nullcontext(url) as name:
        return av.open(str(name), "r", format=format, options=options, timeout=timeout, hwaccel=hardware)


def _failure_text(error: Any, silence: str) -> str:
    """What went wrong. PyAV's own text names the URL with its password, so it's left out."""
    import av.error

    if isinstance(error, av.error.ExitError):
        return silence
    if error.errno == errno.EPROTONOSUPPORT:  # RTSP's answer 461
        return "it doesn't send RTP over TCP, as vitedge reads RTSP: permit that (interleaved) in its settings"
    if isinstance(error, av.error.HTTPUnauthorizedError):
        return "it wants a name and a password, or others than these (401)"
    return str(getattr(error, "strerror", None) or type(error).__name__)
