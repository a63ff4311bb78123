"""Turn any ONNX file into the canonical form, with parity checked after every step.

First the graph is made readable (:func:`prepare`): functions inlined, half precision widened, opset 20. Then our input
is put in front (:mod:`vitedge.graph.interface`). Then every rewrite is tried on a copy, and kept only if the logits
stay what they were. If the result is a plain ViT it is authored anew; otherwise it stays a graph of its own, its batch
is freed where that can be proven, and the operators that aren't canonical are named in the report. They still run.

Running graphs is the business of the caller, who passes ``check``: this module imports no runtime.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, inliner, version_converter

from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError
from vitedge.formats.architecture import ViTConfig
from vitedge.graph import affine, folding, image_input, rewrites, shaping, surgery
from vitedge.graph.author import IR_VERSION, OPSET, author_vit, contract_of
from vitedge.graph.interface import FIX
from vitedge.graph.lift import lift
from vitedge.graph.surgery import attribute

#: From a candidate with input ``image`` to the largest difference of its logits from the source's, over the largest
#: absolute logit; infinite if it doesn't run.
Check = Callable[[onnx.ModelProto], float]

TOLERANCE = 1e-4

_CANONICAL = re.compile(
    r"Cast|Transpose|Sub|Mul|Conv|MaxPool|Reshape|Pad|Add|LayerNormalization|MatMul|Split|Softmax|Gelu|Gather|Slice|"
    r"ReduceMean"
)


@dataclass
class Report:
    """The rewrites that were applied to a foreign graph, and those that weren't."""

    opset: int = OPSET  # of the source
    rewrites: dict[str, int] = field(default_factory=dict)  # kept: name -> places
    rejected: dict[str, float] = field(default_factory=dict)  # taken back: name -> deviation of the logits
    left_alone: dict[str, list[str]] = field(default_factory=dict)  # operators outside the canonical form -> nodes
    batch: int | None = None  # None: symbolic
    architecture: ViTConfig | None = None  # of a plain ViT, whose graph was authored again
    deviation: float = 0.0  # of the result

    def details(self) -> dict[str, Any]:
        """Return the report for ``model.json``."""
        details = {"source_opset": self.opset, "rewrites": self.rewrites, "authored": self.architecture is not None}
        details.update({"rejected_rewrites": self.rejected} if self.rejected else {})
        details.update({"operators_left_alone": self.left_alone} if self.left_alone else {})
        return {**details, **({"fixed_batch": self.batch} if self.batch is not None else {})}


def prepare(model: onnx.ModelProto, action: str) -> tuple[onnx.ModelProto, Report]:
    """Return the same function at opset 20 and IR 9 in float32: functions inlined, documentation and shapes dropped.

    Raises:
        ModelError: the graph is malformed, or uses operators that opset 20 doesn't have.
    """
    model, report = surgery.copy(model), Report()
    try:
        if model.functions:
            model = inliner.inline_local_functions(model)
        folding.sort(model)
        inputs = surgery.inputs(model)
        del model.graph.input[:], model.graph.value_info[:], model.metadata_props[:]
        model.graph.input.extend(inputs)
        _forget_documentation(model)
        if widened := folding.widen(model):
            report.rewrites["half precision widened"] = widened
        model.ir_version = max(model.ir_version, 8)  # initialisers needn't be inputs
        onnx.checker.check_model(model)
        report.opset = _opset(model)
        if report.opset < OPSET:
            model = version_converter.convert_version(model, OPSET)
        elif report.opset > OPSET:
            _to_lower_opset(model, report, action)
        model.ir_version = IR_VERSION
        del model.metadata_props[:], model.graph.value_info[:]  # the converter stores shapes
        model.producer_name, model.producer_version = "vitedge", ""
        onnx.checker.check_model(model)
    except ModelError:
        raise
    except Exception as error:  # onnx's checker, inliner and converter raise exceptions of their own
        raise ModelError(action, f"its graph can't be brought to opset {OPSET}: {_first_line(error)}", FIX) from error
    _unique_names(model)
    return model, report


def canonicalise(
    model: onnx.ModelProto, report: Report, preprocessing: Preprocessing, check: Check
) -> tuple[onnx.ModelProto, Report]:
    """Bring a graph with our interface to the canonical form, as far as its logits don't change.

    Args:
        model: from :func:`~vitedge.graph.interface.with_image_input`; unchanged.
        report: from :func:`prepare`; it is filled in and returned.
        preprocessing: the contract; mean and std are those of the nodes that import put in front.
        check: compares a candidate with the source. It is called once a step.
    """
    for name, rewrite in _SIMPLIFICATIONS:
        model = _attempt(model, name, rewrite, report, check)
    contract = contract_of(preprocessing)
    if image_input.JOINED in report.rewrites:
        contract = image_input.normalisation_inside(model)
    for config, arrays in lift(model, preprocessing.size):
        try:
            authored = author_vit(config, arrays, **contract)
        except ModelError:  # a normalisation or weights that no ViT has
            continue
        if check(authored) <= TOLERANCE:
            report.architecture = config
            model = authored
            break
    else:
        for name, rewrite in _FINISH:
            model = _attempt(model, name, rewrite, report, check)
        model = _named(model)
    report.batch, report.deviation = surgery.batch_size(model), check(model)
    report.left_alone = {}
    for node in model.graph.node:
        if not _CANONICAL.fullmatch(node.op_type) or node.domain not in ("", "ai.onnx"):
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            report.left_alone.setdefault(operator, []).append(node.name)
    onnx.checker.check_model(model)
    return model, report


