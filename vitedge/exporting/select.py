"""Select the candidates that may be published: evaluate them, with groups back in float where the budget needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from vitedge.core.progress import Progress
from vitedge.errors import ArtifactError, InvalidResultError, VitedgeError
from vitedge.exporting.candidates import Evaluated, ExportInputs, evaluate_candidate
from vitedge.exporting.groups import Group, fewest_reverted, layers_except
from vitedge.exporting.plan import AUTO, Plan
from vitedge.exporting.sensitivity import scan_groups
from vitedge.exporting.steps import with_steps
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.target import QUANTIZED, Candidate
from vitedge.runtimes.base import BUDGET, NO_GAIN, PRICE


def evaluate_candidates(inputs: ExportInputs, progress: Progress) -> tuple[list[Evaluated], dict[Candidate, str]]:
    """Evaluate the plan's candidates: up to the first acceptable one, or all where they're measured or included.

    A candidate that its runtime can't open or doesn't run as planned is left out where another may take its place.
    Where the target's preference is wanted, that fails the export.

    Returns:
        Those that were evaluated, and why others failed.

    Raises:
        InvalidResultError: none stays within the budget, or no group gains time of the only candidate, a mixed one.
        ArtifactError, InvalidResultError: a failure that isn't left out, or the first of nothing but failures.
    """
    plan, evaluated, failures = inputs.plan, list[Evaluated](), dict[Candidate, VitedgeError]()
    tried: list[Evaluated] = []
    all_wanted = plan.autotune or plan.with_candidates
    for candidate in plan.candidates:
        try:
            result = _evaluate_within_budget(inputs, candidate, tried, progress)
        except (InvalidResultError, ArtifactError) as error:
            if not all_wanted and plan.precision != AUTO:
                raise
            failures[candidate] = error
            continue
        if result is not None:
            evaluated.append(result)
            if result.acceptable and not all_wanted:
                break
    if not any(result.acceptable for result in evaluated):
        raise _none_acceptable(plan, evaluated, failures)
    return evaluated, {candidate: error.reason for candidate, error in failures.items()}


def _evaluate_within_budget(
    inputs: ExportInputs, candidate: Candidate, tried: list[Evaluated], progress: Progress
) -> Evaluated | None:
    """Evaluate a candidate, with groups back in float where the budget needs it.

    None for a mixture of no group, and for a quantized graph that was tried before: so is a variant with convolutions
    where a model has none. ``tried`` grows by the candidate, before and after groups go back.
    """
    mixed = candidate.precision == "mixed"
    evaluated = _mix(inputs, candidate, progress) if mixed else evaluate_candidate(inputs, candidate, progress)
    if evaluated is None or (candidate.precision in QUANTIZED and any(map(evaluated.same_graph, tried))):
        return None
    tried.append(evaluated)
    if candidate.precision not in QUANTIZED or evaluated.lowered.interpretable is None:
        return evaluated  # float, or quantized by another tool: taken as it is, or not at all
    if not evaluated.acceptable:
        evaluated = _revert_to_budget(inputs, evaluated, progress) or evaluated
        tried.append(evaluated)
    return with_steps(inputs, evaluated, progress) if inputs.plan.explain else evaluated


def _mix(inputs: ExportInputs, candidate: Candidate, progress: Progress) -> Evaluated | None:
    """Quantize only groups whose gain is worth their divergence; None where no group's is."""
    fully = evaluate_candidate(inputs, candidate, progress)
    groups = fully.quantized_groups
    scan = scan_groups(inputs, fully, groups, progress)
    unprofitable = scan.unprofitable(groups)
    if len(unprofitable) == len(groups):
        return None
    mixture = fully
    if unprofitable:
        mixture = evaluate_candidate(inputs, candidate, progress, layers_except(groups, unprofitable))
    reasons = {
        layer: NO_GAIN if scan.gain[group.name] <= 0 else PRICE for group in unprofitable for layer in group.layers
    }
    return _with_reasons(mixture, reasons).with_sensitivity(scan.divergence)


def _revert_to_budget(inputs: ExportInputs, evaluated: Evaluated, progress: Progress) -> Evaluated | None:
    """Revert as few groups to float as the budget allows; None where the budget can't hold."""
    groups = evaluated.quantized_groups
    scan = scan_groups(inputs, evaluated, groups, progress)
    attempts: dict[frozenset[str], Evaluated] = {}

    def evaluate(reverted: Sequence[Group]) -> Fidelity:
        quantized = layers_except(groups, reverted)
        attempts[quantized] = evaluate_candidate(inputs, evaluated.candidate, progress, quantized)
        fidelity = attempts[quantized].manifest.fidelity
        assert fidelity is not None
        return fidelity

    reverted = fewest_reverted(scan.worst_first(groups), evaluate, inputs.plan.budget)
    if reverted is None:
        return None
    # lowering gives BUDGET as the reason of every layer that it may not quantize, of those that a mixture left, too
    earlier = {layer.name: layer.reason for layer in evaluated.manifest.layers if layer.reason}
    within = attempts[layers_except(groups, reverted)]
    reasons = {
        layer.name: earlier[layer.name]
        for layer in within.manifest.layers
        if layer.reason == BUDGET and layer.name in earlier
    }
    return _with_reasons(within, reasons).with_sensitivity(scan.divergence)


def _with_reasons(evaluated: Evaluated, reasons: Mapping[str, str]) -> Evaluated:
    """Return the candidate with other reasons for some layers' precisions in its manifest."""
    layers = (replace(layer, reason=reasons.get(layer.name, layer.reason)) for layer in evaluated.manifest.layers)
    return evaluated.with_layers(tuple(layers))


def _none_acceptable(
    plan: Plan, evaluated: Sequence[Evaluated], failures: Mapping[Candidate, VitedgeError]
) -> VitedgeError:
    """Return the error of an export without an acceptable candidate."""
    if not evaluated and failures:
        return next(iter(failures.values()))
    if not evaluated:
        return InvalidResultError(
            plan.action,
            "no group of layers gains time by being quantized here",
            "nothing was published; use the target's float precision",
        )
    results = [_fidelity_text(each) for each in evaluated]
    results += [f"{candidate.variant} failed: {error.reason}" for candidate, error in failures.items()]
    return InvalidResultError(
        plan.action,
        f"no candidate stays within the budget, {plan.budget}: {'; '.join(results)}",
        "nothing was published; allow more, hold out more pictures (a narrower interval), or use another --precision",
    )


def _fidelity_text(evaluated: Evaluated) -> str:
    """Describe a candidate's loss against the float graph, for an error text."""
    fidelity = evaluated.manifest.fidelity
    assert fidelity is not None
    text = f"{evaluated.candidate.variant} has a top-1 agreement of {100 * fidelity.agreement:.2f} %"
    if fidelity.top1_drop is None:
        return text
    return f"{text} and a top-1 drop of {fidelity.top1_drop.pp:.2f} pp (up to {fidelity.top1_drop.high:.2f})"
