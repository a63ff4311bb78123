"""One swscale step from a decoder's frame to the model's input, against Pillow and against inference.

``python -m benchmarks.stream_scaling`` prints, for 1080p and 4K frames of detail made from noise: milliseconds of the
step, of FFmpeg's conversion to RGB followed by Pillow's resize, and of ViT-Ti/16 in float32 with one thread (random
weights: they don't change the time). Medians; run it on a quiet machine.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import vitedge
from tests.graph.vits import random_arrays
from tests.streaming.test_scale import encoded
from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.architecture import PatchStem, ViTConfig
from vitedge.formats.model_folder import ModelRecord, Origin, class_table, write_model
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import to_bytes
from vitedge.streaming.scale import scaler

CONTRACT = Preprocessing(size=(224, 224))


def median_ms(call: Callable[[], object], rounds: int = 30) -> float:
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def tiny_vit(folder: Path) -> Path:
    """An artifact of ViT-Ti/16 (Touvron et al. 2021: 192 wide, 12 blocks, 3 heads) for ONNX Runtime."""
    config = ViTConfig(
        image_size=(224, 224),
        stem=PatchStem(patch_size=16),
        embed_dim=192,
        depth=12,
        num_heads=3,
        mlp_hidden=768,
        num_classes=1000,
    )
    record = ModelRecord(
        name="vit-tiny",
        classes=class_table([f"class-{number}" for number in range(1000)]),
        preprocessing=CONTRACT,
        origin=Origin(kind="onnx", source="random weights"),
        licence="CC0-1.0",
        architecture=config,
    )
    graph = author_vit(config, random_arrays(config, seed=1), mean=CONTRACT.mean, std=CONTRACT.std)
    model = write_model(folder / "model", record, {"model.onnx": to_bytes(graph)})
    return Path(vitedge.export(model.path, target="onnxruntime", precision="fp32", out=folder / "artifact").path)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, vitedge.open(tiny_vit(Path(folder)), threads=1) as session:
        image = np.zeros((1, 224, 224, 3), np.uint8)
        inference = median_ms(lambda: session.run(image))
    print(f"ViT-Ti/16, float32, one thread: {inference:.1f} ms")
    for width, height in ((1920, 1080), (3840, 2160)):
        noise = Image.effect_noise((width // 4, height // 4), 60).convert("RGB").resize((width, height))
        frame, convert = encoded(noise), scaler(CONTRACT)
        ours = median_ms(lambda frame=frame, convert=convert: convert(frame))
        pillow = median_ms(lambda frame=frame: CONTRACT.apply(frame.to_ndarray(format="rgb24")))
        print(f"{width}×{height}: {ours:.1f} ms, RGB and Pillow {pillow:.1f} ms, {ours / inference:.2f} of inference")


if __name__ == "__main__":
    main()
