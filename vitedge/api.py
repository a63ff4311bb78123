"""The line as plain calls. The command line is a caller of these; ``import vitedge`` offers them lazily."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitedge.core.progress import Progress, silent

if TYPE_CHECKING:
    from vitedge.benchmarking.options import Wish
    from vitedge.comparison.compare import Comparison
    from vitedge.comparison.options import Allowed
    from vitedge.evaluation.classify import Classified
    from vitedge.formats.artifact import Artifact
    from vitedge.formats.model_folder import Model
    from vitedge.formats.recipe import Recipe
    from vitedge.formats.result import Check, Result
    from vitedge.formats.target import Option, Target
    from vitedge.runtimes.base import OpenOptions
    from vitedge.runtimes.session import Session
    from vitedge.streaming.records import FrameRecord
    from vitedge.streaming.settings import Settings
    from vitedge.training.factory import Factory
    from vitedge.training.train import TrainOptions


def import_model(source: str | Path | Factory, out: str | Path, **options: Any) -> Model:
    """Bring a published ViT, a torch module, an ONNX file or the embedded model into a model folder.

    Args:
        source: a folder or file in timm's or transformers' layout, ``"hub:<org>/<name>[@revision]"``, an ONNX file, a
            folder of ``vitedge train``, ``"embedded"``, or a :class:`vitedge.importing.Factory` of a torch module.
        out: the model folder to write.
        **options: as :func:`vitedge.importing.import_model`: ``labels``, ``preprocessing``, ``licence``, ``images``,
            ``overwrite``, ``progress``.

    Raises:
        ModelError: unknown layout, wrong tensors, or logits that differ from the source's.
    """
    from vitedge import importing

    return importing.import_model(source, out, **options)


def export(
    model: Model | str | Path,
    target: Target | str | Path,
    precision: str,
    out: str | Path,
    *,
    recipe: Recipe | str | Path = "default",
    data: str | Path | None = None,
    num_samples: int | None = None,
    held_out: str | Path | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    autotune: bool = False,
    with_candidates: bool = False,
    batch: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Artifact:
    """Quantize and export a model for one target.

    Args:
        model: a model folder.
        target: a target's name, or a TOML file that describes one.
        precision: ``fp32``, ``fp16``, ``int8``, … as the target offers; ``auto``: the first that holds the budget.
        out: the artifact folder to write.
        recipe: how to calibrate; used by quantized precisions.
        data: calibration images; only the embedded model has its own.
        num_samples: calibration images to observe, instead of the recipe's number.
        held_out: pictures that judge what is lost; by default what calibration leaves over of ``data``.
        max_drop: percentage points of top-1 that may be lost against float32, at the worse end of its 95 % interval.
            Layers go back to float until it holds.
        min_agreement: per cent of the pictures that must be called as float32 calls them, likewise.
        autotune: measure every candidate that holds the budget on this machine, and take the fastest.
        with_candidates: the other candidates that hold the budget travel with the artifact; :func:`build` chooses
            among them on the device.
        batch: pictures per inference, instead of the target's.
        overwrite: replace an existing artifact.
        progress: called with (task, done, total).

    Raises:
        UsageError, ModelError, ImageError, ArtifactError, InvalidResultError, ResourceError, NotInstalledError:
            as :func:`vitedge.exporting.plan.plan_export` and :func:`vitedge.exporting.write.export`.
    """
    from vitedge.exporting import write
    from vitedge.exporting.plan import plan_export

    plan = plan_export(
        model,
        target,
        precision,
        out,
        recipe=recipe,
        data=data,
        num_samples=num_samples,
        held_out=held_out,
        max_drop=max_drop,
        min_agreement=min_agreement,
        autotune=autotune,
        with_candidates=with_candidates,
        batch=batch,
        overwrite=overwrite,
    )
    return write.export(plan, progress)


def open(
    artifact: Artifact | str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    options: Mapping[str, Option] | None = None,
) -> Session:
    """Open an artifact in its target's runtime.

    Args:
        artifact: an artifact folder.
        device: the runtime's own word, instead of the target's.
        threads: compute threads, instead of the target's (0: the machine's physical cores).
        options: runtime options, over the manifest's.

    Raises:
        NotInstalledError: the runtime isn't installed.
        ArtifactError: the artifact is damaged or can't be loaded.
    """
    from vitedge.runtimes.base import OpenOptions
    from vitedge.runtimes.session import open_session

    return open_session(_opened(artifact), OpenOptions(device=device, threads=threads, options=dict(options or {})))


def build(
    artifact: Artifact | str | Path,
    *,
    sms: Sequence[str] = (),
    out: str | Path | None = None,
    options: Mapping[str, Option] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Build an artifact's engines into this device's cache, and with ``out`` into a folder that travels beside it.

    Of an artifact that carries candidates, all are built and measured here, and the fastest within the budget is the
    one that opening the artifact opens from then on; ``out`` gets a copy of it.

    Args:
        artifact: of TensorRT or TensorRT-RTX, or one with candidates.
        sms: compute capabilities for TensorRT-RTX to build for; none: those that the target names.
        out: an export folder; called ``ARTIFACT.engines`` beside the artifact it's found on opening.
        options: build options over the manifest's.
        overwrite: permit replacing ``out``, and measuring again what was measured here.
        progress: called with (task, done, total).

    Returns:
        One flat row for each engine, or for each candidate (as :class:`vitedge.runtimes.choice.Timed`).

    Raises:
        as :func:`vitedge.building.engines.build` and :func:`vitedge.building.choices.autotune`.
    """
    from msgspec import to_builtins

    from vitedge.building import choices, engines
    from vitedge.formats.artifact import Artifact
    from vitedge.runtimes.choice import folders

    where = None if out is None else Path(out)
    opened = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
    if folders(opened) and not sms:
        timed = choices.autotune([opened], out=where, overwrite=overwrite, progress=progress)
        return [to_builtins(one) for one in timed]
    return engines.build(opened, sms=sms, out=where, options=options, overwrite=overwrite, progress=progress)


