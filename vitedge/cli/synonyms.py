"""Other tools' names for our verbs and options: the errors for unknown words name ours."""

from __future__ import annotations

from collections.abc import Collection

from vitedge.errors import nearest

#: The verb of ours, with the option that it takes where one does it.
VERBS = {
    "benchmark": "bench",
    "calibrate": "export --data",
    "camera": "stream",
    "check": "verify",
    "compile": "build",
    "convert": "export",
    "detect": "classify",
    "distill": "train --teacher",
    "evaluate": "eval",
    "finetune": "train --init-from",
    "fine-tune": "train --init-from",
    "infer": "classify",
    "info": "inspect",
    "init": "new",
    "optimize": "export",
    "predict": "classify",
    "profile": "bench --profile",
    "prune": "shrink",
    "quantize": "export --precision int8",
    "show": "inspect",
    "test": "eval",
    "val": "eval",
    "validate": "eval",
    "webcam": "stream",
}
#: Options and arguments of ours, with a value where only one is meant; the first that the verb has is named.
OPTIONS = {
    "--accuracy-drop": ("--max-drop",),
    "--arch": ("--model",),
    "--backend": ("--target",),
    "--batch": ("--batch-size",),
    "--batch-size": ("--batch",),
    "--bs": ("--batch-size", "--batch"),
    "--calib-data": ("--data",),
    "--calibration-data": ("--data",),
    "--camera": ("SOURCE",),
    "--conf": ("--threshold",),
    "--cpu": ("--device",),
    "--dataset": ("--data", "DATA"),
    "--dtype": ("--precision",),
    "--dynamic-batch": ("--batch",),
    "--format": ("--target",),
    "--fp16": ("--precision fp16",),
    "--fps": ("--input-rate",),
    "--gpu": ("--device",),
    "--height": ("--input-height", "--image-size"),
    "--image": ("PICTURE",),
    "--images": ("--data", "PICTURE", "DATA"),
    "--img-size": ("--image-size", "--resolutions"),
    "--imgsz": ("--image-size", "--resolutions"),
    "--input": ("SOURCE", "PICTURE", "MODEL"),
    "--input-size": ("--image-size", "--resolutions"),
    "--iters": ("--iterations",),
    "--learning-rate": ("--lr",),
    "--model": ("ARTIFACT", "MODEL"),
    "--niter": ("--iterations",),
    "--num-threads": ("--threads",),
    "--num-workers": ("--workers",),
    "--optim": ("--optimizer",),
    "--output": ("--out", "--answers"),
    "--path": ("PATH",),
    "--pretrained": ("--init-from",),
    "--quantization": ("--precision int8",),
    "--quantize": ("--precision int8",),
    "--repeat": ("--iterations",),
    "--runs": ("--iterations",),
    "--source": ("SOURCE", "PICTURE"),
    "--sparsity": ("--macs", "--speedup"),
    "--time": ("--duration",),
    "--topk": ("--top-k",),
    "--val": ("--test", "--held-out"),
    "--verbose": ("--debug",),
    "--warm-up": ("--warmup",),
    "--wd": ("--weight-decay",),
    "--weights": ("MODEL", "ARTIFACT"),
    "--width": ("--input-width", "--image-size"),
}


def verb(unknown: str, group: str, verbs: Collection[str]) -> str:
    """Name the verb that does what an unknown one would do elsewhere, or the nearest one.

    Args:
        unknown: as it was typed.
        group: what comes before it: ``vitedge``, ``vitedge fleet``.
        verbs: of this group.

    Returns:
        ``"; here it's 'vitedge eval'"``, ``"; the nearest is 'x'"``, or an empty string.
    """
    known = VERBS.get(unknown.replace("_", "-"), "")
    return f"; here it's '{group} {known}'" if known.split(" ")[0] in verbs else nearest(unknown, verbs)


def option(unknown: str, options: Collection[str], arguments: Collection[str]) -> str:
    """Name the option or the argument that means what an unknown option means elsewhere, or the nearest option.

    Args:
        unknown: as it was typed, with its dashes.
        options: that the verb has, with their dashes.
        arguments: that it has, in capitals.

    Returns:
        ``"; here it's '--lr'"``, ``"; here it's the argument MODEL"``, ``"; the nearest is '--x'"``, or ``""``.
    """
    for known in OPTIONS.get(unknown.replace("_", "-"), ()):
        if known in arguments:
            return f"; here it's the argument {known}"
        if known.split(" ")[0] in options:
            return f"; here it's '{known}'"
    names = {each.lstrip("-"): each for each in options}  # without the dashes, which all options share
    return nearest(unknown.lstrip("-"), names, show=names.__getitem__)
