"""The shape of the package: imports point down, and every public name can be imported."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVEL = {
    "errors": 0,
    "fields": 1,
    "extras": 1,
    "types": 2,
    "rng": 2,
    "data": 2,
    "compiling": 2,
    "protocols": 3,
    "linalg": 4,
    "threads": 4,
    "process_memory": 4,
    "execution": 4,
    "distributions": 5,
    "dynamics": 6,
    "costs": 6,
    "control": 6,
    "policies": 6,
    "agents": 6,
    "algorithms": 7,
    "parallel": 8,
    "pipeline": 9,
    "display": 10,
    "gui": 10,
    "cli": 11,
}
ONLY = {"agents": {"agents", "errors", "extras", "fields", "types", "protocols", "rng", "data"}}


def imports_of(path: Path) -> set[str]:
    """First-level names below gps that a file imports, at any depth of its code."""
    used: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "gps":
                used |= {alias.name for alias in node.names}
            elif node.module.startswith("gps."):
                used.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            used |= {a.name.split(".")[1] for a in node.names if a.name.startswith("gps.")}
    return used


def sources() -> list[tuple[str, Path]]:
    out = []
    for path in sorted((ROOT / "gps").rglob("*.py")):
        module = path.relative_to(ROOT / "gps").with_suffix("").parts[0]
        if module != "__init__":
            out.append((module, path))
    for path in sorted((ROOT / "agents").glob("*.py")):
        out.append(("cli" if path.name == "__main__.py" else "agents", path))
    return out


@pytest.mark.parametrize(
    ("module", "path"), sources(), ids=lambda v: str(v.name) if isinstance(v, Path) else v
)
def test_imports_point_down(module, path):
    used = imports_of(path) - {module}
    # the warm-up runs a whole experiment, so it alone in its folder names the parts it runs
    wrong = {u for u in used if LEVEL[u] >= LEVEL[module]}
    assert not wrong, f"gps.{module} ({path.name}) must not import {sorted(wrong)}"
    if module in ONLY:
        assert used <= ONLY[module]


def test_nothing_imports_hyperparams():
    for _, path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith("gps.hyperparams"), path


@pytest.mark.parametrize(
    "name",
    ["gps"]
    + [f"gps.{p.parent.name}" for p in sorted((ROOT / "gps").glob("*/__init__.py"))]
    + ["gps.agents"],
)
def test_every_public_name_can_be_imported(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert module.__all__
    for public in module.__all__:
        assert getattr(module, public) is not None
