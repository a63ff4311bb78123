"""The pipeline as plain calls: what ``import vitedge`` offers lazily, and all that the command line calls for work."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitedge.benchmarking.options import DEMO_SECONDS
from vitedge.core.files import resource_errors as resource_errors
from vitedge.core.options import filled
from vitedge.core.progress import Progress, silent
from vitedge.runtimes.options import TOP_K

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from vitedge.benchmarking.options import BenchConfig
    from vitedge.comparison.compare import Comparison
    from vitedge.comparison.options import Tolerance
    from vitedge.demo import Demo
    from vitedge.doctor import Machine
    from vitedge.errors import VitedgeError
    from vitedge.evaluation.attribution import PictureExplanation
    from vitedge.evaluation.classify import Classified
    from vitedge.evaluation.many import ClassifiedShards
    from vitedge.evaluation.options import EngineOptions
    from vitedge.exporting.options import ExportFields, ExportOptions
    from vitedge.exporting.plan import Plan
    from vitedge.fleet.fleet import Fleet, Say
    from vitedge.fleet.ledger import Outcome
    from vitedge.fleet.options import Selection
    from vitedge.fleet.push import Package
    from vitedge.formats.artifact import Artifact
    from vitedge.formats.model_folder import Model
    from vitedge.formats.recipe import Recipe
    from vitedge.formats.result import Check, Result
    from vitedge.formats.target import Option, Target
    from vitedge.importing.options import ImportFields, ImportOptions
    from vitedge.reporting.delivery import Report
    from vitedge.reporting.inspection import Inspection
    from vitedge.runtimes.options import OpenOptions
    from vitedge.runtimes.session import Session
    from vitedge.shrinking.frontier import Frontier
    from vitedge.shrinking.options import ShrinkFields, ShrinkOptions
    from vitedge.shrinking.plan import ShrinkPlan
    from vitedge.shrinking.table import Table
    from vitedge.streaming.records import FrameRecord
    from vitedge.streaming.settings import StreamFields, StreamSettings
    from vitedge.training.factory import Factory
    from vitedge.training.train import TrainOptions


def import_model(
    source: str | Path | Factory | None,
    out: str | Path,
    options: ImportOptions | None = None,
    *,
    progress: Progress = silent,
    **fields: Unpack[ImportFields],
) -> Model:
    """Bring a published ViT, a torch module, an ONNX file or the embedded model into a model folder.

    Args:
        source: a folder or file in timm's or transformers' layout, a checkpoint of training (``.pth``, ``.ckpt``, …),
            ``"hub:<org>/<name>[@revision]"``, an ONNX file, a folder of ``vitedge train``, ``"embedded"``, or a
            :class:`vitedge.Factory` of a torch module; None: what the option ``factory`` names.
        out: the model folder to write.
        options: what completes the source's own account of itself.
        progress: called with (task, done, total) while files are fetched.
        **fields: of :class:`~vitedge.importing.options.ImportOptions`, in place of those in ``options``.

    Raises:
        as :func:`vitedge.importing.entry.import_model`.
    """
    from vitedge.importing import entry
    from vitedge.importing.factory import chosen_source
    from vitedge.importing.options import ImportOptions
    from vitedge.training.factory import Factory

    chosen = filled(ImportOptions, fields, options, action="import a model", verb="import")
    if not isinstance(source, Factory):
        weights = None if chosen.weights is None else Path(chosen.weights)
        path = None if source is None else str(source)
        source = chosen_source(path, chosen.factory, weights)
    return entry.import_model(
        source,
        out,
        labels=chosen.labels,
        preprocessing=chosen.preprocessing,
        choice=chosen.choice,
        licence=chosen.licence,
        images=chosen.images,
        overwrite=chosen.overwrite,
        progress=progress,
    )


def label(model: Model | str | Path, labels: str | Path | Sequence[str]) -> Model:
    """Name the classes of a model folder, in place.

    Graph, weights and preprocessing stay; the model's digest is another. Artifacts that were exported before keep the
    names that they have: export again.

    Args:
        model: a model folder.
        labels: class names in the order of the logits: a list, or what ``import_model`` takes as ``labels``.

    Raises:
        UsageError: no model folder, or no such labels.
        ModelError: labels that can't be read, whose number isn't that of the classes, or that are empty or there twice.
        ResourceError: the folder can't be written.
    """
    from vitedge.formats.model_folder import Model
    from vitedge.importing import labels as class_names

    opened = model if isinstance(model, Model) else class_names.open_to_label(model)
    return class_names.label(opened, labels)


def export(
    model: Model | str | Path,
    target: Target | str | Path,
    precision: str,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    progress: Progress = silent,
    **fields: Unpack[ExportFields],
) -> Artifact:
    """Quantize and export a model for one target.

    Args:
        model: a model folder.
        target: a target's name, or a TOML file that describes one.
        precision: ``fp32``, ``fp16``, ``int8``, … as the target offers; ``auto``: the first that holds the budget.
        out: the artifact folder to write.
        options: how to calibrate, what accuracy to hold, and what to choose from.
        progress: called with (task, done, total).
        **fields: of :class:`~vitedge.exporting.options.ExportOptions`, in place of those in ``options``.

    Raises:
        UsageError, ModelError, ImageError, ArtifactError, InvalidResultError, ResourceError, NotInstalledError:
            as :func:`vitedge.exporting.plan.plan_export` and :func:`vitedge.exporting.write.export`.
    """
    return carry_out(plan_export(model, target, precision, out, options, **fields), progress)


def plan_export(
    model: Model | str | Path,
    target: Target | str | Path,
    precision: str,
    out: str | Path,
    options: ExportOptions | None = None,
    **fields: Unpack[ExportFields],
) -> Plan:
    """Check an export before any work; :func:`carry_out` does it. Arguments and errors as of :func:`export`."""
    from vitedge.exporting import plan
    from vitedge.exporting.options import ExportOptions

    checked = filled(ExportOptions, fields, options, action="export a model", verb="export")
    return plan.plan_export(model, target, precision, out, checked)


def carry_out(plan: Plan, progress: Progress = silent) -> Artifact:
    """Export as planned.

    Raises:
        as :func:`vitedge.exporting.write.export`.
    """
    from vitedge.exporting import write

    return write.export(plan, progress)


def explain_export(plan: Plan, artifact: Artifact) -> dict[str, Any]:
    """Explain speed and accuracy of an exported artifact layer by layer, and draw its selection beside it.

    Returns:
        "explained": the fields of :class:`vitedge.exporting.explain.Explained`; "picture": the path of the picture, or
        why there is none, or None where nothing was selected.

    Raises:
        ResourceError: the picture can't be written.
    """
    from msgspec import to_builtins

    from vitedge.exporting import write
    from vitedge.reporting import selection

    return {"explained": to_builtins(write.explain(plan, artifact)), "picture": selection.draw(plan, artifact)}


def summary(subject: Model | Artifact | Plan) -> dict[str, Any]:
    """One flat row for people and for ``--json``: an imported model, an exported artifact, or a planned export."""
    from vitedge.exporting import plan, write
    from vitedge.formats.artifact import Artifact
    from vitedge.formats.model_folder import Model

    if isinstance(subject, Model):
        from vitedge.importing import entry

        return entry.summary(subject)
    return write.summary(subject) if isinstance(subject, Artifact) else plan.describe(subject)


def shrink(
    model: Model | str | Path,
    target: Target | str | Path,
    out: str | Path,
    options: ShrinkOptions | None = None,
    *,
    progress: Progress = silent,
    **fields: Unpack[ShrinkFields],
) -> Model:
    """Make a model narrower until it meets a budget, at the least loss, from pictures without labels.

    Args:
        model: a model folder.
        target: the device that it's to be fast on: a target's name, or a TOML file that describes one.
        out: the model folder to write.
        options: the budget, the pictures, and what may be lost.
        progress: called with (task, done, total).
        **fields: of :class:`~vitedge.shrinking.options.ShrinkOptions`, in place of those in ``options``.

    Raises:
        InvalidResultError: the budget can't be met (what was reached is said), or more is lost than may be.
        UsageError, ModelError, ImageError, ResourceError, NotInstalledError:
            as :func:`vitedge.shrinking.plan.plan_shrink` and :func:`vitedge.shrinking.run.carry_out`.
    """
    from vitedge.shrinking.options import ShrinkOptions
    from vitedge.shrinking.run import carry_out

    given = {**fields, "frontier": False}
    checked = filled(ShrinkOptions, given, options, action="shrink a model", verb="shrink")
    checked.require_one_budget("shrink a model")
    with _shrink_plan(model, target, out, checked) as plan:
        return carry_out(plan, progress)


@contextlib.contextmanager
def _shrink_plan(
    model: Model | str | Path, target: Target | str | Path, out: str | Path, options: ShrinkOptions
) -> Iterator[ShrinkPlan]:
    """The plan for a model without the classes that aren't needed, which lies in a folder while it's carried out."""
    from vitedge.shrinking.adapting import of_classes
    from vitedge.shrinking.plan import plan_shrink

    whole = _opened_model(model)
    with of_classes(whole, options.classes, f"shrink {whole.record.name}") as needed:
        yield plan_shrink(needed, target, out, options, source_digest=whole.digest)


def shrink_frontier(
    model: Model | str | Path,
    target: Target | str | Path,
    out: str | Path,
    options: ShrinkOptions | None = None,
    *,
    progress: Progress = silent,
    **fields: Unpack[ShrinkFields],
) -> Frontier:
    """Accuracy against measured latency of a model shrunk to about ten budgets, in float32 and in the precision.

    Args:
        model: a model folder.
        target: a target that runs on this machine.
        out: writes ``<out>.frontier.json`` and ``<out>.frontier.svg`` (where matplotlib is installed).
        options: the pictures and the precision; its budget is left alone.
        progress: called with (task, done, total).
        **fields: of :class:`~vitedge.shrinking.options.ShrinkOptions`, in place of those in ``options``.

    Raises:
        as :func:`shrink`.
    """
    from vitedge.reporting import frontier as picture
    from vitedge.shrinking.frontier import frontier
    from vitedge.shrinking.options import ShrinkOptions

    given = {**fields, "latency": None, "speedup": None, "macs": None, "frontier": True}
    checked = filled(ShrinkOptions, given, options, action="shrink a model", verb="shrink")
    with _shrink_plan(model, target, out, checked) as plan:
        return picture.write(plan, frontier(plan, progress))


def latency_table(
    model: Model | str | Path,
    target: Target | str | Path,
    out: str | Path,
    options: ShrinkOptions | None = None,
    *,
    progress: Progress = silent,
    **fields: Unpack[ShrinkFields],
) -> Table:
    """Measure on this machine what a narrower model saves, for :func:`shrink` anywhere.

    Args:
        model: a model folder.
        target: a target that runs on this machine.
        out: the file to write.
        options: the precision, the threads, the resolutions, and whether ``out`` may be replaced.
        progress: called with (task, done, total).
        **fields: of :class:`~vitedge.shrinking.options.ShrinkOptions`, in place of those in ``options``.

    Raises:
        UsageError: the target doesn't run here, an unknown target or precision, or an existing file.
        Others as :func:`shrink`.
    """
    from vitedge.shrinking import prices
    from vitedge.shrinking.options import ShrinkOptions
    from vitedge.shrinking.plan import check_sizes, plan_deployment

    checked = filled(ShrinkOptions, fields, options, action="measure a latency table", verb="shrink")
    deployed = plan_deployment(model, target, checked, Path(out))
    action = f"{deployed.action}: measure a latency table"
    check_sizes(deployed.model, checked, action)
    with resource_errors(action):
        return prices.latency_table(deployed, Path(out), checked, action, progress)


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
    from vitedge.runtimes.options import OpenOptions
    from vitedge.runtimes.session import open_session

    return open_session(_opened(artifact), OpenOptions(device=device, threads=threads, options=dict(options or {})))


def build(
    artifacts: Artifact | str | Path | Sequence[Artifact | str | Path],
    *,
    sms: Sequence[str] = (),
    out: str | Path | None = None,
    autotune: bool = False,
    data: str | Path | None = None,
    duration_s: float | None = None,
    choices: str | Path | None = None,
    engines: str | Path | None = None,
    options: Mapping[str, Option] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Build the engines of artifacts and of the candidates inside them into this device's cache; or choose among them.

    One artifact that carries candidates is chosen from unless ``sms`` are named: all are built and measured here, and
    opening the artifact opens the fastest within the budget from then on.

    Args:
        artifacts: of TensorRT or TensorRT-RTX, or of any runtime where there is something to choose.
        sms: compute capabilities for TensorRT-RTX to build for; none: those that the target names.
        out: a folder for one artifact's engines (called ``ARTIFACT.engines`` it's found beside the artifact), or for a
            copy of the chosen artifact.
        autotune: choose among several artifacts of one model.
        data: labelled pictures for the accuracy of the candidates.
        duration_s: shortest measurement of each, in seconds.
        choices: folder to write the choice to as well, for machines of the same kind; called ``ARTIFACT.choices`` it's
            found beside the artifact.
        engines: folder to write the engines that this device built to as well, beside those for other devices that lie
            there; called ``ARTIFACT.engines`` it's found beside the artifact.
        options: build options over the manifest's.
        overwrite: permit replacing ``out``, and measuring again what was measured here.
        progress: called with (task, done, total).

    Returns:
        One flat row for each engine, or for each candidate (the fields of :class:`vitedge.runtimes.choice.Timed`).

    Raises:
        UsageError: ``out`` for the engines of several artifacts.
        Others as :func:`vitedge.building.engines.build` and :func:`vitedge.building.choices.autotune`.
    """
    from msgspec import to_builtins

    from vitedge.building import engines as building
    from vitedge.building.choices import autotune as choose
    from vitedge.errors import UsageError
    from vitedge.formats.artifact import Artifact
    from vitedge.runtimes.choice import candidates_of, folders

    several = [artifacts] if isinstance(artifacts, (str, Path, Artifact)) else artifacts
    opened = [artifact if isinstance(artifact, Artifact) else Artifact.open(artifact) for artifact in several]
    within = [candidate for artifact in opened for candidate in candidates_of(artifact)]
    folder = None if out is None else Path(out)
    if autotune or (len(opened) == 1 and not sms and folders(opened[0])):
        timed = choose(
            opened,
            data=None if data is None else str(data),
            out=folder,
            overwrite=overwrite,
            duration_s=duration_s,
            choices=None if choices is None else Path(choices),
            progress=progress,
        )
        rows = [to_builtins(candidate) for candidate in timed]
    elif folder is not None and len(within) > 1:
        raise UsageError("write engines", "one folder is for one artifact", "build one at a time, or add: --autotune")
    else:
        how: dict[str, Any] = {"sms": sms, "options": options, "overwrite": overwrite, "progress": progress}
        rows = [row for artifact in within for row in building.build(artifact, out=folder, **how)]
    if engines is not None:
        building.carry(within, Path(engines), sms=sms, options=options)
    return rows


