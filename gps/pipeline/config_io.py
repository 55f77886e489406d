"""Configuration trees as JSON: what experiment.json holds, without pickle.

    a dataclass         {"class": "gps.costs.action:ActionCost", "fields": {...}}
    tuple               {"tuple": [...]}
    list                [...]
    dict                {"dict": {...}}, keys are strings
    array               {"array": [...], "dtype": "float64", "shape": [2, 3]}, values in C order
    NaN, infinity       {"float": "nan"}, {"float": "inf"}, {"float": "-inf"}
    path                {"path": "/data/model.xml"}
    member of an Enum   {"enum": "hyperparams:Gait", "member": "TROT"}
    function, class     {"name": "gps.costs.base:ramp"}
    the rest            None, true, 1, 1.5, "text" as JSON has them

Names are `module:qualname`. Only names below `gps.` are imported, and nothing but a dataclass is
called on reading. What the user's hyperparams file defines is named `hyperparams:MyCost`, what a
module next to it defines, or one that a script has imported, `hyperparams.helper:MyCost`; the
reader passes the names of the copy in the run folder in. Names of other installed packages are
those of modules that this file has imported: a name alone, which may be a stranger's, imports none
of them.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np

from gps.errors import ConfigError, ExperimentError, GPSError, choices
from gps.pipeline import siblings
from gps.types import iter_fields

USER_MODULES = "gps_experiment_"
"""Prefix of the names of modules that hold a user's hyperparams file; see the loader."""
USER = "hyperparams"
"""What stands for such a module in a stored name."""

_NAMED = {"class", "name", "enum"}

Names = Callable[[], Mapping[str, Any]]
"""Gives the names of the user's hyperparams file; called only when one is needed."""


def name_of(thing: Any, has: Callable[[str], bool] | None = None) -> str:
    """`module:qualname` of a class or function that can be found again; ExperimentError if not.

    has: whether the run that it is stored in has a copy of a module of the user's; None: it will.
    """
    module, qualname = thing.__module__, thing.__qualname__
    if "<" in qualname:
        inside = "defined inside a function" if "<locals>" in qualname else "a lambda"
        raise ExperimentError(
            f"{_plain(module)}{qualname} cannot be stored: it is {inside}; define it by name at "
            "the top level of the hyperparams file, or of a module that a script or notebook "
            "imports"
        )
    if module.startswith(USER_MODULES):
        _, dot, sibling = module.partition(".")
        return f"{USER}{dot}{sibling}:{qualname}"
    if module.startswith("gps."):
        return f"{module}:{qualname}"
    if module == "__main__":
        raise ExperimentError(
            f"{qualname} cannot be stored: it is defined in __main__, the script or notebook that "
            f"runs now and is not there to be imported later; move it to a module (mine.py: from "
            f"mine import {qualname.partition('.')[0]}), or into a hyperparams file"
        )
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is not thing or _top(module) in sys.stdlib_module_names:
        raise ExperimentError(
            f"{module}.{qualname} cannot be stored: only what can be imported under that name from "
            "gps.*, the hyperparams file, or a module or package of your own can be found again"
        )
    if not _is_own(module):
        return f"{module}:{qualname}"
    if has is not None and not has(module):
        raise ExperimentError(
            f"{module}.{qualname} cannot be stored: the run has no copy of that module, since "
            "neither its hyperparams file nor another part of the experiment imports it"
        )
    return f"{USER}.{module}:{qualname}"


def _plain(module: str) -> str:
    """The module's name in front of a name in a message; nothing for that of a user's file."""
    return "" if module.startswith(USER_MODULES) or module == "__main__" else f"{module}."


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_own(module: str) -> bool:
    """Whether an imported module is the user's own file, not an installed package's."""
    file = Path(sys.modules[module].__dict__.get("__file__") or "")
    installed = {"site-packages", "dist-packages"} & {*file.parts}
    return file.suffix == ".py" and not installed


def users_of(tree: Any) -> dict[str, list[str]]:
    """What a stored tree names of the hyperparams file and of modules next to it, by module:
    `hyperparams`, `hyperparams.helper`."""
    return {m: names for m, names in _named_in(tree).items() if _top(m) == USER}


