import functools
import importlib
import inspect
import json
import pkgutil
import sys
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest

import gps
import gps.agents
import gps.hyperparams
from gps.agents.point_mass import PointMassConfig
from gps.costs import ActionCost, SumCost, WeightedCost
from gps.errors import ConfigError, ExperimentError
from gps.pipeline import config_io, loader
from gps.types import Layout, Record


def round_trip(value, user=None):
    text = json.dumps(config_io.to_json(value), allow_nan=False)
    return config_io.from_json(json.loads(text), user)


def configurations():
    """Every dataclass of the library that can be built without arguments and is no record."""
    found = []
    walk = [
        *pkgutil.walk_packages(gps.__path__, "gps."),
        # mapped to another folder in an editable install, so not below gps.__path__
        *pkgutil.walk_packages(gps.agents.__path__, "gps.agents."),
    ]
    for info in walk:
        module = importlib.import_module(info.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ != info.name or not is_dataclass(cls) or issubclass(cls, Record):
                continue
            needed = [
                f for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING
            ]
            if not needed and cls.__name__.endswith(("Config", "Cost")):
                found.append(cls)
    return found


@pytest.mark.parametrize("cls", configurations(), ids=lambda cls: cls.__name__)
def test_every_configuration_with_defaults_comes_back(cls):
    assert round_trip(cls()) == cls()


def test_the_search_above_finds_something():
    assert PointMassConfig in configurations()
    assert len(configurations()) >= 8


@pytest.mark.parametrize("name", [name for name, _ in loader.names()])
def test_every_experiment_comes_back(name):
    path = Path(gps.hyperparams.__file__).with_name(f"{name}.py")
    module = loader.execute(path)  # what a file defines itself is found through its names
    assert round_trip(module.experiment, lambda: vars(module)) == module.experiment


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2.5,
        1e300,
        float("inf"),
        -float("inf"),
        "text",
        (),
        (1, (2.0, "x")),
        [1, [2]],
        {"a": (1,), "class": 2, "tuple": 3},
        Path("models/peg.xml"),
        Layout,
        config_io.name_of,
        Layout((("position", 2),)),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_values_come_back_with_their_types(value):
    back = round_trip(value)
    assert back == value
    assert type(back) is type(value)


def test_nan_and_arrays_come_back():
    assert np.isnan(round_trip(float("nan")))
    array = np.array([[1.5, np.inf, np.nan], [0.1, -0.0, 3.0]])
    back = round_trip(array)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    assert round_trip(np.arange(3)).dtype == np.int64
    assert round_trip(np.empty((0, 4))).shape == (0, 4)


def test_tuples_stay_tuples_inside_configurations():
    cost = SumCost(terms=(WeightedCost(cost=ActionCost(weights=(1.0, 2.0))),))
    back = round_trip(cost)
    assert back == cost
    assert isinstance(back.terms[0].cost.weights, tuple)


def test_classes_of_the_hyperparams_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class MyCost:\n"
        "    weight: float = 1.0\n"
        "    shape: object = None\n"
        "def my_shape(x):\n"
        "    return x\n"
    )
    module = loader.execute(path)
    cost = module.MyCost(weight=3.0, shape=module.my_shape)
    tree = config_io.to_json(cost)
    assert tree["class"] == "hyperparams:MyCost"
    assert config_io.from_json(tree, lambda: vars(module)) == cost
    with pytest.raises(ExperimentError, match="needs the hyperparams file"):
        config_io.from_json(tree)
    with pytest.raises(ExperimentError, match="does not define Other"):
        config_io.from_json({"class": "hyperparams:Other", "fields": {}}, lambda: vars(module))


@dataclass(frozen=True)
class Elsewhere:
    x: int = 1


class Renamed:
    pass


Renamed.__qualname__ = "Other"


def ofscript():
    """A class as a notebook's cell defines it."""
    return type("Mine", (), {"__module__": "__main__"})


def inner():
    def shape(x):
        return x

    return shape


