"""Small random ViTs as artifacts, made by the real lowerings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from msgspec.structs import replace
from numpy.typing import NDArray

from tests.graph.vits import MEAN, STD, random_arrays
from vitedge import runtimes
from vitedge.data.golden import golden_pictures
from vitedge.data.images import open_picture
from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.architecture import ConvStem, ViTConfig
from vitedge.formats.artifact import (
    GOLDEN_INPUTS,
    GOLDEN_LOGITS,
    GOLDEN_REFERENCE,
    Artifact,
    Golden,
    Manifest,
    npy,
    write_artifact,
)
from vitedge.formats.model_folder import Origin, class_table
from vitedge.formats.recipe import load_recipe
from vitedge.formats.target import Candidate, Target
from vitedge.graph.author import author_vit
from vitedge.graph.reference import reference_logits
from vitedge.quantization.observe import observe
from vitedge.runtimes.base import Lowered, OpenOptions, Request
from vitedge.runtimes.session import Session

CONFIG = ViTConfig(
    image_size=(32, 48),
    stem=ConvStem(channels=(16, 32), strides=(2, 4)),
    embed_dim=64,
    depth=2,
    num_heads=2,
    mlp_hidden=128,
    num_classes=7,
)
PREPROCESSING = Preprocessing(size=(32, 48), mean=MEAN, std=STD)


def small_graph(config: ViTConfig = CONFIG) -> onnx.ModelProto:
    return author_vit(config, random_arrays(config), mean=MEAN, std=STD)


def reference(images: NDArray[np.uint8], config: ViTConfig = CONFIG) -> NDArray[np.float32]:
    """Float64 logits of :func:`small_graph`, rounded once."""
    return reference_logits(config, random_arrays(config), images, mean=MEAN, std=STD).astype(np.float32)


def request(target: Target, candidate: Candidate, batch: int = 1, config: ViTConfig = CONFIG) -> Request:
    graph, recipe, statistics, pictures = small_graph(config), None, None, None
    if candidate.precision == "int8":
        recipe = load_recipe("fast")
        frames = np.random.default_rng(1).integers(0, 256, (16, *PREPROCESSING.size, 3), dtype=np.uint8)
        statistics = observe(graph, frames, recipe.observe, key="random pictures")
        pictures = partial(iter, frames)
    return Request(
        graph=graph,
        target=target,
        candidate=candidate,
        batch=batch,
        preprocessing=PREPROCESSING,
        classes=class_table([f"class {index}" for index in range(config.num_classes)]),
        recipe=recipe,
        statistics=statistics,
        pictures=pictures,
    )


def lower(wish: Request) -> Lowered:
    lowered: Lowered = runtimes.part(wish.target.runtime, "lowering").lower(wish)
    return lowered


def write(out: Path, wish: Request, lowered: Lowered, config: ViTConfig = CONFIG) -> Artifact:
    """The artifact, its golden logits computed by its own runtime, its reference by numpy."""
    pictures = golden_pictures()
    inputs = np.stack([PREPROCESSING.apply(open_picture(data, name)) for name, data in pictures.items()])
    expected = reference(inputs, config)
    manifest = Manifest(
        name=f"random-{wish.target.name}-{wish.candidate.variant}-{wish.batch}",
        target=wish.target,
        precision=wish.candidate.precision,
        variant=wish.candidate.variant,
        batch=wish.batch,
        graph=lowered.graph,
        classes=wish.classes,
        preprocessing=wish.preprocessing,
        layers=lowered.layers,
        precision_obtained={},
        runtime_options=dict(lowered.runtime_options),
        built_with=dict(lowered.built_with),
        model_digest="0" * 64,
        origin=Origin(kind="train", source="random weights"),
        golden=Golden(pictures=tuple(pictures), executed_by=wish.target.runtime, deviation=0.0),
        candidates=(),
    )
    logits = _run(out.with_name(out.name + "-trial"), manifest, lowered.files, inputs)
    deviation = float(np.abs(logits - expected).max() / np.abs(expected).max())
    manifest = replace(manifest, golden=replace(manifest.golden, deviation=deviation))
    files = {**lowered.files, **pictures}
    files |= {GOLDEN_INPUTS: npy(inputs), GOLDEN_LOGITS: npy(logits), GOLDEN_REFERENCE: npy(expected)}
    return write_artifact(out, manifest, files, overwrite=False, action="write an artifact")


def make(out: Path, target: Target, candidate: Candidate, batch: int = 1, config: ViTConfig = CONFIG) -> Artifact:
    wish = request(target, candidate, batch, config)
    return write(out, wish, lower(wish), config)


def _run(
    folder: Path, manifest: Manifest, files: Mapping[str, bytes], inputs: NDArray[np.uint8]
) -> NDArray[np.float32]:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    trial = Artifact(folder, manifest)
    backend = runtimes.part(manifest.target.runtime, "session").open_backend(trial, OpenOptions(threads=1))
    with Session(trial, backend) as session:
        return np.stack(list(session.map_batches(inputs)))
