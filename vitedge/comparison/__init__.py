"""Rows of results in; ratios with intervals, and whether a difference is allowed, out."""
