"""Structured files: what is wrong is named with its place and the nearest right word; nothing unknown passes."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitedge.core import paths
from vitedge.core.schema import Record, _explain, decode_json, encode_json, load_toml
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ArtifactError, InputError, ModelError, UsageError, printable
from vitedge.formats.budget import Budget
from vitedge.formats.recipe import Recipe, load_recipe
from vitedge.formats.target import Target, load_target
from vitedge.installation import upgrade_hint

TARGET = (paths.shipped_folder("targets") / "intel-cpu.toml").read_text()
RECIPE = (paths.shipped_folder("calibration") / "default.toml").read_text()


class Inner(Record):
    number: int
    ratio: float = 0.5


class Outer(Record):
    SCHEMA_VERSION: ClassVar[int] = 3
    schema_version: int = 3
    vitedge_version: str = "9.9"
    name: str
    inner: Inner
    more: dict[str, int] = msgspec.field(default_factory=dict)


OUTER = Outer(name="x", inner=Inner(number=1))


def refused(text: str, tmp_path: Path, kind: type = Target) -> UsageError:
    (tmp_path / "file.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        load_toml(tmp_path / "file.toml", kind, "target 'file'")
    assert raised.value.exit_code == 2 and "file.toml" in raised.value.reason
    return raised.value


def line_of(words: str) -> int:
    return next(number for number, line in enumerate(TARGET.splitlines(), 1) if line.startswith(words))


def test_records_are_immutable_keyword_only_and_closed() -> None:
    with pytest.raises(TypeError):
        Inner(1)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        OUTER.inner.number = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Inner(number=1, weight=2)  # type: ignore[call-arg]
    assert hash(Inner(number=1)) == hash(Inner(number=1))


# --- TOML ------------------------------------------------------------------------------------------------------------


def test_unknown_key_is_named_with_line_and_nearest(tmp_path: Path) -> None:
    error = refused(TARGET.replace("batch = ", "batsch = "), tmp_path)
    assert f"unknown key 'batsch' (line {line_of('batch')}); the nearest is 'batch'" in error.reason


def test_unknown_key_in_a_table_is_named_with_its_table(tmp_path: Path) -> None:
    error = refused(TARGET.replace("warmup_s", "warm_up_s"), tmp_path)
    assert "unknown key 'warm_up_s' in [bench]" in error.reason and "the nearest is 'warmup_s'" in error.reason
    assert f"(line {line_of('warmup_s')})" in error.reason


def test_missing_key_and_missing_table(tmp_path: Path) -> None:
    error = refused(TARGET.replace("min_duration_s", "# min_duration_s"), tmp_path)
    assert (
        "the key 'min_duration_s' is missing in [bench]" in error.reason and error.hint == "add it; nothing is assumed"
    )
    assert "the key 'budget' is missing" in refused(TARGET[: TARGET.index("[budget]")], tmp_path).reason


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch = 1", "batch = 0", f" in [batch] (line {line_of('batch')})"),
        ("batch = 1", 'batch = "one"', f" in [batch] (line {line_of('batch')})"),
        ("batch = 1", "batch = 1.5", f" in [batch] (line {line_of('batch')})"),
        ("warmup_s = 1.0", "warmup_s = -1", f" in [bench.warmup_s] (line {line_of('warmup_s')})"),
        ("warmup_s = 1.0", "warmup_s = inf", "inf isn't a finite number"),
        ("warmup_s = 1.0", "warmup_s = nan", "nan isn't a finite number"),
        ('arch = "x86_64"', 'arch = "x86"', f" in [arch] (line {line_of('arch')})"),
        ('precision = "int8"', 'precision = "int4"', " in [candidate[0].precision] (line "),
        ("batch = 1", "batch = 1\nbatch = 2", "isn't TOML"),
        ("batch = 1", "batch = ", "isn't TOML"),
    ],
)
def test_wrong_values_are_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in TARGET
    assert said in refused(TARGET.replace(old, new, 1), tmp_path).reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Object contains unknown field `batsch`", "unknown key 'batsch' (line 2); the nearest is 'batch'"),
        ("Object missing required field `name` - at `$.inner`", "the key 'name' is missing in [inner]"),
        ("Expected `int` >= 1 - at `$.batch`", "expected `int` >= 1 in [batch] (line 3)"),
        ("Words that no version has said yet", "words that no version has said yet"),
        ("", "a value is wrong"),
    ],
)
def test_what_msgspec_says_in_our_words(text: str, reason: str) -> None:
    """Texts that are known have ours; any other is passed on."""
    assert _explain(msgspec.ValidationError(text), Target, "name = 1\nbatsch = 2\nbatch = 3\n")[0] == reason


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "b.toml").mkdir()
    (tmp_path / "c.toml").write_text("x = " + "[" * 5000)
    for name in ("a.toml", "b.toml", "c.toml", "nothing.toml"):
        with pytest.raises(UsageError):
            load_toml(tmp_path / name, Target, "target 'x'")


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 2000), st.sampled_from(["", "x", "=", "\n", '"', "[", "]", ".", "0", "-", "\x00", "é", " = 1\n"])
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=MUTATIONS, which=st.sampled_from(["target", "recipe"]))
def test_mutated_files_are_valid_or_refused(mutations: list[tuple[int, str]], which: str, tmp_path: Path) -> None:
    text, kind = (TARGET, Target) if which == "target" else (RECIPE, Recipe)
    for place, piece in mutations:
        place %= len(text)
        text = text[:place] + piece + text[place + 1 :]
    path = tmp_path / "mutated.toml"
    path.write_text(text, encoding="utf-8", newline="")
    said = ""
    try:
        loaded = load_toml(path, kind, f"{which} 'mutated'")
    except UsageError as error:
        said = str(error)
    else:
        assert isinstance(loaded, kind)
    assert not said or len(said.splitlines()) == 3


# --- JSON ------------------------------------------------------------------------------------------------------------


def decoded(data: bytes, error: type[InputError] = ArtifactError) -> Outer:
    return decode_json(data, Outer, action="open it", file="outer.json", error_type=error)


def test_json_is_deterministic_and_readable() -> None:
    one = Outer(name="é", inner=Inner(number=1), more={"b": 1, "a": 2})
    other = Outer(more={"a": 2, "b": 1}, inner=Inner(number=1), name="é")
    assert encode_json(one) == encode_json(other) and encode_json(one).endswith(b"}\n")
    assert '\n  "name": "é"' in encode_json(one).decode()
    assert decoded(encode_json(one)) == one


def test_a_newer_version_says_which_vitedge_opens_it() -> None:
    newer = b'{"schema_version": 4, "vitedge_version": "12.1", "something": ["we", "never", "heard"], "of": null}'
    with pytest.raises(ModelError) as raised:
        decoded(newer, ModelError)
    assert raised.value.reason == "outer.json has schema version 4; this vitedge reads up to 3"
    assert raised.value.hint == upgrade_hint("12.1") and raised.value.exit_code == 3


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"null", b"\xff", b'{"schema_version": 3}', b'{"schema_version": 0, "name": "x"}',
        b'{"schema_version": -1}', b'{"schema_version": "3"}', b'{"schema_version": 3.5}', b'{"schema_version": 1e400}',
        b'{"schema_version": 3, "name": "x", "inner": {"number": 1e99}}', b'{"a":' * 100_000,
        encode_json(OUTER)[:-3], encode_json(OUTER).replace(b'"name"', b'"nome"'), encode_json(OUTER) + b"{}",
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError) as raised:
        decoded(data)
    assert "outer.json isn't a valid record" in raised.value.reason and len(str(raised.value).splitlines()) == 3


@settings(max_examples=150, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=5))
def test_mutated_json_is_valid_or_refused(flips: list[tuple[int, int]]) -> None:
    data = bytearray(encode_json(OUTER))
    for place, value in flips:
        data[place % len(data)] = value
    with contextlib.suppress(ArtifactError):
        assert isinstance(decoded(bytes(data)), Outer)


@given(text=st.text())
def test_printable_text_stays_on_the_terminal(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert not any(ord(character) < 32 and character not in "\t\n" for character in shown)
    assert "\x7f" not in shown and "\x9b" not in shown and "\u202e" not in shown
    assert printable(shown) == shown
    if text.isascii() and text.isprintable():
        assert shown == text


# --- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_users_own_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own = tmp_path / "vitedge" / "targets"
    own.mkdir(parents=True)
    (own / "board.toml").write_text(TARGET)
    (own / "intel-cpu.toml").write_text(TARGET.replace('summary = "', 'summary = "my own '))
    assert load_target("board").name == "board"
    assert load_target("intel-cpu").summary.startswith("my own")
    assert list(paths.names("targets")) == sorted(paths.names("targets"))
    assert "openvino" in paths.names("targets")


def test_a_file_by_its_path_and_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TARGET)
    (tmp_path / "named.toml").write_text('name = "x"\n' + TARGET)
    assert load_target(tmp_path / "mine.toml").name == "mine"
    with pytest.raises(UsageError, match="the key 'name' is the file's own name"):
        load_target(tmp_path / "named.toml")


@pytest.mark.parametrize(
    "name", ["openvin", "x" * 5000 + ".toml", "../targets/openvino", "nothing.toml", "", "\x1b[31m"]
)
def test_unknown_names(name: str) -> None:
    for load, verb in ((load_target, "vitedge targets"), (load_recipe, "vitedge recipes")):
        with pytest.raises(UsageError) as raised:
            load(name)
        assert verb in raised.value.hint and "\x1b" not in str(raised.value)
    if name == "openvin":
        with pytest.raises(UsageError, match="the nearest is 'openvino'"):
            load_target(name)


@pytest.mark.parametrize("path", sorted(paths.shipped_folder("targets").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_target_loads(path: Path) -> None:
    target = load_target(path.stem)
    assert target.name == path.stem and target.summary
    for precision in {candidate.precision for candidate in target.candidate}:
        assert target.candidates(precision)
    with pytest.raises(UsageError, match="this target runs"):
        target.candidates("int3")


@pytest.mark.parametrize("path", sorted(paths.shipped_folder("calibration").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe.name == path.stem and recipe.summary and recipe.observe.num_samples > 0


def test_records_have_no_infinities() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"number": 1, "ratio": 1e999}', type=Inner)
    found: Any = msgspec.json.decode(encode_json(Inner(number=1, ratio=math.pi)), type=Inner)
    assert found.ratio == math.pi


def test_zero_is_refused_also_where_subnormals_are_flushed() -> None:
    """A runtime may set the processor so for the whole process; then 0 equals the smallest subnormal."""
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor can't flush subnormals")
    try:
        for record, wrong in (
            (Preprocessing, {"size": [4, 4], "crop_fraction": 0}),
            (Preprocessing, {"size": [4, 4], "std": [1, 1, 0]}),
            (Budget, {"max_accuracy_drop_pts": 1, "latency_p95_ms": 0}),
        ):
            with pytest.raises(msgspec.ValidationError):
                msgspec.convert(wrong, record)
    finally:
        torch.set_flush_denormal(False)
