"""Options for choosing boards and for keeping their work."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from vitedge.core.options import Flag, time_flag
from vitedge.core.schema import Record

INVENTORY, OUT = "fleet.toml", "fleet-results"


class Selection(Record):
    """Options for choosing boards and reaching them."""

    inventory: Annotated[str, Flag("File that lists the boards.", unit="path")] = INVENTORY
    on: Annotated[
        tuple[str, ...],
        Flag("Boards with this name or label; repeat the option for more.", unit="label", default="all boards"),
    ] = ()
    ask_password: Annotated[bool, Flag("Ask for the password of boards that take neither key nor agent.")] = False
    patience_s: Annotated[
        float,
        Meta(ge=0),
        time_flag("How long to try again when a board's connection ends.", ("--patience",)),
    ] = 60.0


class Keeping(Record):
    """Options for the folder of results, and for work that was begun before."""

    out: Annotated[str, Flag("Folder for the ledger and the results of all boards.", ("--out", "-o"), unit="path")] = (
        OUT
    )
    resume: Annotated[bool, Flag("Do only the work that is missing in --out.")] = False
    overwrite: Annotated[bool, Flag("Do everything again; earlier results of the same work are replaced.")] = False
    together: Annotated[
        bool, Flag("Do all artifacts in one job on each board, interleaved, instead of one after the other.")
    ] = False
    detach: Annotated[
        bool,
        Flag("Start the jobs, one at a time on a board, and end; `vitedge fleet collect` brings the results."),
    ] = False
    wait: Annotated[bool, Flag("Wait for a board that somebody else measures on.")] = False
