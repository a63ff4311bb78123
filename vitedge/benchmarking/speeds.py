"""The speed of artifacts on this machine, measured interleaved within one run and kept in the cache folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from vitedge import runtimes
from vitedge.core.cache import optional_writes
from vitedge.core.files import sha256, write_atomic
from vitedge.core.paths import cache_folder
from vitedge.core.percentiles import percentile
from vitedge.core.progress import Progress, silent
from vitedge.core.schema import Record, decode_json, encode_json
from vitedge.device.clocks import power_mode
from vitedge.errors import InputError
from vitedge.runtimes.choice import hardware_description

if TYPE_CHECKING:
    from vitedge.formats.artifact import Artifact


class Speed(Record):
    """The speed of one artifact."""

    p50_ms: float
    p95_ms: float
    wrong: str = ""  # the error in its golden logits on this machine


class Speeds(Record):
    """Speeds that were measured interleaved within one run."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    speeds: tuple[Speed, ...]  # in the order of the artifacts


def speeds(
    artifacts: Sequence[Artifact],
    *,
    duration_s: float | None = None,
    anew: bool = False,
    action: str,
    progress: Progress = silent,
) -> tuple[Speed, ...]:
    """Measure artifacts, interleaved, or return an earlier measurement of the same graphs on the same machine.

    Args:
        artifacts: at least one.
        duration_s: measure each for at least so long; None: as the targets say.
        anew: don't ask the cache.
        action: for error texts.
        progress: called with (task, done, total).

    Raises:
        as :func:`vitedge.benchmarking.bench.bench`.
    """
    from vitedge.benchmarking.bench import bench
    from vitedge.benchmarking.options import BenchConfig

    cache_file = cache_folder() / "tuning" / f"{key(artifacts, duration_s, action)}.json"
    if not anew:
        with contextlib.suppress(OSError, InputError):
            cached = decode_json(cache_file.read_bytes(), Speeds, action=action, file=cache_file.name).speeds
            if len(cached) == len(artifacts):
                return cached
    rows = bench(artifacts, BenchConfig(duration_s=duration_s, memory_alone=False), progress=progress).rows
    measured = []
    for row in rows:
        assert row.latency is not None
        times = sorted(row.latency.samples.latency_ns)
        wrong = "; ".join(check.detail for check in row.checks if check.ok is False)
        p50, p95 = (percentile(times, percent) / 1e6 for percent in (50, 95))
        measured.append(Speed(p50_ms=p50, p95_ms=p95, wrong=wrong))
    with optional_writes():
        write_atomic(cache_file, encode_json(Speeds(speeds=tuple(measured))), action)
    return tuple(measured)


def key(artifacts: Sequence[Artifact], duration_s: float | None, action: str) -> str:
    """Return a digest of the request, and of everything that the result depends on.

    Graphs, options, threads, the runtime's version, the processor, its ISA and its power mode decide on speed, golden
    logits and tolerance on what is wrong, and the duration and the targets' rules on how well it's measured.
    """
    identity = [str(duration_s), str(power_mode())]
    for artifact in artifacts:
        target = artifact.manifest.target
        golden = [digest for name, digest in artifact.manifest.files.items() if name.startswith("golden/")]
        identity += [*golden, *(repr(record) for record in (artifact.manifest.golden, target.bench))]
        identity += [target.runtime, runtimes.require(target.runtime, action), target.device, str(target.threads)]
        identity += [hardware_description(target), *artifact.graph_files.values()]
        identity += [f"{name}={value}" for name, value in sorted(artifact.manifest.runtime_options.items())]
    return sha256("\0".join(identity).encode())[:32]