def test_what_can_be_imported_is_named_by_its_module():
    assert (
        config_io.name_of(Elsewhere) == f"hyperparams.{__name__}:Elsewhere"
    )  # the user's own file
    assert config_io.name_of(pytest.Item).startswith("_pytest.nodes:")  # of an installed package
    assert config_io.find(config_io.name_of(pytest.Item), lambda: {}) is pytest.Item
    with pytest.raises(ExperimentError, match="the run has no copy of that module"):
        config_io.name_of(Elsewhere, has=lambda module: module == "other")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Renamed, "only what can be imported under that name"),
        (functools.partial, "only what can be imported under that name"),
        (ofscript(), "Mine cannot be stored: it is defined in __main__, the script or notebook"),
        ({"a": {1, 2}}, r"experiment\['a'\]: a builtins.set cannot be stored"),
        ((1, {2: 3}), r"experiment\[1\]: keys must be text"),
        (lambda: 0, r"<lambda> cannot be stored: it is a lambda"),
        (inner(), "defined inside a function"),
        (np.array(["a"]), "cannot be stored"),
    ],
)
def test_what_cannot_be_stored_is_named(value, message):
    with pytest.raises(ExperimentError, match=message):
        config_io.to_json(value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"class": "os:environ", "fields": {}}, "not allowed here"),
        ({"name": "subprocess:run"}, "not allowed here"),
        ({"class": "gps.pipeline.provenance:subprocess.run", "fields": {}}, "not defined there"),
        ({"class": "gps.pipeline.store:Path", "fields": {}}, "not defined there"),
        ({"class": "gps.pipeline.loader:execute", "fields": {}}, "not a dataclass"),
        ({"name": "__main__:x"}, "not allowed here"),
        ({"name": "_pytest.nodes:Item"}, "needs the hyperparams file"),
        ({"class": "gps.nowhere:X", "fields": {}}, "does not exist in this version"),
        ({"class": "gps.types:Layouts", "fields": {}}, "does not exist in this version"),
        ({"class": "gps.types:Layout", "fields": {"entry": 1}}, "did you mean 'entries'"),
        ({"class": "gps.types:Layout", "fields": {}}, "'entries' is missing"),
        ({"other": 1}, "not an entry that this version"),
        ({}, "StopIteration"),
        ({"array": [1, 2], "dtype": "float64", "shape": [3]}, "ValueError"),
    ],
)
def test_what_cannot_be_read_is_named(tree, message):
    with pytest.raises(ExperimentError, match=message):
        config_io.from_json(tree)


def test_a_name_alone_imports_no_package(tmp_path, monkeypatch):
    package = tmp_path / "stranger"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Cost: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    tree = {"class": "stranger.part:Cost", "fields": {}}
    with pytest.raises(ExperimentError, match=r"if you trust it, add: import stranger\.part"):
        config_io.from_json(tree, lambda: {})
    assert "stranger" not in sys.modules

    def names():  # what executing the hyperparams file does
        importlib.import_module("stranger.part")
        return {}

    assert type(config_io.from_json(tree, names)).__name__ == "Cost"
    for name in ("stranger.part", "stranger"):
        sys.modules.pop(name)


def test_a_value_that_cannot_work_is_a_config_error_with_its_place():
    tree = {"dict": {"agent": config_io.to_json(PointMassConfig())}}
    tree["dict"]["agent"]["fields"]["dt"] = -1.0
    with pytest.raises(ConfigError, match=r"experiment\['agent'\]: PointMassConfig.dt"):
        config_io.from_json(tree)


ENUMS = """
from enum import Enum, Flag, IntEnum, StrEnum, auto
class Gait(StrEnum):
    WALK = "walk"
    TROT = "trot"
    RUN = "trot"
class Level(IntEnum):
    LOW = 1
class Side(Enum):
    LEFT = (1, "left")
class Bits(Flag):
    A = auto()
    B = auto()
def Plain(): ...
"""


def test_members_of_enums_come_back_as_such(tmp_path):
    (tmp_path / "gaits.py").write_text(ENUMS + "experiment = None\n")
    module = loader.execute(tmp_path / "gaits.py")
    names = lambda: vars(module)  # noqa: E731
    for value in (module.Gait.TROT, module.Gait.RUN, module.Level.LOW, module.Side.LEFT):
        assert round_trip((value,), names)[0] is value
    tree = config_io.to_json(module.Gait.TROT)
    assert tree == {"enum": "hyperparams:Gait", "member": "TROT"}
    with pytest.raises(ExperimentError, match="unknown member 'TROTT'; did you mean 'TROT'"):
        config_io.from_json({**tree, "member": "TROTT"}, names)
    with pytest.raises(ExperimentError, match="is not an Enum"):
        config_io.from_json({**tree, "enum": "hyperparams:Plain"}, names)
    with pytest.raises(ExperimentError, match="no name of its own"):
        config_io.to_json(module.Bits.A | module.Bits.B)
