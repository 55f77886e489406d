"""Fields that say what they may hold: shapes of arrays in records, ranges of values in options.

The annotation of a field is its only declaration; the checks follow from it:

    @dataclass(frozen=True, eq=False)
    class LinearDynamics(Record):
        F: Annotated[Array, Shape("T-1 nx nx+nu")]
        f: Annotated[Array, Shape("T-1 nx")]

    @dataclass(frozen=True, kw_only=True)
    class DualConfig(Config):
        tol: Annotated[float, Range(above=0, below=1)] = 0.01
        max_trials: Count = 100

`Config` checks type and range of every field, nested tuples and None included; whatever has the
value of a whole number, as numpy's and pandas' integers have, passes for an int, and 2.5, "30" and
True do not. `check_shapes` makes a record's arrays read-only, and every letter of its shapes has
one size in all of its fields.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache, partial, wraps
from inspect import get_annotations
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from gps.errors import ConfigError, ShapeError

__all__ = [
    "Axes",
    "Config",
    "Count",
    "Finite",
    "Fraction",
    "Items",
    "Kind",
    "NonNegative",
    "Positive",
    "Range",
    "Shape",
    "Whole",
    "check_fields",
    "check_shapes",
    "checked",
    "checked_arguments",
    "declared",
    "described",
    "numbers",
    "readonly",
    "shapes_of",
]


@dataclass(frozen=True)
class Shape:
    """The axes of an array, by letters: `Shape("T nu nx")`.

    An axis is a letter or name, a number, or a sum or difference of these, as in `T-1` and `nx+nu`.
    """

    axes: str


@dataclass(frozen=True)
class Range:
    """The numbers that are allowed, and their unit for error texts; infinite ones only if said."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    unit: str = ""
    finite: bool = True

    @property
    def text(self) -> str:
        """`above 0 nats`, `from 0 to 1`; empty without bounds."""
        unit = f" {self.unit}" if self.unit else ""
        if self.at_least is not None and self.at_most is not None:
            return f"from {_number(self.at_least)} to {_number(self.at_most)}{unit}"
        bounds = [
            *(("above", self.above), ("of at least", self.at_least)),
            *(("below", self.below), ("of at most", self.at_most)),
        ]
        return " and ".join(f"{word} {_number(b)}" for word, b in bounds if b is not None) + unit

    def holds(self, value: float) -> bool:
        """Whether the value lies within."""
        return (
            (not self.finite or isinstance(value, int) or math.isfinite(value))
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )


@dataclass(frozen=True)
class Items:
    """What the items of a tuple have to be besides their types: one or more, no two of them equal.

    In a union it holds for the tuples: `Annotated[float | tuple[float, ...], Items(some=True)]`.
    """

    some: bool = False
    distinct: bool = False

    @property
    def text(self) -> str:
        """`a non-empty tuple without repetition`."""
        return f"a{' non-empty' * self.some} tuple{' without repetition' * self.distinct}"

    def holds(self, items: tuple[Any, ...]) -> bool:
        """Whether the items are such."""
        repeated = any(item in items[:i] for i, item in enumerate(items))
        return not (self.some and not items) and not (self.distinct and repeated)


@dataclass(frozen=True)
class Kind:
    """What a value has to be that is checked by its class only, and the words for it.

    `Annotated[Executor, Kind("an executor such as gps.parallel.Dask()", (Calls,))]`
    """

    text: str
    classes: tuple[type, ...]


Finite = Annotated[float, Range()]
"""A finite number."""
Positive = Annotated[float, Range(above=0)]
"""A finite number above 0."""
NonNegative = Annotated[float, Range(at_least=0)]
"""A finite number, 0 or above."""
Fraction = Annotated[float, Range(at_least=0, at_most=1)]
"""A number from 0 to 1."""
Count = Annotated[int, Range(at_least=1)]
"""A whole number, 1 or above."""
Whole = Annotated[int, Range(at_least=0)]
"""A whole number, 0 or above."""


