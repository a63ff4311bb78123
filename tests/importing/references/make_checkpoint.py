"""Make what timm's training leaves: ``python -m tests.importing.references.make_checkpoint``. Needs torch and timm.

timm's own CheckpointSaver writes a small random ViT with its averaged weights, optimizer and arguments; beside it lie
timm's logits of the generated pictures with either, by timm's own transform.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.importing.references import CHECKPOINT, CHECKPOINT_LOGITS
from tests.importing.references.make import declare_torchvision, logits_of
from vitedge.data.golden import golden_pictures

MODEL_ARGUMENTS = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32}


def main() -> None:
    declared = declare_torchvision()
    import timm
    from timm.data import create_transform, resolve_data_config
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(3)
    torch.set_num_threads(1)
    args = argparse.Namespace(
        model="vit_base_patch8_224", num_classes=5, model_kwargs=MODEL_ARGUMENTS, img_size=32, input_size=None,
        mean=(0.4, 0.5, 0.6), std=None, crop_pct=0.8, interpolation="", gp=None, bce_loss=False, opt="sgd", lr=0.1,
    )  # fmt: skip
    model = timm.create_model(args.model, num_classes=args.num_classes, **args.model_kwargs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    averaged = ModelEmaV3(model)
    with torch.no_grad():
        for parameter in averaged.module.parameters():
            parameter.mul_(0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    with tempfile.TemporaryDirectory() as folder:
        saver = CheckpointSaver(model, optimizer, args, model_ema=averaged, checkpoint_dir=folder, recovery_dir=folder)
        saver.save_checkpoint(3, metric=np.float64(71.5))
        shutil.copy(Path(folder) / "model_best.pth.tar", CHECKPOINT)
    transform = create_transform(**resolve_data_config(vars(args), model=model), is_training=False)
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in golden_pictures().values()]
    batch = [transform(picture) for picture in pictures]
    np.savez(CHECKPOINT_LOGITS, model=logits_of(model.eval(), batch), ema=logits_of(averaged.module.eval(), batch))
    print(f"timm {timm.__version__}, torch {torch.__version__}: {CHECKPOINT.stat().st_size} bytes")
    del declared


if __name__ == "__main__":
    main()
