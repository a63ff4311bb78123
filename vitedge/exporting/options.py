"""What to export and how."""

from __future__ import annotations

from vitedge.formats import target

#: What ``--precision`` takes: those of targets, or the first candidate that holds the budget.
PRECISIONS = (*target.PRECISIONS, "auto")
