"""Writers leave the old state or the new one: errors, full disks, foreign locks, kills at every moment."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vitedge.core import files
from vitedge.core.files import (
    JSON,
    SVG,
    FolderKind,
    locked,
    new_folder,
    refuse_existing,
    sha256,
    sha256_file,
    write_atomic,
)
from vitedge.errors import ResourceError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children only write and end


KIND = FolderKind("a folder of this test", ("manifest.json",))


def write(out: Path, text: str, *, overwrite: bool = False) -> None:
    with new_folder(out, KIND, overwrite=overwrite, action="write it") as folder:
        (folder / "data").write_text(text)
        (folder / "manifest.json").write_text(text)


def read(out: Path) -> set[str]:
    return {path.read_text() for path in out.rglob("*") if path.is_file()}


def beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path != out)


def in_a_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked child; its exit code: 0, the code of a VitedgeError, or 99."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            work()
            code = 0
        except (UsageError, ResourceError) as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_folder_appears_whole_and_alone(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    write(out, "one")
    assert read(out) == {"one"} and beside(out) == []
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("atomic", [True, False], ids=["exchange", "plain"])
def test_overwriting_replaces_everything(tmp_path: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not atomic:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    out = tmp_path / "out"
    with new_folder(out, KIND, overwrite=False, action="write it") as folder:
        (folder / "manifest.json").write_text("old")
        (folder / "only in the old").write_text("old")
    write(out, "new", overwrite=True)
    assert read(out) == {"new"} and beside(out) == []


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failure_inside_leaves_the_old_state(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "out"
    write(out, "old")

    def fail() -> None:
        with new_folder(out, KIND, overwrite=True, action="write it") as folder:
            (folder / "manifest.json").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert read(out) == {"old"} and beside(out) == []


def test_existing_output_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    with pytest.raises(UsageError, match="already exists") as refused:
        write(out, "new")
    assert "--overwrite" in refused.value.hint and read(out) == {"old"}


def test_overwrite_spares_what_vitedge_did_not_write(tmp_path: Path) -> None:
    foreign, file = tmp_path / "foreign", tmp_path / "file"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    file.write_text("precious")
    link, dangling, empty = tmp_path / "link", tmp_path / "dangling", tmp_path / "empty"
    link.symlink_to(foreign)
    dangling.symlink_to(tmp_path / "nothing")
    empty.mkdir()
    for out in (foreign, file, link, dangling):
        with pytest.raises(UsageError):
            refuse_existing(out, KIND, overwrite=True, action="write it")
        with pytest.raises(UsageError, match="already exists"):
            refuse_existing(out, KIND, overwrite=False, action="write it")
    assert (foreign / "thesis.txt").read_text() == "precious" and file.read_text() == "precious"
    write(empty, "new", overwrite=True)
    assert read(empty) == {"new"}


def test_a_picture_is_overwritten_by_a_picture(tmp_path: Path) -> None:
    """The picture of `export --explain --overwrite` was taken for a folder."""
    out = tmp_path / "a.selection.svg"
    out.write_text('<?xml version="1.0"?><svg/>')
    refuse_existing(out, SVG, overwrite=True, action="draw it")
    for content in (b"mine", b"\0" * 2000 + b"<svg"):
        out.write_bytes(content)
        with pytest.raises(UsageError, match="isn't an SVG picture"):
            refuse_existing(out, SVG, overwrite=True, action="draw it")


@pytest.mark.parametrize("place", ["/dev/null", "/dev/zero", "link"])
def test_a_device_is_never_overwritten(place: str, tmp_path: Path) -> None:
    """Writing renames a new file to the name of the old one: as root it would take the device's place."""
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(UsageError, match="isn't JSON"):
        refuse_existing(tmp_path / place, JSON, overwrite=True, action="write it")


@pytest.mark.parametrize("name", ["x" * 300, "file/out", "loop/out"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsageError) as refused:
        write(tmp_path / name, "new")
    assert "nothing was changed" in refused.value.reason


@pytest.mark.parametrize("name", ["*", "[a-z]", "?", "-rf", "; touch pwned", "ü\n\x1b[31m", "out.building-abcdefgh"])
def test_hostile_names_are_names(tmp_path: Path, name: str) -> None:
    other = tmp_path / ".other.building-abcdefgh"  # another writer at work
    other.mkdir()
    own = tmp_path / f".{name}.building-abcdefgh"  # left by a killed one
    own.mkdir()
    write(tmp_path / name, "one")
    write(tmp_path / name, "two", overwrite=True)
    assert read(tmp_path / name) == {"two"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, name])


def test_a_second_writer_fails_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out, "write it"):
        assert in_a_child(lambda: write(out, "other")) == 5
        with pytest.raises(ResourceError, match="another process is writing"), locked(out, "write it"):
            pass
    write(out, "after")
    assert beside(out) == []


def test_a_lock_that_was_left_behind_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").write_text("")
    write(tmp_path / "out", "new")
    assert beside(tmp_path / "out") == []


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    """Eight at once: each either writes its folder whole or is refused."""
    out, children = tmp_path / "out", []
    for number in range(8):
        child = os.fork()
        if child == 0:
            code = 99
            try:
                write(out, f"writer {number}", overwrite=True)
                code = 0
            except ResourceError:
                code = 5
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert set(codes) <= {0, 5} and 0 in codes
    assert len(read(out)) == 1 and beside(out) == []


