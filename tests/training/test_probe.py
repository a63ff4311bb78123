"""Heads that are fitted to a trained model's features: the algebra by brute force, and runs that begin with one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from vitedge.errors import InvalidResultError, UsageError
from vitedge.formats.model_folder import Model

torch = pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

from vitedge.training import probe  # noqa: E402
from vitedge.training.augment import Augmentation  # noqa: E402
from vitedge.training.initial import Start  # noqa: E402
from vitedge.training.probe import Ridge, fit_head  # noqa: E402
from vitedge.training.train import TrainOptions, train  # noqa: E402
from vitedge.training.vit import VisionTransformer  # noqa: E402

OPTIONS = TrainOptions(
    init_from="embedded", epochs=1, batch_size=8, lr=1e-5, augmentation=Augmentation(crop_padding=0), threads=1
)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 12), d=st.integers(1, 15), penalty=st.floats(1e-4, 10.0))
@settings(deadline=None, max_examples=40)
def test_a_row_left_out_is_predicted_by_a_fit_to_the_others(seed: int, n: int, d: int, penalty: float) -> None:
    drawn = np.random.default_rng(seed)
    x, y, counts = drawn.normal(2, 1, (n, d)), drawn.normal(size=(n, 3)), drawn.uniform(0.5, 2, n)
    counts /= counts.sum()
    ridge = Ridge(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(counts))
    found = ridge.leave_one_out(torch.tensor(penalty, dtype=torch.float64)).numpy()
    mean = counts @ x
    unit = (counts[:, None] * (x - mean) ** 2).sum() / d  # the columns' mean variance
    padded = np.hstack([x, np.ones((n, 1))])
    penalties = np.diag([penalty * unit] * d + [0.0])
    for row in range(n):
        w = np.where(np.arange(n) == row, 0, counts)[:, None]
        slopes = np.linalg.solve(padded.T @ (w * padded) + penalties, padded.T @ (w * y))
        np.testing.assert_allclose(found[row], padded[row] @ slopes, rtol=1e-5, atol=1e-6)


def test_what_few_rows_know_is_not_overstated() -> None:
    """As many features as rows fit noise perfectly; leave-one-out cross-validation shows that it's worth nothing."""
    drawn = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 40, generator=drawn), torch.arange(40) % 2
    weight, bias, right = fit_head(features, labels, 2)
    probabilities = (features @ weight.T + bias).softmax(1)
    assert right < 0.75 and probabilities.max() < 0.75
    centres = torch.tensor([-3.0, 3.0])[labels][:, None]
    weight, bias, right = fit_head(features + centres, labels, 2)
    assert right == 1
    assert ((features + centres) @ weight.T + bias).softmax(1)[range(40), labels].min() > 0.9


def test_weights_of_classes_move_the_border() -> None:
    drawn = torch.Generator().manual_seed(0)
    labels = (torch.arange(200) < 10).long()  # ten of the second class
    features = torch.randn(200, 1, generator=drawn) + 2 * labels[:, None]
    borders = []
    for weights in (None, torch.tensor([10 / 19, 10.0])):
        weight, bias, _ = fit_head(features, labels, 2, weights)
        borders.append(float((bias[0] - bias[1]) / (weight[1, 0] - weight[0, 0])))
    assert borders[0] > borders[1] + 0.3


def test_a_run_on_other_classes_begins_with_a_fitted_head(
    pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loss = {}
    for new_head in ("fitted", "zero"):
        options = replace(OPTIONS, new_head=new_head)
        record = Model.open(train(str(pictures), options, tmp_path / new_head)).record
        assert record.accuracy is not None and record.training is not None
        assert record.training["options"]["new_head"] == new_head
        loss[new_head] = record.accuracy["held_out"]["loss"]
        assert ("head: fitted to" in capfd.readouterr().err) == (new_head == "fitted")
    assert loss["fitted"] < 0.1 and loss["zero"] > 1  # of log 3


def test_both_heads_of_a_distilled_model_are_fitted_to_what_each_reads(pictures: Path, tmp_path: Path) -> None:
    first = TrainOptions(
        model="vit_nano_patch4_32", epochs=1, batch_size=8, image_size=(8, 8), distillation_token=True, threads=1
    )
    other = tmp_path / "two"
    for name in ("red", "blue"):
        shutil.copytree(pictures / name, other / name)
    source = train(str(pictures), first, tmp_path / "source")
    tuned = replace(OPTIONS, init_from=str(source), lr=0.0)
    record = Model.open(train(str(other), tuned, tmp_path / "tuned"))
    from safetensors.numpy import load_file

    arrays = load_file(record.path / "model.safetensors")
    assert arrays["head.weight"].shape == arrays["head_dist.weight"].shape == (2, 96)
    assert arrays["head.weight"].any() and arrays["head_dist.weight"].any()
    assert not np.array_equal(arrays["head.weight"], arrays["head_dist.weight"])


def test_features_that_are_not_finite_are_refused(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, tmp_path: Path
) -> None:
    model = Start.model

    def broken(self: Start, options: TrainOptions) -> VisionTransformer:
        built = model(self, options)
        torch.nn.init.constant_(built.fc_norm.weight, float("nan"))
        return built

    monkeypatch.setattr(Start, "model", broken)
    with pytest.raises(InvalidResultError, match="the features that 'head' reads aren't finite"):
        train(str(pictures), OPTIONS, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_no_more_pictures_are_read_than_a_head_needs(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "MOST_PICTURES", 12)
    train(str(pictures), OPTIONS, tmp_path / "model")
    assert "head: fitted to 12 pictures" in capfd.readouterr().err


def test_another_way_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="there is no such new_head"):
        replace(OPTIONS, new_head="fited")
