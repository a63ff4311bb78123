"""Observe calibration images in one streamed pass through the float graph; memory doesn't grow with their number."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vitedge.core.progress import Progress, silent
from vitedge.errors import InvalidResultError, ModelError, NotInstalledError
from vitedge.formats.recipe import Observe
from vitedge.graph.surgery import batch_size, copy, to_bytes
from vitedge.quantization.statistics import Observed, Statistics
from vitedge.quantization.views import View, quantizable

_PIXELS_AT_ONCE = 8 * 224 * 224  # pixels of a batch, whose activations take most of the memory
_THREADS = 8  # at most: each holds a few copies of one layer's input


def observe(
    model: onnx.ModelProto,
    images: Iterable[NDArray[np.uint8]],
    settings: Observe,
    *,
    key: str,
    progress: Progress = silent,
) -> Statistics:
    """Observe the input of every quantizable layer.

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
    observer = Observer(model, settings)
    for batch in observer.batches(images):
        observer.add(batch)
        progress("observe", observer.samples, settings.num_samples)
    return observer.statistics(key)


class Observer:
    """Collects statistics. Its state can be saved between two batches and restored in another process.

    The order of the images changes nothing but the last bits of the sums: which rows are kept is drawn by a hash of
    the seed, the image and the row's position.
    """

    def __init__(self, model: onnx.ModelProto, settings: Observe) -> None:
        """Prepare a run; arguments as of :func:`observe`.

        Raises:
            ModelError: the graph doesn't load.
            NotInstalledError: onnxruntime is missing.
        """
        self.samples = 0  # images seen
        self._settings = settings
        self._views = {layer.view.key: layer.view for layer in quantizable(model)[0]}
        self._watchers: dict[str, _Watcher] = {}
        self._run = _Runner(model, list(dict.fromkeys(view.tensor for view in self._views.values())))
        self._fixed = batch_size(model)

    def batches(self, images: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the images as uint8 [N, h, w, 3]; N follows from the size of the first unless the graph fixes it."""
        stream = iter(images)
        for first in stream:
            size = self._fixed or max(1, min(64, _PIXELS_AT_ONCE // (first.shape[0] * first.shape[1])))
            yield np.stack([first, *islice(stream, size - 1)])

    def add(self, batch: NDArray[np.uint8]) -> None:
        """Add uint8 [N, h, w, 3]; fewer than the graph's fixed batch are padded, and the padding isn't counted.

        Raises:
            ModelError: the graph doesn't run.
            InvalidResultError: an activation isn't finite.
        """
        missing = (self._fixed or len(batch)) - len(batch)
        values = self._run(np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch)
        values = {tensor: value[: len(batch)] for tensor, value in values.items()}
        keys = [_image_key(self._settings.seed, image) for image in batch]
        linear = [name for name, view in self._views.items() if not view.kernel]
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
            rows = dict(zip(linear, threads.map(lambda name: self._watch(name, values, keys), linear), strict=True))
        for name in self._views:  # one by one: products use threads themselves, and rows of convolutions are large
            seen = rows[name] if name in rows else self._watch(name, values, keys)
            self._watchers[name].multiply(seen)
        self.samples += len(batch)

    def _watch(self, name: str, values: Mapping[str, NDArray[np.float32]], keys: list[int]) -> NDArray[np.float32]:
        """Add one batch to a view's watcher, except the products of the rows [n, K], which are returned."""
        view = self._views[name]
        value = values[view.tensor]
        channels = view.channels(value)
        low, high = channels.min(axis=0), channels.max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise InvalidResultError(
                "observe the calibration images",
                f"'{view.tensor}' isn't finite on one of the images {self.samples + 1} to {self.samples + len(keys)}",
                "check the model's weights and its preprocessing",
            )
        if name not in self._watchers:
            self._watchers[name] = _Watcher.looking_at(view, self._settings, value)
        rows = view.rows(value)
        self._watchers[name].add(channels, rows, keys, low, high)
        return rows

    def statistics(self, key: str) -> Statistics:
        """Return the statistics collected so far.

        Raises:
            ModelError: nothing was.
        """
        if not self.samples:
            raise ModelError("observe the calibration images", "there were no images", "name a folder with pictures")
        observed = {name: self._watchers[name].finish() for name in self._views}
        return Statistics(key, self.samples, observed)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the whole state, as arrays by name."""
        return {
            f"{name}#{part}": np.asarray(value)
            for name, watcher in self._watchers.items()
            for part, value in watcher.state().items()
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]], samples: int) -> None:
        """Restore a :meth:`state` that was saved ``samples`` images into the stream.

        Raises:
            KeyError: a part is missing.
        """
        self._watchers = {
            name: _Watcher(self._settings, {part: state[f"{name}#{part}"] for part in _Watcher.PARTS})
            for name in self._views
        }
        self.samples = samples


def _image_key(seed: int, image: NDArray[np.uint8]) -> int:
    digest = hashlib.sha256(str(seed).encode() + np.ascontiguousarray(image).tobytes()).digest()
    return int.from_bytes(digest[:8], "little")


def session_of(model: onnx.ModelProto, action: str) -> Any:
    """Open an ONNX Runtime session on the CPU whose threads don't compete with NumPy's between runs.

    Raises:
        ModelError: the graph doesn't load.
        NotInstalledError: onnxruntime is missing.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]  # it ships no types
    except ImportError as error:
        raise NotInstalledError.for_extra(action, "onnxruntime", "host") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise refused(error) from error


