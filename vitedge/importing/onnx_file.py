"""Import any ONNX file: parse and run it in a child process, and compare the canonical graph with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitedge.core import system
from vitedge.core.deviation import deviation
from vitedge.core.files import sha256_file
from vitedge.core.isolation import ChildError, run_isolated
from vitedge.data.images import ImageSet
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError, UsageError
from vitedge.formats.model_folder import MODEL_ONNX, ClassLabel
from vitedge.graph.checkpoint import flags
from vitedge.importing.contract import contract_of
from vitedge.importing.declared import Declared, read_declared
from vitedge.importing.labels import read_labels
from vitedge.importing.probabilities import activated, random_pictures, rows_of, without_activation
from vitedge.importing.proof import TOLERANCE, Frames, Imported, Logits, frames_of, parity_of, runner

if TYPE_CHECKING:
    import onnx

STEP_PICTURES = 2  # for the check after each rewrite; the result is compared on all
TIMEOUT_S = 900.0
HALF_PRECISION = "half_precision_difference"  # of the source from itself in float32, over the largest output


def import_onnx(
    path: Path,
    options: dict[str, Any],
    images: str | Path | ImageSet | None,
    action: str,
    reference: tuple[str, Logits] | None = None,
    *,
    named: bool = False,
) -> Imported:
    """Bring a foreign graph to the canonical form, and compare it with the original graph, in ONNX Runtime.

    Args:
        path: the ONNX file.
        options: fields of the preprocessing contract.
        images: pictures to compare on; without them the embedded ones.
        action: for error texts.
        reference: what to compare with instead: its name, and its logits [N, classes] for these pictures.
        named: the caller names the classes; those of the file and beside it aren't read.

    Raises:
        UsageError: the preprocessing isn't complete.
        ModelError: a graph that can't be read, run or classified with.
    """
    from vitedge.graph.task import require_one_class_beside

    require_one_class_beside(path.parent, options.get("activation"), action)
    limits: dict[str, Any] = {"timeout_s": TIMEOUT_S, "memory_mb": system.memory_mb()}
    try:
        return run_isolated(convert, path, options, images, action, reference, named, **limits)
    except ChildError as error:
        hint = "export the model again; check the file with onnx.checker"
        raise ModelError(action, f"the graph could not be read or run: {error}", hint) from error


def completed(model: onnx.ModelProto, declared: Declared, options: Mapping[str, Any], action: str) -> dict[str, Any]:
    """Complete preprocessing options from what is declared with an ONNX file, and from its input."""
    from onnx import TensorProto

    from vitedge.graph import surgery

    value = next(iter(surgery.inputs(model)), None)
    if value is None:
        raise ModelError(action, "its graph has no input", "export the model again")
    fields = declared.fields(model)
    if value.type.tensor_type.elem_type == TensorProto.UINT8:  # normalised inside, if at all
        fields |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "rescale": 1.0}
    fields |= options
    require_preprocessing(fields, "an ONNX file", action, declared.hint)
    return fields


def require_preprocessing(options: Mapping[str, Any], source: str, action: str, likely: str = "") -> None:
    """Refuse preprocessing without values that can't be guessed for a source of this kind.

    Args:
        options: what is known.
        source: what kind of source it is, in words.
        action: for error texts.
        likely: what sources like it are usually used with.

    Raises:
        UsageError: the options that are missing.
    """
    examples = {"size": (224,), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    missing = {name: example for name, example in examples.items() if name not in options}
    if missing:
        names = ", ".join(flags(dict.fromkeys(missing)))
        reason = f"{source} doesn't say how its pictures are prepared; {names} is missing"
        hint = f"give what the model was trained with, say {' '.join(flags(missing))}"
        raise UsageError(action, reason, f"{hint} ({likely})" if likely else hint)


def convert(
    path: Path,
    options: dict[str, Any],
    images: str | Path | ImageSet | None,
    action: str,
    reference: tuple[str, Logits] | None = None,
    named: bool = False,
) -> Imported:
    """Canonicalise a foreign graph. Runs in a child process."""
    from vitedge.graph import canonical, class_maps, interface, quantized, surgery

    raw, names = class_maps.without_class_maps(surgery.load(path))
    quantized.refuse_quantized(raw, action)
    declared = read_declared(path, raw, names, action, named=named)
    contract = contract_of(completed(raw, declared, options, action), action)
    frames = frames_of(images, contract, action)
    prepared, report = canonical.prepare(raw, action)
    source = interface.describe(prepared, contract, action)
    widened = "half precision widened" in report.rewrites
    pictures = np.concatenate([frames, random_pictures(contract.size)])
    inputs = source_input(pictures, contract, source.layout, source.dtype)
    outputs = runner(prepared if widened else raw, action, source.output)(inputs)
    rows = _rows(outputs, len(pictures), source.output, action)
    half = _half_precision(raw, source.output, inputs, rows, action) if widened else {}
    ending = without_activation(prepared, source.output, inputs, rows, options.get("activation"), action)
    if ending is not None:
        report.rewrites[f"{ending.kind} at the end cut off"] = 1
        prepared, source = interface.ending_at(prepared, source, ending.tensor, rows.shape[1], flat=ending.flat)
    elif outputs.ndim != 2:
        prepared, source = interface.ending_at(prepared, source, source.output, rows.shape[1], flat=False)
    expected = (rows if ending is None else ending.values)[: len(frames)]

    def check(candidate: onnx.ModelProto) -> float:
        try:
            return deviation(runner(candidate, action)(frames[:STEP_PICTURES]), expected[:STEP_PICTURES])
        except ModelError:
            return math.inf

    model = interface.with_image_input(prepared, source, contract, expected.shape[1])
    if not check(model) <= TOLERANCE:
        raise ModelError(action, "with an image input the graph gives other logits", "report this graph")
    model, report = canonical.canonicalise(model, report, contract, check)
    name = f"the source{', widened to float32,' if widened else ''} in ONNX Runtime"
    logits = runner(model, action)(frames)
    if ending is not None and reference is not None:  # the output holds the activation of the logits
        logits = activated(logits, ending.kind)
    name, expected = reference or (f"{name}, before its {ending.kind}" if ending else name, expected)
    parity = parity_of(name, logits, expected, action)
    return Imported(
        kind="onnx",
        name=path.stem,
        num_classes=expected.shape[1],
        files={MODEL_ONNX: surgery.to_bytes(model)},
        preprocessing=contract,
        parity=parity,
        details={**report.details(), **half, **declared.details(options), "onnx_sha256": sha256_file(path)},
        classes=_classes(declared, expected.shape[1], action),
        licence=declared.licence,
        architecture=report.architecture,
    )


def _rows(outputs: NDArray[np.float32], count: int, name: str, action: str) -> NDArray[np.float32]:
    """Return outputs as finite rows [count, classes].

    Raises:
        ModelError: they aren't.
    """
    rows = rows_of(outputs, count)
    if rows is None:
        reason = f"its output '{name}' is {list(outputs.shape)}; logits [N, classes] are expected"
        raise ModelError(action, reason, "export the classifier, head included")
    if not np.isfinite(rows).all():
        raise ModelError(action, "its logits are NaN or infinite", "check the source's weights and preprocessing")
    return rows


def _half_precision(
    raw: onnx.ModelProto, output: str, inputs: NDArray[Any], rows: NDArray[np.float32], action: str
) -> dict[str, float]:
    """Return the original file's deviation from the widened graph's rows [N, classes]; empty if it can't run here."""
    from onnx import TensorProto

    from vitedge.graph import surgery

    kinds = [value.type.tensor_type.elem_type for value in surgery.inputs(raw)]
    try:
        outputs = runner(raw, action, output)(inputs.astype(np.float16) if TensorProto.FLOAT16 in kinds else inputs)
    except ModelError:  # bfloat16, which ONNX Runtime doesn't run everywhere
        return {}
    found = rows_of(outputs, len(inputs))
    difference = math.inf if found is None else deviation(found, rows)
    return {HALF_PRECISION: difference} if math.isfinite(difference) else {}


