"""Import a model: recognise the source, convert it, compare it with the source, write the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitedge.core.files import refuse_existing
from vitedge.core.progress import Progress, silent
from vitedge.data import embedded
from vitedge.data.images import ImageSet
from vitedge.errors import InvalidResultError, UsageError
from vitedge.formats.model_folder import (
    MODEL_FOLDER,
    MODEL_JSON,
    Model,
    ModelRecord,
    Origin,
    nameless,
    numbered_classes,
    write_model,
)
from vitedge.graph.state_dicts import SUFFIXES, Choice
from vitedge.importing.checkpoint import import_checkpoint
from vitedge.importing.factory import import_factory
from vitedge.importing.hub import PREFIX, Fetched, fetch
from vitedge.importing.labels import read_labels, recognise_imagenet, refuse_empty, trained_folders
from vitedge.importing.onnx_file import graph_summary, import_onnx
from vitedge.importing.proof import TOLERANCE, Imported
from vitedge.training.factory import Factory

LAYOUTS = (
    "a timm or Hugging Face folder (config.json, model.safetensors), a checkpoint (.pth, .ckpt, .safetensors), "
    "hub:<org>/<name>, an ONNX file, a folder of `vitedge train`, or: embedded"
)


def import_model(
    source: str | Path | Factory,
    out: str | Path,
    *,
    labels: str | Path | Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    choice: Choice = Choice(),  # noqa: B008 - it's frozen
    licence: str | None = None,
    images: str | Path | ImageSet | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Model:
    """Import a model into a canonical folder, and prove that its logits didn't change.

    Args:
        source: a folder in timm's or transformers' published layout or its ``model.safetensors``,
            a checkpoint of training (``.pth``, ``.pt``, ``.ckpt``, ``.bin``, ``.safetensors``),
            ``"hub:<org>/<name>[@revision]"``, an ONNX file, a folder that ``vitedge train`` wrote, ``"embedded"``, or a
            :class:`~vitedge.training.factory.Factory` of a torch module.
        out: the model folder to write.
        labels: class names in the order of the logits, as :func:`~vitedge.importing.labels.read_labels` takes them.
            Without it the source's own, else numbers (``vitedge label`` names them later).
        preprocessing: fields of :class:`~vitedge.data.preprocessing.Preprocessing` that override or complete the
            source's. An ONNX file with float input needs at least ``mean`` and ``std``, and ``size`` where its input
            has none, unless its metadata says them. Another ``size`` of a published checkpoint resizes its position
            embedding; ``patch_size`` beside these fields its patch projection.
        choice: the architecture of a checkpoint, and which of its state dicts.
        licence: of the model, where the source doesn't say.
        images: pictures to compare on; without them the embedded ones.
        overwrite: permit replacing an existing model folder.
        progress: called with (task, done, total) while files are fetched.

    Raises:
        ResourceError: the hub can't be reached.
        UsageError: no such source, an existing output, a preprocessing that isn't one.
        ModelError: a source that can't be read, or tensors, labels or classes that don't fit.
        InvalidResultError: the logits differ from the source's.
    """
    action = f"import {source.name if isinstance(source, Factory) else source}"
    refuse_existing(Path(out), MODEL_FOLDER, overwrite=overwrite, action=action)
    options = dict(preprocessing or {})
    fetched: Fetched | None = None
    if isinstance(source, Factory):
        _refuse_unused(choice, ("arch", "num_classes"), "a factory's module", action)
        imported = import_factory(source, options, images, action, choice)
    else:
        if str(source).startswith(PREFIX):
            fetched = fetch(str(source), action, progress)
            kind, path = "published", fetched.folder
        else:
            kind, path = recognise_source(source, action)
        if kind != "published":
            _refuse_unused(choice, tuple(_CHOICES), "this source", action)
        if kind == "onnx":
            imported = import_onnx(path, options, images, action, named=labels is not None)
        else:
            imported = import_checkpoint(kind, path, options, images, action, named=labels is not None, choice=choice)
    count, parity = imported.num_classes, imported.parity
    if not parity.relative <= TOLERANCE:
        raise InvalidResultError(
            action,
            f"the logits differ from the source's by {parity.relative:.1e} of the largest; {TOLERANCE:.0e} is allowed",
            "report it with the source's architecture; nothing was written",
        )
    if labels is not None:
        folders = trained_folders(imported.classes, imported.training)
        classes = read_labels(labels, count, action, folders=folders)
    else:
        own = recognise_imagenet(imported.classes, count, str(imported.details.get("tag", "")))
        classes = own or numbered_classes(count)
        refuse_empty([label.name for label in classes], "the source", action)
    record = ModelRecord(
        name=imported.name if fetched is None else fetched.repo.rpartition("/")[2],
        classes=classes,
        preprocessing=imported.preprocessing,
        origin=_origin(imported, fetched),
        licence=licence or imported.licence,
        architecture=imported.architecture,
        training=imported.training,
        accuracy=imported.accuracy,
    )
    return write_model(out, record, imported.files, overwrite=overwrite, action=action)


_CHOICES = {"arch": "--arch", "num_classes": "--num-classes", "use_ema": "--use-ema", "key": "--weights-key"}


def _refuse_unused(choice: Choice, fields: Sequence[str], source: str, action: str) -> None:
    """Refuse options that choose among checkpoints where they would have no effect."""
    if given := [_CHOICES[name] for name in fields if getattr(choice, name)]:
        verb = "belong" if len(given) > 1 else "belongs"
        reason = f"{' and '.join(given)} {verb} to a checkpoint of training, not to {source}"
        raise UsageError(action, reason, f"leave out {' and '.join(given)}")


def _origin(imported: Imported, fetched: Fetched | None) -> Origin:
    source, details = imported.name, imported.details
    if fetched is not None:
        source, details = f"{PREFIX}{fetched.repo}", {**details, "revision": fetched.revision}
    return Origin(kind=imported.kind, source=source, details=details, parity=imported.parity)


def summary(model: Model) -> dict[str, Any]:
    """Return one flat row for people and for ``--json``: what was imported and how well it agrees with its source."""
    record, parity = model.record, model.record.origin.parity
    row: dict[str, Any] = {
        "model": str(model.path),
        "name": record.name,
        "origin": record.origin.kind,
        "classes": len(record.classes),
        "class_names": _class_names(model),
        "input_size": "×".join(map(str, record.preprocessing.size)),
        "licence": record.licence,
    }
    if record.architecture is not None:
        row |= {"blocks": record.architecture.depth, "channels": record.architecture.embed_dim}
        row |= {"million_macs": round(record.architecture.macs() / 1e6, 1)}
    for detail in ("revision", "weights", "position_embedding", "patch_projection", "class_names_from"):
        if detail in record.origin.details:
            row[detail] = record.origin.details[detail]
    if "preprocessing_defaults" in record.origin.details:
        row["preprocessing_defaults"] = _said(record.origin.details["preprocessing_defaults"])
    row |= graph_summary(record.origin.details)
    if parity is not None:
        row |= {"compared_with": parity.reference, "pictures": parity.images, "relative_difference": parity.relative}
    return row


def _class_names(model: Model) -> str:
    """Return the first class names, or the option that gives them."""
    names = [label.name for label in model.record.classes]
    if nameless(names):
        return f"none; to give them, run: vitedge label {model.path} --labels FOLDER|FILE"
    return f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def _said(defaults: Mapping[str, Any]) -> str:
    """Describe the values that the source left open: ``interpolation bilinear, mean 0.5,0.5,0.5 (timm)``."""
    texts = [f"{name.replace('_', ' ')} {_spelled(value)}" for name, value in defaults.items() if name != "from"]
    return f"{', '.join(texts)} ({defaults['from']})"


def _spelled(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_spelled, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def recognise_source(source: str | Path, action: str) -> tuple[str, Path]:
    """Return (kind, path) of a source: "embedded", "train", "published" or "onnx"."""
    if source == "embedded":
        return "embedded", embedded.FOLDER
    path = Path(source)
    if not path.exists():
        raise UsageError(action, "there is no such file or folder", f"name {LAYOUTS}")
    if path.is_dir():
        if (path / MODEL_JSON).is_file():
            return "train", path
        graphs = sorted(path.glob("*.onnx"))
        if (path / "config.json").is_file() and (list(path.glob("*.safetensors")) or not graphs):
            return "published", path
        if len(graphs) == 1:
            return "onnx", graphs[0]
        if not graphs and any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
            return "published", path
        raise UsageError(action, f"it holds {len(graphs)} ONNX files and no known checkpoint", f"name {LAYOUTS}")
    suffix = path.suffix.lower()
    if suffix == ".onnx" or suffix in SUFFIXES:
        return ("onnx" if suffix == ".onnx" else "published"), path
    raise UsageError(action, f"files ending in '{suffix}' aren't supported", f"name {LAYOUTS}")
