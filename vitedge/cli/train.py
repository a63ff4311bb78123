"""``vitedge train``."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def _option(panel: str, text: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **limits)


RECIPE, AUGMENT, TUNE, TEACH, JUDGE, MACHINE = (
    "Recipe",
    "Augmentation (0: off)",
    "Fine-tuning",
    "Distillation",
    "Data and judgement",
    "Machine and checkpoints",
)


def train(
    data: Annotated[
        str, typer.Argument(help="Class folders (data/cat/1.jpg, …), a .zip or .tar of them, or tar shards.")
    ],
    out: Annotated[Path, typer.Option(help="Model folder to write; OUT.run beside it holds the checkpoint.")],
    model: Annotated[
        str | None, typer.Option(help="A model of the zoo; a wrong name lists them. Not needed with --init-from.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT.run/checkpoint.pt.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT and start over.")] = False,
    epochs: Annotated[int, _option(RECIPE, "Passes over the training data.", min=1)] = 100,
    batch_size: Annotated[int, _option(RECIPE, "Pictures per step, over all processes.", min=1)] = 256,
    accumulate: Annotated[
        int, _option(RECIPE, "Parts that each process cuts its pictures of a step into, to save memory.", min=1)
    ] = 1,
    lr: Annotated[float, _option(RECIPE, "Learning rate at the end of the warm-up.", min=0.0)] = 2e-3,
    optimizer: Annotated[
        Literal["muon", "adamw"], _option(RECIPE, "muon learns from fewer pictures; adamw is the classic.")
    ] = "muon",
    schedule: Annotated[
        Literal["cosine", "linear"], _option(RECIPE, "How the learning rate falls to 0 after the warm-up.")
    ] = "cosine",
    warmup: Annotated[float, _option(RECIPE, "Part of all steps.", min=0.0, max=1.0)] = 0.1,
    weight_decay: Annotated[float, _option(RECIPE, "Of matrices; vectors don't decay.", min=0.0)] = 0.05,
    label_smoothing: Annotated[float, _option(RECIPE, "Probability given to all classes.", min=0.0, max=0.9)] = 0.1,
    class_weights: Annotated[
        float, _option(RECIPE, "A class weighs frequency^-THIS; 1: as if all were equally frequent.", min=0.0, max=1.0)
    ] = 0.0,
    drop_path: Annotated[float, _option(RECIPE, "Stochastic depth of the last block.", min=0.0, max=0.9)] = 0.0,
    ema: Annotated[float, _option(RECIPE, "Decay of the averaged weights.", min=0.0, max=0.99999)] = 0.999,
    clip: Annotated[float, _option(RECIPE, "Largest gradient norm; 0: no clipping.", min=0.0)] = 1.0,
    crop_padding: Annotated[int, _option(AUGMENT, "Pixels of random shift.", min=0)] = 4,
    flip: Annotated[bool, _option(AUGMENT, "Mirror half of the pictures.", "--flip/--no-flip")] = True,
    rand_augment: Annotated[float, _option(AUGMENT, "Magnitude.", min=0.0, max=10.0)] = 0.0,
    random_erasing: Annotated[float, _option(AUGMENT, "Probability.", min=0.0, max=1.0)] = 0.0,
    mixup: Annotated[float, _option(AUGMENT, "α.", min=0.0)] = 0.0,
    cutmix: Annotated[float, _option(AUGMENT, "α.", min=0.0)] = 0.0,
    mix_probability: Annotated[float, _option(AUGMENT, "Part of the batches mixed.", min=0.0, max=1.0)] = 1.0,
    init_from: Annotated[
        str | None,
        _option(
            TUNE,
            "Weights to start from: a model folder, a published checkpoint, hub:ORG/NAME, or: embedded.",
            metavar="MODEL",
        ),
    ] = None,
    new_head: Annotated[
        Literal["fitted", "zero"],
        _option(TUNE, "Where the classes are others: a head fitted to the model's features first, or zero."),
    ] = "fitted",
    freeze: Annotated[
        int | None, _option(TUNE, "Keep the stem, the tokens and the first N blocks as they are.", min=0, metavar="N")
    ] = None,
    layer_decay: Annotated[
        float, _option(TUNE, "Factor of the learning rate from a block to the one before it.", min=0.01, max=1.0)
    ] = 1.0,
    image_size: Annotated[int | None, _option(TUNE, "Pixels of both sides [the model's].", min=1)] = None,
    teacher: Annotated[
        str | None, _option(TEACH, "A model to learn from: a model folder, what vitedge import takes, or: embedded.")
    ] = None,
    distill: Annotated[
        Literal["soft", "hard", "feature"],
        _option(TEACH, "From the teacher's probabilities, its choice, or what its head reads."),
    ] = "soft",
    distill_weight: Annotated[float, _option(TEACH, "The teacher's part of the loss.", min=0.0, max=1.0)] = 0.5,
    temperature: Annotated[float, _option(TEACH, "Flattens both sides of soft.", min=0.1)] = 2.0,
    teacher_views: Annotated[
        int,
        _option(TEACH, "Augmented views of a picture, used in order; 0: the teacher sees the file itself.", min=0),
    ] = 10,
    teacher_cache: Annotated[
        Path | None, _option(TEACH, "Folder for the teacher's answers, shared by runs [OUT.run/teacher].")
    ] = None,
    distillation_token: Annotated[
        bool, _option(TEACH, "Give the student DeiT's second token and head.", "--distillation-token")
    ] = False,
    resize: Annotated[
        Literal["squash", "shortest", "pad"], _option(JUDGE, "How pictures of other shapes are fitted.")
    ] = "squash",
    holdout: Annotated[
        float, _option(JUDGE, "Part of every class kept to choose the best epoch.", min=0.0, max=0.9)
    ] = 0.1,
    test: Annotated[str | None, _option(JUDGE, "Class folders evaluated once, at the end.")] = None,
    seed: Annotated[int, _option(JUDGE, "Equal seeds, data and threads give equal weights.", min=0)] = 0,
    threads: Annotated[int, _option(MACHINE, "0: all cores.", min=0)] = 0,
    device: Annotated[str, _option(MACHINE, "cpu, cuda or cuda:1; under torchrun cpu or cuda.")] = "cpu",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], _option(MACHINE, "auto: bf16 where the device multiplies it natively.")
    ] = "auto",
    compile_: Annotated[bool, _option(MACHINE, "torch.compile; needs a C++ compiler.", "--compile")] = False,
    workers: Annotated[int, _option(MACHINE, "Decoding threads for data larger than memory.", min=0)] = 2,
    checkpoint_seconds: Annotated[float, _option(MACHINE, "Between checkpoints.", min=0.0)] = 120.0,
) -> None:
    """Train a compact Vision Transformer on class folders, from scratch or from a trained model.

    Stopped or killed, it goes on with --resume and ends with the same weights. Under torchrun, several processes share
    every step.

    **Examples**

    `vitedge train photos/ --model vit_edge_conv_32 --out model/ --epochs 30`

    `vitedge train photos/ --init-from embedded --out model/ --epochs 30 --layer-decay 0.75`

    `vitedge train photos/ --model vit_mini_patch4_32 --teacher big/ --out model/`

    `torchrun --nproc-per-node 2 -m vitedge train photos/ --model vit_edge_conv_32 --out model/ --device cuda`
    """
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.training.options import Augmentation, Distillation, TrainOptions

    options = TrainOptions(
        model=model,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        optimizer=optimizer,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
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
        init_from=init_from,
        new_head=new_head,
        freeze=freeze,
        distillation_token=distillation_token,
        distillation=None
        if teacher is None
        else Distillation(
            teacher=teacher,
            lesson=distill,
            weight=distill_weight,
            temperature=temperature,
            views=teacher_views,
            cache=None if teacher_cache is None else str(teacher_cache),
        ),
        seed=seed,
        threads=threads,
        device=device,
        precision=precision,
        compile=compile_,
        workers=workers,
        checkpoint_seconds=checkpoint_seconds,
    )
    with bars() as progress:
        written = api.train(
            data,
            options,
            out,
            resume=resume,
            overwrite=overwrite,
            test=test,
            command=shlex.join(["vitedge", *sys.argv[1:]]),
            progress=progress,
        )
    if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes speaks
        print(written)
