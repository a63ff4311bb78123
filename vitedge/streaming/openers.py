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
from typing import TYPE_CHECKING, Any, NamedTuple

from vitedge.core.environment import for_children
from vitedge.core.paths import utf8_path
from vitedge.errors import InputError
from vitedge.streaming.address import Credentials, redact, split_url
from vitedge.streaming.causes import ask, cause_in_answer, cause_in_file, same_server
from vitedge.streaming.gaps import GapDetector
from vitedge.streaming.pattern import parse_pattern, show
from vitedge.streaming.rtsp import redirect_of
from vitedge.streaming.task import Task

if TYPE_CHECKING:
    import av.container
    import av.video
    import numpy as np
    from numpy.typing import NDArray

#: Formats whose frames carry no times worth believing: they get those of their arrival.
TIMELESS = ("mpjpeg", "mjpeg", "image2pipe", "yuv4mpegpipe", "jpeg_pipe")
#: Codecs whose every frame stands alone: damage doesn't reach the next one.
INTRA_ONLY = ("mjpeg", "rawvideo", "png", "wrapped_avframe", "prores", "dnxhd", "ffv1", "huffyuv", "dvvideo")
#: Formats whose packets FFmpeg hands over only when the next one begins, so the last one before a silence comes stale.
HELD_BACK = ("rtsp", "rtp", "sdp", "mpegts", "h264", "hevc")
#: Decoders don't notice that whole frames are missing, and go on from the wrong picture. On a live source an interval
#: of two and a half usual ones, and at least this long, counts as such a loss.
LOSS_S = 0.1
#: After damage frames count as corrupt until the next key frame; so long at most, for cameras that send none.
MOST_DAMAGED_S = 10.0
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


class Captured(NamedTuple):
    """One frame as it came. ``content`` is None when it's broken.

    ``stale``: it was held back over a silence, so it doesn't say what is there now.
    """

    content: av.video.VideoFrame | NDArray[np.uint8] | None
    presentation_s: float | None
    monotonic_ns: int
    wall_ns: int
    truth: str | None = None
    stale: bool = False


def captured(task: Task, opened: Opened) -> Generator[Captured, None, None]:
    """Every frame of one connection; ``opened`` is called once it stands.

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
                yield from _decoded(url, task, opened, **_how(task, url))
        if task.live or passes == 0:
            return
        passes -= passes > 0


def _pattern(task: Task, opened: Opened) -> Iterator[Captured]:
    pattern = parse_pattern(task.targets[0])
    opened("test", not pattern.live)
    for shown in show(pattern):
        content = None if shown.corrupt else shown.picture
        yield Captured(content, shown.presentation_s, time.monotonic_ns(), time.time_ns(), shown.truth)


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
        yield Captured(content, None if rate is None else number / rate, now, wall)


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
) -> Iterator[Captured]:
    """Decode everything; a frame's time is that of its last packet's arrival."""
    import av

    av.logging.set_level(None)
    openers = {"http": _open_http, "https": _open_http, "rtsp": _open_rtsp, "rtsps": _open_rtsp}
    container = openers.get(url.partition("://")[0], _open)(url, task, format, options)
    with container:
        if not container.streams.video:
            raise Failure("it has no video")
        stream = container.streams.video[0]
        stream.thread_type = "SLICE" if task.live else "AUTO"  # whole frames in parallel would come late
        ends = container.format.name == "hls" and container.duration is not None
        opened(stream.codec_context.name, ends or not task.live)
        yield from _frames(container, stream, task)


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


def _frames(container: av.container.InputContainer, stream: Any, task: Task) -> Iterator[Captured]:
    import av.error

    timeless = container.format.name in TIMELESS
    held_back = task.live and container.format.name in HELD_BACK
    damage = _Damage(intra=stream.codec_context.name in INTRA_ONLY, watch_times=task.live and not timeless)
    arrival_gaps, last_arrival_ns = GapDetector(task.gap_s), time.monotonic_ns()
    arrivals: dict[int, tuple[int, int]] = {}  # pts -> clocks
    begin: int | None = None
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            raise Failure(_failure_text(error, f"silent for {task.stall_s:g} s")) from None
        clocks = time.monotonic_ns(), time.time_ns()
        stale = held_back and arrival_gaps.observe((clocks[0] - last_arrival_ns) / 1e9)
        last_arrival_ns = clocks[0]
        if packet.pts is not None:
            arrivals[packet.pts] = clocks
            if len(arrivals) > 512:
                del arrivals[next(iter(arrivals))]
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            if isinstance(error, av.error.PermissionError):  # what PyAV says of hardware that it can't use
                raise Failure(f"hardware decoding by {task.hardware} isn't possible here") from None
            damage.begin(clocks[0] / 1e9)
            yield Captured(None, None, *clocks)
            continue
        for frame in frames:
            monotonic, wall = arrivals.pop(frame.pts, clocks) if frame.pts is not None else clocks
            begin = monotonic if begin is None else begin
            at_s = (monotonic - begin) / 1e9 if timeless else frame.time
            if damage.spoils(frame, at_s, monotonic / 1e9):
                yield Captured(None, at_s, monotonic, wall)
            else:
                yield Captured(frame, at_s, monotonic, wall, stale=stale)


class _Damage:
    """Damage in a stream: a broken frame, and those predicted from it until the next key frame.

    Args:
        intra: no frame is predicted from others, so damage doesn't spread.
        watch_times: whether a jump of the presentation time counts: whole frames are missing, unseen by the decoder.
    """

    def __init__(self, *, intra: bool, watch_times: bool) -> None:
        self._intra, self._watch_times = intra, watch_times and not intra
        self._times = GapDetector(LOSS_S)
        self._last_s: float | None = None
        self._since_s: float | None = None  # None: the picture is whole

    def begin(self, now_s: float) -> None:
        """Something broke."""
        self._since_s = None if self._intra else now_s

    def spoils(self, frame: Any, at_s: float | None, now_s: float) -> bool:
        """Whether a decoded frame, shown at ``at_s`` and received at ``now_s``, is broken or predicted from such."""
        missing = False
        if self._watch_times and at_s is not None and self._last_s is not None:
            missing = self._times.observe(at_s - self._last_s)
        self._last_s = at_s
        if frame.is_corrupt or (missing and not frame.key_frame):
            self.begin(now_s)
            return True
        if self._since_s is not None and not frame.key_frame and now_s - self._since_s < MOST_DAMAGED_S:
            return True
        self._since_s = None
        return False


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
