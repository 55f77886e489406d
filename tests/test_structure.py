"""The shape of the package: imports point down and not in circles, public names are there."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVEL = {
    "__version__": 0,
    "errors": 0,
    "fields": 1,
    "extras": 1,
    "types": 2,
    "rng": 2,
    "data": 2,
    "kept_files": 3,
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
    "gui": 10,
    "cli": 11,
}
ONLY = {
    "agents": {
        *("agents", "errors", "extras", "fields", "types", "protocols", "rng", "data"),
        "kept_files",
    }
}


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


def modules() -> dict[str, Path]:
    """All files of gps/ and agents/ by the names of their modules."""
    found = {}
    for name, folder in (("gps", ROOT / "gps"), ("gps.agents", ROOT / "agents")):
        for path in folder.rglob("*.py"):
            parts = [name, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that code imports, or that may be names in what it imports; what is for type
    checkers only is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node)


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which of these modules the source of each imports, at any depth of its code."""
    edges: dict[str, set[str]] = {}
    for name, text in sources.items():
        found = set(imported(ast.parse(text)))
        # `from gps.pipeline import store` is the module, `from gps.pipeline import run` the package
        homes = {n if n in sources else n.rpartition(".")[0] for n in found}
        edges[name] = (homes & sources.keys()) - {name}
    return edges


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that all import each other, directly or not."""
    reached: dict[str, set[str]] = {}
    for name in edges:
        seen: set[str] = set()
        left = list(edges[name])
        while left:
            one = left.pop()
            if one not in seen:
                seen.add(one)
                left += edges[one]
        reached[name] = seen
    groups = {
        frozenset(other for other in reached[name] if name in reached[other]) for name in edges
    }
    return sorted((set(group) for group in groups if group), key=sorted)


def test_circles_are_seen():
    sources = {
        "gps.a": "import gps.b",
        "gps.b": "def f():\n    with x:\n        from gps import c",
        "gps.c": "from gps.a import name",
        "gps.d": "if TYPE_CHECKING:\n    import gps.e\nimport gps.a",
        "gps.e": "import gps.d, os.path",
    }
    assert circles(graph(sources)) == [{"gps.a", "gps.b", "gps.c"}]


def test_no_files_import_each_other():
    sources = {name: path.read_text() for name, path in modules().items()}
    assert len(sources) > 100
    assert circles(graph(sources)) == []


def test_nothing_imports_hyperparams():
    for name, path in modules().items():
        for found in imported(ast.parse(path.read_text())):
            assert not f"{found}.".startswith("gps.hyperparams."), name


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
