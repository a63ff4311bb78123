"""Names of classes: what they are read from, what is refused, and models whose classes are named later."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.importing.test_import import timm_folder
from vitedge.core.files import sha256_file
from vitedge.data.images import ImageSet
from vitedge.errors import ModelError, UsageError
from vitedge.formats.model_folder import Model, nameless, numbered_classes, replace_record
from vitedge.importing.entry import import_model, summary
from vitedge.importing.labels import imagenet_1k, label, open_to_label, read_labels

NAMES = ["ant", "bee", "cat"]


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("plain.txt", "ant\nbee\ncat\n\n"),
        ("windows.txt", "ant\r\nbee\r\ncat\r\n"),
        ("numbered.txt", "0 ant\n1 bee\n2 cat"),
        ("unordered.txt", "2 cat\n0 ant\n1 bee\n"),
        ("colons.txt", "0: ant\n1: bee\n2: cat\n"),
        ("tabs.txt", "0\tant\n1\tbee\n2\tcat\n"),
        ("list.json", NAMES),
        ("table.json", {"0": "ant", "2": "cat", "1": "bee"}),
        ("config.json", {"architectures": ["X"], "id2label": {"1": "bee", "0": "ant", "2": "cat"}, "label2id": {}}),
    ],
)
def test_every_form_of_a_file(file: str, content: object, tmp_path: Path) -> None:
    table = read_labels(written(tmp_path / file, content), 3, "test")
    assert [(each.id, each.folder, each.name) for each in table] == [(i, name, name) for i, name in enumerate(NAMES)]


def test_names_that_begin_with_numbers_stay_names(tmp_path: Path) -> None:
    names = ["50 euro", "100 euro", "200 euro"]
    assert [each.name for each in read_labels(written(tmp_path / "a.txt", "\n".join(names)), 3, "test")] == names


def test_a_folder_is_read_in_the_order_of_data_sets(small_data: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "pictures"), "zip", small_data)
    for source in (small_data, archive):
        table = read_labels(source, 5, "test")
        assert tuple(each.name for each in table) == ImageSet.open(small_data).classes


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("a.txt", "ant\nbee\n", "a.txt has 2 class names; the model has 3 classes"),
        ("a.txt", "ant\nbee\nant\n", "a.txt has class names twice: 'ant' for classes 0 and 2"),
        ("a.txt", "ant\n\ncat\n", "a.txt gives class 1 an empty name"),
        ("a.txt", "\nbee\ncat\n", "a.txt gives class 0 an empty name"),
        ("a.txt", "1 ant\n2 bee\n3 cat\n", "a.txt numbers the classes from 1"),
        ("a.txt", "n1\tant\nn1\tbee\nn2\tcat\n", "a.txt has class folders twice: 'n1' for classes 0 and 1"),
        ("a.json", ["ant", " ", "cat"], "a.json gives class 1 an empty name"),
        ("a.json", {"0": "ant", "1": "bee", "3": "cat"}, "the ids in a.json aren't 0, 1, 2"),
        ("a.json", {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "the id2label of a.json names no classes"),
        ("a.json", {"model_type": "vit"}, "the id2label of a.json names no classes"),
        ("a.json", {"names": "ant"}, "a.json can't be read"),
    ],
)
def test_labels_that_are_refused(file: str, content: object, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=text):
        read_labels(written(tmp_path / file, content), 3, "test")


def test_a_list_and_a_folder_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the list has class names twice: 'crane' for classes 0 and 2"):
        read_labels(["crane", "bird", "crane"], 3, "test")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "1.png").write_bytes(b"")
    with pytest.raises(UsageError, match="flat has no class folders"):
        read_labels(tmp_path / "flat", 1, "test")


def test_imagenet_s_two_cranes() -> None:
    """Lists of its thousand names have one twice; its folders tell them apart."""
    names = [each.name.split(",")[0] for each in imagenet_1k()]
    assert len(set(names)) < 1000
    assert [each.folder for each in read_labels(names, 1000, "test")] == [each.folder for each in imagenet_1k()]


@pytest.mark.parametrize("options", [{"label_names": ["a", "b"]}, {"label_names": [*"abcdef", ""]}])
def test_labels_that_are_given_come_before_the_source_s(options: dict[str, Any], tmp_path: Path) -> None:
    """What the source calls its classes is refused, and what the refusal advises helps."""
    folder = timm_folder(tmp_path / "timm", **options)
    with pytest.raises(ModelError, match="label_names has") as refusal:
        import_model(folder, tmp_path / "model")
    assert "--labels" in refusal.value.hint
    model = import_model(folder, tmp_path / "model", labels=list("abcdefg"))
    assert [each.name for each in model.record.classes] == list("abcdefg")


def test_empty_names_of_a_source(tmp_path: Path) -> None:
    names = {"label_names": [*"abcdefg"], "label_descriptions": {"c": "  "}}
    with pytest.raises(ModelError, match="the source gives class 2 an empty name"):
        import_model(timm_folder(tmp_path / "timm", **names), tmp_path / "model")


# --- named later ----------------------------------------------------------------------------------------------------


@pytest.fixture
def unnamed(tmp_path: Path) -> Model:
    return import_model(timm_folder(tmp_path / "timm"), tmp_path / "unnamed")


def test_a_model_without_names_says_so(unnamed: Model) -> None:
    assert nameless(each.name for each in unnamed.record.classes)
    row = summary(unnamed)
    assert row["class_names"] == f"none; to give them, run: vitedge label {unnamed.path} --labels FOLDER|FILE"


def test_naming_changes_the_names_alone(unnamed: Model) -> None:
    before = {path.name: sha256_file(path) for path in unnamed.path.iterdir()}
    model = label(unnamed, list("abcdefg"))
    after = {path.name: sha256_file(path) for path in model.path.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {
        "model.json"
    } and after.keys() == before.keys()
    assert model.record == replace(unnamed.record, classes=model.record.classes)
    assert Model.open(model.path).digest == model.digest != unnamed.digest
    assert summary(model)["class_names"] == "a, b, c, d, e, …"
    assert [each.folder for each in model.record.classes] == list("abcdefg")
    data = (model.path / "model.json").read_bytes()
    changed = re.sub(rb'("name": ?)"a"', rb'\1"z"', data)
    assert changed != data
    (model.path / "model.json").write_bytes(changed)
    with pytest.raises(ModelError):
        Model.open(model.path)


def test_what_is_refused_leaves_the_model_as_it_was(unnamed: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the list has 2 class names; the model has 7 classes"):
        label(unnamed, ["a", "b"])
    assert Model.open(unnamed.path).digest == unnamed.digest
    (unnamed.path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="it's an artifact, which never changes") as refusal:
        open_to_label(unnamed.path)
    assert "then export again" in refusal.value.hint
    with pytest.raises(UsageError, match="no such folder"):
        open_to_label(tmp_path / "nothing")


def test_folders_that_training_saw_stay(unnamed: Model, tmp_path: Path) -> None:
    """A list of names for people doesn't rename the folders of data sets; a table of both does."""
    folders = [f"n0{index}" for index in range(7)]
    trained = replace(
        unnamed.record,
        training={"epochs": 1},
        classes=tuple(replace(each, folder=f, name=f) for each, f in zip(numbered_classes(7), folders, strict=True)),
    )
    model = label(replace_record(unnamed, trained, "test"), list("abcdefg"))
    assert [(each.folder, each.name) for each in model.record.classes] == list(zip(folders, "abcdefg", strict=True))
    table = written(tmp_path / "table.txt", "".join(f"m{index}\tname {index}\n" for index in range(7)))
    assert label(model, table).record.classes[6].folder == "m6"
