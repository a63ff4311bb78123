"""The tree is the one in docs/architecture.md, imports go one way along it, heavy packages load where they're used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import vitedge
from tests.conftest import ROOT

PACKAGE = ROOT / "vitedge"

#: Packages and loose modules from the bottom to the top, and which of those before it each imports, also for types and
#: inside functions. ``errors``, ``installation`` and ``_version`` are everybody's.
IMPORTS = {
    "_version": "",
    "installation": "",
    "errors": "",
    "core": "",
    "device": "core",
    "data": "core",
    "formats": "core device data",
    "graph": "core data formats",
    "training": "core device data formats graph",
    "importing": "core data formats graph training",
    "quantization": "core data formats graph",
    "runtimes": "core device data formats graph quantization",
    "verification": "core data formats runtimes",
    "evaluation": "core data formats graph runtimes",
    "benchmarking": "core device data formats runtimes verification",
    "exporting": "core device data formats graph quantization runtimes evaluation benchmarking",
    "building": "core device data formats runtimes evaluation benchmarking",
    "comparison": "core data formats evaluation benchmarking",
    "shrinking": "core device data formats graph training quantization runtimes benchmarking exporting comparison",
    "streaming": "core device data formats runtimes benchmarking",
    "project": "core",
    "doctor": "core device formats runtimes",
    "fleet": "core formats",
    "reporting": "core device data formats graph runtimes evaluation benchmarking exporting comparison shrinking doctor"
    " fleet",
    "demo": "core data formats importing runtimes verification evaluation benchmarking exporting reporting",
    "api": "core data formats training importing runtimes verification evaluation benchmarking exporting building"
    " comparison shrinking streaming project doctor fleet reporting demo",
    "cli": "core training importing runtimes evaluation benchmarking exporting comparison shrinking streaming fleet"
    " reporting api",
    "__init__": "training importing runtimes evaluation benchmarking exporting comparison shrinking streaming doctor"
    " fleet reporting demo api formats",
    "__main__": "cli",
}
EVERYBODYS = {"errors", "installation", "_version"}

#: Heavy packages, and what may import them when it's imported itself; all else imports them inside functions.
AT_IMPORT = {
    "numpy": "core data formats graph training importing quantization runtimes verification evaluation benchmarking"
    " exporting building comparison shrinking streaming",
    "PIL": "data benchmarking streaming",
    "onnx": "graph quantization runtimes shrinking",
    "torch": "training",
    "safetensors": "",
    "onnxruntime": "",
    "openvino": "",
    "tensorrt": "",
    "tensorrt_rtx": "",
    "matplotlib": "",
    "jinja2": "",
    "rich": "",
    "asyncssh": "fleet",
    "av": "",
    "cv2": "",
    "ray": "",
    "pyarrow": "",
    "fsspec": "",
}


class Import(NamedTuple):
    """One import of a module."""

    module: str  # "vitedge.core.files", "numpy"
    at_import: bool  # whether it happens when the importing module is imported


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name: "vitedge.core.files"; a package by its own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import statement of a module, a name of a package being the module of this name where there is one."""
    found: list[Import] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found.extend(Import(name if name in modules() else node.module, at_import) for name in names)
        only_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, at_import and not function and not only_for_types)

    visit(ast.parse(path.read_text()), True)
    return tuple(found)


