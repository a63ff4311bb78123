"""The two small contracts between vitedge and a runtime: something that lowers, something that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vitedge.data.preprocessing import Preprocessing
from vitedge.formats.artifact import LayerPlan
from vitedge.formats.model_folder import ClassLabel, contract_metadata
from vitedge.formats.recipe import Recipe
from vitedge.formats.target import Candidate, Option, Target
from vitedge.runtimes.options import OpenOptions as OpenOptions

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from vitedge.quantization.statistics import Statistics

#: The reason for a layer in float that could be quantized.
BUDGET = "the accuracy budget needs it in float"
NO_GAIN = "quantizing it saves no time here"
PRICE = "it would cost more accuracy for the time it saves than the layers do on average"


@dataclass(frozen=True)
class Request:
    """The input of a lowering: the canonical float graph, and the candidate to write."""

    graph: onnx.ModelProto  # canonical, float32, symbolic batch
    target: Target
    candidate: Candidate
    batch: int
    preprocessing: Preprocessing
    classes: tuple[ClassLabel, ...]
    recipe: Recipe | None = None  # of a quantized candidate
    statistics: Statistics | None = None
    quantized: frozenset[str] | None = None  # layers that may be quantized; None: all that the variant quantizes
    #: The calibration pictures as the model takes them, uint8 [h, w, 3], read again at each call; for tools that
    #: calibrate by themselves.
    pictures: Callable[[], Iterator[NDArray[np.uint8]]] | None = None

    def left_in_float(self, layers: Iterable[str]) -> dict[str, str]:
        """Return those of ``layers`` that may not be quantized, with the reason."""
        if self.quantized is None:
            return {}
        return {name: BUDGET for name in layers if name not in self.quantized}

    @property
    def metadata(self) -> dict[str, str]:
        """The contract's copy for the graph file: see :func:`vitedge.formats.model_folder.contract_metadata`."""
        return contract_metadata(self.preprocessing, self.classes)


@dataclass(frozen=True)
class Lowered:
    """The result of a lowering: files, and the precision that each layer is planned to run in."""

    graph: str  # name of the file that the runtime opens
    files: Mapping[str, bytes]  # the graph and what it refers to
    layers: tuple[LayerPlan, ...]
    runtime_options: Mapping[str, Option]  # set explicitly when opened, and read back
    built_with: Mapping[str, str]  # versions of what wrote the files
    interpretable: onnx.ModelProto | None = (
        None  # the same arithmetic in standard operators, where the runtime isn't here
    )


class Stages(NamedTuple):
    """Nanoseconds of one inference; None where the runtime can't separate the stage."""

    transfer_in: int | None
    compute: int | None
    transfer_out: int | None


class Executed(NamedTuple):
    """One node as the runtime really executes it."""

    name: str  # as near to the canonical node name as the runtime tells
    operator: str  # the runtime's own word
    type: str  # "fp32", "bf16", "fp16", "int8", "fp8", or "" where the runtime doesn't tell


class LayerTime(NamedTuple):
    """Time of one executed node in one profiled inference."""

    name: str
    operator: str
    type: str
    ns: int


class Backend(Protocol):
    """The object that ``open_backend`` returns. Its inputs are checked; calls come one at a time, except ``wait``."""

    batch: int
    slots: int  # submitted inferences that can be in flight at once
    info: Mapping[str, Option]  # runtime, version, device, threads, effective options as read back

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Stages]:
        """Run uint8 [batch, h, w, 3] and return float32 [batch, classes]; the next call may reuse the array."""
        ...

    def submit(self, images: NDArray[np.uint8]) -> int:
        """Start an asynchronous inference and return its ticket; blocks while all slots are busy."""
        ...

    def wait(self, ticket: int) -> None:
        """Wait until a submitted inference is over; return at once where there is no such ticket.

        Several threads may wait while another one calls anything else but ``close``.
        """
        ...

    def collect(self, ticket: int) -> NDArray[np.float32]:
        """Return the logits of a submitted inference, owned by the caller; wait where it isn't over yet.

        Raises:
            KeyError: no such ticket is outstanding.
        """
        ...

    def executed(self) -> list[Executed]:
        """Return the graph as it runs, read from the runtime."""
        ...

    def profile(self, images: NDArray[np.uint8], repeats: int) -> list[list[LayerTime]]:
        """Return per-node times of ``repeats`` inferences; profiling may run in a session of its own."""
        ...

    def close(self) -> None:
        """Release everything; calling it twice is harmless."""
        ...
