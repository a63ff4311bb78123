"""Pictures decoded ahead: the same pixels from threads and from processes, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from tests.benchmarking.nulls import PREPROCESSING, labelled
from vitedge.data.images import ImageSet
from vitedge.errors import ImageError
from vitedge.evaluation import decoding
from vitedge.evaluation.decoding import Ready, decoded

LARGE = replace(PREPROCESSING, size=(12, 10), interpolation="bicubic")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = labelled(tmp_path_factory.mktemp("data") / "pictures", each=7)  # 42 pictures
    (folder / "bee" / "002.png").write_bytes(b"no picture")
    return ImageSet.open(folder)


def kept(chunks: list[Ready]) -> list[tuple[int, list[int], list[str]]]:
    return [(chunk.end, chunk.indices, chunk.skipped) for chunk in chunks]


def copied(images: ImageSet, workers: int, start: int = 0, size: int = 5) -> list[Ready]:
    """The chunks, with frames that are ours to keep."""
    found = decoded(images, [PREPROCESSING, LARGE], size, start=start, workers=workers)
    return [ready._replace(frames={k: v.copy() for k, v in ready.frames.items()}) for ready in found]


@pytest.mark.parametrize("start", [0, 13])
def test_processes_give_what_threads_give(images: ImageSet, start: int) -> None:
    threads, processes = (copied(images, workers, start) for workers in (0, 2))
    assert kept(threads) == kept(processes)
    for ours, theirs in zip(threads, processes, strict=True):
        for contract in (PREPROCESSING, LARGE):
            assert ours.frames[contract].shape == (len(ours.indices), *contract.size, 3)
            assert np.array_equal(ours.frames[contract], theirs.frames[contract])
    expected = [index for index in range(start, 42) if images.records[index].name != "bee/002.png"]
    assert [index for chunk in threads for index in chunk.indices] == expected
    whole = [frame for chunk in processes for frame in chunk.frames[LARGE]]
    for index, frame in zip(expected, whole, strict=True):
        assert np.array_equal(frame, LARGE.apply(images.read(index)))


def test_more_workers_than_chunks_and_nothing_to_do(images: ImageSet) -> None:
    assert len(copied(images, 6, size=30)) == 2
    assert copied(images, 2, start=42) == copied(images, 0, start=42) == []


def children() -> set[int]:
    listed = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(number) for file in listed for number in file.read_text().split()}


def test_workers_end_with_the_loop(images: ImageSet) -> None:
    before = children()
    for _ in decoded(images, [PREPROCESSING], 5, workers=2):
        assert len(children() - before) == 2
        break
    assert children() <= before


def test_a_crash_stays_in_its_process(images: ImageSet) -> None:
    before = children()
    found = decoded(images, [PREPROCESSING], 5, workers=1)
    next(found)
    (worker,) = children() - before
    os.kill(worker, signal.SIGSEGV)
    with pytest.raises(ImageError, match=r"(?s)read the pictures .* to .*killed by SIGSEGV"):
        list(found)


def test_workers_do_not_outlive_a_killed_caller(images: ImageSet) -> None:
    code = (
        f"import sys, time; sys.path[:] = {sys.path!r}\n"
        "from tests.benchmarking.nulls import PREPROCESSING\n"
        "from tests.evaluation.test_decoding import children\n"
        "from vitedge.evaluation.decoding import decoded\n"
        "from vitedge.data.images import ImageSet\n"
        f"found = decoded(ImageSet.open({str(images.source)!r}), [PREPROCESSING], 5, workers=2)\n"
        "next(found); print(*children(), flush=True); time.sleep(60)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    workers = [int(number) for number in caller.stdout.readline().split()]
    assert len(workers) == 2
    caller.kill()
    caller.communicate()
    deadline = time.monotonic() + 30
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_processes_serve_many_pictures_and_threads_few(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    next(decoded(images, [PREPROCESSING], 5))
    assert children() <= before
    monkeypatch.setattr(decoding, "FEWEST_FOR_PROCESSES", 42)
    found = decoded(images, [PREPROCESSING], 5)
    next(found)
    assert children() - before
    found.close()  # type: ignore[attr-defined]
