"""Training throughput against a bare torch loop of the same model on the same augmented tensors, both from memory.

    python benchmarks/training_throughput.py [--model vit_edge_conv_32] [--steps 8] [--rounds 5] [--threads 2]

The pictures are random bytes in memory. *Ours* is ``Trainer``'s loop as ``vitedge train`` runs it: choosing a batch's
pictures, augmentation, normalisation, loss, clipping, optimiser, averaged weights, the checks for NaN and for signals.
The *bare* loop has the tensors ready that come out of augmentation and normalisation, and does what nobody can leave
out: forward, loss, backward, clipping, the same optimiser, the averaged weights. Both take turns, a few steps each, and
the figure is the median over the rounds of (bare time / our time).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

from vitedge.data.images import ImageSet
from vitedge.data.preprocessing import Preprocessing
from vitedge.training.augment import Augmentation, augment
from vitedge.training.data import Pixels, TrainingData
from vitedge.training.engine import Processes
from vitedge.training.evaluate import normalise
from vitedge.training.initial import starting_point
from vitedge.training.options import TrainOptions
from vitedge.training.randomness import keys_of
from vitedge.training.trainer import Trainer

CLASSES = tuple(map(str, range(10)))


def trainer(options: TrainOptions, batches: int, folder: Path) -> Trainer:
    """A trainer on random pictures in memory."""
    start = starting_point(options, CLASSES, "measure")
    height, width = start.config.image_size
    count = batches * options.batch_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
    pictures = Pixels(ImageSet(folder, CLASSES, (), ()), tuple(range(count)), labels, pixels)
    contract = Preprocessing(size=(height, width), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    data = TrainingData(pictures, pictures, contract, ())
    return Trainer(start, options, data, folder, Processes(torch.device("cpu")), "measure")


def ours(run: Trainer, steps: int) -> float:
    """Seconds a step of the trainer's own loop, without the end of an epoch."""
    run.step = 0  # the same batches each time
    plan = list(run.plan(0))[:steps]
    began = time.perf_counter()
    for batch in run.data.training.batches(plan):
        run.update(run.student, [batch])
    return (time.perf_counter() - began) / steps


def bare(run: Trainer, ready: list[tuple[torch.Tensor, torch.Tensor]], steps: int) -> float:
    """Seconds a step of a loop that has its tensors ready."""
    parameters = list(run.model.parameters())
    averaged = [parameter.detach().clone() for parameter in parameters]
    began = time.perf_counter()
    for x, labels in ready[:steps]:
        for optimizer in run.optimizers:
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=run.bf16):
            logits = run.model(x)
        functional.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in run.optimizers:
            optimizer.step()
        with torch.no_grad():
            for mean, value in zip(averaged, parameters, strict=True):
                mean.lerp_(value, 0.001)
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_edge_conv_32")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="of each loop in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    how = Augmentation(crop_padding=4, rand_augment=3.0, cutmix=1.0, mix_probability=0.5)
    options = TrainOptions(model=arguments.model, batch_size=arguments.batch_size, augmentation=how)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        run = trainer(options, arguments.steps, Path(folder))
        reference = trainer(options, arguments.steps, Path(folder))
        ready = []
        for batch in run.data.training.batches(run.plan(0)):
            x = normalise(augment(batch.pixels, how, keys_of(0, batch.indices)), run.data.preprocessing)
            ready.append((x.contiguous(memory_format=torch.channels_last), batch.labels))
        ours(run, 1), bare(reference, ready, 1)  # warm up
        ratios, rates = [], []
        for number in range(arguments.rounds):
            loops = [lambda: ours(run, arguments.steps), lambda: bare(reference, ready, arguments.steps)]
            times = [loop() for loop in (loops if number % 2 == 0 else loops[::-1])]
            our_time, bare_time = times if number % 2 == 0 else times[::-1]
            ratios.append(bare_time / our_time)
            rates.append(arguments.batch_size / our_time)
    figures = {
        "model": arguments.model,
        "threads": arguments.threads,
        "batch_size": arguments.batch_size,
        "images_per_s": round(statistics.median(rates), 1),
        "of_bare_loop": round(statistics.median(ratios), 3),
        "rounds": [round(ratio, 3) for ratio in ratios],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
