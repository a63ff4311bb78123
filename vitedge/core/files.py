"""Write files so that either the old state or the new one is left, whatever happens in between.

A folder is built beside its destination, every file is flushed to the disk, and one rename publishes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vitedge.core import system
from vitedge.errors import InputError, ResourceError, UsageError

_RESOURCE_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOMEM,
    errno.EIO,
    errno.EBUSY,
}
_NAME_ERRNOS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
}
_NO_THREADS = ("no more threads or processes can be started", "end other processes of this user, or raise the limit")
#: Limits of the process or the machine, which aren't the fault of the file that met them.
_LIMITS = {
    errno.EMFILE: ("this process has as many files open as it may", "raise the limit: ulimit -n 1024"),
    errno.ENFILE: ("the machine has as many files open as it may", "end other processes, or raise fs.file-max"),
    errno.EAGAIN: _NO_THREADS,
}
MAX_READ_BYTES = 256 << 20
FRESH_S = 10.0  # a temporary file younger than this may be one that its writer hasn't locked yet


def sha256(data: bytes) -> str:
    """Return the hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_whole(path: Path, *, follow_links: bool) -> bytes:
    """Read a whole file: a regular one of at most :data:`MAX_READ_BYTES`.

    Raises:
        OSError: it can't be read; a pipe, a device, a folder, a link that isn't to be followed, or too large.
    """
    flags = system.flags("O_RDONLY", "O_CLOEXEC", "O_NONBLOCK", *([] if follow_links else ["O_NOFOLLOW"]))
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = "it's a link"
        raise
    with os.fdopen(descriptor, "rb") as stream:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "it isn't a file", str(path))
        if state.st_size > MAX_READ_BYTES:
            raise OSError(errno.EFBIG, f"it's larger than {MAX_READ_BYTES >> 20} MiB", str(path))
        return stream.read()


@contextlib.contextmanager
def resource_errors(action: str, place: Path | None = None, *, unchanged: bool = True) -> Iterator[None]:
    """Turn errors of the system into ours.

    Args:
        action: for the error text.
        place: the folder that is written, named where the system's answer names no file.
        unchanged: whether a failure leaves everything as it was, which the words then say.

    Raises:
        ResourceError: a full disk, a read-only folder, a file-size limit, missing memory, descriptors or threads.
        UsageError: a name that can't be one: too long, or below a file.
    """
    promise = "; nothing was changed" if unchanged else ""
    try:
        yield
    except InputError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _LIMITS:
            raise
        raise ResourceError(error.action, *_LIMITS[error.__cause__.errno]) from error
    except RuntimeError as error:
        if str(error) != "can't start new thread":  # CPython has no class for it
            raise
        raise ResourceError(action, *_NO_THREADS) from error
    except OSError as error:
        if error.errno in _LIMITS:
            raise ResourceError(action, *_LIMITS[error.errno]) from error
        named = error.filename or place
        where = f" ({os.fsdecode(named) if isinstance(named, bytes) else named})" if named else ""
        if error.errno in _NAME_ERRNOS:
            raise UsageError(action, f"{error.strerror}{where}{promise}", "name another path") from error
        if error.errno not in _RESOURCE_ERRNOS:
            raise
        raise ResourceError(
            action, f"{error.strerror}{where}{promise}", "free space or permit writing there, then repeat"
        ) from error
    except MemoryError as error:
        raise ResourceError(action, f"memory ran out{promise}", "use a smaller batch or fewer samples") from error