def packages_of(tree: Any) -> list[str]:
    """The modules of installed packages, other than gps, of which a stored tree names something."""
    return [module for module in _named_in(tree) if _top(module) not in (USER, "gps")]


def _named_in(tree: Any) -> dict[str, list[str]]:
    """All names in a stored tree, by module."""
    found: dict[str, list[str]] = {}
    if isinstance(tree, list):
        parts = [_named_in(item) for item in tree]
    elif isinstance(tree, dict):
        parts = [_named_in(item) for key, item in tree.items() if key not in _NAMED]
        for key in _NAMED & tree.keys():
            module, colon, qualname = str(tree[key]).partition(":")
            if colon:
                parts.append({module: [qualname]})
    else:
        return {}
    for part in parts:
        for module, names in part.items():
            known = found.setdefault(module, [])
            known += [name for name in names if name not in known]
    return found


def find(name: str, user: Names | None = None) -> Any:
    """The class or function behind `module:qualname`; ExperimentError when it is not allowed."""
    module, colon, qualname = name.partition(":")
    top, _, sibling = module.partition(".")
    first, *rest = qualname.split(".")
    if not colon or not module or top in ("__main__", *sys.stdlib_module_names):
        raise ExperimentError(
            f"{name!r} is not allowed here: names come from gps.*, from the hyperparams file, or "
            "from packages other than Python's own that it imports"
        )
    known: Mapping[str, Any] = {}
    if top != "gps":
        if user is None:
            raise ExperimentError(f"{name!r} needs the hyperparams file, which is not at hand")
        try:
            known = user()
        except ExperimentError as error:
            raise ExperimentError(f"{name!r}: {error}") from error
    if top == USER:
        if sibling:
            known = _sibling(known, sibling)
        if first not in known:
            where = f"the module {sibling} next to the" if sibling else "the"
            raise ExperimentError(f"{where} hyperparams file does not define {first}")
        thing = known[first]
    elif top == "gps":
        try:
            thing = getattr(importlib.import_module(module), first)
        except (ImportError, AttributeError):
            raise ExperimentError(
                f"{name!r} does not exist in this version of gps; the run was made by another one"
            ) from None
    elif module not in sys.modules:  # by now the hyperparams file has been executed
        raise ExperimentError(
            f"{name!r}: the hyperparams file does not import {module}, and a name alone must not; "
            f"if you trust it, add: import {module}"
        )
    else:
        thing = getattr(sys.modules[module], first, None)
    for part in rest:
        thing = getattr(thing, part, None)
    home = getattr(thing, "__module__", "")
    # a module's imports must not be reachable through it: gps.pipeline.store:os.system
    if not (home.startswith(USER_MODULES) if top == USER else home == module):
        raise ExperimentError(f"{name!r} is not defined there")
    return thing


