"""A module imports only from floors below it or from its own folder, and heavy packages only where they may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vitedge"

#: Floor of every module and folder. What isn't listed here fails the test.
FLOORS = {
    "_version": 0,
    "errors": 0,
    "schema": 0,
    "catalogue": 0,
    "versions": 0,
    "files": 0,
    "isolation": 0,
    "hardware": 0,
    "clocks": 0,
    "progress": 0,
    "architecture": 1,
    "deviation": 1,
    "target": 1,
    "recipe": 1,
    "preprocessing": 1,
    "shards": 1,
    "images": 1,
    "golden": 1,
    "model_folder": 1,
    "artifact": 1,
    "percentiles": 1,
    "latency": 1,
    "result": 1,
    "embedded": 1,
    "clip": 1,
    "graph": 2,
    "quantize": 3,
    "models": 3,
    "importing": 3,
    "runtimes": 4,
    "harness": 5,
    "accuracy": 5,
    "camera": 5,
    "checks": 6,
    "reporting": 6,
    "machine": 6,
    "comparison": 6,
    "tuning": 6,
    "calibrating": 7,
    "judging": 7,
    "planning": 7,
    "candidates": 7,
    "selecting": 7,
    "exporting": 7,
    "building": 7,
    "pipeline": 7,
    "demo": 7,
    "cli": 8,
    "__init__": 9,
    "__main__": 9,
}

#: Modules of one floor that may be imported by others of the same floor, in this order.
ORDER_WITHIN = {
    0: [
        "_version",
        "errors",
        "schema",
        "catalogue",
        "versions",
        "files",
        "isolation",
        "hardware",
        "clocks",
        "progress",
    ],
    1: [
        "architecture",
        "target",
        "recipe",
        "preprocessing",
        "shards",
        "images",
        "golden",
        "model_folder",
        "artifact",
        "percentiles",
        "latency",
        "result",
        "embedded",
        "clip",
    ],
    5: ["harness", "accuracy", "camera"],
    3: ["models", "importing"],
    6: ["tuning", "reporting"],
    7: ["calibrating", "judging", "planning", "candidates", "selecting", "exporting", "building", "pipeline", "demo"],
}

#: Heavy packages, and the parts of vitedge that may import them when they are imported themselves.
AT_IMPORT = {
    "numpy": {1, 2, 3, 4, 5, 6, 7},
    "PIL": {1, 3, 5, 6, 7},
    "onnx": {2, 3, 4},
    "safetensors": {2, 3},
    "torch": {3},
    "onnxruntime": set(),
    "openvino": set(),
    "tensorrt": set(),
    "tensorrt_rtx": set(),
    "matplotlib": set(),
    "jinja2": set(),
    "rich": set(),
    "av": set(),
    "cv2": set(),
}


def _part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def _imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it's imported when this module is) for every import statement outside TYPE_CHECKING."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child, at_import)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            if module == "vitedge":
                found.extend((f"vitedge.{alias.name}", at_import) for alias in node.names)
            else:
                found.append((module, at_import))
        inner = at_import and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(path.read_text()), True)
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_imports_go_down(path: Path) -> None:
    part = _part(path)
    assert part in FLOORS, f"{part} has no floor: add it to FLOORS"
    floor = FLOORS[part]
    for module, at_import in _imports(path):
        top = module.split(".")[0]
        if top == "vitedge":
            if module == "vitedge":
                continue
            other = module.split(".")[1]
            if other == part:
                if part == "runtimes":
                    _check_siblings(path, module)
                continue
            if other not in FLOORS:  # a name of vitedge/__init__.py
                assert floor >= 7, f"{path.name} imports {module}"
                continue
            below = FLOORS[other] < floor
            order = ORDER_WITHIN.get(floor, [])
            beside = FLOORS[other] == floor and part in order and order.index(other) < order.index(part)
            assert below or beside, (
                f"{path.relative_to(PACKAGE)} (floor {floor}) imports {module} (floor {FLOORS[other]})"
            )
        elif at_import and top in AT_IMPORT:
            allowed = floor in AT_IMPORT[top] and (top != "torch" or part == "models")
            assert allowed, f"{path.relative_to(PACKAGE)} (floor {floor}) imports {module} at import"


def _check_siblings(path: Path, module: str) -> None:
    """Runtimes never import each other; what is at the top of runtimes/, or in a folder ``_name``, is for all."""
    parts = path.relative_to(PACKAGE / "runtimes").parts
    names = module.split(".")
    if len(parts) > 1 and len(names) > 2 and (PACKAGE / "runtimes" / names[2]).is_dir() and names[2][0] != "_":
        assert names[2] == parts[0], f"{path} imports its sibling {module}"


HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "numpy", "cv2", "av", "matplotlib")


@pytest.mark.parametrize("statement", ["import vitedge", "import vitedge.cli"])
def test_nothing_heavy_is_imported(statement: str) -> None:
    code = f"{statement}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, atexit; from vitedge.cli import main\n"
        f"atexit.register(lambda: sys.stderr.write(repr([name for name in {HEAVY!r} if name in sys.modules])))\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "export" in done.stdout
