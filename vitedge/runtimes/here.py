"""Tell whether artifacts of a target run on this machine, and why not."""

from __future__ import annotations

import platform

from vitedge.core import system
from vitedge.device import hardware
from vitedge.formats.target import Target
from vitedge.runtimes import part


def runs_here(target: Target) -> bool:
    """Whether this machine's processor is the target's and its runtime is installed and can open graphs here.

    Without the instructions that a target promises, its graphs would run and answer wrongly: 8-bit weights saturate.
    """
    if why_not_here(target):
        return False
    facts = part(target.runtime, "detect")
    return facts.installed() is not None and facts.runs_here(target.device)


def why_not_here(target: Target) -> str:
    """Return why artifacts of a target can't run on this machine, whatever is installed; empty where they can.

    What can't be read of the processor is no reason against it.
    """
    if target.arch not in ("any", platform.machine()):
        return f"it's for {target.arch}, and this machine is {platform.machine()}"
    if target.device.startswith("cuda") and not hardware.gpus():
        return "it's for an NVIDIA GPU, and there is none here"
    facts = part(target.runtime, "detect")
    if target.providers and facts.installed() is not None and (why := facts.missing_provider(target)):
        return str(why)
    isa = hardware.processor().isa
    if target.isa != "any" and isa is not None and target.isa not in isa:
        return f"it's for processors with {target.isa}, and this one has none"
    cores = len(system.processors())
    if target.runtime == "openvino" and target.threads > cores:  # OpenVINO would silently take fewer
        return (
            f"it's for {target.threads} threads, and OpenVINO takes no more than the {cores} cores that are free here"
        )
    return ""
