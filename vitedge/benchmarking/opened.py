"""One artifact under measurement: opened in its runtime, with its inputs and all values of a result's row."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vitedge.benchmarking.arrivals import Arrivals, Replay
from vitedge.benchmarking.interleaving import Run
from vitedge.benchmarking.load import OVERHEAD_SAMPLES, Workload
from vitedge.benchmarking.memory import memory_alone
from vitedge.benchmarking.options import PICTURES
from vitedge.benchmarking.profile import REPEATS, profile_of
from vitedge.benchmarking.protocols import run_protocol
from vitedge.data.images import ImageSet, open_picture
from vitedge.device.nvml import Nvml
from vitedge.device.sensors import resident_bytes
from vitedge.errors import ImageError, InvalidResultError
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import Check, Row, Subject
from vitedge.formats.samples import Memory, Profile, ProtocolRun
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.executed import executed_fractions
from vitedge.runtimes.session import open_session
from vitedge.verification.golden import golden_check

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_EXPECTED = 64  # frames that are run for reference beforehand: a clip has thousands
MIN_ALLOWED_DEVIATION = 1e-4  # of the largest logit, between two runs of one session on one input


class OpenArtifact:
    """An open artifact and its workload.

    Args:
        artifact: to open.
        options: how.
        stack: closes the session.
        pictures: decoded ones to feed.
        replay: their arrivals in scenario ``camera``; None: the steady rate of the rules.
        nvml: the GPU that it runs on, for its memory.
        alone: read its memory in a separate process.
        before: its row of an interrupted run, which goes on here.
    """

    def __init__(
        self,
        artifact: Artifact,
        options: OpenOptions,
        stack: contextlib.ExitStack,
        pictures: Sequence[Any],
        *,
        replay: Replay | None = None,
        nvml: Nvml | None = None,
        alone: bool = False,
        before: Row | None = None,
    ) -> None:
        self.artifact, self.pictures, self._replay, self._before = artifact, pictures, replay, before
        memory_before, device_before = resident_bytes()[0], nvml.memory_used() if nvml else None
        start = time.perf_counter_ns()
        self.session = session = stack.enter_context(open_session(artifact, options))
        self.load_ns = time.perf_counter_ns() - start
        self.frames = _frames([self._preprocess(index) for index in range(len(pictures))], session.batch)
        start = time.perf_counter_ns()
        session.run(self.frames[0])
        self.first_ns = time.perf_counter_ns() - start
        self._memory = Memory(
            before_bytes=memory_before,
            after_bytes=resident_bytes()[0],
            peak_bytes=None,
            device_before_bytes=device_before,
            device_after_bytes=nvml.memory_used() if nvml else None,
        )
        self._alone = memory_alone(artifact.path, options) if alone else None
        self.check: Check = golden_check(session)
        self.executed = executed_fractions(artifact.manifest.layers, session.executed())
        every = max(1, len(self.frames) // MAX_EXPECTED)
        expected = {index: session.run(self.frames[index]) for index in range(0, len(self.frames), every)}
        if not all(np.isfinite(logits).all() for logits in expected.values()):
            raise InvalidResultError(
                f"measure {artifact.path}", "the model's output isn't finite", f"run: vitedge verify {artifact.path}"
            )
        self.workload = Workload(
            session,
            self.frames,
            preprocess=self._preprocess,
            postprocess=self._postprocess,
            expected=expected,
            allowed_deviation=max(MIN_ALLOWED_DEVIATION, artifact.manifest.golden.deviation),
            slots=self._slots,
            arrivals=self._arrivals(),
        )
        if before is not None and before.latency is not None:
            self.workload.resume(before.latency.samples, before.latency.audit)
        self.profile: Profile | None = before.profile if before is not None else None
        self.protocol_runs: tuple[ProtocolRun, ...] = ()

    @property
    def _slots(self) -> int:
        return int(self.session.info.get("slots", 1))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shapes that the overhead depends on: [batch, h, w, 3, classes]."""
        return (*self.session.input_shape, len(self.session.classes))

    def _arrivals(self) -> Arrivals | None:
        return None if self._replay is None else Arrivals.replayed(self._replay.times_ns)

    def _preprocess(self, index: int) -> NDArray[np.uint8]:
        picture = self.pictures[index]
        prepared = self._replay is not None and self._replay.prepared
        return picture if prepared else self.session.preprocess(picture)

    def _postprocess(self, logits: NDArray[np.float32]) -> list[Any]:
        return [self.session.predictions(row) for row in logits]

    def overhead(self, stack: contextlib.ExitStack) -> Workload:
        """Return the null runtime in this artifact's shapes."""
        from vitedge.runtimes.null.session import null_session

        session = stack.enter_context(null_session(self.artifact))
        workload = Workload(
            session,
            self.frames,
            preprocess=self._preprocess,
            postprocess=self._postprocess,
            max_block_samples=OVERHEAD_SAMPLES,
            arrivals=self._arrivals(),
        )
        if self._before is not None and self._before.latency is not None and self._before.latency.overhead is not None:
            workload.resume(self._before.latency.overhead, None)
        return workload

    def take_profile(self) -> None:
        """Measure per-layer times, in a session that the runtime opens for them."""
        self.profile = profile_of(self.session.profile(self.frames[0], REPEATS))

    def run_protocol(self, tool: str, duration_s: float | None) -> None:
        """Measure as another tool does, too."""
        run = run_protocol(tool, self.session, list(self.frames), self._slots, duration_s)
        self.protocol_runs = (*self.protocol_runs, run)

    def row(self, run: Run, overhead: Workload) -> Row:
        """Return the result's row, with the measurements so far."""
        before = self._before.latency if self._before is not None else None
        return Row(
            subject=Subject.of(self.artifact),
            session=dict(self.session.info),
            precision_executed=self.executed,
            latency=run.latency(
                self.workload,
                load_ns=before.load_ns if before is not None else self.load_ns,
                first_ns=before.first_ns if before is not None else self.first_ns,
                memory=self._memory_now(),
                overhead=overhead,
            ),
            checks=(self.check,),
            profile=self.profile,
            protocol_runs=self.protocol_runs,
        )

    def _memory_now(self) -> Memory:
        from msgspec.structs import replace

        in_process = self._memory
        if self._alone is None:
            return replace(in_process, peak_bytes=resident_bytes()[1])
        return replace(
            self._alone,
            device_before_bytes=in_process.device_before_bytes,
            device_after_bytes=in_process.device_after_bytes,
        )


