"""Maps of patches: rollout against arithmetic by hand and torch, occlusion against a runtime of known answers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

import vitedge
from tests.benchmarking.nulls import NAMES, coloured, null_artifact
from tests.graph.vits import random_arrays
from vitedge.core.progress import silent
from vitedge.data.images import open_picture
from vitedge.errors import UsageError
from vitedge.evaluation import attribution
from vitedge.evaluation.attribution import rollout
from vitedge.formats.architecture import PatchStem, ViTConfig
from vitedge.formats.model_folder import Model
from vitedge.runtimes.session import open_session

CONFIG = ViTConfig(
    image_size=(32, 32), stem=PatchStem(patch_size=8), embed_dim=64, depth=2, num_heads=2, mlp_hidden=128, num_classes=5
)  # the small model's: a class token and 4 × 4 patches


def attends(*pairs: tuple[int, int]) -> np.ndarray:
    """[2 heads, T, T]: every token attends to itself, but for (query, key)."""
    weights = np.eye(CONFIG.tokens, dtype=np.float32)
    for query, key in pairs:
        weights[query] = np.eye(CONFIG.tokens)[key]
    return np.stack([weights] * 2)


def test_rollout_goes_from_the_last_block_to_the_first() -> None:
    """The class token looks at patch 5 (token 6), which looked at patch 2 (token 3) in the block before."""
    shares = rollout([attends((6, 3)), attends((0, 6))], CONFIG)
    assert shares.shape == (4, 4) and shares.sum() == pytest.approx(1)
    assert shares.ravel()[[2, 5]].tolist() == [0.5, 0.5]
    backwards = rollout([attends((0, 6)), attends((6, 3))], CONFIG)
    assert backwards.ravel()[5] == 1.0


def test_rollout_goes_through_merged_tokens() -> None:
    """The class token looks at the token that patches 2 and 3 became."""
    merge = np.delete(np.eye(17), 4, axis=0)
    merge[3, [3, 4]] = 0.5
    looks = np.eye(16)
    looks[0] = np.eye(16)[3]
    shares = rollout([merge, np.stack([looks] * 2)], CONFIG)
    assert shares.ravel()[[2, 3]].tolist() == [0.5, 0.5]
    mean = replace(CONFIG, class_token=False, pool="avg", final_norm="fc_norm")
    assert rollout([merge[1:, 1:]], mean).ravel() == pytest.approx(np.full(16, 1 / 16))


def test_rollout_starts_at_what_is_pooled() -> None:
    alone = [attends()]
    mean = replace(CONFIG, class_token=False, pool="avg", final_norm="fc_norm")
    assert rollout([np.stack([np.eye(mean.tokens)] * 2)], mean).ravel() == pytest.approx(np.full(16, 1 / 16))
    both = replace(CONFIG, pool="token_avg")
    assert rollout(alone, both).ravel() == pytest.approx(np.full(16, 1 / 16))


def test_the_softmax_of_the_graph_is_the_one_of_torch(small_model: Path, small_data: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra train isn't installed")
    from vitedge.training.vit import VisionTransformer

    model = Model.open(small_model)
    module = VisionTransformer(CONFIG).eval()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in random_arrays(CONFIG, seed=7).items()})
    attentions = []

    def keep(attn: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        q, k, _ = attn.qkv(inputs[0]).unflatten(2, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        attentions.append((q @ k.transpose(-2, -1) * 32**-0.5).softmax(-1)[0].numpy())

    for block in module.blocks:
        block.attn.register_forward_pre_hook(keep)
    picture = small_data / "bee" / "3.png"
    contract = model.record.preprocessing
    pixels = contract.apply(Image.open(picture)) * np.float32(contract.rescale)
    normalised = (pixels - np.array(contract.mean, np.float32)) / np.array(contract.std, np.float32)
    with torch.no_grad():
        module(torch.from_numpy(normalised).permute(2, 0, 1)[None])
    explanation = vitedge.explain_picture(model, picture)
    assert np.array(explanation.rollout) == pytest.approx(rollout(attentions, CONFIG), abs=1e-6)


def test_occlusion_finds_the_patch_that_decides(tmp_path: Path) -> None:
    """The null runtime answers by the first pixel, so hiding any other patch changes nothing."""
    with open_session(null_artifact(tmp_path / "artifact", batch=3)) as session:
        image = session.preprocess(open_picture(coloured(1), "one"))
        found = attribution.explain(attribution.of_session(session), image, "one.png", None, silent)
        against = attribution.explain(attribution.of_session(session), image, "one.png", NAMES[4], silent)
    assert found.label == NAMES[1] and against.label == NAMES[4]
    assert np.array(found.occlusion).shape == (2, 2) and found.occlusion[0][0] > 0.1
    assert np.count_nonzero(found.occlusion) == 1
    assert against.occlusion[0][0] < -0.1, "the mean colour's red is 124, which is the class 4"
    assert found.rollout is None and "model folder" in found.no_rollout


def test_model_and_artifact_agree_on_occlusion(tmp_path: Path, small_data: Path, small_model: Path) -> None:
    """A whole photograph's worth of patches, one batch after another, in the graph and in the artifact's runtime."""
    artifact = vitedge.export(small_model, target="onnxruntime", precision="fp32", out=tmp_path / "artifact")
    picture = Image.open(small_data / "cat" / "1.png")
    of_model = attribution.of_model(Model.open(small_model))
    image = of_model.preprocessing.apply(picture)
    with vitedge.open(artifact) as session:
        of_session = attribution.of_session(session)
        assert of_session.grid == (8, 8), "squares of at least 4 pixels"
        ours, runtimes = (
            attribution.explain(subject._replace(grid=(5, 7)), image, "1.png", "cat", silent)
            for subject in (of_model, of_session)
        )
    assert np.array(ours.occlusion) == pytest.approx(np.array(runtimes.occlusion), abs=1e-5)
    assert np.array(ours.occlusion).any()


@pytest.mark.parametrize(
    ("size", "grid"), [((224, 224), (14, 14)), ((32, 32), (8, 8)), ((96, 224), (6, 14)), ((3, 3), (1, 1))]
)
def test_squares_cover_every_pixel_once(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert attribution.square_grid(size) == grid
    covered = np.zeros(size, int)
    for patch in attribution.bounds(grid, size):
        covered[patch] += 1
    assert (covered == 1).all()


def test_the_picture_has_a_panel_for_each_map(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    picture = small_data / "bee" / "3.png"
    explanation = vitedge.explain_picture(small_model, picture, tmp_path / "map.png")
    drawn = Image.open(io.BytesIO((tmp_path / "map.png").read_bytes()))
    assert drawn.size == (3 * 224 + 2 * 8, 18 + 224)
    share = np.array(explanation.rollout)
    row, column = np.unravel_index(share.argmax(), share.shape)
    pixel = drawn.getpixel((224 + 8 + int(column) * 56 + 28, 18 + int(row) * 56 + 28))
    assert isinstance(pixel, tuple) and pixel[0] > 160 > 90 > pixel[2], "the strongest patch is red"
    with pytest.raises(UsageError, match="already exists"):
        vitedge.explain_picture(small_model, picture, tmp_path / "map.png")


def test_what_cannot_be_explained_is_refused(small_model: Path, small_data: Path) -> None:
    picture = small_data / "bee" / "3.png"
    with pytest.raises(UsageError, match="no class 'bea'; the nearest is 'bee'"):
        vitedge.explain_picture(small_model, picture, class_name="bea")
    with pytest.raises(UsageError, match="without --device, --threads"):
        vitedge.explain_picture(small_model, picture, options=vitedge.OpenOptions(threads=1))