def _classes(declared: Declared, count: int, action: str) -> tuple[ClassLabel, ...] | None:
    if not declared.names:
        return None
    try:
        return read_labels(declared.names, count, action)
    except ModelError as error:
        reason = f"{declared.names_from}: {error.reason}"
        raise ModelError(action, reason, "name the classes yourself: --labels FOLDER|FILE") from error


def source_input(frames: Frames, contract: Preprocessing, layout: str, dtype: str) -> NDArray[Any]:
    """Turn uint8 RGB [N, H, W, 3] into a foreign model's input: nchw or nhwc, uint8 or normalised float32."""
    pixels: NDArray[Any] = frames[..., ::-1] if contract.channel_order == "bgr" else frames
    if dtype == "float32":
        values = (pixels.astype(np.float64) * contract.rescale - np.asarray(contract.mean)) / np.asarray(contract.std)
        pixels = values.astype(np.float32)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if layout == "nchw" else pixels)


def graph_summary(details: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the rewrites of a foreign graph and the operators left alone; empty for any other origin."""
    if "authored" not in details:
        return {}
    untouched = {name: len(nodes) for name, nodes in details.get("operators_left_alone", {}).items()}
    summary: dict[str, Any] = {"graph": "a plain ViT, authored anew" if details["authored"] else "kept as it came"}
    for name, counts in (("rewrites", details["rewrites"]), ("operators_left_alone", untouched)):
        if counts:
            summary[name] = ", ".join(key if count == 1 else f"{key} ×{count}" for key, count in sorted(counts.items()))
    if details.get("rejected_rewrites"):
        summary["rewrites_taken_back"] = ", ".join(sorted(details["rejected_rewrites"]))
    summary |= {name: details[name] for name in (HALF_PRECISION, "fixed_batch") if name in details}
    return summary
