"""Options for dividing pictures among workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from vitedge.core.options import Flag
from vitedge.core.schema import PositiveCount, Record
from vitedge.errors import UsageError

if TYPE_CHECKING:
    from vitedge.data.addresses import Columns

GROUP = "Many pictures"
SHARD_PICTURES = 1000


class EngineOptions(Record):
    """The engine that divides the pictures into shards and answers them, and the folder of its answers."""

    engine: Annotated[
        Literal["ray"] | None,
        Flag(
            "Engine that divides the pictures among the workers of a cluster, for millions of pictures at any address.",
            group=GROUP,
            default="this process evaluates them",
        ),
    ] = None
    answers: Annotated[
        str | None,
        Flag(
            "Folder for the engine's answers: one Parquet file for each shard of pictures.", group=GROUP, unit="folder"
        ),
    ] = None
    address: Annotated[
        str | None,
        Flag(
            "Address of a running Ray cluster: HOST:PORT, or auto.",
            names=("--ray-address",),
            group=GROUP,
            unit="address",
            default="$RAY_ADDRESS, else the cores of this machine",
        ),
    ] = None
    actors: Annotated[
        PositiveCount | None,
        Flag(
            "Number of actors, each of which holds one session of every artifact.",
            group=GROUP,
            default="as many as the cluster has room for",
        ),
    ] = None
    actor_cpus: Annotated[
        PositiveCount, Flag("Number of cores for each actor, and of its compute threads.", group=GROUP)
    ] = 1
    actor_gpus: Annotated[
        float, Meta(ge=0), Flag("Number of GPUs for each actor; 0.5 lets two actors use one.", group=GROUP)
    ] = 0.0
    shard_pictures: Annotated[
        PositiveCount,
        Flag("Number of pictures in a shard of a folder; a tar or Parquet file is a shard of its own.", group=GROUP),
    ] = SHARD_PICTURES
    image_column: Annotated[
        str, Flag("Column of Parquet files with the encoded pictures.", group=GROUP, unit="name")
    ] = "image"
    label_column: Annotated[str, Flag("Column of Parquet files with the classes.", group=GROUP, unit="name")] = "label"

    @property
    def columns(self) -> Columns:
        """The names of Parquet columns."""
        from vitedge.data.addresses import Columns

        return Columns(image=self.image_column, label=self.label_column)


def refuse_unused(engine: EngineOptions, others: Mapping[str, object], action: str) -> None:
    """Refuse options that would have no effect.

    Args:
        engine: as given; without an engine it must be the default.
        others: what was given of the options that only an evaluation in one process follows, by their flags; with an
            engine each must be None.
        action: for error texts.

    Raises:
        UsageError: one of them was given.
    """
    default = EngineOptions()
    names = [name for name in engine.__struct_fields__ if getattr(engine, name) != getattr(default, name)]
    if engine.engine is None and names:
        flag = {"address": "--ray-address"}.get(names[0], f"--{names[0].replace('_', '-')}")
        raise UsageError(
            action, f"{flag} is an option of an engine, and none is chosen", f"add --engine ray, or omit {flag}"
        )
    given = [flag for flag, value in others.items() if value is not None]
    if engine.engine is not None and given:
        raise UsageError(action, f"an engine doesn't follow {given[0]}", f"omit {given[0]}, or --engine")
