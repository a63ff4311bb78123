"""The contract suite on aarch64, and the demo's CPU artifacts, with the real wheels on an emulated Cortex-A76.

That is a Raspberry Pi 5, or the CPU cores of a Jetson. Times mean nothing there; arithmetic does. Emulated, a core is
fifty times slower, so all checks run on a small ViT, and the embedded model's logits are compared once.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.contract import artifacts, portable
from tests.contract.elsewhere import artifacts_for, pinned
from vitedge.formats.target import load_target


@pytest.fixture(scope="module")
def aarch64_python() -> Path:
    """A command that runs a Python script as aarch64 would; see its own help."""
    tool = Path(os.environ.get("VITEDGE_AARCH64_PYTHON") or ROOT.parent / "shared" / "tools" / "aarch64-python")
    if not tool.is_file():
        pytest.skip("no aarch64-python at hand (set VITEDGE_AARCH64_PYTHON)")
    return tool


@pytest.mark.timeout(900)  # the first use installs an interpreter and wheels
@pytest.mark.parametrize("target", ["onnxruntime", "openvino-arm"])
def test_the_contract_on_aarch64(
    target: str, aarch64_python: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    embedded, runtime = artifacts_for(target, tmp_path_factory), target.removesuffix("-arm")
    board = load_target(target)
    small = [
        artifacts.make(tmp_path / precision, board, board.candidates(precision)[0]).path
        for precision in ("fp32", "int8")
    ]
    names = (runtime, "numpy", "pillow", "msgspec")
    pins = pinned(names, "3.11")  # what the emulated interpreter is
    wheels = " ".join(f"{name}=={pins[name]}" if name in pins else name for name in names)
    command = [aarch64_python, "--cpu", "cortex-a76", "--with", wheels]
    done = subprocess.run(
        [*command, portable.__file__, "--reopen", "2", *small, "--arithmetic", *embedded],
        capture_output=True,
        text=True,
        timeout=850,
        env={**os.environ, "AARCH64_PATH": str(ROOT)},
    )
    if "no aarch64 wheel" in done.stderr or "apt-get" in done.stderr:
        pytest.skip(f"aarch64-python can't be set up here: {done.stderr.strip().splitlines()[-1]}")
    lines = done.stdout.splitlines()
    checks = 2 * len(portable.CHECKS) + 2 * len(portable.ARITHMETIC)
    assert lines and lines[-1] == f"{checks} checks, 0 failed", done.stdout + done.stderr
    deviations = re.findall(r"logits: (\S+) from float32 .*?, (\S+) from export's own", done.stdout)[2:]
    assert len(deviations) == len(embedded)
    assert float(deviations[0][0]) < 1e-5  # float32: sums in another order
    assert float(deviations[1][1]) < 2e-2  # INT8: levels next to a rounding boundary fall the other way
