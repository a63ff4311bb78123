"""Describe a file or folder in words: a model folder, an artifact, a result, an ONNX file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import UnsetType, to_builtins

from vitedge.core.files import sha256_file
from vitedge.core.isolation import ChildError, run_isolated
from vitedge.core.schema import Record, decode_json
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError, NotInstalledError, UsageError
from vitedge.formats.architecture import ViTConfig
from vitedge.formats.artifact import MANIFEST, Artifact, Golden, LayerPlan, Manifest
from vitedge.formats.budget import Budget
from vitedge.formats.engines import INDEX, Engines
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.model_folder import GIVE_NAMES, MODEL_JSON, ClassLabel, Model, Origin, nameless
from vitedge.formats.result import RESULT_JSON, read_result
from vitedge.reporting import provenance, rows, widths
from vitedge.runtimes.choice import folders, open_artifact, read_choice
from vitedge.shrinking.shrinkage import SHRUNK, shrinkage_of

MOST_ROWS = 24  # of a table, unless everything is asked for
LONGEST_READ_S = 60.0


class Section(Record):
    """A table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Inspection(Record):
    """The description of a file or folder; ``record`` is the file's own content, for programs."""

    kind: str  # "model", "artifact", "result", "engines", "onnx"
    path: str
    facts: dict[str, str]
    sections: tuple[Section, ...]
    record: Any


def inspect(path: str | Path, *, everything: bool = False) -> Inspection:
    """Describe what lies at ``path``; the digests of models and artifacts are checked on the way.

    Args:
        path: a model folder, an artifact, a result file or its folder, a folder of engines, or an ONNX file.
        everything: show every layer, class and file, however many.

    Raises:
        UsageError: nothing there, or nothing that vitedge knows.
        InputError: it's damaged, or written by a newer version.
        NotInstalledError: an ONNX file, and the package onnx isn't installed.
    """
    path = Path(path)
    limit = None if everything else MOST_ROWS
    if (path / MANIFEST).is_file():
        return _artifact(Artifact.open(path), limit)
    if (path / MODEL_JSON).is_file():
        return _model(Model.open(path), limit)
    if (path / RESULT_JSON).is_file() or (path.is_file() and path.suffix == ".json"):
        return _result(path)
    if (path / INDEX).is_file():
        return _engines(path)
    if path.is_file() and path.suffix == ".onnx":
        return _onnx(path, limit)
    reason = (
        "it's neither a model, an artifact, a result, a folder of engines nor an ONNX file"
        if path.exists()
        else "there is no such path"
    )
    raise UsageError(f"inspect {path}", reason, "name a folder of import or export, a result.json, or a .onnx file")


# --- models and artifacts --------------------------------------------------------------------------------------------


def _model(model: Model, limit: int | None) -> Inspection:
    record = model.record
    architecture = record.architecture
    facts = {
        "kind": "model folder: float32, for every target",
        "name": record.name,
        **_origin(record.origin),
        "licence": record.licence or "unknown",
        "input": _input(record.preprocessing),
        "classes": _class_count(record.classes),
    }
    if architecture is not None:
        height, width = architecture.image_size
        narrower = f" of {architecture.head_dim} channels" if architecture.attention_dim else ""
        heads = "widths of their own" if architecture.blocks else f"{architecture.num_heads} heads{narrower}"
        facts["architecture"] = (
            f"{architecture.depth} blocks of {architecture.embed_dim} channels, {heads}, "
            f"{architecture.tokens} tokens of a {height}×{width} picture, {architecture.stem.stride}-pixel patches"
        )
        facts["cost"] = f"{architecture.macs() / 1e6:,.1f} million multiply-accumulates a picture"
    facts |= {f"training {name}": _words(value) for name, value in (record.training or {}).items()}
    facts |= {f"accuracy {name}": _words(value) for name, value in (record.accuracy or {}).items()}
    facts |= {"written by": f"vitedge {record.vitedge_version}", "digest": model.digest}
    sections = (
        *_widths(architecture),
        _contract(record.preprocessing),
        _classes(record.classes, limit),
        _files(model.path, record.files, limit),
    )
    return Inspection(
        kind="model", path=str(model.path), facts=facts, sections=sections, record=to_builtins(record, str_keys=True)
    )


