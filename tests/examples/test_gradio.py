"""The page of ``examples/gradio``, asked by Gradio's own client."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitedge
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_page_answers_as_the_session_does(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    client = pytest.importorskip("gradio_client", reason="gradio isn't installed; .ci/slow installs it")
    pytest.importorskip("gradio", reason="gradio isn't installed; .ci/slow installs it")
    artifact = vitedge.export(small_model, "onnxruntime", "fp32", tmp_path / "artifact")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, "-u", str(ROOT / "examples/gradio/app.py"), str(artifact.path)]
    picture = small_data / "bee" / "3.png"
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as page:
        try:
            assert page.stdout is not None
            address = next(found[0] for line in page.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            said = client.Client(address, verbose=False).predict(client.handle_file(picture), api_name="/classify")
        finally:
            page.terminate()
    with vitedge.open(artifact) as session:
        expected = session.classify(picture)
    assert said["label"] == expected[0].label
    assert [each["confidence"] for each in said["confidences"]] == pytest.approx(
        [answer.probability for answer in expected], abs=1e-5
    )
