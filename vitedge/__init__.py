"""vitedge: a Vision Transformer goes in, and for every device a verified, measured, running classifier comes out.

Importing this package imports nothing heavy; every function fetches what it needs when it's called, and every type is
imported when it's first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitedge._version import __version__

if TYPE_CHECKING:
    from vitedge.api import (
        architectures,
        bench,
        build,
        carry_out,
        classify,
        classify_shards,
        commands,
        comparable,
        compare,
        compare_results,
        evaluate,
        evaluate_shards,
        examine,
        explain_engines,
        explain_export,
        explain_picture,
        export,
        fleet_outcomes,
        fleet_problem,
        fleet_uploads,
        import_model,
        inspect,
        label,
        latency_table,
        new_project,
        open,
        open_fleet,
        plan_build,
        plan_export,
        recipe,
        recipes,
        report,
        run_demo,
        run_project,
        shrink,
        shrink_frontier,
        stream,
        summary,
        target,
        targets,
        train,
        verify,
        watch,
        write_target,
    )
    from vitedge.benchmarking.options import BenchConfig
    from vitedge.comparison.compare import Comparison
    from vitedge.comparison.options import PairedConfig, Tolerance
    from vitedge.demo import Demo
    from vitedge.doctor import Machine
    from vitedge.errors import (
        ArtifactError,
        ImageError,
        InputError,
        Interrupted,
        InvalidResultError,
        ModelError,
        NotInstalledError,
        ResourceError,
        StreamError,
        UsageError,
        VitedgeError,
    )
    from vitedge.evaluation.attribution import PictureExplanation
    from vitedge.evaluation.classify import Classified
    from vitedge.evaluation.many import ClassifiedShards
    from vitedge.evaluation.options import EngineOptions
    from vitedge.exporting.options import ExportOptions
    from vitedge.exporting.plan import Plan
    from vitedge.fleet.doctor import BoardState
    from vitedge.fleet.fleet import Fleet
    from vitedge.fleet.ledger import Outcome
    from vitedge.fleet.options import Keeping, Selection
    from vitedge.formats.artifact import Artifact
    from vitedge.formats.model_folder import Model
    from vitedge.formats.recipe import Recipe
    from vitedge.formats.result import Check, Result, Stopped
    from vitedge.formats.target import Target
    from vitedge.importing.options import ImportOptions
    from vitedge.reporting.delivery import Report
    from vitedge.reporting.inspection import Inspection
    from vitedge.runtimes.options import OpenOptions
    from vitedge.runtimes.session import Prediction, Session
    from vitedge.shrinking.frontier import Frontier
    from vitedge.shrinking.options import ShrinkOptions
    from vitedge.shrinking.table import Table
    from vitedge.streaming.records import FrameRecord
    from vitedge.streaming.settings import StreamSettings
    from vitedge.training.factory import Factory
    from vitedge.training.options import Augmentation, Distillation, TrainOptions

#: Where each public type lives; every other public name is a function of :mod:`vitedge.api`.
_TYPES = {
    "benchmarking.options": ("BenchConfig",),
    "comparison.compare": ("Comparison",),
    "comparison.options": ("PairedConfig", "Tolerance"),
    "demo": ("Demo",),
    "doctor": ("Machine",),
    "errors": (
        "ArtifactError",
        "ImageError",
        "InputError",
        "Interrupted",
        "InvalidResultError",
        "ModelError",
        "NotInstalledError",
        "ResourceError",
        "StreamError",
        "UsageError",
        "VitedgeError",
    ),
    "evaluation.attribution": ("PictureExplanation",),
    "evaluation.classify": ("Classified",),
    "evaluation.many": ("ClassifiedShards",),
    "evaluation.options": ("EngineOptions",),
    "exporting.options": ("ExportOptions",),
    "exporting.plan": ("Plan",),
    "fleet.doctor": ("BoardState",),
    "fleet.fleet": ("Fleet",),
    "fleet.ledger": ("Outcome",),
    "fleet.options": ("Keeping", "Selection"),
    "formats.artifact": ("Artifact",),
    "formats.model_folder": ("Model",),
    "formats.recipe": ("Recipe",),
    "formats.result": ("Check", "Result", "Stopped"),
    "formats.target": ("Target",),
    "importing.options": ("ImportOptions",),
    "reporting.delivery": ("Report",),
    "reporting.inspection": ("Inspection",),
    "runtimes.options": ("OpenOptions",),
    "runtimes.session": ("Prediction", "Session"),
    "shrinking.frontier": ("Frontier",),
    "shrinking.options": ("ShrinkOptions",),
    "shrinking.table": ("Table",),
    "streaming.records": ("FrameRecord",),
    "streaming.settings": ("StreamSettings",),
    "training.factory": ("Factory",),
    "training.options": ("Augmentation", "Distillation", "TrainOptions"),
}

__all__ = [
    "Artifact",
    "ArtifactError",
    "Augmentation",
    "BenchConfig",
    "BoardState",
    "Check",
    "Classified",
    "ClassifiedShards",
    "Comparison",
    "Demo",
    "Distillation",
    "EngineOptions",
    "ExportOptions",
    "Factory",
    "Fleet",
    "FrameRecord",
    "Frontier",
    "ImageError",
    "ImportOptions",
    "InputError",
    "Inspection",
    "Interrupted",
    "InvalidResultError",
    "Keeping",
    "Machine",
    "Model",
    "ModelError",
    "NotInstalledError",
    "OpenOptions",
    "Outcome",
    "PairedConfig",
    "PictureExplanation",
    "Plan",
    "Prediction",
    "Recipe",
    "Report",
    "ResourceError",
    "Result",
    "Selection",
    "Session",
    "ShrinkOptions",
    "Stopped",
    "StreamError",
    "StreamSettings",
    "Table",
    "Target",
    "Tolerance",
    "TrainOptions",
    "UsageError",
    "VitedgeError",
    "__version__",
    "architectures",
    "bench",
    "build",
    "carry_out",
    "classify",
    "classify_shards",
    "commands",
    "comparable",
    "compare",
    "compare_results",
    "evaluate",
    "evaluate_shards",
    "examine",
    "explain_engines",
    "explain_export",
    "explain_picture",
    "export",
    "fleet_outcomes",
    "fleet_problem",
    "fleet_uploads",
    "import_model",
    "inspect",
    "label",
    "latency_table",
    "new_project",
    "open",
    "open_fleet",
    "plan_build",
    "plan_export",
    "recipe",
    "recipes",
    "report",
    "run_demo",
    "run_project",
    "shrink",
    "shrink_frontier",
    "stream",
    "summary",
    "target",
    "targets",
    "train",
    "verify",
    "watch",
    "write_target",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vitedge' has no attribute '{name}'")
    from importlib import import_module

    home = next((module for module, names in _TYPES.items() if name in names), "api")
    return getattr(import_module(f"vitedge.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