def pictures_of(artifact: Artifact, images: ImageSet | None) -> list[Any]:
    """Return :data:`PICTURES` decoded pictures, PIL images: of ``images``, or the golden ones and their mirror images.

    Raises:
        ImageError: fewer than two can be read.
    """
    if images is None:
        golden = [open_picture((artifact.path / name).read_bytes(), name) for name in artifact.manifest.golden.pictures]
        flips = (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
        return [picture if flip is None else picture.transpose(flip) for flip in flips for picture in golden]
    pictures = list(_readable(images))
    if len(pictures) < 2:
        raise ImageError(
            "measure on these pictures", f"{images.source} has {len(pictures)} readable ones", "name at least two"
        )
    return pictures


def _readable(images: ImageSet) -> Iterator[Any]:
    count = 0
    for index in images.order(0):
        if count == PICTURES:
            return
        with contextlib.suppress(ImageError):
            yield images.read(index)
            count += 1


def _frames(pictures: list[NDArray[np.uint8]], batch: int) -> NDArray[np.uint8]:
    """Return uint8 [k, batch, h, w, 3]: with batch 1, frame i is picture i; no two neighbouring batches are equal."""
    count = max(2, -(-len(pictures) // batch))
    step = batch + (batch % len(pictures) == 0)
    return np.stack(
        [
            np.stack([pictures[(number * step + position) % len(pictures)] for position in range(batch)])
            for number in range(count)
        ]
    )
