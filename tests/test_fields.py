"""Shapes and ranges that stand in annotations: what they let through, and what they say."""

import fractions
import math
from dataclasses import dataclass, fields, is_dataclass
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from gps.errors import ConfigError, ShapeError
from gps.fields import (
    Config,
    Count,
    Finite,
    Fraction,
    Items,
    Kind,
    NonNegative,
    Positive,
    Range,
    Shape,
    Whole,
    checked,
    checked_arguments,
    declared,
    described,
    numbers,
    shapes_of,
)
from gps.types import Array, Images, Layout, LinearDynamics, Record


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    size: Count = 1


@dataclass(frozen=True, kw_only=True)
class Options(Config):
    n: Count = 1
    m: Whole = 0
    rate: Positive = 1.0
    weight: NonNegative = 0.0
    share: Fraction = 0.5
    cap: Annotated[float, Range(at_least=1, finite=False)] = math.inf
    kl: Annotated[float, Range(above=0, below=10, unit="nats")] = 1.0
    any_number: float = 0.0
    seed: Annotated[int, Range(at_least=0, below=2**63)] = 0
    rule: Literal["laplace", "mc"] = "mc"
    flag: bool = False
    name: str = ""
    sizes: tuple[Count, ...] = ()
    pair: tuple[Positive, Whole] = (1.0, 0)
    gains: Annotated[float | tuple[float, ...], Range(above=0)] = 1.0
    inner: Inner = Inner()
    maybe: Count | None = None
    finite: Finite = 0.0
    names: Annotated[tuple[str, ...], Items(some=True, distinct=True)] = ("a",)
    number_or_more: Annotated[float | tuple[float, ...], Items(some=True)] = 0.0
    image_size: tuple[Count, Count] = (1, 1)
    entries: tuple[Literal["position", "velocity"], ...] = ()
    anything: Any = None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n", 0, "a whole number of at least 1, got 0"),
        ("n", 2.5, "a whole number of at least 1, got 2.5"),
        ("n", 2.0, "a whole number of at least 1, got 2.0"),
        ("n", "30", "a whole number of at least 1, got '30'"),
        ("n", True, "a whole number of at least 1, got True"),
        ("n", None, "a whole number of at least 1, got None"),
        ("m", -1, "a whole number of at least 0, got -1"),
        ("rate", 0.0, "a number above 0, got 0.0"),
        ("rate", math.nan, "a number above 0, got nan"),
        ("rate", math.inf, "a number above 0, got inf"),
        ("rate", "1", "a number above 0, got '1'"),
        ("rate", True, "a number above 0, got True"),
        ("rate", np.ones(2), "a number above 0, got array"),
        ("weight", -1e-9, "a number of at least 0, got -1e-09"),
        ("share", 1.1, "a number from 0 to 1, got 1.1"),
        ("cap", 0.5, "a number of at least 1, got 0.5"),
        ("kl", 10.0, "a number above 0 and below 10 nats, got 10.0"),
        ("seed", 2**63, f"a whole number of at least 0 and below 2^63, got {2**63}"),
        ("any_number", math.nan, "a number, got nan"),
        ("rule", "laplce", "'laplace' or 'mc', got 'laplce'; did you mean 'laplace'?"),
        ("rule", 1, "'laplace' or 'mc', got 1"),
        ("flag", 1, "True or False, got 1"),
        ("flag", "no", "True or False, got 'no'"),
        ("name", 3, "text, got 3"),
        ("sizes", 3, "a tuple, each a whole number of at least 1, got 3"),
        ("sizes", (3, 0), "a tuple, each a whole number of at least 1, got (3, 0)"),
        ("sizes", "34", "a tuple, each a whole number of at least 1, got '34'"),
        ("pair", (1.0,), "a tuple of a number above 0, a whole number of at least 0, got (1.0,)"),
        ("gains", (1.0, 0.0), "a number above 0 or a tuple, each a number above 0, got (1.0, 0.0)"),
        ("inner", Inner, "an Inner, got <class"),
        ("inner", 3, "an Inner, got 3"),
        ("maybe", 0, "a whole number of at least 1 or None, got 0"),
        ("finite", math.inf, "a finite number, got inf"),
        ("names", (), "a non-empty tuple without repetition, each text, got ()"),
        ("names", ["a", "b", "a"], "a non-empty tuple without repetition, each text, got ['a', 'b"),
        ("names", ("a", 2), "a non-empty tuple without repetition, each text, got ('a', 2)"),
        ("number_or_more", (), "a number or a non-empty tuple, each a number, got ()"),
        ("image_size", (2, 0), "a tuple of 2, each a whole number of at least 1, got (2, 0)"),
        (
            "image_size",
            np.array(2),
            "a tuple of 2, each a whole number of at least 1, got array(2)",
        ),
        (
            "entries",
            ("position", "velocty"),
            "a tuple, each 'position' or 'velocity', got ('position', 'velocty'); did you mean "
            "'velocity'?",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_field_and_what_is_right(name, value, words):
    with pytest.raises(ConfigError) as error:
        Options(**{name: value})
    assert str(error.value).startswith(f"Options.{name} must be {words}")


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("n", np.int32(3), 3),
        ("n", np.uint8(3), 3),
        ("rate", np.float32(0.5), 0.5),
        ("rate", 2, 2),
        ("rate", np.int64(2), 2.0),
        ("cap", math.inf, math.inf),
        ("any_number", -math.inf, -math.inf),
        ("flag", np.True_, True),
        ("sizes", [3, np.int64(4)], (3, 4)),
        ("sizes", np.array([3, 4]), (3, 4)),
        ("gains", np.array([1.5, 2.0]), (1.5, 2.0)),
        ("gains", 3.0, 3.0),
        ("maybe", None, None),
        ("names", ["b", "a"], ("b", "a")),
        ("number_or_more", [1.0, 1.0], (1.0, 1.0)),
        ("number_or_more", 2.0, 2.0),
        ("anything", "x", "x"),
    ],
)
def test_what_means_the_same_is_kept_as_plain_python(name, value, kept):
    new = getattr(Options(**{name: value}), name)
    assert new == kept
    assert type(new) is type(kept)
    if isinstance(kept, tuple):
        assert [type(v) for v in new] == [type(v) for v in kept]
    hash(Options(**{name: value}))


