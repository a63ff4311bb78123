"""What an inventory may say, and which of its boards a label selects."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import fails
from vitedge.errors import UsageError
from vitedge.fleet.inventory import Board, read_inventory

BOARDS = """
[boards.nano]
host = "nano.local"
labels = ["jetson", "arm"]
jump = "gateway"
[boards.pi5]
host = "pi5"
labels = ["arm"]
venv = "~/edge"
[boards.nuc]
host = "10.0.0.3"
port = 2222
command = "docker exec box vitedge"
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(BOARDS)
    return path


def test_labels_and_names_select_boards(inventory: Path) -> None:
    def names(*labels: str) -> list[str]:
        return [board.name for board in read_inventory(inventory, labels)]

    assert names() == ["nano", "pi5", "nuc"]
    assert names("arm") == ["nano", "pi5"]
    assert names("jetson", "nuc") == ["nano", "nuc"]


def test_how_vitedge_is_started(inventory: Path) -> None:
    nano, pi5, nuc = read_inventory(inventory)
    assert nano.argv("/home/me") == ["/home/me/.cache/vitedge-fleet/venv/bin/vitedge"]
    assert pi5.argv("/home/me") == ["/home/me/edge/bin/vitedge"]
    assert nuc.argv("/home/me") == ["docker", "exec", "box", "vitedge"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "lists no board"),
        ('[boards.a]\nhost = "x"\npassword = "y"', "unknown key 'password'"),
        ('[boards.a]\nhost = "me:secret@x"', "the board 'a' contains a password"),
        ('[boards.a]\nhost = "x"\njump = "me:secret@y"', "the board 'a' contains a password"),
        ('[boards.a]\nhost = "me@x"', "'me@x' isn't a host"),
        ('[boards."a b"]\nhost = "x"', "a name may have letters, digits, '-', '_' and '.'"),
        ('[boards.a]\nhost = "x"\nvenv = "v"\ncommand = "c"', "has both 'venv' and 'command'"),
        ('[boards.a]\nhost = "x"\nport = 70000', "expected `int` <= 65535"),
        ("[boards.a]\nlabels = []", "the key 'host' is missing"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_inventory(path)
    assert reason in caught.value.reason
    assert "secret" not in str(caught.value)


def test_a_label_that_no_board_has_is_refused_with_the_nearest(inventory: Path) -> None:
    action, reason, hint = fails(2, "fleet", "--inventory", inventory, "--on", "jetsn", "doctor")
    assert action == "read the inventory of boards"
    assert reason.endswith("has the name or label 'jetsn'; the nearest is 'jetson'")
    assert hint == "choose from: arm, jetson, nano, nuc, pi5"


def test_without_an_inventory_the_hint_writes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, reason, hint = fails(2, "fleet", "doctor")
    assert reason == "there is no file fleet.toml"
    import subprocess

    subprocess.run(hint.removeprefix("write one: "), shell=True, check=True)
    assert read_inventory("fleet.toml") == [Board(host="pi5.local", name="pi5")]
