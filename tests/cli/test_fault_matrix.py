"""docs/faults.md: every verb under every fault, and none of them calls it a bug."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli import fault_matrix
from tests.cli.fault_matrix import FAULTS, PAGE, VERBS, Cell, Fault

QUICK = ("6 file descriptors", "working directory deleted", "stdout closed")


@pytest.fixture(scope="module")
def lab(small_model: Path, small_data: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vitedge-faults-") as name:
        yield fault_matrix.make_lab(Path(name), small_model, small_data)


def table(faults: list[Fault], lab: Path) -> dict[tuple[str, str], Cell]:
    places = [(fault, verb) for fault in faults for verb in VERBS]
    with ThreadPoolExecutor(2) as pool, tempfile.TemporaryDirectory(prefix="vitedge-faults-") as name:
        Path(name).chmod(0o755)
        folders = [Path(name) / str(number) for number in range(len(places))]
        cells = list(pool.map(lambda place, folder: fault_matrix.run(*place, lab, folder), places, folders))
    return {(fault.name, verb): cell for (fault, verb), cell in zip(places, cells, strict=True)}


def unsound(cells: dict[tuple[str, str], Cell]) -> dict[tuple[str, str], Cell]:
    return {place: cell for place, cell in cells.items() if not fault_matrix.sound(cell)}


def test_the_page_has_every_fault_and_every_verb() -> None:
    written = fault_matrix.codes(PAGE.read_text(encoding="utf-8"))
    assert list(written) == [fault.name for fault in FAULTS]
    assert {len(codes) for codes in written.values()} == {len(VERBS)}
    assert {code for codes in written.values() for code in codes} <= {"0", "2", "3", "4", "5", "7", "8"}
    assert set(written["nothing"]) == {"0"}


def test_what_is_refused_before_any_work(lab: Path) -> None:
    faults = fault_matrix.faults_here(QUICK)
    cells = table(faults, lab)
    assert unsound(cells) == {}
    written = fault_matrix.codes(PAGE.read_text(encoding="utf-8"))
    for fault in faults:
        assert [str(cells[fault.name, verb].code) for verb in VERBS] == written[fault.name], fault.name


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_page_says_what_happens(lab: Path) -> None:
    cells = table(fault_matrix.faults_here(), lab)
    page = fault_matrix.document(cells)
    if "VITEDGE_UPDATE" in os.environ:
        PAGE.write_text(page, encoding="utf-8")
    assert unsound(cells) == {}
    written = fault_matrix.codes(PAGE.read_text(encoding="utf-8"))
    assert fault_matrix.codes(page) == {fault: written[fault] for fault in fault_matrix.codes(page)}
