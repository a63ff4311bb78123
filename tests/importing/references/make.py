"""Make the references: ``python -m tests.importing.references.make PHOTOS`` (a folder of photographs).

Needs torch, timm, transformers and torchvision, and Pillow 12, whose order of the two passes of a resize ours is
(Pillow 13 takes the cheaper first, which moves single pixels of unevenly scaled pictures by up to 10 grey levels).
Without torchvision's compiled operators (its wheels fit one torch build each) their names are declared first; the
transforms don't call them. Prints how far the whole prepared photographs are from ours; what is stored of them is a
handful of pixels.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.importing.references import (
    FAMILIES,
    FRAMES,
    GOLDEN_SAMPLES,
    LOGITS,
    PHOTOS,
    SAMPLES,
    positions,
    random_weight,
)
from vitedge.data.golden import golden_pictures

Frame = NDArray[np.uint8]
CLASSES = 7


def declare_torchvision() -> torch.library.Library:
    """Declare the operators that ``import torchvision`` registers shapes for."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in dict.fromkeys(re.findall(r'(?:register_meta\(|register_fake\()"(?:torchvision::)?(\w+)"', text)):
        library.define(f"{name}(Tensor x) -> Tensor")
    return library


TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "vit_tiny_patch16_224 qk_norm": {"qk_norm": True},
    "vit_tiny_patch16_224 float16": {},
    "vit_small_patch32_224 192x256": {"embed_dim": 192, "num_heads": 3, "img_size": (192, 256)},
    "vit_tiny_patch16_384": {"img_size": 224},
    "vit_base_patch8_224": {"embed_dim": 128, "num_heads": 2, "img_size": 128},
    "flexivit_small": {"embed_dim": 128, "num_heads": 2},
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {"embed_dim": 192, "num_heads": 3},
    "vit_wee_patch16_reg1_gap_256": {},
    "vit_little_patch16_reg4_gap_256": {"embed_dim": 192, "num_heads": 3},
    "vit_medium_patch16_gap_240": {"embed_dim": 128, "num_heads": 2},
    "vit_xsmall_patch16_clip_224": {},
    "vit_small_patch14_dinov2": {"embed_dim": 192, "num_heads": 3, "img_size": 224},
    "vit_small_patch14_reg4_dinov2": {"embed_dim": 192, "num_heads": 3, "img_size": 224},
    "vit_giant_patch14_dinov2": {"embed_dim": 128, "num_heads": 2, "img_size": 224},
    "vit_tiny_patch16_dinov3_qkvb": {},
    "vit_small_patch16_dinov3": {"embed_dim": 192, "num_heads": 3, "global_pool": "token"},
    "vit_small_plus_patch16_dinov3": {"embed_dim": 192, "num_heads": 3, "img_size": (192, 256)},
    "vit_small_patch16_rope_224": {"embed_dim": 192, "num_heads": 3},
    "vit_small_patch16_rope_ape_224": {"embed_dim": 128, "num_heads": 2},
    "vit_small_patch16_rope_mixed_ape_224": {"embed_dim": 128, "num_heads": 2},
    "vit_medium_patch16_rope_reg1_gap_256": {"embed_dim": 128, "num_heads": 2, "img_size": 224},
}
#: Asked of the import: what ``vitedge import --size`` says, against the model that timm makes for that size.
RESIZED = {"vit_tiny_patch16_224": (160, 256), "vit_small_patch14_reg4_dinov2": (168, 168)}

VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2}
DEIT = {
    "image_processor_type": "DeiTImageProcessor",
    "size": {"height": 256, "width": 256},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
}
BIT = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 127},
    "crop_size": {"height": 112, "width": 112},
    "resample": 3,
}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": CLASSES}
HUGGING: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ViTForImageClassification": ("ViTConfig", {"intermediate_size": 256}, {**VIT, **HALF}),
    "DeiTForImageClassification": ("DeiTConfig", {"intermediate_size": 256}, {**DEIT, **IMAGENET}),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", {"intermediate_size": 256}, {**DEIT, **IMAGENET}),
    "Dinov2ForImageClassification": ("Dinov2Config", {"image_size": 182, "mlp_ratio": 3}, {**BIT, **IMAGENET}),
    "Dinov2ForImageClassification swiglu": (
        "Dinov2Config",
        {"image_size": 112, "use_swiglu_ffn": True},
        {**BIT, **IMAGENET},
    ),
    "Dinov2WithRegistersForImageClassification": (
        "Dinov2WithRegistersConfig",
        {"image_size": 182, "patch_size": 14, "mlp_ratio": 3},
        {**BIT, **IMAGENET},
    ),
}


