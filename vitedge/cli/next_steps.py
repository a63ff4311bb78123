"""The next command to type after each verb: one line on stderr."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitedge.errors import printable

#: The options of a verb by their names, as the command line gave them.
Values = Mapping[str, Any]
Words = tuple[object, ...]

PICTURES, LABELLED = "PICTURES/", "LABELLED/"  # stand for folders that only the user knows


def _export(model: object, data: object = PICTURES, *, how: Words = ("--target", "onnxruntime", "--int8")) -> Words:
    return ("export", model, *how, "--data", data, "--out", "artifact/")


def _after_export(values: Values) -> Words:
    several, out = len(values["target"]) > 1, Path(values["out"])
    folders = sorted(path.parent for path in out.glob("*/manifest.json")) if several else []
    return () if values["dry_run"] else ("verify", *(folders[:1] or [out]))


def _after_build(values: Values) -> Words:
    chosen = values["out"] if values["autotune"] else None
    return () if values["dry_run"] else ("verify", chosen or values["artifact"][0])


def _report(out: object) -> Words:
    return ("report", out, "--out", Path(str(out)).with_suffix(".html"))


def _after_bench(values: Values) -> Words:
    return _report(values["out"]) if values["out"] else ("eval", *values["artifact"], "--data", LABELLED)


def _after_eval(values: Values) -> Words:
    return _report(values["out"]) if values["out"] else ("classify", values["artifact"][-1], "PICTURE")


def _after_inspect(values: Values) -> Words:
    path = Path(values["path"])
    if path.suffix == ".onnx":
        return ("import", path, "--out", "model/")
    if path.suffix == ".json":
        return _report(path)
    return _export(path) if (path / "model.json").exists() else ("verify", path)


def _after_shrink(values: Values) -> Words:
    data, target, precision = values["data"] or PICTURES, ("--target", values["target"]), values["precision"]
    if any(values[budget] is not None for budget in ("latency", "speedup", "macs")):
        return _export(values["out"], data, how=(*target, "--precision", precision or "auto"))
    how: Words = (*target, "--precision", precision) if precision else target
    table = ("--table", values["table"]) if values["table"] else ()
    out = values["out"] or "small/"
    return ("shrink", values["model"], *how, *table, "--speedup", 1.5, "--data", data, "--out", out)


#: By verb, the words after ``vitedge``; none where nothing follows. ``stream`` is where the pipeline ends.
NEXT: dict[str, Callable[[Values], Words]] = {
    "new": lambda values: (),
    "run": lambda values: ("classify", "artifact/", "PICTURE"),
    "train": lambda values: _export(values["out"], values["data"]),
    "import": lambda values: _export(values["out"]),
    "label": lambda values: _export(values["model"]),
    "shrink": _after_shrink,
    "export": _after_export,
    "build": _after_build,
    "verify": lambda values: ("bench", values["artifact"], "--out", "result.json"),
    "bench": _after_bench,
    "eval": _after_eval,
    "compare": _after_eval,
    "report": lambda values: ("stream", "ARTIFACT/", "SOURCE"),
    "classify": lambda values: ("stream", values["artifact"], "test://"),
    "explain-picture": lambda values: (),
    "stream": lambda values: (),
    "fleet": lambda values: (),
    "demo": lambda values: ("classify", values["out"] / "artifacts" / "onnxruntime-int8", "PICTURE"),
    "doctor": lambda values: ("demo",),
    "inspect": _after_inspect,
    "targets": lambda values: (
        () if values["new"] else _export("model/", how=("--target", values["name"] or "NAME", "--precision", "auto"))
    ),
    "recipes": lambda values: _export(
        "model/", how=("--target", "onnxruntime", "--int8", "--recipe", values["name"] or "NAME")
    ),
}


def say_next(verb: str, values: Values) -> None:
    """Print the next step after a finished verb, unless silence or JSON was asked for."""
    part = "VITEDGE_STEP" in os.environ or os.environ.get("RANK", "0") != "0"  # of `vitedge run`, of torchrun
    words = () if part or values.get("quiet") or values.get("json") else NEXT[verb](values)
    if words:
        sys.stderr.write(printable(f"next: {shlex.join(['vitedge', *map(str, words)])}") + "\n")
