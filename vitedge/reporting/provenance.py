"""Describe how a model was shrunk."""

from __future__ import annotations

from vitedge.formats.fidelity import Fidelity
from vitedge.shrinking.shrinkage import Shrinkage


def facts(done: Shrinkage) -> dict[str, str]:
    """Describe from which model it was shrunk, to what budget, and with what loss."""
    tuned = f", then fine-tuned for {done.finetuned_epochs} passes" if done.finetuned_epochs else ""
    return {
        "shrunk from": f"{done.model} ({done.model_digest[:12]})",
        "shrunk to": done.budget,
        **({"shrunk input": sizes(done)} if done.resolutions else {}),
        "widths chosen by": done.chosen_by,
        "shrunk model takes": costs(done),
        "of its work": f"{done.macs_after / done.macs_before:.0%} of {done.macs_before:,} multiply-accumulates",
        "lost by shrinking": loss(done.loss),
        "shrunk by": f"{done.pictures} pictures{tuned}",
    }


def sizes(done: Shrinkage) -> str:
    """Describe the chosen input size, and the sizes that were tried."""
    tried = " and ".join("×".join(map(str, each.size)) for each in done.resolutions)
    return f"{'×'.join(map(str, done.size or ()))} pixels, chosen from {tried}"


def costs(done: Shrinkage) -> str:
    """Describe the shrunk model's cost beside the whole model's."""
    if done.unit != "ns":
        return f"{done.cost / done.full:.1%} of the multiply-accumulates; nothing was measured"
    how = "" if done.verified else " (added up from the table; not measured as a whole)"
    return f"{done.cost / 1e6:.3g} ms instead of {done.full / 1e6:.3g} ms, {done.speedup:.2f} times as fast{how}"


def loss(fidelity: Fidelity | None) -> str:
    """Describe a loss against the whole model in one line."""
    if fidelity is None:
        return "not measured"
    top1 = "" if fidelity.top1_drop is None else f"top-1 drop {fidelity.top1_drop}, "
    return (
        f"{top1}{1 - fidelity.agreement:.1%} of {fidelity.pictures} pictures change their label, mean KL "
        f"{fidelity.divergence:.2g}"
    )
