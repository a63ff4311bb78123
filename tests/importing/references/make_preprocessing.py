"""How timm and transformers prepare pictures: ``python -m tests.importing.references.make_preprocessing [PHOTOS]``.

Each variant is a folder as people have it: what is in its files, and what is missing there. The library itself reads
the folder (``AutoImageProcessor`` with both of its back ends, and timm's reader of ``config.json`` with
``create_transform``) and prepares photographs; some of the values that the network would get are stored. Printed is how
far whole pictures are from ours, also those of a folder PHOTOS.

Needs torch, timm, transformers and torchvision, and Pillow 12 (``make.py`` says why).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from tests.importing.references import (
    PIXELS,
    VARIANTS,
    grey_levels,
    photographs,
    positions,
    prepared,
    published_contract,
    write_files,
)
from tests.importing.references.make import declare_torchvision

Transform = Callable[[Image.Image], NDArray[np.float64]]  # RGB -> [height, width, 3]

COUNT = 400  # stored pixels of a prepared picture
HALF, IMAGENET_MEAN, IMAGENET_STD = [0.5] * 3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NORMALISED = {"do_normalize": True, "do_resize": True, "image_mean": HALF, "image_std": HALF}
IMAGENET = {"do_normalize": True, "do_resize": True, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
SQUARE, RESCALED = {"height": 224, "width": 224}, {"do_rescale": True, "rescale_factor": 0.00392156862745098}

#: name -> (model_type, what preprocessor_config.json holds)
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT of 2021, no type, no resample": ("vit", {**NORMALISED, "size": 224}),
    "ViT with a feature extractor": (
        "vit", {**NORMALISED, "feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "size": 224},
    ),
    "ViT as saved by transformers 4": (
        "vit",
        {**NORMALISED, **RESCALED, "image_processor_type": "ViTImageProcessor", "resample": 2, "size": SQUARE},
    ),
    "ViT with a fast processor and nulls": (
        "vit",
        {**NORMALISED, **RESCALED, "image_processor_type": "ViTImageProcessorFast", "size": SQUARE, "resample": 3,
         "crop_size": None, "data_format": "channels_first", "default_to_square": True, "device": None,
         "do_center_crop": None, "do_convert_rgb": None, "return_tensors": None},
    ),
    "ViT whose file says nothing": ("vit", {"image_processor_type": "ViTImageProcessor"}),
    "ViT without normalisation": ("vit", {"do_normalize": False, "size": {"height": 96, "width": 160}}),
    "ViT without rescaling": (
        "vit",
        {**SQUARE, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3, "size": SQUARE,
         "image_processor_type": "ViTImageProcessor"},
    ),
    "ViT with one mean and another factor": (
        "vit", {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0, "resample": 0, "size": [128, 128]},
    ),
    "DeiT of 2021": (
        "deit",
        {**IMAGENET, "feature_extractor_type": "DeiTFeatureExtractor", "do_center_crop": True, "crop_size": 224,
         "resample": 3, "size": 256},
    ),
    "DeiT whose file says nothing": ("deit", {"do_resize": True}),
    "DeiT without a crop": ("deit", {**IMAGENET, "do_center_crop": False, "size": 224, "resample": 3}),
    "DINOv2 as published": (
        "dinov2",
        {**IMAGENET, **RESCALED, "image_processor_type": "BitImageProcessor", "crop_size": SQUARE,
         "do_center_crop": True, "do_convert_rgb": True, "resample": 3, "size": {"shortest_edge": 256}},
    ),
    "DINOv2 whose file says nothing": ("dinov2", {}),
    "ViT with CLIP's extractor": (
        "vit",
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3,
         "do_center_crop": True, "do_normalize": True},
    ),
    "ConvNext's, 224 with crop_pct": (
        "vit", {**IMAGENET, "feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.9},
    ),
    "ConvNext's, 384": ("vit", {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}}),
    "BEiT's": ("vit", {**NORMALISED, "feature_extractor_type": "BeitFeatureExtractor", "do_center_crop": False,
                       "crop_size": 224, "resample": 2, "size": 224}),
    "SigLIP's": ("vit", {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "resample": 3}),
    "LeViT's": ("vit", {**IMAGENET, "feature_extractor_type": "LevitFeatureExtractor", "size": 224, "resample": 3}),
    "PVT's": ("vit", {"image_processor_type": "PvtImageProcessor", "resample": 2}),
    "MobileNet's": ("vit", {"image_processor_type": "MobileNetV2ImageProcessor", "resample": 2}),
}  # fmt: skip

VIT = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "mean": HALF, "std": HALF}
#: name -> (pretrained_cfg, model_args); a pretrained_cfg of None: the file is one flat dictionary
TIMM: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ViT, AugReg": ({**VIT, "crop_mode": "center", "fixed_input_size": True, "custom_load": True}, {}),
    "DeiT, ImageNet's mean": ({**VIT, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_pct": 0.875}, {}),
    "nothing said": ({}, {}),
    "all null": (dict.fromkeys([*VIT, "crop_mode"]), {}),
    "no mean and std": ({"input_size": [3, 160, 160], "interpolation": "bilinear", "crop_pct": 0.95}, {}),
    "squash": ({**VIT, "crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}, {}),
    "squash and crop": ({**VIT, "crop_mode": "squash"}, {}),
    "border": ({**VIT, "crop_mode": "border", "crop_pct": 1.0, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}, {}),
    "a crop_mode that isn't one": ({**VIT, "crop_mode": "none"}, {}),
    "another img_size": ({**VIT, "fixed_input_size": True}, {"img_size": 96}),
    "img_size of two sides": ({**VIT, "fixed_input_size": True, "crop_pct": 0.8}, {"img_size": [96, 160]}),
    "img_size that is dynamic": (
        {**VIT, "input_size": [3, 192, 192], "fixed_input_size": True}, {"img_size": 96, "dynamic_img_size": True},
    ),
    "lanczos, test_input_size": (
        {**VIT, "interpolation": "lanczos", "test_input_size": [3, 288, 288], "test_crop_pct": 1.0}, {},
    ),
    "box": ({**VIT, "interpolation": "box", "crop_pct": 1.0}, {}),
    "hamming": ({**VIT, "interpolation": "hamming", "crop_pct": 1.0, "input_size": [3, 64, 64]}, {}),
    "nearest": ({**VIT, "interpolation": "nearest", "crop_pct": 0.95, "input_size": [3, 128, 128]}, {}),
}  # fmt: skip


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, (model, processor) in TRANSFORMERS.items():
        files = {"config.json": {"model_type": model}, "preprocessor_config.json": processor}
        yield f"transformers: {name}", {"library": "transformers", "files": files}
    inside = {"processor_class": "Processor", "image_processor": {"image_processor_type": "ViTImageProcessor"}}
    files = {"config.json": {"model_type": "vit"}, "processor_config.json": inside}
    files["preprocessor_config.json"] = {**IMAGENET, "image_processor_type": "DeiTImageProcessor"}
    yield "transformers: inside processor_config.json", {"library": "transformers", "files": files}
    for name, (pretrained, args) in TIMM.items():
        config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": pretrained, "model_args": args}
        yield f"timm: {name}", {"library": "timm", "files": {"config.json": config}}
    flat = {"architecture": "vit_tiny_patch16_224", **VIT, "num_classes": 1000}
    yield "timm: one flat dictionary", {"library": "timm", "files": {"config.json": flat}}


def library_transforms(folder: Path, library: str) -> Iterator[tuple[str, Transform]]:
    """(name, transform) of what the library makes of a folder."""
    if library == "timm":
        import timm
        from timm.models._hub import load_model_config_from_path

        config = timm.data.resolve_data_config(pretrained_cfg=load_model_config_from_path(str(folder))[0])
        transform = timm.data.create_transform(**config, is_training=False)
        yield "", lambda picture: transform(picture).numpy().transpose(1, 2, 0)
        return
    from transformers import AutoImageProcessor

    for backend in ("pil", "torchvision"):
        processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
        assert type(processor).__name__.endswith("Pil") == (backend == "pil"), type(processor)
        yield (
            f" ({backend})",
            lambda picture, made=processor: np.asarray(
                made(picture, return_tensors="np")["pixel_values"][0], np.float64
            ).transpose(1, 2, 0),
        )


def main(photos: Path | None) -> None:
    assert PIL.__version__.startswith("12."), "make the references with Pillow 12"
    declared = declare_torchvision()
    pictures = photographs()
    others = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.JPEG"))] if photos else []
    stored: dict[str, Any] = {}
    pixels: dict[str, NDArray[np.float16]] = {}
    for name, variant in variants():
        stored[name] = variant
        with tempfile.TemporaryDirectory() as folder:
            source = write_files(Path(folder), variant["files"])
            contract, defaults = published_contract(source, variant)
            for suffix, transform in library_transforms(source, variant["library"]):
                kept, differences = [], []
                for title, picture in pictures.items():
                    values = transform(picture)
                    rows, columns = positions(title, values.shape, COUNT)
                    kept.append(values[rows, columns])
                    differences.append(grey_levels(values - prepared(contract, picture), contract))
                differences += [grey_levels(transform(one) - prepared(contract, one), contract) for one in others]
                pixels[name + suffix] = np.stack(kept).astype(np.float16)
                most = max(difference.max() for difference in differences)
                mean = max(difference.mean() for difference in differences)
                print(f"{name + suffix:62} largest {most:5.2f}, largest mean {mean:.4f} grey levels", flush=True)
            print(f"    from the library's defaults: {defaults}")
    np.savez_compressed(PIXELS, **pixels)
    VARIANTS.write_text(json.dumps(stored, separators=(",", ":")).replace('},"t', '},\n"t') + "\n")
    del declared


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
