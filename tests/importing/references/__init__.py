"""What timm and transformers make of random models and of pictures: small stored references, and what both sides share.

``make.py`` writes them and needs timm and transformers; the tests need neither.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitedge.data import embedded
from vitedge.data.preprocessing import Preprocessing
from vitedge.graph import hf_processor, timm_layout

FOLDER = Path(__file__).resolve().parent
FAMILIES, LOGITS, FRAMES = FOLDER / "families.json", FOLDER / "logits.npz", FOLDER / "frames.npz"
VARIANTS, PIXELS = FOLDER / "preprocessing.json", FOLDER / "preprocessing.npz"  # of make_preprocessing.py
#: (rows, columns) of the 32×32 photographs that make each picture of photographs.
MOSAICS = ((1, 1), (3, 4), (15, 11), (8, 19), (7, 7))
#: What timm's CheckpointSaver leaves, and timm's logits with its weights; ``make_checkpoint.py`` writes them.
CHECKPOINT, CHECKPOINT_LOGITS = FOLDER / "model_best.pth.tar", FOLDER / "model_best.npz"
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


def photographs() -> dict[str, Image.Image]:
    """Photographs of 32×32 pixels (CIFAR-10's, which ship) side by side: RGB, up to 480×608 pixels."""
    tiles = embedded.pictures("calibration")
    pictures, used = {}, 0
    for rows, columns in MOSAICS:
        picture = Image.new("RGB", (32 * columns, 32 * rows))
        for place in range(rows * columns):
            tile = tiles.read(used % len(tiles))
            picture.paste(tile, (32 * (place % columns), 32 * (place // columns)))
            used += 1
        pictures[f"{rows}x{columns}"] = picture
    return pictures


def published_contract(folder: Path, variant: Mapping[str, Any]) -> tuple[Preprocessing, dict[str, Any]]:
    """What import reads from the files of a variant, and which of it comes from the library's defaults."""
    if variant["library"] == "timm":
        published = timm_layout._read_config(folder / "config.json", "test")
        size = timm_layout._data_size(published, "test")
        fields, defaults = timm_layout._preprocessing(published, size, {}, "test")
    else:
        model = variant["files"]["config.json"]["model_type"]
        fields, defaults = hf_processor.read_preprocessing(folder, model, (224, 224), {}, "test")
    return msgspec.convert(fields, Preprocessing), defaults


def write_files(folder: Path, files: Mapping[str, Any]) -> Path:
    """A folder with these JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def prepared(contract: Preprocessing, picture: Image.Image) -> NDArray[np.float64]:
    """A picture as the network gets it: float64 [height, width, 3]."""
    return (contract.apply(picture) * contract.rescale - np.asarray(contract.mean)) / np.asarray(contract.std)


def grey_levels(difference: NDArray[np.float64], contract: Preprocessing) -> NDArray[np.float64]:
    """A difference of prepared values, [..., 3], in grey levels of the picture."""
    return np.abs(difference) * np.asarray(contract.std) / contract.rescale
