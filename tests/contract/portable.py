"""What every runtime owes a session, checked on exported artifacts with nothing but the device's own packages.

    python tests/contract/portable.py [--reopen N] ARTIFACT...

needs numpy, Pillow, msgspec and the artifact's runtime, so it runs where an artifact runs: with the oldest supported
runtime, on another processor, under emulation. The test suite runs the same checks. Prints a line for each check and a
closing count; exits with 1 when one failed.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vitedge import runtimes
from vitedge.data.golden import golden_views
from vitedge.data.images import read_picture
from vitedge.errors import UsageError
from vitedge.formats.artifact import GOLDEN_INPUTS, GOLDEN_LOGITS, GOLDEN_REFERENCE, Artifact
from vitedge.formats.model_folder import contract_metadata
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.executed import QUANTIZED
from vitedge.runtimes.session import Session, open_session
from vitedge.verification.golden import golden_check
from vitedge.verification.verify import verify

#: Where float arithmetic differs only in the order of its sums: largest difference over largest absolute value.
SAME_ARITHMETIC = 1e-4
REOPEN = 20

Check = Callable[[Artifact, Session], str]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def frames_of(session: Session, count: int, seed: int = 0) -> np.ndarray:
    """Random pictures at the model's size: uint8 [count, h, w, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *session.input_shape[1:]), dtype=np.uint8)


def refused(call: Callable[[], object], *words: str) -> None:
    """``call`` raises a UsageError that has all these words."""
    said = ""
    try:
        call()
    except UsageError as error:
        said = str(error)
    assert said, f"not refused; expected an error with {words}"
    missing = [word for word in words if word not in said]
    assert not missing, f"the error doesn't say {missing}: {said}"


def preprocessing(artifact: Artifact, session: Session) -> str:
    """The golden pictures become exactly the golden inputs."""
    inputs = artifact.array(GOLDEN_INPUTS)
    for name, expected in zip(artifact.manifest.golden.pictures, inputs, strict=True):
        found = session.preprocess(read_picture(artifact.path / name))
        assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.owndata
        assert np.array_equal(found, expected), f"{name} differs by up to {np.abs(found - expected.astype(int)).max()}"
    return f"{len(inputs)} pictures"


