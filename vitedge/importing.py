"""Import: a published checkpoint, an ONNX file from anyone or the embedded model becomes a canonical ``model/`` folder.

Whatever comes in is compared with its source on pictures before anything is written: a checkpoint with a float64
forward pass in numpy, an ONNX file with itself as it was. Foreign ONNX files are parsed and run in a child process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitedge import embedded
from vitedge.architecture import ViTConfig
from vitedge.deviation import deviation
from vitedge.errors import InvalidResultError, ModelError, NotInstalledError, UsageError
from vitedge.files import refuse_existing, sha256_file
from vitedge.images import ImageSet
from vitedge.isolation import ChildError, run_isolated
from vitedge.model_folder import (
    MODEL_JSON,
    MODEL_ONNX,
    MODEL_WEIGHTS,
    ClassLabel,
    Model,
    ModelRecord,
    Origin,
    Parity,
    class_table,
    write_model,
)
from vitedge.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx

    from vitedge.graph.mappings import Checkpoint

Frames = NDArray[np.uint8]
Logits = NDArray[np.float32]

TOLERANCE = 1e-4  # largest absolute difference over largest absolute logit
PICTURES = 8  # for parity, where the caller names none
STEP_PICTURES = 2  # for the check after each rewrite; the result is compared on all
TIMEOUT_S = 900.0
LAYOUTS = "a timm folder (config.json, model.safetensors), an ONNX file, a folder of `vitedge train`, or: embedded"


def import_model(
    source: str | Path,
    out: str | Path,
    *,
    labels: str | Path | Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    licence: str | None = None,
    images: str | Path | ImageSet | None = None,
    overwrite: bool = False,
) -> Model:
    """Bring a model into a canonical folder, with proof that nothing changed on the way.

    Args:
        source: a folder in timm's published layout or its ``model.safetensors``, an ONNX file, a folder that
            ``vitedge train`` wrote, or ``"embedded"``.
        out: the model folder to write.
        labels: class names in the order of the logits: a list, a text file (one a line), JSON (a list, or a dictionary
            from id to name), or a folder of class folders, sorted. Without it the source's own, else numbers.
        preprocessing: fields of :class:`~vitedge.preprocessing.Preprocessing` that override or complete the source's.
            An ONNX file with float input needs at least ``mean`` and ``std``, and ``size`` where its input has none.
        licence: of the model, where the source doesn't say.
        images: pictures to compare on; without them the embedded ones.
        overwrite: permit replacing an existing model folder.

    Raises:
        UsageError: no such source, an existing output, a preprocessing that isn't one.
        ModelError: a source that can't be read, or tensors, labels or classes that don't fit.
        InvalidResultError: the logits differ from the source's.
    """
    asked = f"import {source}"
    refuse_existing(Path(out), overwrite=overwrite, asked=asked)
    kind, path = _recognised(source, asked)
    options = dict(preprocessing or {})
    if kind == "onnx":
        imported = _import_onnx(path, options, images, asked)
    else:
        imported = _import_checkpoint(kind, path, options, images, asked)
    count, parity = imported.num_classes, imported.parity
    if not parity.relative <= TOLERANCE:
        raise InvalidResultError(
            asked,
            f"the logits differ from the source's by {parity.relative:.1e} of the largest; {TOLERANCE:.0e} is allowed",
            "report it with the source's architecture; nothing was written",
        )
    classes = read_labels(labels, count, asked) if labels is not None else imported.classes
    record = ModelRecord(
        name=imported.name,
        classes=classes or class_table([f"class {index}" for index in range(count)], [None] * count),
        preprocessing=imported.preprocessing,
        origin=Origin(kind=imported.kind, source=imported.name, details=imported.details, parity=parity),
        licence=licence or imported.licence,
        architecture=imported.architecture,
        training=imported.training,
        accuracy=imported.accuracy,
    )
    return write_model(out, record, imported.files, overwrite=overwrite, asked=asked)


def summary(model: Model) -> dict[str, Any]:
    """One flat row for people and for ``--json``: what was imported and how well it agrees with its source."""
    record, parity = model.record, model.record.origin.parity
    row: dict[str, Any] = {
        "model": str(model.path),
        "name": record.name,
        "origin": record.origin.kind,
        "classes": len(record.classes),
        "input_size": "×".join(map(str, record.preprocessing.size)),
        "licence": record.licence,
    }
    if record.architecture is not None:
        row |= {"blocks": record.architecture.depth, "channels": record.architecture.embed_dim}
        row |= {"million_macs": round(record.architecture.macs() / 1e6, 1)}
    if record.origin.details.get("operators_left_alone"):
        row["operators_left_alone"] = ", ".join(sorted(record.origin.details["operators_left_alone"]))
    if parity is not None:
        row |= {"compared_with": parity.reference, "pictures": parity.images, "relative_difference": parity.relative}
    return row


def preprocessing_options(
    *,
    size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Command-line spellings as fields of :class:`~vitedge.preprocessing.Preprocessing`; what is None is left out.

    Args:
        size: ``HEIGHT`` or ``HEIGHTxWIDTH`` in pixels.
        mean: three numbers with commas between.
        std: likewise.
        **others: fields whose values need no parsing.

    Raises:
        UsageError: not numbers.
    """
    options = {name: value for name, value in others.items() if value is not None}
    if size is not None:
        sides = size.lower().replace("×", "x").split("x")
        if not all(side.strip().isdecimal() for side in sides) or len(sides) > 2:
            raise UsageError("set the input size", f"'{size}' isn't HEIGHT or HEIGHTxWIDTH", "write, say, --size 224")
        options["size"] = (int(sides[0]), int(sides[-1]))
    for name, text in (("mean", mean), ("std", std)):
        if text is None:
            continue
        try:
            options[name] = tuple(float(part) for part in text.split(","))
        except ValueError as error:
            fix = f"write, say, --{name} 0.5,0.5,0.5"
            raise UsageError(f"set --{name}", f"'{text}' isn't three numbers with commas between", fix) from error
    return options