def _widths(config: ViTConfig | UnsetType | None) -> tuple[Section, ...]:
    """Return the table of each block's widths; nothing where all blocks are equal."""
    cells = widths.table(config) if config else ()
    return (Section(title="Widths", columns=widths.COLUMNS, rows=cells),) if cells else ()


def _artifact(artifact: Artifact, limit: int | None) -> Inspection:
    manifest = artifact.manifest
    target, calibration, recipe = manifest.target, manifest.calibration, manifest.recipe
    facts = {
        "kind": f"artifact for {target.name}: {target.summary}",
        "name": manifest.name,
        "runtime": f"{target.runtime}, {target.runtime_min} or newer, on {target.device}",
        "precision": f"{manifest.precision} as {manifest.variant}, MACs: {rows.fractions(manifest.precision_obtained)}",
        "graph": f"{manifest.graph}, {artifact.bytes / 1e6:.2f} MB with what it refers to, batch {manifest.batch}",
        "input": _input(manifest.preprocessing),
        "classes": _class_count(manifest.classes),
        **_origin(manifest.origin),
        "licence": manifest.licence or "unknown",
        "model digest": manifest.model_digest,
    }
    if recipe is not None:
        facts["recipe"] = f"{recipe.name}: {recipe.summary}"
    if calibration is not None:
        skipped = f", {len(calibration.skipped)} unreadable skipped" if calibration.skipped else ""
        fewer = recipe is not None and calibration.count < recipe.observe.num_samples
        asked = f" (the recipe asks for {recipe.observe.num_samples})" if recipe is not None and fewer else ""
        facts["calibrated on"] = f"{calibration.count} images of {calibration.source}{asked}{skipped}"
        facts["calibration digest"] = calibration.digest
    facts |= {
        "golden": _golden(manifest.golden),
        "runtime options": _words(manifest.runtime_options),
        "built with": _words(manifest.built_with),
        **_fidelity(manifest.fidelity),
        **_budget(manifest),
        **_runs_here(artifact),
        "written by": f"vitedge {manifest.vitedge_version}",
        "digest": artifact.digest,
    }
    sections = (
        _contract(manifest.preprocessing),
        *_candidates(artifact),
        *_widths(manifest.architecture),
        layers(manifest.layers, each=limit is None),
        _classes(manifest.classes, limit),
        _files(artifact.path, manifest.files, limit),
    )
    record = to_builtins(manifest, str_keys=True)
    return Inspection(kind="artifact", path=str(artifact.path), facts=facts, sections=sections, record=record)


def _runs_here(artifact: Artifact) -> dict[str, str]:
    """Return the candidate that opening the artifact opens on this machine; empty where there is no other."""
    if not folders(artifact):
        return {}
    chosen = open_artifact(artifact.path)
    return {"opened here": f"{chosen.manifest.precision} as {chosen.manifest.variant}: {chosen.because}"}


def _candidates(artifact: Artifact) -> tuple[Section, ...]:
    """Return what was built at export, and what was measured here since."""
    results = artifact.manifest.candidates
    if len(results) < 2:
        return ()
    choice = read_choice(artifact)
    here = {candidate.artifact: candidate for candidate in choice.measured} if choice is not None else {}
    cells = []
    for candidate in results:
        timed = here.get("." if candidate.chosen else candidate.folder or "")
        cells.append(
            (
                candidate.variant,
                candidate.precision,
                "this artifact" if candidate.chosen else candidate.folder or "no",
                rows.milliseconds(candidate.latency_p50_ms),
                rows.milliseconds(timed.latency_p50_ms if timed is not None else None),
                rows.UNKNOWN if candidate.bytes is None else f"{candidate.bytes / 1e6:.2f}",
                rows.UNKNOWN if candidate.deviation is None else f"{candidate.deviation:.1e}",
                rows.UNKNOWN if candidate.divergence is None else f"{candidate.divergence:.2g}",
                rows.points(candidate.top1_drop_pp),
                candidate.failed or (timed.reason if timed is not None else ""),
            )
        )
    columns = (
        "variant",
        "!precision",
        "included",
        ">ms at export",
        ">ms here",
        ">MB",
        ">deviation",
        ">KL",
        ">top-1 drop (pp)",
        "reason",
    )
    return (Section(title="Candidates", columns=columns, rows=tuple(cells)),)


