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
from random_models import random_model

import vitedge
from tests.streaming.test_scale import encoded
from vitedge.data.preprocessing import Preprocessing
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
    """An artifact of ViT-Ti/16 for ONNX Runtime."""
    model = random_model("vit_tiny_patch16_224", folder / "model")
    return vitedge.export(model, target="onnxruntime", precision="fp32", out=folder / "artifact").path


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
