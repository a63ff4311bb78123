"""Turn records into options: a verb takes a record, and the command line shows a flag for each of its fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import typer

from vitedge.cli import completion
from vitedge.cli.options import Quiet
from vitedge.core.options import Flag, Record, from_file

CONTEXT = "context"
#: Verbs that take records: what each does, and its argument that names a file.
MARKED: dict[Callable[..., None], tuple[str, str]] = {}
Verb = TypeVar("Verb", bound=Callable[..., None])
QUIET = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)


@dataclass(frozen=True, eq=False)
class Parameter:
    """A field of a record as an option of the command line."""

    name: str  # of the verb's argument: "distill_weight"
    path: tuple[str, ...]  # the field, from the outermost record on: ("distillation", "weight")
    flag: Flag
    type: Any  # as typer takes it
    default: Any
    bounds: Mapping[str, float]  # "min", "max"

    @property
    def inverted(self) -> bool:
        """Whether its only spelling switches it off: ``--no-build``."""
        return self.default is True and len(self.flag.names) == 1 and self.flag.names[0].startswith("--no-")

    def option(self) -> inspect.Parameter:
        """Return the argument of the function that typer reads."""
        stated = f" [default: {self.flag.default}]" if self.flag.default else ""
        option: Any = typer.Option(
            *self.flag.names or (f"--{self.name.replace('_', '-')}",),
            help=self.flag.help + stated,
            rich_help_panel=self.flag.group or None,
            metavar=f"<{self.flag.unit}>" if self.flag.unit else None,
            show_default=not (self.inverted or stated or self.default is False or self.default in (None, ())),
            min=self.bounds.get("min"),
            max=self.bounds.get("max"),
        )
        default = self.default if isinstance(self.default, (bool, int, float, str)) else None
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[self.type, option],
            default=False if self.inverted else default,
        )

    def value(self, given: Any) -> Any:
        """Return the command line's value as the field's type."""
        if self.inverted:
            return not given
        if self.flag.parse is not None:
            return self.flag.parse(given)
        return tuple(given) if isinstance(given, list) else given


def parameters(kind: type[Record], path: tuple[str, ...] = ()) -> Iterator[Parameter]:
    """Yield the options of a record and of the records inside it; fields without a flag are no options."""
    for field in msgspec.structs.fields(kind):
        inner, metadata = _unwrapped(field.type)
        if isinstance(inner, type) and issubclass(inner, Record):
            yield from parameters(inner, (*path, field.name))
            continue
        flag = next((each for each in metadata if isinstance(each, Flag)), None)
        if flag is None:
            continue
        long = next((name for name in flag.names if name.startswith("--")), f"--{field.name}")
        name = long.split("/")[0].removeprefix("--").replace("-", "_")
        default = None if field.default is msgspec.NODEFAULT else field.default
        yield Parameter(name, (*path, field.name), flag, _type(inner, flag), default, _bounds(metadata))


def takes_records(action: str, *, file: str = "") -> Callable[[Verb], Verb]:
    """Mark a verb whose arguments that are records become one option for each of their flags (:func:`as_command`).

    Args:
        action: what the verb does, for error texts: ``export a model``.
        file: the verb's argument that names a TOML file of its record; what is given on the command line wins.
    """

    def marked(verb: Verb) -> Verb:
        MARKED[verb] = action, file
        return verb

    return marked


def as_command(verb: Callable[..., None], *, then: Callable[[Mapping[str, Any]], None] | None = None) -> Any:
    """Return the function that typer reads and calls for a verb: each field of its records is an argument.

    Args:
        verb: the verb. Where it has no option ``--quiet``, its command has one all the same, for ``then``.
        then: called with all values of the command line when the verb is done.

    Raises:
        UsageError: when it's called, a value that isn't possible.
    """
    action, file = MARKED.get(verb, ("", ""))
    hints = get_type_hints(verb, include_extras=True)
    arguments: list[inspect.Parameter] = []
    records: dict[str, tuple[type[Record], list[Parameter]]] = {}
    for argument in inspect.signature(verb).parameters.values():
        kind = hints[argument.name]
        if isinstance(kind, type) and issubclass(kind, Record):
            records[argument.name] = kind, list(parameters(kind))
            arguments += [parameter.option() for parameter in records[argument.name][1]]
        else:
            arguments.append(argument.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))
    added = [] if any(argument.name == "quiet" for argument in arguments) else [QUIET]
    for argument in arguments:
        argument.annotation.__metadata__[-1].autocompletion = completion.of(verb.__name__, argument.name)
    context = inspect.Parameter(CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    def run(**values: Any) -> None:
        source = values.pop(CONTEXT).get_parameter_source
        told = dict(values)
        for argument in added:
            values.pop(argument.name)
        path = values.pop(file, None)
        for name, (kind, options) in records.items():
            texts = {option: values.pop(option.name) for option in options}
            given = {each: each.value(text) for each, text in texts.items() if source(each.name).name != "DEFAULT"}
            values[name] = from_file(kind, path, _nested(given), action=action, verb=verb.__name__.rstrip("_"))
        verb(**values)
        if then is not None:
            then(told)

    run.__doc__, run.__name__ = verb.__doc__, verb.__name__
    run.__signature__ = inspect.Signature([*arguments, *added, context])  # type: ignore[attr-defined]
    run.__annotations__ = {argument.name: argument.annotation for argument in (*arguments, *added, context)}
    return run


def _nested(given: Mapping[Parameter, Any]) -> dict[str, Any]:
    """Return values by field; those of a record inside a record are a mapping of their own."""
    fields: dict[str, Any] = {}
    for parameter, value in given.items():
        inside = fields
        for name in parameter.path[:-1]:
            inside = inside.setdefault(name, {})
        inside[parameter.path[-1]] = value
    return fields


def _unwrapped(kind: Any) -> tuple[Any, list[Any]]:
    """Return the type behind ``Annotated`` and ``| None``, and all annotations on the way."""
    metadata: list[Any] = []
    while True:
        if get_origin(kind) is Annotated:
            kind, *more = get_args(kind)
            metadata += more
        elif get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind) and len(get_args(kind)) == 2:
            kind = next(each for each in get_args(kind) if each is not NoneType)
        else:
            return kind, metadata


def _type(kind: Any, flag: Flag) -> Any:
    """Return typer's type for a field's: several values are a list, and parsed values are a text first."""
    if flag.parse is not None:
        return str | None
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
        return kind | None  # a fixed number of values, each time
    if get_origin(kind) is tuple:
        return list[get_args(kind)[0]] | None  # type: ignore[misc]
    plain = kind in (bool, int, float, str) or get_origin(kind) is Literal
    return (kind if plain else str) | None


def _bounds(metadata: list[Any]) -> dict[str, float]:
    """Return typer's ``min`` and ``max`` from msgspec's bounds."""
    bounds: dict[str, float] = {}
    for each in metadata:
        if isinstance(each, msgspec.Meta):
            bounds |= {"min": each.ge} if each.ge is not None else {}
            bounds |= {"max": each.le} if each.le is not None else {}
    return bounds