def _fidelity(fidelity: Fidelity | None) -> dict[str, str]:
    """Describe the difference from the float graph."""
    if fidelity is None:
        return {}
    sentence = f"KL {fidelity.divergence:.2g}, top-1 agreement {100 * fidelity.agreement:.2f} %"
    if fidelity.top1_drop is not None:
        sentence += f", top-1 drop {fidelity.top1_drop}"
    where = f"{fidelity.pictures} pictures of {fidelity.source}"
    if fidelity.split == "calibration":
        where += " that calibration used"
    flips = ", ".join(f"{flip.picture} ({flip.label} → {flip.instead})" for flip in fidelity.flips[:3])
    return {"against float": f"{sentence}; {where}, run by {fidelity.executed_by}"} | (
        {"worst flips": flips} if flips else {}
    )


def _budget(manifest: Manifest) -> dict[str, str]:
    """Describe the accuracy budget; empty where none was set."""
    budget = Budget.of_export(manifest.max_top1_drop_pp, manifest.min_top1_agreement_pct)
    return {"budget": f"{budget}, held with 95 % confidence"} if budget.limits_accuracy else {}


def contract_in_words(contract: Preprocessing) -> list[str]:
    """Describe the steps of preprocessing."""
    height, width = contract.size
    scaled = [contract.before_crop(side) for side in (height, width)]
    smooth = contract.interpolation if contract.antialias else f"{contract.interpolation} without antialias"
    resize = {
        "shortest": f"the shortest side becomes {max(scaled)} pixels" if height == width else f"it covers {scaled}",
        "squash": f"it becomes {scaled[0]}×{scaled[1]} pixels, whatever its shape",
        "pad": f"it fits into {scaled[0]}×{scaled[1]} pixels, the rest is filled with {contract.fill}",
    }[contract.resize]
    crop = (
        [f"cut the central {height}×{width} pixels"]
        if contract.resize == "shortest" or scaled != [height, width]
        else []
    )
    return [
        "turn it as its EXIF says" if contract.exif_orientation else "leave EXIF's orientation aside",
        "make it 8-bit RGB: grey is replicated, CMYK converted, alpha "
        + {"drop": "dropped", "composite": f"composed over {contract.fill}"}[contract.alpha]
        + ", 16 bits "
        + {"scale": "scaled", "clip": "clipped"}[contract.sixteen_bit],
        f"resize it ({smooth}): {resize}",
        *crop,
        f"in the graph: {'swap to BGR, ' if contract.channel_order == 'bgr' else ''}"
        f"multiply by {contract.rescale:.6g}, subtract {_triple(contract.mean)}, divide by {_triple(contract.std)}",
        {
            "softmax": "softmax of the logits",
            "sigmoid": "sigmoid of each logit",
            "none": "the outputs are what they are, not probabilities",
        }[contract.activation],
    ]


def layers(plan: Sequence[LayerPlan], *, each: bool = False) -> Section:
    """Return the planned precision, layers of one role together (the block's number becomes ``*``), or each of them."""
    total = sum(layer.macs for layer in plan) or 1
    groups: dict[tuple[str, str, str], list[LayerPlan]] = {}
    for layer in plan:
        name = layer.name if each else re.sub(r"(?<=\.)\d+(?=\.)", "*", layer.name)
        groups.setdefault((name, layer.precision, layer.reason), []).append(layer)
    cells = [
        (name, str(len(members)), precision, f"{sum(layer.macs for layer in members) / total:.1%}", reason)
        for (name, precision, reason), members in groups.items()
    ]
    columns = ("layer", ">count", "!precision", ">MACs", "reason")
    return Section(title="Precision planned", columns=columns, rows=tuple(cells))