def plan_build(
    artifacts: Artifact | str | Path | Sequence[Artifact | str | Path],
    *,
    sms: Sequence[str] = (),
    options: Mapping[str, Option] | None = None,
) -> list[dict[str, Any]]:
    """Describe what :func:`build` would build, the memory that it takes, and what the same took before.

    Args:
        artifacts: of TensorRT or TensorRT-RTX; those inside them, too.
        sms: compute capabilities, as for :func:`build`.
        options: build options over the manifest's.

    Returns:
        One row for each engine: see :func:`vitedge.building.engines.plan`.

    Raises:
        UsageError, ResourceError, NotInstalledError: as :func:`build`, before it builds.
    """
    from vitedge.building import engines
    from vitedge.formats.artifact import Artifact
    from vitedge.runtimes.choice import candidates_of

    several = [artifacts] if isinstance(artifacts, (str, Path, Artifact)) else artifacts
    opened = [artifact if isinstance(artifact, Artifact) else Artifact.open(artifact) for artifact in several]
    return [
        row
        for artifact in opened
        for candidate in candidates_of(artifact)
        for row in engines.plan(candidate, sms=sms, options=options)
    ]


def explain_engines(
    artifacts: Sequence[Artifact | str | Path],
    options: OpenOptions | None = None,
    *,
    progress: Progress = silent,
) -> tuple[dict[str, Any], list[str]]:
    """Explain what the engines of artifacts, and of the candidates inside them, do; this takes a GPU.

    Returns:
        An explanation by artifact, and sentences that compare them.

    Raises:
        as :func:`vitedge.building.engines.explain`.
    """
    from vitedge.building import engines
    from vitedge.formats.artifact import Artifact
    from vitedge.runtimes.choice import candidates_of

    opened = [artifact if isinstance(artifact, Artifact) else Artifact.open(artifact) for artifact in artifacts]
    return engines.explain([each for artifact in opened for each in candidates_of(artifact)], options, progress)


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
    config: BenchConfig | None = None,
    options: OpenOptions | None = None,
    *,
    data: str | Path | None = None,
    progress: Progress = silent,
    resume: Result | None = None,
    keep: Callable[[Result], None] | None = None,
) -> Result:
    """Measure the latency of artifacts, interleaved within one run.

    Args:
        artifacts: at least one.
        config: scenario and stop rules; None takes what the targets say.
        options: how each is opened.
        data: pictures to feed, instead of the golden ones.
        progress: called with (task, done, total).
        resume: an earlier result of the same question: a partial one's measurement goes on, a whole one is the answer.
        keep: called now and then with the partial result, to save it.

    Raises:
        as :func:`vitedge.benchmarking.bench.bench`.
    """
    from vitedge.benchmarking.bench import bench as measure
    from vitedge.benchmarking.options import BenchConfig
    from vitedge.data import embedded
    from vitedge.streaming.replay import open_replay

    given = config or BenchConfig()
    config = filled(type(given), {}, given, action="measure latency", verb="bench")
    images = None if data is None else embedded.open_images(data, action="measure latency")
    opened = [_opened(artifact) for artifact in artifacts]
    clip = None if config.replay is None else open_replay(Path(config.replay), opened)
    return measure(opened, config, options, images=images, replay=clip, progress=progress, resume=resume, keep=keep)


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
        limit: number of images to evaluate, the same ones on every machine.
        workers: processes that decode; None decides by the number of images and cores.
        resume: a partial result to go on from.
        keep: called with a partial result every few seconds.
        progress: called with (task, done, total).

    Raises:
        as :func:`vitedge.evaluation.evaluate.evaluate`.
    """
    from vitedge.data import embedded
    from vitedge.errors import UsageError
    from vitedge.evaluation.evaluate import evaluate as run

    action = "evaluate accuracy"
    opened = [_opened(artifact) for artifact in artifacts]
    if data is None and any(artifact.manifest.origin.kind != "embedded" for artifact in opened):
        raise UsageError(
            action,
            "labelled images are needed; the embedded pictures suit the embedded model only",
            "name a folder with one sub-folder a class: --data labelled/",
        )
    images = embedded.open_images(data or "held-out", action=action)
    return run(opened, images, options, limit=limit, workers=workers, resume=resume, keep=keep, progress=progress)


def evaluate_shards(
    artifacts: Iterable[Artifact | str | Path],
    data: str | Path | None,
    engine: EngineOptions,
    options: OpenOptions | None = None,
    *,
    earlier: Result | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Result:
    """Measure the accuracy of artifacts on any number of labelled pictures at any address, by a cluster.

    Args:
        artifacts: at least one, all with the same classes.
        data: a folder with one sub-folder a class, or tar or Parquet shards, at a path or an address of fsspec.
        engine: which engine, where its answers go, and how it's used.
        options: how each artifact is opened.
        earlier: a result that the caller replaces by this one.
        resume: keep the answers that are there; only what is missing is evaluated.
        overwrite: permit replacing them.
        progress: called with (task, shards done, all shards).

    Raises:
        as :func:`vitedge.evaluation.many.evaluate_shards`.
    """
    from vitedge.errors import UsageError
    from vitedge.evaluation import evaluate, many

    action = "evaluate accuracy"
    if data is None:
        raise UsageError(action, "an engine needs labelled pictures that all nodes reach", "name them: --data ADDRESS")
    if earlier is not None:
        evaluate.refuse_no_evaluation(earlier, action)
    opened = [_opened(artifact) for artifact in artifacts]
    return many.evaluate_shards(
        opened, str(data), engine, options, resume=resume, overwrite=overwrite, progress=progress
    )


def compare(
    baseline: Artifact | str | Path,
    candidates: Sequence[Artifact | str | Path],
    allowed: Tolerance | None = None,
    options: OpenOptions | None = None,
    *,
    config: BenchConfig | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    keep: Callable[[Result], None] | None = None,
    progress: Progress = silent,
) -> tuple[Result, list[Comparison]]:
    """Hold artifacts against a baseline: latency interleaved within one run, accuracy on the same images.

    Args:
        baseline: an artifact.
        candidates: at least one artifact.
        allowed: what a candidate may cost; None: its target's budget, and no slow-down.
        options: how each is opened.
        config: how to measure; None is a :class:`vitedge.comparison.options.PairedConfig`.
        data: labelled images to compare the accuracy on; None: latency alone.
        limit: number of images to compare on.
        keep: called with the partial result, now and then and when it's stopped, to save it.
        progress: called with (task, done, total).

    Returns:
        The result, whose first row is the baseline's, and one comparison a candidate.

    Raises:
        as :func:`bench` and :func:`evaluate`.
    """
    from msgspec.structs import replace

    from vitedge.comparison import compare as comparison
    from vitedge.comparison.options import PairedConfig
    from vitedge.formats.result import Stopped, with_partial_rows

    opened = [_opened(artifact) for artifact in (baseline, *candidates)]
    keep = keep or (lambda _: None)
    try:
        result = bench(opened, config or PairedConfig(), options, progress=progress, keep=keep)
    except Stopped as stop:
        keep(stop.result)
        raise
    if data is not None:
        keep(with_partial_rows(replace(result, partial=True)))
        evaluated = evaluate(opened, data, options, limit=limit, progress=progress)
        pairs = zip(result.rows, evaluated.rows, strict=True)
        rows = tuple(replace(row, accuracy=other.accuracy) for row, other in pairs)
        result = replace(result, rows=rows, data=evaluated.data)
    first, *others = ((result, row) for row in result.rows)
    return result, [comparison.compare(first, other, allowed) for other in others]


def comparable(paths: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """Divide paths to compare into (artifacts, results), one of which is empty.

    Raises:
        UsageError: both kinds, neither kind, or too few.
    """
    from vitedge.comparison.inputs import separate

    return separate([Path(path) for path in paths])


def compare_results(results: Sequence[Result | str | Path], allowed: Tolerance | None = None) -> list[Comparison]:
    """Hold rows that were measured before against each other: those of one result against its first, or two results'.

    Raises:
        UsageError: nothing to pair, or rows that can't be compared.
        ArtifactError: not a result.
    """
    from vitedge.comparison import compare
    from vitedge.formats.result import Result, read_result

    read = [result if isinstance(result, Result) else read_result(result) for result in results]
    pairs = compare.pairs(read, "compare results")
    return [compare.compare(before, after, allowed) for before, after in pairs]


def classify(
    artifact: Artifact | str | Path,
    pictures: Sequence[str | Path],
    options: OpenOptions | None = None,
    *,
    top_k: int = TOP_K,
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
    answers: list[Classified] = []
    with open_session(_opened(artifact), options) as session:
        for images in sets:
            for answer in run(session, images, top_k):
                answers.append(answer)
                progress("classify", len(answers), total)
    return answers


def explain_picture(
    source: Model | Artifact | str | Path,
    picture: str | Path,
    out: str | Path | None = None,
    options: OpenOptions | None = None,
    *,
    class_name: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PictureExplanation:
    """Say which patches of a picture an answer came from, by attention rollout and by hiding one patch after another.

    Args:
        source: a model folder, whose graph runs in ONNX Runtime and gives both maps, or an artifact, whose own runtime
            gives occlusion alone.
        picture: a picture file.
        out: a PNG file for the maps; None draws none.
        options: how an artifact is opened; a model folder takes none.
        class_name: the class to explain; None: the most probable one.
        overwrite: replace ``out``.
        progress: called with (task, done, total).

    Raises:
        UsageError: no such source or class, options for a model folder, or ``out`` exists.
        ImageError: the picture can't be read.
        InputError: the model or artifact is damaged.
        InvalidResultError: the logits aren't finite.
        NotInstalledError: a runtime is missing.
        ResourceError: ``out`` can't be written.
    """
    from vitedge.core.files import refuse_existing, write_atomic
    from vitedge.data.images import read_picture
    from vitedge.evaluation import attribution
    from vitedge.formats.artifact import Artifact
    from vitedge.reporting import heatmap
    from vitedge.runtimes.session import open_session

    out = None if out is None else Path(out)
    if out is not None:
        refuse_existing(out, heatmap.PNG, overwrite=overwrite, action=attribution.ACTION)
    decoded = read_picture(Path(picture))
    with contextlib.ExitStack() as stack:
        opened = _opened_either(source)
        if isinstance(opened, Artifact):
            subject = attribution.of_session(stack.enter_context(open_session(opened, options)))
        else:
            attribution.refuse_options(options)
            subject = attribution.of_model(opened)
        image = subject.preprocessing.apply(decoded)
        explanation = attribution.explain(subject, image, Path(picture).name, class_name, progress)
    if out is not None:
        write_atomic(out, heatmap.draw(explanation, image), f"write {out}")
    return explanation


def classify_shards(
    artifact: Artifact | str | Path,
    pictures: Sequence[str | Path],
    engine: EngineOptions,
    options: OpenOptions | None = None,
    *,
    top_k: int = TOP_K,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> ClassifiedShards:
    """Classify any number of pictures at any address, by a cluster; the answers are Parquet files.

    Args and errors are those of :func:`evaluate_shards`; the pictures need no labels.
    """
    from vitedge.evaluation import many

    return many.classify_shards(
        _opened(artifact),
        [str(source) for source in pictures],
        engine,
        options,
        top_k=top_k,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


def stream(
    artifact: Artifact | str | Path | None = None,
    source: str | Sequence[str] | None = None,
    settings: StreamSettings | str | Path | None = None,
    **fields: Unpack[StreamFields],
) -> Generator[FrameRecord, None, None]:
    """Classify camera streams: one record a frame, for as long as the sources last.

    Leaving the loop, or closing the generator, stops the readers. A loop that takes its time is like a slow model:
    frames of a live source are dropped and counted, none is queued.

    Args:
        artifact: an artifact folder.
        source: one or several sources, as ``vitedge stream`` takes them.
        settings: how, or a TOML file that says it.
        **fields: of :class:`~vitedge.streaming.settings.StreamSettings`, in place of those in ``settings``. The page is
            off unless ``headless=False`` is given here.

    Raises:
        UsageError: an option that can't be met.
        StreamError: a source that isn't there, or gave up.
        InputError: a file that can't be decoded.
        NotInstalledError: a package or program is missing.
    """
    from vitedge.core.system import require_linux

    require_linux("classify a stream")
    from vitedge.runtimes.options import OpenOptions
    from vitedge.runtimes.session import open_session
    from vitedge.streaming.records import FrameRecord
    from vitedge.streaming.run import open_artifact, refuse_failed, running

    chosen = _stream_settings(artifact, source, settings, {"headless": True, **fields})
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


def watch(
    artifact: Artifact | str | Path | None = None,
    source: str | Sequence[str] | None = None,
    settings: StreamSettings | str | Path | None = None,
    **fields: Unpack[StreamFields],
) -> None:
    """Run streams to their end in the foreground, as ``vitedge stream`` does: signals drain them, stderr tells of them.

    Args and errors are those of :func:`stream`.
    """
    from vitedge.core.system import require_linux

    require_linux("classify a stream")
    from vitedge.streaming.command import run

    run(_stream_settings(artifact, source, settings, fields))


def _stream_settings(
    artifact: Artifact | str | Path | None,
    source: str | Sequence[str] | None,
    settings: StreamSettings | str | Path | None,
    fields: Mapping[str, Any],
) -> StreamSettings:
    """The settings with what was given beside them."""
    from vitedge.streaming.settings import StreamSettings, merged, read_settings

    given = dict(fields)
    if source:
        given["source"] = (source,) if isinstance(source, str) else tuple(source)
    if artifact is not None:
        given["artifact"] = str(getattr(artifact, "path", artifact))
    return merged(settings, given) if isinstance(settings, StreamSettings) else read_settings(settings, given)


def train(
    data: str | Path,
    options: TrainOptions,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    test: str | Path | None = None,
    command: str = "",
    progress: Progress = silent,
) -> Path:
    """Train a compact ViT on class folders and write a model folder.

    Args:
        data: class folders, an archive of them, or tar shards.
        options: what to train and how. Weights to start from may lie on the hub; the teacher may be whatever
            :func:`import_model` takes.
        out: the model folder to write; ``<out>.run`` beside it holds the checkpoint.
        resume: go on from the checkpoint of a run with the same options and data.
        overwrite: permit replacing ``out`` and starting over in ``<out>.run``.
        test: class folders that are evaluated once, when training is over; they choose nothing.
        command: how the user asked, for the record.
        progress: called with (task, done, total) while weights are fetched.

    Raises:
        NotInstalledError: torch isn't installed.
        Others as :func:`vitedge.training.train.train` and :func:`import_model`.
    """
    from vitedge.errors import NotInstalledError
    from vitedge.training.options import TrainOptions

    try:
        from vitedge.training.train import train as run
    except ModuleNotFoundError as error:
        raise NotInstalledError.for_extra("train a model", error.name or "torch", "train") from error
    from msgspec.structs import replace

    options = filled(TrainOptions, {}, options, action="train a model", verb="train")
    if options.init_from is not None and options.init_from.startswith("hub:"):
        from vitedge.importing.hub import fetch

        fetched = fetch(options.init_from, f"fetch {options.init_from}", progress)
        options = replace(options, init_from=str(fetched.folder))
    labelled = None if test is None else str(test)
    with _imported_teacher(options) as options:
        return run(str(data), options, Path(out), resume=resume, overwrite=overwrite, test=labelled, command=command)


@contextlib.contextmanager
def _imported_teacher(options: TrainOptions) -> Generator[TrainOptions, None, None]:
    """The options with the teacher as a model folder; another source is imported for as long as it's needed."""
    from msgspec.structs import replace

    how = options.distillation
    if how is None or how.teacher == "embedded" or (Path(how.teacher) / "model.json").is_file():
        yield options
        return
    with tempfile.TemporaryDirectory(prefix="vitedge-teacher-") as folder:
        model = import_model(how.teacher, Path(folder) / "model")
        yield replace(options, distillation=replace(how, teacher=str(model.path)))


