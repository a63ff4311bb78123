"""The verbs of one machine as verbs of ``vitedge fleet``: the same options, passed on as they were given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge.cli.bench import bench
from vitedge.cli.build import build
from vitedge.cli.compare import compare
from vitedge.cli.eval import eval_
from vitedge.cli.options import Json, Quiet
from vitedge.cli.records import CONTEXT, as_command, parameters
from vitedge.cli.verify import verify
from vitedge.core.options import filled
from vitedge.fleet.options import Keeping

VERBS = (verify, build, bench, eval_, compare)
#: Options that mean something else for many boards, or nothing.
OURS = {"out", "json", "resume", "overwrite", "quiet", "choices", "engines", "dry_run", "explain", CONTEXT}
ARTIFACTS = Annotated[
    list[Path], typer.Argument(help="Artifact folders; each goes to the boards that are for its target.")
]
#: What each does here.
SUMMARIES = {
    "verify": "Test on each board that artifacts are, and compute, what was exported.",
    "build": "Build engines, and choose among an artifact's candidates, once on each kind of board.",
    "bench": "Measure the latency of artifacts on each board, one after the other; raw samples come back.",
    "eval": "Measure the accuracy of artifacts on each board; --data is pushed by digest, too.",
    "compare": "Hold candidates against a baseline on each board, interleaved within one run there.",
}


def on_boards(verb: Callable[..., None], work: Callable[..., None]) -> Callable[..., None]:
    """Return a command that runs a verb on boards.

    Args:
        verb: of one machine.
        work: called with its name, the artifacts, its options as arguments, and how results are kept.
    """
    name = verb.__name__.rstrip("_")
    plain = inspect.signature(as_command(verb)).parameters.values()
    own = [each for each in plain if each.name not in {*OURS, "artifact"}]
    keeping = list(parameters(Keeping))

    def run(**values: Any) -> None:
        context = values.pop(CONTEXT)
        given = {
            option.path[0]: option.value(values[option.name])
            for option in keeping
            if context.get_parameter_source(option.name).name != "DEFAULT"
        }
        kept = filled(Keeping, given, action=f"{name} on the boards", verb="fleet")
        arguments = list(_given(context, {each.name for each in own}))
        work(name, values["artifact"], arguments, kept, json=values["json"], quiet=values["quiet"])

    run.__name__ = verb.__name__
    run.__doc__ = _help(name)
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            _keyword("artifact", ARTIFACTS),
            *own,
            *(option.option() for option in keeping),
            _keyword("json", Json, None),
            _keyword("quiet", Quiet, False),
            _keyword(CONTEXT, typer.Context),
        ]
    )
    run.__annotations__ = {each.name: each.annotation for each in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
    return run


def _keyword(name: str, kind: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)


def _help(name: str) -> str:
    example = "fp32/ int8/" + {"eval": " --data labelled/", "build": " --autotune"}.get(name, "")
    return (
        f"{SUMMARIES[name]}\n\nArtifacts are pushed first. The options are those of `vitedge {name}`; results go to"
        f" --out, not to files on the boards.\n\n**Examples**\n\n`vitedge fleet {name} {example}`\n\n"
        f"`vitedge fleet --on arm {name} {example} --resume`\n"
    )


def _given(context: Any, names: set[str]) -> Iterator[str]:
    """Yield the options of this command line as arguments of another one."""
    for parameter in context.command.params:
        if parameter.name not in names or context.get_parameter_source(parameter.name).name == "DEFAULT":
            continue
        value = context.params[parameter.name]
        if isinstance(value, bool):
            yield (parameter.opts if value else parameter.secondary_opts)[0]
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        for number, each in enumerate(values):
            if number == 0 or parameter.nargs == 1:
                yield parameter.opts[0]
            yield str(each.value if isinstance(each, Enum) else each)