class Config:
    """Base of the configurations: types and ranges of all fields are checked as they are declared.

    A check of more than one field goes into a `__post_init__` that calls this one first.
    """

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(config: Any) -> None:
    """Check every field of a frozen dataclass by its annotation; ConfigError names the first wrong.

    Values of another kind that mean the same are replaced: numpy's numbers by Python's, lists and
    arrays by tuples.
    """
    for name, check in _checks(config.__class__).items():
        value = getattr(config, name)
        new = _converted(value, check, f"{type(config).__name__}.{name}")
        if new is not value:
            object.__setattr__(config, name, new)


def check_shapes(record: Any, shapes: Mapping[str, Axes] | None = None) -> None:
    """Make the declared arrays of a frozen dataclass read-only and check their shapes.

    float64 arrays are cast, C-ordered; arrays of other types have to be of theirs. shapes: in place
    of those that the record's own annotations declare. Raises ShapeError.
    """
    sizes: dict[str, int] = {}
    if shapes is None:
        shapes = shapes_of(record.__class__)
    for name, (axes, dtype, optional) in shapes.items():
        value = getattr(record, name)
        if value is None and optional:
            continue
        array = value if _is_frozen(value, dtype) else _frozen(value, dtype, _where(record, name))
        if len(array.shape) != len(axes):
            expected = ", ".join(_said(axis, sizes) for axis in axes)
            raise ShapeError(
                f"{_where(record, name)} must have {len(axes)} axes, ({expected}), got shape "
                f"{array.shape}"
            )
        for axis, size in zip(axes, array.shape, strict=True):
            if isinstance(axis, str):
                fits = sizes.setdefault(axis, size) == size
            else:
                fits = _bind(axis, size, sizes)
            if not fits:
                expected = ", ".join(_said(axis, sizes) for axis in axes)
                if len(axes) == 1:
                    expected += ","
                raise ShapeError(
                    f"{_where(record, name)} must have shape ({expected}), got {array.shape}"
                )
        if array is not value:
            object.__setattr__(record, name, array)


_FLOAT = np.dtype(np.float64)


def _where(record: Any, name: str) -> str:
    return f"{type(record).__name__}.{name}"


