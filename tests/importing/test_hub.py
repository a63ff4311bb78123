"""``hub:`` sources, fetched from a server on this machine through real sockets."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.importing.test_import import pictures, timm_folder
from vitedge.errors import ModelError, ResourceError, UsageError, VitedgeError
from vitedge.formats.model_folder import Model
from vitedge.importing.entry import import_model
from vitedge.importing.hub import fetch

pytest.importorskip("huggingface_hub", reason="huggingface_hub isn't installed (vitedge[hub])")

from huggingface_hub import constants

__all__ = ["pictures"]  # a fixture

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nlicense: cc-by-nc-4.0\ntags: [vit]\n---\n# a model\n"


@dataclass
class Hub:
    """What the server has, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """org/tiny with the branch main; org/gated; everything else is unknown."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            parts = self.path.split("?")[0].strip("/").split("/")
            error, content = None, b""
            if parts[:2] == ["org", "gated"]:
                error = ("GatedRepo", 403)
            elif parts[:2] != ["org", "tiny"] or len(parts) < 5:
                error = ("RepoNotFound", 404)
            elif parts[3] not in ("main", "v1", COMMIT):
                error = ("RevisionNotFound", 404)
            elif parts[4] not in hub.files:
                error = ("EntryNotFound", 404)
            else:
                content = hub.files[parts[4]]
            self.send_response(error[1] if error else 200)
            if error:
                self.send_header("X-Error-Code", error[0])
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.files = {path.name: path.read_bytes() for path in timm_folder(tmp_path / "source").iterdir()}
    config = json.loads(hub.files["config.json"])
    del config["pretrained_cfg"]["license"]
    hub.files |= {"config.json": json.dumps(config).encode(), "README.md": CARD.encode()}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    use(monkeypatch, hub.url, tmp_path / "cache")
    yield hub
    server.shutdown()
    server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """What HF_ENDPOINT and HF_HOME set when the package is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_checkpoint_from_the_hub(hub: Hub, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    model = import_model(
        "hub:org/tiny@v1", tmp_path / "model", images=pictures, progress=lambda *step: seen.append(step)
    )
    record = Model.open(model.path).record
    assert (record.name, record.licence, record.origin.source) == ("tiny", "cc-by-nc-4.0", "hub:org/tiny")
    assert record.origin.details["revision"] == COMMIT and record.origin.kind == "timm"
    assert seen and all(task == "download" and 0 <= done <= total for task, done, total in seen)
    assert any("/resolve/v1/config.json" in request for request in hub.requests)
    for file in ("model.safetensors", "preprocessor_config.json", "processor_config.json"):
        assert any(f"/resolve/{COMMIT}/{file}" in request for request in hub.requests)

    hub.requests.clear()  # a second time nothing is downloaded
    import_model(f"hub:org/tiny@{COMMIT}", tmp_path / "again", images=pictures)
    assert not [request for request in hub.requests if request.startswith("GET") and "model.safetensors" in request]

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # and without the hub it works too
    offline = import_model(f"hub:org/tiny@{COMMIT}", tmp_path / "offline", images=pictures)
    assert offline.onnx_path.read_bytes() == model.onnx_path.read_bytes()


@pytest.mark.parametrize(
    ("source", "kind", "exit_code", "text"),
    [
        ("hub:tiny", UsageError, 2, "isn't hub:<org>/<name>"),
        ("hub:org/tiny@", UsageError, 2, "isn't hub:<org>/<name>"),
        ("hub:org/../etc", UsageError, 2, "isn't hub:<org>/<name>"),
        ("hub:org/none", UsageError, 2, "no public repository org/none"),
        ("hub:org/tiny@v9", UsageError, 2, "no revision 'v9'"),
        ("hub:org/gated", ResourceError, 5, "asks for its terms to be accepted"),
    ],
)
def test_refusals(hub: Hub, tmp_path: Path, source: str, kind: type[VitedgeError], exit_code: int, text: str) -> None:
    with pytest.raises(kind, match=text) as refusal:
        import_model(source, tmp_path / "model")
    assert refusal.value.exit_code == exit_code and not (tmp_path / "model").exists()


def test_a_repository_without_safetensors(hub: Hub, tmp_path: Path, pictures: Path) -> None:
    import safetensors.numpy

    tensors = safetensors.numpy.load(hub.files.pop("model.safetensors"))
    with pytest.raises(ModelError, match=r"org/tiny publishes no model\.safetensors and no pytorch_model\.bin"):
        import_model("hub:org/tiny", tmp_path / "model")
    torch = pytest.importorskip("torch", reason="torch writes the older file")
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(values) for name, values in tensors.items()}, buffer)
    hub.files["pytorch_model.bin"] = buffer.getvalue()
    assert import_model("hub:org/tiny", tmp_path / "model", images=pictures).record.name == "tiny"


@pytest.mark.parametrize("offline", [False, True])
def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    monkeypatch.setattr(time, "sleep", lambda _: None)  # it tries several times, politely
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(
        ResourceError, match=r"the hub can't be reached, and config\.json isn't in the cache"
    ) as refusal:
        fetch("hub:org/tiny", "import hub:org/tiny")
    assert refusal.value.exit_code == 5 and "HF_HUB_OFFLINE" in refusal.value.hint
