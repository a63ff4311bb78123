"""A crash stays in the child."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from vitedge.core.isolation import ChildError, run_isolated
from vitedge.errors import ModelError


def refuse(text: str) -> None:
    raise ModelError("ask", text, "fix")


def chatter() -> str:
    print("this goes nowhere", flush=True)
    os.write(1, b"and so does this")
    return "value"


def unpicklable() -> object:
    return lambda: None


def leave(code: int) -> None:
    os._exit(code)  # looked up in the child: where coverage is measured it isn't a function that could be sent there


def test_values_come_back() -> None:
    assert run_isolated(divmod, 7, 2) == (3, 1)
    np.testing.assert_array_equal(run_isolated(np.arange, 5), np.arange(5))
    assert run_isolated(chatter) == "value"


def test_our_errors_come_back_as_they_are() -> None:
    with pytest.raises(ModelError, match="too bad") as refusal:
        run_isolated(refuse, "too bad")
    assert (refusal.value.action, refusal.value.hint) == ("ask", "fix")


def test_other_errors_are_described() -> None:
    with pytest.raises(ChildError, match="ZeroDivisionError"):
        run_isolated(divmod, 1, 0)
    with pytest.raises(ChildError, match="can't be returned"):
        run_isolated(unpicklable)


def test_a_crash_names_the_signal() -> None:
    with pytest.raises(ChildError, match="SIGABRT"):
        run_isolated(os.abort)
    with pytest.raises(ChildError, match="ended with code 7"):
        run_isolated(leave, 7)


def test_a_hang_is_stopped() -> None:
    with pytest.raises(ChildError, match=r"longer than 0\.3 seconds"):
        run_isolated(time.sleep, 60, timeout_s=0.3)


def test_memory_is_limited() -> None:
    with pytest.raises(ChildError, match="MemoryError"):
        run_isolated(bytearray, 4 << 30, memory_mb=1024)