def read_labels(labels: str | Path | Sequence[str], count: int, asked: str) -> tuple[ClassLabel, ...]:
    """The class table from a list, a text file, a JSON file or a folder of class folders.

    Raises:
        UsageError: no such file.
        ModelError: unreadable, or another number of names than the model has classes.
    """
    names, where = (list(labels), "the list") if not isinstance(labels, str | Path) else _names(Path(labels), asked)
    if len(names) != count:
        true = f"{where} has {len(names)} class names; the model has {count} classes"
        raise ModelError(asked, true, "give one name a class, in the order of the logits")
    return class_table(names, [name if names.count(name) == 1 else None for name in names])


def _names(path: Path, asked: str) -> tuple[list[str], str]:
    fix = "give a text file with a name a line, a JSON list or {id: name}, or a folder of class folders"
    if path.is_dir():
        return list(ImageSet.open(path, asked=asked).classes), f"{path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return [line.strip() for line in text.strip().splitlines()], path.name
        data = msgspec.json.decode(text, type=list[str] | dict[int, str])
    except FileNotFoundError as error:
        raise UsageError(asked, f"the labels {path} don't exist", fix) from error
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
        raise ModelError(asked, f"the labels {path.name} can't be read: {error}", fix) from error
    if isinstance(data, list):
        return data, path.name
    if sorted(data) != list(range(len(data))):
        raise ModelError(asked, f"the ids in {path.name} aren't 0, 1, 2, …, {len(data) - 1}", fix)
    return [data[index] for index in range(len(data))], path.name


def _recognised(source: str | Path, asked: str) -> tuple[str, Path]:
    """(kind, path) of a source: "embedded", "train", "timm" or "onnx"."""
    if source == "embedded":
        return "embedded", embedded.FOLDER
    path = Path(source)
    if not path.exists():
        raise UsageError(asked, "there is no such file or folder", f"name {LAYOUTS}")
    if path.is_dir():
        if (path / MODEL_JSON).is_file():
            return "train", path
        graphs = sorted(path.glob("*.onnx"))
        if (path / "config.json").is_file() and (list(path.glob("*.safetensors")) or not graphs):
            return "timm", path
        if len(graphs) == 1:
            return "onnx", graphs[0]
        raise UsageError(asked, f"{len(graphs)} ONNX files and no known checkpoint lie in it", f"name {LAYOUTS}")
    suffix = path.suffix.lower()
    if suffix in (".onnx", ".safetensors"):
        return ("onnx" if suffix == ".onnx" else "timm"), path
    if suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar"):
        raise ModelError(asked, "pickled checkpoints can run code and aren't opened", "save the weights as safetensors")
    raise UsageError(asked, f"files ending in '{suffix}' aren't known", f"name {LAYOUTS}")


@dataclass(frozen=True)
class _Imported:
    """What both ways of importing come to."""

    kind: str
    name: str
    num_classes: int
    files: Mapping[str, bytes]
    preprocessing: Preprocessing
    parity: Parity
    details: dict[str, Any]
    classes: tuple[ClassLabel, ...] | None = None
    licence: str | None = None
    architecture: ViTConfig | None = None
    training: dict[str, Any] | None = None
    accuracy: dict[str, Any] | None = None


