"""Experiments from hyperparams files: by name, by path, with typed changes from the command line.

A hyperparams file is plain Python that ends in `experiment = Experiment(...)`. It runs in a module
of its own that is not importable: nothing else sees its names, and dask, which cannot pickle its
classes and functions by reference, sends them to its workers by value. Modules in its folder can be
imported by it; see `siblings`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.resources
import inspect
import io
import itertools
import operator
import re
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import lru_cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from gps.data import SUFFIXES as MODEL_SUFFIXES
from gps.data import paths_from
from gps.errors import ConfigError, ExperimentError, GPSError, choices
from gps.fields import described
from gps.kept_files import KeptFiles, mapped
from gps.pipeline import siblings
from gps.pipeline.config_io import USER_MODULES
from gps.pipeline.siblings import importable
from gps.types import iter_fields

if TYPE_CHECKING:
    from gps.pipeline.experiment import Experiment

_counter = itertools.count(1)
_LINE = 300
"""Characters of a text up to which it is an option."""
_LONGEST = 8
"""Items of a tuple of configurations that get options of their own; longer tuples get none."""


@dataclass(frozen=True)
class Loaded:
    """An experiment and the file that it came from."""

    experiment: Experiment
    source: Path


def load(name_or_path: str | Path) -> Loaded:
    """The experiment of a hyperparams file, by name or by path; raises ExperimentError.

    A ConfigError of the file's own configuration passes through, with file and line in front.
    """
    path = _find(name_or_path)
    module = execute(path)
    from gps.pipeline.experiment import Experiment

    if "experiment" not in vars(module):
        raise ExperimentError(
            f"{path}: defines no `experiment`; end the file with `experiment = Experiment(...)`"
        )
    experiment = module.experiment
    if not isinstance(experiment, Experiment):
        raise ExperimentError(
            f"{path}: `experiment` must be an Experiment, got {type(experiment).__name__}"
        )
    if not experiment.name:
        experiment = replace(experiment, name=path.stem)
    return Loaded(experiment, path)


def names() -> list[tuple[str, str]]:
    """The installed experiments and their one-line descriptions; executes none of them."""
    return [(path.stem, _description(path)) for path in _installed()]


def new_path(name: str, folder: str | Path = ".") -> Path:
    """The file of a new experiment of that name; raises ExperimentError."""
    name = name.removesuffix(".py")
    if not re.fullmatch(r"[A-Za-z_][\w-]*", name):
        raise ExperimentError(
            f"{name!r} is not a name for an experiment: use letters, digits, _ and -"
        )
    return Path(folder) / f"{name}.py"


def write_new(target: Path, text: str, *, force: bool = False) -> None:
    """Write a new hyperparams file; raises ExperimentError, without `force` also where one is."""
    try:
        with open(target, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ExperimentError(
            f"{target} exists already; choose another name, or --force writes over it"
        ) from None
    except OSError as error:
        raise ExperimentError(f"cannot write {target}: {error.strerror}") from error


def new(
    name: str, from_experiment: str | Path, folder: str | Path = ".", *, force: bool = False
) -> Path:
    """Write a hyperparams file to edit, made from another one; raises ExperimentError.

    force: write over a file that exists.
    """
    source, target = _find(from_experiment), new_path(name, folder)
    name = target.stem
    header = textwrap.dedent(
        f"""\
        # Experiment {name}, made from {source.stem}. Edit it, then run it by its path:
        #
        #     gps run {target}
        #     gps run {target} --help        all options, their meaning and their values
        #
        # Every value can be changed for one run without editing: --algorithm.some.option VALUE.
        # Costs, agents and networks of your own may be defined in this file, at its top level.
        """
    )
    needed = {target.parent / place: data for place, data in modules_beside(source).items()}
    try:
        for place, data in needed.items():
            if place.exists() and place.read_bytes() != data:
                raise ExperimentError(f"{place} exists already, and {source} needs another one")
        text = source.read_text(encoding="utf-8")
        write_new(target, f"{header}\n{_renamed(text, source.stem, name)}", force=force)
        for place, data in needed.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    except OSError as error:
        raise ExperimentError(f"cannot write {target}: {error.strerror}") from error
    return target


def _renamed(text: str, old: str, new: str) -> str:
    """The source with `name="old"` of its Experiment changed, where it has one."""
    return re.sub(rf"(\bname\s*=\s*)(['\"]){re.escape(old)}\2", rf"\g<1>\g<2>{new}\g<2>", text)


# --- files ---------------------------------------------------------------------------------------


def execute(path: str | Path) -> types.ModuleType:
    """Run a hyperparams file in a module of its own; raises ExperimentError with file and line."""
    main = siblings.read(Path(path))
    sources = siblings.beside(main)
    code = siblings.compiled(main, sources)
    stem = re.sub(r"\W", "_", main.path.stem)
    module = types.ModuleType(f"{USER_MODULES}{stem}_{next(_counter)}")
    module.__file__ = str(main.path)
    if sources:
        vars(module)[siblings.NAME] = siblings.Siblings(module.__name__, sources)
    try:
        with paths_from(main.path.parent):
            siblings.execute_in(module, code)
    except (Exception, SystemExit) as error:
        where = _place(error, [main.path, *(source.path for source in sources.values())])
        if isinstance(error, ConfigError):
            raise ConfigError(f"{where or main.path}: {error}") from error
        text = " ".join(str(error).split())
        what = text if isinstance(error, GPSError) else f"{type(error).__name__}: {text}"
        raise ExperimentError(f"{where or main.path}: {what}{_hint(error)}") from error
    return module


def modules_beside(path: str | Path) -> dict[Path, bytes]:
    """The files in the folder of a hyperparams file that it needs, by their place in that folder.

    Raises ExperimentError.
    """
    main = siblings.read(Path(path))
    found = siblings.beside(main).values()
    return {source.path.relative_to(main.path.parent): source.text for source in found}


def imports(path: str | Path) -> set[str]:
    """Dotted names of what a hyperparams file and the modules next to it import, or may import.

    Raises ExperimentError.
    """
    main = siblings.read(Path(path))
    return siblings.imports(main, siblings.beside(main))


def source_of(tree: Any) -> Path | None:
    """The hyperparams file that classes and functions in an experiment come from; None if none, or
    several, do."""
    found: set[Path] = set()

    def look(value: Any) -> None:
        kind = value if isinstance(value, type | types.FunctionType) else type(value)
        module = str(kind.__module__).partition(".")[0]
        if module.startswith(USER_MODULES) and (file := siblings.file_of(module)):
            found.add(file)

    mapped(tree, look)
    return found.pop() if len(found) == 1 else None


def modules_of(names: Sequence[str]) -> dict[Path, bytes]:
    """The files of imported modules and of those next to them that they import, as above.

    Raises ExperimentError.
    """
    found: dict[Path, bytes] = {}
    for name in names:
        file = Path(str(sys.modules[name].__file__))
        up = len(name.split(".")) + (file.name == "__init__.py")
        main = siblings.Source(file.parents[up - 1] / "script.py", f"import {name}".encode(), "")
        sources = siblings.beside(main)
        if name not in sources:
            raise ExperimentError(
                f"{file} cannot be stored with the run as the module {name}: its folders need an "
                "__init__.py each"
            )
        for source in sources.values():
            found[source.path.relative_to(main.path.parent)] = source.text
    return found


def _place(error: BaseException, paths: Sequence[Path]) -> str:
    """`file:line`, the innermost of these files that an exception passed through; or empty."""
    names, place, trace = {str(path) for path in paths}, "", error.__traceback__
    while trace is not None:
        if (name := trace.tb_frame.f_code.co_filename) in names:
            place = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _hint(error: BaseException) -> str:
    """`; did you mean 'kl_max'?` where a configuration was given a field that it does not have."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    trace = error.__traceback__
    while found and trace is not None:
        scope = {**trace.tb_frame.f_globals, **trace.tb_frame.f_locals}
        cls = scope.get(found[1])
        if isinstance(cls, type) and is_dataclass(cls):
            known = [f.name for f in fields(cls) if f.init]
            close = get_close_matches(found[2], known, n=1)
            return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
        trace = trace.tb_next
    return ""


