"""The processes and the device of a run: one process, or those that ``torchrun`` started, through Accelerate.

Accelerate is imported only under ``torchrun``. It finds the other processes, places each on its device, averages
gradients (torch's DistributedDataParallel) and adds up figures; data, order and randomness are the trainer's, which
makes them the same for any number of processes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitedge.core.progress import is_quiet
from vitedge.device.hardware import processor
from vitedge.errors import Interrupted, NotInstalledError, UsageError, VitedgeError

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]  # it ships no types

T = TypeVar("T")

TIMEOUT = timedelta(days=7)  # the longest wait for other processes, while one reads data or runs a teacher


class Processes:
    """The processes of the run: this one's rank, and their collective operations."""

    def __init__(self, device: torch.device, accelerator: Accelerator | None = None) -> None:
        self.device, self._accelerator = device, accelerator
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.count = 1 if accelerator is None else accelerator.num_processes

    @property
    def first(self) -> bool:
        """Whether this process is the one that logs and writes."""
        return self.rank == 0

    def log(self, line: str) -> None:
        """Log a line to stderr, from the first process only, unless progress is quiet."""
        if self.first and not is_quiet():
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """Wrap the module so that its gradients are averaged over the processes in each backward pass."""
        return module if self._accelerator is None else cast(nn.Module, self._accelerator.prepare(module))

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Let backward passes inside the context add to this process's gradients only."""
        return nullcontext() if self._accelerator is None else self._accelerator.no_sync(module)

    def all_reduce(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over the processes, in float64."""
        if self._accelerator is None:
            return list(values)
        return cast(list[float], self.all_reduce_array(np.array(values, np.float64)).tolist())

    def all_reduce_array(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of an array over the processes, each of which has one of this shape."""
        if self._accelerator is None:
            return values
        total = self._accelerator.reduce(torch.from_numpy(values).to(self.device), "sum")
        return cast(NDArray[Any], total.cpu().numpy())

    def on_first(self, function: Callable[[], T]) -> T:
        """Call in the first process only, and return its result in all.

        Raises:
            VitedgeError: raised by the function; the other processes end quietly with its exit code.
        """
        if self._accelerator is None:
            return function()
        from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]  # it ships no types

        returned: list[Any] = [None, None]  # the value, and the exit code of an error
        error: VitedgeError | None = None
        if self.first:
            try:
                returned[0] = function()
            except VitedgeError as raised:
                error, returned[1] = raised, raised.exit_code
        broadcast_object_list(returned)
        if error is not None:
            raise error
        if returned[1] is not None:
            raise SystemExit(returned[1])
        return cast(T, returned[0])

    def fail(self, error: VitedgeError | Interrupted) -> VitedgeError | Interrupted | SystemExit:
        """Return the exception for each process where all meet the same fault or stop, so that it's printed once."""
        return error if self.first else SystemExit(error.exit_code)


@contextlib.contextmanager
def processes(device: str, action: str) -> Iterator[Processes]:
    """Join the other processes of ``torchrun``, if there are any, and leave them at the end.

    Raises:
        UsageError: a device that isn't there.
        NotInstalledError: several processes without Accelerate.
    """
    place = _device(device, action)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "LOCAL_RANK" not in os.environ:
        yield Processes(place)
        return
    if ":" in device:
        raise UsageError(
            action, f"'{device}' is one device, and torchrun started several processes", "use --device cuda"
        )
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ModuleNotFoundError as error:
        raise NotInstalledError.for_extra(action, error.name or "accelerate", "train") from error

    accelerator = Accelerator(
        cpu=place.type == "cpu", mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)]
    )
    try:
        yield Processes(torch.device("cpu") if place.type == "cpu" else accelerator.device, accelerator)
    finally:
        torch.distributed.destroy_process_group()


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; elsewhere it's emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(processor().isa or ()))  # the last is aarch64's


def _device(name: str, action: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(action, f"'{name}' isn't a device", "use --device cpu or --device cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(action, f"training on '{name}' isn't supported", "use --device cpu or --device cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(action, "this machine has no CUDA device that torch can use", "use --device cpu")
    return device
