"""Training data: the split, decoded pictures, and batches by their indices."""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitedge.core.progress import bars
from vitedge.core.randomness import seed_of
from vitedge.data.images import LAYOUT, ImageSet
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ImageError, UsageError, printable

MEMORY_BYTES = 4 << 30  # data sets up to this size, as uint8 at the model's size, are kept in memory
UNREADABLE_LIMIT = 0.01  # fraction of the pictures that may be unreadable; each is named
BATCHES_AHEAD = 3  # decoded while the model trains on another

Colour = tuple[float, float, float]


def open_data(source: str, action: str) -> ImageSet:
    """Open class folders, or an archive of them.

    Raises:
        UsageError: nothing there, no class folders, or only one class.
    """
    images = ImageSet.open(source, action=action)
    if not images.classes:
        raise UsageError(action, f"{source} has no class folders", LAYOUT)
    if len(images.classes) == 1:
        raise UsageError(action, f"{source} has one class only, '{images.classes[0]}'", LAYOUT)
    return images


def open_test(source: str, images: ImageSet, digests: Sequence[str], action: str) -> ImageSet:
    """Open the evaluation split of the training data ``images``, whose digests are given.

    Raises:
        UsageError: other classes, or pictures that are among the training data, byte for byte.
    """
    test = open_data(source, action)
    if test.classes != images.classes:
        raise UsageError(action, f"the classes of {source} aren't those of the training data", "name a matching --test")
    seen = set(digests)
    shared = [test.records[index].name for index in range(len(test)) if test.digest(index) in seen]
    if shared:
        raise UsageError(
            action,
            f"{len(shared)} pictures of {source} are training data too; the first is {shared[0]}",
            "remove them from one of the two",
        )
    return test


def digests_of(images: ImageSet) -> list[str]:
    """Return the hex SHA-256 of every picture's file; empty for one that can't be read, which decoding will name."""
    digests = []
    with bars() as show:
        for index in range(len(images)):
            try:
                digests.append(images.digest(index))
            except ImageError:
                digests.append("")
            if index % 100 == 0:
                show("comparing", index, len(images))
    return digests


def split(
    images: ImageSet, digests: Sequence[str], holdout: float, seed: int, action: str
) -> tuple[list[int], list[int]]:
    """Return (training, hold-out) indices: the fraction ``holdout`` of every class, at least one, drawn by the seed.

    A picture that equals a hold-out one byte for byte is in neither.

    Raises:
        UsageError: a class with a single picture, or copies of it, can't be split.
    """
    members: dict[str | None, list[int]] = {folder: [] for folder in images.classes}
    for index in images.order(seed):
        members[images.records[index].folder].append(index)
    hold_out: list[int] = []
    for folder, indices in members.items():
        if not indices:
            continue
        if len(indices) < 2:
            raise UsageError(action, f"the class '{folder}' has one picture; one more is needed to hold out", LAYOUT)
        hold_out += indices[: min(max(1, round(holdout * len(indices))), len(indices) - 1)]
    seen = {digests[index] for index in hold_out} - {""}
    training = [index for index in sorted(set(range(len(images))) - set(hold_out)) if digests[index] not in seen]
    kept = {images.records[index].folder for index in training}
    if emptied := [folder for folder, indices in members.items() if indices and folder not in kept]:
        reason = f"the pictures of the class '{emptied[0]}' are equal; different ones are needed to hold out"
        raise UsageError(action, reason, LAYOUT)
    return training, sorted(hold_out)


class Batch(NamedTuple):
    """Pictures of one pass through the model."""

    indices: Tensor  # int64 [B]: places in the set
    pixels: Tensor  # uint8 [B, h, w, 3]
    labels: Tensor  # int64 [B]


@dataclass(frozen=True)
class _Pictures:
    """Some pictures of an image set, at the model's size."""

    images: ImageSet
    indices: tuple[int, ...]  # in the image set
    labels: Tensor  # int64 [n]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files."""
        return tuple(self.images.records[index].name for index in self.indices)


