"""Modules next to a hyperparams file: `import helper` finds helper.py in the same folder.

Every executed file gets modules of its own, whose names begin with its own unique one. So two
experiments may have modules of the same name, `sys.path` stays as it is, and so does `sys.modules`
once the file has run. The statements that import such a module are compiled as calls of the file's
`Siblings`, those inside functions too, which run later and perhaps in another process. As with the
file itself, what a module defines travels to workers by value.

A module lies next to the file as `helper.py` or `helper/__init__.py`. It goes before an installed
package of that name, but not before Python's own modules and `gps`. Only `import` statements are
seen: `importlib.import_module("helper")` finds nothing.
"""

from __future__ import annotations

import ast
import contextlib
import sys
import threading
import types
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gps.errors import ExperimentError

NAME = "__siblings__"
"""What the `Siblings` are called inside the modules that import any."""
_modules: dict[str, types.ModuleType] = {}
"""Executed files and their siblings: type hints of their classes are looked up in them."""
_known: dict[str, Siblings] = {}
"""By token: what travels to a process twice is one set of modules there."""
_lock = threading.RLock()
_depth = 0


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Let type hints of the executed files be looked up meanwhile, as of imported modules."""
    global _depth
    with _lock:
        _depth += 1
        sys.modules.update(_modules)
        try:
            yield
        finally:
            _depth -= 1
            for name in [] if _depth else list(_modules):
                sys.modules.pop(name, None)


def execute_in(module: types.ModuleType, code: types.CodeType) -> None:
    """Run a file's code in a module that `importable` shows from now on, unless the code fails."""
    _modules[module.__name__] = module
    with importable():
        try:
            exec(code, module.__dict__)
        except BaseException:
            sys.modules.pop(module.__name__, None)
            del _modules[module.__name__]
            raise


def file_of(module: str) -> Path | None:
    """Where an executed file lies, by the name of its module; None for one that is not here."""
    file = vars(_modules[module]).get("__file__") if module in _modules else None
    return Path(file) if file and Path(file).is_file() else None


# --- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A file, read."""

    path: Path
    text: bytes
    package: str
    """What its relative imports start from; empty for a file in the folder itself."""


def read(path: Path, package: str = "") -> Source:
    """A file; ExperimentError where it cannot be read."""
    try:
        return Source(path, path.read_bytes(), package)
    except FileNotFoundError:
        raise ExperimentError(f"{path} does not exist") from None
    except OSError as error:
        raise ExperimentError(f"cannot read {path}: {error.strerror}") from error


def beside(main: Source) -> dict[str, Source]:
    """All modules in the file's folder that it imports, and those that they import, by dotted name.

    Imported or not on this run: what is imported inside a function belongs to them. Raises
    ExperimentError for one that cannot be read or parsed.
    """
    found: dict[str, Source] = {}
    left = [main]
    while left:
        source = left.pop()
        for name in _imports(_parsed(source), source.package):
            parts = name.split(".")
            for n in range(1, len(parts) + 1):
                known = ".".join(parts[:n])
                if known in found:
                    continue
                new = _file_of(main.path.parent, parts[:n])
                if new is None:
                    break
                found[known] = new
                left.append(new)
    return found


def imports(main: Source, sources: Mapping[str, Source]) -> set[str]:
    """Dotted names of all that a file and the modules next to it import, or may import."""
    files = (main, *sources.values())
    return {name for source in files for name in _imports(_parsed(source), source.package)}


def _file_of(folder: Path, parts: list[str]) -> Source | None:
    if parts[0] == "gps" or parts[0] in sys.stdlib_module_names:
        return None
    package, module = (
        folder.joinpath(*parts, "__init__.py"),
        folder.joinpath(*parts).with_suffix(".py"),
    )
    if package.is_file():
        return read(package, ".".join(parts))
    return read(module, ".".join(parts[:-1])) if module.is_file() else None


def _parsed(source: Source) -> ast.Module:
    try:
        return ast.parse(source.text, str(source.path))
    except SyntaxError as error:
        where = f"{source.path}:{error.lineno}" if error.lineno else str(source.path)
        raise ExperimentError(f"{where}: syntax error: {error.msg}") from error
    except ValueError as error:  # a NUL byte
        raise ExperimentError(f"{source.path}: is not Python source: {error}") from error


def _imports(tree: ast.Module, package: str) -> list[str]:
    """Dotted names that may be modules, wherever in the code."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (module := _absolute(node, package)):
            names += [module, *(f"{module}.{a.name}" for a in node.names if a.name != "*")]
    return names


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module of `from ... import`; empty for a relative one that has nothing to start from."""
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    if node.level > len(parts):
        return ""
    return ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])


def compiled(source: Source, sources: Mapping[str, Source]) -> types.CodeType:
    """The code of a file; what it imports of `sources` is asked of `Siblings`.

    Raises ExperimentError with file and line.
    """
    tree = _parsed(source)
    if sources:
        tree = _Redirected(source.package, sources).visit(tree)
    try:
        code: types.CodeType = compile(tree, str(source.path), "exec", dont_inherit=True)
    except SyntaxError as error:  # some are found only now: `return` outside of a function
        where = f"{source.path}:{error.lineno}" if error.lineno else str(source.path)
        raise ExperimentError(f"{where}: syntax error: {error.msg}") from error
    return code