def load(module: torch.nn.Module, type_: str) -> torch.nn.Module:
    """Random weights into the module."""
    state = {
        name: torch.from_numpy(random_weight(name, tuple(value.shape), type_).astype(np.float32))
        for name, value in module.state_dict().items()
    }
    module.load_state_dict(state)
    return module.eval()


def logits_of(module: Callable[[torch.Tensor], Any], batch: list[torch.Tensor]) -> NDArray[np.float32]:
    with torch.inference_mode():
        answer = module(torch.stack(batch))
    return np.asarray(getattr(answer, "logits", answer).numpy(), np.float32)


def timm_families(pictures: list[Image.Image]) -> Iterator[tuple[str, dict[str, Any], NDArray[np.float32]]]:
    import timm
    from timm.models import save_for_hf

    for title, changes in TIMM.items():
        name, type_ = title.split()[0], "float16" if "float16" in title else "float32"
        module = load(timm.create_model(name, num_classes=CLASSES, depth=2, **changes), type_)
        with tempfile.TemporaryDirectory() as folder:
            save_for_hf(module, folder, safe_serialization=True)
            config = json.loads((Path(folder) / "config.json").read_text())
        tensors = {key: list(value.shape) for key, value in module.state_dict().items()}
        family = {"kind": "timm", "files": {"config.json": config}, "tensors": tensors, "type": type_}
        data = timm.data.resolve_model_data_config(module)
        data["input_size"] = (3, *module.patch_embed.img_size)
        transform = timm.data.create_transform(**data, is_training=False)
        yield title, family, logits_of(module, [transform(picture) for picture in pictures])
        if name == title and name in RESIZED:
            size = RESIZED[name]
            other = timm.create_model(name, num_classes=CLASSES, depth=2, **{**changes, "img_size": size})
            filtered = timm.models.vision_transformer.checkpoint_filter_fn(module.state_dict(), other)
            other.load_state_dict(filtered)
            transform = timm.data.create_transform(**{**data, "input_size": (3, *size)}, is_training=False)
            logits = logits_of(other.eval(), [transform(picture) for picture in pictures])
            yield f"{title} resized", {**family, "size": size}, logits


def hugging_face_families(pictures: list[Image.Image]) -> Iterator[tuple[str, dict[str, Any], NDArray[np.float32]]]:
    import transformers

    for title, (kind, changes, processor) in HUGGING.items():
        name = title.split()[0]
        config = getattr(transformers, kind)(**SMALL, **changes)
        module = getattr(transformers, name)(config)
        with tempfile.TemporaryDirectory() as folder:
            module.save_pretrained(folder)
            published = json.loads((Path(folder) / "config.json").read_text())
            from safetensors import safe_open
            from safetensors.torch import save_file

            with safe_open(f"{folder}/model.safetensors", "np") as file:
                tensors = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            weights = {key: torch.from_numpy(random_weight(key, tuple(shape))) for key, shape in tensors.items()}
            save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
            module = getattr(transformers, name).from_pretrained(folder).eval()
        prepared = [prepare_hf(processor, picture, "Pil") for picture in pictures]
        files = {"config.json": published, "preprocessor_config.json": processor}
        family = {"kind": "huggingface", "files": files, "tensors": tensors}
        yield title, family, logits_of(module, prepared)


def prepare_hf(processor: dict[str, Any], picture: Image.Image, backend: str, **more: Any) -> torch.Tensor:
    import transformers

    options = {key: value for key, value in processor.items() if key != "image_processor_type"}
    made = getattr(transformers, processor["image_processor_type"] + backend)(**{**options, **more})
    return torch.as_tensor(np.asarray(made(picture, return_tensors="np")["pixel_values"][0], np.float32))


