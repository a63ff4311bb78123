"""The hold-out set: pictures that calibration doesn't see, with the float graph's logits to compare with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from vitedge.core.files import sha256
from vitedge.core.progress import Progress, silent
from vitedge.data import embedded
from vitedge.data.images import ImageSet, open_picture
from vitedge.errors import ImageError, UsageError
from vitedge.exporting.runnable import Runnable
from vitedge.formats.artifact import Calibration
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.model_folder import Model
from vitedge.quantization.calibrate import digests_of

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

#: Hold-out pictures: at most, and of 224 × 224 pixels where no budget asks for more.
MOST, USUAL = 2048, 256
#: Pictures per inference of the float graph.
BATCH = 64


@dataclass(frozen=True)
class HoldOut:
    """Pictures and the float graph's logits of them."""

    source: str  # name of the data set
    names: tuple[str, ...]
    frames: NDArray[np.uint8]  # [n, h, w, 3]
    reference: NDArray[np.float32]  # [n, classes]: the float graph's logits
    labels: NDArray[np.int64] | None  # [n]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the pictures and of the float graph's logits."""
        return sha256(self.frames.tobytes() + self.reference.tobytes())

    def evaluate(self, runnable: Runnable, count: int | None = None) -> Fidelity:
        """Compare a graph with the float graph on the first ``count`` pictures, or on all."""
        from vitedge.evaluation.fidelity import fidelity

        return fidelity(
            self.reference[:count],
            runnable.run(self.frames[:count]),
            pictures=self.names[:count],
            classes=self.classes,
            labels=None if self.labels is None else self.labels[:count],
            source=self.source,
            split="held-out",
            executed_by=runnable.executed_by,
        )


def usual(size: tuple[int, int]) -> int:
    """Return the usual number of hold-out pictures of this size, where no budget needs more: smaller ones cost less."""
    return min(MOST, USUAL * 224 * 224 // (size[0] * size[1]) or 1)


def load_hold_out(
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
) -> HoldOut:
    """Read the hold-out pictures and run the float graph on them.

    They are the user's, or the embedded model's, or those of the calibration images' set that weren't observed: by the
    same seeded order, after the observed ones. None equals an observed one.

    Args:
        model: the model folder.
        graph: its float graph.
        calibrated: where the calibration images came from.
        calibration: which of them were used.
        held_out: another set to take them from.
        seed: of the order.
        most: pictures at most.
        action: for error texts.
        progress: called with ("hold-out pictures", done, total).

    Raises:
        UsageError: a hold-out picture is for display alone or was calibrated on; none can be read.
    """
    images = calibrated if held_out is None else held_out
    used = set(calibration.image_digests)
    pictures = list(_read(model, images, seed, most, lambda digest: digest[:16] not in used))
    if held_out is not None and len(pictures) < min(len(held_out), most):
        _refuse_overlap(digests_of(held_out, range(len(held_out))), used, held_out, action)
    if not pictures:
        reason = "none of its others can be read and differs from those" if held_out is None else "none can be read"
        where = f"{calibration.count} pictures of {images.source} were observed, and " if held_out is None else ""
        raise UsageError(action, f"{where}{reason}", "name hold-out pictures: --held-out DIR")
    indices = [index for index, _ in pictures]
    embedded.refuse_display(images, indices, model.record.origin.kind, action)
    frames = np.stack([frame for _, frame in pictures])
    labels = class_ids(model, images, required=held_out is not None and bool(images.classes), action=action)
    return HoldOut(
        source=images.source.name,
        names=tuple(images.records[index].name for index in indices),
        frames=frames,
        reference=float_logits(graph, frames, progress),
        labels=None if labels is None else labels[indices],
        classes=tuple(entry.name for entry in model.record.classes),
    )


def refuse_unfit(
    model: Model, images: ImageSet, indices: Sequence[int], calibrated: Sequence[str], action: str
) -> None:
    """Check hold-out pictures by their contents.

    Args:
        model: the model folder.
        images: their set.
        indices: those that would be used.
        calibrated: hex SHA-256 of what will be observed.
        action: for error texts.

    Raises:
        UsageError: one is for display alone, or there are no others for those that were calibrated on.
    """
    embedded.refuse_display(images, indices, model.record.origin.kind, action)
    if len(indices) == len(images):
        _refuse_overlap(digests_of(images, indices), {digest[:16] for digest in calibrated}, images, action)


def _read(
    model: Model, images: ImageSet, seed: int, most: int, wanted: Callable[[str], bool]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the first ``most`` pictures of the seeded order that can be read and whose digest is wanted.

    Of each its number in the set, and the model's input, uint8 [h, w, 3].
    """
    count = 0
    for index in images.order(seed):
        if count == most:
            return
        with contextlib.suppress(ImageError):
            data = images.read_bytes(index)
            if wanted(sha256(data)):
                yield index, model.record.preprocessing.apply(open_picture(data, images.records[index].name))
                count += 1


def _refuse_overlap(digests: Sequence[str], calibrated: set[str], images: ImageSet, action: str) -> None:
    """Raises: UsageError: some of the pictures of these digests were used for calibration."""
    overlap = sum(digest[:16] in calibrated for digest in digests if digest)
    if overlap:
        raise UsageError(
            action,
            f"{overlap} of the {len(images)} hold-out pictures of {images.source.name} are calibrated on",
            "name pictures that calibration doesn't see: --held-out DIR",
        )


def float_logits(graph: onnx.ModelProto, frames: NDArray[np.uint8], progress: Progress = silent) -> NDArray[np.float32]:
    """Compute the float graph's logits, uint8 [n, h, w, 3] -> float32 [n, classes]."""
    from vitedge.runtimes.interpreter import run_graph

    batches = []
    for start in range(0, len(frames), BATCH):
        progress("hold-out pictures", start, len(frames))
        batches.append(run_graph(graph, frames[start : start + BATCH], optimized=True))
    progress("hold-out pictures", len(frames), len(frames))
    return np.concatenate(batches)


def class_ids(model: Model, images: ImageSet, *, required: bool, action: str) -> NDArray[np.int64] | None:
    """Return the true class ids of all pictures, int64 [n]; None where the folders aren't the model's classes.

    Raises:
        UsageError: they have to be, and aren't.
    """
    try:
        return images.labels([entry.folder for entry in model.record.classes], action=action)
    except UsageError:
        if required:
            raise
        return None
