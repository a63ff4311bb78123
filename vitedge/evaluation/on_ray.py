"""The engine Ray: actors of Ray Data, each a worker, answer shards wherever in the cluster there is a processor free.

Ray restarts an actor that dies and gives its shard to another one; a worker's own errors come back as values, so that
they are told as in one process. Neither vitedge's packages nor artifacts are installed by Ray: the nodes have vitedge,
and the artifacts travel through Ray's object store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from vitedge.data.addresses import Shard
from vitedge.errors import NotInstalledError, ResourceError, VitedgeError
from vitedge.evaluation.decoding import cores
from vitedge.evaluation.options import EngineOptions
from vitedge.evaluation.worker import Job, Worker

ATTEMPTS = 4  # at a shard whose worker dies


class _Coordinator:
    """The actor that all workers of a run ask for the job; it takes no core of its own."""

    def __init__(self, job: bytes) -> None:
        import ray

        self._job = ray.put(job)
        self._attempts: Counter[str] = Counter()

    def job(self) -> list[Any]:
        """Return a reference to the pickled job, which each node fetches once."""
        return [self._job]

    def begin(self, file: str) -> int:
        """Count an attempt to answer a shard, by its file; return the number of attempts so far."""
        self._attempts[file] += 1
        return self._attempts[file]


class _Actor:
    """A worker within Ray: takes a batch of one shard, and returns the name and content of its file, or an error."""

    def __init__(self, coordinator: Any) -> None:
        import ray

        self._coordinator = coordinator
        (job,) = ray.get(coordinator.job.remote())
        self._job: Job = pickle.loads(ray.get(job))
        self._worker = Worker(self._job)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        import ray

        (file,), shard = batch["file"], pickle.loads(batch["shard"][0])
        answers, problem = b"", b""
        try:
            if ray.get(self._coordinator.begin.remote(file)) > ATTEMPTS:
                reason = f"the process that answered {shard.name} was killed, or crashed, {ATTEMPTS} times"
                hint = "give the nodes more memory, or replace the picture that the decoder can't take; then --resume"
                raise ResourceError(self._job.action, reason, hint)
            answers = self._worker.answer(shard)
        except VitedgeError as error:
            problem = pickle.dumps(error)
        return {"file": [file], "answers": [answers], "problem": [problem]}

    def __del__(self) -> None:  # Ray deletes it when its pool ends
        self._worker.close()


def run(job: Job, shards: Mapping[str, Shard], options: EngineOptions) -> Iterator[tuple[str, bytes]]:
    """Answer shards in any order; yield the name and the content of each file of answers.

    Args:
        job: what to do.
        shards: by the names of their files.
        options: the cluster, and how it's used.

    Raises:
        NotInstalledError: Ray isn't installed.
        ResourceError: no cluster at this address, no room in it for an actor, or a shard whose workers die every time.
        VitedgeError: what a worker raised.
    """
    with _connected(options, job.action) as ray:
        from ray.data import ActorPoolStrategy, DataContext, from_items
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)  # it lives with us
        coordinator = ray.remote(num_cpus=0, scheduling_strategy=here)(_Coordinator).remote(pickle.dumps(job))
        items = [{"file": file, "shard": pickle.dumps(shard)} for file, shard in shards.items()]
        answered = from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            fn_constructor_args=(coordinator,),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(_actors(ray, options, job.action), len(items))),
            num_cpus=options.actor_cpus,
            num_gpus=options.actor_gpus or None,
        )
        for row in answered.iter_rows():
            if row["problem"]:
                raise pickle.loads(row["problem"])
            yield row["file"], row["answers"]


@contextlib.contextmanager
def _connected(options: EngineOptions, action: str) -> Iterator[Any]:
    """Connect Ray to the caller's cluster, to a running one, or to a new one of this machine's cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise NotInstalledError.for_extra(action, error.name or "ray", "ray") from error
    if ray.is_initialized():
        yield ray
        return
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    own = {"num_cpus": cores(), "include_dashboard": False} if address == "local" else {}
    try:
        with _own_signal_handlers():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray raises many kinds, and Exception itself where it starts too slowly
        first, *_ = str(error).splitlines() or [type(error).__name__]
        reason = f"no Ray cluster can be used at '{address}': {first}"
        raise ResourceError(action, reason, "start one with this version of Ray: ray start --head") from error
    with contextlib.redirect_stdout(sys.stderr):  # Ray reports dead workers on stdout, which belongs to the result
        try:
            yield ray
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray's start replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _actors(ray: Any, options: EngineOptions, action: str) -> int:
    """Return the number of actors: as requested, or as many as there is room for now.

    Raises:
        ResourceError: there is room for none, and nobody asked for a number that the cluster might grow to.
    """
    if options.actors is not None:
        return options.actors
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_room(node, options) for node in nodes)
    if not room:
        reason = f"no node of the cluster has {options.actor_cpus} cores and {options.actor_gpus:g} GPUs"
        raise ResourceError(action, reason, "ask for less: --actor-cpus N --actor-gpus N; or for a number: --actors N")
    return room


def _room(node: Mapping[str, float], options: EngineOptions) -> int:
    cpus = int(node.get("CPU", 0) // options.actor_cpus)
    return min(cpus, int(node.get("GPU", 0) // options.actor_gpus)) if options.actor_gpus else cpus
