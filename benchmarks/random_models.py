"""Models of the zoo with random weights, for benchmarks of time alone: that doesn't depend on what the weights are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.architecture import BlockWidths
from vitedge.formats.model_folder import ModelRecord, Origin, class_table, write_model
from vitedge.graph.author import author_vit, expected_parameters
from vitedge.graph.surgery import to_bytes
from vitedge.training.zoo import zoo_config


def random_model(
    name: str,
    out: Path,
    classes: Sequence[str] = tuple(map(str, range(1000))),
    *,
    widths: BlockWidths | None = None,
) -> Path:
    """A model folder of this architecture; matrices keep the variance of what passes, norms are near one.

    ``widths``: of every block, where they aren't the full ones.
    """
    config = zoo_config(name, num_classes=len(classes))
    if widths is not None:
        config = replace(config, blocks=(widths,) * config.depth)
    draw = np.random.default_rng(0)

    def values(parameter: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = draw.standard_normal(shape)
        if len(shape) > 1:
            return (noise / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        centre = 1.0 if parameter.endswith(("weight", "gamma")) else 0.0
        return (centre + 0.02 * noise).astype(np.float32)

    arrays = {parameter: values(parameter, shape) for parameter, shape in expected_parameters(config, folded_stem=True)}
    preprocessing = Preprocessing(size=config.image_size, crop_fraction=0.9)
    record = ModelRecord(
        name=name,
        classes=class_table(list(classes)),
        preprocessing=preprocessing,
        origin=Origin(kind="train", source="random weights"),
        architecture=config,
    )
    graph = author_vit(config, arrays, mean=preprocessing.mean, std=preprocessing.std, name=name)
    return write_model(out, record, {"model.onnx": to_bytes(graph)}).path
