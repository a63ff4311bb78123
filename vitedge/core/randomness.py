"""Seeds that are a function of what they are for."""

from __future__ import annotations

import hashlib


def seed_of(*words: object) -> int:
    """A 63-bit seed from any words, the same on every machine: ``seed_of(seed, "step", 17)``."""
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8], "little") >> 1
