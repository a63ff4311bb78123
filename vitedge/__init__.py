"""vitedge: a Vision Transformer goes in, and for every device a verified, measured, running classifier comes out.

Importing this package imports nothing heavy; every function fetches what it needs when it's called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitedge._version import __version__

if TYPE_CHECKING:
    from vitedge.api import (
        bench,
        build,
        classify,
        compare,
        evaluate,
        export,
        import_model,
        open,
        plan_export,
        stream,
        train,
        verify,
    )

__all__ = [
    "__version__",
    "bench",
    "build",
    "classify",
    "compare",
    "evaluate",
    "export",
    "import_model",
    "open",
    "plan_export",
    "stream",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from vitedge import api

        return getattr(api, name)
    raise AttributeError(f"module 'vitedge' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
