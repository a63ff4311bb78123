"""Training data: the split, decoded pictures, and batches in an order that depends on seed and epoch alone."""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitedge.errors import ImageError, UsageError, printable
from vitedge.images import LAYOUT, ImageSet
from vitedge.preprocessing import Preprocessing
from vitedge.progress import bars

MEMORY_BYTES = 4 << 30  # data sets up to this size, as uint8 at the model's size, are kept in memory
UNREADABLE_LIMIT = 0.01  # part of the pictures that may be unreadable; each is named
BATCHES_AHEAD = 3  # decoded while the model trains on another

Colour = tuple[float, float, float]


def seed_of(*words: object) -> int:
    """A 63-bit seed from any words, the same on every machine: ``seed_of(seed, "step", 17)``."""
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8], "little") >> 1


def open_data(source: str, asked: str) -> ImageSet:
    """Class folders, or an archive of them.

    Raises:
        UsageError: nothing there, no class folders, or only one class.
    """
    images = ImageSet.open(source, asked=asked)
    if not images.classes:
        raise UsageError(asked, f"{source} has no class folders", LAYOUT)
    if len(images.classes) == 1:
        raise UsageError(asked, f"{source} has one class only, '{images.classes[0]}'", LAYOUT)
    return images


def open_test(source: str, images: ImageSet, asked: str) -> ImageSet:
    """The evaluation split that goes with the training data ``images``.

    Raises:
        UsageError: other classes, or pictures that are among the training data, byte for byte.
    """
    test = open_data(source, asked)
    if test.classes != images.classes:
        raise UsageError(asked, f"the classes of {source} aren't those of the training data", "name a matching --test")
    seen = {images.digest(index) for index in range(len(images))}
    shared = [test.records[index].name for index in range(len(test)) if test.digest(index) in seen]
    if shared:
        raise UsageError(
            asked,
            f"{len(shared)} pictures of {source} are training data too; the first is {shared[0]}",
            "remove them from one of the two",
        )
    return test


def split(images: ImageSet, holdout: float, seed: int, asked: str) -> tuple[list[int], list[int]]:
    """(training, held-out) indices: a part ``holdout`` of every class, at least one picture, drawn by the seed.

    Raises:
        UsageError: a class with a single picture can't be split.
    """
    members: dict[str | None, list[int]] = {folder: [] for folder in images.classes}
    for index in images.order(seed):
        members[images.records[index].folder].append(index)
    held: list[int] = []
    for folder, indices in members.items():
        if len(indices) < 2:
            raise UsageError(asked, f"the class '{folder}' has one picture; one more is needed to hold out", LAYOUT)
        held += indices[: min(max(1, round(holdout * len(indices))), len(indices) - 1)]
    return sorted(set(range(len(images))) - set(held)), sorted(held)


@dataclass(frozen=True)
class Pixels:
    """Decoded pictures in memory: ``pixels`` uint8 [n, h, w, 3], ``labels`` int64 [n], ``names`` n."""

    pixels: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 [B, h, w, 3] and int64 [B], following ``order``; the last batch may be smaller."""
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            yield self.pixels[chosen], self.labels[chosen]

    def colour(self) -> tuple[Colour, Colour]:
        """(mean, std) of each channel after rescaling to 0…1, to four digits."""
        return _colour(self.pixels.numpy())


@dataclass(frozen=True)
class Files:
    """Pictures decoded when they are needed, by threads (Pillow lets go of the interpreter): for data beyond memory."""

    images: ImageSet
    indices: tuple[int, ...]
    preprocessing: Preprocessing
    labels: Tensor
    workers: int

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the pictures, as :attr:`Pixels.names`."""
        return tuple(self.images.records[index].name for index in self.indices)

    def read(self, position: int) -> NDArray[np.uint8]:
        """One picture, uint8 [h, w, 3]."""
        return self.preprocessing.apply(self.images.read(self.indices[position]))

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As :meth:`Pixels.batches`.

        Raises:
            ImageError: an unreadable picture, by name; leaving it out would change all batches after it.
        """
        pool = ThreadPoolExecutor(max(1, self.workers))
        waiting: deque[tuple[Tensor, list[Future[NDArray[np.uint8]]]]] = deque()
        try:
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                waiting.append((chosen, [pool.submit(self.read, position) for position in chosen.tolist()]))
                if len(waiting) > BATCHES_AHEAD:
                    yield self._collect(*waiting.popleft())
            while waiting:
                yield self._collect(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _collect(self, chosen: Tensor, pictures: list[Future[NDArray[np.uint8]]]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(np.stack([picture.result() for picture in pictures])), self.labels[chosen]

    def colour(self) -> tuple[Colour, Colour]:
        """As :meth:`Pixels.colour`, over a thousand pictures drawn by a fixed seed."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed_of("colour")))[:1000]
        return _colour(np.concatenate([pixels.numpy() for pixels, _ in self.batches(order, 50)]))


def decode(
    images: ImageSet, indices: Sequence[int], preprocessing: Preprocessing, *, workers: int, asked: str
) -> Pixels | Files:
    """The pictures at the model's size: in memory when they fit, else read as they are needed.

    Raises:
        ImageError: more than 1 % of the pictures can't be read (in memory; fewer are named and left out).
    """
    height, width = preprocessing.size
    labels = torch.from_numpy(images.labels(images.classes, asked=asked))
    if len(indices) * height * width * 3 > MEMORY_BYTES:
        return Files(images, tuple(indices), preprocessing, labels[list(indices)], workers)
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
                sys.stderr.write(f"left out: {printable(images.records[index].name)}: {error.true}\n")
            if count % 100 == 0:
                show("reading", count, len(indices))
    if len(broken) > UNREADABLE_LIMIT * len(indices):
        raise ImageError(
            asked, f"{len(broken)} of {len(indices)} pictures can't be read; first: {broken[0].true}", broken[0].fix
        )
    names = tuple(images.records[index].name for index in kept)
    return Pixels(torch.from_numpy(pixels[: len(kept)]), labels[kept], names)


def _colour(pixels: NDArray[np.uint8]) -> tuple[Colour, Colour]:
    """From the histograms of uint8 [n, h, w, 3], so that neither order nor size of the set costs precision."""
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in range(3):
        count = np.bincount(pixels[..., channel].ravel(), minlength=256)
        centre = float((count * levels).sum() / count.sum())
        mean.append(round(centre, 4))
        std.append(max(round(float(((count * (levels - centre) ** 2).sum() / count.sum()) ** 0.5), 4), 1e-3))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
