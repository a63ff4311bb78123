"""One pass over the pictures against everything at once in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from onnx import numpy_helper

from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from vitedge.errors import InvalidResultError, ModelError
from vitedge.formats.architecture import ConvStem
from vitedge.formats.recipe import Observe
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import pin_batch
from vitedge.quantization.observe import Histogram, observe, spanned
from vitedge.quantization.statistics import INDEX, TENSORS, Observed, Statistics
from vitedge.quantization.views import quantizable
from vitedge.runtimes.interpreter import run_graph

CONFIG = tiny(stem=ConvStem(channels=(6, 8), strides=(2, 4)), depth=1)
SETTINGS = Observe(num_samples=20, seed=3, reservoir_rows=64, histogram_bins=64)
IMAGES = random_images(CONFIG, 20)


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return author_vit(CONFIG, random_arrays(CONFIG), mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def statistics(graph: onnx.ModelProto) -> Statistics:
    return observe(graph, iter(IMAGES), SETTINGS, key="k")


def tensors(graph: onnx.ModelProto, names: list[str]) -> dict[str, np.ndarray]:
    """The named tensors over all pictures at once."""
    import onnxruntime

    watched = onnx.ModelProto.FromString(graph.SerializeToString())
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"image": IMAGES}), strict=True))


def test_every_input_is_observed_once(graph: onnx.ModelProto, statistics: Statistics) -> None:
    layers, refused = quantizable(graph)
    assert not refused
    assert [layer.view.key for layer in layers] == list(statistics.observed)
    assert statistics.samples == len(IMAGES) and statistics.key == "k"


def test_sums_and_extremes(graph: onnx.ModelProto, statistics: Statistics) -> None:
    layers, _ = quantizable(graph)
    values = tensors(graph, [layer.view.tensor for layer in layers])
    for layer in layers:
        seen = statistics.observed[layer.view.key]
        value = values[layer.view.tensor]
        rows, channels = layer.view.rows(value).astype(np.float64), layer.view.channels(value)
        assert seen.count == len(rows)
        assert np.array_equal(seen.minimum, channels.min(axis=0))
        assert np.array_equal(seen.maximum, channels.max(axis=0))
        assert np.allclose(seen.mean, rows.mean(axis=0), atol=1e-5)
        assert np.allclose(seen.moments, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)
        assert (seen.histogram.sum(axis=1) == len(channels)).all()
        assert (seen.low <= channels.min(axis=0)).all() and (seen.high >= channels.max(axis=0)).all()


def test_rows_are_a_sample_that_no_order_changes(graph: onnx.ModelProto, statistics: Statistics) -> None:
    layers, _ = quantizable(graph)
    layer = next(layer for layer in layers if layer.name == "blocks.0.mlp.fc1")
    rows = layer.view.rows(tensors(graph, [layer.view.tensor])[layer.view.tensor]).astype(np.float16)
    kept = statistics.observed[layer.view.key].rows
    assert kept.shape == (64, CONFIG.embed_dim) and kept.dtype == np.float16
    nearest = np.abs(kept[:, None].astype(float) - rows[None].astype(float)).max(axis=2).min(axis=1)
    assert (nearest <= 2e-3).all()
    backwards = observe(graph, IMAGES[::-1], SETTINGS, key="k").observed[layer.view.key].rows
    assert np.allclose(kept.astype(float), backwards.astype(float), atol=2e-3)
    other = observe(graph, IMAGES, replace(SETTINGS, seed=4), key="k").observed[layer.view.key].rows
    assert not np.allclose(kept.astype(float), other.astype(float), atol=2e-3)


def test_pictures_are_read_a_batch_at_a_time(graph: onnx.ModelProto) -> None:
    """However many there are, no more than a batch of them is asked for before the first is run."""
    reads: list[int] = []
    told: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        for index in range(150):
            reads.append(index)
            yield IMAGES[index % len(IMAGES)]

    observe(graph, stream(), SETTINGS, key="k", progress=lambda _, done, __: told.append(len(reads) - done))
    assert len(told) > 1 and max(told) <= 1


def test_a_fixed_batch_is_padded_and_not_counted(graph: onnx.ModelProto, statistics: Statistics) -> None:
    pinned = observe(pin_batch(graph, 8), IMAGES, SETTINGS, key="k")
    for key, seen in statistics.observed.items():
        assert pinned.observed[key].count == seen.count
        assert np.allclose(pinned.observed[key].mean, seen.mean, atol=1e-4)


def test_rows_of_a_convolution_are_what_it_multiplies(graph: onnx.ModelProto) -> None:
    layer = next(layer for layer in quantizable(graph)[0] if layer.name == "patch_embed.stem.1.conv")
    name = layer.linear.output
    values = tensors(graph, [layer.view.tensor, name])
    product = layer.view.rows(values[layer.view.tensor]) @ layer.matrix + layer.bias
    expected = np.moveaxis(values[name], 1, -1).reshape(product.shape)
    assert np.allclose(product, expected, atol=1e-4)


def test_what_is_not_finite_is_named(graph: onnx.ModelProto) -> None:
    broken = onnx.ModelProto.FromString(graph.SerializeToString())
    for tensor in broken.graph.initializer:
        if tensor.name == "blocks.0.norm2.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full(CONFIG.embed_dim, np.inf, np.float32), tensor.name))
    with pytest.raises(InvalidResultError, match=r"blocks\.0\.norm2\.out"):
        observe(broken, IMAGES, SETTINGS, key="k")


def test_no_pictures(graph: onnx.ModelProto) -> None:
    with pytest.raises(ModelError, match="there were no images"):
        observe(graph, [], SETTINGS, key="k")


def test_progress(graph: onnx.ModelProto) -> None:
    told: list[tuple[str, int, int]] = []
    observe(pin_batch(graph, 8), IMAGES, SETTINGS, key="k", progress=lambda *state: told.append(state))
    assert told == [("observe", 8, 20), ("observe", 16, 20), ("observe", 20, 20)]


@given(
    st.lists(
        st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=2, max_size=2), min_size=1, max_size=30
    ),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=50)
def test_a_histogram_whose_range_doubles_loses_nothing(values: list[list[float]], pieces: int) -> None:
    array = np.array(values, np.float32)
    batches = np.array_split(array, min(pieces, len(array)))
    histogram = Histogram(*spanned(batches[0]), np.zeros((batches[0].shape[1], 16), np.uint32))
    for batch in batches:
        histogram.add(batch, batch.min(axis=0), batch.max(axis=0))
    assert (histogram.counts.sum(axis=1) == len(array)).all()
    edges = histogram.low[:, None] + np.arange(17) / 16 * (histogram.high - histogram.low)[:, None]
    for channel in range(2):
        cumulative = np.cumsum(histogram.counts[channel])
        slack = 1e-5 * np.abs(edges[channel]).max() + 1e-30
        for edge, count in zip(edges[channel][1:], cumulative, strict=True):
            assert (array[:, channel] < edge - slack).sum() <= count <= (array[:, channel] <= edge + slack).sum()


# --- kept on disk ----------------------------------------------------------------------------------------------------


def test_saved_and_loaded(statistics: Statistics, tmp_path: Path) -> None:
    statistics.save(tmp_path / "kept")
    loaded = Statistics.load(tmp_path / "kept", "k")
    assert loaded is not None and loaded.samples == statistics.samples
    for key, seen in statistics.observed.items():
        for name in Observed.__dataclass_fields__:
            assert np.array_equal(getattr(seen, name), getattr(loaded.observed[key], name))


def test_another_key_is_not_found(statistics: Statistics, tmp_path: Path) -> None:
    assert Statistics.load(tmp_path, "k") is None
    statistics.save(tmp_path)
    assert Statistics.load(tmp_path, "another") is None


@pytest.mark.parametrize("name", [INDEX, TENSORS])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing"])
def test_damage_means_observe_again(statistics: Statistics, tmp_path: Path, name: str, damage: str) -> None:
    statistics.save(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "empty":
        data.clear()
    (tmp_path / name).write_bytes(bytes(data))
    if damage == "missing":
        (tmp_path / name).unlink()
    assert Statistics.load(tmp_path, "k") is None


def test_interpreting_equals_running(graph: onnx.ModelProto) -> None:
    """The interpreter pads a fixed batch, too."""
    symbolic, fixed = run_graph(graph, IMAGES), run_graph(pin_batch(graph, 8), IMAGES)
    assert symbolic.shape == (20, 7) and np.allclose(symbolic, fixed, atol=1e-5)


def test_statistics_are_written_in_the_safetensors_format() -> None:
    """By hand, without a copy of the whole; the package reads it."""
    from safetensors.numpy import load

    from vitedge.quantization.statistics import safetensors_pieces

    arrays = {
        "rows": np.arange(6, dtype=np.float16).reshape(2, 3),
        "nothing": np.zeros((0, 4), np.float16),
        "count": np.asarray(5, np.int64),
        "odd": np.arange(3, dtype=np.uint32),
        "keys": np.arange(2, dtype=np.uint64),
        "a#b": np.linspace(0, 1, 12).reshape(3, 4).T,
    }
    found = load(b"".join(safetensors_pieces(arrays)))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
