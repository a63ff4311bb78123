"""Find the patches of a picture that a prediction came from: attention rollout and patch occlusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitedge.core.schema import Record
from vitedge.errors import InvalidResultError, UsageError, nearest
from vitedge.formats.model_folder import ClassLabel, Model
from vitedge.graph.merging import sizes
from vitedge.runtimes.options import OpenOptions

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from vitedge.core.progress import Progress
    from vitedge.data.preprocessing import Preprocessing
    from vitedge.formats.architecture import ViTConfig
    from vitedge.runtimes.session import Session

ACTION = "explain a picture"
CHUNK = 16  # pictures that are in memory at once
MOST_ROWS, LEAST_PIXELS = 14, 4  # rows of squares where the patches aren't known, and the least side of a square
Logits = Callable[["NDArray[np.uint8]"], "NDArray[np.float32]"]
Map = tuple[tuple[float, ...], ...]


class PictureExplanation(Record):
    """One picture, one class, and a number for each patch, rows from the top."""

    picture: str
    label: str  # the class that is explained
    probability: float
    occlusion: Map  # by how much the probability falls when this patch is hidden
    rollout: Map | None  # share of the attention that comes from this patch, sum 1; None: see ``no_rollout``
    no_rollout: str = ""  # why


class Subject(NamedTuple):
    """The model that is explained, and its known properties."""

    logits: Logits  # uint8 [count, h, w, 3] -> float32 [count, classes]
    preprocessing: Preprocessing
    classes: Sequence[ClassLabel]
    grid: tuple[int, int]  # rows and columns of patches
    graph: onnx.ModelProto | None = None  # canonical
    config: ViTConfig | None = None  # of the graph
    no_rollout: str = ""


def refuse_options(options: OpenOptions | None) -> None:
    """Refuse options that have no effect on a model folder.

    Raises:
        UsageError: any option of opening an artifact.
    """
    if options not in (None, OpenOptions()):
        reason = "it's a model folder, which ONNX Runtime runs on the CPU without --device, --threads and --no-build"
        raise UsageError(ACTION, reason, "omit them, or give an artifact")


def of_model(model: Model) -> Subject:
    """Open a model folder: its canonical graph runs in ONNX Runtime.

    Raises:
        NotInstalledError: onnx or onnxruntime is missing.
        ModelError: the graph can't be read.
    """
    from vitedge.graph.surgery import load
    from vitedge.runtimes import interpreter

    interpreter.require(ACTION)
    record, graph = model.record, load(model.onnx_path)
    config, opened = record.architecture, interpreter.Interpreter(graph, optimized=True)
    return Subject(
        logits=lambda images: opened.run(images)[0],
        preprocessing=record.preprocessing,
        classes=record.classes,
        grid=config.grid if config else square_grid(record.preprocessing.size),
        graph=graph,
        config=config,
        no_rollout="" if config else "the network isn't a plain Vision Transformer",
    )


def of_session(session: Session) -> Subject:
    """Open an artifact in its own runtime; attention isn't among its graph's outputs."""
    manifest = session.artifact.manifest
    return Subject(
        logits=lambda images: np.stack(list(session.map_batches(images))),
        preprocessing=manifest.preprocessing,
        classes=manifest.classes,
        grid=square_grid(manifest.preprocessing.size),
        no_rollout="an artifact doesn't output its attention; give the model folder that it was exported from",
    )


def square_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Return (rows, columns) of squares that cover a picture of (height, width) pixels with unknown patches."""
    side = max(LEAST_PIXELS, max(size) / MOST_ROWS)
    return max(1, round(size[0] / side)), max(1, round(size[1] / side))


def explain(
    subject: Subject, image: NDArray[np.uint8], picture: str, class_name: str | None, progress: Progress
) -> PictureExplanation:
    """Explain a prediction by the picture's patches.

    Args:
        subject: what answers.
        image: uint8 [h, w, 3], as preprocessing makes it.
        picture: its name.
        class_name: the class to explain, by its name or folder; None: the most probable one.
        progress: called with (task, done, total).

    Raises:
        UsageError: the model has no such class.
        InvalidResultError: logits that aren't finite.
    """
    scores = _scores(subject, image[None])[0]
    index = int(scores.argmax()) if class_name is None else _class_index(subject.classes, class_name)
    return PictureExplanation(
        picture=picture,
        label=subject.classes[index].name,
        probability=float(scores[index]),
        occlusion=_rows(float(scores[index]) - _occluded(subject, image, index, progress)),
        rollout=None if subject.no_rollout else _rows(_rollout_of(subject, image)),
        no_rollout=subject.no_rollout,
    )


