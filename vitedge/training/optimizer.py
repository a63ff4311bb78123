"""Optimisers: AdamW, and Muon for the matrices of the hidden layers with AdamW for everything else.

One learning rate serves both: Muon's update is scaled to the root mean square that AdamW's has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from vitedge.training.vit import Attention, VisionTransformer


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton–Schulz iteration (Jordan et al., 2024), scaled as in Liu et al., 2502.16982.

    For weights that map one hidden layer to the next: linear [out, in] and convolution [out, in, kh, kw] (seen as
    [out, in·kh·kw]). Several matrices in one weight, as queries', keys' and values', are orthogonalised each by itself.
    ``torch.optim.Muon`` makes the same steps for linear weights in bfloat16; it refuses convolutions, and it
    orthogonalises queries, keys and values as one matrix.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        packed: Mapping[Tensor, Sequence[int]] | None = None,
    ) -> None:
        """``packed``: the rows of each matrix in weights that hold several."""
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.packed = packed or {}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step from the gradients that the parameters hold."""
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
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                rows = self.packed.get(parameter, (len(parameter),))
                for weight, matrix in zip(parameter.split(rows), update.flatten(1).split(rows), strict=True):
                    scale = 0.2 * max(matrix.shape) ** 0.5  # the update's root mean square becomes 0.2
                    weight.add_(orthogonalise(matrix).reshape_as(weight), alpha=-group["lr"] * scale)
        return loss


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Orthogonalise [..., rows, columns]: about U·Vᵀ of each matrix's singular value decomposition (values 0.7 to 1.2).

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
    model: VisionTransformer,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    momentum: float = 0.95,
    norm_rates: tuple[float, float] = (1.0, 1.0),
    extra: Iterable[nn.Parameter] = (),
    betas: tuple[float, float] = (0.9, 0.95),
) -> list[torch.optim.Optimizer]:
    """Build a model's optimisers, to be stepped together. Vectors (norms, biases, tokens, positions) don't decay.

    Each group's ``lr_scale`` is ``layer_decay`` to the power of the layers above (Clark et al., 2003.10555; as in
    Bao et al., 2106.08254): 1 for the head and the last norm, ``layer_decay`` for the last block, …, the smallest for
    the stem, the tokens and the positions. Parameters that need no gradient belong to none.

    Args:
        model: what is trained.
        name: ``adamw``, or ``muon``: Muon for hidden matrices, AdamW for the first layer, the heads and the vectors.
        lr: of ``lr_scale`` 1.
        weight_decay: of matrices.
        layer_decay: see above; 1: the same for all layers.
        momentum: Muon's.
        norm_rates: factors of ``lr_scale`` for the scales and the biases of a stem's BatchNorms.
        extra: further matrices and vectors beside the head.
        betas: AdamW's.
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    first_layer = True
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim < 2 or parameter_name.endswith(("_token", "pos_embed")):
            kind = "vectors"
        elif first_layer or parameter_name.startswith("head"):
            first_layer, kind = False, "ends"
        else:
            kind = "matrices"
        scale = layer_decay ** (model.config.depth + 1 - layer_of(parameter_name, model.config.depth))
        if parameter_name.startswith("patch_embed.stem.") and ".norm." in parameter_name:
            scale *= norm_rates[parameter_name.endswith("bias")]
        if parameter.requires_grad:
            groups.setdefault((kind, scale), []).append(parameter)
    for parameter in extra:
        groups.setdefault(("vectors" if parameter.ndim < 2 else "ends", 1.0), []).append(parameter)

    def chosen(*kinds: str) -> list[dict[str, Any]]:
        decays = {"vectors": 0.0}
        return [
            {"params": parameters, "lr_scale": scale, "weight_decay": decays.get(kind, weight_decay)}
            for (kind, scale), parameters in groups.items()
            if kind in kinds
        ]

    if name == "adamw":
        return [torch.optim.AdamW(chosen("ends", "matrices", "vectors"), lr=lr, betas=betas)]
    hidden = chosen("matrices")
    packed = {module.qkv.weight: module.sizes for module in model.modules() if isinstance(module, Attention)}
    adamw = torch.optim.AdamW(chosen("ends", "vectors"), lr=lr, betas=betas)
    return [Muon(hidden, lr, momentum=momentum, packed=packed), adamw] if hidden else [adamw]


def layer_of(name: str, depth: int) -> int:
    """Return 0 for the stem, the tokens and the positions, i + 1 for block i, ``depth`` + 1 for all layers after."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1 if name.startswith(("norm.", "fc_norm.", "head")) else 0
