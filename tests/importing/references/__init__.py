"""What timm and transformers make of random models and of pictures: small stored references, and what both sides share.

``make.py`` writes them and needs timm and transformers; the tests need neither.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent
FAMILIES, LOGITS, FRAMES = FOLDER / "families.json", FOLDER / "logits.npz", FOLDER / "frames.npz"
PHOTOS = 3  # of the photographs, for logits; sampled pixels are there of all
SAMPLES = 24  # pixels of every prepared photograph: too few to be one
GOLDEN_SAMPLES = 400  # of every generated picture


def random_weight(name: str, shape: tuple[int, ...], type_: str = "float32") -> NDArray[Any]:
    """The same values on every machine (RandomState's streams are frozen), at scales that keep every layer alive."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    last = name.rsplit(".", 1)[-1]
    if name == "rope.freqs":
        values = random.uniform(-1.0, 1.0, shape)
    elif last in ("gamma", "gamma_1", "gamma_2", "lambda1") or (last == "weight" and len(shape) == 1):
        values = random.uniform(0.5, 1.5, shape)
    elif last == "weight":
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.3 * random.standard_normal(shape)
    return values.astype(type_)


def write_folder(folder: Path, family: dict[str, Any]) -> Path:
    """The folder as its library publishes it."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    for name, content in family["files"].items():
        (folder / name).write_text(json.dumps(content))
    arrays = {
        name: random_weight(name, tuple(shape), family.get("type", "float32"))
        for name, shape in family["tensors"].items()
    }
    save_file(arrays, folder / "model.safetensors")
    return folder


def positions(name: str, shape: tuple[int, ...], count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(rows, columns) of the pixels of a picture that are kept."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return random.randint(0, shape[0], count), random.randint(0, shape[1], count)
