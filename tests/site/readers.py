"""What the readers of the Start pages and the tutorial have before they begin; for the tests and for first_hour.py."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image, ImageOps

from tests.graph.vits import random_arrays
from tests.site.pages import DOCS
from vitedge.data import embedded
from vitedge.training.zoo import zoo_config

CLASSES = ("airplane", "frog", "truck")
#: By a line of the page, what the hobbyist does by hand once it's done.
HOBBYIST_DOES = {"vitedge new workbench": "cp -r photos/* workbench/data/"}


def pictures(folder: Path, each: int, source: embedded.Pictures = "calibration") -> None:
    """Pictures of three classes, one folder a class."""
    images = embedded.pictures(source)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    counts = dict.fromkeys(CLASSES, 0)
    for index, record in enumerate(images.records):
        if record.folder in counts and counts[record.folder] < each:
            counts[record.folder] += 1
            place = folder / record.folder / f"{counts[record.folder]}{Path(record.name).suffix}"
            place.write_bytes(images.read_bytes(index))


def checkpoint(path: Path, classes: int, size: int, **beside: object) -> None:
    """A ``vit_tiny_patch16_224`` as timm's ``train.py`` saves it, with whatever else lies in the file."""
    import torch

    config = zoo_config("vit_tiny_patch16_224", num_classes=classes, image_size=(size, size))
    weights = {name: torch.from_numpy(value) for name, value in random_arrays(config).items()}
    torch.save({"state_dict": weights, "epoch": 9, **beside}, path)


def engineer(folder: Path) -> None:
    """A checkpoint as timm's ``train.py`` writes it, its classes, and pictures with and without labels."""
    checkpoint(folder / "model_best.pth.tar", len(CLASSES), 64)
    (folder / "names.txt").write_text("\n".join(CLASSES))
    pictures(folder / "pictures", 20)
    pictures(folder / "labelled", 20, "held-out")


def hobbyist(folder: Path) -> None:
    """Forty photographs of each of three things."""
    pictures(folder / "photos", 40)


def student(folder: Path) -> None:
    """The tutorial's two files."""
    for name in ("build_a_vit.py", "vit.py"):
        shutil.copy(DOCS / "tutorials" / name, folder)


def developer(folder: Path) -> None:
    """An INT8 artifact for ONNX Runtime, and a picture."""
    import vitedge

    model = vitedge.import_model("embedded", out=folder / "model0")
    vitedge.export(model, target="onnxruntime", precision="int8", out=folder / "int8")
    embedded.pictures("display").read(0).save(folder / "picture.png")


def model_and_pictures(folder: Path, model: Path, data: Path) -> None:
    """A model, pictures to calibrate on, and labelled ones: mirror images of those, since no picture may be both."""
    shutil.copytree(model, folder / "model")
    shutil.copytree(data, folder / "images")
    mirrored(data, folder / "labelled")


def mirrored(data: Path, folder: Path) -> Path:
    """Mirror images of all PNG files, in the same class folders; returns ``folder``."""
    for path in data.rglob("*.png"):
        copy = folder / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            ImageOps.mirror(picture).save(copy)
    return folder