def _installed() -> list[Path]:
    folder = Path(str(importlib.resources.files("gps.hyperparams")))
    return sorted(p for p in folder.glob("*.py") if not p.name.startswith("_"))


def _find(name_or_path: str | Path) -> Path:
    """The file of an experiment; ExperimentError lists the known names."""
    text = str(name_or_path)
    model = Path(text).suffix.lower() in MODEL_SUFFIXES
    path_like = text.endswith(".py") or "/" in text or "\\" in text or model
    if isinstance(name_or_path, Path) or path_like:
        path = Path(name_or_path).expanduser()
        if path.is_dir():
            raise ExperimentError(f"{path} is a folder; give a hyperparams file")
        if not path.exists():
            raise ExperimentError(f"{path} does not exist; give an experiment's file or its name")
        if model:
            raise ExperimentError(
                f"{path} is a model, no hyperparams file; gps new NAME --model {path} writes one"
            )
        return path.absolute()
    known = {path.stem: path for path in _installed()}
    if text not in known:
        raise ExperimentError(f"{choices('experiment', text, known)}; or give the path of a file")
    return known[text]


def _description(path: Path) -> str:
    """The `description="..."` in a file's source, else the first line of its docstring."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        return f"(cannot be loaded: {error})"
    for node in reversed(tree.body):
        targets = node.targets if isinstance(node, ast.Assign) else ()
        if any(isinstance(t, ast.Name) and t.id == "experiment" for t in targets):
            for call in ast.walk(node):
                for keyword in call.keywords if isinstance(call, ast.Call) else ():
                    value = keyword.value
                    if keyword.arg == "description" and isinstance(value, ast.Constant):
                        return str(value.value)
    return (ast.get_docstring(tree) or "").partition("\n")[0]


# --- options -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Items:
    """A tuple or mapping of configurations, one group of options for each."""

    values: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class _Option:
    """One entry of a configuration that the command line can change."""

    name: str
    type: Any
    value: Any
    help: str
    hint: Any = None
    """The type with what is declared about its values."""


@dataclass(frozen=True)
class Setting:
    """One option of an experiment with its present value."""

    name: str
    """Without the dashes in front: `algorithm.step.kl-max`."""
    value: Any
    help: str
    """What the field's docstring says."""
    hint: Any
    """The declared type, its range included."""


