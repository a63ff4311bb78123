"""The command that an error recommends for a missing extra, for each way of installing."""

from __future__ import annotations

import json
import shlex
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from vitedge import installation
from vitedge.installation import install_command, upgrade_hint


def record(monkeypatch: pytest.MonkeyPatch, folder: Path, url: dict[str, Any] | None) -> None:
    """The package as if it were installed elsewhere, with this record of its origin, by pip's own reader."""
    place = folder / "vitedge-9.9.dist-info"
    place.mkdir()
    needed = "".join(f"Requires-Dist: {each}\n" for each in requires("vitedge") or ())
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vitedge\nVersion: 9.9\n{needed}", encoding="utf-8")
    if url is not None:
        (place / "direct_url.json").write_text(json.dumps(url), encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(installation, "_CHECKOUT", folder)
    monkeypatch.setattr(installation, "pip", lambda: "pip")


def test_a_checkout_is_named() -> None:
    assert shlex.split(install_command("stream"))[-3:] == ["install", "-e", f"{ROOT}[stream]"]
    assert str(ROOT) in upgrade_hint("9.0")


def test_from_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(monkeypatch, tmp_path, None)
    assert install_command("stream") == 'pip install "vitedge[stream]"'
    assert upgrade_hint("9.0") == 'install vitedge 9.0 or newer; run: pip install "vitedge>=9.0"'


def test_from_a_wheel_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "my $wheels" / "vitedge-9.9-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    record(monkeypatch, tmp_path, {"url": wheel.as_uri(), "archive_info": {}})
    assert shlex.split(install_command("stream")) == ["pip", "install", f"{wheel}[stream]"]
    assert str(wheel) in upgrade_hint("9.0")


def test_from_a_wheel_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the extra brings, those of extras inside it too, with the conditions that aren't about extras."""
    record(monkeypatch, tmp_path, {"url": "file:///nowhere/vitedge-9.9-py3-none-any.whl", "archive_info": {}})
    names = {part.split(">")[0] for part in shlex.split(install_command("demo"))[2:]}
    assert names == {"onnx", "onnxruntime", "safetensors", "openvino", "jinja2", "matplotlib"}
    conditional = {part for part in shlex.split(install_command("tensorrt")) if part.startswith("tensorrt")}
    assert conditional and all(part.endswith(">=10.3; (platform_machine == 'x86_64')") for part in conditional)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (
            {"url": "https://example.org/v.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "git+https://example.org/v.git@abc",
        ),
        (
            {"url": "https://example.org/v-1-py3-none-any.whl", "archive_info": {}},
            "https://example.org/v-1-py3-none-any.whl",
        ),
    ],
)
def test_from_an_address(url: dict[str, Any], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(monkeypatch, tmp_path, url)
    assert shlex.split(install_command("stream")) == ["pip", "install", f"vitedge[stream] @ {address}"]


def test_pip_is_the_one_of_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shlex.split(installation.pip()) == [sys.executable, "-m", "pip"]