def _golden(golden: Golden) -> str:
    """Describe the self-test."""
    text = (
        f"{len(golden.pictures)} pictures, run by {golden.executed_by}; largest deviation from float32 "
        f"{golden.deviation:.1e} of the largest logit"
    )
    return text if golden.tolerance is None else f"{text}; {golden.tolerance.allowed:.2g} (RMS) allowed from these"


def _origin(origin: Origin) -> dict[str, str]:
    facts = {"origin": f"{origin.kind}: {origin.source}"}
    shrinkage = shrinkage_of(origin)
    known = set() if shrinkage is None else {SHRUNK}
    facts |= {f"origin {name}": _words(value) for name, value in origin.details.items() if name not in known}
    facts |= {} if shrinkage is None else provenance.facts(shrinkage)
    if origin.parity is not None:
        parity = origin.parity
        facts["parity"] = (
            f"{parity.relative:.1e} of the largest logit from {parity.reference}, on {parity.images} pictures"
        )
    return facts


def _input(contract: Preprocessing) -> str:
    height, width = contract.size
    return f"uint8 RGB [batch, {height}, {width}, 3]"


def _class_count(classes: Sequence[ClassLabel]) -> str:
    if nameless(label.name for label in classes):
        return f"{len(classes)}, without names; {GIVE_NAMES}"
    return f"{len(classes)}: {', '.join(label.name for label in classes[:5])}{', …' if len(classes) > 5 else ''}"


def _contract(contract: Preprocessing) -> Section:
    steps = tuple((str(number), step) for number, step in enumerate(contract_in_words(contract), 1))
    return Section(title="From a picture to an answer", columns=(">", "step"), rows=steps)


def _classes(classes: Sequence[ClassLabel], limit: int | None) -> Section:
    cells = [(str(label.id), label.name, label.folder or rows.UNKNOWN) for label in classes]
    return _table("Classes", (">id", "name", "folder in data sets"), cells, limit)


def _files(folder: Path, digests: Mapping[str, str], limit: int | None) -> Section:
    cells = [(name, f"{(folder / name).stat().st_size:,}", digest) for name, digest in digests.items()]
    return _table("Files", ("file", ">bytes", "SHA-256"), cells, limit)


def _table(title: str, columns: tuple[str, ...], cells: Sequence[tuple[str, ...]], limit: int | None) -> Section:
    shown = list(cells[:limit])
    if len(shown) < len(cells):
        shown.append(("…", f"{len(cells) - len(shown)} more", *("" for _ in columns[2:])))
    return Section(title=title, columns=columns, rows=tuple(shown))


def _triple(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(inner) for inner in value) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# --- engines ---------------------------------------------------------------------------------------------------------


def _engines(path: Path) -> Inspection:
    """Describe a folder of engines: the GPUs that it serves, sizes, and the time that building each took."""
    record = decode_json((path / INDEX).read_bytes(), Engines, action=f"inspect {path}", file=str(path / INDEX))
    cells = []
    for engine in record.engines:
        file = path / Path(engine.file).name
        sound = file.is_file() and sha256_file(file) == engine.engine
        cells.append(
            (
                engine.sm,
                engine.gpu or "any",
                f"{engine.package} {engine.version}",
                engine.jetpack or rows.UNKNOWN,
                f"{file.stat().st_size / 1e6:.2f}" if file.is_file() else rows.UNKNOWN,
                rows.UNKNOWN if engine.seconds is None else f"{engine.seconds:.1f}",
                rows.UNKNOWN if engine.peak_mb is None else f"{engine.peak_mb:,}",
                engine.file if sound else f"{engine.file}: it isn't what was written",
            )
        )
    facts = {
        "kind": f"engines of {record.artifact}",
        "timing caches": ", ".join(sorted(file.name for file in path.glob("*.cache"))) or "none",
        "written by": f"vitedge {record.vitedge_version}",
    }
    columns = ("!SM", "GPU", "!built with", "JetPack", ">MB", ">seconds", ">MiB while built", "file")
    section = Section(title="Engines", columns=columns, rows=tuple(cells))
    return Inspection(kind="engines", path=str(path), facts=facts, sections=(section,), record=to_builtins(record))


# --- results ---------------------------------------------------------------------------------------------------------


