"""One streamed pass of the calibration images through the float graph; memory doesn't grow with their number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vitedge.errors import InvalidResultError, ModelError, NotInstalledError
from vitedge.graph.surgery import batch_size, copy, to_bytes
from vitedge.progress import Progress, silent
from vitedge.quantize.statistics import Observed, Statistics
from vitedge.quantize.views import View, quantizable
from vitedge.recipe import Observe

_PIXELS_AT_ONCE = 1 << 18  # five images of 224 × 224: the activations of one batch are what memory is spent on


def observe(
    model: onnx.ModelProto,
    images: Iterable[NDArray[np.uint8]],
    settings: Observe,
    *,
    key: str,
    progress: Progress = silent,
) -> Statistics:
    """Observe the input of every quantizable layer.

    The order of the images changes nothing but the last bits of the sums: which rows are kept is drawn by a hash of
    the seed, the image and the row's position.

    Args:
        model: the float graph; its one input takes uint8 [N, h, w, 3].
        images: uint8 [h, w, 3] each, read one batch at a time.
        settings: the recipe's Observe section; ``num_samples`` is for the caller, who chose the images.
        key: what the statistics are to be found by again.
        progress: called with ("observe", images done, ``settings.num_samples``).

    Raises:
        ModelError: the graph doesn't run, or there were no images.
        InvalidResultError: an activation isn't finite (the tensor is named).
        NotInstalledError: onnxruntime is missing.
    """
    views = {layer.view.key: layer.view for layer in quantizable(model)[0]}
    tensors = list(dict.fromkeys(view.tensor for view in views.values()))
    watchers: dict[str, _Watcher] = {}
    run = _Runner(model, tensors)
    fixed, seen = batch_size(model), 0
    for batch in _batches(images, fixed):
        padded = np.concatenate([batch, np.repeat(batch[-1:], (fixed or 0) - len(batch), axis=0)]) if fixed else batch
        values = run(padded)
        keys = [_image_key(settings.seed, image) for image in batch]
        for name, view in views.items():
            value = values[view.tensor][: len(batch)]
            if not np.isfinite(value).all():
                raise InvalidResultError(
                    "observe the calibration images",
                    f"'{view.tensor}' isn't finite on one of the images {seen + 1} to {seen + len(batch)}",
                    "check the model's weights and its preprocessing",
                )
            if name not in watchers:
                watchers[name] = _Watcher(view, settings, value)
            watchers[name].add(value, keys)
        seen += len(batch)
        progress("observe", seen, settings.num_samples)
    if not seen:
        raise ModelError("observe the calibration images", "there were none", "name a folder with pictures")
    return Statistics(key, seen, {name: watcher.finish() for name, watcher in watchers.items()})


def _batches(images: Iterable[NDArray[np.uint8]], fixed: int | None) -> Iterator[NDArray[np.uint8]]:
    """uint8 [N, h, w, 3] each; N follows from the size of the first image unless the graph fixes it."""
    stream = iter(images)
    for first in stream:
        size = fixed or max(1, min(64, _PIXELS_AT_ONCE // (first.shape[0] * first.shape[1])))
        yield np.stack([first, *islice(stream, size - 1)])


def _image_key(seed: int, image: NDArray[np.uint8]) -> int:
    digest = hashlib.sha256(str(seed).encode() + np.ascontiguousarray(image).tobytes()).digest()
    return int.from_bytes(digest[:8], "little")


class _Runner:
    """The float graph with some of its inner tensors as outputs."""

    def __init__(self, model: onnx.ModelProto, tensors: list[str]) -> None:
        try:
            import onnxruntime  # type: ignore[import-untyped]  # it ships no types
        except ImportError as error:
            raise NotInstalledError.for_extra("observe calibration images", "onnxruntime", "host") from error
        watched = copy(model)
        given = {value.name for value in (*watched.graph.input, *watched.graph.output)}
        watched.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name not in given
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # NumPy works in between
        try:
            self._session = onnxruntime.InferenceSession(to_bytes(watched), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise ModelError("run the float model", str(error).splitlines()[0], "import the model again") from error
        self._tensors = tensors
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        try:
            outputs = self._session.run(self._tensors, {self._input: images})
        except Exception as error:  # as above
            raise ModelError("run the float model", str(error).splitlines()[0], "import the model again") from error
        return dict(zip(self._tensors, outputs, strict=True))


class _Watcher:
    """Accumulates the observation of one view."""

    def __init__(self, view: View, settings: Observe, values: NDArray[np.float32]) -> None:
        """``values`` is a first look at the tensor, for sizes and ranges; it isn't counted."""
        channels, width = view.channels(values), view.rows(values[:1]).shape[1]
        self._view = view
        self._capacity = settings.reservoir_rows
        self._count = 0
        self._minimum, self._maximum = channels.min(axis=0), channels.max(axis=0)
        self._sum, self._moments = np.zeros(width), np.zeros((width, width))
        bins = settings.histogram_bins + settings.histogram_bins % 2  # pairs are merged
        self._histogram = Histogram(self._minimum, self._maximum, bins)
        self._keys, self._rows = np.zeros(0, np.uint64), np.zeros((0, width), np.float16)

    def add(self, values: NDArray[np.float32], image_keys: list[int]) -> None:
        """One batch of the tensor, float32 with the images along its first axis."""
        channels, rows = self._view.channels(values), self._view.rows(values)
        self._minimum = np.minimum(self._minimum, channels.min(axis=0))
        self._maximum = np.maximum(self._maximum, channels.max(axis=0))
        self._histogram.add(channels)
        self._count += len(rows)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._moments += rows.T @ rows
        self._sample(rows, image_keys)

    def finish(self) -> Observed:
        """What was seen; the kept rows are ordered by their keys."""
        return Observed(
            count=self._count,
            rows=self._rows[np.argsort(self._keys, kind="stable")],
            minimum=self._minimum,
            maximum=self._maximum,
            mean=self._sum / self._count,
            moments=(self._moments / self._count).astype(np.float32),
            histogram=self._histogram.counts,
            low=self._histogram.low,
            high=self._histogram.high,
        )

    def _sample(self, rows: NDArray[np.float32], image_keys: list[int]) -> None:
        """A reservoir by random keys (Efraimidis & Spirakis 2006, equal weights): the smallest keys' rows stay."""
        each = len(rows) // len(image_keys)
        positions = np.arange(each, dtype=np.uint64)
        keys = np.concatenate([mixed(np.uint64(key) + positions * _GOLDEN) for key in image_keys])
        if len(self._keys) == self._capacity:
            better = keys < self._keys.max()
            keys, rows = keys[better], rows[better]
        limit = np.finfo(np.float16).max
        self._keys = np.concatenate([self._keys, keys])
        self._rows = np.concatenate([self._rows, np.clip(rows, -limit, limit).astype(np.float16)])
        if len(self._keys) > self._capacity:
            kept = np.argpartition(self._keys, self._capacity - 1)[: self._capacity]
            self._keys, self._rows = self._keys[kept], self._rows[kept]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): the same on every machine and NumPy version."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed_values: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed_values


