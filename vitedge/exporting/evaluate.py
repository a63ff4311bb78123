"""Running a placed graph before it's written, and judging it against the float graph on pictures kept out for that."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from vitedge import runtimes
from vitedge.core.files import sha256
from vitedge.core.progress import Progress, silent
from vitedge.data import embedded
from vitedge.data.images import ImageSet, open_picture
from vitedge.errors import ImageError, UsageError
from vitedge.formats.artifact import Artifact, Calibration, Manifest
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.model_folder import Model
from vitedge.runtimes.base import OpenOptions, Placed
from vitedge.runtimes.here import runs_here
from vitedge.runtimes.session import Session

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

#: Pictures that judge: at most, and of 224 × 224 pixels where no budget asks for more.
MOST, USUAL = 2048, 256
#: Fewer than this aren't worth more than those that were calibrated on.
LEAST = 64


@dataclass(frozen=True)
class Trial:
    """A placed graph that runs, though it isn't written yet."""

    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # uint8 [n, h, w, 3] -> float32 [n, classes], any n
    executed_by: str
    session: Session | None  # None: the arithmetic is interpreted, because the target isn't here


@contextlib.contextmanager
def trial(manifest: Manifest, placed: Placed, action: str, *, threads: int | None = 1) -> Iterator[Trial]:
    """Open a placed graph in its runtime where that runs here, else interpret its arithmetic.

    Args:
        manifest: as it will be written, or nearly.
        placed: the graph.
        action: the wish, for error texts.
        threads: of a session; None: the target's.

    Raises:
        NotInstalledError: neither the runtime nor the interpreter is here.
        ArtifactError: the runtime can't open it.
    """
    target = manifest.target
    if not runs_here(target) and placed.interpretable is not None:
        from vitedge.runtimes.interpreter import run_graph

        graph = placed.interpretable
        version = runtimes.require("onnxruntime", action)
        yield Trial(lambda frames: run_graph(graph, frames), f"interpreted by onnxruntime {version}", None)
        return
    version = runtimes.require(target.runtime, action)
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        for name, data in placed.files.items():
            (Path(folder) / name).write_bytes(data)
        artifact = Artifact(Path(folder), manifest)
        backend = runtimes.part(target.runtime, "session").open_backend(artifact, OpenOptions(threads=threads))
        with Session(artifact, backend) as session:

            def run(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
                return np.stack(list(session.map_batches(frames)))

            yield Trial(run, f"{target.runtime} {version}", session)


@dataclass(frozen=True)
class Jury:
    """Pictures, and what the float graph says of them."""

    source: str
    seen: Literal["held-out", "calibration"]
    names: tuple[str, ...]
    frames: NDArray[np.uint8]  # [n, h, w, 3]
    reference: NDArray[np.float32]  # [n, classes]
    labels: NDArray[np.int64] | None  # [n]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the pictures and of what the float graph says of them."""
        return sha256(self.frames.tobytes() + self.reference.tobytes())

    def judge(self, trial: Trial, count: int | None = None) -> Fidelity:
        """What the trial loses on the first ``count`` pictures, or on all."""
        from vitedge.evaluation.fidelity import fidelity

        return fidelity(
            self.reference[:count],
            trial.run(self.frames[:count]),
            pictures=self.names[:count],
            classes=self.classes,
            labels=None if self.labels is None else self.labels[:count],
            source=self.source,
            seen=self.seen,
            executed_by=trial.executed_by,
        )


def usual(size: tuple[int, int]) -> int:
    """How many pictures of this size judge where no budget asks for more: smaller ones cost less."""
    return min(MOST, USUAL * 224 * 224 // (size[0] * size[1]) or 1)


def summon(
    model: Model,
    graph: onnx.ModelProto,
    calibrated: ImageSet,
    calibration: Calibration,
    held_out: ImageSet | None,
    *,
    seed: int,
    most: int,
    action: str,
    progress: Progress = silent,
) -> Jury:
    """The pictures that judge, with the float graph's logits.

    The user's held-out pictures; else, for the embedded model, the embedded ones; else those that calibration left
    over. Where fewer than :data:`LEAST` are left, the calibrated ones judge, and the record says so.

    Args:
        model: the model folder.
        graph: its float graph.
        calibrated: where the calibration images came from.
        calibration: which of them were used.
        held_out: the user's own.
        seed: of the order.
        most: pictures at most.
        action: the wish, for error texts.
        progress: called with ("judge", pictures done, pictures).

    Raises:
        UsageError: a held-out picture is for display alone or was calibrated on; none can be read.
    """
    from vitedge.runtimes.interpreter import run_graph

    own = held_out if held_out is not None else _embedded(model)
    known = set(calibration.image_digests)
    images = calibrated if own is None else own
    readable = list(_readable(model, images, seed, most, lambda digest: digest[:16] not in known))
    if own is None and len(readable) < LEAST:
        readable = list(_readable(model, images, seed, most, lambda digest: digest[:16] in known))
    elif own is not None and len(readable) < min(len(own), most):
        both = [digest for digest in _digests(own) if digest[:16] in known]
        if both:
            raise UsageError(
                action,
                f"{len(both)} of the {len(own)} held-out pictures of {own.source.name} were calibrated on",
                "hold out pictures that calibration doesn't see",
            )
    if not readable:
        raise UsageError(action, f"no picture of {images.source} can be read", "name others: --held-out DIR")
    embedded.refuse_display({digest for _, digest, _ in readable}, action)
    seen: Literal["held-out", "calibration"] = "calibration" if readable[0][1][:16] in known else "held-out"
    frames = np.stack([frame for _, _, frame in readable])
    indices = [index for index, _, _ in readable]
    logits = []
    for start in range(0, len(frames), 64):
        progress("judge", start, len(frames))
        logits.append(run_graph(graph, frames[start : start + 64], optimized=True))
    progress("judge", len(frames), len(frames))
    return Jury(
        source=images.source.name,
        seen=seen,
        names=tuple(images.records[index].name for index in indices),
        frames=frames,
        reference=np.concatenate(logits),
        labels=_labels(model, images, indices, required=held_out is not None and bool(images.classes), action=action),
        classes=tuple(entry.name for entry in model.record.classes),
    )


def _embedded(model: Model) -> ImageSet | None:
    return embedded.pictures("held-out") if model.record.origin.kind == "embedded" else None


def _readable(
    model: Model, images: ImageSet, seed: int, most: int, wanted: Callable[[str], bool]
) -> Iterator[tuple[int, str, NDArray[np.uint8]]]:
    """(index, digest, model input) of the first ``most`` readable and wanted pictures of the seeded order."""
    found = 0
    for index in images.order(seed):
        if found == most:
            return
        with contextlib.suppress(ImageError):
            data = images.read_bytes(index)
            digest = sha256(data)
            if wanted(digest):
                yield index, digest, model.record.preprocessing.apply(open_picture(data, images.records[index].name))
                found += 1


def _digests(images: ImageSet) -> Iterator[str]:
    for index in range(len(images)):
        with contextlib.suppress(ImageError):
            yield images.digest(index)


def _labels(
    model: Model, images: ImageSet, indices: Sequence[int], *, required: bool, action: str
) -> NDArray[np.int64] | None:
    """True class ids, or None where the folders aren't the model's classes.

    Raises:
        UsageError: they have to be, and aren't.
    """
    folders = [entry.folder for entry in model.record.classes]
    try:
        labels = images.labels(folders, action=action)
    except UsageError:
        if required:
            raise
        return None
    return np.asarray(labels[list(indices)])