def _result(path: Path) -> Inspection:
    result = read_result(path)
    facts = {
        "kind": "result" + (", partial: it was interrupted" if result.partial else ""),
        "measured": result.created,
        "on": rows.machine_name(result.environment),
        "written by": f"vitedge {result.vitedge_version}",
    }
    if result.data is not None:
        facts["images"] = f"{len(result.data.names):,} of {result.data.source}, {len(result.data.classes)} classes"
        facts["image digest"] = result.data.digest
    cells = [
        (
            line.row.subject.name,
            f"{len(line.row.latency.samples):,}" if line.row.latency else rows.UNKNOWN,
            f"{line.images:,}" if line.images else rows.UNKNOWN,
            str(len(line.row.checks)),
            "; ".join(line.notes),
        )
        for line in rows.lines([result])
    ]
    columns = ("artifact", ">samples", ">images", ">checks", "notes")
    section = Section(title="Rows", columns=columns, rows=tuple(cells))
    return Inspection(kind="result", path=str(path), facts=facts, sections=(section,), record=to_builtins(result))


# --- ONNX ------------------------------------------------------------------------------------------------------------


def _onnx(path: Path, limit: int | None) -> Inspection:
    import importlib.util

    action = f"inspect {path}"
    if importlib.util.find_spec("onnx") is None:
        raise NotInstalledError.for_extra(action, "onnx", "host")
    try:
        record = run_isolated(_read_onnx, str(path), timeout_s=LONGEST_READ_S)
    except ChildError as error:
        raise ModelError(
            action, f"it can't be read: {error}", "export it again, or check it with onnx.checker"
        ) from error
    facts = {
        "kind": "ONNX file",
        "producer": record["producer"] or "unknown",
        "IR version": str(record["ir_version"]),
        "opsets": _words(record["opsets"]),
        "parameters": f"{record['parameters']:,}",
        "size": f"{path.stat().st_size / 1e6:.2f} MB",
        "linear layers": str(record["linear_layers"]),
        **({"quantized": record["quantized"]} if record["quantized"] else {}),
        **({"Q/DQ in TensorRT": " ".join(record["fusing"])} if record["fusing"] else {}),
        **{f"metadata {name}": value for name, value in record["metadata"].items()},
        "digest": sha256_file(path),
    }
    tensors = [(side, *tensor) for side in ("inputs", "outputs") for tensor in record[side]]
    operators = sorted(record["operators"].items(), key=lambda item: (-item[1], item[0]))
    sections = (
        _table("Inputs and outputs", ("", "name", "type", "shape"), [tuple(map(str, row)) for row in tensors], limit),
        _table("Operators", ("operator", ">count"), [(name, str(count)) for name, count in operators], limit),
        _table("Types of constants", ("type", ">count"), [(n, str(c)) for n, c in record["types"].items()], limit),
    )
    return Inspection(kind="onnx", path=str(path), facts=facts, sections=sections, record=record)


def _read_onnx(path: str) -> dict[str, Any]:
    """Read an ONNX file in a child process, because it isn't trusted."""
    import math

    import onnx

    from vitedge.graph.preflight import type_name
    from vitedge.graph.quantized import quantized_form
    from vitedge.graph.surgery import get_metadata, inputs, linear_layers, load, tensors
    from vitedge.runtimes._nvidia.fusing import sentences

    model = load(path)
    constants = list(tensors(model))

    def described(value: onnx.ValueInfoProto) -> tuple[str, str, str]:
        tensor = value.type.tensor_type
        shape = [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim]
        return value.name, type_name(tensor.elem_type), f"[{', '.join(map(str, shape))}]"

    return {
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "ir_version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [described(value) for value in inputs(model)],
        "outputs": [described(value) for value in model.graph.output],
        "operators": dict(Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node)),
        "types": dict(Counter(type_name(constant.data_type) for constant in constants)),
        "parameters": sum(math.prod(constant.dims) for constant in constants),
        "linear_layers": len(linear_layers(model)),
        "quantized": str(quantized_form(model) or ""),
        "fusing": sentences(model),
        "metadata": get_metadata(model),
    }