def report(
    results: Sequence[str | Path | Result],
    *,
    out: str | Path | None = None,
    format: str | None = None,
    data: str | Path | None = None,
    overwrite: bool = False,
) -> Report:
    """Make one report of results: which artifact to deploy and why, with every number behind it.

    Args:
        results: result files, folders of them, and results.
        out: the file to write; None writes none.
        format: ``html``, ``md``, ``csv``, or ``json`` for the rows alone; None: by the name of ``out``, else ``html``.
        data: the labelled images that accuracy was measured on, or the name of an embedded set.
        overwrite: permit replacing ``out``.

    Raises:
        as :func:`vitedge.reporting.delivery.report`.
    """
    from vitedge.reporting import delivery

    labelled = None if data is None else str(data)
    folder = None if out is None else Path(out)
    return delivery.report(results, out=folder, format=format, data=labelled, overwrite=overwrite)


def open_fleet(
    selection: Selection | None = None,
    *,
    password: Callable[[str], str] | None = None,
    say: Say | None = None,
) -> Fleet:
    """Read an inventory of boards; the fleet's methods are what ``vitedge fleet`` does.

    Args:
        selection: the inventory, and which of its boards; None: all boards of ``fleet.toml``.
        password: called with a board's name for its password; None: keys and agents alone.
        say: called with a board's name and what happens there.

    Raises:
        UsageError: no such inventory, or a mistake in it.
    """
    from vitedge.fleet.fleet import Fleet
    from vitedge.fleet.options import Selection

    return Fleet(selection or Selection(), password=password, say=say or (lambda board, text: None))