class Histogram:
    """One histogram per channel; a range that is exceeded doubles, and neighbouring bins merge."""

    def __init__(self, low: NDArray[np.float32], high: NDArray[np.float32], bins: int) -> None:
        """Ranges [C] to begin with, and an even number of bins."""
        self.low, self.high = low.astype(np.float64), high.astype(np.float64)
        largest = max(float(np.abs(self.low).max()), float(np.abs(self.high).max()), 1e-30)
        narrow = self.high - self.low < 1e-6 * largest  # a channel that was constant so far
        self.high[narrow] = self.low[narrow] + 1e-6 * largest
        self.counts = np.zeros((len(low), bins), np.uint32)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values [n, C]."""
        self._cover(values.min(axis=0), values.max(axis=0))
        channels, bins = self.counts.shape
        position = (values - self.low) * (bins / (self.high - self.low))
        index = np.minimum(position.astype(np.int64), bins - 1)  # the upper edge belongs to the last bin
        flat = np.bincount((index + np.arange(channels) * bins).reshape(-1), minlength=channels * bins)
        self.counts += flat.reshape(channels, bins).astype(np.uint32)

    def _cover(self, low: NDArray[np.float32], high: NDArray[np.float32]) -> None:
        """Double ranges until all values lie in them."""
        half = self.counts.shape[1] // 2
        while (below := low < self.low).any():
            merged = self.counts[below].reshape(-1, half, 2).sum(axis=2, dtype=np.uint32)
            self.counts[below] = np.concatenate([np.zeros_like(merged), merged], axis=1)
            self.low[below] -= (self.high - self.low)[below]
        while (above := high > self.high).any():
            merged = self.counts[above].reshape(-1, half, 2).sum(axis=2, dtype=np.uint32)
            self.counts[above] = np.concatenate([merged, np.zeros_like(merged)], axis=1)
            self.high[above] += (self.high - self.low)[above]
