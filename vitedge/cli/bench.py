"""``vitedge bench``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Scenario(str, Enum):
    """What the load generator does."""

    single = "single"
    offline = "offline"
    camera = "camera"


def bench(
    artifact: Annotated[list[Path], typer.Argument(help="Artifact folders; several take turns within one run.")],
    scenario: Annotated[
        Scenario, typer.Option("--scenario", help="One in flight, throughput, or pictures arriving at a rate.")
    ] = Scenario.single,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.1, max=10_000, help="Arrivals a second, for camera.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option("--duration", min=0, help="Measure for at least so many seconds each.")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option("--warmup", min=0, help="Warm up for at least so many seconds, and until stable.")
    ] = None,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="Measure at least so many inferences.")] = 1,
    percentile: Annotated[
        float,
        typer.Option("--percentile", min=50, max=99.99, help="Measure until the sample supports this percentile."),
    ] = 95.0,
    threads: Annotated[
        int | None, typer.Option("--threads", min=0, help="Compute threads; 0 is the machine's physical cores.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="The runtime's own word, instead of the target's.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Pictures to preprocess and feed, instead of the golden ones.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the result with its raw samples.")] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write JSON to a file, or to stdout with -.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 7 when a row isn't valid.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure the latency of one or more artifacts on this machine; raw samples are kept with their circumstances.

    It goes on until the minimum time, the minimum number and the number that the percentile needs are reached.

    **Examples**

    `vitedge bench artifact/`

    `vitedge bench float/ int8/ --duration 30 --percentile 99 --out result.json`

    `vitedge bench artifact/ --scenario camera --rate 30 --strict`
    """
    from vitedge import pipeline
    from vitedge.cli.outcome import refuse_invalid, result_to
    from vitedge.harness.bench import Wish
    from vitedge.progress import bars
    from vitedge.runtimes.contract import OpenOptions

    wish = Wish(scenario.value, rate, duration, warmup, iterations, percentile)
    options = OpenOptions(device=device, threads=threads)
    with result_to(out, json, overwrite=overwrite, asked="measure latency") as deliver:
        with bars(quiet=quiet) as progress:
            result = pipeline.bench(artifact, wish, options, data=data, progress=progress)
        deliver(result)
    if strict:
        refuse_invalid(result)