def fleet_uploads(names: Iterable[str]) -> dict[str, Package]:
    """Package those of some words that name artifacts, folders or files here, for sending them to boards.

    Raises:
        UsageError, ArtifactError, ResourceError: one of them can't be read.
    """
    from vitedge.fleet import push

    return push.uploads(names)


def fleet_outcomes(out: str | Path) -> tuple[list[Outcome], list[tuple[str, str, str]]]:
    """The outcomes in a ledger, by board and job, and the events as (board, job, event).

    Raises:
        UsageError: there is no ledger.
    """
    from vitedge.fleet import fleet

    return fleet.outcomes(out)


def fleet_problem(outcomes: Sequence[Outcome], refused: Mapping[str, VitedgeError]) -> VitedgeError | None:
    """The error that says what isn't done of a fleet's work; None where nothing is missing."""
    from vitedge.fleet.jobs import problem

    return problem(outcomes, refused)


def inspect(path: str | Path, *, everything: bool = False) -> Inspection:
    """Describe a model folder, an artifact, a result or an ONNX file; with ``everything`` all layers and classes.

    Raises:
        as :func:`vitedge.reporting.inspection.inspect`.
    """
    from vitedge.reporting import inspection

    return inspection.inspect(path, everything=everything)


def commands(artifact: Artifact | str | Path) -> list[dict[str, str]]:
    """Give command lines of NVIDIA's own tools that build, time and compare an artifact's graph for TensorRT.

    Raises:
        UsageError: the artifact isn't for TensorRT.
        ArtifactError: it's damaged.
    """
    from vitedge.building import engines

    return engines.commands(_opened(artifact))


