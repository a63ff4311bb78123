"""Import a user's own torch module: torch exports it, and the file is imported as any ONNX file.

Two child processes: the user's code and torch run in the first, ONNX's parsers and ONNX Runtime in the second.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitedge.core.files import sha256_file
from vitedge.core.isolation import ChildError, run_isolated
from vitedge.data.images import ImageSet
from vitedge.errors import ModelError, UsageError
from vitedge.graph.checkpoint import taken_defaults
from vitedge.graph.state_dicts import Choice
from vitedge.importing.contract import contract_of
from vitedge.importing.onnx_file import import_onnx, require_preprocessing, source_input
from vitedge.importing.proof import Imported, Logits, frames_of
from vitedge.training.factory import Factory

TIMEOUT_S = 3600.0


def chosen_source(source: str | None, factory: str | None, weights: Path | None) -> str | Factory:
    """Return the source that a command line names, or a factory with its weights.

    Raises:
        UsageError: neither or both, or weights without a factory.
    """
    if factory is None and source is not None and weights is None:
        return source
    action = f"import {factory or source or 'a model'}"
    if factory is None and source is not None:
        hint = f"name the factory; or import the weights alone: vitedge import {weights} --arch NAME"
        raise UsageError(action, "--weights belong to --factory", hint)
    if factory is None:
        raise UsageError(action, "there is neither a source nor a factory", "run: vitedge import --help")
    if source is not None:
        raise UsageError(action, f"a source was given too: {source}", "give one of them")
    return Factory(factory, weights)


def import_factory(
    factory: Factory, options: dict[str, Any], images: str | Path | ImageSet | None, action: str, choice: Choice
) -> Imported:
    """Export a factory's module, bring it to the canonical form, and compare it with the module itself, in torch."""
    factory.check(action)
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        path = Path(folder) / "module.onnx"
        try:
            contract, logits, details = run_isolated(
                _export, factory, options, images, path, action, choice, timeout_s=TIMEOUT_S
            )
        except ChildError as error:
            hint = "try the function in Python: build the module, call it, torch.onnx.export it"
            raise ModelError(action, f"the module could not be built or exported: {error}", hint) from error
        reference = f"the module in torch {details['torch']}", logits
        imported = import_onnx(path, contract, images, action, reference=reference)
    if factory.weights is not None:
        details["weights_sha256"] = sha256_file(factory.weights)
    del imported.details["onnx_sha256"]  # the digest of a temporary file
    return replace(
        imported,
        kind="factory",
        name=factory.name.rpartition(":")[2].rpartition(".")[2],
        details={"factory": factory.name, **details, **imported.details},
    )


def _export(
    factory: Factory,
    options: dict[str, Any],
    images: str | Path | ImageSet | None,
    path: Path,
    action: str,
    choice: Choice,
) -> tuple[dict[str, Any], Logits, dict[str, Any]]:
    """Write the module to ``path``; return the contract's fields, its logits, and details. Runs in a child process."""
    from vitedge.graph.task import require_one_class
    from vitedge.training import factory as torch_modules

    module, loaded = torch_modules.build(factory, action, choice)
    problem = getattr(getattr(module, "config", None), "problem_type", None)  # of transformers' models
    require_one_class({"problem_type": problem}, "the module's config", options.get("activation"), action)
    declared, defaults = torch_modules.declared_preprocessing(module, options, action)
    fields = {**declared, **options}
    require_preprocessing(fields, "a torch module", action)
    contract = contract_of(fields, action)
    pixels = source_input(frames_of(images, contract, action), contract, "nchw", "float32")
    logits = torch_modules.logits(module, pixels, action)
    details = torch_modules.export(module, contract, path, action)
    return fields, logits, {**details, **loaded, **taken_defaults(defaults, options)}
