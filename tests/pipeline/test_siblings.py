"""Modules beside a hyperparams file: a file has its own, here, in other processes and in runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from gps import cli
from gps.errors import ConfigError, ExperimentError, StoreError
from gps.pipeline import config_io, loader
from gps.pipeline.store import RunFolder

MAIN = """
from dataclasses import dataclass

import gps
import kit
import kit.deep.speed as quick
from helper import *
from helper import SCALE as factor, make_cost
from kit import shapes
from gps.agents import PointMassConfig
from gps.algorithms import TrajOptConfig
from gps.control import HoldConfig


@dataclass(frozen=True, kw_only=True)
class Agent(PointMassConfig):
    def build(self):
        import late  # on the worker, where nothing of ours can be imported
        from kit.deep import limits

        assert late.here() is late
        assert isinstance(self, late.Agent_of(self))
        return late.checked(super().build(), limits.TOP)


experiment = gps.Experiment(
    agent=Agent(T=8, starts=((1.0, 1.0), (1.0, -1.0))),
    cost=make_cost(),
    initial=HoldConfig(position="position", velocity="velocity"),
    algorithm=TrajOptConfig(),
    samples=4,
    iterations=2,
)
"""
FILES = {
    "my_peg.py": MAIN,
    "helper.py": """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar

import other
from gps.costs import ActionCost, StateCost, SumCost, WeightedCost

__all__ = ["SCALE", "MyCost"]
SCALE = 0.1


@dataclass(frozen=True)
class MyCost(ActionCost):
    kind: "ClassVar[str]" = "own"
    mode = other.Mode.SOFT

    def evaluate(self, rollouts):
        assert self.mode is other.Mode.SOFT  # one and the same there
        assert other.its_helper().MyCost is type(self)
        return super().evaluate(rollouts)


def make_cost():
    state = StateCost(entry="position", target=0.0, l2=1.0)
    return SumCost(terms=(WeightedCost(cost=MyCost(weights=SCALE)), WeightedCost(cost=state)))
""",
    "other.py": """
from enum import StrEnum
import helper  # and helper imports this one


class Mode(StrEnum):
    SOFT = "soft"


def its_helper():
    return helper
""",
    "late.py": """
EXECUTED = []


def here():
    import late
    return late


def Agent_of(agent):
    return type(agent)


def checked(agent, top):
    EXECUTED.append(1)
    assert top == 3
    return agent