def bounds(grid: tuple[int, int], size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Return the pixels of each patch, row by row: slices of an image [h, w, 3]."""
    down, across = (
        np.linspace(0, pixels, count + 1).round().astype(int) for count, pixels in zip(grid, size, strict=True)
    )
    return [
        (slice(down[row], down[row + 1]), slice(across[column], across[column + 1]))
        for row in range(grid[0])
        for column in range(grid[1])
    ]


def rollout(mixings: Sequence[NDArray[np.float32]], config: ViTConfig) -> NDArray[np.float64]:
    """Compute attention rollout (Abnar and Zuidema, 2005.00928): the share of each patch in the pooled tokens.

    Args:
        mixings: in their order, softmax [heads, T, T] of each block that has heads, and the matrix [fewer, T] of each
            by which tokens are merged.
        config: the architecture.

    Returns:
        float64 [rows, columns], sum 1.
    """
    mixed = np.eye(config.tokens)
    for mixing in mixings:
        if mixing.ndim == 3:  # the residual connection carries the other half
            mixing = 0.5 * mixing.astype(np.float64).mean(axis=0) + 0.5 * np.eye(len(mixed))
        mixed = mixing @ mixed
    prefix = config.prefix_tokens
    merges = (mixing[prefix:, prefix:] for mixing in mixings if mixing.ndim == 2)
    mean = np.average(mixed[prefix:], axis=0, weights=sizes(merges, config.grid[0] * config.grid[1]))
    pooled = {
        "token": mixed[: 1 + config.distillation_token].mean(axis=0),
        "avg": mean,
        "token_avg": 0.5 * mixed[0] + 0.5 * mean,
    }[config.pool]
    patches: NDArray[np.float64] = pooled[prefix:].reshape(config.grid)
    return np.asarray(patches / patches.sum())


def _rollout_of(subject: Subject, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    from vitedge.graph.surgery import array, initializers
    from vitedge.runtimes.interpreter import Interpreter

    assert subject.graph is not None and subject.config is not None
    names = {f"blocks.{index}.attn.softmax" for index in range(subject.config.depth)}
    tensors = [node.output[0] for node in subject.graph.graph.node if node.name in names]
    softmax = iter(Interpreter(subject.graph, optimized=True, tensors=tensors).run(image[None])[1:])
    constants = initializers(subject.graph)
    merges = {f"blocks.{index}.merge" for index in range(subject.config.depth)}
    nodes = (node for node in subject.graph.graph.node if node.name in names | merges)
    mixings = [next(softmax)[0] if node.name in names else array(constants[node.input[0]]) for node in nodes]
    return rollout(mixings, subject.config)


def _occluded(subject: Subject, image: NDArray[np.uint8], index: int, progress: Progress) -> NDArray[np.float64]:
    """Return a class's probability with each patch hidden (Zeiler and Fergus, 1311.2901), float64 [rows, columns]."""
    patches, scores = bounds(subject.grid, subject.preprocessing.size), list[float]()
    for start in range(0, len(patches), CHUNK):
        hidden = np.stack([image] * len(patches[start : start + CHUNK]))
        for number, patch in enumerate(patches[start : start + CHUNK]):
            hidden[number][patch] = _mean_colour(subject.preprocessing)
        scores += _scores(subject, hidden)[:, index].tolist()
        progress("occlusion", len(scores), len(patches))
    return np.array(scores).reshape(subject.grid)


def _mean_colour(preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the RGB colour that is 0 after normalisation."""
    mean = np.array(preprocessing.mean) / preprocessing.rescale
    rgb = mean if preprocessing.channel_order == "rgb" else mean[::-1]
    return np.asarray(np.clip(rgb, 0, 255).round().astype(np.uint8))


def _scores(subject: Subject, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    logits = subject.logits(images)
    if not np.isfinite(logits).all():
        raise InvalidResultError(ACTION, "the model's output isn't finite", "run: vitedge verify ARTIFACT")
    return subject.preprocessing.probabilities(logits)


def _class_index(classes: Sequence[ClassLabel], name: str) -> int:
    for label in classes:
        if name in (label.name, label.folder):
            return label.id
    reason = f"the model has no class '{name}'{nearest(name, [label.name for label in classes])}"
    raise UsageError(ACTION, reason, "run: vitedge inspect MODEL")


def _rows(values: NDArray[np.float64]) -> Map:
    return tuple(tuple(map(float, row)) for row in values)