def settings(experiment: Experiment) -> list[Setting]:
    """All options of an experiment with their values, in the order of `gps run NAME --help`."""
    with importable():
        return _settings(experiment, "")


def _settings(value: Any, prefix: str) -> list[Setting]:
    found: list[Setting] = []
    for option in _options(value):
        name = prefix + option.name.replace("_", "-")
        if _is_group(option.value):
            found += _settings(option.value, f"{name}.")
        else:
            found.append(Setting(name, option.value, option.help, option.hint))
    return found


def options(experiment: Experiment, skip: Sequence[str] = ("name", "description")) -> list[str]:
    """All options of an experiment, `--algorithm.step.kl-max` and so on."""
    with importable():
        return _names(experiment, "", skip)


def override(
    experiment: Experiment,
    argv: Sequence[str],
    *,
    prog: str = "gps run",
    skip: Sequence[str] = ("name", "description"),
    known: Sequence[str] = (),
) -> Experiment:
    """The experiment with the options in `argv` set, `--algorithm.step.kl_max 0.5`.

    The options are the fields of the configuration's dataclasses, with the types of the objects
    that are there now. `--help` prints them and raises SystemExit(0). Raises ExperimentError for an
    unknown option or a value of the wrong type, ConfigError for a value that cannot work.
    skip: fields of the experiment that get no option. known: the caller's own options, for hints.
    """
    argv = list(argv)
    if not argv:
        return experiment
    with importable():
        if not {"-h", "--help"} & set(argv):
            _check_names(argv, _names(experiment, "", skip), known, prog)
        changes = _parse(experiment, argv, prog, skip)
        changed: Experiment = _apply(experiment, changes)
    return changed


