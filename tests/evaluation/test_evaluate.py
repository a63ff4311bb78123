"""Evaluation on pictures whose answers are known: the null runtime's depend on the first pixel alone."""

from __future__ import annotations

import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from tests.benchmarking.nulls import NAMES, TARGET, coloured, labelled, null_artifact, rewritten
from tests.data.test_shards import write_tar
from vitedge.data.images import ImageSet
from vitedge.errors import ImageError, InvalidResultError, UsageError
from vitedge.evaluation.evaluate import evaluate, reference_row
from vitedge.evaluation.statistics import compare, top_k
from vitedge.formats.artifact import Artifact, Calibration
from vitedge.formats.model_folder import class_table
from vitedge.formats.result import Result, Stopped, decode_result, encode_result
from vitedge.runtimes.session import Session


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return null_artifact(tmp_path_factory.mktemp("artifact") / "a")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures, of which 42 are answered rightly."""
    return labelled(tmp_path_factory.mktemp("data") / "pictures", wrong=3, each=10)


def test_every_answer_is_the_one_expected(artifact: Artifact, data: Path) -> None:
    result = evaluate([artifact], ImageSet.open(data))
    assert decode_result(encode_result(result), "result") == result
    assert result.data is not None and not result.partial
    accuracy = result.rows[0].accuracy
    assert accuracy is not None
    assert result.data.names == tuple(f"{name}/{number:03}.png" for name in NAMES for number in range(10))
    assert result.data.label == tuple(label for label in range(6) for _ in range(10))
    expected = [(label + (number < 3)) % 6 for label in range(6) for number in range(10)]
    assert list(accuracy.predicted) == expected
    assert top_k(accuracy, 1) == 42
    # one-hot logits: the true class ranks behind the predicted one and every earlier class of equal logit
    ranks = [
        0 if p == t else 1 + sum(c != p for c in range(t)) for p, t in zip(expected, result.data.label, strict=True)
    ]
    assert list(accuracy.rank) == ranks
    assert accuracy.divergence is not None and accuracy.divergence.total == 0.0
    assert accuracy.calibrated is not None and sum(accuracy.calibrated.correct) == 42
    confidence = math.e / (math.e + 5)
    assert sum(accuracy.calibrated.confidence_sum) == pytest.approx(60 * confidence)


def test_several_artifacts_in_one_pass(
    artifact: Artifact, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = null_artifact(tmp_path / "cached", precision="int8", cached=True)
    big = null_artifact(tmp_path / "big", batch=7, precision="int8")
    read: list[int] = []
    original = ImageSet.read
    monkeypatch.setattr(ImageSet, "read", lambda self, index: read.append(index) or original(self, index))
    result = evaluate([cached, big, artifact], ImageSet.open(data))
    assert sorted(read) == list(range(60))  # each picture was decoded once
    constant, batched, reference = (row.accuracy for row in result.rows)
    assert constant is not None and batched is not None and reference is not None
    assert reference_row(result.rows) is result.rows[2]  # float32, though it came last
    assert (batched.predicted, batched.rank) == (reference.predicted, reference.rank)
    assert len(set(constant.predicted)) == 1
    paired = compare(reference, constant)
    assert paired is not None and len(paired.flips) == sum(
        a != b for a, b in zip(reference.predicted, constant.predicted, strict=True)
    )
    one_hot = np.log(np.array([math.e, 1, 1, 1, 1, 1]) / (math.e + 5))
    each = float((np.exp(one_hot) * (one_hot - np.roll(one_hot, 1))).sum())  # KL between two different one-hot answers
    assert constant.divergence is not None
    assert constant.divergence.reference == artifact.digest
    assert constant.divergence.total == pytest.approx(each * len(paired.flips), rel=1e-5)


def test_archives_and_limits(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in sorted(data.rglob("*.png")):
            archive.write(file, file.relative_to(data).as_posix())
    whole, packed = (
        evaluate([artifact], ImageSet.open(data)),
        evaluate([artifact], ImageSet.open(tmp_path / "data.zip")),
    )
    assert whole.data is not None and packed.data is not None
    assert packed.data.digest == whole.data.digest and packed.rows[0].accuracy is not None
    some, again = (evaluate([artifact], ImageSet.open(source), limit=12) for source in (data, tmp_path / "data.zip"))
    assert some.data is not None and again.data is not None
    assert len(some.data.names) == 12 and some.data.names == again.data.names
    assert len({name.split("/")[0] for name in some.data.names}) > 1  # a choice, not the first class
    assert some.data.digest != whole.data.digest


def test_unreadable_images_are_counted_and_named(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for label, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            (folder / name / f"{number}.png").write_bytes(coloured(label, size=number + 2))
    (folder / "ant" / "7.png").write_bytes(b"no picture")
    result = evaluate([artifact], ImageSet.open(folder))
    assert result.data is not None and result.data.skipped == ("ant/7.png",)
    assert len(result.data.names) == 119 and "ant/7.png" not in result.data.names
    assert result.rows[0].accuracy is not None and top_k(result.rows[0].accuracy, 1) == 119
    (folder / "bee" / "3.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"(?s)more than 1 %.*ant/7\.png, bee/3\.png"):
        evaluate([artifact], ImageSet.open(folder))


def test_calibration_images_are_refused_by_content(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    images = ImageSet.open(data)
    known = tuple(sorted(images.digest(index)[:16] for index in (4, 30)))
    calibration = Calibration(source="elsewhere", count=2, digest="0" * 64, image_digests=known)
    quantized = rewritten(artifact, tmp_path / "a", calibration=calibration)
    with pytest.raises(UsageError, match=r"calibrated on 2 of these 60 images, among them ant/004\.png"):
        evaluate([artifact, quantized], images)
    kept = images.subset([index for index in range(60) if index not in (4, 30)])
    assert evaluate([artifact, quantized], kept).rows[1].accuracy is not None


def test_folders_are_matched_by_name_not_by_order(artifact: Artifact, data: Path, tmp_path: Path) -> None:
    turned = rewritten(artifact, tmp_path / "a", classes=class_table(["Fox", "Ant"], ["fox", "ant"]))
    with pytest.raises(UsageError, match="aren't among the model's: bee, cat"):
        evaluate([turned], ImageSet.open(data))
    with pytest.raises(UsageError, match="different classes"):
        evaluate([artifact, turned], ImageSet.open(data))
    names = list(reversed(NAMES))
    backwards = rewritten(artifact, tmp_path / "b", classes=class_table([name.upper() for name in names], names))
    result = evaluate([backwards], ImageSet.open(data))
    assert result.data is not None and result.data.label[0] == 5 and result.data.classes[5] == "ANT"


def test_a_limit_takes_the_same_pictures_from_an_archive_and_from_shards(
    artifact: Artifact, data: Path, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", data.parent, data.name)
    (tmp_path / "shards").mkdir()
    for start in range(0, 60, 25):
        files = sorted(data.glob("*/*.png"))[start : start + 25]
        members = {path.relative_to(data).as_posix(): path.read_bytes() for path in files}
        members |= {f"{name[:-4]}.cls": name.partition("/")[0].encode() for name in list(members)}
        write_tar(tmp_path / "shards" / f"{start}.tar", members)
    results = [evaluate([artifact], ImageSet.open(each), limit=23) for each in (data, archive, tmp_path / "shards")]
    assert all(each.data and each.rows[0].accuracy for each in results)
    plain, *packed = [(each.data.digest, each.data.label, each.rows[0].accuracy.predicted) for each in results]
    assert len(plain[1]) == 23 and len(set(plain[1])) == 6
    assert packed == [plain, plain]


def test_outputs_that_are_not_finite_are_refused(
    artifact: Artifact, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, images: run(self, images) * np.float32("nan"))
    with pytest.raises(InvalidResultError, match="isn't finite"):
        evaluate([artifact], ImageSet.open(data))


@pytest.mark.parametrize(("activation", "binned", "compared"), [("sigmoid", True, False), ("none", False, False)])
def test_only_probabilities_are_calibrated(
    artifact: Artifact, data: Path, tmp_path: Path, activation: str, binned: bool, compared: bool
) -> None:
    contract = replace(artifact.manifest.preprocessing, activation=activation)
    accuracy = (
        evaluate([rewritten(artifact, tmp_path / "a", preprocessing=contract)], ImageSet.open(data)).rows[0].accuracy
    )
    assert accuracy is not None
    assert (accuracy.calibrated is not None, accuracy.divergence is not None) == (binned, compared)


def test_an_interruption_leaves_whole_columns(
    artifact: Artifact, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = null_artifact(tmp_path / "b", target=replace(TARGET, name="other"))
    run, calls = Session.run, iter(range(10**9))

    def interrupted(self: Session, images: np.ndarray) -> np.ndarray:
        if next(calls) == 90:  # in the second chunk, when the first artifact has answered it and the second hasn't
            raise KeyboardInterrupt
        return run(self, images)

    monkeypatch.setattr(Session, "run", interrupted)
    with pytest.raises(Stopped) as caught:
        evaluate([artifact, other], ImageSet.open(data))
    result = caught.value.result
    assert result.partial and caught.value.exit_code == 130
    assert decode_result(encode_result(result), "result") == result
    assert result.data is not None and len(result.data.names) == 32
    assert [len(row.accuracy.predicted) for row in result.rows if row.accuracy] == [32, 32]


def interrupted(
    artifacts: list[Artifact], images: ImageSet, monkeypatch: pytest.MonkeyPatch, after: int = 40
) -> Result:
    """What's left of an evaluation that is interrupted in its second chunk."""
    run, calls = Session.run, iter(range(10**9))

    def stops(self: Session, images: np.ndarray) -> np.ndarray:
        if next(calls) == after:
            raise KeyboardInterrupt
        return run(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", stops)
        with pytest.raises(Stopped) as caught:
            evaluate(artifacts, images)
    assert caught.value.result.partial
    return decode_result(encode_result(caught.value.result), "result")


def timeless(result: Result) -> Result:
    rows = [replace(row, accuracy=replace(row.accuracy, duration_ns=0)) for row in result.rows if row.accuracy]
    return replace(result, created="", resumed=(), rows=tuple(rows))


def test_an_interrupted_run_goes_on_and_equals_a_whole_one(
    artifact: Artifact, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = null_artifact(tmp_path / "b", batch=4, precision="int8")
    images = ImageSet.open(data)
    left = interrupted([artifact, other], images, monkeypatch, after=42)
    assert left.data is not None and len(left.data.names) == 32
    read: list[int] = []
    original = ImageSet.read
    monkeypatch.setattr(ImageSet, "read", lambda self, index: read.append(index) or original(self, index))
    resumed = evaluate([artifact, other], images, resume=left)
    assert sorted(read) == list(range(32, 60))  # the rest alone
    assert resumed.created == left.created and not resumed.partial and len(resumed.resumed) == 1
    assert timeless(resumed) == timeless(evaluate([artifact, other], images))
    again = evaluate([artifact, other], images, resume=resumed)  # of a whole result nothing is left to do
    assert again == resumed


def test_unreadable_images_are_counted_once_over_an_interruption(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = labelled(tmp_path / "data", each=20)
    (folder / "ant" / "007.png").write_bytes(b"no picture")
    left = interrupted([artifact], ImageSet.open(folder), monkeypatch)
    assert left.data is not None and left.data.skipped == ("ant/007.png",)
    resumed = evaluate([artifact], ImageSet.open(folder), resume=left)
    assert resumed.data is not None and resumed.data.skipped == ("ant/007.png",) and len(resumed.data.names) == 119
    assert timeless(resumed) == timeless(evaluate([artifact], ImageSet.open(folder)))


def test_only_the_same_evaluation_goes_on(
    artifact: Artifact, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageSet.open(data)
    left = interrupted([artifact], images, monkeypatch)
    other = null_artifact(tmp_path / "b", precision="int8")
    with pytest.raises(UsageError, match="other artifacts or options"):
        evaluate([other], images, resume=left)
    with pytest.raises(UsageError, match="other images"):
        evaluate([artifact], images, limit=50, resume=left)
    changed = labelled(tmp_path / "changed", wrong=4)
    with pytest.raises(UsageError, match="other images"):
        evaluate([artifact], ImageSet.open(changed), resume=left)
    with pytest.raises(UsageError, match="other images"):
        evaluate([artifact], images.subset(range(20)), resume=left)
    where = replace(left.environment, memory_mb=1)
    with pytest.raises(UsageError, match="another machine"):
        evaluate([artifact], images, resume=replace(left, environment=where))


def test_what_has_been_evaluated_is_kept_meanwhile(
    artifact: Artifact, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitedge.evaluation.evaluate.KEEP_S", 0.0)
    kept: list[Result] = []
    whole = evaluate([artifact], ImageSet.open(data), keep=kept.append)
    assert [len(result.data.names) for result in kept if result.data] == [32, 60] and all(r.partial for r in kept)
    assert timeless(evaluate([artifact], ImageSet.open(data), resume=kept[0])) == timeless(whole)


def test_chunks_are_whole_batches(
    artifact: Artifact, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = null_artifact(tmp_path / "big", batch=7)
    sizes: list[int] = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, images: sizes.append(len(images)) or run(self, images))
    evaluate([big], ImageSet.open(data))
    assert sizes == [7] * 9  # 60 pictures: only the last batch is padded
