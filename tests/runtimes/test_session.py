"""The session between its callers and a backend: who waits for whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tests.contract import artifacts
from tests.contract.conftest import NULL
from vitedge.errors import UsageError
from vitedge.formats.artifact import Artifact
from vitedge.runtimes.null.session import FAULTS, NullBackend
from vitedge.runtimes.session import Session

SLOW, QUICK = 1, 2  # what a picture's first byte says


class Waiting(NullBackend):
    """Two slots; an inference of the picture SLOW is over when ``over`` is set."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(1, len(artifact.manifest.classes), FAULTS, device="null", threads=1)
        self.slots = 2
        self.over, self.waited_for, self.closed = threading.Event(), threading.Semaphore(0), False
        self._slow: set[int] = set()

    def submit(self, images: np.ndarray) -> int:
        ticket = super().submit(images)
        if images[0, 0, 0, 0] == SLOW:
            self._slow.add(ticket)
        return ticket

    def wait(self, ticket: int) -> None:
        if ticket in self._slow:
            self.waited_for.release()
            self.over.wait()

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifacts.make(tmp_path_factory.mktemp("null") / "artifact", NULL, NULL.candidate[0])


@pytest.fixture
def backend(artifact: Artifact) -> Iterator[Waiting]:
    made = Waiting(artifact)
    yield made
    made.over.set()


def picture(artifact: Artifact, first: int) -> np.ndarray:
    return np.full((1, *artifact.manifest.preprocessing.size, 3), first, np.uint8)


def collected_meanwhile(session: Session, backend: Waiting) -> tuple[threading.Thread, list[int]]:
    """A thread that waits for the picture SLOW, and where its answer will be."""
    slow, answers = session.submit(picture(session.artifact, SLOW)), list[int]()
    waiting = threading.Thread(target=lambda: answers.append(int(session.collect(slow).argmax())))
    waiting.start()
    backend.waited_for.acquire()
    return waiting, answers


def test_who_waits_for_an_answer_keeps_nobody_from_submitting(artifact: Artifact, backend: Waiting) -> None:
    session = Session(artifact, backend)
    waiting, answers = collected_meanwhile(session, backend)
    quick = session.collect(session.submit(picture(artifact, QUICK)))
    assert (quick.argmax(), answers) == (QUICK, [])
    backend.over.set()
    waiting.join()
    assert answers == [SLOW]
    session.close()


def test_closing_waits_for_who_collects(artifact: Artifact, backend: Waiting) -> None:
    session = Session(artifact, backend)
    waiting, answers = collected_meanwhile(session, backend)
    closing = threading.Thread(target=session.close)
    closing.start()
    while session._backend is not None:
        pass
    assert not backend.closed
    with pytest.raises(UsageError, match="closed"):
        session.run(picture(artifact, QUICK))
    backend.over.set()
    for thread in (waiting, closing):
        thread.join()
    assert backend.closed and answers == [SLOW]


def test_asynchronous_calls_overlap_and_closing_refuses_those_that_wait(artifact: Artifact, backend: Waiting) -> None:
    session = Session(artifact, backend)

    async def ask() -> list[object]:
        slow = [asyncio.create_task(session.run_async(picture(artifact, SLOW))) for _ in range(2)]
        waits = asyncio.create_task(session.run_async(picture(artifact, QUICK)))
        for _ in slow:
            await asyncio.to_thread(backend.waited_for.acquire)
        closing = asyncio.create_task(asyncio.to_thread(session.close))
        while session._backend is not None:
            await asyncio.sleep(0)
        backend.over.set()
        await closing
        return await asyncio.gather(*slow, waits, return_exceptions=True)

    *answered, refused = asyncio.run(ask())
    assert [int(np.argmax(logits)) for logits in answered] == [SLOW, SLOW]
    assert isinstance(refused, UsageError) and "closed" in str(refused)