def _check_names(
    argv: Sequence[str], known: Sequence[str], others: Sequence[str], prog: str
) -> None:
    if not argv[0].startswith("--"):
        raise ExperimentError(f"unexpected {argv[0]!r}; options look like --samples 5")
    for token in argv:
        name = token.partition("=")[0].replace("_", "-")
        if not name.startswith("--") or name in known:
            continue
        same_end = [k for k in known if k.rpartition(".")[2] == name.removeprefix("--")]
        close = same_end or get_close_matches(name, [*others, *known], n=1)
        inside = [k for k in known if k.startswith(name + ".")]
        if inside:
            hint = f"it is a group; one of its options is {inside[0]}"
        elif close:
            hint = f"did you mean {' or '.join(close[:3])}?"
        else:
            hint = f"see {prog} --help"
        raise ExperimentError(f"unknown option {token.partition('=')[0]}; {hint}")


def _names(value: Any, prefix: str, skip: Sequence[str] = ()) -> list[str]:
    found: list[str] = []
    for option in _options(value):
        if option.name in skip:
            continue
        name = prefix + option.name.replace("_", "-")
        if _is_group(option.value):
            found += _names(option.value, f"{name}.")
        else:
            found.append(f"--{name}")
    return found


def _is_group(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type | KeptFiles)


def _options(value: Any) -> list[_Option]:
    """What can be changed in a configuration; entries of other types have no option."""
    if isinstance(value, _Items):
        return [_Option(name, type(item), item, "") for name, item in value.values]
    cls: type = type(value)
    try:
        hints = typing.get_type_hints(cls)
        declared = typing.get_type_hints(cls, include_extras=True)
    except NameError:
        hints = declared = {}  # a type for type checkers only: no option with a plain type
    texts = _field_texts(cls)
    found = []
    for f, (_, now) in zip(fields(value), iter_fields(value), strict=True):
        if not f.init:
            continue
        hint, text = hints.get(f.name, Any), texts.get(f.name, "")
        if _is_group(now):
            found.append(_Option(f.name, type(now), now, text))
        elif (items := _items(now)) is not None:
            found.append(_Option(f.name, _Items, items, text))
        elif (plain := _plain_part(hint, now)) is not None:
            known = declared[f.name] if _is_plain(hint) else plain
            found.append(_Option(f.name, _narrow_first(plain), now, text, known))
    return found


def _items(value: Any) -> _Items | None:
    """The configurations in a tuple or mapping of them; None for anything else."""
    if isinstance(value, tuple):
        pairs = tuple((str(i), item) for i, item in enumerate(value))
    elif isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        pairs = tuple(value.items())
    else:
        return None
    good = 0 < len(pairs) <= _LONGEST and all(_is_group(item) for _, item in pairs)
    return _Items(pairs) if good else None


def _is_plain(hint: Any) -> bool:
    """Whether text can be turned into a value of the type."""
    if hint in (bool, int, float, str, Path, type(None), None):
        return True
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return True
    if origin in (Union, types.UnionType, tuple, list):
        return bool(args) and all(a is Ellipsis or _is_plain(a) for a in args)
    return False


def _plain_part(hint: Any, now: Any) -> Any:
    """What of a type can be given as text, None for nothing: of `str | Callable` that is str, as
    long as the present value is one that fits into a line."""
    if _is_plain(hint):
        return hint
    if get_origin(hint) not in (Union, types.UnionType):
        return None
    kinds = [kind for kind in get_args(hint) if _is_plain(kind)]
    short = type(now) in kinds and not (isinstance(now, str) and len(now) > _LINE)
    some = any(kind not in (type(None), None) for kind in kinds)
    return reduce(operator.or_, kinds) if short and some else None