def _attempt(
    model: onnx.ModelProto, name: str, rewrite: Callable[[onnx.ModelProto], int], report: Report, check: Check
) -> onnx.ModelProto:
    """Apply a rewrite until it finds nothing more, and keep the result if the logits don't change."""
    candidate, total = surgery.copy(model), 0
    try:
        for _ in range(256):
            count = rewrite(candidate)
            folding.prune(candidate)
            total += count
            if count == 0:
                break
    except (ArithmeticError, LookupError, ModelError, TypeError, ValueError):  # a malformed graph isn't repaired
        report.rejected[name] = float("inf")
        return model
    if total == 0:
        return model
    deviation = check(candidate)
    if deviation > TOLERANCE:
        report.rejected[name] = deviation
        return model
    report.rewrites[name] = total
    return candidate


def _free_batch(model: onnx.ModelProto) -> int:
    """Make a fixed batch of one symbolic; the check then proves that the graph works for other batches."""
    if surgery.batch_size(model) != 1:
        return 0
    inferred = surgery.shapes(model)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    index = folding.Index(model)
    for node in model.graph.node:
        shape = index.constant(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None or shape.size == 0 or (attribute(node, "allowzero", 0) and not shape.all()):
            continue
        result = inferred.get(node.output[0], (None,))
        target = shape.copy()
        if None not in result:  # pictures follow one another, even if the leading axis counts something else, too
            target = np.asarray([-1, *result[1:]], np.int64)
        elif -1 not in target:
            target[0] = -1
        elif target[0] == 1:
            target[0] = 0  # copied from the input
        node.input[1] = folding.set_constant(model, f"{node.output[0]}.shape", target)
        for attr in node.attribute:
            if attr.name == "allowzero":
                attr.i = 0
    return 1


_SIMPLIFICATIONS: tuple[tuple[str, Callable[[onnx.ModelProto], int]], ...] = (
    ("GELU of ONNX Runtime", rewrites.contributed_gelu),
    ("constants folded", folding.constants),
    ("shape arithmetic resolved", shaping.shape_arithmetic),
    ("constants of shapes folded", folding.constants),
    ("no-ops passed over", folding.identities),
    (image_input.JOINED, image_input.image_path),
    ("last axes counted from the end", shaping.last_axes),
    ("GELU", rewrites.gelu),
    ("LayerNorm", rewrites.layer_norm),
    ("Gemm to MatMul and Add", affine.gemm),
    ("BatchNorm folded", affine.batch_norm),
    ("reshapes joined", shaping.reshapes),
    ("channel factors folded", affine.channel_scale),
    ("tokens as Pad and Add", rewrites.tokens),
)
_FINISH: tuple[tuple[str, Callable[[onnx.ModelProto], int]], ...] = (
    ("attention scale", affine.attention_scale),
    ("normalisation folded", affine.normalisation),
    ("batch made symbolic", _free_batch),
)


def _opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return max(versions, default=0)


def _to_lower_opset(model: onnx.ModelProto, report: Report, action: str) -> None:
    """Relabel a newer graph as opset 20, in place, if opset 20 has every operator of it in the same form.

    From opset 21 on most revisions only admit more types. Whatever changed beyond that shows in the logits.
    """
    if decomposed := rewrites.attention_operator(model):
        report.rewrites["Attention operator decomposed"] = decomposed
    newer = []
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            attributes = onnx.defs.get_schema(node.op_type, OPSET, "").attributes
        except onnx.defs.SchemaError:
            newer.append(node.op_type)
            continue
        for attr in [attr for attr in node.attribute if attr.name not in attributes]:
            default = onnx.defs.get_schema(node.op_type, report.opset, "").attributes[attr.name].default_value
            if helper.get_attribute_value(attr) != helper.get_attribute_value(default):
                newer.append(f"{node.op_type} with {attr.name}")
            node.attribute.remove(attr)
    if newer:
        names = ", ".join(sorted(set(newer)))
        raise ModelError(action, f"opset {report.opset} operators that opset {OPSET} doesn't have: {names}", FIX)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET


def _forget_documentation(model: onnx.ModelProto) -> None:
    """Drop doc strings and metadata, in place; exporters write stack traces with local paths there."""
    model.doc_string = model.graph.doc_string = ""
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    del model.graph.metadata_props[:]


def _unique_names(model: onnx.ModelProto) -> None:
    """Give every node a unique name, in place."""
    used: set[str] = set()
    for position, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type.lower()}_{position}"
        while name in used:
            name = f"{name}_{position}"
        node.name = name
        used.add(name)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name layers after the parameters that they hold, where those have kept their names (``blocks.3.attn.qkv``)."""
    new = surgery.copy(model)
    used = {node.name for node in new.graph.node}
    norms = ((n, *n.input[1:3]) for n in new.graph.node if n.op_type == "LayerNormalization")
    layers = ((layer.node, layer.weight, layer.bias or "") for layer in surgery.linear_layers(new))
    bias_nodes = {layer.node.name: layer.bias_node for layer in surgery.linear_layers(new)}
    for node, *parameters in [*layers, *norms]:
        name = next(
            (p.rpartition(".")[0] for p in parameters if p.endswith((".weight", ".bias")) and p.count(".") > 0), ""
        )
        if not name or name == node.name or name in used:
            continue
        bias_node = bias_nodes.get(node.name)
        if bias_node is not None and f"{name}.bias" not in used:
            bias_node.name = f"{name}.bias"
            used.add(bias_node.name)
        node.name = name
        used.add(name)
    _unique_names(new)
    return new


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