def verify(artifact: Artifact | str | Path, options: OpenOptions | None = None) -> list[Check]:
    """The self-test of an artifact on this machine; a check that failed has ``ok`` False.

    Raises:
        ArtifactError: the artifact is damaged.
        NotInstalledError: its runtime isn't installed, though it could be here.
    """
    from vitedge.verification.verify import verify as check

    return check(_opened(artifact), options)


def bench(
    artifacts: Iterable[Artifact | str | Path],
    wish: Wish | None = None,
    options: OpenOptions | None = None,
    *,
    data: str | Path | None = None,
    progress: Progress = silent,
    resume: Result | None = None,
    keep: Callable[[Result], None] | None = None,
) -> Result:
    """Measure the latency of artifacts, which take turns within one run.

    Args:
        artifacts: at least one.
        wish: scenario and stop rules; None takes what the targets say.
        options: how each is opened.
        data: pictures to feed, instead of the golden ones.
        progress: called with (task, done, total).
        resume: a partial result, whose measurement goes on.
        keep: called now and then with the partial result, to save it.

    Raises:
        as :func:`vitedge.benchmarking.bench.bench`.
    """
    from vitedge.benchmarking.bench import bench as measure
    from vitedge.data import embedded

    images = None if data is None else embedded.open_images(data, action="measure latency")
    opened = [_opened(artifact) for artifact in artifacts]
    return measure(opened, wish, options, images=images, progress=progress, resume=resume, keep=keep)


def evaluate(
    artifacts: Iterable[Artifact | str | Path],
    data: str | Path | None = None,
    options: OpenOptions | None = None,
    *,
    limit: int | None = None,
    workers: int | None = None,
    resume: Result | None = None,
    keep: Callable[[Result], None] | None = None,
    progress: Progress = silent,
) -> Result:
    """Measure the accuracy of artifacts on labelled pictures, in one pass.

    Args:
        artifacts: at least one, all with the same classes.
        data: a folder or archive with one sub-folder a class, or an embedded set's name; only artifacts of the
            embedded model have pictures of their own (``held-out``).
        options: how each is opened.
        limit: evaluate so many images, the same ones on every machine.
        workers: processes that decode; None decides by the number of images and cores.
        resume: a partial result to go on from.
        keep: called with a partial result every few seconds.
        progress: called with (task, done, total).

    Raises:
        as :func:`vitedge.evaluation.evaluate.evaluate`.
    """
    from vitedge.data import embedded
    from vitedge.errors import UsageError
    from vitedge.evaluation.evaluate import evaluate as judge

    action = "evaluate accuracy"
    opened = [_opened(artifact) for artifact in artifacts]
    if data is None and any(artifact.manifest.origin.kind != "embedded" for artifact in opened):
        raise UsageError(
            action,
            "labelled images are needed; the embedded ones serve the embedded model alone",
            "name a folder with one sub-folder a class: --data labelled/",
        )
    images = embedded.open_images(data or "held-out", action=action)
    return judge(opened, images, options, limit=limit, workers=workers, resume=resume, keep=keep, progress=progress)


