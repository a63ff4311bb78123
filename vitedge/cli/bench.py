"""``vitedge bench``."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Device, Json, NoBuild, Quiet


class Scenario(str, Enum):
    """What the load generator does."""

    single = "single"
    offline = "offline"
    camera = "camera"


class Tool(str, Enum):
    """Whose rules to apply, too."""

    trtexec10 = "trtexec10"
    trtexec11 = "trtexec11"
    benchmark_app = "benchmark-app"
    loadgen = "loadgen"
    loadgen_offline = "loadgen-offline"
    ultralytics = "ultralytics"


def seconds(text: str) -> float:
    """``90``, ``90s``, ``10m`` or ``1h`` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(text).strip())
    if match is None:
        raise typer.BadParameter(f"'{text}' isn't a time: write 90, 90s, 10m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def counts(text: str, option: str) -> tuple[int, ...]:
    """``4`` or ``1,2,4``: whole numbers, each once.

    Raises:
        UsageError: it isn't.
    """
    from vitedge.errors import UsageError

    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"\d{1,4}", word) for word in words) or len(set(words)) < len(words):
        raise UsageError("measure latency", f"{option} '{text}' isn't a list of numbers", f"write {option} 4, or 1,2,4")
    return tuple(int(word) for word in words)


def bench(
    artifact: Annotated[list[Path], typer.Argument(help="Artifact folders; several take turns within one run.")],
    scenario: Annotated[
        Scenario, typer.Option("--scenario", help="One in flight, throughput, or pictures arriving at a rate.")
    ] = Scenario.single,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.1, max=10_000, help="Arrivals a second, for camera.")
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", help="Pictures and arrival times of a clip that `vitedge stream --record` kept."),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            "--duration",
            parser=seconds,
            metavar="TIME",
            help="Measure for at least so long each: 30, 90s, 10m. From a minute on, burst is held against sustained.",
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(
            "--warmup", parser=seconds, metavar="TIME", help="Warm up for at least so long, and until stable."
        ),
    ] = None,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="Measure at least so many inferences.")] = 1,
    percentile: Annotated[
        float,
        typer.Option("--percentile", min=50, max=99.99, help="Measure until the sample supports this percentile."),
    ] = 95.0,
    threads: Annotated[
        str | None,
        typer.Option(
            "--threads", help="Compute threads; 0 is the machine's physical cores. Several (1,2,4) are a sweep."
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option("--batch", help="A sweep over those of the artifacts that were exported for these batches: 1,8."),
    ] = None,
    device: Device = None,
    no_build: NoBuild = False,
    data: Annotated[
        str | None, typer.Option("--data", help="Pictures to preprocess and feed, instead of the golden ones.")
    ] = None,
    like: Annotated[
        list[Tool] | None,
        typer.Option("--like", help="Measure by this tool's rules, too, and show its fields beside ours; repeatable."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time every layer, too, and add them up by part and block of the model.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the result with its raw samples.")] = None,
    json: Json = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted measurement in --out, if there is one.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 7 when a row isn't valid.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure the latency of one or more artifacts on this machine; raw samples are kept with the environment.

    It goes on until the minimum time, the minimum number and the number that the percentile needs are reached. With
    `--out`, what has been measured is saved while it runs, so that a killed measurement can be resumed.

    **Examples**

    `vitedge bench artifact/`

    `vitedge bench float/ int8/ --duration 30 --percentile 99 --out result.json`

    `vitedge bench artifact/ --scenario camera --rate 30 --strict`

    `vitedge bench artifact/ --duration 10m --out sustained.json --resume`

    `vitedge bench artifact/ --threads 1,2,4 --profile`

    `vitedge bench artifact/ --like benchmark-app --like trtexec10`
    """
    from vitedge import api
    from vitedge.benchmarking.options import BenchConfig
    from vitedge.core.progress import bars
    from vitedge.reporting.outcome import keeper, refuse_invalid, result_to, resumable
    from vitedge.runtimes.options import OpenOptions

    sweep = counts(threads, "--threads") if threads is not None else ()
    wish = BenchConfig(
        scenario.value,
        rate,
        duration,
        warmup,
        iterations,
        percentile,
        threads=sweep if len(sweep) > 1 else (),
        batches=counts(batch, "--batch") if batch is not None else (),
        like=tuple(tool.value for tool in like or ()),
        profile=profile,
        replay=None if replay is None else api.open_replay(replay),
    )
    options = OpenOptions(device=device, threads=sweep[0] if len(sweep) == 1 else None, build=not no_build)
    before = resumable(out, wanted=resume, action="measure latency")
    with result_to(out, json, overwrite=overwrite or before is not None, action="measure latency") as deliver:
        if before is not None and not before.partial:
            result = before
        else:
            with bars(quiet=quiet) as progress:
                result = api.bench(
                    artifact,
                    wish,
                    options,
                    data=data,
                    progress=progress,
                    resume=before,
                    keep=keeper(out),
                )
        deliver(result)
    if strict:
        refuse_invalid(result)
