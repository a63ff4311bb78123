"""The hold-out set: pictures that calibration doesn't see, with the float graph's logits to compare with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

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

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

#: Hold-out pictures: at most, and of 224 × 224 pixels where no budget asks for more.
MOST, USUAL = 2048, 256
#: With fewer hold-out pictures than this, those that were calibrated on say more.
LEAST = 64
#: Pictures per inference of the float graph.
BATCH = 64


@dataclass(frozen=True)
class HoldOut:
    """Pictures and the float graph's logits of them."""

    source: str  # name of the data set
    split: Literal["held-out", "calibration"]  # calibration: there were too few others, which flatters
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
            split=self.split,
            executed_by=runnable.executed_by,
        )


def usual(size: tuple[int, int]) -> int:
    """The number of hold-out pictures of this size where no budget asks for more: smaller ones cost less."""
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

    They are the user's; else, for the embedded model, the embedded ones; else those that calibration didn't use. With
    fewer than :data:`LEAST` of these the calibration pictures take their place, and the record says so.

    Args:
        model: the model folder.
        graph: its float graph.
        calibrated: where the calibration images came from.
        calibration: which of them were used.
        held_out: the user's own.
        seed: of the order.
        most: pictures at most.
        action: for error texts.
        progress: called with ("hold-out pictures", done, total).

    Raises:
        UsageError: a hold-out picture is for display alone or was calibrated on; none can be read.
    """
    own = held_out
    if own is None and model.record.origin.kind == "embedded":
        own = embedded.pictures("held-out")
    images = calibrated if own is None else own
    used = set(calibration.image_digests)
    pictures = list(_read(model, images, seed, most, lambda digest: digest[:16] not in used))
    split: Literal["held-out", "calibration"] = "held-out"
    if own is None and len(pictures) < LEAST:
        split = "calibration"
        pictures = list(_read(model, images, seed, most, lambda digest: digest[:16] in used))
    elif own is not None and len(pictures) < min(len(own), most):
        _refuse_overlap(own, used, action)
    if not pictures:
        raise UsageError(action, f"no picture of {images.source} can be read", "name others: --held-out DIR")
    names = {picture.digest: images.records[picture.number].name for picture in pictures}
    embedded.refuse_display(names, model.record.origin.kind, action)
    frames = np.stack([picture.frame for picture in pictures])
    indices = [picture.number for picture in pictures]
    return HoldOut(
        source=images.source.name,
        split=split,
        names=tuple(images.records[index].name for index in indices),
        frames=frames,
        reference=_float_logits(graph, frames, progress),
        labels=_labels(model, images, indices, required=held_out is not None and bool(images.classes), action=action),
        classes=tuple(entry.name for entry in model.record.classes),
    )


class _Picture(NamedTuple):
    """A picture that could be read."""

    number: int  # in its set
    digest: str
    frame: NDArray[np.uint8]  # [h, w, 3], at the model's size


def _read(model: Model, images: ImageSet, seed: int, most: int, wanted: Callable[[str], bool]) -> Iterator[_Picture]:
    """The first ``most`` pictures of the seeded order that can be read and whose digest is wanted."""
    count = 0
    for index in images.order(seed):
        if count == most:
            return
        with contextlib.suppress(ImageError):
            data = images.read_bytes(index)
            digest = sha256(data)
            if wanted(digest):
                frame = model.record.preprocessing.apply(open_picture(data, images.records[index].name))
                yield _Picture(index, digest, frame)
                count += 1


def _refuse_overlap(images: ImageSet, calibrated: set[str], action: str) -> None:
    """Raises: UsageError: some of the pictures were calibrated on."""
    overlap = 0
    for index in range(len(images)):
        with contextlib.suppress(ImageError):
            overlap += images.digest(index)[:16] in calibrated
    if overlap:
        raise UsageError(
            action,
            f"{overlap} of the {len(images)} hold-out pictures of {images.source.name} were calibrated on",
            "name pictures that calibration doesn't see: --held-out DIR",
        )


def _float_logits(graph: onnx.ModelProto, frames: NDArray[np.uint8], progress: Progress) -> NDArray[np.float32]:
    """The float graph's logits, uint8 [n, h, w, 3] -> float32 [n, classes]."""
    from vitedge.runtimes.interpreter import run_graph

    batches = []
    for start in range(0, len(frames), BATCH):
        progress("hold-out pictures", start, len(frames))
        batches.append(run_graph(graph, frames[start : start + BATCH], optimized=True))
    progress("hold-out pictures", len(frames), len(frames))
    return np.concatenate(batches)


def _labels(
    model: Model, images: ImageSet, indices: Sequence[int], *, required: bool, action: str
) -> NDArray[np.int64] | None:
    """True class ids, int64 [n]; None where the folders aren't the model's classes.

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
