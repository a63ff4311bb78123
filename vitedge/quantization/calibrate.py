"""Collect statistics from calibration images: read once, kept in the cache, and resumed where a run was killed.

Which images are looked at is drawn by the recipe's seed. One that can't be read is named and replaced by the next of
that order. Statistics lie in the cache folder under model, images and the recipe's ``[observe]`` section.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vitedge.core.cache import optional_writes
from vitedge.core.files import sha256, write_atomic
from vitedge.core.paths import cache_folder
from vitedge.core.progress import Progress, silent
from vitedge.core.schema import Record, decode_json, encode_json
from vitedge.data import embedded
from vitedge.data.images import ImageSet, open_picture
from vitedge.errors import ImageError, InputError
from vitedge.formats.artifact import Calibration
from vitedge.formats.model_folder import Model
from vitedge.formats.recipe import Observe

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from vitedge.quantization.observe import Observer
    from vitedge.quantization.statistics import Statistics

WALK, PARTIAL = "walk.json", "partial.safetensors"
#: Seconds of observing between two saves of the state.
SAVE_SECONDS = 60.0


class _Step(Record):
    """One image of the seeded order that was read or skipped."""

    name: str
    digest: str  # SHA-256 of the encoded file; empty where the file couldn't be read
    readable: bool


class _Walk(Record):
    """``walk.json``: the images that went into the statistics beside it, or into ``partial.safetensors``."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    steps: tuple[_Step, ...]
    partial: str | None = None  # SHA-256 of the partial statistics; None: they're complete


def calibrate(
    model: Model,
    graph: onnx.ModelProto,
    images: ImageSet,
    settings: Observe,
    *,
    action: str,
    progress: Progress = silent,
) -> tuple[Statistics, Calibration]:
    """Return statistics of ``settings.num_samples`` of the images, from the cache or from one pass over them.

    Args:
        model: the model folder that the graph came from.
        graph: its float graph.
        images: at least as many as are wanted.
        settings: the recipe's Observe section.
        action: for error texts.
        progress: called with ("observe", images done, images wanted).

    Raises:
        ImageError: too few can be read.
        UsageError: one of them is for display alone.
        ModelError, InvalidResultError, NotInstalledError: as :func:`vitedge.quantization.observe.observe`.
    """
    from vitedge.quantization.observe import Observer
    from vitedge.quantization.statistics import Statistics

    order, wanted = images.order(settings.seed), settings.num_samples
    first = digests_of(images, order[:wanted])
    asked = [sha256(encode_json(each)) for each in (model.record.preprocessing, settings)]
    key = sha256("\0".join([model.record.files["model.onnx"], *asked, *first]).encode())
    embedded.refuse_display(images, order[:wanted], model.record.origin.kind, action)
    folder = cache_folder() / "statistics" / key[:32]
    walk = _load_walk(folder, images, order)
    statistics = Statistics.load(folder, key) if walk is not None and walk.partial is None else None
    if walk is None or statistics is None:
        observer = Observer(graph, settings)
        steps = _resume(observer, folder, walk)
        frames = _frames(model, images, order, steps, settings.num_samples, action)
        _observe(observer, frames, lambda: _save_partial(observer, folder, steps, action), settings, progress)
        if observer.samples < settings.num_samples:
            raise _too_few(images, steps, settings.num_samples, action)
        walk, statistics = _Walk(steps=tuple(steps)), observer.statistics(key)
        with optional_writes():
            statistics.save(folder)
            write_atomic(folder / WALK, encode_json(walk), action)
            (folder / PARTIAL).unlink(missing_ok=True)
    return statistics, _calibration(images, walk.steps)


def _calibration(images: ImageSet, steps: Sequence[_Step]) -> Calibration:
    """Return the record of the calibration images."""
    digests = sorted(step.digest for step in steps if step.readable)
    return Calibration(
        source=images.source.name,
        count=len(digests),
        digest=sha256("".join(digests).encode()),
        image_digests=tuple(digest[:16] for digest in digests),
        skipped=tuple(step.name for step in steps if not step.readable),
    )


def read_pictures(
    model: Model, images: ImageSet, settings: Observe, *, action: str, progress: Progress = silent
) -> tuple[list[int], NDArray[np.uint8], Calibration]:
    """Read the images that :func:`calibrate` would observe, without observing them.

    Args:
        model, images, settings, action: as there.
        progress: called with ("read pictures", images done, images wanted).

    Returns:
        Their numbers in the set, the model's inputs uint8 [n, h, w, 3], and which they are.

    Raises:
        ImageError: too few can be read.
        UsageError: one of them is for display alone.
    """
    import numpy as np

    order, wanted = images.order(settings.seed), settings.num_samples
    steps, frames = list[_Step](), list["NDArray[np.uint8]"]()
    for frame in _frames(model, images, order, steps, wanted, action):
        frames.append(frame)
        progress("read pictures", len(frames), wanted)
    if len(frames) < wanted:
        raise _too_few(images, steps, wanted, action)
    numbers = [index for index, step in zip(order, steps, strict=False) if step.readable]
    return numbers, np.stack(frames), _calibration(images, steps)


