"""Records as options: what a verb gets, and what its help page says."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from msgspec import Meta
from typer.testing import CliRunner

from vitedge.benchmarking.options import BenchConfig
from vitedge.cli.records import as_command, parameters, takes_records
from vitedge.comparison.options import PairedConfig
from vitedge.core.options import Flag, filled
from vitedge.core.schema import Record
from vitedge.errors import UsageError
from vitedge.exporting.options import ExportFields, ExportOptions
from vitedge.importing.options import ImportFields, ImportOptions
from vitedge.shrinking.options import ShrinkFields, ShrinkOptions
from vitedge.streaming.settings import StreamFields, StreamSettings
from vitedge.training.options import Distillation, TrainOptions


class Inner(Record):
    """A record inside a record."""

    strength: Annotated[float, Meta(ge=0, le=1), Flag("Strength of it.", ("--inner-strength",), unit="fraction")] = 0.5


class Lesson(Record):
    """A record that is there where its required field is given."""

    teacher: Annotated[str, Flag("Who teaches.", group="Lessons")]
    weight: Annotated[float, Flag("Weight of the lesson.", group="Lessons")] = 0.25


class Options(Record):
    """One field of every kind."""

    name: Annotated[str | None, Flag("Name of it.", ("--name", "-n"), default="nobody's")] = None
    count: Annotated[int, Meta(ge=1, le=9), Flag("Number of them.", unit="pieces", group="Numbers")] = 3
    kind: Annotated[Literal["plain", "fancy"], Flag("Kind of it.")] = "plain"
    words: Annotated[tuple[str, ...], Flag("Words; repeat the option.")] = ()
    size: Annotated[tuple[int, int] | None, Flag("Height and width.", parse=lambda text: (int(text), int(text)))] = None
    flip: Annotated[bool, Flag("Flip it.", ("--flip/--no-flip",))] = True
    build: Annotated[bool, Flag("Refuse to build.", ("--no-build",))] = True
    quiet: Annotated[bool, Flag("Say nothing.")] = False
    hidden: int = 7
    inner: Inner = Inner()
    lesson: Lesson | None = None


def run(*arguments: str, file: str = "") -> Any:
    """What a verb gets; the runner's result where it didn't run."""
    got: list[tuple[str, Options]] = []
    app = typer.Typer(rich_markup_mode="markdown")

    @takes_records("try it", file=file)
    def verb(
        thing: Annotated[str, typer.Argument(help="A thing.")],
        *,
        options: Options,
        settings: Annotated[Path | None, typer.Option(help="A TOML file.")] = None,
    ) -> None:
        """Try it."""
        got.append((thing, options))

    app.command()(as_command(verb))
    done = CliRunner().invoke(app, ["x", *arguments], env={"COLUMNS": "150", "TERM": "dumb"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return got[0][1] if got else done


def test_nothing_given_is_the_record_itself() -> None:
    assert run() == Options()


def test_every_kind_of_field() -> None:
    given = run(
        *("-n", "me", "--count", "4", "--kind", "fancy", "--words", "a", "--words", "b", "--size", "8", "--no-flip"),
        *("--no-build", "--quiet", "--inner-strength", "0.75", "--teacher", "big", "--weight", "0.5"),
    )
    assert given == Options(
        name="me",
        count=4,
        kind="fancy",
        words=("a", "b"),
        size=(8, 8),
        flip=False,
        build=False,
        quiet=True,
        inner=Inner(strength=0.75),
        lesson=Lesson(teacher="big", weight=0.5),
    )


@pytest.mark.parametrize("wrong", [("--count", "0"), ("--count", "x"), ("--kind", "odd"), ("--hidden", "8")])
def test_what_is_not_possible_is_refused(wrong: tuple[str, str]) -> None:
    assert run(*wrong).exit_code == 2


def test_the_command_line_wins_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('count = 5\nname = "file"\n[inner]\nstrength = 0.1\n')
    given = run("--settings", str(tmp_path / "s.toml"), "--name", "line", file="settings")
    assert (given.count, given.name, given.inner.strength) == (5, "line", 0.1)


def test_the_help_page_has_texts_units_bounds_defaults_and_groups() -> None:
    page = run("--help").output
    for text in ("Name of it. [default: nobody's]", "<pieces>", "1<=x<=9", "[default: 3]", "Numbers", "Lessons"):
        assert text in page, page
    assert "hidden" not in page


def test_a_python_call_is_checked_likewise() -> None:
    def call(**fields: Any) -> Options:
        return filled(Options, fields, action="try it", verb="try")

    assert call(name=Path("a/b"), words=["a"]) == Options(name="a/b", words=("a",))
    assert filled(Options, {"count": 2}, Options(name="base"), action="", verb="") == Options(name="base", count=2)
    with pytest.raises(UsageError, match="no option 'coutn'; the nearest is 'count'"):
        call(coutn=1)
    with pytest.raises(UsageError, match=r"--count: Expected `int` <= 9"):
        call(count=10)
    with pytest.raises(UsageError, match=r"--inner.strength: Expected `float` <= 1.0"):
        call(inner={"strength": 2})


@pytest.mark.parametrize(
    "record",
    [
        ExportOptions(),
        ShrinkOptions(),
        ImportOptions(),
        BenchConfig(),
        PairedConfig(),
        StreamSettings(),
        TrainOptions(model="vit_nano_patch4_32", distillation=Distillation(teacher="embedded")),
    ],
)
def test_every_option_is_explained_and_every_default_is_possible(record: Record) -> None:
    kind = type(record)
    assert filled(kind, {}, record, action="check the defaults", verb="export") == record
    for option in parameters(kind):
        assert option.flag.help.endswith(".") and option.flag.help[0].isupper(), option.flag.help
        assert len(option.flag.help) > 10 and not option.flag.default.endswith("."), option.flag


@pytest.mark.parametrize(
    ("fields", "record"),
    [
        (ExportFields, ExportOptions),
        (ImportFields, ImportOptions),
        (ShrinkFields, ShrinkOptions),
        (StreamFields, StreamSettings),
    ],
)
def test_keywords_are_the_fields(fields: type, record: type[Record]) -> None:
    """A keyword takes what the field takes; where that is a text, a path as well."""
    keywords = typing.get_type_hints(fields)
    assert set(keywords) == {option.path[0] for option in parameters(record)}
    for name, kind in typing.get_type_hints(record).items():
        if name in keywords:
            wider = _alternatives(keywords[name]) - {Path}
            assert {_as_tuple(each) for each in wider} == _alternatives(kind), name


def _alternatives(kind: Any) -> set[Any]:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return set(typing.get_args(kind)) if union else {kind}


def _as_tuple(kind: Any) -> Any:
    """A field is a tuple where its keyword takes any sequence."""
    return tuple[typing.get_args(kind)[0], ...] if typing.get_origin(kind) is Sequence else kind
