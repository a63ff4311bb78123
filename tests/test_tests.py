"""What tests must not do, found by reading them."""

from __future__ import annotations

import re

from tests.conftest import ROOT

NEAR_ZERO = re.compile(r"st\.floats\((?!\s*(?:\d*\.?\d*[1-9]|\d+\.0\*\*-\d+|1e-)\d*)[^()]*(?:\([^()]*\)[^()]*)*\)")


def test_no_numbers_that_a_runtime_flushes_to_zero() -> None:
    """OpenVINO sets the processor so; Hypothesis then refuses to draw subnormal numbers in the rest of the process."""
    wrong = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in (ROOT / "tests").rglob("*.py")
        for match in NEAR_ZERO.finditer(path.read_text(encoding="utf-8"))
        if "allow_subnormal=False" not in match[0] and path.name != "test_tests.py"
    ]
    assert not wrong