def _import_checkpoint(
    kind: str, path: Path, options: dict[str, Any], images: str | Path | ImageSet | None, asked: str
) -> _Imported:
    """Author the graph of a published checkpoint; its referee is the float64 forward pass in numpy."""
    from vitedge.graph import author, mappings, reference, surgery

    checkpoint: Checkpoint = mappings.read_timm(path) if kind == "timm" else mappings.read_own(path)
    contract = _contract({**msgspec.structs.asdict(checkpoint.preprocessing), **options}, asked)
    if contract.size != checkpoint.config.image_size:
        true = f"its weights are for images of {checkpoint.config.image_size}; size {contract.size} was given"
        raise ModelError(asked, true, "leave the size out")
    normalisation: dict[str, Any] = {"mean": contract.mean, "std": contract.std, "rescale": contract.rescale}
    graph = author.author_vit(
        checkpoint.config, checkpoint.arrays, channel_order=contract.channel_order, **normalisation
    )
    frames = _frames(images, contract, asked)
    ordered = frames[..., ::-1] if contract.channel_order == "bgr" else frames
    step = max(1, (1 << 16) // (frames.shape[1] * frames.shape[2]))  # pictures at once, so that memory stays small
    pieces = [ordered[first : first + step] for first in range(0, len(ordered), step)]
    expected = np.concatenate(
        [reference.reference_logits(checkpoint.config, checkpoint.arrays, piece, **normalisation) for piece in pieces]
    )
    parity = _parity("float64 forward pass in numpy", _runner(graph, asked)(frames), expected, asked)
    files, record = {MODEL_ONNX: surgery.to_bytes(graph)}, checkpoint.record
    if record is not None:
        files[MODEL_WEIGHTS] = (path / MODEL_WEIGHTS).read_bytes()
    weights = path / MODEL_WEIGHTS if path.is_dir() else path
    return _Imported(
        kind=record.origin.kind if record is not None and kind != "embedded" else kind,
        name=checkpoint.name,
        num_classes=checkpoint.config.num_classes,
        files=files,
        preprocessing=contract,
        parity=parity,
        details={**checkpoint.details, "weights_sha256": sha256_file(weights)},
        classes=checkpoint.classes,
        licence=checkpoint.licence,
        architecture=checkpoint.config,
        training=record.training if record is not None else None,
        accuracy=record.accuracy if record is not None else None,
    )


def _import_onnx(path: Path, options: dict[str, Any], images: str | Path | ImageSet | None, asked: str) -> _Imported:
    """Bring a foreign graph to the canonical form; its referee is the graph as it came, in ONNX Runtime."""
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    try:
        return run_isolated(_convert, path, options, images, asked, timeout_s=TIMEOUT_S, memory_mb=memory_mb)
    except ChildError as error:
        fix = "export the model again; check the file with onnx.checker"
        raise ModelError(asked, f"the graph could not be read or run: {error}", fix) from error


def _completed(model: onnx.ModelProto, options: dict[str, Any], asked: str) -> dict[str, Any]:
    """Preprocessing options completed by what the input of an ONNX file tells."""
    from onnx import TensorProto

    from vitedge.graph import surgery

    weights = surgery.initializers(model)
    value = next((value for value in model.graph.input if value.name not in weights), None)
    if value is None:
        raise ModelError(asked, "its graph has no input", "export the model again")
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if "size" not in options and len(shape) == 4:
        sides = shape[2:] if shape[1] == 3 else shape[1:3]
        if all(side > 0 for side in sides):
            options = {**options, "size": tuple(sides)}
    if value.type.tensor_type.elem_type == TensorProto.UINT8:  # normalised inside, if at all
        options = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "rescale": 1.0, **options}
    if missing := [f"--{name}" for name in ("size", "mean", "std") if name not in options]:
        true = f"an ONNX file doesn't say how its pictures are prepared; {', '.join(missing)} is missing"
        raise UsageError(asked, true, "give what the model was trained with, say --mean 0.485,0.456,0.406")
    return options


