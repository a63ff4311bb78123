"""The model to shrink, and the data that every step needs; each picture is decoded once for an input size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitedge.core.progress import Progress, named, silent
from vitedge.data.images import ImageSet
from vitedge.errors import ModelError
from vitedge.exporting.candidates import ExportInputs, load_golden, with_hold_out
from vitedge.exporting.hold_out import HoldOut, float_logits
from vitedge.exporting.runnable import Runnable
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.model_folder import Model
from vitedge.quantization.calibrate import read_pictures
from vitedge.runtimes import interpreter
from vitedge.shrinking.choose import Option, schedules_of
from vitedge.shrinking.components import Component, components, truncate
from vitedge.shrinking.costs import costs
from vitedge.shrinking.embedding import Directions, embedding_of
from vitedge.shrinking.plan import ShrinkPlan
from vitedge.shrinking.shrink import Shrunk, directions_of, shrink
from vitedge.shrinking.table import work

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Subject:
    """A model at one input size with its plan and pictures."""

    plan: ShrinkPlan
    inputs: ExportInputs  # its graph, and hold-out pictures with the logits of the whole model at its own size
    numbers: Sequence[int]  # of the pictures to shrink by, in their set
    frames: NDArray[np.uint8] = field(repr=False)  # these pictures, [n, h, w, 3]
    progress: Progress = field(default=silent, repr=False)

    @cached_property
    def components(self) -> Sequence[Component]:
        """The components that can become narrower."""
        return components(self.inputs.graph)

    @cached_property
    def errors(self) -> Mapping[str, Mapping[int, float]]:
        """The squared error of the logits, by component and width."""
        return costs(self.inputs.graph, self.frames, directions=self._directions, progress=self.progress)

    @cached_property
    def _directions(self) -> Directions | None:
        """The directions of the embedding by all pictures, which every attempt uses; None: it can't become narrower."""
        found = embedding_of(self.inputs.graph)
        return None if found is None else directions_of(self.inputs.graph, found, self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return self.plan.deployed.model.record.preprocessing.size

    @property
    def hold_out(self) -> HoldOut:
        """Hold-out pictures with the whole model's logits."""
        assert self.inputs.hold_out is not None
        return self.inputs.hold_out

    def schedules(self, table: Mapping[str, Mapping[int, float]]) -> list[list[list[Option]]]:
        """Return the options to choose from, given a table of what each width saves."""
        return schedules_of(self.components, table, self.errors, self.left)

    def left(self, name: str, width: int) -> dict[str, float]:
        """Return the fraction of its work that each place has left by fewer tokens, or a narrower embedding."""
        after = work(truncate(self.inputs.graph, {name: width}))
        return {place: after[place] / count for place, count in self._work.items() if place in after}

    @cached_property
    def _work(self) -> Mapping[str, int]:
        """Multiply-accumulates by place."""
        return work(self.inputs.graph)

    def shrunk(
        self, widths: Mapping[str, int], frames: NDArray[np.uint8], progress: Progress, *, adjust: bool = False
    ) -> Shrunk:
        """Shrink the model to these widths, with compensation by some of the pictures, or all."""
        graph, directions = self.inputs.graph, self._directions
        return shrink(graph, widths, frames, adjust=adjust, directions=directions, progress=progress)

    def loss(self, graph: onnx.ModelProto) -> Fidelity:
        """Compare a float graph of this size with the whole model, on the hold-out pictures."""
        executed_by = interpreter.require(self.plan.action)
        return self.hold_out.evaluate(Runnable(lambda frames: float_logits(graph, frames, silent), executed_by, None))

    def of(self, model: Model) -> Subject:
        """Take another model on the same pictures: this one at another size, or one with the same classes.

        What it loses is still measured against this one.
        """
        plan = changed(self.plan, deployed=changed(self.plan.deployed, model=model))
        images, apply = plan.deployed.images, model.record.preprocessing.apply
        assert images is not None
        frames = np.stack([apply(images.read(number)) for number in self.numbers])
        held_out = plan.deployed.held_out or images
        hold_out = changed(self.hold_out, frames=_frames(held_out, self.hold_out.names, model))
        inputs = changed(load_golden(plan.deployed), calibration=self.inputs.calibration, hold_out=hold_out)
        progress = named(self.progress, "×".join(map(str, model.record.preprocessing.size)))
        return Subject(plan, inputs, self.numbers, frames, progress)


def subject(plan: ShrinkPlan, progress: Progress) -> Subject:
    """Read the pictures, and find the components that can become narrower.

    Raises:
        ModelError: nothing in the model can become narrower.
        ImageError, InvalidResultError, UsageError: as :func:`vitedge.quantization.calibrate.read_pictures` and
            :func:`vitedge.exporting.candidates.with_hold_out`.
    """
    deployed, inputs = plan.deployed, load_golden(plan.deployed)
    if not components(inputs.graph):
        reason = "the model has no MLP, attention or pair of convolutions that could become narrower"
        raise ModelError(plan.action, reason, "quantize it as it is: vitedge export")
    assert deployed.images is not None and deployed.recipe is not None
    numbers, frames, calibration = read_pictures(
        deployed.model, deployed.images, deployed.recipe.observe, action=plan.action, progress=progress
    )
    inputs = with_hold_out(changed(inputs, calibration=calibration), progress)
    return Subject(plan, inputs, numbers, frames, progress)


def _frames(images: ImageSet, names: Sequence[str], model: Model) -> NDArray[np.uint8]:
    """Read the pictures of these names as a model takes them, uint8 [n, h, w, 3]."""
    numbers = {record.name: number for number, record in enumerate(images.records)}
    return np.stack([model.record.preprocessing.apply(images.read(numbers[name])) for name in names])
