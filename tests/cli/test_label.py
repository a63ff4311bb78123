"""Models whose classes have no names: every table says so, and the command that is named gives them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.cli.command import fails, vitedge
from tests.reporting import results
from vitedge.formats.model_folder import MODEL_ONNX, Model, numbered_classes, write_model
from vitedge.reporting.rows import lines


@pytest.fixture(scope="module")
def unnamed(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Model.open(small_model)
    record = replace(model.record, classes=numbered_classes(5))
    folder = tmp_path_factory.mktemp("unnamed") / "model"
    return write_model(folder, record, {MODEL_ONNX: model.onnx_path.read_bytes()}).path


def test_every_table_names_the_command_that_gives_names(unnamed: Path, small_data: Path, tmp_path: Path) -> None:
    artifact, picture = tmp_path / "artifact", small_data / "ant" / "0.png"
    export = ("export", unnamed, "-t", "onnxruntime", "-p", "fp32", "--out", artifact)
    assert vitedge(*export).code == 0
    for arguments in (("classify", artifact, picture), ("inspect", artifact), ("inspect", unnamed)):
        assert "vitedge label MODEL --labels FOLDER|FILE, then export again" in vitedge(*arguments).out
    streamed = vitedge("stream", artifact, small_data / "ant", "--headless")
    assert streamed.code == 0 and "the classes have no names; run: vitedge label MODEL" in streamed.err
    quiet = vitedge("stream", artifact, small_data / "ant", "--headless", "--quiet")
    assert quiet.code == 0 and "no names" not in quiet.err

    _, reason, hint = fails(2, "eval", artifact, "--data", small_data)
    assert reason.startswith("the model's classes have no names")
    command = re.search(r"run: vitedge (.*), then export again", hint)
    assert command is not None
    done = vitedge(*shlex.split(command[1].replace("MODEL", str(unnamed))))
    assert done.code == 0, done.err
    assert "ant, bee, cat, dog, eel" in done.out
    assert vitedge(*export, "--overwrite").code == 0
    assert vitedge("eval", artifact, "--data", small_data).code == 0
    assert "no names" not in vitedge("classify", artifact, picture).out


def test_a_result_whose_classes_have_no_names(tmp_path: Path) -> None:
    result = results.demo()
    assert result.data is not None
    numbers = tuple(each.name for each in numbered_classes(len(result.data.classes)))
    unnamed = replace(result, data=replace(result.data, classes=numbers))
    notes = [note for line in lines([unnamed]) for note in line.notes]
    assert any("the classes have no names; run: vitedge label MODEL" in note for note in notes)
    assert not any("no names" in note for line in lines([result]) for note in line.notes)


def test_labels_that_do_not_fit(unnamed: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    before = (unnamed / "model.json").read_bytes()
    assert "names.txt has 2 class names" in fails(3, "label", unnamed, "--labels", tmp_path / "names.txt")[1]
    assert "don't exist" in fails(2, "label", unnamed, "--labels", tmp_path / "none.txt")[1]
    assert "no such folder" in fails(2, "label", tmp_path / "none", "--labels", tmp_path / "names.txt")[1]
    assert (unnamed / "model.json").read_bytes() == before


def test_as_json(unnamed: Path, tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(json.dumps({"id2label": dict(enumerate("abcde"))}))
    done = vitedge("label", unnamed, "--labels", tmp_path / "names.json", "--json", "-")
    (row,) = json.loads(done.out)
    assert row["class_names"] == "a, b, c, d, e" and row["model"] == str(unnamed)