def examine() -> Machine:
    """Describe this machine and what it can run, as ``vitedge doctor`` does; nothing here raises."""
    from vitedge import doctor

    return doctor.examine()


def targets() -> list[Target]:
    """Every target: the built-in ones and the user's own."""
    from vitedge.core import paths

    return [target(name) for name in paths.names("targets")]


def target(name: str | Path) -> Target:
    """A target by its name, or of a TOML file.

    Raises:
        UsageError: none has this name, or the file isn't a target.
    """
    from vitedge.formats.target import load_target

    return load_target(name)


def write_target(out: str | Path, name: str | None = None) -> str:
    """Write a commented target file to start from: a copy of a target's, or a template; returns what to type next.

    Raises:
        UsageError: ``out`` exists or isn't called ``*.toml``, or no target has this name.
        ResourceError: it can't be written.
    """
    from vitedge.reporting import catalogue_files

    return catalogue_files.write_target(Path(out), name)


def recipes() -> list[Recipe]:
    """Every recipe: the built-in ones and the user's own."""
    from vitedge.core import paths

    return [recipe(name) for name in paths.names("calibration")]


def recipe(name: str | Path) -> Recipe:
    """A recipe by its name, or of a TOML file.

    Raises:
        UsageError: none has this name, or the file isn't a recipe.
    """
    from vitedge.formats.recipe import load_recipe

    return load_recipe(name)


