"""``vitedge eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def eval_(
    artifact: Annotated[list[Path], typer.Argument(help="Artifact folders; all answer in one pass over the images.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Labelled images: a folder or archive with one sub-folder a class. "
            "The embedded model has its own: held-out, display.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Evaluate so many images, the same ones on every machine.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=0, help="Compute threads; 0 is the machine's physical cores.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="The runtime's own word, instead of the target's.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the result with every answer.")] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write JSON to a file, or to stdout with -.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure the accuracy of one or more artifacts on labelled images, paired with the float32 one among them.

    Top-1 and top-5 with intervals, the difference with McNemar's exact test, flips, and calibration of the
    probabilities. Images that an artifact was calibrated on are refused.

    **Examples**

    `vitedge eval float/ int8/ --data labelled/ --out accuracy.json`

    `vitedge eval artifact/ --data test.tar.gz --limit 1000`
    """
    from vitedge import pipeline
    from vitedge.cli.outcome import result_to
    from vitedge.progress import bars
    from vitedge.runtimes.contract import OpenOptions

    options = OpenOptions(device=device, threads=threads)
    with result_to(out, json, overwrite=overwrite, asked="evaluate accuracy") as deliver:
        with bars(quiet=quiet) as progress:
            result = pipeline.evaluate(artifact, data, options, limit=limit, progress=progress)
        deliver(result)
