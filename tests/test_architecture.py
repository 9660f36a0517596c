"""The direction of imports: every module imports only what lies below it; stages never import each other."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BACKEND, SHARED = ROOT / "backend/portrait_backend", ROOT / "shared/portrait_shared"

LEVELS = [
    {"__init__", "context", "files", "precision"},
    {"models"},
    {"radiance"},
    {"geometry", "diffusion", "portrait", "camera_file"},
    {"painting"},
    {"prior", "restoration", "refinement", "mesh"},
    {"pipeline", "stages", "checkpoints", "outputs", "rendering", "job_folder", "devices", "doctor", "processes", "batch"},
    {"server"},
    {"cluster"},
    {"cli"},
    {"__main__"},
]
"""From the ground up. The seventh level is one house: its modules may import each other."""
OPEN_LEVEL = 6
TOP = {"training", "evaluation"}
"""These may import all but the command line; nothing imports them, except `cli` inside a function."""
SHARED_MAY_IMPORT = {"portrait_shared", "zmq"}


def imports(source: str, package: str) -> Iterator[tuple[str, bool]]:
    """Yield (module, lazy) for every import; `if TYPE_CHECKING` counts too: a type is a dependency."""
    tree = ast.parse(source)
    lazy = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types(block)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in lazy
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            if base in ("portrait_backend", "portrait_shared"):
                for alias in node.names:
                    yield f"{base}.{alias.name}", node in lazy
            else:
                yield base, node in lazy


def _for_types(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` imports nothing when the program runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def part_of(module: str) -> str:
    """Return the part of the backend a module belongs to: portrait_backend.mesh.build -> mesh."""
    rest = module.removeprefix("portrait_backend").removeprefix(".")
    name = rest.split(".")[0]
    return name if name and ((BACKEND / name).is_dir() or (BACKEND / f"{name}.py").is_file()) else "__init__"


def level_of(part: str) -> int:
    for level, parts in enumerate(LEVELS):
        if part in parts:
            return level
    raise AssertionError(f"{part!r} is not in LEVELS: say in tests/test_architecture.py where it belongs")


def violation(importer: str, imported: str, lazy: bool) -> str | None:
    """Return what is wrong with one import inside the backend, None if it is allowed."""
    if importer == imported or imported == "__init__":
        return None
    if imported in TOP:
        allowed = importer in TOP or (importer == "cli" and lazy)
        return None if allowed else "nothing imports it (the command line may, inside a function)"
    if importer in TOP:
        return "belongs to the hosts" if level_of(imported) > OPEN_LEVEL else None
    low, high = level_of(imported), level_of(importer)
    if low < high or low == high == OPEN_LEVEL:
        return None
    return "the same level: stages never import each other" if low == high else "lies above"


def backend_files() -> list[Path]:
    return sorted(BACKEND.rglob("*.py"))


@pytest.mark.parametrize("path", backend_files(), ids=lambda p: p.relative_to(BACKEND).as_posix())
def test_backend_imports_point_down(path: Path) -> None:
    relative = path.relative_to(BACKEND)
    package = ".".join(["portrait_backend", *relative.parent.parts])
    importer = relative.parts[0].removesuffix(".py")
    for module, lazy in imports(path.read_text(encoding="utf-8"), package):
        top = module.split(".")[0]
        assert top not in ("torchvision", "bpy"), f"{relative} imports {module}"
        if top == "portrait_backend" and importer != "__init__":
            problem = violation(importer, part_of(module), lazy)
            assert problem is None, f"{relative} imports {module}: {problem}"
        elif top == "portrait_backend":
            assert lazy or part_of(module) == "pipeline", f"the package itself may import {module} only inside a function"


@pytest.mark.parametrize("path", sorted(SHARED.rglob("*.py")), ids=lambda p: p.name)
def test_shared_imports_only_the_standard_library(path: Path) -> None:
    for module, _ in imports(path.read_text(encoding="utf-8"), "portrait_shared"):
        top = module.split(".")[0]
        assert top in sys.stdlib_module_names or top in SHARED_MAY_IMPORT, f"{path.name} imports {module}"


@pytest.mark.parametrize(
    ("importer", "imported", "lazy"),
    [
        ("mesh", "prior", False),
        ("prior", "restoration", True),
        ("radiance", "portrait", False),
        ("portrait", "pipeline", True),
        ("pipeline", "training", True),
        ("cli", "training", False),
        ("training", "cli", True),
        ("models", "cli", False),
    ],
)
def test_the_rule_refuses(importer: str, imported: str, lazy: bool) -> None:
    assert violation(importer, imported, lazy) is not None


def test_the_reader_finds_every_kind_of_import() -> None:
    source = "import a.b\nfrom portrait_backend import devices\ndef f():\n    from .types import X\n    from ..cli import main\n"
    assert list(imports(source, "portrait_backend.mesh")) == [
        ("a.b", False),
        ("portrait_backend.devices", False),
        ("portrait_backend.mesh.types", True),
        ("portrait_backend.cli", True),
    ]


def test_modules_stay_readable() -> None:
    long = [(path.name, count) for path in backend_files() if (count := len(path.read_text(encoding="utf-8").splitlines())) > 500]
    assert not long, f"would two stories live better apart? {long}"
