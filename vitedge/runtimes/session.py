"""The session: the only thing that bench, eval, verify, classify and stream know of a runtime."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from vitedge import runtimes
from vitedge.data.images import open_picture, read_picture
from vitedge.errors import InvalidResultError, UsageError
from vitedge.formats.artifact import Artifact
from vitedge.formats.target import Option
from vitedge.runtimes.base import Backend, Executed, LayerTime, OpenOptions, Stages
from vitedge.runtimes.options import TOP_K

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    #: A PIL image, uint8 RGB [H, W, 3], a picture file, or its content.
    Picture = Image.Image | NDArray[np.uint8] | str | Path | bytes

Answer = TypeVar("Answer")


class Prediction(NamedTuple):
    """One answer of :meth:`Session.classify`."""

    label: str
    probability: float


class Session:
    """An artifact, opened in its runtime.

    Any thread may call any method. ``run``, ``classify``, ``executed`` and ``profile`` have the runtime to themselves:
    calls from several threads are served one after the other. Inferences that ``submit``, ``run_async`` and
    ``classify_async`` start overlap, at most :attr:`slots` of them at once.
    Several sessions run at the same time. A session belongs to its process: open one after a fork, not before.

    Use it as a context manager, or call :meth:`close`.
    """

    def __init__(self, artifact: Artifact, backend: Backend) -> None:
        self.artifact = artifact
        self.classes = artifact.manifest.classes
        self._backend: Backend | None = backend
        self._lock = threading.Lock()
        self._collecting, self._collected = 0, threading.Condition(self._lock)
        self._workers = ThreadPoolExecutor(backend.slots, "vitedge-session")  # threads start when they're first wanted
        height, width = artifact.manifest.preprocessing.size
        self.input_shape = (backend.batch, height, width, 3)

    @property
    def batch(self) -> int:
        """Pictures per inference; :meth:`run` refuses another number."""
        return self.input_shape[0]

    @property
    def slots(self) -> int:
        """Inferences that overlap when they're started by ``submit``, ``run_async`` or ``classify_async``."""
        return self._open().slots

    @property
    def info(self) -> Mapping[str, Option]:
        """Runtime, version, device, threads and options, as read back from the runtime.

        Of an artifact with candidates also which of them runs, and why.
        """
        info, because = self._open().info, self.artifact.because
        return {**info, "candidate": self.artifact.manifest.variant, "because": because} if because else info

    def preprocess(self, picture: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """PIL image or uint8 RGB [H, W, 3] to uint8 RGB [h, w, 3] at the model's size.

        Raises:
            ImageError: not such a picture.
        """
        return self.artifact.manifest.preprocessing.apply(picture)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Uint8 [batch, h, w, 3] to float32 logits [batch, classes], an owned copy.

        Raises:
            UsageError: another dtype or shape.
        """
        return self.run_timed(images)[0]

    def run_timed(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Stages]:
        """Run as :meth:`run` does; also return the nanoseconds of each stage (None where it can't be separated)."""
        self._check(images)
        with self._lock:
            logits, stages = self._open().infer(images)
            return np.array(logits, dtype=np.float32), stages

    def submit(self, images: NDArray[np.uint8]) -> int:
        """Start an asynchronous inference of uint8 [batch, h, w, 3]; returns the ticket for :meth:`collect`.

        The pictures are copied. While all slots are busy, it waits for one.
        """
        self._check(images)
        with self._lock:
            return self._open().submit(images)

    def collect(self, ticket: int) -> NDArray[np.float32]:
        """Wait for a submitted inference; float32 logits [batch, classes], owned. Other threads can submit meanwhile.

        Raises:
            UsageError: no such ticket is outstanding.
        """
        with self._lock:
            backend = self._open()
            self._collecting += 1  # close() waits for it
        try:
            backend.wait(ticket)
            with self._lock:
                return backend.collect(ticket)
        except KeyError:
            raise UsageError(
                "collect an inference", f"ticket {ticket} isn't outstanding", "collect each ticket once"
            ) from None
        finally:
            with self._collected:
                self._collecting -= 1
                self._collected.notify_all()

    async def run_async(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run as :meth:`run` does, without blocking the event loop; don't change ``images`` before it returns.

        At most :attr:`slots` calls are at work, the others wait in the order in which they came. A cancelled call that
        waits is never started; one that is at work is finished, and its answer dropped.

        Raises:
            UsageError: another dtype or shape; the session is closed.
        """
        self._check(images)
        return await self._in_slot(self._inferred, images)

    async def classify_async(self, picture: Picture, top_k: int = TOP_K) -> list[Prediction]:
        """Classify as :meth:`classify` does, without blocking the event loop; order, cancelling as :meth:`run_async`.

        Raises:
            ImageError: the picture can't be read.
            InvalidResultError: the logits aren't finite.
            UsageError: the session is closed.
        """
        return await self._in_slot(self._classified, picture, top_k, self._inferred)

    def _in_slot(self, call: Callable[..., Answer], *arguments: object) -> asyncio.Future[Answer]:
        self._open()
        return asyncio.get_running_loop().run_in_executor(self._workers, call, *arguments)

    def _inferred(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.collect(self.submit(images))

    def map_batches(self, images: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Logits [classes] for each uint8 [h, w, 3], in order; the last batch is padded and the padding dropped."""
        group: list[NDArray[np.uint8]] = []
        for image in images:
            self._check(image, self.input_shape[1:])
            group.append(image)
            if len(group) == self.batch:
                yield from self.run(np.stack(group))
                group = []
        if group:
            yield from self.run(self._padded(group))[: len(group)]

    def _padded(self, group: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.stack(group + [group[-1]] * (self.batch - len(group)))

    def classify(self, picture: Picture, top_k: int = TOP_K) -> list[Prediction]:
        """The ``top_k`` most probable classes of one picture, best first.

        Args:
            picture: a PIL image, uint8 RGB [H, W, 3], a picture file, or its content.
            top_k: classes to return.

        Raises:
            ImageError: the picture can't be read.
            InvalidResultError: the logits aren't finite.
        """
        return self._classified(picture, top_k, self.run)

    def _classified(
        self,
        picture: Picture,
        top_k: int,
        run: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    ) -> list[Prediction]:
        if isinstance(picture, bytes):
            picture = open_picture(picture, "that was given")
        elif isinstance(picture, (str, Path)):
            picture = read_picture(Path(picture))
        return self.predictions(run(self._padded([self.preprocess(picture)]))[0], top_k)

    def predictions(self, logits: NDArray[np.float32], top_k: int = TOP_K) -> list[Prediction]:
        """Logits [classes] to the ``top_k`` best predictions.

        Raises:
            InvalidResultError: the logits aren't finite.
        """
        if not np.isfinite(logits).all():
            raise InvalidResultError(
                "classify a picture", "the model's output isn't finite", "run: vitedge verify ARTIFACT"
            )
        probabilities = self.artifact.manifest.preprocessing.probabilities(logits)
        best = np.argsort(-probabilities, kind="stable")[: max(1, top_k)]
        return [Prediction(self.classes[index].name, float(probabilities[index])) for index in best]

    def executed(self) -> list[Executed]:
        """The graph as the runtime executes it: (name, operator, type)."""
        with self._lock:
            return self._open().executed()

    def layer_information(self) -> str | None:
        """The runtime's own description of what it compiled, in its own format; None where it has none."""
        with self._lock:
            describe = getattr(self._open(), "layer_information", None)
            return None if describe is None else str(describe())

    def profile(self, images: NDArray[np.uint8], repeats: int = 20) -> list[list[LayerTime]]:
        """Per-node times of ``repeats`` inferences of uint8 [batch, h, w, 3]."""
        self._check(images)
        with self._lock:
            return self._open().profile(images, repeats)

    def close(self) -> None:
        """Release the runtime when running calls end; waiting calls are refused. Calling it twice is harmless."""
        with self._lock:
            backend, self._backend = self._backend, None
        if backend is not None:
            self._workers.shutdown()
            with self._collected:
                self._collected.wait_for(lambda: not self._collecting)
            backend.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Backend:
        if self._backend is None:
            raise UsageError("use a session", "it's closed", "open the artifact again")
        return self._backend

    def _check(self, images: NDArray[np.uint8], shape: tuple[int, ...] | None = None) -> None:
        expected = shape or self.input_shape
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != expected:
            received = f"{getattr(images, 'dtype', type(images).__name__)} {list(np.shape(images))}"
            raise UsageError(
                "run the input 'image'",
                f"received {received}; expected uint8 {list(expected)}",
                "use session.preprocess and stack, or session.map_batches",
            )


def open_session(artifact: Artifact | str | Path, options: OpenOptions | None = None) -> Session:
    """Open an artifact in its target's runtime.

    Raises:
        NotInstalledError: the runtime isn't installed (the extra is named).
        ArtifactError: the artifact is damaged, or this runtime version can't load it.
    """
    if not isinstance(artifact, Artifact):
        artifact = Artifact.open(artifact)
    runtime = artifact.manifest.target.runtime
    runtimes.require(runtime, f"open the artifact {artifact.path}")
    backend = runtimes.part(runtime, "session").open_backend(artifact, options or OpenOptions())
    return Session(artifact, backend)
