"""Seeded random numbers: seeds that depend on their purpose, and the generator that uses them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def seed_of(*words: object) -> int:
    """Return a 63-bit seed from any words, the same on every machine: ``seed_of(seed, "step", 17)``."""
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8], "little") >> 1


def generator(seed: int) -> np.random.Generator:
    """Return NumPy's PCG64 from a seed: the only generator of random numbers outside of torch."""
    import numpy as np

    return np.random.default_rng(seed)