def pictures(
    model: Model, images: ImageSet, settings: Observe, calibration: Calibration
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of :func:`calibrate` again, uint8 [h, w, 3] each, for runtimes that calibrate themselves.

    Images that were changed or went since then are left out.
    """
    wanted = set(calibration.image_digests)
    for index in images.order(settings.seed)[: calibration.count + len(calibration.skipped)]:
        try:
            data = images.read_bytes(index)
            if sha256(data)[:16] in wanted:
                yield model.record.preprocessing.apply(open_picture(data, images.records[index].name))
        except ImageError:
            continue


def _frames(
    model: Model, images: ImageSet, order: list[int], steps: list[_Step], wanted: int, action: str
) -> Iterator[NDArray[np.uint8]]:
    """Yield the model's input, uint8 [h, w, 3], for images after ``steps`` until there are enough; add their steps."""
    readable = sum(step.readable for step in steps)
    for index in order[len(steps) :]:
        if readable == wanted:
            return
        name, digest = images.records[index].name, ""
        try:
            data = images.read_bytes(index)
            digest = sha256(data)
            frame = model.record.preprocessing.apply(open_picture(data, name))
        except ImageError:
            steps.append(_Step(name=name, digest=digest, readable=False))
            continue
        embedded.refuse_display(images, [index], model.record.origin.kind, action)
        steps.append(_Step(name=name, digest=digest, readable=True))
        readable += 1
        yield frame


def _observe(
    observer: Observer,
    frames: Iterator[NDArray[np.uint8]],
    save: Callable[[], None],
    settings: Observe,
    progress: Progress,
) -> None:
    """Observe the frames in one pass, and save the state from time to time."""
    saved = time.monotonic()
    progress("observe", observer.samples, settings.num_samples)
    for batch in observer.batches(frames):
        observer.add(batch)
        progress("observe", observer.samples, settings.num_samples)
        if time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()


def _too_few(images: ImageSet, steps: list[_Step], wanted: int, action: str) -> ImageError:
    broken = [step.name for step in steps if not step.readable]
    readable = len(steps) - len(broken)
    return ImageError(
        action,
        f"{images.source} has {readable} readable images of the {wanted} asked for; "
        f"{len(broken)} can't be read: {', '.join(broken[:5])}",
        "replace them, or remove them and ask for fewer: --num-samples",
    )


def digests_of(images: ImageSet, indices: Sequence[int]) -> list[str]:
    """Hex SHA-256 of the encoded files; empty for one that can't be read."""
    return [_digest(images, index) for index in indices]


def _digest(images: ImageSet, index: int) -> str:
    """Return the SHA-256 of the encoded file; empty where it can't be read."""
    try:
        return images.digest(index)
    except ImageError:
        return ""


def _load_walk(folder: Path, images: ImageSet, order: list[int]) -> _Walk | None:
    """Load the walk of an earlier run, if its images are still the same."""
    try:
        walk = decode_json((folder / WALK).read_bytes(), _Walk, action="read statistics", file=WALK)
    except (OSError, InputError):
        return None
    indices = order[: len(walk.steps)]
    if len(indices) < len(walk.steps):
        return None
    return walk if digests_of(images, indices) == [step.digest for step in walk.steps] else None


def _resume(observer: Observer, folder: Path, walk: _Walk | None) -> list[_Step]:
    """Restore an earlier run's observer and return its steps; empty where there is no sound state."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if walk is None or walk.partial is None:
        return []
    try:
        data = (folder / PARTIAL).read_bytes()
        if sha256(data) != walk.partial:
            return []
        observer.restore(load(data), sum(step.readable for step in walk.steps))
    except (OSError, SafetensorError, KeyError):
        return []
    return list(walk.steps)


def _save_partial(observer: Observer, folder: Path, steps: list[_Step], action: str) -> None:
    """Save the state of the observer; ``walk.json`` completes it."""
    from vitedge.quantization.statistics import safetensors_pieces, sha256_of

    pieces = safetensors_pieces(observer.state())
    with optional_writes():
        write_atomic(folder / PARTIAL, pieces, action)
        write_atomic(folder / WALK, encode_json(_Walk(steps=tuple(steps), partial=sha256_of(pieces))), action)
