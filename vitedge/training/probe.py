"""Fit the initial weights of a new head: a linear probe of the trained model's features (LP-FT).

Fine-tuning from a zero head distorts the features before the head is of any use. A head that's fitted first keeps
them, on pictures like the training's and still more on others (Kumar et al., "Fine-Tuning can Distort Pretrained
Features and Underperform Out-of-Distribution", 2202.10054).
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitedge.core.progress import bars
from vitedge.core.randomness import seed_of
from vitedge.errors import InvalidResultError
from vitedge.training.data import TrainingData
from vitedge.training.engine import Processes
from vitedge.training.evaluate import model_input, on_device
from vitedge.training.initial import HEADS, Start
from vitedge.training.options import TrainOptions
from vitedge.training.trainer import weights_of_classes

MOST_PICTURES = 10_000  # that a head is fitted to, drawn by the run's seed
PENALTIES = torch.logspace(-6, 2, 33, dtype=torch.float64)  # in units of the features' mean variance
SCALES = torch.logspace(-1, 3, 41, dtype=torch.float64)


def with_fitted_heads(start: Start, options: TrainOptions, data: TrainingData, group: Processes, action: str) -> Start:
    """Return ``start`` with new heads fitted to the training pictures, without augmentation, by the first process.

    Raises:
        InvalidResultError: the model's features of the pictures aren't finite.
    """
    weights = weights_of_classes(data.training.labels, start.config.num_classes, options.class_weights)

    def fit() -> dict[str, Tensor]:
        read, labels = _read_by_heads(start, options, data, group)
        heads: dict[str, Tensor] = {}
        for name, features in read.items():
            if not features.isfinite().all():
                hint = "start from other weights, or say --new-head zero"
                raise InvalidResultError(action, f"the features that '{name}' reads aren't finite", hint)
            weight, bias, right = fit_head(features, labels, start.config.num_classes, weights)
            heads |= {f"{name}.weight": weight, f"{name}.bias": bias}
            group.log(
                f"{name}: fitted to {len(labels)} pictures; {100 * right:.1f} % right in leave-one-out cross-validation"
            )
        return heads

    return replace(start, weights={**(start.weights or {}), **group.on_first(fit)})


@torch.no_grad()
def _read_by_heads(
    start: Start, options: TrainOptions, data: TrainingData, group: Processes
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the input features of each head, float32 [n, D] by the head's name, and the labels, int64 [n]."""
    model = on_device(start.model(options), group.device).eval()
    read: dict[str, list[Tensor]] = {}
    for name, module in model.named_children():
        if f"{name}.weight" in HEADS and isinstance(module, nn.Linear):
            rows = read[name] = []
            module.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(inputs[0].cpu()))
    generator = torch.Generator().manual_seed(seed_of(options.seed, "fitted head"))
    chosen = torch.randperm(len(data.training), generator=generator)[:MOST_PICTURES]
    labels = []
    with bars() as show:
        for batch in data.training.batches(torch.split(chosen, 250)):
            model(model_input(batch.pixels, data.preprocessing, group.device))
            labels.append(batch.labels)
            show("fitting the head", sum(map(len, labels)), len(chosen))
    return {name: torch.cat(rows) for name, rows in read.items()}, torch.cat(labels)


def fit_head(
    features: Tensor, labels: Tensor, classes: int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, float]:
    """Fit a linear classifier: ridge regression on the classes' indicators, scaled until its logits give probabilities.

    Penalty and scale are those of the least squared error and the least cross-entropy over the rows, each predicted by
    a fit to all others, so that what few rows know isn't overstated.

    Args:
        features: float [n, D], n ≥ 2.
        labels: int64 [n].
        weights: float [classes], the weight of a row of each class; None: 1.

    Returns:
        float32 weight [classes, D] and bias [classes], and the fraction of rows that the fit to the others gets right.
    """
    y = functional.one_hot(labels, classes).double()
    counts = torch.ones(len(y), dtype=torch.float64) if weights is None else weights.double()[labels]
    ridge = Ridge(features.double(), y, counts / counts.sum())
    predictions = (ridge.leave_one_out(penalty) for penalty in PENALTIES)
    errors = [float(ridge.counts @ (predicted - y).square().sum(1)) for predicted in predictions]
    penalty = PENALTIES[int(torch.tensor(errors).argmin())]
    predicted = ridge.leave_one_out(penalty)
    losses = [
        float(ridge.counts @ functional.cross_entropy(scale * predicted, labels, reduction="none")) for scale in SCALES
    ]
    scale = SCALES[int(torch.tensor(losses).argmin())]
    weight, bias = ridge.fit(penalty)
    right = float((predicted.argmax(1) == labels).double().mean())
    return (scale * weight).float(), (scale * bias).float(), right


class Ridge:
    """Least squares of Y on X with a penalty on the slopes only, for many penalties from one decomposition.

    Args:
        x: float64 [n, D].
        y: float64 [n, K].
        counts: float64 [n], what each row counts; their sum is 1.
    """

    def __init__(self, x: Tensor, y: Tensor, counts: Tensor) -> None:
        self.y, self.counts = y, counts
        self._x_mean, self._y_mean, self._root = counts @ x, counts @ y, counts.sqrt()[:, None]
        centred = self._root * (x - self._x_mean)
        values, self._vectors = torch.linalg.eigh(centred.T @ centred)
        self._values = values.clamp_min(0)
        self._rotated = centred @ self._vectors  # [n, D]
        self._target = self._root * (y - self._y_mean)  # [n, K]
        self._unit = values.mean().clamp_min(torch.finfo(torch.float64).tiny)

    def _slopes(self, penalty: Tensor) -> Tensor:
        """Return slopes [D, K], in the rotated space."""
        slopes = (self._rotated.T @ self._target) / (self._values + penalty * self._unit)[:, None]
        return cast(Tensor, slopes)

    def fit(self, penalty: Tensor) -> tuple[Tensor, Tensor]:
        """Return slopes [K, D] and intercepts [K]. The penalty is in units of the columns' mean variance."""
        weight = (self._vectors @ self._slopes(penalty)).T
        return weight, self._y_mean - weight @ self._x_mean

    def leave_one_out(self, penalty: Tensor) -> Tensor:
        """Return [n, K]: each row's prediction from the fit to all others.

        y_i - e_i / (1 - H_ii), with the residuals e and the hat matrix H of the fit to all rows (Allen's PRESS; Hastie,
        Tibshirani and Friedman, The Elements of Statistical Learning, 2nd ed., equation 7.64).
        """
        shrunk = self._rotated / (self._values + penalty * self._unit).sqrt()
        leverage = shrunk.square().sum(1, keepdim=True) + self.counts[:, None]  # slopes, and the intercept
        residual = (self._target - self._rotated @ self._slopes(penalty)) / self._root
        return cast(Tensor, self.y - residual / (1 - leverage).clamp_min(1e-9))