def _convert(path: Path, options: dict[str, Any], images: str | Path | ImageSet | None, asked: str) -> _Imported:
    """Canonicalise a foreign graph. Runs in a child process."""
    from vitedge.graph import canonical, surgery

    raw = surgery.load(path)
    contract = _contract(_completed(raw, options, asked), asked)
    frames = _frames(images, contract, asked)
    prepared, report = canonical.prepare(raw, asked)
    source = canonical.describe(prepared, contract, asked)
    if canonical.ends_in_probabilities(prepared, source.output) and contract.activation != "none":
        true = f"its output '{source.output}' holds probabilities, not logits; softmax would be applied twice"
        raise ModelError(asked, true, "add --activation none, or export without the last layer")
    widened = "half precision widened" in report.rewrites
    original = _runner(prepared if widened else raw, asked, source.output)
    expected = original(_source_input(frames, source, contract))
    if expected.ndim != 2 or expected.shape[1] < 1:
        true = f"its output '{source.output}' is {list(expected.shape)}; logits [N, classes] are expected"
        raise ModelError(asked, true, "export the classifier, head included")
    if not np.isfinite(expected).all():
        raise ModelError(asked, "its logits are NaN or infinite", "check the source's weights and preprocessing")

    def check(candidate: onnx.ModelProto) -> float:
        try:
            found = _runner(candidate, asked)(frames[:STEP_PICTURES])
            return deviation(found, expected[:STEP_PICTURES])
        except ModelError:
            return math.inf

    model = canonical.with_image_input(prepared, source, contract, expected.shape[1])
    if not check(model) <= TOLERANCE:
        raise ModelError(asked, "behind an image input its logits are others", "report it with the graph")
    model, report = canonical.canonicalise(model, report, contract, check)
    referee = f"the source{', widened to float32,' if widened else ''} in ONNX Runtime"
    parity = _parity(referee, _runner(model, asked)(frames), expected, asked)
    return _Imported(
        kind="onnx",
        name=path.stem,
        num_classes=expected.shape[1],
        files={MODEL_ONNX: surgery.to_bytes(model)},
        preprocessing=contract,
        parity=parity,
        details={**report.details(), "onnx_sha256": sha256_file(path)},
        architecture=report.architecture,
    )


def _source_input(frames: Frames, source: Any, contract: Preprocessing) -> NDArray[Any]:
    """uint8 RGB [N, H, W, 3] as a foreign graph wants it."""
    pixels: NDArray[Any] = frames[..., ::-1] if contract.channel_order == "bgr" else frames
    if source.dtype == "float32":
        values = (pixels.astype(np.float64) * contract.rescale - np.asarray(contract.mean)) / np.asarray(contract.std)
        pixels = values.astype(np.float32)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if source.layout == "nchw" else pixels)


def _runner(model: onnx.ModelProto, asked: str, output: str = "logits") -> Callable[[NDArray[Any]], Logits]:
    """A function that runs a graph on [N, …] in ONNX Runtime, in as many pieces as its batch wants.

    Raises:
        NotInstalledError: no onnxruntime.
        ModelError: ONNX Runtime refuses the graph.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]  # it ships no types
    except ImportError as error:
        raise NotInstalledError.for_extra(asked, "onnxruntime", "host") from error
    from vitedge.graph import surgery

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    fix = "export the model again; check the file with onnx.checker"
    try:
        session = onnxruntime.InferenceSession(surgery.to_bytes(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds
        raise ModelError(asked, f"ONNX Runtime refuses the graph: {_first_line(error)}", fix) from error

    def run(pictures: NDArray[Any]) -> Logits:
        value = session.get_inputs()[0]
        piece = value.shape[0] if value.shape and isinstance(value.shape[0], int) else len(pictures)
        try:
            padded = np.concatenate([pictures, np.repeat(pictures[:1], -len(pictures) % piece, axis=0)])
            parts = [padded[i : i + piece] for i in range(0, len(padded), piece)]
            logits = np.concatenate([session.run([output], {value.name: part})[0] for part in parts])
        except Exception as error:  # the runtime's own kinds
            raise ModelError(asked, f"ONNX Runtime can't run the graph: {_first_line(error)}", fix) from error
        return logits[: len(pictures)].astype(np.float32)

    return run


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def _contract(options: Mapping[str, Any], asked: str) -> Preprocessing:
    try:
        return msgspec.convert(dict(options), Preprocessing, from_attributes=True)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(asked, f"the preprocessing is wrong: {error}", "run: vitedge import --help") from error


def _frames(images: str | Path | ImageSet | None, contract: Preprocessing, asked: str) -> Frames:
    """Pictures through the contract, uint8 [N, H, W, 3]."""
    if images is None:
        pictures = embedded.pictures("calibration")
        pictures = pictures.subset(pictures.order(0)[:PICTURES])
    else:
        pictures = images if isinstance(images, ImageSet) else ImageSet.open(images, asked=asked)
    return np.stack([contract.apply(pictures.read(index)) for index in range(len(pictures))])


def _parity(reference: str, found: NDArray[Any], expected: NDArray[Any], asked: str) -> Parity:
    if not np.isfinite(expected).all() or not np.isfinite(found).all():
        raise ModelError(asked, "its logits are NaN or infinite", "use a sound checkpoint")
    return Parity(
        reference=reference,
        images=len(expected),
        max_abs_difference=float(np.abs(found - expected).max()),
        relative=deviation(found, expected),
    )
