"""Pictures that any model learns at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of a dozen pictures each: one bright channel apiece."""
    folder, random = tmp_path_factory.mktemp("data") / "pictures", np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 60, (10, 12, 3), dtype=np.uint8)
            pixels[..., 2 - channel] += 150
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder
