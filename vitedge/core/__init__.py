"""Paths and bytes in, checked records and safe files out: what everything stands on. It knows nothing of models."""