def compare(
    baseline: Artifact | str | Path,
    candidates: Sequence[Artifact | str | Path],
    allowed: Allowed | None = None,
    options: OpenOptions | None = None,
    *,
    wish: Wish | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    keep: Callable[[Result], None] | None = None,
    progress: Progress = silent,
) -> tuple[Result, list[Comparison]]:
    """Hold artifacts against a baseline: latency in turns within one run, accuracy on the same images.

    Args:
        baseline: an artifact.
        candidates: at least one artifact.
        allowed: what a candidate may cost; None: its target's budget, and no slow-down.
        options: how each is opened.
        wish: how to measure; None is a :class:`vitedge.comparison.options.Rounds`.
        data: labelled images to compare the accuracy on; None: latency alone.
        limit: compare on so many of the images.
        keep: called with the partial result, now and then and when it's stopped, to save it.
        progress: called with (task, done, total).

    Returns:
        The result, whose first row is the baseline's, and one comparison a candidate.

    Raises:
        as :func:`bench` and :func:`evaluate`.
    """
    from msgspec.structs import replace

    from vitedge.comparison import compare as comparison
    from vitedge.comparison.options import Rounds
    from vitedge.formats.result import Stopped

    opened = [_opened(artifact) for artifact in (baseline, *candidates)]
    keep = keep or (lambda _: None)
    try:
        result = bench(opened, wish or Rounds(), options, progress=progress, keep=keep)
    except Stopped as stop:
        keep(stop.result)
        raise
    if data is not None:
        keep(replace(result, partial=True))
        judged = evaluate(opened, data, options, limit=limit, progress=progress)
        pairs = zip(result.rows, judged.rows, strict=True)
        rows = tuple(replace(row, accuracy=other.accuracy) for row, other in pairs)
        result = replace(result, rows=rows, data=judged.data)
    first, *others = ((result, row) for row in result.rows)
    return result, [comparison.compare(first, other, allowed) for other in others]


def compare_results(results: Sequence[Result | str | Path], allowed: Allowed | None = None) -> list[Comparison]:
    """Hold rows that were measured before against each other: those of one result against its first, or two results'.

    Raises:
        UsageError: nothing to pair, or rows that can't be compared.
        ArtifactError: not a result.
    """
    from vitedge.comparison import compare
    from vitedge.formats.result import Result, read_result

    read = [one if isinstance(one, Result) else read_result(one) for one in results]
    found = compare.pairs(read, "compare results")
    return [compare.compare(before, after, allowed) for before, after in found]


def classify(
    artifact: Artifact | str | Path,
    pictures: Sequence[str | Path],
    options: OpenOptions | None = None,
    *,
    top_k: int = 5,
    progress: Progress = silent,
) -> list[Classified]:
    """Classify pictures, folders and archives of pictures.

    Raises:
        as :func:`vitedge.evaluation.classify.classify`.
    """
    from vitedge.data import embedded
    from vitedge.evaluation.classify import classify as run
    from vitedge.runtimes.session import open_session

    sets = [embedded.open_images(source, action="classify pictures") for source in pictures]
    total = sum(map(len, sets))
    found: list[Classified] = []
    with open_session(_opened(artifact), options) as session:
        for images in sets:
            for entry in run(session, images, top_k):
                found.append(entry)
                progress("classify", len(found), total)
    return found


def stream(
    artifact: Artifact | str | Path | None = None,
    source: str | Sequence[str] | None = None,
    *,
    settings: str | Path | Settings | None = None,
    **flags: Any,
) -> Generator[FrameRecord, None, None]:
    """Classify camera streams: one record a frame, for as long as the sources last.

    Leaving the loop, or closing the generator, stops the readers. A loop that takes its time is like a slow model:
    frames of a live source are dropped and counted, none is queued.

    Args:
        artifact: an artifact folder.
        source: one or several sources, as ``vitedge stream`` takes them.
        settings: a TOML file with the flags' names, or settings made before.
        **flags: flags of ``vitedge stream`` with underscores, put over the settings: ``policy="every"``,
            ``smoothing=0.5``. The page is off unless ``headless=False`` is given.

    Raises:
        UsageError: a wish that can't be met.
        StreamError: a source that isn't there, or gave up.
        InputError: a file that can't be decoded.
        NotInstalledError: a package or program is missing.
    """
    from vitedge.runtimes.base import OpenOptions
    from vitedge.runtimes.session import open_session
    from vitedge.streaming.records import FrameRecord
    from vitedge.streaming.run import open_artifact, refuse_failed, running
    from vitedge.streaming.settings import Settings, merged, read_settings

    given: dict[str, Any] = {"headless": True, **flags}
    if source is not None:
        given["source"] = (source,) if isinstance(source, str) else tuple(source)
    if artifact is not None:
        given["artifact"] = str(getattr(artifact, "path", artifact))
    chosen = merged(settings, given) if isinstance(settings, Settings) else read_settings(settings, given)
    options = OpenOptions(device=chosen.device, threads=chosen.threads)
    with open_session(open_artifact(chosen), options) as session, running(session, chosen) as engine:
        items = engine.items()
        try:
            for item in items:
                if isinstance(item, FrameRecord):
                    yield item
        finally:
            items.close()
    assert engine.final is not None
    refuse_failed(engine.final, stopped=False)


def train(data: str | Path, options: TrainOptions, out: str | Path, **more: Any) -> Path:
    """Train a compact ViT from class folders; see :func:`vitedge.training.train.train`."""
    from vitedge.training.train import train as run

    return Path(run(str(data), options, Path(out), **more))


def _opened(artifact: Artifact | str | Path) -> Artifact:
    """An artifact that was opened before as it is; a path's, or the one of its candidates that was chosen here."""
    from vitedge.formats.artifact import Artifact
    from vitedge.runtimes.choice import open_artifact

    return artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
