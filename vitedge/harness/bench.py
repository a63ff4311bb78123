"""``vitedge bench``: artifacts, opened in their runtimes, through the load generator, with their circumstances."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vitedge.artifact import Artifact
from vitedge.errors import ImageError, InterruptedError_, InvalidResultError, UsageError
from vitedge.harness.golden import golden_check
from vitedge.harness.load import FLOOR_SAMPLES, Contender, Run
from vitedge.harness.sensors import Sensors, resident_bytes
from vitedge.images import ImageSet, open_picture
from vitedge.progress import Progress, silent
from vitedge.result import Check, Circumstances, Memory, Result, Row, Rules, Scenario, Stopped, Subject, now
from vitedge.runtimes.contract import OpenOptions
from vitedge.runtimes.executed import executed_shares
from vitedge.runtimes.session import open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICTURES = 24
LEAST_ALLOWED_REPEAT = 1e-4  # of the largest logit, between two runs of one session on one input
BLOCKS = 20  # at least so many turns within the minimum duration, and none longer than a second


@dataclass(frozen=True)
class Wish:
    """How to measure; None takes what the artifacts' targets say."""

    scenario: Scenario = "single"
    rate_hz: float | None = None
    duration_s: float | None = None
    warmup_s: float | None = None
    iterations: int = 1
    percentile: float = 95.0
    seed: int = 0

    def rules(self, artifacts: Sequence[Artifact], pictures: str) -> Rules:
        """One set of rules for all: the longest that any of the targets demands.

        Raises:
            UsageError: a wish that contradicts itself.
        """
        if (self.scenario == "camera") != (self.rate_hz is not None):
            raise UsageError(
                f"measure scenario {self.scenario}",
                "a rate of arrivals belongs to the scenario 'camera', and the other way round",
                "use: --scenario camera --rate 30",
            )
        if self.scenario == "camera" and any(artifact.manifest.batch != 1 for artifact in artifacts):
            raise UsageError(
                "measure scenario camera",
                "a camera's pictures come one at a time; an artifact here takes several",
                "export it with: --batch 1",
            )
        bench = [artifact.manifest.target.bench for artifact in artifacts]
        duration_s = max(rules.min_duration_s for rules in bench) if self.duration_s is None else self.duration_s
        return Rules(
            scenario=self.scenario,
            warmup_s=max(rules.warmup_s for rules in bench) if self.warmup_s is None else self.warmup_s,
            min_duration_s=duration_s,
            min_samples=self.iterations,
            percentile=self.percentile,
            block_s=min(1.0, max(0.01, duration_s / BLOCKS)),
            settle=2,
            seed=self.seed,
            pictures=pictures,
            rate_hz=self.rate_hz,
        )


def bench(
    artifacts: Sequence[Artifact],
    wish: Wish | None = None,
    options: OpenOptions | None = None,
    *,
    images: ImageSet | None = None,
    progress: Progress = silent,
) -> Result:
    """Measure artifacts, taking turns within one run.

    Args:
        artifacts: at least one.
        wish: how to measure.
        options: how each is opened.
        images: pictures to preprocess and feed; None takes the artifacts' golden ones and their mirror images.
        progress: called with (task, done, total).

    Raises:
        UsageError: a wish that contradicts itself, or an option that a runtime refuses.
        NotInstalledError: a runtime isn't installed.
        ImageError: too few pictures can be read.
        Stopped: interrupted; it holds what was measured until then.
    """
    wish, options = wish or Wish(), options or OpenOptions()
    rules = wish.rules(artifacts, "golden" if images is None else images.source.name)
    with contextlib.ExitStack() as stack:
        entries: list[_Entry] = []
        for number, artifact in enumerate(artifacts):
            progress("open", number, len(artifacts))
            entries.append(_Entry(artifact, options, stack, _pictures(artifact, images)))
        progress("open", len(artifacts), len(artifacts))
        floors = {entry.shape: entry.floor(stack) for entry in entries}
        run = Run([entry.contender for entry in entries], rules, floors=tuple(floors.values()), sensors=Sensors())

        def result(*, partial: bool) -> Result:
            rows = tuple(entry.row(run, floors[entry.shape]) for entry in entries)
            return Result(created=created, circumstances=where, rows=rows, partial=partial)

        created, where = now(), Circumstances.here()
        try:
            run.measure(progress)
        except (KeyboardInterrupt, InterruptedError_) as stop:
            raise Stopped("measure latency", result(partial=True), stop) from stop
        return result(partial=False)


