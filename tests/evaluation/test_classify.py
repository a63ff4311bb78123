from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarking.nulls import NAMES, coloured, null_artifact
from vitedge.data.images import ImageSet
from vitedge.errors import ImageError
from vitedge.evaluation.classify import classify
from vitedge.runtimes.session import open_session


def test_pictures_to_answers(tmp_path: Path) -> None:
    for red in range(3):
        (tmp_path / f"{red}.png").write_bytes(coloured(red))
    (tmp_path / "1.png").write_bytes(b"no picture")
    with open_session(null_artifact(tmp_path / "artifact")) as session:
        images = ImageSet.open(tmp_path).subset([0, 1, 2])
        first, broken, last = classify(session, images, top_k=2)
        assert [entry.picture for entry in (first, broken, last)] == ["0.png", "1.png", "2.png"]
        assert [first.answers[0].label, last.answers[0].label] == [NAMES[0], NAMES[2]]
        assert len(first.answers) == 2 and first.answers[0].probability > first.answers[1].probability
        assert not broken.answers and "JPEG" in broken.problem and not first.problem
        with pytest.raises(ImageError):
            list(classify(session, ImageSet.open(tmp_path / "1.png")))
