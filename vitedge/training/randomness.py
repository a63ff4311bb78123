"""Random numbers that depend on their purpose, and not on the numbers drawn before them.

A number is a hash of the run's seed, the view, the picture and the purpose. So a picture's augmentation is the same
whichever process, device or part of a batch it falls into, after a kill as before it, and for a teacher as for its
student.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitedge.core.randomness import seed_of


def keys_of(seed: int, numbers: Tensor) -> Tensor:
    """Return int64 [...]: one key for each of ``numbers`` (int64 [...]: of pictures, or places in a batch)."""
    return _scrambled(_scrambled(numbers + 1) ^ seed)


def uniform(keys: Tensor, purpose: str) -> Tensor:
    """Return float32 [...] in [0, 1), one number for each key and purpose."""
    return _fraction(_scrambled(keys ^ seed_of(purpose)))


def uniform_fields(keys: Tensor, purpose: str, size: int) -> Tensor:
    """Return float32 [..., size] in [0, 1): a row of numbers for each key and purpose."""
    starts = _scrambled(keys ^ seed_of(purpose))
    return _fraction(_scrambled(starts[..., None] + torch.arange(size, device=keys.device)))


def _scrambled(x: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014) to int64, whose products wrap."""
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros; torch's own shift of int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _fraction(x: Tensor) -> Tensor:
    return _shifted(x, 40).float() * 2.0**-24
