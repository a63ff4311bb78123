"""BatchNorm with statistics of the whole batch, for any number of processes that share it, on any device.

torch's SyncBatchNorm does this on GPUs alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed, nn


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is summed too, because every process's loss depends on every part."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d (Ioffe and Szegedy, 1502.03167); in training under ``torchrun``, of all processes' batch."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return super().forward(input)
        x = input.float()
        add = cast(Any, _Sum.apply)
        count = add(x.new_tensor([x.numel() / x.shape[1]]))
        mean = add(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = add(centred.square().sum((0, 2, 3))) / count
        running_mean, running_var, seen = self.running_mean, self.running_var, self.num_batches_tracked
        assert running_mean is not None and running_var is not None and seen is not None and self.momentum is not None
        with torch.no_grad():
            running_mean.lerp_(mean, self.momentum)
            running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)
            seen.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        y: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return y.to(input.dtype)
