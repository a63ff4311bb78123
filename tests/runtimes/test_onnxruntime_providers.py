"""ONNX Runtime's execution providers: whole or refused, never a silent fall-back.

What a provider of another build does is planted; that ONNX Runtime refuses a graph that would go to the CPU is real,
by the Azure provider, which most builds have and which takes no node.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import onnxruntime
import pytest
from msgspec.structs import replace

import vitedge
from vitedge.errors import ArtifactError, NotInstalledError, UsageError
from vitedge.formats.artifact import Artifact
from vitedge.formats.target import Provider, load_target
from vitedge.installation import pip
from vitedge.runtimes import here
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.onnxruntime import providers
from vitedge.runtimes.onnxruntime.session import _explained, open_backend
from vitedge.runtimes.session import open_session

ALL = ["CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture(scope="module")
def exported(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return vitedge.export(small_model, "onnxruntime", "fp32", tmp_path_factory.mktemp("providers") / "artifact")


def with_provider(artifact: Artifact, provider: Provider, device: str = "cpu") -> Artifact:
    """The same files, for another target."""
    target = replace(artifact.manifest.target, providers=(provider,), device=device)
    return Artifact(artifact.path, replace(artifact.manifest, target=target))


def target_file(folder: Path, text: str, **changes: str) -> Path:
    source = Path(vitedge.core.paths.find("targets", "onnxruntime")).read_text()
    for old, new in changes.items():
        source = source.replace(old, new)
    file = folder / "board.toml"
    file.write_text(source + text)
    return file


def test_a_target_names_a_provider_and_its_options(tmp_path: Path) -> None:
    text = '\n[[providers]]\nname = "OpenVINO"\noptions = { device_type = "GPU" }\nremainder = ["Cast"]\n'
    (provider,) = load_target(target_file(tmp_path, text)).providers
    assert provider == Provider(name="OpenVINO", options={"device_type": "GPU"}, remainder=("Cast",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('\n[[providers]]\nname = "OpenVNO"\n', "OpenVNO"),
        ('\n[[providers]]\nname = "CUDA"\n[[providers]]\nname = "QNN"\n', "providers"),
        ('\n[[providers]]\nname = "CUDA"\nremainders = []\n', "unknown key 'remainders'"),
    ],
)
def test_a_target_that_says_it_wrong(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_target(target_file(tmp_path, text))


def test_other_runtimes_have_none(tmp_path: Path) -> None:
    file = target_file(tmp_path, '\n[[providers]]\nname = "CUDA"\n', **{'"onnxruntime"': '"openvino"'})
    with pytest.raises(UsageError, match="openvino has no providers"):
        load_target(file)


def test_a_provider_that_this_build_hasnt(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    known = [full for full, _ in providers.NAMES.values()]
    monkeypatch.setattr(onnxruntime, "get_all_providers", lambda: [*known, "CPUExecutionProvider"])
    made = with_provider(exported, Provider(name="CUDA"))
    with pytest.raises(NotInstalledError, match="onnxruntime-gpu brings it") as refused:
        open_session(made)
    assert refused.value.hint == f"run: {pip()} uninstall onnxruntime && {pip()} install onnxruntime-gpu"
    assert "CUDAExecutionProvider" in here.why_not_here(made.manifest.target)
    (undecided,) = (check for check in vitedge.verify(made) if check.ok is None)
    assert "onnxruntime-gpu brings it" in undecided.detail
    with pytest.raises(NotInstalledError, match="has no XnnpackExecutionProvider") as refused:
        open_session(with_provider(exported, Provider(name="XNNPACK")))
    assert refused.value.hint.startswith("build ONNX Runtime with it")


def test_every_provider_of_a_target_has_a_name_and_a_distribution() -> None:
    """Of ours alone: which providers ONNX Runtime knows is its own matter, and changes with its versions."""
    assert list(providers.NAMES) == list(get_args(get_type_hints(Provider)["name"]))
    names = [full for full, _ in providers.NAMES.values()]
    assert len(set(names)) == len(names) and providers.CPU not in names
    assert [full for full in names if not re.fullmatch(r"[A-Z]\w*ExecutionProvider", full)] == []
    assert all(distribution for _, distribution in providers.NAMES.values())


@pytest.mark.parametrize("provider", providers.NAMES)
def test_what_this_onnxruntime_has_of_them(provider: str) -> None:
    """Whatever it lists: what is there is found, and what isn't has the reason that is true of this version."""
    full, _ = providers.NAMES[provider]
    available, unknown = onnxruntime.get_available_providers(), providers.unknown(onnxruntime.get_all_providers())
    why = providers.missing(Provider(name=provider), available, unknown)
    assert (why == "") is (full in available)
    assert ("this version of ONNX Runtime knows no" in why) is (full in unknown and full not in available)
    assert ("brings it" in why) is (full not in unknown and full not in available)


