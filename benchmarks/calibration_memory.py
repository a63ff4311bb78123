"""How much memory the observing pass takes, and that it doesn't grow with the number of images.

    python benchmarks/calibration_memory.py [--images 16 512] [--limit-gb 6]

A ViT-B/16 at 224 of random weights and random pictures are made in a folder of their own. Each number of images is
observed in a process of its own, the rest as the recipe `default` says; the peak of its resident memory is what the
kernel tells at its end (Linux). Exit code 1 where a pass takes more than the limit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.model_folder import Model, ModelRecord, Origin, class_table, write_model
from vitedge.graph.author import author_vit, expected_parameters
from vitedge.graph.surgery import to_bytes
from vitedge.training.zoo import zoo_config

OBSERVE = """
import re, sys
from pathlib import Path
from msgspec.structs import replace
from vitedge.quantization.calibrate import calibrate
from vitedge.graph.surgery import load
from vitedge.data.images import ImageSet
from vitedge.formats.model_folder import Model
from vitedge.formats.recipe import load_recipe

model, images = Model.open(sys.argv[1]), ImageSet.open(sys.argv[2])
settings = replace(load_recipe("default").observe, num_samples=int(sys.argv[3]))
statistics, _ = calibrate(model, load(model.onnx_path), images, settings, asked="measure memory")
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(statistics.samples, len(statistics.observed), peak)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[16, 512])
    parser.add_argument("--limit-gb", type=float, default=6.0)
    arguments = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        model = vit_base(Path(folder) / "model")
        print(f"ViT-B/16 at 224: {model.onnx_path.stat().st_size / 1e6:.0f} MB of weights", flush=True)
        pictures = make_pictures(Path(folder) / "pictures", max(arguments.images))
        for number in arguments.images:
            start = time.perf_counter()
            said = subprocess.run(
                [sys.executable, "-c", OBSERVE, model.path, pictures, str(number)],
                env={**os.environ, "VITEDGE_CACHE": f"{folder}/cache-{number}"},  # nothing is there yet
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
            samples, layers, peak = map(int, said.split())
            peaks.append(peak * 1024 / 1e9)
            print(
                f"{samples:5d} images, {layers} inputs observed: peak {peaks[-1]:.2f} GB resident, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
    return int(max(peaks) > arguments.limit_gb)


def vit_base(out: Path) -> Model:
    """The published architecture; matrices keep the variance of what passes."""
    small = zoo_config("vit_small_patch16_224", num_classes=1000)
    config = msgspec.structs.replace(small, embed_dim=768, num_heads=12, mlp_hidden=3072)
    generator, arrays = np.random.default_rng(0), {}
    for key, shape in expected_parameters(config):
        spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        gain = key.endswith(("weight", "gamma")) and len(shape) == 1
        arrays[key] = (gain + spread * generator.standard_normal(shape)).astype(np.float32)
    preprocessing = Preprocessing(size=config.image_size)
    graph = author_vit(config, arrays, mean=preprocessing.mean, std=preprocessing.std)
    record = ModelRecord(
        name="ViT-B/16",
        classes=class_table([f"class {number}" for number in range(1000)]),
        preprocessing=preprocessing,
        origin=Origin(kind="train", source="random weights"),
        architecture=config,
    )
    return write_model(out, record, {"model.onnx": to_bytes(graph)})


def make_pictures(folder: Path, count: int) -> Path:
    """``count`` pictures of smooth noise, 256 × 256."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.png", compress_level=1)
    return folder


if __name__ == "__main__":
    sys.exit(main())