def _sibling(names: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """What a module next to the hyperparams file defines; ExperimentError where it has none."""
    try:
        return vars(names[siblings.NAME].module(module))
    except (KeyError, ModuleNotFoundError):
        raise ExperimentError(f"the hyperparams file imports no module {module}") from None


def find_dataclass(name: str, user: Names | None = None) -> type:
    """The dataclass behind `module:qualname`; ExperimentError when it is anything else."""
    cls = find(name, user)
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise ExperimentError(f"{name!r} is not a dataclass; nothing else may be built from a file")
    return cls


def build(name: str, values: dict[str, Any], user: Names | None = None) -> Any:
    """An instance of a dataclass from its fields; ExperimentError names fields that do not fit."""
    cls = find_dataclass(name, user)
    known = {f.name: f for f in fields(cls) if f.init}
    for given in values:
        if given not in known:
            raise ExperimentError(f"{name}: {choices('field', given, known)}")
    for field in known.values():
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in values:
            raise ExperimentError(f"{name}: the field {field.name!r} is missing")
    try:
        return cls(**values)
    except GPSError:
        raise
    except Exception as error:
        raise ExperimentError(f"{name}: {type(error).__name__}: {error}") from error


def _member(value: Enum) -> str:
    """The name of a member; ExperimentError for a sum of flags that has none of its own."""
    if value.name is None or value.name not in type(value).__members__:
        raise ExperimentError(f"{value!r} has no name of its own, and cannot be stored")
    return value.name


def find_member(name: str, member: str, user: Names | None = None) -> Enum:
    """A member of the Enum behind `module:qualname`; ExperimentError when there is none."""
    cls = find(name, user)
    if not (isinstance(cls, type) and issubclass(cls, Enum)):
        raise ExperimentError(f"{name!r} is not an Enum")
    if member not in cls.__members__:
        raise ExperimentError(f"{name}: {choices('member', member, cls.__members__)}")
    return cls.__members__[member]


def to_json(value: Any, where: str = "experiment") -> Any:
    """`value` as JSON types; ExperimentError says which entry cannot be stored."""
    try:
        return _to_json(value, where)
    except ExperimentError as error:
        text = str(error)
        raise ExperimentError(text if text.startswith(where) else f"{where}: {text}") from None


def _to_json(value: Any, where: str) -> Any:
    if isinstance(value, Enum):  # before text and numbers, which it can be too
        return {"enum": name_of(type(value)), "member": _member(value)}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        value = float(value)
        return value if math.isfinite(value) else {"float": repr(value)}
    if type(value) is tuple:
        return {"tuple": [to_json(v, f"{where}[{i}]") for i, v in enumerate(value)]}
    if type(value) is list:
        return [to_json(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ExperimentError(f"{where}: keys must be text to be stored, got {key!r}")
        return {"dict": {k: to_json(v, f"{where}[{k!r}]") for k, v in value.items()}}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        flat = [to_json(v, where) for v in value.ravel().tolist()]
        return {"array": flat, "dtype": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, PurePath):
        return {"path": str(value)}
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return {"name": name_of(value)}
    if is_dataclass(value):
        pairs = zip(fields(value), iter_fields(value), strict=True)
        values = {
            name: to_json(v, f"{where}.{name}")
            for f, (name, v) in pairs
            if f.init and not (v is None and "stored" in f.metadata)  # see gps.types.optional
        }
        return {"class": name_of(type(value)), "fields": values}
    raise ExperimentError(
        f"{where}: a {type(value).__module__}.{type(value).__qualname__} cannot be stored; use "
        "dataclasses, tuples, lists, dicts, arrays, numbers and text"
    )


def from_json(tree: Any, user: Names | None = None, where: str = "experiment") -> Any:
    """The value that `to_json` stored; ExperimentError says which entry cannot be read.

    user: names of the hyperparams file that the run was made from.
    """
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, list):
        return [from_json(v, user, f"{where}[{i}]") for i, v in enumerate(tree)]
    try:
        kind = next(iter(tree))
        body = tree[kind]
        if kind == "class":
            items = tree["fields"].items()
            values = {name: from_json(v, user, f"{where}.{name}") for name, v in items}
            return build(body, values, user)
        if kind == "tuple":
            return tuple(from_json(v, user, f"{where}[{i}]") for i, v in enumerate(body))
        if kind == "dict":
            return {k: from_json(v, user, f"{where}[{k!r}]") for k, v in body.items()}
        if kind == "array":
            flat = [from_json(v) for v in body]
            return np.array(flat, dtype=tree["dtype"]).reshape(tree["shape"])
        if kind == "float":
            return float(body)
        if kind == "path":
            return Path(body)
        if kind == "name":
            return find(body, user)
        if kind == "enum":
            return find_member(body, tree["member"], user)
    except GPSError as error:
        text = str(error)
        text = text if text.startswith("experiment") else f"{where}: {text}"
        kind_of_error = ConfigError if isinstance(error, ConfigError) else ExperimentError
        raise kind_of_error(text) from error
    except Exception as error:
        raise ExperimentError(f"{where}: {type(error).__name__}: {error}") from error
    raise ExperimentError(f"{where}: {kind!r} is not an entry that this version of gps writes")