""",
    "kit/__init__.py": "from . import shapes\nfrom .deep import speed\n",
    "kit/shapes.py": "from .deep.limits import TOP\n",
    "kit/deep/__init__.py": "",
    "kit/deep/speed.py": "import sys, helper\nfrom ..deep import limits as l\nTOP = l.TOP\n",
    "kit/deep/limits.py": "TOP = 3\n",
}


def write(folder: Path, **changes: str) -> Path:
    for name, text in {**FILES, **changes}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "my_peg.py"


def test_a_file_imports_what_lies_beside_it_and_nothing_stays(tmp_path):
    before = list(sys.path), list(sys.meta_path)
    module = loader.execute(write(tmp_path))
    assert (list(sys.path), list(sys.meta_path)) == before
    own = ("helper", "other", "kit", "late", config_io.USER_MODULES)
    assert not [name for name in sys.modules if name.startswith(own)]
    assert module.kit.deep.speed is module.quick
    assert module.quick.TOP == module.shapes.TOP == 3
    assert module.factor == module.SCALE == 0.1
    assert module.MyCost is type(module.experiment.cost.terms[0].cost)
    assert module.quick.helper.MyCost is module.MyCost
    assert "make_cost" not in module.MyCost.__dict__
    assert not list(tmp_path.rglob("__pycache__"))
    loader.options(module.experiment)  # type hints of a sibling are found


def test_experiments_with_modules_of_one_name_have_their_own(tmp_path):
    a = loader.execute(write(tmp_path / "a"))
    b = loader.execute(write(tmp_path / "b", **{"kit/deep/limits.py": "TOP = 4\n"}))
    assert (a.quick.TOP, b.quick.TOP) == (3, 4)
    assert a.MyCost is not b.MyCost
    with pytest.raises(AssertionError):
        b.experiment.agent.build()  # its late import is its own, too
    a.experiment.agent.build()


def test_python_and_gps_are_not_hidden(tmp_path):
    for name in ("json.py", "gps.py"):
        (tmp_path / name).write_text("raise RuntimeError")
    (tmp_path / "numpy.py").write_text("mine = True\n")
    main = tmp_path / "main.py"
    main.write_text("import json, gps, numpy\nfrom json import loads\n")
    module = loader.execute(main)
    assert module.json.loads is module.loads
    assert module.numpy.mine
    assert module.gps.__file__ != str(tmp_path / "gps.py")


CHILD = """
import pickle, sys
agent, cost = pickle.load(open(sys.argv[1], "rb"))
agent = agent.build()
import numpy as np
from gps.control import HoldConfig
first = HoldConfig(position="position", velocity="velocity")
c = first.controller(agent.start_state(0), agent.layout, agent.nu, agent.T, agent.dt)
print(cost.evaluate(agent.rollout(c, 0, np.zeros((1, agent.T, agent.nu)))).l.shape)
agent, cost = pickle.load(open(sys.argv[1], "rb"))  # the next task
agent.build()
runs = agent.build.__globals__["__siblings__"].module("late").EXECUTED
print(len(runs), [n for n in sys.modules if n.startswith(("gps_exp", "helper", "late", "kit"))])
"""


def test_they_travel_to_other_processes(tmp_path):
    experiment = loader.load(write(tmp_path / "there")).experiment
    data = tmp_path / "data"
    data.write_bytes(cloudpickle.dumps((experiment.agent, experiment.cost)))
    shutil.rmtree(tmp_path / "there")
    argv = [sys.executable, "-c", CHILD, str(data)]
    out = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False)
    assert out.stdout.split("\n")[:2] == ["(1, 8)", "2 []"], out.stdout + out.stderr


def test_a_run_keeps_them_and_resumes_with_dask(tmp_path):
    """Serially in one go, and by a worker, then resumed when the files are gone: the same bytes."""
    path = write(tmp_path / "there")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main(["run", str(path), "--executor", "serial", "--out", str(whole)]) == 0
    options = ["--executor", "dask", "--workers", "1"]
    assert cli.main(["run", str(path), *options, "--iterations", "1", "--out", str(parts)]) == 0
    shutil.rmtree(tmp_path / "there")
    for name in (*FILES, "hyperparams.py"):
        if name != "my_peg.py":
            assert (parts / name).is_file()
    assert cli.main(["resume", str(parts), "--executor", "serial", "--iterations", "2"]) == 0
    last = Path("iterations") / "0002.h5"
    assert (parts / last).read_bytes() == (whole / last).read_bytes()
    cost = RunFolder.open(parts).experiment().cost.terms[0].cost
    tree = config_io.to_json(cost)
    assert tree["class"] == "hyperparams.helper:MyCost"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"other.py": "x = (\n"}, "other.py:1: syntax error"),
        ({"kit/deep/limits.py": "\nTOP = nothing\n"}, "kit/deep/limits.py:2: NameError"),
        ({"helper.py": "SCALE = 1\n"}, "my_peg.py:8: ImportError: cannot import name 'make_cost'"),
        ({"kit/__init__.py": "import kit.no\n"}, "kit/__init__.py:1: ModuleNotFoundError: No mod"),
        ({"late.py": "a\0b"}, "late.py: (is not Python source|syntax error)"),
        ({"my_peg.py": "from . import helper\n"}, "my_peg.py:1: ImportError: attempted relative"),
    ],
)
def test_a_bad_module_is_one_line_with_its_place(tmp_path, changes, message):
    with pytest.raises(ExperimentError, match=message) as caught:
        loader.load(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_wrong_configuration_of_a_module_is_named_there(tmp_path):
    text = "from gps.costs import ActionCost\nSCALE = 1\nmake_cost = ActionCost(weights='x')\n"
    with pytest.raises(ConfigError, match=r"helper\.py:3: "):
        loader.load(write(tmp_path, **{"helper.py": text}))


def test_names_that_a_run_folder_needs_are_refused_before_the_first_rollout(tmp_path, capsys):
    main = "import iterations\n" + MAIN
    path = write(tmp_path, **{"my_peg.py": main, "iterations.py": ""})
    out = tmp_path / "run"
    with pytest.raises(StoreError, match="where a run has its own iterations"):
        RunFolder.create(out, loader.load(path).experiment, path)
    assert not out.exists()


def test_unknown_modules_of_a_stored_run_are_named(tmp_path):
    names = vars(loader.execute(write(tmp_path)))
    for stored, message in (
        ("hyperparams.nothing:X", "imports no module nothing"),
        (
            "hyperparams.helper:X",
            "the module helper next to the hyperparams file does not define X",
        ),
        ("hyperparams.helper:ActionCost", "is not defined there"),
        ("hyperparams.kit.deep.speed:sys", "is not defined there"),
        ("hyperparamsx.helper:MyCost", "does not import hyperparamsx"),
    ):
        with pytest.raises(ExperimentError, match=message):
            config_io.find(stored, lambda: names)
    assert config_io.find("hyperparams.helper:MyCost", lambda: names) is names["MyCost"]


def test_a_new_experiment_takes_them_along(tmp_path, monkeypatch):
    source = write(tmp_path / "there")
    new = tmp_path / "new"
    new.mkdir()
    (new / "late.py").write_text("mine = 1\n")
    with pytest.raises(ExperimentError, match=r"late\.py exists already"):
        loader.new("mine", source, new)
    assert os.listdir(new) == ["late.py"]
    (new / "late.py").unlink()
    loader.load(loader.new("mine", source, new)).experiment.validate()
    loader.new("again", source, new)
