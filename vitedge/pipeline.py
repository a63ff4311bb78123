"""The line as plain calls. The command line is a caller of these; ``import vitedge`` offers them lazily."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitedge.progress import Progress, silent

if TYPE_CHECKING:
    from vitedge.artifact import Artifact
    from vitedge.model_folder import Model
    from vitedge.recipe import Recipe
    from vitedge.runtimes.session import Session
    from vitedge.target import Option, Target


def import_model(source: str | Path, out: str | Path, **options: Any) -> Model:
    """Bring a published ViT, an ONNX file or the embedded model into a model folder.

    Args:
        source: a folder or file in timm's layout, an ONNX file, a folder of ``vitedge train``, or ``"embedded"``.
        out: the model folder to write.
        **options: as :func:`vitedge.importing.import_model`: ``labels``, preprocessing fields, ``licence``,
            ``overwrite``.

    Raises:
        ModelError: unknown layout, wrong tensors, or logits that differ from the source's.
    """
    from vitedge import importing

    return importing.import_model(source, out, **options)


def export(
    model: Model | str | Path,
    target: Target | str | Path,
    precision: str,
    out: str | Path,
    *,
    recipe: Recipe | str | Path = "default",
    data: str | Path | None = None,
    num_samples: int | None = None,
    batch: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Artifact:
    """Quantize and export a model for one target.

    Args:
        model: a model folder.
        target: a target's name, or a TOML file that describes one.
        precision: ``fp32``, ``fp16``, ``int8``, … as the target offers.
        out: the artifact folder to write.
        recipe: how to calibrate; used by quantized precisions.
        data: calibration images; only the embedded model has its own.
        num_samples: calibration images to observe, instead of the recipe's number.
        batch: pictures per inference, instead of the target's.
        overwrite: replace an existing artifact.
        progress: called with (task, done, total).

    Raises:
        UsageError, ModelError, ImageError, ArtifactError, InvalidResultError, ResourceError, NotInstalledError:
            as :func:`vitedge.exporting.plan_export` and :func:`vitedge.exporting.export`.
    """
    from vitedge import exporting

    plan = exporting.plan_export(
        model,
        target,
        precision,
        out,
        recipe=recipe,
        data=data,
        num_samples=num_samples,
        batch=batch,
        overwrite=overwrite,
    )
    return exporting.export(plan, progress)


def open(
    artifact: Artifact | str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    options: Mapping[str, Option] | None = None,
) -> Session:
    """Open an artifact in its target's runtime.

    Args:
        artifact: an artifact folder.
        device: the runtime's own word, instead of the target's.
        threads: compute threads, instead of the target's (0: the machine's physical cores).
        options: runtime options, over the manifest's.

    Raises:
        NotInstalledError: the runtime isn't installed.
        ArtifactError: the artifact is damaged or can't be loaded.
    """
    from vitedge.runtimes.contract import OpenOptions
    from vitedge.runtimes.session import open_session

    return open_session(artifact, OpenOptions(device=device, threads=threads, options=dict(options or {})))
