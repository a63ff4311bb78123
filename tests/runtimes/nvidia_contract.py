"""What a session on an NVIDIA GPU has to do, run twice: against the stand-in, and (marked ``gpu``) on real hardware."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vitedge.building.engines import build
from vitedge.core import paths
from vitedge.errors import ArtifactError, UsageError
from vitedge.formats.artifact import Artifact
from vitedge.formats.engines import INDEX
from vitedge.formats.target import Option
from vitedge.runtimes._nvidia import engines
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.session import Session, open_session


@dataclass(frozen=True)
class Place:
    """A GPU (or what stands in for one) and an artifact for it."""

    artifact: Artifact
    expected: Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # the logits, by another way
    tolerance: float  # of the largest logit
    alive: Callable[[], int]  # what is allocated: bytes or things

    def open(self, **options: Option) -> Session:
        return open_session(self.artifact, OpenOptions(options=options))

    def images(self, seed: int = 0) -> NDArray[np.uint8]:
        height, width = self.artifact.manifest.preprocessing.size
        shape = (self.artifact.manifest.batch, height, width, 3)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    def check(self, logits: NDArray[np.float32], seed: int = 0) -> None:
        expected = self.expected(self.images(seed))
        assert logits.shape == expected.shape and logits.dtype == np.float32
        assert np.abs(logits - expected).max() <= self.tolerance * max(1.0, float(np.abs(expected).max()))


class SessionContract:
    """Sub-classes bring the fixture ``place``."""

    @pytest.mark.parametrize("cuda_graph", [False, True])
    @pytest.mark.parametrize("zero_copy", [False, True])
    def test_every_way_gives_the_same_answer(self, place: Place, cuda_graph: bool, zero_copy: bool) -> None:
        with place.open(cuda_graph=cuda_graph, zero_copy=zero_copy) as session:
            for seed in range(3):
                logits, stages = session.run_timed(place.images(seed))
                place.check(logits, seed)
                assert stages.compute is not None and stages.compute > 0
                assert (stages.transfer_in is None) == (stages.transfer_out is None) == zero_copy
            assert (session.info["cuda_graph"], session.info["zero_copy"]) == (cuda_graph, zero_copy)

    def test_the_fastest_way_is_chosen_once(self, place: Place) -> None:
        with place.open() as session:
            first = dict(session.info)
            place.check(session.run(place.images()))
        measured = {name: us for name, us in first.items() if name.endswith("_us")}
        assert measured and all(isinstance(us, int) and us >= 0 for us in measured.values())
        with place.open() as session:
            assert dict(session.info) == first

    @pytest.mark.parametrize("contexts", [1, 3])
    def test_asynchronous_answers_come_to_their_tickets(self, place: Place, contexts: int) -> None:
        with place.open(contexts=contexts) as session:
            tickets = [session.submit(place.images(seed)) for seed in range(5)]
            between = session.run(place.images(9))
            for seed in (2, 0, 4, 3, 1):
                place.check(session.collect(tickets[seed]), seed)
            place.check(between, 9)
            with pytest.raises(UsageError, match="isn't outstanding"):
                session.collect(tickets[0])

    def test_threads_and_event_loops_get_their_own_answers(self, place: Place) -> None:
        async def ask(session: Session) -> list[NDArray[np.float32]]:
            return await asyncio.gather(*(session.run_async(place.images(seed)) for seed in range(6)))

        def many(session: Session, seed: int) -> None:
            for _ in range(5):
                place.check(session.collect(session.submit(place.images(seed))), seed)

        with place.open() as session, ThreadPoolExecutor(3) as threads:
            done = [threads.submit(many, session, seed) for seed in range(3)]
            for seed, logits in enumerate(asyncio.run(ask(session))):
                place.check(logits, seed)
            for each in done:
                each.result()

    def test_opening_and_closing_leaks_nothing(self, place: Place) -> None:
        def once() -> int:
            with place.open() as session:
                session.submit(place.images())  # in flight when it's closed
                session.run(place.images())
            session.close()
            return place.alive()

        once()
        before = once()
        assert [once() for _ in range(3)] == [before] * 3

    def test_the_engine_tells_its_layers(self, place: Place) -> None:
        with place.open() as session:
            assert session.executed() != []
            rounds = session.profile(place.images(), repeats=2)
            assert len(rounds) == 2 and all(time.ns >= 0 for one in rounds for time in one)
            place.check(session.run(place.images()))

    @pytest.mark.parametrize(("field", "other"), [("version", "9.9.9"), ("sm", "1.0"), ("driver", "1.0")])
    def test_a_foreign_engine_is_refused_or_replaced(self, place: Place, field: str, other: str) -> None:
        place.open().close()
        (index,) = (paths.cache_folder() / "engines").rglob(INDEX)
        listed = json.loads(index.read_bytes())
        for one in listed["engines"]:
            one[field] = other
        index.write_text(json.dumps(listed))
        with pytest.raises(ArtifactError, match=f"{other}, here") as refused:
            open_session(place.artifact, OpenOptions(build=False))
        assert refused.value.hint.startswith("run: vitedge build")
        with place.open() as session:
            place.check(session.run(place.images()))
        open_session(place.artifact, OpenOptions(build=False)).close()

    def test_an_exported_engine_is_used(self, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = engines.beside(place.artifact.path)
        build(place.artifact, out=out)
        monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "another device"))
        with open_session(place.artifact, OpenOptions(build=False)) as session:
            place.check(session.run(place.images()))