class _Entry:
    """One artifact under measurement."""

    def __init__(
        self, artifact: Artifact, options: OpenOptions, stack: contextlib.ExitStack, pictures: list[Any]
    ) -> None:
        self.artifact, self.pictures = artifact, pictures
        before, _ = resident_bytes()
        start = time.perf_counter_ns()
        self.session = session = stack.enter_context(open_session(artifact, options))
        self.load_ns = time.perf_counter_ns() - start
        self.frames = _frames([session.preprocess(picture) for picture in pictures], session.batch)
        start = time.perf_counter_ns()
        session.run(self.frames[0])
        self.first_ns = time.perf_counter_ns() - start
        self.before_bytes, (self.after_bytes, _) = before, resident_bytes()
        self.check: Check = golden_check(session)
        self.executed = executed_shares(artifact.manifest.layers, session.executed())
        expected = np.stack([session.run(frame) for frame in self.frames])
        if not np.isfinite(expected).all():
            raise InvalidResultError(
                f"measure {artifact.path}", "the model's output isn't finite", f"run: vitedge verify {artifact.path}"
            )
        self.contender = Contender(
            session,
            self.frames,
            preprocess=self._preprocess,
            postprocess=self._postprocess,
            expected=expected,
            allowed_deviation=max(LEAST_ALLOWED_REPEAT, artifact.manifest.golden.deviation),
            slots=int(session.info.get("slots", 1)),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """What the floor depends on: [batch, h, w, 3, classes]."""
        return (*self.session.input_shape, len(self.session.classes))

    def _preprocess(self, index: int) -> NDArray[np.uint8]:
        return self.session.preprocess(self.pictures[index])

    def _postprocess(self, logits: NDArray[np.float32]) -> list[Any]:
        return [self.session.predictions(row) for row in logits]

    def floor(self, stack: contextlib.ExitStack) -> Contender:
        """The null runtime in this artifact's shapes."""
        from vitedge.runtimes.null.session import null_session

        session = stack.enter_context(null_session(self.artifact))
        return Contender(
            session, self.frames, preprocess=self._preprocess, postprocess=self._postprocess, most=FLOOR_SAMPLES
        )

    def row(self, run: Run, floor: Contender) -> Row:
        """The result's row, with what has been measured so far."""
        memory = Memory(before_bytes=self.before_bytes, after_bytes=self.after_bytes, peak_bytes=resident_bytes()[1])
        return Row(
            subject=Subject.of(self.artifact),
            session=dict(self.session.info),
            precision_executed=self.executed,
            latency=run.latency(
                self.contender, load_ns=self.load_ns, first_ns=self.first_ns, memory=memory, floor=floor
            ),
            checks=(self.check,),
        )


def _pictures(artifact: Artifact, images: ImageSet | None) -> list[Any]:
    """:data:`PICTURES` decoded pictures, PIL images."""
    if images is None:
        golden = [open_picture((artifact.path / name).read_bytes(), name) for name in artifact.manifest.golden.pictures]
        turns = (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
        return [picture if turn is None else picture.transpose(turn) for turn in turns for picture in golden]
    found = list(_readable(images))
    if len(found) < 2:
        raise ImageError(
            "measure on these pictures", f"{images.source} has {len(found)} readable ones", "name at least two"
        )
    return found


def _readable(images: ImageSet) -> Iterator[Any]:
    found = 0
    for index in images.order(0):
        if found == PICTURES:
            return
        with contextlib.suppress(ImageError):
            yield images.read(index)
            found += 1


def _frames(pictures: list[NDArray[np.uint8]], batch: int) -> NDArray[np.uint8]:
    """uint8 [k, batch, h, w, 3]: with batch 1, frame i is picture i; no two neighbouring batches are alike."""
    count = max(2, -(-len(pictures) // batch))
    step = batch + (batch % len(pictures) == 0)
    return np.stack(
        [np.stack([pictures[(turn * step + place) % len(pictures)] for place in range(batch)]) for turn in range(count)]
    )
