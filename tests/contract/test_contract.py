"""Every runtime, every kernel variant: what a session owes its caller. The checks themselves are in ``portable.py``."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from msgspec.structs import replace

from tests.contract import artifacts, portable
from vitedge.formats.artifact import GOLDEN_REFERENCE, Artifact
from vitedge.runtimes.session import Session


@pytest.mark.parametrize("check", portable.CHECKS, ids=[check.__name__ for check in portable.CHECKS])
def test_contract(check: portable.Check, artifact: Artifact, session: Session) -> None:
    check(artifact, session)


def test_float32_equals_the_published_forward_pass(artifact: Artifact, session: Session) -> None:
    if artifact.manifest.precision != "fp32" or artifact.manifest.target.runtime == "null":
        pytest.skip("not a float32 network")
    frames = portable.frames_of(session, 2 * session.batch, seed=3)
    found = np.stack(list(session.map_batches(frames)))
    assert portable.relative(found, artifacts.reference(frames)) <= 1e-5


def test_the_checks_can_fail(artifact: Artifact, session: Session) -> None:
    """Held against another artifact's golden logits and plan, a session is found out."""
    if artifact.manifest.target.runtime == "null":
        pytest.skip("the null runtime computes nothing")

    class Other(Artifact):
        def array(self, name: str) -> np.ndarray:
            found = super().array(name)
            return -found if name == GOLDEN_REFERENCE else found

    layers = tuple(replace(layer, precision="fp8") for layer in artifact.manifest.layers)
    other = Other(artifact.path, replace(artifact.manifest, layers=layers, runtime_options={"no such": 1}))
    impostor = Session(other, session._backend)  # type: ignore[arg-type]
    for check in (portable.logits, portable.info, portable.executed):
        with pytest.raises(AssertionError):
            check(other, impostor)


def test_the_script_reports_and_counts(artifact: Artifact) -> None:
    """The same checks as a program, in a process of its own; nothing goes to stdout but its lines."""
    if artifact.manifest.variant not in ("float", "null") or artifact.manifest.batch > 1:
        pytest.skip("once a runtime is enough")
    command = [sys.executable, portable.__file__, "--reopen", "2", str(artifact.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines[-1] == f"{len(portable.CHECKS)} checks, 0 failed" and len(lines) == len(portable.CHECKS) + 1
