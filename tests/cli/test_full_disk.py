"""A full disk under what a verb writes: exit 5, the disk is named, what was there stays. A full cache costs time."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarking.nulls import labelled, null_artifact
from tests.cli.command import fails, vitedge
from tests.disks import fill, small_disk
from tests.reporting import results
from vitedge.core import cache
from vitedge.formats.result import write_result

FULL = os.strerror(errno.ENOSPC)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", pages=256) as folder:
        yield folder


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return null_artifact(tmp_path_factory.mktemp("artifact") / "null").path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


FLOAT = ("--target", "onnxruntime", "--precision", "fp32")


@pytest.mark.parametrize(
    "command",
    [
        ("import", "MODEL/model.onnx", "--size", "32", "--out", "DISK/model"),
        ("export", "MODEL", *FLOAT, "--out", "DISK/artifact"),
        ("bench", "ARTIFACT", "--duration", "0.1", "--out", "DISK/result.json"),
        ("bench", "ARTIFACT", "--duration", "0.1", "--json", "DISK/result.json"),
        ("eval", "ARTIFACT", "--data", "DATA", "--out", "DISK/result.json"),
        ("compare", "ARTIFACT", "ARTIFACT", "--duration", "0.1", "--out", "DISK/result.json"),
        ("verify", "ARTIFACT", "--json", "DISK/checks.json"),
        ("classify", "ARTIFACT", "DATA", "--json", "DISK/labels.json"),
        ("inspect", "ARTIFACT", "--json", "DISK/artifact.json"),
        ("doctor", "--json", "DISK/doctor.json"),
        ("report", "RESULT", "--out", "DISK/report.html"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else None,
)
def test_a_verb_names_the_disk_and_leaves_nothing(
    command: tuple[str, ...], disk: Path, artifact: Path, small_model: Path, tmp_path: Path
) -> None:
    fill(disk)
    before = content(disk)
    write_result(results.demo(), tmp_path / "result.json")
    places = {"DISK": disk, "ARTIFACT": artifact, "MODEL": small_model, "RESULT": tmp_path / "result.json"}
    if "DATA" in command:
        places["DATA"] = labelled(tmp_path / "pictures")
    words = [_place(word, places) for word in command]
    _, reason, hint = fails(5, *words)
    assert FULL in reason and str(disk) in reason and "free space" in hint
    assert content(disk) == before


def _place(word: str, places: dict[str, Path]) -> str:
    first, slash, rest = word.partition("/")
    return f"{places[first]}{slash}{rest}" if first in places else word


def test_what_would_be_replaced_stays(disk: Path, artifact: Path, small_model: Path) -> None:
    shutil.copytree(artifact, disk / "artifact")
    write_result(results.demo(), disk / "result.json")
    fill(disk)
    before = content(disk)
    fails(5, "export", small_model, *FLOAT, "--out", disk / "artifact", "--overwrite")
    fails(5, "bench", artifact, "--duration", "0.1", "--out", disk / "result.json", "--overwrite")
    assert content(disk) == before


def test_a_full_cache_costs_time_alone_and_is_said_once(
    disk: Path, small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITEDGE_CACHE", str(disk / "cache"))
    monkeypatch.setattr(cache, "_reasons", set())
    fill(disk)
    arguments = ["--target", "onnxruntime", "--precision", "int8", "--data", small_data, "--num-samples", 16]
    outs = [tmp_path / "first", tmp_path / "second"]
    done = [vitedge("export", small_model, *arguments, "--out", out) for out in outs]
    assert [each.code for each in done] == [0, 0], done[0].err
    said = [each.err.count(f"the cache {disk}/cache can't be written: {FULL}") for each in done]
    assert said == [1, 0] and "VITEDGE_CACHE" in done[0].err
    graphs = [(out / "model.onnx").read_bytes() for out in outs]
    assert graphs[0] == graphs[1] and [path for path in disk.rglob("*") if path.is_file()] == [disk / "fill"]
