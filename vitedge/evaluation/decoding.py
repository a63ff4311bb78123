"""Decode pictures and resize them to the models' sizes ahead of the runtimes, so that these don't wait.

Processes do it, and write the pixels into memory that they share with the caller: Python's lock and a hostile file's
crash stay in there. They're fed through pipes and end with the caller, however it ends. For a few hundred pictures
threads are quicker than starting processes (Pillow works without the lock most of the time).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitedge.core import system
from vitedge.core.environment import for_children
from vitedge.core.isolation import cause_of_death
from vitedge.data.images import ImageSet
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

AHEAD = 2  # chunks that every worker may be ahead
FEWEST_FOR_PROCESSES = 512
MOST_WORKERS = 8
NICE = 5  # the runtime goes first


class Ready(NamedTuple):
    """A chunk of pictures; its frames are valid until the caller asks for the next chunk."""

    end: int  # images of the set up to here
    indices: list[int]  # of those that could be read
    frames: dict[Preprocessing, NDArray[np.uint8]]  # of each contract, uint8 [n, h, w, 3]
    skipped: list[str]  # names of the others


def decoded(
    images: ImageSet, contracts: Sequence[Preprocessing], size: int, *, start: int = 0, workers: int | None = None
) -> Iterator[Ready]:
    """Yield the pictures in chunks of ``size``, in order; each is read and decoded once.

    Args:
        images: what to read.
        contracts: what to make of each picture.
        size: pictures in a chunk.
        start: the first picture.
        workers: processes; 0 is threads of this process, None as many as there are cores, or threads for few pictures.

    Raises:
        ImageError: a decoder crashed.
    """
    starts = range(start, len(images), size)
    if workers is None:
        workers = min(cores(), MOST_WORKERS) if len(images) - start >= FEWEST_FOR_PROCESSES else 0
    if not hasattr(os, "memfd_create"):  # Linux's alone
        workers = 0
    if workers == 0:
        yield from _by_threads(images, contracts, starts)
    elif starts:
        yield from _by_processes(images, contracts, starts, min(workers, len(starts)))


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(system.processors())


def _decode(
    images: ImageSet, contracts: Sequence[Preprocessing], chunk: range, into: Sequence[NDArray[np.uint8]]
) -> tuple[list[int], list[str]]:
    """Decode pictures to ``into``, one array a contract; return (indices of readable pictures, names of the others)."""
    indices: list[int] = []
    skipped: list[str] = []
    for index in chunk:
        try:
            picture = images.read(index)
            for contract, frames in zip(contracts, into, strict=True):
                frames[len(indices)] = contract.apply(picture)
        except ImageError:
            skipped.append(images.records[index].name)
            continue
        indices.append(index)
    return indices, skipped


def _chunk(images: ImageSet, starts: range, number: int) -> range:
    return range(starts[number], min(starts[number] + starts.step, len(images)))


# --- threads ---------------------------------------------------------------------------------------------------------


def _by_threads(images: ImageSet, contracts: Sequence[Preprocessing], starts: range) -> Iterator[Ready]:
    def decode(number: int) -> Ready:
        chunk = _chunk(images, starts, number)
        into = [np.empty((len(chunk), *contract.size, 3), np.uint8) for contract in contracts]
        indices, skipped = _decode(images, contracts, chunk, into)
        frames = {contract: part[: len(indices)] for contract, part in zip(contracts, into, strict=True)}
        return Ready(chunk.stop, indices, frames, skipped)

    threads = min(4, cores())
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Ready]] = deque()
        try:
            for number in range(len(starts)):
                ahead.append(pool.submit(decode, number))
                if len(ahead) > AHEAD * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# --- processes -------------------------------------------------------------------------------------------------------

_CHILD = "import sys; sys.path[:] = {path!r}; from vitedge.evaluation.decoding import _work; _work()"


class _Layout(NamedTuple):
    """The positions of a slot's frames in the shared memory."""

    contracts: tuple[Preprocessing, ...]
    size: int  # pictures in a slot

    @property
    def bytes(self) -> int:
        """The size of one slot in bytes."""
        return sum(self.size * 3 * contract.size[0] * contract.size[1] for contract in self.contracts)

    def frames(self, memory: mmap.mmap, slot: int) -> list[NDArray[np.uint8]]:
        """Return uint8 [size, h, w, 3] of each contract, in the shared memory."""
        views, offset = [], slot * self.bytes
        for contract in self.contracts:
            shape = (self.size, *contract.size, 3)
            views.append(np.frombuffer(memory, np.uint8, int(np.prod(shape)), offset).reshape(shape))
            offset += views[-1].nbytes
        return views


def _by_processes(images: ImageSet, contracts: Sequence[Preprocessing], starts: range, workers: int) -> Iterator[Ready]:
    """Decode by processes: chunk i is for worker i modulo ``workers``; each has :data:`AHEAD` slots, used in turn."""
    layout = _Layout(tuple(contracts), starts.step)
    with contextlib.ExitStack() as stack:
        assert hasattr(os, "memfd_create")
        shared = os.memfd_create("vitedge")  # freed when the last process ends
        stack.callback(os.close, shared)
        os.truncate(shared, layout.bytes * AHEAD * workers)
        memory = mmap.mmap(shared, 0)
        team = [stack.enter_context(_worker(images, layout, shared)) for _ in range(workers)]

        def order(number: int) -> None:
            if number < len(starts):
                _send(team[number % workers], (slot_of(number), _chunk(images, starts, number)))

        def slot_of(number: int) -> int:
            return number % workers * AHEAD + number // workers % AHEAD

        for number in range(AHEAD * workers):
            order(number)
        for number in range(len(starts)):
            indices, skipped = _receive(team[number % workers], images, _chunk(images, starts, number))
            parts = zip(contracts, layout.frames(memory, slot_of(number)), strict=True)
            frames = {contract: part[: len(indices)] for contract, part in parts}
            yield Ready(_chunk(images, starts, number).stop, indices, frames, skipped)
            order(number + AHEAD * workers)


@contextlib.contextmanager
def _worker(images: ImageSet, layout: _Layout, shared: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD.format(path=sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[shared],
        env=for_children(),
        start_new_session=True,  # Ctrl-C is the caller's
    )
    try:
        _send(process, (images, layout, shared))
        yield process
    finally:
        process.kill()
        process.communicate()


def _send(process: subprocess.Popen[bytes], message: object) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended, which receiving will show
        process.stdin.write(pickle.dumps(message))
        process.stdin.flush()


def _receive(process: subprocess.Popen[bytes], images: ImageSet, chunk: range) -> tuple[list[int], list[str]]:
    assert process.stdout is not None
    try:
        indices, skipped = pickle.load(process.stdout)
        return indices, skipped
    except EOFError:
        raise ImageError(
            f"read the pictures {images.records[chunk[0]].name} to {images.records[chunk[-1]].name}",
            cause_of_death(process.wait()),
            "replace the picture that crashes the decoder",
        ) from None


def _work() -> None:
    """Run a worker: read requests from stdin, decode into the shared memory, write the readable indices to stdout."""
    system.lower_priority(NICE)
    images, layout, shared = pickle.load(sys.stdin.buffer)
    memory = mmap.mmap(shared, 0)
    while True:
        try:
            slot, chunk = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        decoded = _decode(images, layout.contracts, chunk, layout.frames(memory, slot))
        sys.stdout.buffer.write(pickle.dumps(decoded))
        sys.stdout.buffer.flush()