class _Runner:
    """The float graph with some of its inner tensors as outputs."""

    def __init__(self, model: onnx.ModelProto, tensors: list[str]) -> None:
        watched = copy(model)
        given = {value.name for value in (*watched.graph.input, *watched.graph.output)}
        watched.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name not in given
        )
        self._session = session_of(watched, "observe calibration images")
        self._tensors = tensors
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        try:
            outputs = self._session.run(self._tensors, {self._input: images})
        except Exception as error:  # as above
            raise refused(error) from error
        return dict(zip(self._tensors, outputs, strict=True))


def refused(error: Exception) -> ModelError:
    """Return the error for a graph that ONNX Runtime can't load or run."""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ModelError("run the float model", reason, "import the model again")


class _Watcher:
    """Accumulates the observation of one view."""

    PARTS = ("count", "minimum", "maximum", "sum", "moments", "histogram", "low", "high", "keys", "rows")

    def __init__(self, settings: Observe, state: Mapping[str, NDArray[Any]]) -> None:
        self._capacity = settings.reservoir_rows
        self._count = int(state["count"])
        self._minimum, self._maximum = state["minimum"], state["maximum"]
        self._sum, self._moments = state["sum"].copy(), state["moments"].copy()
        self._histogram = Histogram(state["low"], state["high"], state["histogram"].copy())
        self._keys, self._rows = state["keys"].copy(), state["rows"].copy()

    @classmethod
    def looking_at(cls, view: View, settings: Observe, values: NDArray[np.float32]) -> _Watcher:
        """Return an empty watcher. ``values`` is a batch of the tensor, for sizes and ranges; it isn't counted."""
        channels, width = view.channels(values), view.rows(values[:1]).shape[1]
        low, high = spanned(channels)
        bins = settings.histogram_bins + settings.histogram_bins % 2  # pairs are merged
        empty: dict[str, NDArray[Any]] = {
            "count": np.int64(0),
            "minimum": channels.min(axis=0),
            "maximum": channels.max(axis=0),
            "sum": np.zeros(width),
            "moments": np.zeros((width, width)),
            "histogram": np.zeros((len(low), bins), np.uint32),
            "low": low,
            "high": high,
            "keys": np.zeros(0, np.uint64),
            "rows": np.zeros((0, width), np.float16),
        }
        return cls(settings, empty)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the constructor's arguments."""
        return {
            "count": np.asarray(self._count, np.int64),
            "minimum": self._minimum,
            "maximum": self._maximum,
            "sum": self._sum,
            "moments": self._moments,
            "histogram": self._histogram.counts,
            "low": self._histogram.low,
            "high": self._histogram.high,
            "keys": self._keys,
            "rows": self._rows,
        }

    def add(
        self,
        channels: NDArray[np.float32],
        rows: NDArray[np.float32],
        image_keys: list[int],
        low: NDArray[np.float32],
        high: NDArray[np.float32],
    ) -> None:
        """Add one batch of the tensor: as channels [n', C] with their range [C], and as rows [n, K], image after image.

        What the rows' products add is for :meth:`multiply`.
        """
        self._minimum, self._maximum = np.minimum(self._minimum, low), np.maximum(self._maximum, high)
        self._histogram.add(channels, low, high)
        self._count += len(rows)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._sample(rows, image_keys)

    def multiply(self, rows: NDArray[np.float32]) -> None:
        """Add the products of the same rows."""
        self._moments += rows.T @ rows

    def finish(self) -> Observed:
        """Return the observation; the kept rows are ordered by their keys."""
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
        """Keep the rows with the smallest random keys (reservoir of Efraimidis & Spirakis 2006, equal weights)."""
        each = len(rows) // len(image_keys)
        positions = np.arange(each, dtype=np.uint64)
        keys = np.concatenate([mixed(np.uint64(key) + positions * _GOLDEN) for key in image_keys])
        held = len(self._keys)
        stays = np.ones(held + len(keys), np.bool_)
        if len(stays) > self._capacity:
            stays[np.argpartition(np.concatenate([self._keys, keys]), self._capacity)[self._capacity :]] = False
        free, new = np.flatnonzero(~stays[:held]), np.flatnonzero(stays[held:])
        limit = np.finfo(np.float16).max
        keys, rows = keys[new], np.clip(rows[new], -limit, limit).astype(np.float16)
        self._keys[free], self._rows[free] = keys[: len(free)], rows[: len(free)]
        if len(new) > len(free):
            self._keys = np.concatenate([self._keys, keys[len(free) :]])
            self._rows = np.concatenate([self._rows, rows[len(free) :]])


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply SplitMix64's finaliser (Steele, Lea, Flood 2014): the same on every machine and NumPy version."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed_values: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed_values


def spanned(values: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the range [C] of each channel of values [n, C], widened where a channel was constant."""
    low, high = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
    largest = max(float(np.abs(low).max()), float(np.abs(high).max()), 1e-30)
    return low, np.where(high - low < 1e-6 * largest, low + 1e-6 * largest, high)


class Histogram:
    """One histogram per channel; a range that is exceeded doubles, and neighbouring bins merge."""

    def __init__(self, low: NDArray[np.float64], high: NDArray[np.float64], counts: NDArray[np.uint32]) -> None:
        """Start with ranges [C] and counts [C, bins]; the number of bins is even."""
        self.low, self.high, self.counts = low.copy(), high.copy(), counts

    def add(self, values: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32]) -> None:
        """Count values [n, C] between low and high [C]."""
        self._cover(low, high)
        channels, bins = self.counts.shape
        position = values - self.low.astype(np.float32)
        position *= (bins / (self.high - self.low)).astype(np.float32)
        np.clip(position, 0, bins - 1, out=position)  # the upper edge belongs to the last bin
        width = np.int32 if channels * bins <= np.iinfo(np.int32).max else np.int64  # int32 is a third faster
        index = position.astype(width)
        index += np.arange(channels, dtype=width) * width(bins)
        flat = np.bincount(index.reshape(-1), minlength=channels * bins)
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