def _narrow_first(hint: Any) -> Any:
    """`tuple[float, ...] | float` the other way round: one number given is to stay one number."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    kinds = sorted(get_args(hint), key=lambda kind: get_origin(kind) in (tuple, list))
    return reduce(operator.or_, kinds)


@lru_cache(maxsize=256)
def _field_texts(cls: type) -> dict[str, str]:
    """The strings under the fields of a dataclass, its bases included."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        nodes = body.body if isinstance(body, ast.ClassDef) else []
        for node, after in itertools.pairwise(nodes):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                value = after.value if isinstance(after, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    texts[node.target.id] = " ".join(value.value.split())
    return texts


def _parse(
    experiment: Experiment, argv: Sequence[str], prog: str, skip: Sequence[str]
) -> dict[str, Any]:
    """Nested dicts of the options' values, changed or not."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.struct_rule
    def group(
        info: tyro.constructors.StructTypeInfo,
    ) -> tyro.constructors.StructConstructorSpec | None:
        if not _is_group(info.default):
            return None
        top = info.default is experiment
        specs = tuple(
            tyro.constructors.StructFieldSpec(
                name=o.name, type=o.type, default=o.value, helptext=o.help or None
            )
            for o in _options(info.default)
            if not (top and o.name in skip)
        )
        return tyro.constructors.StructConstructorSpec(instantiate=dict, fields=specs)

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            values: Any = tyro.cli(
                type(experiment),
                prog=prog,
                description=experiment.description or experiment.name,
                args=argv,
                default=experiment,
                config=(tyro.conf.FlagConversionOff,),
                registry=registry,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ExperimentError(_explained(errors.getvalue(), experiment, argv, prog)) from None
    parsed: dict[str, Any] = values
    return parsed


def _explained(text: str, experiment: Experiment, argv: Sequence[str], prog: str) -> str:
    """Tyro's error in the words of `gps.fields` where it is about the value of one option."""
    message = _message(text)
    found = re.search(r"--[\w.-]*\w", message)
    hints = {setting.name: setting.hint for setting in _settings(experiment, "")}
    right = described(hints.get(found[0][2:])) if found else ""
    if not found or not right:
        return f"{message or 'wrong options'}; see {prog} --help"
    given: list[str] = []
    chosen = False
    for token in argv:
        name, equals, value = token.partition("=")
        if token.startswith("--"):
            chosen = name.replace("_", "-") == found[0]
            given = [value] if chosen and equals else [] if chosen else given
        elif chosen:
            given.append(token)
    if not given:
        return f"{found[0]} needs a value, {right}; see {prog} --help"
    text, hint = " ".join(given), ""
    if "tuple" in right and (items := re.findall(r"[^\s,()\[\]]+", text)) != given:
        hint = f"; its items are separated by spaces: {found[0]} {' '.join(items)}"
    return f"{found[0]} must be {right}, got {text!r}{hint}; see {prog} --help"


def _message(text: str) -> str:
    """The message in one of tyro's boxes, without its title and the help that it repeats."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip(" \t│|╭╮╰╯─-+") for line in text.splitlines()]
    kept = [line for line in lines if line][1:]
    ends = ("For full helptext", "Argument helptext")
    message = " ".join(itertools.takewhile(lambda line: not line.startswith(ends), kept))
    return message.removeprefix("Error parsing ")


def _apply(value: Any, changes: Mapping[str, Any]) -> Any:
    """The configuration with the values of `changes`; what is unchanged stays the same object."""
    changed: dict[str, Any] = {}
    for option in _options(value):
        if option.name not in changes:
            continue
        given = changes[option.name]
        new = _apply(option.value, given) if _is_group(option.value) else given
        if new is not option.value and not _equal(new, option.value):
            changed[option.name] = new
    if not changed:
        return value
    if isinstance(value, _Items):
        return _Items(tuple((name, changed.get(name, item)) for name, item in value.values))
    old = dict(iter_fields(value))
    plain = {
        name: _unwrapped(new, old[name]) if isinstance(new, _Items) else new
        for name, new in changed.items()
    }
    return replace(value, **plain)


def _unwrapped(items: _Items, like: Any) -> Any:
    if isinstance(like, tuple):
        return tuple(item for _, item in items.values)
    return dict(items.values)


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)