def disk_is_full(error: OSError) -> bool:
    """Whether there's no room: a full disk, a quota, a file-size limit. It may pass while the program runs."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def suppress_full_disk() -> Iterator[None]:
    """Ignore a full disk, but no other error."""
    try:
        yield
    except OSError as error:
        if not disk_is_full(error):
            raise


def append_whole(descriptor: int, data: bytes | memoryview) -> None:
    """Append to a file that no other program writes, all or nothing.

    Args:
        descriptor: of a file whose position is its end, a pipe or a terminal.
        data: what to write.

    Raises:
        OSError: it can't be written. What went into a file before the disk was full is taken back.
    """
    rest, sent = memoryview(data), 0
    try:
        while sent < len(rest):
            sent += os.write(descriptor, rest[sent:])
    except OSError:
        if sent and stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.ftruncate(descriptor, os.lseek(descriptor, -sent, os.SEEK_CUR))
        raise


class FolderKind(NamedTuple):
    """A folder that vitedge writes."""

    name: str  # "an artifact"
    files: tuple[str, ...]  # that every such folder has; the last one completes it


class FileKind(NamedTuple):
    """A file that vitedge writes."""

    name: str  # "a result"
    matches: Callable[[bytes], bool]  # whether this is the content of one


JSON = FileKind("JSON", lambda content: content.lstrip()[:1] in (b"[", b"{"))
SVG = FileKind("an SVG picture", lambda content: b"<svg" in content[:1000])


def refuse_existing(out: Path, kind: FolderKind | FileKind, *, overwrite: bool, action: str) -> None:
    """Refuse before any work outputs that can't be written or exist; only outputs of the same kind are overwritten.

    Raises:
        UsageError: ``out`` exists and ``overwrite`` is false, or it's anything but an empty folder or file, or one of
            that kind; or it's no name for something new.
        ResourceError: nothing can be written beside it.
    """
    if out.name in ("", ".."):
        raise UsageError(action, f"{out} names nothing new", "name the file or folder that is to be written")
    require_writable(out.parent, action)
    if not os.path.lexists(out):
        return
    hint = "name another --out"
    if isinstance(kind, FileKind) and out.is_dir():
        raise UsageError(action, f"{out} is a folder", f"name a file: --out {out / 'FILE'}")
    if not overwrite:
        raise UsageError(action, f"{out} already exists", f"{hint}, or add --overwrite")
    if isinstance(kind, FolderKind) and (not out.is_dir() or out.is_symlink()):
        raise UsageError(action, f"{out} isn't a folder", hint)
    if not _replaceable(out, kind, action):
        raise UsageError(action, f"{out} isn't {kind.name}; --overwrite replaces nothing else", hint)


def _replaceable(out: Path, kind: FolderKind | FileKind, action: str) -> bool:
    with resource_errors(action):
        if isinstance(kind, FolderKind):
            return not any(out.iterdir()) or all((out / name).exists() for name in kind.files)
        return out.is_file() and (out.stat().st_size == 0 or kind.matches(out.read_bytes()))


def require_writable(folder: Path, action: str) -> None:
    """Refuse before long work a folder that couldn't be written after it; ``folder`` need not exist yet.

    Raises:
        ResourceError, UsageError: as :func:`resource_errors`.
    """
    with resource_errors(action, folder):
        existing = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\0")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that can't flush folders
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(out: Path, action: str) -> Iterator[None]:
    """Hold the exclusive right to write ``out``; a second writer fails at once.

    Raises:
        ResourceError: another process is writing there.
    """
    lock = out.parent / f".{out.name}.lock"
    with resource_errors(action, out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, system.flags("O_RDWR", "O_CREAT", "O_CLOEXEC"), 0o644)
    held = False  # the name of a lock that's still to be removed
    try:
        if not _lock(descriptor, lock):
            raise ResourceError(action, f"another process is writing {out}", "wait for it, or name another --out")
        try:
            yield
        finally:
            try:
                lock.unlink(missing_ok=True)
            except PermissionError:  # Windows keeps the name of an open file
                held = True
    finally:
        os.close(descriptor)
        if held:
            with contextlib.suppress(PermissionError):  # another process has opened it
                lock.unlink(missing_ok=True)


def _lock(descriptor: int, lock: Path) -> bool:
    """Lock the open file, and make sure that its name still belongs to it."""
    try:
        system.lock(descriptor)
        return os.fstat(descriptor).st_ino == lock.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


@contextlib.contextmanager
def new_folder(out: Path, kind: FolderKind, *, overwrite: bool, action: str) -> Iterator[Path]:
    """Yield an empty folder beside ``out``; on success it becomes ``out``, on any failure it's removed.

    Args:
        out: the destination.
        kind: what is written; the file that completes it is flushed after all the others.
        overwrite: permit replacing another of this kind.
        action: for error texts.

    Raises:
        UsageError: ``out`` exists and may not be replaced.
        ResourceError: disk, permission, lock.
    """
    with resource_errors(action):
        out = Path.cwd() / out
    refuse_existing(out, kind, overwrite=overwrite, action=action)
    with locked(out, action), resource_errors(action, out.parent):
        _sweep(out)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.building-", dir=out.parent))
        try:
            building.chmod(0o755)
            yield building
            last = building / kind.files[-1]
            files = sorted((path for path in building.rglob("*") if path.is_file()), key=lambda path: path == last)
            for path in files:
                _sync(path)
            for folder in [*(path for path in building.rglob("*") if path.is_dir()), building]:
                _sync(folder)
            _publish(building, out)
            _sync(out.parent)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise


@contextlib.contextmanager
def scratch_folder(prefix: str, action: str) -> Iterator[Path]:
    """Provide a temporary folder for this process; first remove those that killed processes with this prefix left.

    Raises:
        ResourceError: disk, permission.
    """
    with resource_errors(action), tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        _sweep_folders(Path(name).parent, prefix)
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # no locks on folders here, so nothing is removed either
                descriptor = os.open(name, os.O_RDONLY)
                held.callback(os.close, descriptor)
                system.lock(descriptor)
            yield Path(name)


def _sweep_folders(parent: Path, prefix: str) -> None:
    """Remove the temporary folders that no process holds, except those that were just made."""
    for leftover in parent.glob(f"{prefix}????????"):
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, system.flags("O_RDONLY", "O_DIRECTORY", "O_NOFOLLOW"))
            try:
                system.lock(descriptor)
                if time.time() - os.fstat(descriptor).st_mtime > FRESH_S:
                    shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(descriptor)


def _publish(building: Path, out: Path) -> None:
    """Rename ``building`` to ``out``, and remove the old one."""
    if not out.exists():
        os.replace(building, out)
    elif _exchange(building, out):
        shutil.rmtree(building, ignore_errors=True)
    else:  # a file system without atomic exchange: for a moment there is neither, and the next writer restores the old
        old = _replaced(out)
        os.replace(out, old)
        os.replace(building, out)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names atomically (``renameat2(2)`` with RENAME_EXCHANGE); False where that doesn't exist."""
    current, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    swap = system.c_function("renameat2")
    return swap is not None and int(swap(current, os.fsencode(first), current, os.fsencode(second), exchange)) == 0


