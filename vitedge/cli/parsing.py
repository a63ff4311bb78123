"""Parse a command line: errors have our form, and all that is missing is named at once."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from vitedge.cli import synonyms
from vitedge.errors import UsageError

#: What click raises for words that it can't use. typer brings click along, or a copy of it, by its version.
_PARSER_ERROR = cast(type[Exception], typer.BadParameter.__base__)
_JSON = "--json"


class Verb(TyperCommand):
    """The command of one verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words.

        Raises:
            UsageError: they can't be used, or some are missing.
        """
        words = self._with_stdout(args)
        with _errors_of(ctx, words):
            return super().parse_args(ctx, list(words))

    def _with_stdout(self, words: Sequence[str]) -> list[str]:
        """Return the words with ``-`` inserted where ``--json`` without a file means stdout."""
        read: list[str] = []
        takes_file = any(_JSON in parameter.opts for parameter in self.params)
        for word, following in zip(words, [*words[1:], None], strict=False):
            read.append(word)
            if takes_file and word == _JSON and (following is None or (following[:1] == "-" and following != "-")):
                read.append("-")
        return read


class Verbs(TyperGroup):
    """``vitedge`` itself, or a verb that has verbs of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words before the verb.

        Raises:
            UsageError: they can't be used.
        """
        with _errors_of(ctx, args):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb.

        Raises:
            UsageError: there is none of this name.
        """
        if args[0] not in self.commands and not ctx.resilient_parsing:
            reason = f"there is no verb '{args[0]}'{synonyms.verb(args[0], ctx.command_path, self.commands)}"
            raise UsageError(f"run '{ctx.command_path} {args[0]}'", reason, f"run: {ctx.command_path} --help")
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def _errors_of(ctx: Any, words: Sequence[str]) -> Iterator[None]:
    """Turn the parser's errors inside the context into ours; a request for help passes."""
    try:
        yield
    except _PARSER_ERROR as error:
        kind = type(error).__name__
        if kind == "NoArgsIsHelpError":
            raise
        action = f"run '{ctx.command_path}'"
        if kind == "MissingParameter" and (missing := _missing(ctx, words)):
            names = ", ".join(map(_name, missing))
            typed = shlex.join([*ctx.command_path.split(), *words])
            hint = f"run: {' '.join([typed, *map(_placeholder, missing)])} (options: {ctx.command_path} --help)"
            raise UsageError(action, f"missing: {names}{_taken(ctx, words)}", hint) from error
        raise UsageError(action, _reason(ctx, error), f"run: {ctx.command_path} --help") from error


def _missing(ctx: Any, words: Sequence[str]) -> list[Any]:
    """Return every required argument and option that isn't among the words, in the order of the help page."""
    given, _, _ = ctx.command.make_parser(ctx).parse_args(args=list(words))
    required = [parameter for parameter in ctx.command.params if parameter.required]
    return [each for each in required if each.name not in given or each.value_is_missing(given[each.name])]


def _taken(ctx: Any, words: Sequence[str]) -> str:
    """Return a remark where ``--json`` took the next word as its file, which may have been meant as an argument."""
    if _JSON not in words[:-1]:
        return ""
    file = words[list(words).index(_JSON) + 1]
    return "" if file == "-" else f"; --json took '{file}' for its file, write --json - for stdout"


def _reason(ctx: Any, error: Any) -> str:
    """Return a parser's error as one clause."""
    if (unknown := getattr(error, "option_name", None)) and hasattr(error, "possibilities"):
        names = [name for parameter in ctx.command.params for name in (*parameter.opts, *parameter.secondary_opts)]
        options = [each for each in names if each[:1] == "-"]
        arguments = [_name(each) for each in ctx.command.params if each.param_type_name != "option"]
        return f"there is no option '{unknown}'{synonyms.option(unknown, options, arguments)}"
    parameter = getattr(error, "param", None)
    text = str(error.message if parameter is not None else error.format_message()).rstrip(".")
    return f"{_name(parameter)}: {text}" if parameter is not None else text[:1].lower() + text[1:]


def _name(parameter: Any) -> str:
    """Return ``--target``, or an argument in capitals."""
    return str(parameter.opts[0]) if parameter.param_type_name == "option" else str(parameter.name).upper()


def _placeholder(parameter: Any) -> str:
    """Return the placeholder for a missing parameter in a command to type."""
    option = parameter.param_type_name == "option"
    return f"{_name(parameter)} {parameter.name.upper()}" if option else _name(parameter)