def part(module: str) -> str:
    """The package or loose module that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def used(name: str) -> set[str]:
    """What a package or loose module imports of others."""
    paths = [path for module, path in modules().items() if part(module) == name]
    found = {part(each.module) for path in paths for each in imports(path) if each.module.split(".")[0] == "vitedge"}
    return found - EVERYBODYS - {name}


def test_every_part_is_listed() -> None:
    assert {part(module) for module in modules()} == set(IMPORTS)


@pytest.mark.parametrize("name", IMPORTS)
def test_imports_go_one_way(name: str) -> None:
    order = list(IMPORTS)
    allowed = set(IMPORTS[name].split())
    assert all(order.index(other) < order.index(name) for other in allowed), "the list itself goes up"
    assert used(name) <= allowed, f"{name} imports {', '.join(sorted(used(name) - allowed))}"
    assert allowed <= used(name), f"{name} needn't import {', '.join(sorted(allowed - used(name)))}: shorten the list"


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = modules()
    arrows = {name: {each.module for each in imports(path)} & set(names) - {name} for name, path in names.items()}
    while leaves := {name for name, others in arrows.items() if not others}:
        arrows = {name: others - leaves for name, others in arrows.items() if name not in leaves}
    assert not arrows, f"a cycle among {', '.join(sorted(arrows))}"


def test_runtimes_know_nothing_of_each_other() -> None:
    """What lies beside them, or in a folder ``_name``, is for all."""
    folders = {path.parent.name for path in (PACKAGE / "runtimes").glob("[!_]*/__init__.py")}
    for module, path in modules().items():
        own = module.split(".")[2:3]
        if part(module) == "runtimes" and path.parent != PACKAGE / "runtimes":
            for each in imports(path):
                others = each.module.split(".")
                if others[:2] == ["vitedge", "runtimes"] and others[2:3] != own:
                    assert not folders & set(others[2:3]), f"{module} imports {each.module}"


@pytest.mark.parametrize("module", modules())
def test_heavy_packages_are_imported_where_they_are_used(module: str) -> None:
    for name in (each.module.split(".")[0] for each in imports(modules()[module]) if each.at_import):
        assert part(module) in AT_IMPORT.get(name, part(module)).split(), f"{module} imports {name} at import"


# --- the tree --------------------------------------------------------------------------------------------------------


def packages() -> list[str]:
    """The folders of the package, in the order of the list."""
    return [name for name in IMPORTS if (PACKAGE / name).is_dir()]


def docstring(package: str) -> str:
    return ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text())) or ""


def test_few_modules_are_loose() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "_version"}
    assert len(loose) <= 6, sorted(loose)


def test_no_package_shadows_a_function() -> None:
    here = {path.stem for path in PACKAGE.iterdir()}
    assert not here & set(vitedge.__all__)


#: What the command line may import of the product beside itself: calls, options, what renders, and what signals do.
DOORS = re.compile(
    r"vitedge\.(api|errors|_version|core\.(process|progress|stopping)|reporting(\.\w+)*|\w+\.(options|settings))"
)


@pytest.mark.parametrize("module", [name for name in modules() if part(name) == "cli"])
def test_the_command_line_calls_the_api_alone(module: str) -> None:
    others = {each.module for each in imports(modules()[module]) if each.module.split(".")[0] == "vitedge"}
    wrong = {name for name in others if not (part(name) == "cli" or DOORS.fullmatch(name) or name == "vitedge")}
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("package", packages())
def test_every_package_says_what_enters_and_what_leaves(package: str) -> None:
    first = docstring(package).splitlines()[0]
    assert first.endswith(".") and re.search(r"\bin\b.*\bout\b", first)


def test_the_document_is_the_tree() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)/` \| (.+) \|$", page, flags=re.MULTILINE)
    assert dict(rows) == {package: docstring(package).splitlines()[0] for package in packages()}
    assert [name for name, _ in rows] == packages(), "in the order of the imports"
    for path in PACKAGE.glob("[!_]*.py"):
        assert f"`{path.name}`" in page


@pytest.mark.parametrize(
    "page",
    [path for folder in (ROOT, ROOT / "docs") for path in sorted(folder.glob("*.md"))],
    ids=lambda path: path.name,
)
def test_what_the_documents_name_exists(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"`((?:vitedge|tests|benchmarks|targets|calibration|docs)/[\w./-]*)`", text)
    linked = re.findall(r"\]\((?!http)([^)#]+)", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    missing += [path for path in linked if not (page.parent / path).exists()]
    assert not missing


def test_tests_lie_in_the_folder_of_what_they_test() -> None:
    more = {
        "browser",
        "contract",
        "examples",
        "site",
    }  # "browser": in a real one; "contract": all runtimes'; "site": docs
    assert {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")} <= {*packages(), *more}


# --- what imports cost ----------------------------------------------------------------------------------------------

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "numpy", "cv2", "av", "matplotlib")
HEAVY += ("asyncssh",)


@pytest.mark.parametrize("statement", ["import vitedge", "import vitedge.cli"])
def test_nothing_heavy_is_imported(statement: str) -> None:
    code = f"{statement}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


VERBS = ["", "export", "import", "bench", "stream", "train", "compare", "shrink", "fleet", "fleet bench"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys, atexit; from vitedge.cli import main\n"
        f"atexit.register(lambda: sys.stderr.write(repr([name for name in {HEAVY!r} if name in sys.modules])))\n"
        f"main({[*verb.split(), '--help']!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "vitedge" in done.stdout
