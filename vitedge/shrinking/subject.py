"""The whole model of a shrinking, with what every step of it needs; pictures are looked at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitedge.core.progress import Progress, silent
from vitedge.errors import ModelError
from vitedge.exporting.candidates import ExportInputs, load_golden, with_hold_out
from vitedge.exporting.hold_out import HoldOut, float_logits
from vitedge.exporting.runnable import Runnable
from vitedge.formats.fidelity import Fidelity
from vitedge.quantization.calibrate import read_pictures
from vitedge.runtimes import interpreter
from vitedge.shrinking.choose import Option, schedules_of
from vitedge.shrinking.components import Component, components, truncate
from vitedge.shrinking.costs import costs
from vitedge.shrinking.plan import ShrinkPlan
from vitedge.shrinking.shrink import Shrunk, shrink
from vitedge.shrinking.table import work

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Subject:
    """The whole model, its plan and hold-out pictures, and what can become narrower."""

    plan: ShrinkPlan
    inputs: ExportInputs  # its graph and hold-out pictures
    components: Sequence[Component]
    errors: Mapping[str, Mapping[int, float]]  # by component and width: squared error of the logits
    frames: NDArray[np.uint8] = field(repr=False)  # the pictures to shrink by, [n, h, w, 3]
    progress: Progress = field(default=silent, repr=False)

    @property
    def hold_out(self) -> HoldOut:
        """Hold-out pictures with the whole model's logits."""
        assert self.inputs.hold_out is not None
        return self.inputs.hold_out

    def schedules(self, table: Mapping[str, Mapping[int, float]]) -> list[list[list[Option]]]:
        """What may be chosen, by what a table says that each width saves."""
        return schedules_of(self.components, table, self.errors, self.left)

    def left(self, name: str, width: int) -> dict[str, float]:
        """The fraction of its multiply-accumulates that each place has left where tokens are merged."""
        before, after = (work(graph) for graph in (self.inputs.graph, truncate(self.inputs.graph, {name: width})))
        return {place: after[place] / count for place, count in before.items() if place in after}

    def shrunk(self, widths: Mapping[str, int]) -> Shrunk:
        """The model at these widths, compensated."""
        return shrink(self.inputs.graph, widths, self.frames, progress=self.progress)

    def loss(self, graph: onnx.ModelProto) -> Fidelity:
        """A float graph against the whole one, on the hold-out pictures."""
        executed_by = interpreter.require(self.plan.action)
        return self.hold_out.evaluate(Runnable(lambda frames: float_logits(graph, frames, silent), executed_by, None))


def subject(plan: ShrinkPlan, progress: Progress) -> Subject:
    """Look at the pictures, and at what can be removed.

    Raises:
        ModelError: nothing in the model can become narrower.
        ImageError, InvalidResultError, UsageError: as :func:`vitedge.quantization.calibrate.read_pictures` and
            :func:`vitedge.exporting.candidates.with_hold_out`.
    """
    deployed, inputs = plan.deployed, load_golden(plan.deployed)
    found = components(inputs.graph)
    if not found:
        reason = "no linear layers or convolutions stand in a pair or an attention that could become narrower"
        raise ModelError(plan.action, reason, "quantize it as it is: vitedge export")
    assert deployed.images is not None and deployed.recipe is not None
    _, frames, calibration = read_pictures(
        deployed.model, deployed.images, deployed.recipe.observe, action=plan.action, progress=progress
    )
    inputs = with_hold_out(changed(inputs, calibration=calibration), progress)
    return Subject(plan, inputs, found, costs(inputs.graph, frames, progress=progress), frames, progress)
