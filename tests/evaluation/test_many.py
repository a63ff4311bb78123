"""Many pictures by an engine: one evaluation's result, whatever was stopped, damaged or changed in between."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.benchmarking.nulls import NAMES, coloured, labelled, null_artifact, rewritten
from tests.cli.command import fails, vitedge
from tests.data.test_addresses import parquet
from tests.data.test_shards import write_tar
from vitedge import api
from vitedge.data.addresses import Shard
from vitedge.data.images import ImageSet
from vitedge.errors import ArtifactError, ImageError, ResourceError, UsageError
from vitedge.evaluation import many
from vitedge.evaluation.classify import classify
from vitedge.evaluation.evaluate import evaluate
from vitedge.evaluation.options import EngineOptions
from vitedge.evaluation.worker import Job, Worker
from vitedge.formats.answers import read_answers
from vitedge.formats.artifact import Artifact, Calibration
from vitedge.formats.result import Result, Stopped, decode_result, encode_result, read_result
from vitedge.runtimes.options import OpenOptions
from vitedge.runtimes.session import open_session

pytest.importorskip("pyarrow", reason="the extra ray isn't installed")
pytest.importorskip("fsspec", reason="the extra ray isn't installed")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    return [null_artifact(folder / "a"), null_artifact(folder / "b", batch=4, precision="int8")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures, one of which can't be read."""
    folder = labelled(tmp_path_factory.mktemp("data") / "pictures", wrong=3, each=20)
    (folder / "cat" / "007.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engine is one worker in this process, last shard first; names of the shards that it was given."""
    given: list[str] = []

    def run(job: Job, shards: Mapping[str, Shard], options: EngineOptions) -> Iterator[tuple[str, bytes]]:
        with contextlib.closing(Worker(job)) as worker:
            for file, shard in reversed(shards.items()):
                given.append(shard.name)
                yield file, worker.answer(shard)

    monkeypatch.setitem(many.ENGINES, "ray", run)
    return given


def engine(folder: Path, **options: Any) -> EngineOptions:
    return EngineOptions(engine="ray", answers=str(folder / "answers"), shard_pictures=25, **options)


def tars(folder: Path, data: Path) -> Path:
    """The pictures of a data folder in five tar shards, whose order isn't the pictures'."""
    folder.mkdir()
    files = sorted(data.glob("*/*.png"))
    for number in range(5):
        members = {path.relative_to(data).as_posix(): path.read_bytes() for path in files[number::5]}
        members |= {f"{name[:-4]}.cls": name.partition("/")[0].encode() for name in list(members)}
        write_tar(folder / f"{number}.tar", members)
    return folder


def parquets(folder: Path, data: Path) -> Path:
    files = sorted(data.glob("*/*.png"))
    for number in range(5):
        some = files[number::5]
        pictures = [{"bytes": path.read_bytes(), "path": path.relative_to(data).as_posix()} for path in some]
        labels = [NAMES.index(path.parent.name) for path in some]
        parquet(folder / f"{number}.parquet", pictures, labels, NAMES)
    return folder


def columns(result: Result) -> Any:
    """All that doesn't depend on time, or on what the files are called."""
    assert result.data is not None
    rows = []
    for row in result.rows:
        assert row.accuracy is not None and row.accuracy.calibrated is not None and row.accuracy.divergence is not None
        calibrated = row.accuracy.calibrated.count, row.accuracy.calibrated.correct, row.accuracy.divergence
        rows.append((row.subject, row.accuracy.predicted, row.accuracy.rank, calibrated))
    return result.data.digest, result.data.label, result.data.classes, len(result.data.skipped), rows


@pytest.mark.parametrize("pack", [None, tars, parquets])
@pytest.mark.parametrize("address", [False, True])
def test_one_evaluation_and_an_engine_tell_the_same(
    artifacts: list[Artifact],
    data: Path,
    tmp_path: Path,
    answered: list[str],
    pack: Callable[[Path, Path], Path] | None,
    address: bool,
) -> None:
    source = data if pack is None else pack(tmp_path / "shards", data)
    result = many.evaluate_shards(artifacts, source.as_uri() if address else str(source), engine(tmp_path))
    expected = evaluate(artifacts, ImageSet.open(data))
    assert columns(result) == columns(expected) and len(answered) == 5
    assert decode_result(encode_result(result), "result") == result
    assert result.data is not None and result.data.source == source.name
    if pack is None:
        assert result.data == expected.data
    if pack is tars:
        assert result.data == evaluate(artifacts, ImageSet.open(source)).data


def test_a_quantized_network_gives_the_same_answers(
    small_model: Path, small_data: Path, tmp_path: Path, answered: list[str]
) -> None:
    """On ONNX Runtime, in batches of which a shard's last isn't whole, whatever the number of threads."""
    artifact = api.export(
        small_model, "onnxruntime", "int8", tmp_path / "a", data=small_data, num_samples=8, batch=4, recipe="fast"
    )
    used = set(artifact.manifest.calibration.image_digests) if artifact.manifest.calibration else set()
    images = ImageSet.open(small_data)
    kept = [index for index in range(len(images)) if images.digest(index)[:16] not in used]
    for index in kept:
        (tmp_path / "data" / images.records[index].name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / images.records[index].name).write_bytes(images.read_bytes(index))
    result = many.evaluate_shards([artifact], str(tmp_path / "data"), replace(engine(tmp_path), shard_pictures=7))
    expected = evaluate([artifact], ImageSet.open(tmp_path / "data"), OpenOptions(threads=2))
    (ours,), (theirs,) = result.rows, expected.rows
    assert ours.accuracy is not None and theirs.accuracy is not None and len(answered) > 4
    assert (result.data, ours.accuracy.predicted, ours.accuracy.rank) == (
        expected.data,
        theirs.accuracy.predicted,
        theirs.accuracy.rank,
    )
    assert ours.accuracy.divergence == theirs.accuracy.divergence  # nothing, of itself
    assert len(set(ours.accuracy.predicted)) > 1


def test_the_files_are_readable_by_others(
    artifacts: list[Artifact], data: Path, tmp_path: Path, answered: list[str]
) -> None:
    import pyarrow.parquet

    many.evaluate_shards(artifacts, str(data), engine(tmp_path))
    table = pyarrow.parquet.read_table(tmp_path / "answers").to_pylist()  # the folder as one table
    assert len(table) == 120
    (bad,) = [row for row in table if row["predicted_1"] is None]
    assert (bad["picture"], bad["class"], bad["rank_2"]) == ("cat/007.png", "cat", None)
    good = next(row for row in table if row["picture"] == "bee/004.png")
    assert (good["label"], good["predicted_1"], good["answer_1"], good["rank_1"]) == (1, 1, "bee", 0)
    assert good["sha256"] == ImageSet.open(data).digest(24)


def test_a_stopped_run_goes_on_with_what_is_missing(
    artifacts: list[Artifact], data: Path, tmp_path: Path, answered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Worker.answer

    def stops(self: Worker, shard: Shard) -> bytes:
        if len(answered) == 3:
            raise KeyboardInterrupt
        return original(self, shard)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "answer", stops)
        with pytest.raises(Stopped, match="--resume") as caught:
            many.evaluate_shards(artifacts, str(data), engine(tmp_path))
    partial = caught.value.result
    assert partial.partial and partial.data is not None
    assert len(partial.data.names) + len(partial.data.skipped) == 45  # the last two shards
    kept = {path: path.read_bytes() for path in (tmp_path / "answers").iterdir()}
    assert len(kept) == 2
    with pytest.raises(UsageError, match="holds answers already"):
        many.evaluate_shards(artifacts, str(data), engine(tmp_path))
    answered.clear()
    result = many.evaluate_shards(artifacts, str(data), engine(tmp_path), resume=True)
    assert len(answered) == 3 and columns(result) == columns(evaluate(artifacts, ImageSet.open(data)))
    assert all(path.read_bytes() == content for path, content in kept.items())
    again = many.evaluate_shards(artifacts, str(data), engine(tmp_path), resume=True)
    assert len(answered) == 3 and columns(again) == columns(result)  # nothing was left to do


def test_a_changed_shard_and_other_questions_are_not_taken_for_answered(
    artifacts: list[Artifact], data: Path, tmp_path: Path, answered: list[str]
) -> None:
    folder = tars(tmp_path / "shards", data)
    many.evaluate_shards(artifacts, str(folder), engine(tmp_path))
    before = {path: path.read_bytes() for path in (tmp_path / "answers").iterdir()}
    for change in (
        lambda: many.evaluate_shards(artifacts[:1], str(folder), engine(tmp_path), resume=True),
        lambda: many.evaluate_shards(artifacts, str(folder), engine(tmp_path, actor_cpus=2), resume=True),
        lambda: many.classify_shards(artifacts[0], [str(folder)], engine(tmp_path), resume=True),
        lambda: many.evaluate_shards(artifacts, str(folder / "{0..3}.tar"), engine(tmp_path), resume=True),
    ):
        with pytest.raises(UsageError, match="answers of other artifacts, options or pictures"):
            change()
    assert {path: path.read_bytes() for path in (tmp_path / "answers").iterdir()} == before
    (folder / "3.tar").write_bytes((folder / "3.tar").read_bytes() + bytes(512))
    with pytest.raises(UsageError, match=r"of other artifacts, options or pictures: 3\.tar"):
        many.evaluate_shards(artifacts, str(folder), engine(tmp_path), resume=True)
    answered.clear()
    many.evaluate_shards(artifacts, str(folder), engine(tmp_path), overwrite=True)
    assert len(answered) == 5
    (tmp_path / "answers" / "mine.txt").write_text("")
    with pytest.raises(UsageError, match=r"something else than answers: mine\.txt"):
        many.evaluate_shards(artifacts, str(folder), engine(tmp_path), overwrite=True)
    assert len(list((tmp_path / "answers").iterdir())) == 6


def test_answers_are_replaced_when_the_engine_works(
    artifacts: list[Artifact], data: Path, tmp_path: Path, answered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    many.evaluate_shards(artifacts, str(data), engine(tmp_path))
    before = {path.name: path.read_bytes() for path in (tmp_path / "answers").iterdir()}

    def fails(job: Job, shards: Mapping[str, Shard], options: EngineOptions) -> Iterator[tuple[str, bytes]]:
        raise ResourceError("evaluate", "no cluster", "start one")
        yield

    with monkeypatch.context() as patch:
        patch.setitem(many.ENGINES, "ray", fails)
        with pytest.raises(ResourceError, match="no cluster"):
            many.classify_shards(artifacts[0], [str(data)], engine(tmp_path), overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "answers").iterdir()} == before
    many.classify_shards(artifacts[0], [str(data)], engine(tmp_path), overwrite=True)
    assert not before.keys() & {path.name for path in (tmp_path / "answers").iterdir()}


def test_files_of_one_name_are_all_classified(artifacts: list[Artifact], tmp_path: Path, answered: list[str]) -> None:
    sources = [tmp_path / name / "x.tar" for name in ("a", "b")]
    for source in sources:
        source.parent.mkdir()
        os.utime(write_tar(source, {"1.png": coloured(1)}), (0, 0))
    told = many.classify_shards(artifacts[0], list(map(str, sources)), engine(tmp_path))
    assert (told.shards, told.pictures) == (2, 2)


def test_new_shards_are_added_to_answered_ones(
    artifacts: list[Artifact], data: Path, tmp_path: Path, answered: list[str]
) -> None:
    folder = tars(tmp_path / "shards", data)
    many.evaluate_shards(artifacts, str(folder / "{3..4}.tar"), engine(tmp_path))
    answered.clear()
    result = many.evaluate_shards(artifacts, str(folder), engine(tmp_path), resume=True)
    assert sorted(answered) == ["0.tar", "1.tar", "2.tar"]
    assert columns(result) == columns(evaluate(artifacts, ImageSet.open(data)))


def test_a_damaged_file_of_answers_is_named(
    artifacts: list[Artifact], data: Path, tmp_path: Path, answered: list[str]
) -> None:
    options = engine(tmp_path)
    expected = columns(many.evaluate_shards(artifacts, str(data), options))
    path = max((tmp_path / "answers").iterdir())
    content, refused = path.read_bytes(), list[ArtifactError]()
    for place in range(5, len(content), len(content) // 20):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:  # what a reader of Parquet doesn't use may be damaged
            assert columns(many.evaluate_shards(artifacts, str(data), options, resume=True)) == expected
        except ArtifactError as error:
            refused.append(error)
    assert len(refused) > 10 and all(path.name in each.action and "--resume" in each.hint for each in refused)


def test_workers_that_differ_are_refused(
    artifacts: list[Artifact], data: Path, tmp_path: Path, answered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitedge.evaluation import worker

    original, seen = worker._header, list[int]()

    def header(*given: Any) -> Any:
        seen.append(1)
        made = original(*given)
        versions = {**made.worker.versions, "numpy": f"2.{len(seen)}"}
        return replace(made, worker=replace(made.worker, versions=versions))

    monkeypatch.setattr(worker, "_header", header)
    with pytest.raises(UsageError, match=r"workers differ.*2\.1.*2\.2"):
        many.evaluate_shards(artifacts, str(data), engine(tmp_path))


def test_unreadable_and_calibration_pictures_are_refused(
    artifacts: list[Artifact], data: Path, tmp_path: Path, answered: list[str]
) -> None:
    folder = labelled(tmp_path / "data", each=20)
    for number in (1, 2):
        (folder / "dog" / f"{number:03}.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"more than 1 %.*dog/001\.png, dog/002\.png"):
        many.evaluate_shards(artifacts, str(folder), engine(tmp_path))
    known = (ImageSet.open(data).digest(30)[:16],)
    calibration = Calibration(source="elsewhere", count=1, digest="0" * 64, image_digests=known)
    quantized = rewritten(artifacts[0], tmp_path / "q", calibration=calibration)
    with pytest.raises(UsageError, match=r"calibrated on 1 of these 25 images, among them bee/010\.png"):
        many.evaluate_shards([quantized], str(data), engine(tmp_path / "other"))


def test_classification(artifacts: list[Artifact], data: Path, tmp_path: Path, answered: list[str]) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "x.png").write_bytes(coloured(4))
    sources = [str(data), str(tmp_path / "alone")]
    told = many.classify_shards(artifacts[1], sources, engine(tmp_path), top_k=2)
    assert (told.pictures, told.unreadable, told.examples, told.shards) == (121, 1, ("cat/007.png",), 6)
    rows: dict[str, Any] = {}
    for path in (tmp_path / "answers").iterdir():
        _, table = read_answers(path, path.name)
        rows |= {picture: row for picture, *row in zip(*table.values(), strict=True)}
    with open_session(artifacts[1]) as session:
        for source in sources:
            for each in classify(session, ImageSet.open(source), 2):
                labels, probabilities, problem = rows.pop(each.picture)
                assert labels == [answer.label for answer in each.answers] and problem == each.problem
                assert probabilities == pytest.approx([answer.probability for answer in each.answers])
    assert not rows


def test_the_command_line(artifacts: list[Artifact], data: Path, tmp_path: Path, answered: list[str]) -> None:
    out, answers = tmp_path / "r.json", tmp_path / "answers"
    options = ("--engine", "ray", "--answers", answers, "--shard-pictures", 25)
    paths = [artifact.path for artifact in artifacts]
    done = vitedge("eval", *paths, "--data", data, *options, "--out", out)
    assert done.code == 0, done.err
    plain = vitedge("eval", *paths, "--data", data)
    assert done.out == plain.out and len(answered) == 5
    assert fails(2, "eval", *paths, "--data", data, *options)[2].startswith("continue with --resume")
    done = vitedge("eval", *paths, "--data", data, *options, "--out", out, "--resume")
    assert done.code == 0 and len(answered) == 5 and not read_result(out).partial, done.err
    done = vitedge("classify", paths[0], data, *options, "--overwrite", "--json", tmp_path / "c.json")
    assert done.code == 3 and "1 can't be read: cat/007.png" in done.error[1]
    assert json.loads((tmp_path / "c.json").read_text())["pictures"] == 120


def test_options_that_nothing_follows_are_refused(artifacts: list[Artifact], data: Path, tmp_path: Path) -> None:
    path, answers = artifacts[0].path, ("--answers", tmp_path / "answers")
    assert "--answers is an option of an engine" in fails(2, "eval", path, "--data", data, *answers)[1]
    assert "--ray-address is an option" in fails(2, "classify", path, data, "--ray-address", "auto")[1]
    assert "--resume is about the answers" in fails(2, "classify", path, data, "--resume")[1]
    assert "doesn't follow --limit" in fails(2, "eval", path, "--engine", "ray", *answers, "--limit", 3)[1]
    assert fails(2, "eval", path, "--data", data, "--engine", "ray")[2] == "add: --answers FOLDER"
    assert "--data" in fails(2, "eval", path, "--engine", "ray", *answers)[2]
    assert not (tmp_path / "answers").exists()