def _replaced(out: Path) -> Path:
    return out.parent / f".{out.name}.replaced"


def _sweep(out: Path) -> None:
    """Finish or undo the work of a killed writer; the lock must be held, so that no other writer works."""
    old = _replaced(out)
    if old.exists() and not out.exists():
        os.replace(old, out)
    shutil.rmtree(old, ignore_errors=True)
    ours = re.compile(re.escape(f".{out.name}.building-") + r"[a-z0-9_]{8}")  # as tempfile.mkdtemp names them
    for leftover in out.parent.iterdir():
        if ours.fullmatch(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)


def write_atomic(path: Path, data: bytes | Iterable[bytes | memoryview], action: str) -> None:
    """Write one file, whole or in pieces, so that readers see the old content or the new.

    Raises:
        ResourceError: disk, permission.
    """
    with resource_errors(action, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_files(path)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                with contextlib.suppress(OSError):  # a file system without locks, so nothing is removed there
                    system.lock(stream.fileno())
                stream.writelines([data] if isinstance(data, bytes) else data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def _sweep_files(path: Path) -> None:
    """Remove files that killed writers of this file left: those that no writer holds, except those just made."""
    ours = re.compile(re.escape(f".{path.name}.") + r"[a-z0-9_]{8}")  # as tempfile.mkstemp names them
    for leftover in path.parent.iterdir():
        if ours.fullmatch(leftover.name):
            with contextlib.suppress(OSError), leftover.open("rb") as stream:
                system.lock(stream.fileno())
                if time.time() - os.fstat(stream.fileno()).st_mtime > FRESH_S:
                    leftover.unlink()