#: Preprocessing as timm publishes it, and as transformers does.
TIMM_FRAMES: dict[str, dict[str, Any]] = {
    "timm 224 bicubic 0.9": {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.9},
    "timm 224 bilinear 0.875": {"input_size": (3, 224, 224), "interpolation": "bilinear", "crop_pct": 0.875},
    "timm 256 bicubic 0.95": {"input_size": (3, 256, 256), "interpolation": "bicubic", "crop_pct": 0.95},
    "timm 224 squash": {
        "input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"
    },
    "timm 224 squash 0.9": {
        "input_size": (3, 224, 224), "interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "squash"
    },
    "timm 192x256": {"input_size": (3, 192, 256), "interpolation": "bicubic", "crop_pct": 0.9},
    "timm 224 border": {
        "input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "border"
    },
    "timm 96 lanczos": {"input_size": (3, 96, 96), "interpolation": "lanczos", "crop_pct": 1.0},
}  # fmt: skip
HF_FRAMES: dict[str, dict[str, Any]] = {
    "ViTImageProcessor 224": VIT,
    "DeiTImageProcessor 256 224": DEIT,
    "BitImageProcessor 256 224": {**BIT, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
    "BitImageProcessor 127 112": BIT,
    "CLIPImageProcessor 224": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "resample": 3,
    },
}  # fmt: skip


def frame_sources() -> Iterator[tuple[str, str, Any, Callable[[Image.Image], Frame]]]:
    """(name, kind, what is published, the library's own transform)."""
    import timm

    for name, data in TIMM_FRAMES.items():
        transform = timm.data.create_transform(**data, mean=(0.485, 0.456, 0.406), is_training=False, normalize=False)
        yield name, "timm", data, lambda picture, made=transform: made(picture).numpy().transpose(1, 2, 0)
    plain = {"do_rescale": False, "do_normalize": False}
    for name, processor in HF_FRAMES.items():
        for backend in ("Pil", ""):
            yield (
                name + (" torchvision" if backend == "" else ""),
                "huggingface",
                processor,
                lambda picture, made=processor, end=backend: (
                    prepare_hf(made, picture, end, **plain).numpy().round().astype(np.uint8).transpose(1, 2, 0)
                ),
            )


def main(folder: str) -> None:
    assert PIL.__version__.startswith("12."), "make the references with Pillow 12"
    torch.set_num_threads(1)
    declared = declare_torchvision()
    generated = {name: Image.open(io.BytesIO(data)).convert("RGB") for name, data in golden_pictures().items()}
    photos = {path.name: Image.open(path).convert("RGB") for path in sorted(Path(folder).glob("*.JPEG"))}
    chosen = list(photos.values())[:PHOTOS]

    frames: dict[str, Frame] = {}
    published: dict[str, Any] = {}
    for name, kind, source, transform in frame_sources():
        from tests.importing.test_references import contract_of

        contract, differences = contract_of(kind, source), []
        published[name] = {"kind": kind, "published": source}
        for group, pictures, count in (("golden", generated, GOLDEN_SAMPLES), ("photos", photos, SAMPLES)):
            kept = []
            for title, picture in pictures.items():
                frame = transform(picture)
                rows, columns = positions(title, frame.shape, count)
                kept.append(frame[rows, columns])
                differences.append(np.abs(frame.astype(int) - contract.apply(picture).astype(int)))
            frames[f"{name}/{group}"] = np.stack(kept)
        most = max(difference.max() for difference in differences)
        mean = max(difference.mean() for difference in differences)
        print(f"{name:40} whole pictures: largest difference {most}, largest mean {mean:.4f} grey levels")
    np.savez_compressed(FRAMES, **frames)

    families: dict[str, Any] = {}
    logits: dict[str, NDArray[np.float32]] = {}
    pictures = [*generated.values(), *chosen]
    for make in (timm_families, hugging_face_families):
        for title, family, answer in make(pictures):
            families[title], logits[title] = family, answer
            print(f"{title:45} logits up to {np.abs(answer).max():.2f}")
    np.savez_compressed(LOGITS, **logits)
    content = {"families": families, "frames": published}
    FAMILIES.write_text(json.dumps(content, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    del declared


if __name__ == "__main__":
    main(sys.argv[1])
