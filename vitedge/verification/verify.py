"""Check that an artifact on this machine is what was exported, one check for each question; nothing is repaired."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitedge import runtimes
from vitedge.core.versions import older
from vitedge.data.images import open_picture
from vitedge.errors import ImageError
from vitedge.formats.artifact import GOLDEN_INPUTS, Artifact
from vitedge.formats.model_folder import contract_metadata
from vitedge.formats.result import NOT_EXECUTED, Check
from vitedge.runtimes import here
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.executed import UNKNOWN, executed_fractions, unmet_layers
from vitedge.runtimes.session import Session, open_session
from vitedge.verification.golden import golden_check


def verify(artifact: Artifact, options: OpenOptions | None = None) -> list[Check]:
    """Check an artifact, in its runtime where this machine is of the kind that it's for.

    Opening it has checked every digest already. On another kind of machine (another processor, no NVIDIA GPU) the
    checks that need the runtime are left undecided, for the device.

    Args:
        artifact: opened.
        options: how its session is opened.

    Raises:
        NotInstalledError: its runtime isn't installed on a machine where it could run.
        ArtifactError, ResourceError: the runtime can't load it.
    """
    manifest = artifact.manifest
    checks = [
        Check(name="digests", ok=True, detail=f"{len(manifest.files)} files are what was written"),
        check_preprocessing(artifact),
    ]
    runtime = manifest.target.runtime
    why_not_here = here.why_not_here(manifest.target)
    if why_not_here:
        todo = f"{why_not_here}; run on the device: vitedge verify {artifact.path.name}"
        checks += [check_contract(artifact, _copies(artifact)), Check(name=NOT_EXECUTED, ok=None, detail=todo)]
        return checks
    runtimes.require(runtime, f"verify the artifact {artifact.path}")
    checks += [check_versions(artifact, str(runtimes.installed(runtime))), check_contract(artifact, _copies(artifact))]
    with open_session(artifact, options) as session:
        checks += [check_options(session), golden_check(session), check_executed(session)]
    return checks


def check_preprocessing(artifact: Artifact) -> Check:
    """Check that preprocessing the golden pictures here gives the recorded inputs, bit by bit."""
    inputs, differing = artifact.array(GOLDEN_INPUTS), []
    pictures = artifact.manifest.golden.pictures
    for name, expected in zip(pictures, inputs, strict=False):
        try:
            frame = artifact.manifest.preprocessing.apply(open_picture((artifact.path / name).read_bytes(), name))
        except (ImageError, OSError) as error:
            differing.append(f"{name}: {error}")
            continue
        if frame.shape != expected.shape:
            differing.append(f"{name} is {list(frame.shape)} instead of {list(expected.shape)}")
        elif not np.array_equal(frame, expected):
            differing.append(f"{name} by up to {np.abs(frame.astype(int) - expected).max()}")
    if len(inputs) != len(pictures):
        differing.append(f"{len(pictures)} pictures, {len(inputs)} recorded inputs")
    detail = f"differs: {'; '.join(differing)}" if differing else f"{len(pictures)} golden pictures, bit by bit"
    return Check(name="preprocessing", ok=not differing, detail=detail)


def check_versions(artifact: Artifact, running: str) -> Check:
    """Check that the runtime here isn't older than the target's oldest."""
    target, built_with = artifact.manifest.target, artifact.manifest.built_with
    built = ", ".join(f"{name} {version}" for name, version in sorted(built_with.items()))
    detail = f"{target.runtime} {running} here, {target.runtime_min} or newer is needed; built with {built}"
    if newer := runtimes.untested(target.runtime, running):
        detail += f". {newer}"
    return Check(name="versions", ok=not older(running, target.runtime_min), detail=detail)


def check_contract(artifact: Artifact, copies: Mapping[str, str] | None) -> Check:
    """Check that the preprocessing and the classes inside the graph file are the manifest's, where it carries them."""
    name = "contract in the graph file"
    if copies is None:
        return Check(name=name, ok=None, detail="there is none, or nothing here can read it")
    expected = contract_metadata(artifact.manifest.preprocessing, artifact.manifest.classes)
    wrong = [key for key, value in expected.items() if copies.get(key) != value]
    detail = f"not the manifest's: {', '.join(wrong)}" if wrong else "equals the manifest's"
    return Check(name=name, ok=not wrong, detail=detail)


def _copies(artifact: Artifact) -> Mapping[str, str] | None:
    copies: Mapping[str, str] | None = runtimes.part(artifact.manifest.target.runtime, "session").read_contract(
        artifact
    )
    return copies


def check_options(session: Session) -> Check:
    """Check that every option of the manifest is read back from the runtime as it was set."""
    planned = session.artifact.manifest.runtime_options
    wrong = [
        f"{key} is {session.info[key]} instead of {value}"
        for key, value in planned.items()
        if key in session.info and str(session.info[key]).lower() != str(value).lower()
    ]
    unreadable = [key for key in planned if key not in session.info]
    detail = "; ".join(wrong) or f"{len(planned) - len(unreadable)} read back as they were set"
    if unreadable:
        detail += f"; the runtime doesn't report {', '.join(unreadable)}"
    return Check(name="options", ok=not wrong if wrong or not unreadable else None, detail=detail)


def check_executed(session: Session) -> Check:
    """Check that every planned layer runs in the planned type, counted in the executed graph."""
    layers, executed = session.artifact.manifest.layers, session.executed()
    fractions = executed_fractions(layers, executed)
    if fractions is None:
        return Check(name="executed precision", ok=None, detail="the artifact plans no layers")
    unmet = unmet_layers(layers, executed)
    detail = ", ".join(f"{fraction:.1%} {name}" for name, fraction in fractions.items())
    if unmet:
        detail += f"; {len(unmet)} layers not as planned: {', '.join(unmet[:4])}"
        reason, hint = runtimes.fuses_otherwise(session.artifact.manifest.target.runtime)
        detail += f". {reason}; {hint}" if reason else ""
    ok = None if not unmet and set(fractions) == {UNKNOWN} else not unmet
    return Check(name="executed precision", ok=ok, detail=f"of the multiply-accumulates: {detail}")