@dataclass(frozen=True, eq=False)
class Sums(Record):
    a: Annotated[Array, Shape("T-1 nx nx+nu")]
    b: Annotated[Array, Shape("T")]
    c: Annotated[Array, Shape("3 nu")] | None = None
    pixels: Annotated[Images, Shape("T height width 3")] | None = None


def test_an_argument_is_checked_as_a_field_is():
    assert checked(np.int64(3), Count, "samples") == 3
    assert checked("whatever", Any, "x") == "whatever"
    with pytest.raises(ConfigError, match=r"^samples must be a whole number of at least 1, got 0$"):
        checked(0, Count, "samples")
    assert described(Count | None) == "a whole number of at least 1 or None"
    assert described(Any) == ""


def test_letters_have_one_size_in_all_fields():
    record = Sums(np.zeros((4, 2, 3)), np.zeros(5), np.zeros((3, 1)), np.zeros((5, 7, 8, 3), "u1"))
    assert not record.a.flags.writeable
    assert not record.pixels.flags.writeable
    for wrong, words in (
        ({"a": np.zeros((4, 2))}, r"Sums.a must have 3 axes, \(T-1, nx, nx\+nu\), got shape"),
        ({"b": np.zeros(4)}, r"Sums.b must have shape \(5,\), got \(4,\)"),
        ({"c": np.zeros((3, 2))}, r"Sums.c must have shape \(3, 1\), got \(3, 2\)"),
        ({"c": np.zeros((2, 1))}, r"Sums.c must have shape \(3, 1\), got \(2, 1\)"),
        ({"a": np.zeros((4, 2, 1))}, r"Sums.a must have shape"),
        ({"b": "no numbers"}, "Sums.b must be an array of numbers"),
        ({"pixels": np.zeros((5, 7, 8, 3))}, "Sums.pixels must be an array of uint8, got float64"),
        (
            {"pixels": np.zeros((4, 7, 8, 3), "u1")},
            r"must have shape \(5, height, width, 3\), got \(4,",
        ),
    ):
        with pytest.raises(ShapeError, match=words):
            Sums(**{"a": np.zeros((4, 2, 3)), "b": np.zeros(5), "c": np.zeros((3, 1))} | wrong)