def architectures() -> list[str]:
    """Names of the zoo's models, which :func:`train` trains."""
    from vitedge.training.zoo import ZOO

    return list(ZOO)


def new_project(out: str | Path) -> Path:
    """Write the folder of a new project: its steps, a folder for pictures, a CI workflow, a systemd unit.

    Args:
        out: the folder, which must not exist.

    Raises:
        UsageError: it exists.
        ResourceError: it can't be written.
    """
    from vitedge.project import new

    return new.new_project(Path(out))


def run_project(
    steps: Sequence[str] = (),
    *,
    start: str | None = None,
    file: str | Path = "vitedge.toml",
    say: Callable[[str], None] = lambda words: None,
) -> None:
    """Run the steps of a project, each in a process of its own, in the folder of its file; the first failure ends it.

    Args:
        steps: their names; none: all of them.
        start: leave out the steps before this one.
        file: of the project.
        say: called with one sentence a step.

    Raises:
        as :func:`vitedge.project.steps.run_project`.
    """
    from vitedge.project import steps as project

    project.run_project(steps, start=start, file=Path(file), say=say)


def run_demo(
    out: str | Path,
    *,
    overwrite: bool = False,
    duration_s: float = DEMO_SECONDS,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda words: None,
) -> Demo:
    """Take the embedded model through the whole pipeline, as ``vitedge demo`` does.

    Args:
        out: a new folder: ``model/``, ``artifacts/``, ``result.json``, ``report.html``.
        overwrite: replace an older demo folder.
        duration_s: seconds of latency measurement for each artifact.
        progress: called with (task, done, total).
        say: called with one sentence a step.

    Raises:
        as :func:`vitedge.demo.demo`.
    """
    from vitedge.demo import demo

    return demo(Path(out), overwrite=overwrite, duration_s=duration_s, progress=progress, say=say)


def _opened(artifact: Artifact | str | Path) -> Artifact:
    """An artifact that was opened before as it is; a path's, or the one of its candidates that was chosen here."""
    from vitedge.formats.artifact import Artifact
    from vitedge.runtimes.choice import open_artifact

    return artifact if isinstance(artifact, Artifact) else open_artifact(artifact)


def _opened_model(model: Model | str | Path) -> Model:
    """A model that was opened before as it is."""
    from vitedge.formats.model_folder import Model

    return model if isinstance(model, Model) else Model.open(model)


def _opened_either(source: Model | Artifact | str | Path) -> Model | Artifact:
    """A model or an artifact, whichever lies at a path."""
    from vitedge.formats.model_folder import MODEL_JSON, Model

    if isinstance(source, (str, Path)):
        return Model.open(source) if (Path(source) / MODEL_JSON).is_file() else _opened(source)
    return source
