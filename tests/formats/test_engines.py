"""Folders of engines: one for each key, and nothing that isn't what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from vitedge.formats.engines import EngineMetadata, add, folder_key, index, merge, sound

ORIN = EngineMetadata(
    package="tensorrt",
    version="10.3.0",
    sm="8.7",
    graph="a" * 64,
    options={"tf32": False},
    gpu="Orin",
    driver="12.6",
    jetpack="6.2",
)


def folder_of(place: Path, plan: bytes, metadata: EngineMetadata = ORIN) -> Path:
    """A folder with one engine, and a timing cache."""
    add(place, "tiny", plan, metadata, "test")
    (place / f"tensorrt-{metadata.version}.cache").write_bytes(plan[::-1])
    return place


@pytest.mark.parametrize(
    ("field", "other"),
    [("version", "10.7.0"), ("gpu", "Thor"), ("driver", "12.8"), ("jetpack", "6.1"), ("options", {"tf32": True})],
)
def test_each_key_keeps_its_engine(tmp_path: Path, field: str, other: object) -> None:
    foreign = replace(ORIN, **{field: other})
    into = folder_of(tmp_path / "into", b"one")
    (came,) = merge(folder_of(tmp_path / "other", b"two", foreign), into, {"a" * 64}, "test")
    assert came.file and folder_key(came) == folder_key(foreign)
    assert {folder_key(one): plan for one, plan in sound(into)} == {
        folder_key(ORIN): b"one",
        folder_key(foreign): b"two",
    }
    assert (into / f"tensorrt-{foreign.version}.cache").read_bytes() == b"owt"
    assert merge(tmp_path / "other", into, {"a" * 64}, "test") == [], "it's there"


def test_a_newer_engine_for_the_same_device_replaces_the_one_before(tmp_path: Path) -> None:
    into = folder_of(tmp_path / "into", b"one")
    merge(folder_of(tmp_path / "again", b"two"), into, {"a" * 64}, "test")
    assert [plan for _, plan in sound(into)] == [b"two"]
    assert len(list(into.glob("*.plan"))) == 1


@pytest.mark.parametrize("damage", ["plan", "graph", "no index"])
def test_what_isnt_sound_or_isnt_wanted_stays_behind(tmp_path: Path, damage: str) -> None:
    source, wanted = folder_of(tmp_path / "source", b"one"), "a" * 64
    if damage == "plan":
        (source / index(source).engines[0].file).write_bytes(b"two")
    elif damage == "graph":
        wanted = "b" * 64
    else:
        (source / "engines.json").write_text("{")
    assert merge(source, tmp_path / "into", {wanted}, "test") == []
    assert not (tmp_path / "into").exists()