def test_shapes_can_be_read_from_the_class():
    assert list(shapes_of(LinearDynamics)) == ["F", "f", "W"]


def modules():
    root = Path(__file__).parent.parent
    for folder, package in (("gps", "gps"), ("agents", "gps.agents")):
        for path in sorted((root / folder).rglob("*.py")):
            if path.name not in ("__main__.py", "__init__.py"):
                name = ".".join(path.relative_to(root / folder).with_suffix("").parts)
                yield f"{package}.{name}"


@pytest.mark.parametrize("name", list(modules()))
def test_no_declaration_is_lost(name):
    """What cannot be evaluated is not checked; so it must not have anything to check."""
    for cls in vars(import_module(name)).values():
        if isinstance(cls, type) and is_dataclass(cls) and issubclass(cls, Record | Config):
            left = {f.name for f in fields(cls)} - set(declared(cls))
            lost = [f for f in fields(cls) if f.name in left]
            for f in lost:
                known = ("Annotated", "Count", "Whole", "Positive", "NonNegative", "Fraction")
                assert not any(word in str(f.type) for word in known), (cls, f.name)


def test_arguments_are_checked_by_their_annotations():
    @checked_arguments
    def count(n: Count, *, where: Annotated[str | Path, Kind("a path", (str, Path))] = "x", any=0):
        """Says so."""
        yield n, where, any

    assert [*count(np.int64(3), any="y")] == [(3, "x", "y")]
    assert type(next(count(np.int64(3)))[0]) is int
    assert (count.__name__, count.__doc__) == ("count", "Says so.")
    with pytest.raises(ConfigError, match=r"count: n must be a whole number of at least 1, got 0$"):
        count(0)
    with pytest.raises(ConfigError, match=r"count: where must be a path, got None$"):
        count(1, where=None)
    with pytest.raises(ConfigError, match="count: where must be a path, got <class"):
        count(1, where=Path)
    with pytest.raises(TypeError, match="'n'"):
        count()
    with pytest.raises(TypeError, match="'other'"):
        count(1, other=2)


@pytest.mark.parametrize(
    "value", ["3", ["1", "2"], 1j, None, [[1.0], [2.0, 3.0]], [object()], [1.0, None]]
)
def test_what_is_no_array_of_real_numbers_is_named(value):
    with pytest.raises(ShapeError, match="the offset must be an array of numbers"):
        numbers(value, "the offset")


def test_whole_numbers_beyond_a_float_are_judged_too():
    assert checked(10**400, Count, "n") == 10**400
    with pytest.raises(ConfigError, match="n must be a whole number of at most 9, got 10000"):
        checked(10**400, Annotated[int, Range(at_most=9)], "n")


def test_numbers_that_are_objects_are_numbers():
    found = numbers([[fractions.Fraction(1, 2), 3], [2.5, Decimal("0.25")]], "A")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [[0.5, 3.0], [2.5, 0.25]])


@pytest.mark.parametrize(
    "entries", [(("x", -1),), (("x", 2.5),), (("x", "1"),), "pos", {"pos": 1}, ((1, 2),), (("x",),)]
)
def test_a_layout_has_names_and_sizes(entries):
    with pytest.raises(ConfigError, match="Layout"):
        Layout(entries)
