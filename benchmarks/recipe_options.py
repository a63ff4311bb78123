"""What each option of the training recipe is worth, at one budget of operations: prints a table.

    python benchmarks/recipe_options.py cifar10/train.tar.gz --out runs/ [--epochs 4] [--seeds 3] [--only whiten flip]

The first row is the whole recipe; each other row changes one thing in it. A run is a folder ``<row>-<seed>`` below
``--out``: one that is there is not repeated, and one that was stopped goes on, so the same command continues the table.
The figures are the last epoch's on held-out pictures (a tenth of the training data), which here choose nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from msgspec.structs import replace

from vitedge.formats.architecture import ConvStem
from vitedge.formats.model_folder import Model
from vitedge.training.options import Augmentation, TrainOptions
from vitedge.training.train import train
from vitedge.training.zoo import ZOO, ZooMember

MODEL = "vit_light_pool_32"
STRIDES = f"{MODEL} with strides"  # of the same work, its convolutions wider where they stride
CROP_AND_FLIP = Augmentation(crop_padding=2, alternate_flip=True)
RECIPE = TrainOptions(
    model=MODEL,
    batch_size=512,
    lr=0.012,
    schedule="linear",
    warmup=0.1,
    ema=0.99,
    label_smoothing=0.2,
    whiten=True,
    identity_stem=True,
    norm_scale_rate=0.0,
    norm_bias_rate=4.0,
    augmentation=CROP_AND_FLIP,
)
#: What a row changes, by its name.
ROWS: dict[str, dict[str, object]] = {
    "recipe": {},
    "whiten": {"whiten": False},
    "identity": {"identity_stem": False},
    "maxpool": {"model": STRIDES},
    "flip": {"augmentation": replace(CROP_AND_FLIP, alternate_flip=False)},
    "crop4": {"augmentation": replace(CROP_AND_FLIP, crop_padding=4)},
    "crop0": {"augmentation": replace(CROP_AND_FLIP, crop_padding=0)},
    "smoothing": {"label_smoothing": 0.0},
    "norm-scale": {"norm_scale_rate": 1.0},
    "norm-bias": {"norm_bias_rate": 1.0},
    "adamw": {"optimizer": "adamw", "lr": 0.002},
    "momentum": {"muon_momentum": 0.6},
    "ema": {"ema": 0.0},
    "cosine": {"schedule": "cosine"},
    "half-lr": {"lr": 0.006},
    "twice-lr": {"lr": 0.024},
}


def add_model_with_strides() -> None:
    """The same model without MaxPool, for this process alone."""
    member = ZOO[MODEL]
    stem = ConvStem(channels=(24, 64, 64, 128, 128), strides=(1, 2, 1, 2, 1), first_kernel=2)
    ZOO[STRIDES] = ZooMember(replace(member.config, stem=stem), member.summary)


def run(name: str, seed: int, data: str, out: Path, epochs: int, threads: int) -> Path:
    """The model folder of a row's run, after what was left of it."""
    folder = out / f"{name}-{seed}"
    if not folder.exists():
        options = replace(RECIPE, epochs=epochs, seed=seed, threads=threads, **ROWS[name])
        resume = folder.with_name(f"{folder.name}.run").joinpath("checkpoint.pt").exists()
        train(data, options, folder, resume=resume)
    return folder


def row(name: str, runs: list[Path], first: float | None) -> tuple[str, float]:
    """A line of the table, and the mean top-1 of a row's runs; ``first`` is the first row's."""
    epochs = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in runs]
    top1 = [lines[-1]["held_out_top1_percent"] for lines in epochs]
    loss = [lines[-1]["held_out_loss"] for lines in epochs]
    records = [Model.open(folder).record.training or {} for folder in runs]
    pictures = records[0]["training_images"] * records[0]["epochs"]
    operations = 6 * records[0]["macs"] * pictures  # two a multiply-accumulate; backward is twice forward
    seconds = min(record["wall_time_s"] / record["epochs"] for record in records)
    mean = statistics.mean(top1)
    spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    line = (
        f"| {name} | {mean:.2f}{spread} | {'' if first is None else f'{mean - first:+.2f}'} "
        f"| {statistics.mean(loss):.3f} | {len(runs)} | {operations / 1e12:.0f} | {seconds:.0f} |"
    )
    return line, mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="class folders or an archive of them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS), help="rows, beside the first")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    add_model_with_strides()
    options.out.mkdir(parents=True, exist_ok=True)
    names = ["recipe", *(name for name in options.only if name != "recipe")]
    runs: dict[str, list[Path]] = {name: [] for name in names}
    for seed in range(options.seeds):
        for name in names:
            runs[name].append(run(name, seed, options.data, options.out, options.epochs, options.threads))
    print("| changed | top-1, % | difference, pp | cross-entropy | runs | 10¹² operations | seconds an epoch |")
    print("| --- " * 7 + "|")
    first: float | None = None
    for name in names:
        line, mean = row(name, runs[name], first)
        first = mean if first is None else first
        print(line)


if __name__ == "__main__":
    main()
