"""Statistics of every layer's input over the calibration images: collected once, used for any number of roundings.

A per-channel migration invalidates a per-tensor histogram, so histograms are per channel, and bias terms and output
errors need joint samples, so some whole rows are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vitedge._version import __version__
from vitedge.core.files import sha256, write_atomic
from vitedge.core.schema import Record, decode_json, encode_json
from vitedge.errors import InputError

TENSORS, INDEX = "statistics.safetensors", "statistics.json"


@dataclass(frozen=True)
class Observed:
    """Statistics of one layer's input over the calibration images, seen as rows of K values in C channels.

    K is C for a linear and C·kh·kw for a convolution (see :mod:`vitedge.quantization.views`).
    """

    count: int  # rows seen
    rows: NDArray[np.floating[Any]]  # [R, K]: a uniform sample of the rows, float16 as observed
    minimum: NDArray[np.float32]  # [C], exact
    maximum: NDArray[np.float32]  # [C], exact
    mean: NDArray[np.float64]  # [K]
    moments: NDArray[np.float32]  # E[x xᵀ], [K, K], not centred, accumulated in float64
    histogram: NDArray[np.uint32]  # counts [C, bins]
    low: NDArray[np.float64]  # [C]: lower edge of the first bin
    high: NDArray[np.float64]  # [C]: upper edge of the last bin

    def moved(self, shift: NDArray[np.float64], scale: NDArray[np.float64]) -> Observed:
        """Return the exact statistics of (x - shift) / scale; both [C], scales positive. Where K > C, no tap may lie in
        padding, or all shifts are 0."""
        shift, scale = np.asarray(shift, np.float64), np.asarray(scale, np.float64)
        offset, factor = (np.repeat(each, len(self.mean) // len(each)) for each in (shift, scale))  # [K]
        crossed = np.outer(self.mean, offset)
        moments = (self.moments - crossed - crossed.T + np.outer(offset, offset)) / np.outer(factor, factor)
        return Observed(
            count=self.count,
            rows=((self.rows - offset) / factor).astype(np.float32),
            minimum=((self.minimum - shift) / scale).astype(np.float32),
            maximum=((self.maximum - shift) / scale).astype(np.float32),
            mean=(self.mean - offset) / factor,
            moments=moments.astype(np.float32),
            histogram=self.histogram,
            low=(self.low - shift) / scale,
            high=(self.high - shift) / scale,
        )

    def covariance(self) -> NDArray[np.float32]:
        """Return E[x xᵀ] - E[x] E[x]ᵀ, float32 [K, K]."""
        centred: NDArray[np.float32] = (self.moments - np.outer(self.mean, self.mean)).astype(np.float32)
        return centred


class _Index(Record):
    """The contents of ``statistics.json``."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    vitedge_version: str = __version__
    key: str
    samples: int
    counts: dict[str, int]  # rows seen by view
    digest: str  # SHA-256 of the tensors


@dataclass(frozen=True)
class Statistics:
    """Observations of one model over one set of images, by :attr:`vitedge.quantization.views.View.key`."""

    key: str  # of model, preprocessing, images and the recipe's Observe section
    samples: int  # images seen
    observed: Mapping[str, Observed]

    def save(self, folder: str | Path) -> None:
        """Write ``statistics.safetensors`` and ``statistics.json`` into ``folder``; the second completes the first.

        Raises:
            ResourceError: disk, permission.
        """
        tensors = {
            f"{view}#{name}": np.ascontiguousarray(getattr(values, name))
            for view, values in self.observed.items()
            for name in _ARRAYS
        }
        pieces = safetensors_pieces(tensors)
        index = _Index(
            key=self.key,
            samples=self.samples,
            counts={view: values.count for view, values in self.observed.items()},
            digest=sha256_of(pieces),
        )
        write_atomic(Path(folder) / TENSORS, pieces, "keep the calibration statistics")
        write_atomic(Path(folder) / INDEX, encode_json(index), "keep the calibration statistics")

    @classmethod
    def load(cls, folder: str | Path, key: str) -> Statistics | None:
        """Load the statistics in ``folder``, or None: absent, of another key or version, damaged, or half written."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            record = decode_json((Path(folder) / INDEX).read_bytes(), _Index, action="read statistics", file=INDEX)
            if record.key != key:
                return None
            data = (Path(folder) / TENSORS).read_bytes()
            if sha256(data) != record.digest:
                return None
            tensors = load(data)
            observed = {
                view: Observed(count=count, **{name: tensors[f"{view}#{name}"] for name in _ARRAYS})
                for view, count in record.counts.items()
            }
        except (OSError, InputError, SafetensorError, KeyError, ValueError, TypeError):
            return None
        return cls(key, record.samples, observed) if all(map(_sound, observed.values())) else None


def safetensors_pieces(tensors: Mapping[str, NDArray[Any]]) -> list[bytes | memoryview]:
    """Return a safetensors file of contiguous arrays in pieces that share the arrays' memory; the safetensors package
    would copy the whole file twice (github.com/huggingface/safetensors, "Format")."""
    header, offset = {}, 0
    ordered = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # each aligned to its size
    for name in ordered:
        array = tensors[name]
        kind = {"f": "F", "i": "I", "u": "U"}[array.dtype.kind]
        ends = [offset, offset + array.nbytes]
        header[name] = {"dtype": f"{kind}{8 * array.itemsize}", "shape": list(array.shape), "data_offsets": ends}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    arrays = [np.ascontiguousarray(tensors[name]) for name in ordered if tensors[name].size]
    return [len(text).to_bytes(8, "little"), text, *(array.reshape(-1).view(np.uint8).data for array in arrays)]


def sha256_of(pieces: Iterable[bytes | memoryview]) -> str:
    """Return the hex SHA-256 of all pieces in sequence."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


_ARRAYS = tuple(name for name in Observed.__dataclass_fields__ if name != "count")


def _sound(values: Observed) -> bool:
    """Whether the arrays' shapes fit each other and all values are finite."""
    width, channels = len(values.mean), len(values.minimum)
    return (
        values.rows.shape == (len(values.rows), width)
        and values.moments.shape == (width, width)
        and values.histogram.ndim == 2
        and len(values.histogram) == channels
        and values.maximum.shape == values.low.shape == values.high.shape == (channels,)
        and channels > 0
        and width % channels == 0
        and all(np.isfinite(getattr(values, name)).all() for name in _ARRAYS)
    )
