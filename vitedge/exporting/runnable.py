"""Run a lowered graph before it's written: in its runtime where that is installed, else interpreted."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitedge import runtimes
from vitedge.formats.artifact import Artifact, Manifest
from vitedge.runtimes.base import Lowered, OpenOptions
from vitedge.runtimes.here import runs_here
from vitedge.runtimes.session import Session

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Runnable:
    """A lowered graph that runs before it's written."""

    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # uint8 [n, h, w, 3] -> float32 [n, classes], any n
    executed_by: str
    session: Session | None  # None: its arithmetic is interpreted, because the target isn't here


@contextlib.contextmanager
def opened(manifest: Manifest, lowered: Lowered, action: str, *, threads: int | None = 1) -> Iterator[Runnable]:
    """Open a lowered graph in its runtime where that runs here, else interpret its arithmetic.

    Args:
        manifest: as it will be written, or nearly.
        lowered: the graph.
        action: for error texts.
        threads: of a session; None: the target's.

    Raises:
        NotInstalledError: neither the runtime nor the interpreter is here.
        ArtifactError: the runtime can't open it.
    """
    target = manifest.target
    if not runs_here(target) and lowered.interpretable is not None:
        from vitedge.runtimes import interpreter

        yield interpreted(lowered.interpretable, f"interpreted by {interpreter.require(action)}")
        return
    version = runtimes.require(target.runtime, action)
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        for name, data in lowered.files.items():
            (Path(folder) / name).write_bytes(data)
        artifact = Artifact(Path(folder), manifest)
        backend = runtimes.part(target.runtime, "session").open_backend(artifact, OpenOptions(threads=threads))
        with Session(artifact, backend) as session:

            def run(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
                return np.stack(list(session.map_batches(frames)))

            yield Runnable(run, f"{target.runtime} {version}", session)


def interpreted(graph: onnx.ModelProto, executed_by: str = "") -> Runnable:
    """Interpret the arithmetic of a graph of standard operators."""
    from vitedge.runtimes.interpreter import run_graph

    return Runnable(lambda frames: run_graph(graph, frames), executed_by, None)
