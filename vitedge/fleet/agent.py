"""The agent on a board: one process for each connection, which answers requests on its standard input.

This file is sent to the board's Python as it is, so it imports the standard library alone and knows nothing of the
rest of vitedge. A request is one line of JSON, ``{"do": NAME, …}``, followed by as many raw bytes as its key ``bytes``
says; so is an answer. Everything that it keeps lies in one folder::

    files/SHA256            content of files that have arrived and were checked
    incoming/SHA256         what has arrived so far of a file
    artifacts/DIGEST/       what was pushed, made of links to files/
    current/NAME            a link to the folder that was pushed last under this name
    jobs/JOB/               status, stdout, stderr and what the job writes; it's the job's working directory

A job is a process group of its own, below a supervisor that has left the connection's session: it goes on when the
connection ends. The supervisor and the job hold two locks of the kernel, which disappear with the last process that
holds them, whatever ends it and whatever the clock says: the board's, so that one job runs at a time, and that of the
job's file ``alive``.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]

GREETING = b"vitedge fleet agent\n"
STATUS_BYTES = 4096  # a status is as long from the start, so that it can be written on a full disk
PIECE = 1 << 20
LIVE = ("starting", "waiting", "running")
MEASURES = ("vitedge", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")


def main() -> None:
    """Answer requests until the connection ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(GREETING)
    answers.flush()
    agent = Agent()
    while (line := requests.readline()).endswith(b"\n"):
        request = json.loads(line)
        payload = requests.read(request.pop("bytes", 0))
        try:
            answer = getattr(agent, "do_" + request.pop("do"))(payload=payload, **request)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            where = f" ({error.filename})" if error.filename else ""
            answer = {"error": f"{error.strerror or error}{where}", "full": full}
        except (ValueError, LookupError, TypeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}", "full": False}
        content = answer.pop("content", None)
        if content is not None:
            answer["bytes"] = len(content)
        answers.write(json.dumps(answer).encode() + b"\n" + (content or b""))
        answers.flush()


