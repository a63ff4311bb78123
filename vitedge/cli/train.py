"""``vitedge train``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer


def train(
    data: Annotated[str, typer.Argument(help="Class folders (data/cat/1.jpg, …) or a .zip, .tar or .tar.gz of them.")],
    model: Annotated[str, typer.Option(help="A model of the zoo; a wrong name lists them.")],
    out: Annotated[Path, typer.Option(help="Model folder to write; OUT.run beside it holds the checkpoint.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per step.")] = 256,
    lr: Annotated[float, typer.Option(min=0.0, help="Learning rate at the end of the warm-up.")] = 2e-3,
    optimizer: Annotated[
        Literal["muon", "adamw"], typer.Option(help="muon learns from fewer pictures; adamw is the classic.")
    ] = "muon",
    schedule: Annotated[
        Literal["cosine", "linear"], typer.Option(help="How the learning rate falls to 0 after the warm-up.")
    ] = "cosine",
    warmup: Annotated[float, typer.Option(min=0.0, max=1.0, help="Part of all steps.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="Of matrices; vectors don't decay.")] = 0.05,
    label_smoothing: Annotated[float, typer.Option(min=0.0, max=0.9, help="Probability given to all classes.")] = 0.1,
    drop_path: Annotated[float, typer.Option(min=0.0, max=0.9, help="Stochastic depth of the last block.")] = 0.0,
    ema: Annotated[float, typer.Option(min=0.0, max=0.99999, help="Decay of the averaged weights.")] = 0.999,
    clip: Annotated[float, typer.Option(min=0.0, help="Largest gradient norm; 0: no clipping.")] = 1.0,
    crop_padding: Annotated[int, typer.Option(min=0, help="Pixels of random shift.")] = 4,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Mirror half of the pictures.")] = True,
    rand_augment: Annotated[float, typer.Option(min=0.0, max=10.0, help="Magnitude; 0: off.")] = 0.0,
    random_erasing: Annotated[float, typer.Option(min=0.0, max=1.0, help="Probability; 0: off.")] = 0.0,
    mixup: Annotated[float, typer.Option(min=0.0, help="α; 0: off.")] = 0.0,
    cutmix: Annotated[float, typer.Option(min=0.0, help="α; 0: off.")] = 0.0,
    mix_probability: Annotated[float, typer.Option(min=0.0, max=1.0, help="Part of the batches mixed.")] = 1.0,
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels of both sides [the model's].")] = None,
    resize: Annotated[
        Literal["squash", "shortest", "pad"], typer.Option(help="How pictures of other shapes are fitted.")
    ] = "squash",
    holdout: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Part of every class kept to choose the best epoch.")
    ] = 0.1,
    test: Annotated[str | None, typer.Option(help="Class folders evaluated once, at the end.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds, data and threads give equal weights.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="0: all cores.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="auto: bf16 where the device multiplies it natively.")
    ] = "auto",
    compile_: Annotated[bool, typer.Option("--compile", help="torch.compile; needs a C++ compiler.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Decoding threads for data larger than memory.")] = 2,
    checkpoint_seconds: Annotated[float, typer.Option(min=0.0, help="Between checkpoints.")] = 120.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT.run/checkpoint.pt.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT and start over.")] = False,
) -> None:
    """Train a compact Vision Transformer on class folders.

    Stopped or killed, it goes on with --resume and ends with the same weights.

    **Examples**

    `vitedge train photos/ --model vit_edge_conv_32 --out model/ --epochs 30`

    `vitedge train photos/ --model vit_edge_conv_32 --out model/ --epochs 30 --resume`
    """
    from vitedge.errors import NotInstalledError

    try:
        from vitedge.models.augment import Augmentation
        from vitedge.models.train import TrainOptions
        from vitedge.models.train import train as train_
    except ModuleNotFoundError as error:
        raise NotInstalledError.for_extra("train a model", error.name or "torch", "train") from error

    options = TrainOptions(
        model=model,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        optimizer=optimizer,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        drop_path=drop_path,
        ema=ema,
        clip=clip,
        augmentation=Augmentation(
            crop_padding=crop_padding,
            flip=flip,
            rand_augment=rand_augment,
            random_erasing=random_erasing,
            mixup=mixup,
            cutmix=cutmix,
            mix_probability=mix_probability,
        ),
        image_size=None if image_size is None else (image_size, image_size),
        resize=resize,
        holdout=holdout,
        seed=seed,
        threads=threads,
        device=device,
        precision=precision,
        compile=compile_,
        workers=workers,
        checkpoint_seconds=checkpoint_seconds,
    )
    command = shlex.join(["vitedge", *sys.argv[1:]])
    print(train_(data, options, out, resume=resume, overwrite=overwrite, test=test, command=command))