class _Redirected(ast.NodeTransformer):
    def __init__(self, package: str, sources: Mapping[str, Source]) -> None:
        self._package, self._sources = package, sources

    def _is_sibling(self, name: str) -> bool:
        return name.partition(".")[0] in self._sources

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        """`import a`, `import a.b`, `import a.b as c`."""
        out: list[ast.stmt] = []
        for alias in node.names:
            top = alias.name.partition(".")[0]
            if not self._is_sibling(alias.name):
                out.append(ast.Import([alias]))
            elif alias.asname:
                out += _statement(f"{alias.asname} = {NAME}.module({alias.name!r})")
            else:
                out += _statement(f"{top} = {NAME}.top({alias.name!r})")
        return [_placed(new, node) for new in out]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | list[ast.stmt]:
        """`from a import b`, `from a import b as c`, `from a import *`, `from . import a`."""
        module = _absolute(node, self._package)
        if not self._is_sibling(module):
            return node
        out: list[ast.stmt] = []
        for alias in node.names:
            if alias.name == "*":
                out += _statement(f"globals().update({NAME}.star({module!r}))")
            else:
                what = f"{NAME}.name({module!r}, {alias.name!r})"
                out += _statement(f"{alias.asname or alias.name} = {what}")
        return [_placed(new, node) for new in out]


def _statement(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def _placed(new: ast.stmt, old: ast.stmt) -> ast.stmt:
    for node in ast.walk(new):
        ast.copy_location(node, old)
    return new


# --- modules -------------------------------------------------------------------------------------


class Siblings:
    """The modules next to one executed file."""

    def __init__(self, root: str, sources: Mapping[str, Source]) -> None:
        """root: name of the file's own module. sources: as `beside` gives them."""
        self._root, self._sources = root, dict(sources)
        self._token = uuid.uuid4().hex  # drivers that share workers count their files alike
        self._loaded: dict[str, SiblingModule] = {}
        _known[self._token] = self

    def module(self, name: str) -> types.ModuleType:
        """The module `a.b`, executed when it is first asked for; ModuleNotFoundError."""
        with _lock:
            return self._loaded.get(name) or self._load(name)

    def top(self, name: str) -> types.ModuleType:
        """The module `a` of `a.b`, with a.b executed too."""
        self.module(name)
        return self.module(name.partition(".")[0])

    def name(self, module: str, name: str) -> Any:
        """What `from module import name` gives; ImportError."""
        found = self.module(module)
        try:
            return getattr(found, name)
        except AttributeError:
            if f"{module}.{name}" in self._sources:
                return self.module(f"{module}.{name}")
            text = f"cannot import name {name!r} from {module!r} ({found.__file__})"
            raise ImportError(text) from None

    def star(self, module: str) -> dict[str, Any]:
        """What `from module import *` gives."""
        found = self.module(module)
        public = [name for name in vars(found) if not name.startswith("_")]
        return {name: self.name(module, name) for name in vars(found).get("__all__", public)}

    def _load(self, name: str) -> types.ModuleType:
        if name not in self._sources:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        source, (parent, _, tail) = self._sources[name], name.rpartition(".")
        if parent:
            self.module(parent)
            if name in self._loaded:
                return self._loaded[name]
        module = SiblingModule(f"{self._root}.{name}")
        module.__file__ = str(source.path)
        module.__package__ = f"{self._root}.{source.package}" if source.package else ""
        vars(module)[NAME] = self
        self._loaded[name] = module
        try:
            execute_in(module, compiled(source, self._sources))
        except BaseException:
            del self._loaded[name]
            raise
        if parent:
            setattr(self.module(parent), tail, module)
        return module

    def __reduce__(self) -> Any:
        return _siblings, (self._token,), (self._root, self._sources, self._loaded)

    def __setstate__(self, state: tuple[str, dict[str, Source], dict[str, SiblingModule]]) -> None:
        self._root, self._sources = state[:2]
        self._loaded = state[2] | self._loaded


def _siblings(token: str) -> Siblings:
    """Those that are in this process already, or empty ones whose state comes later."""
    if token not in _known:
        new = Siblings.__new__(Siblings)
        new._token, new._loaded = token, {}
        _known[token] = new
    return _known[token]


class SiblingModule(types.ModuleType):
    """A module that travels by value, also where it and another one import each other."""

    def __reduce__(self) -> Any:
        siblings: Siblings = vars(self)[NAME]
        name = self.__name__.removeprefix(f"{siblings._root}.")
        state = {key: value for key, value in vars(self).items() if key != "__builtins__"}
        return _module, (siblings._token, self.__name__, name), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            vars(self).setdefault(name, value)


def _module(token: str, full_name: str, name: str) -> SiblingModule:
    """The module that is in this process already, or an empty one whose state comes later."""
    return _siblings(token)._loaded.setdefault(name, SiblingModule(full_name))
