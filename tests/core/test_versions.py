"""The tested versions: constraints.txt is whole, and a runtime that is newer than any of them is said to be."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import vitedge
from tests.conftest import ROOT
from vitedge import doctor, runtimes
from vitedge.core.versions import as_of, newer_than_tested, newest_tested, older, release
from vitedge.errors import InvalidResultError
from vitedge.installation import pip
from vitedge.reporting import terminal
from vitedge.runtimes.base import Executed, OpenOptions
from vitedge.runtimes.session import Session

PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def pins(python: str) -> dict[str, str]:
    """Package and version for one Python on this kind of machine."""
    there = {"python_version": python, "python_full_version": f"{python}.5", "platform_machine": "x86_64"}
    chosen = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(there)]
    names = [canonicalize_name(pin.name) for pin in chosen]
    assert len(names) == len(set(names)), f"several versions for Python {python}"
    return {name: str(pin.specifier).removeprefix("==") for name, pin in zip(names, chosen, strict=True)}


# --- constraints.txt -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_of_every_extra_is_pinned_within_its_range(python: str) -> None:
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned, there = pins(python), {"python_version": python, "python_full_version": f"{python}.5"}
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if "tensorrt-cu" not in name}
    for text in [*project["dependencies"], *(one for wanted in extras.values() for one in wanted)]:
        requirement = Requirement(text)
        if requirement.name == "vitedge" or (requirement.marker and not requirement.marker.evaluate(there)):
            continue
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text


@pytest.mark.skipif("VITEDGE_NEWEST" in os.environ, reason="the newest releases may need other packages")
def test_every_package_that_is_needed_here_is_pinned() -> None:
    """Those that vitedge's extras need, and those that these need: constraints.txt leaves none to chance."""
    pinned, todo, seen = pins(".".join(platform.python_version_tuple()[:2])), ["vitedge"], set[str]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        try:
            todo += [canonicalize_name(text) for text in _needed(name)]
        except PackageNotFoundError:  # of an extra that isn't installed here
            continue
        seen.add(name)
    assert seen - pinned.keys() == {"vitedge"}
    assert {"numpy", "onnxruntime", "typer", "rich", "protobuf"} <= seen


def _needed(name: str) -> list[str]:
    extras = ["demo", "stream", "train", "hub", "nvml", "fleet", "dev"] if name == "vitedge" else [""]
    needed = [Requirement(text) for text in requires(name) or ()]
    return [
        one.name
        for one in needed
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def test_the_readmes_commands_install_with_them() -> None:
    for text in ((ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()):
        installs = [line for line in text.splitlines() if "-e " in line and "pip install" in line]
        assert installs and all(
            "pip install -c constraints.txt" in line or "-q -c constraints.txt" in line for line in installs
        )


# --- versions as numbers ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=4), st.lists(st.integers(0, 3000), min_size=1, max_size=4))
def test_older_orders_releases_as_packaging_does(ours: list[int], theirs: list[int]) -> None:
    here, there = (".".join(map(str, numbers)) for numbers in (ours, theirs))
    assert older(here, there) is (Version(here) < Version(there))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1.32.0", (1, 32)), ("10.13.0.35", (10, 13, 0, 35)), ("2.13.0+cpu", (2, 13)), ("1.33.0.dev20261101", (1, 33)),
     ("2026.4.1-20426-abc", (2026, 4, 1)), ("0", ()), ("", ()), ("unknown", ())],
)  # fmt: skip
def test_what_a_version_says(text: str, numbers: tuple[int, ...]) -> None:
    assert release(text) == numbers


# --- a runtime newer than tested -------------------------------------------------------------------------------------


def test_the_newest_tested_version_counts_whatever_the_python() -> None:
    assert newest_tested("onnxruntime") == max((pins(python)["onnxruntime"] for python in PYTHONS), key=Version)
    assert newest_tested("tensorrt") is None  # JetPack brings it
    assert newer_than_tested("TensorRT", "10.16.0", newest_tested("tensorrt")) == ""
    assert newer_than_tested("OpenVINO", "2026.1.0", "2026.1") == ""
    assert newer_than_tested("OpenVINO", "2025.4", "2026.1") == ""
    assert newer_than_tested("ONNX Runtime", "1.32.0", "1.31.1") == (
        "ONNX Runtime 1.32.0 is newer than what this release was tested with, 1.31.1"
    )


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both runtimes call themselves 9999.99.0."""
    for runtime in ("onnxruntime", "openvino"):
        monkeypatch.setattr(runtimes.part(runtime, "detect"), "installed", lambda: "9999.99.0")


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize(("runtime", "name"), [("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")])
def test_verify_passes_and_says_so_once(small_model: Path, tmp_path: Path, runtime: str, name: str) -> None:
    made = vitedge.export(small_model, runtime, "fp32", tmp_path / "artifact")
    checks = vitedge.verify(made, OpenOptions(threads=1))
    assert all(check.ok for check in checks)
    said = f"{name} 9999.99.0 is newer than what this release was tested with, {newest_tested(runtime)}"
    assert [check.name for check in checks if said in check.detail] == ["versions"]


@pytest.mark.usefixtures("newer")
def test_the_doctor_says_so_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run_isolated", lambda function, *arguments, **_: function(*arguments))
    monkeypatch.setenv("COLUMNS", "300")
    state = doctor.runtime_state("onnxruntime", [])
    said = f"ONNX Runtime 9999.99.0 is newer than what this release was tested with, {newest_tested('onnxruntime')}"
    assert state.untested == said and state.problem is None
    terminal.show_doctor(doctor.examine())
    assert capsys.readouterr().out.count(said) == 1


def test_nothing_is_said_of_a_tested_runtime() -> None:
    assert runtimes.untested("onnxruntime", str(newest_tested("onnxruntime"))) == ""
    assert runtimes.untested("onnxruntime", "1.23.2") == ""
    assert runtimes.untested("null", "0.1.0") == ""


@pytest.mark.parametrize("newer_here", [False, True])
def test_a_graph_executed_otherwise_names_the_tested_version(
    newer_here: bool, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = vitedge.export(small_model, "onnxruntime", "fp32", tmp_path / "artifact")
    here = "9999.99.0" if newer_here else newest_tested("onnxruntime")
    monkeypatch.setattr(runtimes.part("onnxruntime", "detect"), "installed", lambda: here)
    executed = Session.executed

    def fused(self: Session) -> list[Executed]:
        return [node._replace(type="bf16") for node in executed(self)]

    monkeypatch.setattr(Session, "executed", fused)
    why = f"newer than what this release was tested with, {newest_tested('onnxruntime')}, and may fuse otherwise"
    hint = f"install the tested version: {pip()} install onnxruntime=={newest_tested('onnxruntime')}"
    (check,) = (check for check in vitedge.verify(made, OpenOptions(threads=1)) if check.name == "executed precision")
    assert check.ok is False and "layers not as planned" in check.detail
    assert (why in check.detail, hint in check.detail) == (newer_here, newer_here)
    with pytest.raises(InvalidResultError, match="don't run as planned") as refused:
        vitedge.export(small_model, "onnxruntime", "fp32", tmp_path / "another")
    assert (why in refused.value.reason, hint in refused.value.hint) == (newer_here, newer_here)
    assert not (tmp_path / "another").exists()


def test_what_holds_in_a_version_is_its_newest_entry() -> None:
    since = {"1.9": "a", "1.10": "b", "2.0": "c"}
    held = [as_of(since, version, "none") for version in ("1.8", "1.9", "1.9.3", "1.10.1", "2", "3.1")]
    assert held == ["none", "a", "a", "b", "c", "c"]
