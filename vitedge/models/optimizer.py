"""Optimisers: AdamW, and Muon for the matrices of the hidden layers with AdamW for everything else.

One learning rate serves both: Muon's update is scaled to the root mean square that AdamW's has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton–Schulz iteration (Jordan et al., 2024), scaled as in Liu et al., 2502.16982.

    For weights that map one hidden layer to the next: linear [out, in], convolution [out, in, kh, kw] (seen as
    [out, in·kh·kw]) and a packed attention weight [3·D, D] (three matrices, orthogonalised each by itself).
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the gradients that the parameters hold."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"])  # Nesterov
                rows = parameter.shape[0]
                columns = parameter[0].numel()
                pieces = 3 if rows == 3 * columns else 1
                matrices = update.reshape(pieces, rows // pieces, columns)
                scale = 0.2 * max(matrices.shape[1:]) ** 0.5  # the update's root mean square becomes 0.2
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonalise(matrices).reshape_as(parameter), alpha=-group["lr"] * scale)
        return loss


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """[..., rows, columns] -> about U·Vᵀ of each matrix's singular value decomposition (singular values 0.7 to 1.2).

    The quintic Newton–Schulz iteration with the coefficients of Jordan et al., 2024.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def build_optimizers(
    model: nn.Module, name: str, *, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)
) -> list[torch.optim.Optimizer]:
    """The optimisers for a model, to be stepped together. Vectors (norms, biases, tokens, positions) don't decay.

    Args:
        name: ``adamw``, or ``muon``: Muon for hidden matrices, AdamW for the first layer, the heads and the vectors.
    """
    matrices: list[nn.Parameter] = []
    ends: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    first_layer = True
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim < 2 or parameter_name.endswith(("_token", "pos_embed")):
            vectors.append(parameter)
        elif first_layer or parameter_name.startswith("head"):
            first_layer = False
            ends.append(parameter)
        else:
            matrices.append(parameter)
    if name == "adamw":
        ends, matrices = ends + matrices, []
    groups: list[dict[str, Any]] = [
        {"params": ends, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=betas)]
    return optimizers if name == "adamw" else [Muon(matrices, lr, weight_decay=weight_decay), *optimizers]
