"""``vitedge bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.benchmarking.options import BenchConfig
from vitedge.cli.options import OUTPUT, Device, Json, NoBuild, Quiet
from vitedge.cli.records import takes_records


@takes_records("measure latency")
def bench(
    artifact: Annotated[list[Path], typer.Argument(help="Artifact folders; several are interleaved within one run.")],
    *,
    config: BenchConfig,
    device: Device = None,
    no_build: NoBuild = False,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Pictures to preprocess and feed [default: the artifact's golden ones]."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write the result to, with its raw samples.", rich_help_panel=OUTPUT),
    ] = None,
    json: Json = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the interrupted measurement in --out, if there is one.", rich_help_panel=OUTPUT
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing result.", rich_help_panel=OUTPUT)
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 7 when a row isn't valid.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure the latency of one or more artifacts on this machine; raw samples are kept with the environment.

    The measurement ends when the minimum time, the minimum number and the number that the percentile needs are reached.
    With `--out`, finished rounds are saved while it runs, so that a killed measurement can be resumed.

    **Examples**

    `vitedge bench artifact/`

    `vitedge bench float/ int8/ --duration 30 --percentile 99 --out result.json`

    `vitedge bench artifact/ --scenario camera --rate 30 --strict`

    `vitedge bench artifact/ --duration 10m --out sustained.json --resume`

    `vitedge bench artifact/ --threads 1,2,4 --profile`

    `vitedge bench artifact/ --like benchmark-app --like trtexec10`
    """
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.reporting.outcome import keeper, refuse_invalid, result_to, resumable
    from vitedge.runtimes.options import OpenOptions

    options = OpenOptions(device=device, build=not no_build)
    before = resumable(out, wanted=resume, action="measure latency")
    overwrite = overwrite or before is not None
    with result_to(out, json, overwrite=overwrite, action="measure latency", resumes=True) as deliver:
        with bars(quiet=quiet) as progress:
            result = api.bench(artifact, config, options, data=data, progress=progress, resume=before, keep=keeper(out))
        deliver(result)
    if strict:
        refuse_invalid(result)
