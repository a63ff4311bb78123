"""``model.json``, ``result.json`` and clips carry digests of themselves: one changed byte is told."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.reporting.results import demo
from vitedge.core.schema import encode_json, seal
from vitedge.errors import ArtifactError, ModelError
from vitedge.formats.clip import Clip, ClipHeader, ClipWriter
from vitedge.formats.model_folder import Model
from vitedge.formats.result import decode_result, encode_result

EDITED = "remove its key 'record_digest'"


def test_an_altered_model_is_refused(small_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model, model)
    text = (model / "model.json").read_text()
    name = json.loads(text)["classes"][0]["name"]
    for old, new in [
        (f'"{name}"', f'"{name[:-1]}~"'),
        ("0.485", "0.585"),
        ('"record_digest": "', '"record_digest": "0'),
    ]:
        assert old in text
        (model / "model.json").write_text(text.replace(old, new, 1))
        with pytest.raises(ModelError, match=r"model.json isn't what was written") as refusal:
            Model.open(model)
        assert EDITED in refusal.value.hint


def test_an_edited_model_opens_when_its_digest_is_removed(small_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model, model)
    fields = json.loads((model / "model.json").read_text())
    del fields["record_digest"]
    fields["name"] = "mine"
    (model / "model.json").write_text(json.dumps(fields))
    assert Model.open(model).record.name == "mine"


def test_the_layout_of_a_record_is_not_its_content(small_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model, model)
    fields = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(dict(reversed(fields.items())), separators=(" ,", " : ")))
    assert Model.open(model).digest == Model.open(small_model).digest


def test_the_version_of_the_file_is_not_in_the_digest_of_a_model(small_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model, model)
    fields = json.loads((model / "model.json").read_text())
    del fields["record_digest"]
    (model / "model.json").write_text(json.dumps({**fields, "schema_version": 1}))
    assert Model.open(model).record.schema_version == 1
    assert Model.open(model).digest == Model.open(small_model).digest


def test_an_altered_result_is_refused() -> None:
    data = encode_result(demo())
    assert decode_result(data, "r.json") == demo()
    place = data.index(b'"latency_ns": [') + len(b'"latency_ns": [')
    altered = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    with pytest.raises(ArtifactError, match="isn't what was written"):
        decode_result(altered, "r.json")


def test_keys_of_a_record_are_checked_behind_a_right_digest() -> None:
    data = seal(b'{"schema_version": 2, "unheard": 3}')
    with pytest.raises(ArtifactError, match="unknown key 'unheard'"):
        decode_result(data, "r.json")


HEADER = ClipHeader(source="test", size=(3, 5), artifact="a")


def clip(path: Path, frames: int = 3) -> bytes:
    writer = ClipWriter(path, HEADER)
    for number in range(frames):
        image = np.full((3, 5, 3), number, np.uint8)
        writer.append(image, sequence=number, arrival_ns=1000 + number, presentation_s=number / 10)
    writer.close()
    return path.read_bytes()


def test_every_altered_byte_of_a_clip_is_told(tmp_path: Path) -> None:
    whole = clip(tmp_path / "a.clip")
    for place in range(len(whole)):
        (tmp_path / "a.clip").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ArtifactError):
            list(Clip(tmp_path / "a.clip"))


def test_a_clip_that_was_cut_says_so(tmp_path: Path) -> None:
    boundaries = [len(clip(tmp_path / f"{frames}.clip", frames)) for frames in (0, 1, 2)]
    whole = clip(tmp_path / "a.clip")
    for end in range(boundaries[0], len(whole)):
        (tmp_path / "a.clip").write_bytes(whole[:end])
        cut = Clip(tmp_path / "a.clip")
        assert len(cut) == sum(end >= boundary for boundary in boundaries) - 1
        assert cut.truncated == (end not in boundaries)  # between two frames nothing tells that there were more


def test_a_clip_of_version_0_1_0_opens_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "old.clip"
    header = b'{"schema_version":1,"vitedge_version":"0.1.0","source":"test","size":[3,5],"artifact":"a"}'
    data = zlib.compress(bytes(45), 1)
    head = struct.pack("<4sqqqII", b"FRAM", 0, 1000, 0, len(data), zlib.crc32(data))
    path.write_bytes(b"vitedge clip\n" + header + b"\n" + head + data)
    assert Clip(path)[0].max() == 0
    clip(path)
    assert [int(frame[0, 0, 0]) for frame in Clip(path)] == [0, 0, 1, 2] and not Clip(path).truncated


def test_the_text_that_is_sealed_is_what_is_written() -> None:
    text = encode_json({"a": 1.5, "b": ["x"]})
    sealed = json.loads(seal(text))
    assert sealed.pop("record_digest") and sealed == json.loads(text)