def write_for_ever(out: Path, version: int, told: int) -> None:
    """Version after version: three files that hold it, the last one being the mark; each is told once it's written."""
    while True:
        with new_folder(out, KIND, overwrite=True, action="write it") as folder:
            for name in ("a", "sub/b", "manifest.json"):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(f"{version} " * 2000)
        os.write(told, f"{version}\n".encode())
        version += 1


@pytest.mark.parametrize("atomic", [True, False], ids=["exchange", "plain"])
def test_kill_at_any_moment_leaves_the_old_or_the_new(
    tmp_path: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL, again and again: a reader sees one version, whole, and the next writer cleans up."""
    if not atomic:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    out, chance, version = tmp_path / "out", random.Random(0), 1
    write(out, "0 " * 2000)
    for _ in range(40):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            write_for_ever(out, version, writing)
        os.close(writing)
        with os.fdopen(reading) as told:
            finished = int(told.readline())
            time.sleep(chance.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            finished = max([finished, *(int(line) for line in told if line.endswith("\n"))])
        if not atomic and not out.exists():  # killed between its two renames; the next writer brings the old one back
            with pytest.raises(ValueError):
                look(out)
        texts = [path.read_text() for path in out.rglob("*") if path.is_file()]
        assert len(texts) == 3 and len(set(texts)) == 1
        assert texts[0] in (f"{finished} " * 2000, f"{finished + 1} " * 2000)
        version = finished + 2
    write(out, "last", overwrite=True)
    assert read(out) == {"last"} and beside(out) == []


def look(out: Path) -> None:
    """Be the next writer, and fail."""
    with new_folder(out, KIND, overwrite=True, action="write it"):
        raise ValueError


def test_what_a_killed_writer_left_is_put_right(tmp_path: Path) -> None:
    """The state between the two renames of a file system without exchange."""
    out = tmp_path / "out"
    write(out, "old")
    out.rename(tmp_path / ".out.replaced")
    (tmp_path / ".out.building-abc_1234").mkdir()
    with pytest.raises(ValueError):
        look(out)
    assert read(out) == {"old"} and beside(out) == []


def test_file_size_limit(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        write(out, "new" * 1000, overwrite=True)

    assert in_a_child(limited) == 5
    assert read(out) == {"old"} and beside(out) == []


def test_full_disk(small_disk: Path) -> None:
    out = small_disk / "out"
    write(out, "old")
    with pytest.raises(ResourceError, match=os.strerror(errno.ENOSPC)) as refused:
        write(out, "new" * 200_000, overwrite=True)
    assert "free space" in refused.value.hint and refused.value.exit_code == 5
    assert read(out) == {"old"} and beside(out) == []
    with pytest.raises(ResourceError):
        write_atomic(small_disk / "file", b"x" * 400_000, "write it")
    assert beside(out) == []


def test_read_only_disk(small_disk: Path) -> None:
    write(small_disk / "out", "old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ResourceError, match=os.strerror(errno.EROFS)):
        write(small_disk / "out", "new", overwrite=True)
    with pytest.raises(ResourceError, match=os.strerror(errno.EROFS)):
        write_atomic(small_disk / "file", b"", "write it")
    assert read(small_disk / "out") == {"old"}


def test_no_permission() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)

        def nobody() -> None:
            os.setgid(65534)
            os.setuid(65534)
            write(Path(folder) / "out", "new")

        assert in_a_child(nobody) == 5 and list(Path(folder).iterdir()) == []


def test_memory_error_is_a_resource_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match="memory ran out"),
        new_folder(tmp_path / "out", KIND, overwrite=False, action="x"),
    ):
        raise MemoryError
    assert list(tmp_path.iterdir()) == []


def test_write_atomic(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in (b"one", b"", b"\x00" * 10_000):
        write_atomic(path, content, "write it")
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        write_atomic(path, b"x" * 100, "write it")

    assert in_a_child(limited) == 5
    assert path.read_bytes() == b"\x00" * 10_000 and list(path.parent.iterdir()) == [path]


def test_what_killed_writers_of_a_file_left_is_swept(tmp_path: Path) -> None:
    names = {".out.bin.abcd_123", ".out.bin.held_123", ".out.bin.fresh123", ".other.bin.abcd_123", ".out.bin.mine"}
    for name in names:
        (tmp_path / name).write_bytes(b"half")
        if "fresh" not in name:
            os.utime(tmp_path / name, (0, 0))
    with (tmp_path / ".out.bin.held_123").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_atomic(tmp_path / "out.bin", b"whole", "write")
    assert {path.name for path in tmp_path.iterdir()} == {"out.bin", *names} - {".out.bin.abcd_123"}


def test_a_writer_holds_its_file(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"first"
        (mine,) = tmp_path.iterdir()
        os.utime(mine, (0, 0))
        write_atomic(tmp_path / "out.bin", b"another", "write")
        yield b"second"

    write_atomic(tmp_path / "out.bin", pieces(), "write")
    assert (tmp_path / "out.bin").read_bytes() == b"firstsecond"


def test_digests(tmp_path: Path) -> None:
    for size in (0, 1, 1 << 20, (1 << 20) + 1):
        data = bytes(itertools.islice(itertools.cycle(range(251)), size))
        (tmp_path / "file").write_bytes(data)
        assert sha256_file(tmp_path / "file") == sha256(data)
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