class Agent:
    """The requests, each a method that takes its arguments by name and returns the answer."""

    def __init__(self) -> None:
        self.folder = Path()
        self.hashing: dict[str, tuple[Any, int]] = {}  # arriving file -> hash and number of its bytes so far

    def do_open(self, folder: str, payload: bytes = b"") -> Answer:
        """Use this folder from now on; return the facts about the board."""
        self.folder = Path(folder).expanduser()
        for name in ("files", "incoming", "artifacts", "current", "jobs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        return {
            "folder": str(self.folder),
            "home": str(Path.home()),
            "machine": read(Path("/etc/machine-id")).strip() or platform.node(),
            "model": read(Path("/proc/device-tree/model")).strip("\0 \n"),
            "arch": platform.machine(),
            "python": platform.python_version(),
            "glibc": platform.libc_ver()[1],
            "boot": boot(),
            "clock_ns": time.time_ns(),
            "free": free(self.folder),
            "versions": versions(),
        }

    def path(self, *parts: str) -> Path:
        """Return a path in the folder; refuse a name that would leave it."""
        return inside(self.folder, "/".join(parts))

    # --- pushing -----------------------------------------------------------------------------------------------------

    def do_missing(self, files: dict[str, int], payload: bytes = b"") -> Answer:
        """Return how much of each missing file has arrived, of files (SHA-256 -> size), and how much room there is."""
        missing = {}
        for sha, size in files.items():
            if size_of(self.path("files", sha)) != size:
                missing[sha] = max(0, min(size_of(self.path("incoming", sha)), size))
        return {"missing": missing, "free": free(self.folder)}

    def do_put(self, sha: str, offset: int, size: int, payload: bytes = b"") -> Answer:
        """Write a piece of a file; check the file after its last piece, and keep it if its digest is right."""
        incoming, digest = self.path("incoming", sha), self._hash(sha, offset)
        descriptor = os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            position, rest = offset, memoryview(payload)
            while len(rest):
                written = os.pwrite(descriptor, rest, position)
                position, rest = position + written, rest[written:]
            digest.update(payload)
            self.hashing[sha] = digest, position
            if position < size:
                return {"arrived": position}
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        del self.hashing[sha]
        if digest.hexdigest() != sha:
            incoming.unlink()
            return {"arrived": 0, "damaged": True}
        incoming.replace(self.path("files", sha))
        return {"arrived": size}

    def _hash(self, sha: str, offset: int) -> Any:
        """Return the hash of the bytes that arrived before this piece."""
        digest, position = self.hashing.get(sha, (hashlib.sha256(), 0))
        if position == offset:
            return digest
        digest = hashlib.sha256()
        if offset:
            with self.path("incoming", sha).open("rb") as stream:
                for start in range(0, offset, PIECE):
                    digest.update(stream.read(min(PIECE, offset - start)))
        return digest

    def do_publish(self, digest: str, name: str, files: dict[str, str], payload: bytes = b"") -> Answer:
        """Make a folder of arrived files (path -> SHA-256), and let a name point to it; each step is atomic."""
        place = self.path("artifacts", digest)
        fresh = not all(same(place / path, self.path("files", sha)) for path, sha in files.items())
        if fresh:
            building = self.path("artifacts", f".{digest}.{os.getpid()}")
            shutil.rmtree(building, ignore_errors=True)
            for path, sha in files.items():
                to = inside(building, path)
                to.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(self.path("files", sha), to)
            for folder, _, _ in os.walk(building):
                sync(folder)
            earlier = self.path("artifacts", f".{digest}.{os.getpid()}.earlier")
            if place.exists():  # it lacks a file, or has another one
                place.rename(earlier)
            building.rename(place)
            shutil.rmtree(earlier, ignore_errors=True)
        point(self.path("current", name), f"../artifacts/{digest}")
        return {"fresh": fresh, "path": str(place)}

    # --- jobs --------------------------------------------------------------------------------------------------------

    def do_start(
        self, job: str, attempt: int, argv: list[str], lock: str, who: str, what: str, wait: bool, payload: bytes = b""
    ) -> Answer:
        """Start an attempt at a job; a repeated request, or one while the job runs, starts nothing."""
        place = self.path("jobs", job)
        place.mkdir(exist_ok=True)
        alive = os.open(place / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not locked(alive) or status_of(place).get("attempt", 0) >= attempt:
                os.close(alive)
                alive = -1
                return self.do_status(job)
            with (place / "status.new").open("wb") as stream:
                stream.write(as_status({"state": "starting", "attempt": attempt, "boot": boot()}))
                stream.flush()
                os.fsync(stream.fileno())
            (place / "status.new").replace(place / "status")
            child = os.fork()
            if child == 0:
                leave(lambda: supervise(place, attempt, argv, Path(lock).expanduser(), alive, who, what, wait))
            os.waitpid(child, 0)
        finally:
            if alive >= 0:
                os.close(alive)
        return self.do_status(job)

    def do_status(self, job: str, seconds: float = 0, seen: str = "", payload: bytes = b"") -> Answer:
        """Return a job's state; wait up to so many seconds until it differs from ``seen``."""
        place, until = self.path("jobs", job), time.monotonic() + seconds
        while True:
            status = state_of(place)
            if status["state"] not in LIVE or status["state"] != seen or time.monotonic() > until:
                break
            time.sleep(0.05)
        return {**status, "stderr": read(place / "stderr")[-2000:], "free": free(self.folder), "now_boot": boot()}

    def do_stop(self, job: str, payload: bytes = b"") -> Answer:
        """Ask a job to end."""
        status = state_of(self.path("jobs", job))
        if status["state"] in LIVE and status.get("supervisor"):
            os.kill(status["supervisor"], signal.SIGTERM)
        return status

    def do_holder(self, lock: str, payload: bytes = b"") -> Answer:
        """Return the holder of the board's lock; an empty record where it's free."""
        path = Path(lock).expanduser()
        if not path.exists():
            return {"holder": {}}
        descriptor = open_lock(path)
        try:
            return {"holder": {} if locked(descriptor) else holder_in(descriptor)}
        finally:
            os.close(descriptor)

    def do_read(self, name: str, offset: int, length: int, payload: bytes = b"") -> Answer:
        """Return a piece of a file in the folder, with the size and, for the first piece, the digest of the whole."""
        with self.path(name).open("rb") as stream:
            digest = hashlib.sha256()
            if offset == 0:
                for piece in iter(lambda: stream.read(PIECE), b""):
                    digest.update(piece)
            stream.seek(offset)
            size = os.fstat(stream.fileno()).st_size
            return {"size": size, "digest": digest.hexdigest(), "content": stream.read(length)}

    def do_list(self, name: str, payload: bytes = b"") -> Answer:
        """Return the names of the files in a folder; none where there is no such folder."""
        folder = self.path(name)
        return {"names": sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []}

    def do_call(self, argv: list[str], seconds: float, payload: bytes = b"") -> Answer:
        """Run a short command to its end, outside of any lock."""
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False, cwd=self.folder
            )
        except subprocess.TimeoutExpired:
            return {"code": 124, "stderr": f"it took more than {seconds:g} s", "content": b""}
        return {"code": done.returncode, "stderr": done.stderr[-4000:].decode(errors="replace"), "content": done.stdout}

    def do_link(self, link: str, target: str, payload: bytes = b"") -> Answer:
        """Let a link point to a folder from now on; leave alone a path that isn't a link."""
        path = Path(link).expanduser()
        if path.exists() and not path.is_symlink():
            return {"error": f"it isn't a link, so vitedge fleet didn't create it ({path})", "full": False}
        path.parent.mkdir(parents=True, exist_ok=True)
        point(path, target)
        return {}


# --- a job ---------------------------------------------------------------------------------------------------------


def leave(work: Callable[[], None]) -> None:
    """Leave the session (of a forked process), do the work in a process without a parent here, and end."""
    code = 1
    try:
        os.setsid()
        if os.fork() == 0:
            work()
        code = 0
    finally:
        os._exit(code)