def _is_frozen(value: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a value is a read-only, C-ordered, aligned array of the type."""
    if type(value) is not np.ndarray or value.dtype != dtype:
        return False
    flags = value.flags
    return flags.c_contiguous and flags.aligned and not flags.writeable


def readonly(value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A float64, C-ordered, aligned, read-only array; copies unless `value` is one already."""
    if _is_frozen(value, _FLOAT):
        frozen: npt.NDArray[np.float64] = value  # type: ignore[assignment]
        return frozen
    given = np.asarray(value)
    good = given.dtype.kind in "fiub"
    if given.dtype.kind == "O":  # fractions, or numbers of sympy; None would become NaN
        good = all(hasattr(v, "__float__") for v in given.flat)
    if not good:
        raise TypeError(f"real numbers are needed, got values of type {given.dtype}")
    array = np.array(given, dtype=np.float64, order="C", copy=True)
    array.setflags(write=False)
    return array


def numbers(value: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    """`readonly(value)`; ShapeError with the name where it is no array of real numbers."""
    try:
        return readonly(value)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name} must be an array of numbers: {error}") from None


def checked(value: Any, hint: Any, name: str) -> Any:
    """The value, as a field of this type keeps it; ConfigError in the same words.

    For values that are no fields, such as arguments of functions and of the command line.
    """
    check = _cached_check(hint)
    return value if check is None else _converted(value, check, name)


P = ParamSpec("P")
R = TypeVar("R")


def checked_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: arguments are checked by their annotations, as fields of a `Config` are.

    ConfigError names function and argument, at the call, also where the function is a generator.
    """
    signature = inspect.signature(function)

    @cache
    def checks() -> dict[str, _Check]:
        hints = typing.get_type_hints(function, include_extras=True)
        found = {name: _check(hints.get(name, Any)) for name in signature.parameters}
        return {name: check for name, check in found.items() if check is not None}

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in checks():
                where = f"{function.__qualname__}: {name}"
                bound.arguments[name] = _converted(value, checks()[name], where)
        return function(*bound.args, **bound.kwargs)

    return call


@cache
def _cached_check(hint: Any) -> _Check | None:
    return _check(hint)


def _converted(value: Any, check: _Check, name: str) -> Any:
    """The value as it is kept; ConfigError if it is wrong."""
    try:
        return check.convert(value)
    except ValueError:
        raise ConfigError(
            f"{name} must be {check.text}, got {value!r}{_meant(value, check)}"
        ) from None


def described(hint: Any) -> str:
    """What a field of this type may hold: `a whole number of at least 1`; empty if anything."""
    check = _check(hint)
    return "" if check is None else check.text


class Declared(NamedTuple):
    """What the annotation of a field says."""

    hint: Any
    """The type, its marks included."""
    marks: tuple[Any, ...]
    """`Shape`, `Range` and whatever else stands in its `Annotated`."""


@cache
def declared(cls: type) -> Mapping[str, Declared]:
    """The annotations of a dataclass's fields, evaluated, by name and in order.

    What cannot be evaluated, since its names are known to type checkers only, is left out.
    """
    out: dict[str, Declared] = {}
    homes = {name: c for c in reversed(cls.__mro__) for name in get_annotations(c)}
    for f in fields(cls):
        home = homes[f.name]
        hint = get_annotations(home)[f.name]
        if isinstance(hint, str):
            module = sys.modules.get(home.__module__)
            try:
                hint = eval(hint, dict(vars(module)) if module else {}, dict(vars(home)))
            except NameError:
                continue
        marks = hint.__metadata__ if typing.get_origin(hint) is Annotated else ()
        out[f.name] = Declared(hint, marks)
    return types.MappingProxyType(out)


Terms = tuple[tuple[int, str], ...]
Axis = str | Terms
"""A letter, as most are, or a sum of signed letters and numbers."""


class Axes(NamedTuple):
    """The declared shape of one field."""

    axes: tuple[Axis, ...]
    dtype: np.dtype[Any]
    optional: bool
    """Whether the field may be None."""


@cache
def shapes_of(cls: type) -> Mapping[str, Axes]:
    """The declared shapes of a record's arrays, by field."""
    out: dict[str, Axes] = {}
    for name, (hint, marks) in declared(cls).items():
        optional = False
        if not marks and typing.get_origin(hint) in (typing.Union, types.UnionType):
            kinds = [k for k in typing.get_args(hint) if k is not type(None)]
            optional = len(kinds) < len(typing.get_args(hint))
            if len(kinds) == 1 and typing.get_origin(kinds[0]) is Annotated:
                hint, marks = kinds[0], kinds[0].__metadata__
        for shape in (mark for mark in marks if isinstance(mark, Shape)):
            base = typing.get_args(hint)[0]
            if typing.get_origin(base) in (typing.Union, types.UnionType):
                optional = True
                base = next(k for k in typing.get_args(base) if k is not type(None))
            dtype = np.dtype(typing.get_args(typing.get_args(base)[1])[0])
            axes = tuple(_parsed(axis) for axis in shape.axes.split())
            out[name] = Axes(axes, dtype, optional)
    return types.MappingProxyType(out)


def _parsed(axis: str) -> Axis:
    """`T` as it is, `T-1` as ((1, "T"), (-1, "1"))."""
    if axis.isidentifier():
        return axis
    parts = re.findall(r"([+-]?)(\w+)", axis)
    if "".join(sign + term for sign, term in parts) != axis:
        raise ValueError(f"axis {axis!r} of a shape is no sum of names and numbers")
    return tuple((-1 if sign == "-" else 1, term) for sign, term in parts)


def _bind(axis: Terms, size: int, sizes: dict[str, int]) -> bool:
    """Whether an axis may have this size; a letter that has no size yet gets the one that fits."""
    known, unknown = 0, []
    for sign, term in axis:
        value = int(term) if term.isdecimal() else sizes.get(term)
        if value is None:
            unknown.append((sign, term))
        else:
            known += sign * value
    if not unknown:
        return known == size
    if len(unknown) == 1:
        sign, term = unknown[0]
        sizes[term] = sign * (size - known)
        return sizes[term] >= 0
    return True


def _said(axis: Axis, sizes: Mapping[str, int]) -> str:
    """The size that an axis must have, or its letters where they have none yet."""
    if isinstance(axis, str):
        return str(sizes.get(axis, axis))
    if all(term.isdecimal() or term in sizes for _, term in axis):
        return str(sum(sign * int(sizes.get(term, term)) for sign, term in axis))
    return "".join(("-" if sign < 0 else "+") + term for sign, term in axis).removeprefix("+")


def _frozen(value: Any, dtype: np.dtype[Any], where: str) -> npt.NDArray[Any]:
    """The value as a read-only C-ordered array of the type; ShapeError if it is no such array."""
    if dtype == np.float64:
        return numbers(value, where)
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise ShapeError(f"{where} must be an array of {dtype}, got {kind}")
    if value.flags.writeable or not value.flags.c_contiguous:
        value = np.array(value, order="C")
        value.setflags(write=False)
    return value


class _Check(NamedTuple):
    """How a value of some type is checked: the words for it, and what to keep of a value."""

    text: str
    convert: Callable[[Any], Any]
    """The value, perhaps of another type; ValueError if it is wrong."""
    choices: tuple[str, ...] = ()


@cache
def _checks(cls: type) -> Mapping[str, _Check]:
    """The checks of a configuration's fields, but for those that need none."""
    checks = {name: _check(hint) for name, (hint, _) in declared(cls).items()}
    return types.MappingProxyType({name: c for name, c in checks.items() if c is not None})


def _check(hint: Any, ranges: tuple[Range, ...] = ()) -> _Check | None:
    """The check of a type; None where there is nothing to check, as for protocols and callables."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for mark in args[1:]:
            if isinstance(mark, Kind):
                return _Check(mark.text, partial(_of_kind, mark))
        inner = _check(args[0], ranges + tuple(m for m in args[1:] if isinstance(m, Range)))
        for mark in args[1:]:
            if inner is not None and isinstance(mark, Items):
                inner = _items(inner, mark)
        return inner
    if origin in (typing.Union, types.UnionType):
        return _either([_check(arg, ranges) for arg in args])
    if origin is Literal:
        return _one_of(args)
    if origin is tuple:
        return _tuple(args, ranges)
    if hint is None or hint is type(None):
        return _Check("None", _none)
    if hint is bool:
        return _Check("True or False", _bool)
    if hint is int:
        return _Check(_words("a whole number", ranges), lambda v: _within(_whole(v), ranges))
    if hint is float:
        return _Check(_words("a number", ranges), lambda v: _within(_real(v), ranges))
    if hint is str:
        return _Check("text", lambda v: _instance(v, str))
    if isinstance(hint, type) and is_dataclass(hint):
        article = "an" if hint.__name__[0] in "AEIOU" else "a"
        return _Check(f"{article} {hint.__name__}", lambda v: _instance(v, hint))
    return None


def _words(kind: str, ranges: Sequence[Range]) -> str:
    """`a whole number of at least 1`."""
    if ranges and ranges[0].finite and kind == "a number" and not ranges[0].text.strip():
        return "a finite number"
    return " and ".join([f"{kind} {r.text}".strip() for r in ranges[:1]] or [kind])


def _either(checks: Sequence[_Check | None]) -> _Check | None:
    """One of several types; unchecked as soon as one of them is."""
    some = [check for check in checks if check is not None]
    if len(some) < len(checks):
        return None
    words = list(dict.fromkeys(check.text for check in some))
    known = tuple(choice for check in some for choice in check.choices)

    def convert(value: Any) -> Any:
        for check in some:
            try:
                return check.convert(value)
            except ValueError:
                continue
        raise ValueError

    return _Check(" or ".join(words), convert, known)


def _one_of(values: tuple[Any, ...]) -> _Check:
    """One of these values."""
    words = [repr(value) for value in values]
    text = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]

    def convert(value: Any) -> Any:
        for known in values:
            if type(value) is type(known) and value == known:
                return value
        raise ValueError

    return _Check(text, convert, tuple(v for v in values if isinstance(v, str)))


def _tuple(args: tuple[Any, ...], ranges: tuple[Range, ...]) -> _Check:
    """A tuple, of any length or of the types of its items in their order."""
    anyhow = len(args) == 2 and args[1] is Ellipsis
    checks = [_check(arg, ranges) for arg in (args[:1] if anyhow else args)]
    words = [check.text if check else "anything" for check in checks]
    if anyhow:
        text = f"a tuple, each {words[0]}"
    elif len(words) > 1 and len(set(words)) == 1:
        text = f"a tuple of {len(words)}, each {words[0]}"
    else:
        text = f"a tuple of {', '.join(words)}"
    known = tuple(choice for check in checks if check for choice in check.choices)

    def convert(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.ndim:
            items = tuple(value)
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            items = value if type(value) is tuple else tuple(value)
        else:
            raise ValueError
        each = checks * len(items) if anyhow else checks
        if len(each) != len(items):
            raise ValueError
        new = tuple(c.convert(v) if c else v for c, v in zip(each, items, strict=True))
        unchanged = all(a is b for a, b in zip(new, items, strict=True))
        return value if unchanged and isinstance(value, tuple) else new

    return _Check(text, convert, known)


def _items(check: _Check, mark: Items) -> _Check:
    """The same check, for tuples with the marked items only."""

    def convert(value: Any) -> Any:
        new = check.convert(value)
        if isinstance(new, tuple) and not mark.holds(new):
            raise ValueError
        return new

    return _Check(check.text.replace("a tuple", mark.text, 1), convert, check.choices)


def _none(value: Any) -> None:
    if value is not None:
        raise ValueError


def _bool(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError
    return value if isinstance(value, bool) else bool(value)


def _whole(value: Any) -> int:
    """A whole number, numpy's and pandas' included, but no truth value."""
    if isinstance(value, bool | np.bool_):
        raise ValueError
    try:
        return value if type(value) is int else operator.index(value)
    except TypeError:
        raise ValueError from None


def _real(value: Any) -> float:
    """A number that is not NaN; ints stay ints."""
    if isinstance(value, bool | np.bool_ | str) or math.isnan(number := _float(value)):
        raise ValueError
    return value if type(value) in (int, float) else number


def _float(value: Any) -> float:
    """The value as a float; ValueError."""
    if not hasattr(value, "__float__") or np.ndim(value):
        raise ValueError
    try:
        return float(value)
    except (TypeError, OverflowError):
        raise ValueError from None


def _within(value: float, ranges: Sequence[Range]) -> float:
    if not all(r.holds(value) for r in ranges):
        raise ValueError
    return value


def _of_kind(mark: Kind, value: Any) -> Any:
    """An object of the classes; a class has the methods of a protocol too, and is none."""
    if isinstance(value, type):
        raise ValueError
    return _instance(value, mark.classes)


def _instance(value: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind):
        raise ValueError
    return value


def _meant(value: Any, check: _Check) -> str:
    """`; did you mean 'laplace'?` where a choice is close to the value or to an item of it."""
    items = value if isinstance(value, tuple | list) else (value,)
    wrong = [item for item in items if isinstance(item, str) and item not in check.choices]
    close = [match for item in wrong for match in get_close_matches(item, check.choices, n=1)]
    return f"; did you mean {close[0]!r}?" if close else ""


def _number(value: float) -> str:
    """Without a needless point; large powers of two as such."""
    if value >= 2**20 and math.log2(value).is_integer():
        return f"2^{math.log2(value):g}"
    return f"{value:g}" if abs(value) < 1e6 or not float(value).is_integer() else f"{value:.0e}"