def test_what_a_session_is_created_with() -> None:
    whole = Provider(name="CUDA", options={"device_id": 0, "use_tf32": False})
    assert providers.arguments(whole) == {
        "providers": [("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"})],
        "enable_fallback": 0,
    }
    settings = onnxruntime.SessionOptions()
    providers.configure(settings, whole)
    assert settings.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    partly = Provider(name="CUDA", remainder=("Cast",))
    assert [name for name, _ in providers.arguments(partly)["providers"]] == ["CUDAExecutionProvider", providers.CPU]
    entries: dict[str, str] = {}
    providers.configure(SimpleNamespace(add_session_config_entry=entries.__setitem__), partly)
    assert entries == {}


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that is really here, and takes nothing."""
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no AzureExecutionProvider")
    monkeypatch.setitem(providers.NAMES, "OpenVINO", ("AzureExecutionProvider", "onnxruntime"))


@pytest.mark.usefixtures("azure")
def test_a_graph_that_would_go_to_the_cpu_is_refused(exported: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"doesn't take the graph whole|refuses the graph on OpenVINO") as refused:
        open_session(with_provider(exported, Provider(name="OpenVINO")))
    assert refused.value.hint.startswith("export for another target; or name the operators")
    with open_session(exported) as plain:
        operators = sorted({node.operator for node in plain.executed()})
    some = Provider(name="OpenVINO", remainder=tuple(operators[1:]))
    with pytest.raises(ArtifactError, match=rf"the graph whole: it leaves {operators[0]} \(\d+\) to the CPU"):
        open_session(with_provider(exported, some))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU "
            "EP, but fallback to CPU EP has been explicitly disabled by the user.",
            "the target's provider doesn't take the graph whole",
        ),
        ("some words that no version has said yet", "on OpenVINO: some words that no version has said yet"),
        ("", "on OpenVINO: RuntimeError"),
    ],
)
def test_what_onnxruntime_says_of_a_graph_that_it_refuses(text: str, said: str) -> None:
    """The one text that is known has words of ours; any other is passed on, and what to do is the same."""
    error = _explained(RuntimeError(text), "open it", Provider(name="OpenVINO"))
    assert isinstance(error, ArtifactError) and said in error.reason
    assert error.hint.startswith("export for another target; or name the operators")


@pytest.mark.usefixtures("azure")
def test_a_provider_that_takes_nothing_is_refused_whatever_may_stay_behind(exported: Artifact) -> None:
    with open_session(exported) as plain:
        operators = {node.operator for node in plain.executed()}
    provider = Provider(name="OpenVINO", remainder=tuple(sorted(operators)))
    with pytest.raises(ArtifactError, match="it takes none"):
        open_session(with_provider(exported, provider))


def event(provider: str, operator: str) -> dict[str, Any]:
    return {"args": {"provider": provider, "op_name": operator}}


def test_where_kernels_ran() -> None:
    cuda = [event("CUDAExecutionProvider", "MatMul")] * 3
    cast = [event("CPUExecutionProvider", "Cast")]
    assert providers.check_kernels(Provider(name="CUDA"), cuda, "open it") == "CUDA 3"
    partly = Provider(name="CUDA", remainder=("Cast",))
    assert providers.check_kernels(partly, [*cuda, *cast], "open it") == "CUDA 3, CPU: Cast 1"
    with pytest.raises(ArtifactError, match=r"it leaves Cast \(1\) to the CPU") as refused:
        providers.check_kernels(Provider(name="CUDA"), [*cuda, *cast], "open it")
    assert refused.value.hint.endswith("name the operators that may run on the CPU as the provider's remainder")


def test_another_device_than_the_targets_is_refused(exported: Artifact) -> None:
    made = with_provider(exported, Provider(name="CUDA"), device="cuda:0")
    with pytest.raises(UsageError, match="not on 'cpu'"):
        open_backend(made, OpenOptions(device="cpu"))


@pytest.mark.skipif(
    "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has no OpenVINO provider (pip install onnxruntime-openvino)",
)
def test_openvino_through_onnxruntime_answers_the_same(exported: Artifact) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    with open_session(exported) as plain:
        expected = plain.run(images)
    provider = Provider(name="OpenVINO", options={"device_type": "CPU"})
    with open_session(with_provider(exported, provider)) as session:
        assert session.info["provider"] == "OpenVINOExecutionProvider"
        assert str(session.info["ran_by"]).startswith("OpenVINO ")
        np.testing.assert_allclose(session.run(images), expected, rtol=1e-3, atol=1e-4)