def supervise(
    place: Path, attempt: int, argv: list[str], lock: Path, alive: int, who: str, what: str, wait: bool
) -> None:
    """Take the board's lock, run the job to its end, and record how it ended."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, new_file(place / "stdout"), new_file(place / "stderr"))):
        os.dup2(descriptor, number)
    status: Answer = {"state": "waiting", "attempt": attempt, "boot": boot(), "supervisor": os.getpid()}
    held = open_lock(lock)
    while not locked(held):
        status["holder"] = holder_in(held)
        if not wait:
            write_status(place, {**status, "state": "busy"})
            return
        write_status(place, status)
        time.sleep(0.1)
    status.pop("holder", None)
    holder = {"who": who, "what": what, "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}
    os.ftruncate(held, 0)
    os.pwrite(held, json.dumps(holder).encode(), 0)
    status.update(state="running", started_ns=boottime(), clock_ns=time.time_ns())
    write_status(place, status)
    status["code"] = run(place, argv, (held, alive))
    status["ended_ns"] = boottime()
    jumped_ns = time.time_ns() - status["clock_ns"] - (status["ended_ns"] - status["started_ns"])
    status.update(state="done", clock_jump_s=round(jumped_ns / 1e9, 1))
    write_status(place, status)


def run(place: Path, argv: list[str], descriptors: tuple[int, ...]) -> int:
    """Run a command in a process group of its own, which gets our SIGTERM and holds our locks; return its exit code."""
    stopped: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def stop(*_: object) -> None:
        stopped.append(signal.SIGTERM)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            argv, cwd=place, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=descriptors
        )
    except OSError as error:
        reason = (
            f"error: start {argv[0]}\n       {error.strerror}\n       correct this board's entry in the inventory\n"
        )
        os.write(2, reason.encode())
        return 127
    if stopped:
        stop()
    return process.wait()


def open_lock(path: Path) -> int:
    """Open the board's lock, which every user of the board shares."""
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)  # anybody may write beside it
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    with contextlib.suppress(PermissionError):  # another user has just made it
        os.fchmod(descriptor, 0o666)
    return descriptor


def locked(descriptor: int) -> bool:
    """Take the lock without waiting; return whether it's ours now."""
    import fcntl  # boards have it; the machine that sends this file may not

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def holder_in(descriptor: int) -> Answer:
    """Return the record that the holder of a lock wrote into it."""
    try:
        return dict(json.loads(os.pread(descriptor, STATUS_BYTES, 0)))
    except ValueError:
        return {"who": "unknown", "what": "a job that has just begun", "since": "now"}


def as_status(status: Answer) -> bytes:
    """Return a status at its fixed length."""
    return json.dumps(status).encode().ljust(STATUS_BYTES)[:STATUS_BYTES]


def write_status(place: Path, status: Answer) -> None:
    """Write over the existing status: this takes no room on the disk."""
    descriptor = os.open(place / "status", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, as_status(status), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def status_of(place: Path) -> Answer:
    """Return the status as it was written; empty where none was, or it's damaged."""
    try:
        return dict(json.loads(read(place / "status")))
    except ValueError:
        return {}


def state_of(place: Path) -> Answer:
    """Return the status: ``lost`` for a job that ended without recording how, and ``none`` for one never started."""
    status = status_of(place)
    if not status:
        return {"state": "none"}
    if status["state"] not in LIVE:
        return status
    descriptor = os.open(place / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not locked(descriptor):
            return status
        status = status_of(place)  # it may have ended since
        return status if status.get("state") not in LIVE else {**status, "state": "lost"}
    finally:
        os.close(descriptor)


# --- facts about the system ------------------------------------------------------------------------------------------


def inside(folder: Path, name: str) -> Path:
    """Return ``folder / name``.

    Raises:
        ValueError: it wouldn't lie in the folder.
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{name} lies outside the folder")
    return folder / name


def read(path: Path) -> str:
    """Return the text of a file; empty where it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def boot() -> str:
    """Return an identifier that changes when the board is restarted."""
    return read(Path("/proc/sys/kernel/random/boot_id")).strip()


def boottime() -> int:
    """Return the nanoseconds since the board was started; changes of the clock don't affect it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def free(folder: Path) -> int:
    """Return the bytes that can be written below a folder."""
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


def versions() -> dict[str, str]:
    """Return the versions of runtimes and vitedge that this Python has."""
    found = {}
    for name in MEASURES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def size_of(path: Path) -> int:
    """Return the bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def same(one: Path, other: Path) -> bool:
    """Whether two files have the same content; two names of one file are recognised without reading it."""
    try:
        return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def new_file(path: Path) -> int:
    """Create a file and open it for writing."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)


def link_or_copy(source: Path, to: Path) -> None:
    """Give a file a second name; copy it on file systems without hard links."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)


def point(link: Path, target: str) -> None:
    """Let a link point to another place, atomically."""
    if link.is_symlink() and str(link.readlink()) == target:
        return
    beside = link.with_name(f".{link.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(link)
    sync(link.parent)


def sync(folder: str | Path) -> None:
    """Flush a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that can't
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "vitedge_fleet_agent":  # as connection.py starts it
    main()
