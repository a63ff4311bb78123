"""vitedge on boards without internet: wheels for their architecture and Python, and a new environment in one step."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cli.command import fails, vitedge
from tests.fleet.boards import Desk
from vitedge.errors import InputError, ResourceError, UsageError
from vitedge.fleet.wheels import Machine, described, needed, resolve

ARM = Machine(arch="aarch64", python="3.10.12", glibc="2.35")
X86 = Machine(arch="x86_64", python="3.13.1", glibc="2.41")


def wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any", needs: tuple[str, ...] = ()) -> Path:
    """A wheel that has nothing but metadata."""
    path = folder / f"{name}-{version}-{tag}.whl"
    record = f"{name}-{version}.dist-info"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {one}" for one in needs),
    ]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{record}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{record}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{record}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index in a folder, and nothing beside it."""
    pytest.importorskip("packaging")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("pip isn't installed")
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    wheel(folder, "pip", "30.0")
    wheel(folder, "small", "1.0", needs=('old ; python_version < "3.11"', 'arm[fast] ; platform_machine == "aarch64"'))
    wheel(folder, "small", "2.0")
    wheel(folder, "old", "1.0")
    wheel(folder, "arm", "1.1", "cp310-cp310-manylinux_2_36_aarch64")  # for a newer C library
    wheel(folder, "arm", "1.2", "cp311-cp311-manylinux_2_28_aarch64")
    wheel(folder, "arm", "1.0", "cp310-cp310-manylinux_2_28_aarch64", needs=('quick ; extra == "fast"',))
    wheel(folder, "quick", "1.0")
    return folder


def test_markers_and_wheels_are_those_of_the_board(index: Path, tmp_path: Path) -> None:
    own = wheel(tmp_path, "vitedge", "0.1.0", needs=("small<2", 'quick ; extra == "host"'))
    (tmp_path / "there").mkdir()
    got = resolve(own, (), ARM, tmp_path / "there")
    versions = {path.name.split("-")[0]: path.name.split("-")[1] for path in got}
    assert versions == {"vitedge": "0.1.0", "pip": "30.0", "small": "1.0", "old": "1.0", "arm": "1.0", "quick": "1.0"}
    assert [each.name for each in needed(index / "small-1.0-py3-none-any.whl", [""], X86)] == []


def test_what_cannot_be_had_is_named(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="nowhere"):
        resolve(wheel(tmp_path, "vitedge", "0.1.0", needs=("nowhere",)), (), ARM, index)
    (tmp_path / "vitedge-1-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(InputError, match="isn't a wheel"):
        needed(tmp_path / "vitedge-1-py3-none-any.whl", [""], ARM)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            b'{"arch": "aarch64", "python": "3.8.10", "glibc": "2.31"}',
            "its Python is 3.8.10; vitedge needs 3.10 or newer",
        ),
        (b'{"arch": "aarch64", "python": "3.12.1", "glibc": ""}', "it has no GNU C library, which the wheels need"),
    ],
)
def test_boards_that_no_wheels_fit(answer: bytes, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        described(answer, "pi5")
    assert caught.value.reason == reason


def test_a_board_with_a_command_of_its_own_is_refused(desk: Desk) -> None:
    desk.add("box", venv=None, command="docker exec box vitedge")
    assert "its entry in the inventory starts vitedge by a 'command'" in fails(2, "fleet", "install")[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_board_gets_vitedge_from_wheels_alone(desk: Desk, artifacts: Path) -> None:
    """The checkout's own wheel with its real dependencies; what is there already isn't sent again."""
    board = desk.add("nuc", venv=None)
    done = vitedge("fleet", "install", "-q")
    assert done.code == 0, done.err
    environment = board.home / "fleet" / "venv"
    assert environment.is_symlink() and "vitedge 0." in done.out
    again = vitedge("fleet", "install", "-q", "--json", "-")
    assert '"sent_bytes": 0' in again.out or '"wheels"' in again.out
    done = vitedge("fleet", "bench", artifacts / "one", "--duration", "0.1", "--warmup", "0.1", "-q")
    assert done.code == 0, done.err
    place = environment.resolve()
    origin = [str(environment / "bin" / "python"), "-c", "import onnxruntime; print(onnxruntime.__file__)"]
    said = subprocess.run(origin, capture_output=True, text=True, check=True, cwd="/").stdout
    assert said.startswith(str(place)) or said.startswith(str(environment))
    environment.unlink()
    environment.mkdir()
    assert "it isn't a link" in fails(5, "fleet", "install", "-q")[1]