def logits(artifact: Artifact, session: Session) -> str:
    """The golden inputs' logits are as near to float32 as export recorded, and have the same top-1."""
    if artifact.manifest.target.runtime == "null":
        return "the null runtime computes nothing"
    check = golden_check(session)
    assert check.ok, check.detail
    reference, exported = artifact.array(GOLDEN_REFERENCE), artifact.array(GOLDEN_LOGITS)
    inputs = artifact.array(GOLDEN_INPUTS)
    found = np.stack(list(session.map_batches(golden_views(inputs, len(exported) // len(inputs)))))
    same = int((found.argmax(1) == reference.argmax(1)).sum())
    return (
        f"{relative(found, reference):.2e} from float32 (export: {artifact.manifest.golden.deviation:.2e}), "
        f"{relative(found, exported):.2e} from export's own, top-1 equal on {same} of {len(found)}"
    )


def verification(artifact: Artifact, session: Session) -> str:
    """``vitedge verify`` finds nothing."""
    checks = verify(artifact, OpenOptions(threads=1))
    wrong = [f"{check.name}: {check.detail}" for check in checks if check.ok is False]
    assert not wrong, "; ".join(wrong)
    return f"{len(checks)} checks"


def info(artifact: Artifact, session: Session) -> str:
    """Runtime, version, device and threads are told, and every option of the manifest is read back as it was set."""
    told = session.info
    for key in ("runtime", "version", "device", "threads"):
        assert key in told, f"info lacks '{key}'"
    assert told["runtime"] == artifact.manifest.target.runtime
    assert told["version"] == runtimes.installed(artifact.manifest.target.runtime)
    for key, value in artifact.manifest.runtime_options.items():
        assert str(told.get(key)).lower() == str(value).lower(), f"{key} is {told.get(key)}, not {value}"
    return ", ".join(f"{key} {told[key]}" for key in ("version", "device", "threads"))


def shapes(artifact: Artifact, session: Session) -> str:
    """Float32 [batch, classes], finite, of the same bits every time, and different for different pictures."""
    a, b = frames_of(session, session.batch), frames_of(session, session.batch, seed=1)
    first, other, again = session.run(a), session.run(b), session.run(a)
    assert first.dtype == np.float32 and first.shape == (session.batch, len(session.classes))
    assert np.isfinite(first).all()
    assert np.array_equal(first, again), "two runs differ"
    assert not np.array_equal(first, other), "the answer doesn't depend on the picture"
    return f"{list(first.shape)}"


def ownership(artifact: Artifact, session: Session) -> str:
    """Logits belong to the caller, inputs stay the caller's; views that aren't contiguous are taken."""
    frames = frames_of(session, session.batch)
    kept = frames.copy()
    first = session.run(frames)
    expected = first.copy()
    session.run(frames_of(session, session.batch, seed=1))
    assert np.array_equal(first, expected), "a later run changed earlier logits"
    first[:] = np.nan
    assert np.array_equal(session.run(frames), expected), "writing into logits changed the session"
    assert np.array_equal(frames, kept), "the input was written to"
    ticket = session.submit(frames)
    frames[:] = 0
    assert np.array_equal(session.collect(ticket), expected), "the input was read after submit returned"
    mirrored = np.ascontiguousarray(kept[:, :, ::-1])
    assert np.array_equal(session.run(mirrored[:, :, ::-1]), expected), "a view gives another answer"
    return "inputs and logits"


def batches(artifact: Artifact, session: Session) -> str:
    """``map_batches`` gives each picture's own logits in order, whatever the number of pictures."""
    frames = frames_of(session, 2 * session.batch + 1)
    alone = [next(session.map_batches([frame])) for frame in frames]
    for count in {0, 1, session.batch, session.batch + 1, len(frames)}:
        found = list(session.map_batches(iter(frames[:count])))
        assert len(found) == count
        for one, expected in zip(found, alone, strict=False):
            assert one.shape == (len(session.classes),) and relative(one, expected) <= SAME_ARITHMETIC
    return f"batch {session.batch}, up to {len(frames)} pictures"


def errors(artifact: Artifact, session: Session) -> str:
    """Another dtype, shape, rank or type is refused with what was received and what is expected."""
    good = frames_of(session, session.batch)
    expected = f"expected uint8 {list(session.input_shape)}"
    refused(lambda: session.run(good.astype(np.float32)), "image", "received float32", expected)
    refused(lambda: session.run(good[0]), f"received uint8 {list(good[0].shape)}", expected)
    refused(lambda: session.run(np.concatenate([good, good])), expected)
    refused(lambda: session.run(good.transpose(0, 3, 1, 2)), expected)
    refused(lambda: session.submit(good[:, :-1]), expected)
    refused(lambda: session.run([1, 2, 3]), "received list [3]", expected)  # type: ignore[arg-type]
    refused(lambda: list(session.map_batches([good[0, :-1]])), f"expected uint8 {list(good[0].shape)}")
    refused(lambda: session.collect(10**9), "ticket 1000000000")
    return "8 refusals"


def asynchronous(artifact: Artifact, session: Session) -> str:
    """Many in flight, collected in any order, each ticket once; ``run`` may come between."""
    frames = [frames_of(session, session.batch, seed=seed) for seed in range(9)]
    expected = [session.run(frame) for frame in frames]
    for order in (range(9), reversed(range(9)), (4, 0, 8, 1, 7, 2, 6, 3, 5)):
        tickets = [session.submit(frame) for frame in frames]
        assert len(set(tickets)) == len(tickets)
        session.run(frames[0])
        for index in order:
            found = session.collect(tickets[index])
            assert relative(found, expected[index]) <= SAME_ARITHMETIC, f"ticket {index} has another's logits"
        refused(lambda ticket=tickets[0]: session.collect(ticket), "isn't outstanding")  # type: ignore[misc]
    return "9 in flight, 3 orders"


def executed(artifact: Artifact, session: Session) -> str:
    """Every planned layer is found in the executed graph, in the type that was planned; int8 is never left untold."""
    found: dict[str, set[str]] = {}
    for node in session.executed():
        assert node.operator and isinstance(node.name, str)
        found.setdefault(node.name, set()).add(node.type)
    for layer in artifact.manifest.layers:
        assert layer.name in found, f"{layer.name} isn't in the executed graph"
        untold = {""} if layer.precision not in QUANTIZED else set[str]()
        as_planned = found[layer.name] & {layer.precision, *untold}
        assert as_planned, f"{layer.name} runs {found[layer.name]}, not {layer.precision}"
    counts: dict[str, int] = {}
    for layer in artifact.manifest.layers:
        counts[layer.precision] = counts.get(layer.precision, 0) + 1
    return ", ".join(f"{count} layers {precision}" for precision, count in counts.items())


def profile(artifact: Artifact, session: Session) -> str:
    """Each repeat has the same nodes; their times add up to no more than the wall clock's; the session still works."""
    frames = frames_of(session, session.batch)
    start = time.perf_counter_ns()
    rounds = session.profile(frames, 3)
    wall = time.perf_counter_ns() - start
    assert len(rounds) == 3
    assert len({tuple(entry.name for entry in nodes) for nodes in rounds}) == 1
    total = sum(entry.ns for nodes in rounds for entry in nodes)
    assert all(entry.ns >= 0 for nodes in rounds for entry in nodes) and total <= wall
    assert total > 0 or not artifact.manifest.layers
    session.run(frames)
    return f"{len(rounds[0])} nodes"


def threads(artifact: Artifact, session: Session) -> str:
    """Threads that run, submit and collect at once each get their own answers."""
    frames = [frames_of(session, session.batch, seed=seed) for seed in range(4)]
    expected = [session.run(frame) for frame in frames]
    wrong: list[int] = []

    def ask(index: int) -> None:
        for _ in range(5):
            tickets = [session.submit(frames[index]) for _ in range(2)]
            found = [session.run(frames[index]), *(session.collect(ticket) for ticket in reversed(tickets))]
            if max(relative(one, expected[index]) for one in found) > SAME_ARITHMETIC:
                wrong.append(index)

    workers = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong, f"threads {sorted(set(wrong))} got another's answers"
    return "4 threads, 15 inferences each"


def event_loop(artifact: Artifact, session: Session) -> str:
    """Asynchronous calls keep their order, overlap up to the slots, leave the loop free, and are cancelled cleanly."""
    frames = [frames_of(session, session.batch, seed=seed) for seed in range(session.slots + 4)]
    expected = [session.run(frame) for frame in frames]
    entered = Counter[str]()

    class Counted(Session):
        def submit(self, images: np.ndarray) -> int:
            entered["inferences"] += 1
            return session.submit(images)

        def collect(self, ticket: int) -> np.ndarray:
            return session.collect(ticket)

    async def ask() -> list[np.ndarray | BaseException]:
        counted = Counted(artifact, session._open())
        with session._lock:  # the runtime is busy
            calls = [asyncio.create_task(counted.run_async(frame)) for frame in frames]
            while entered["inferences"] < session.slots:
                await asyncio.sleep(0.001)  # which an event loop that is blocked would never come to
            calls[0].cancel()  # at work
            calls[-1].cancel()  # waits
            await asyncio.sleep(0.01)
            assert entered["inferences"] == session.slots, "more at work than there are slots"
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert entered["inferences"] == len(frames) - 1, "a cancelled call that waited was started"
        counted._workers.shutdown()
        return found

    first, *others, last = asyncio.run(ask())
    assert isinstance(first, asyncio.CancelledError) and isinstance(last, asyncio.CancelledError)
    for logits_, right in zip(others, expected[1:-1], strict=True):
        assert isinstance(logits_, np.ndarray) and relative(logits_, right) <= SAME_ARITHMETIC, "another's answer"
    picture = frames[0][0]
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "png")
    answers = asyncio.run(session.classify_async(png.getvalue(), top_k=3))
    for answer, alone in zip(answers, session.classify(picture, top_k=3), strict=True):
        assert answer.label == alone.label and abs(answer.probability - alone.probability) <= SAME_ARITHMETIC
    refused(lambda: asyncio.run(session.run_async(frames[0][0])), "expected uint8")
    return f"{len(frames)} calls on {session.slots} slots, 2 cancelled"


def contract_copy(artifact: Artifact, session: Session) -> str:
    """The graph file's copy of the preprocessing contract and the classes says what the manifest says."""
    module = runtimes.part(artifact.manifest.target.runtime, "session")
    found = module.read_contract(artifact)
    if artifact.manifest.target.runtime == "null":
        return "the null graph has none"
    assert found == contract_metadata(artifact.manifest.preprocessing, artifact.manifest.classes)
    return ", ".join(sorted(found))


def closing(artifact: Artifact, session: Session) -> str:
    """Closing twice is harmless, with work in flight too; afterwards everything is refused in words."""
    with open_session(artifact, OpenOptions(threads=1)) as other:
        frames = frames_of(other, other.batch)
        other.submit(frames)
        other.close()
        other.close()
        for call in (lambda: other.run(frames), lambda: other.submit(frames), other.executed, lambda: other.info):
            refused(call, "closed", "open the artifact again")
        refused(lambda: other.collect(0), "closed")
        refused(lambda: asyncio.run(other.run_async(frames)), "closed")
        refused(lambda: asyncio.run(other.classify_async(frames[0])), "closed")
    return "7 calls refused"


def reopening(artifact: Artifact, session: Session) -> str:
    """Opening and closing again and again leaves no file descriptor and no thread behind."""

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))

    counts = []
    for _ in range(REOPEN):
        with open_session(artifact, OpenOptions(threads=1)) as other:
            other.run(frames_of(other, other.batch))
        counts.append(held())
    fds, tasks = (max(column) - min(column) for column in zip(*counts[1:], strict=True))
    assert fds <= 1 and tasks <= 1, f"descriptors and threads after each closing: {counts}"
    return f"{REOPEN} times"


CHECKS: tuple[Check, ...] = (
    preprocessing,
    logits,
    verification,
    info,
    shapes,
    ownership,
    batches,
    errors,
    asynchronous,
    executed,
    profile,
    threads,
    event_loop,
    contract_copy,
    closing,
    reopening,
)
#: What a model's size matters for.
ARITHMETIC: tuple[Check, ...] = (logits, executed)


def main() -> int:
    global REOPEN
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("artifacts", nargs="+", metavar="ARTIFACT")
    parser.add_argument("--reopen", type=int, default=REOPEN, help="how often to open and close again")
    parser.add_argument(
        "--arithmetic", nargs="*", default=[], metavar="ARTIFACT", help="artifacts of which that alone is checked"
    )
    arguments = parser.parse_args()
    REOPEN = max(2, arguments.reopen)
    done = failed = 0
    todo = [*((path, CHECKS) for path in arguments.artifacts), *((path, ARITHMETIC) for path in arguments.arithmetic)]
    for path, checks in todo:
        artifact = Artifact.open(path)
        with open_session(artifact) as session:
            for check in checks:
                done += 1
                try:
                    line = f"ok    {artifact.manifest.name}  {check.__name__}: {check(artifact, session)}"
                except Exception as error:
                    failed += 1
                    line = f"FAIL  {artifact.manifest.name}  {check.__name__}: {type(error).__name__}: {error}"
                print(line, flush=True)
    print(f"{done} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