@dataclass(frozen=True)
class Pixels(_Pictures):
    """Decoded pictures in memory: ``pixels`` uint8 [n, h, w, 3]."""

    pixels: Tensor

    def batches(self, plan: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield one batch for each tensor of indices, int64 [B]."""
        for chosen in plan:
            yield Batch(chosen, self.pixels[chosen], self.labels[chosen])

    def colour(self) -> tuple[Colour, Colour]:
        """Return (mean, std) of each channel after rescaling to 0…1, to four digits."""
        return _colour(self.pixels.numpy())


@dataclass(frozen=True)
class Files(_Pictures):
    """Pictures decoded when they are needed, by threads (Pillow releases the interpreter), for data beyond memory."""

    preprocessing: Preprocessing
    workers: int

    def read(self, position: int) -> NDArray[np.uint8]:
        """Read one picture, uint8 [h, w, 3]."""
        return self.preprocessing.apply(self.images.read(self.indices[position]))

    def batches(self, plan: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield batches as :meth:`Pixels.batches` does.

        Raises:
            ImageError: an unreadable picture, by name; leaving it out would change all batches after it.
        """
        pool = ThreadPoolExecutor(max(1, self.workers))
        waiting: deque[tuple[Tensor, list[Future[NDArray[np.uint8]]]]] = deque()
        try:
            for chosen in plan:
                waiting.append((chosen, [pool.submit(self.read, position) for position in chosen.tolist()]))
                if len(waiting) > BATCHES_AHEAD:
                    yield self._collect(*waiting.popleft())
            while waiting:
                yield self._collect(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _collect(self, chosen: Tensor, pictures: list[Future[NDArray[np.uint8]]]) -> Batch:
        pixels = torch.from_numpy(np.stack([picture.result() for picture in pictures]))
        return Batch(chosen, pixels, self.labels[chosen])

    def colour(self) -> tuple[Colour, Colour]:
        """Return the colours as :meth:`Pixels.colour`, over a thousand pictures drawn by a fixed seed."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed_of("colour")))[:1000]
        return _colour(np.concatenate([batch.pixels.numpy() for batch in self.batches(torch.split(order, 50))]))


@dataclass(frozen=True)
class TrainingData:
    """The pictures that a run is trained and evaluated on."""

    training: Pixels | Files
    hold_out: Pixels | Files
    preprocessing: Preprocessing
    digests: tuple[str, ...]  # hex SHA-256 of each training picture's file
    hold_out_digests: tuple[str, ...]  # likewise

    @property
    def fingerprint(self) -> str:
        """The hex SHA-256 of the pictures, classes and contents of each part."""
        parts = ((self.training.names, self.digests), (self.hold_out.names, self.hold_out_digests))
        listing = "\n\n".join("\n".join((*names, *digests)) for names, digests in parts)
        return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()


def decode(
    images: ImageSet, indices: Sequence[int], preprocessing: Preprocessing, *, workers: int, action: str
) -> Pixels | Files:
    """Decode the pictures at the model's size: into memory when they fit, else as they are needed.

    Raises:
        ImageError: more than 1 % of the pictures can't be read (in memory; fewer are named and left out).
    """
    height, width = preprocessing.size
    labels = torch.from_numpy(images.labels(images.classes, action=action))
    if len(indices) * height * width * 3 > MEMORY_BYTES:
        return Files(images, tuple(indices), labels[list(indices)], preprocessing, workers)
    pixels = np.empty((len(indices), height, width, 3), np.uint8)
    kept: list[int] = []
    broken: list[ImageError] = []
    with bars() as show:
        for count, index in enumerate(indices, 1):
            try:
                pixels[len(kept)] = preprocessing.apply(images.read(index))
                kept.append(index)
            except ImageError as error:
                broken.append(error)
                sys.stderr.write(f"left out: {printable(images.records[index].name)}: {error.reason}\n")
            if count % 100 == 0:
                show("reading", count, len(indices))
    if len(broken) > UNREADABLE_LIMIT * len(indices):
        raise ImageError(
            action, f"{len(broken)} of {len(indices)} pictures can't be read; first: {broken[0].reason}", broken[0].hint
        )
    return Pixels(images, tuple(kept), labels[kept], torch.from_numpy(pixels[: len(kept)]))


def _colour(pixels: NDArray[np.uint8]) -> tuple[Colour, Colour]:
    """Return mean and std from the histograms of uint8 [n, h, w, 3], exactly for any order and size of the set."""
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in range(3):
        count = np.bincount(pixels[..., channel].ravel(), minlength=256)
        centre = float((count * levels).sum() / count.sum())
        mean.append(round(centre, 4))
        std.append(max(round(float(((count * (levels - centre) ** 2).sum() / count.sum()) ** 0.5), 4), 1e-3))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
