import importlib.resources
import pickle
import sys
from dataclasses import replace

import cloudpickle
import pytest

from gps.errors import ConfigError, ExperimentError
from gps.pipeline import config_io, loader
from gps.pipeline.experiment import Experiment

GOOD = '''
"""A test."""
from dataclasses import dataclass

from gps.agents.point_mass import PointMassConfig
from gps.algorithms import TrajOptConfig
from gps.control.initial import HoldConfig
from gps.costs import ActionCost, SumCost, WeightedCost
from gps.costs.base import Cost
from gps.pipeline.experiment import Experiment


@dataclass(frozen=True)
class MyCost:
    inner: Cost
    """Another cost."""
    weight: "float" = 1.0
    """How much
    it counts."""
    table: dict | None = None

    def evaluate(self, rollouts):
        return self.inner.evaluate(rollouts)

    def check(self, layout, nu, T):
        pass


experiment = Experiment(
    description="for tests",
    agent=PointMassConfig(starts=((1.0, 1.0),)),
    cost=SumCost(
        terms=(
            WeightedCost(cost=ActionCost(weights=0.1)),
            WeightedCost(cost=MyCost(inner=ActionCost(weights=(1.0, 2.0)))),
        )
    ),
    initial=HoldConfig(position="position", velocity="velocity"),
    algorithm=TrajOptConfig(),
)
'''


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good_one.py"
    path.write_text(GOOD)
    return path


@pytest.fixture
def experiment(good):
    return loader.load(good).experiment


# --- loading


@pytest.mark.parametrize("name", [name for name, _ in loader.names()])
def test_every_installed_experiment_loads_with_its_description(name):
    loaded = loader.load(name)
    assert loaded.experiment.name == name
    assert loaded.source.stem == name
    assert dict(loader.names())[name] == loaded.experiment.description != ""


def test_by_path_from_anywhere(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in (good, str(good), "good_one.py", "./good_one.py"):
        loaded = loader.load(given)
        assert isinstance(loaded.experiment, Experiment)
        assert loaded.experiment.name == "good_one"
        assert loaded.source == good


def test_loading_leaves_no_module_behind_and_two_loads_do_not_mix(good):
    before = set(sys.modules)
    one, two = loader.load(good).experiment, loader.load(good).experiment
    assert not {name for name in set(sys.modules) - before if not name.startswith("gps.")}
    assert type(one.cost.terms[1].cost) is not type(two.cost.terms[1].cost)


def test_own_classes_travel_to_other_processes(experiment, tmp_path):
    """Dask tries pickle, then cloudpickle; the other process cannot import the file."""
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(experiment)
    data = tmp_path / "data"
    data.write_bytes(cloudpickle.dumps(experiment.cost))
    import subprocess

    code = "import pickle,sys; c=pickle.load(open(sys.argv[1],'rb')); print(c.terms[1].cost.weight)"
    out = subprocess.run(
        [sys.executable, "-c", code, str(data)], capture_output=True, text=True, cwd="/"
    )
    assert out.stdout.strip() == "1.0", out.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "bad.py: defines no `experiment`"),
        ("experiment = 3\n", "`experiment` must be an Experiment, got int"),
        ("x = 1\nexperiment = (\n", "bad.py:2: syntax error"),
        ("\nimport nothing_like_this\n", "bad.py:2: ModuleNotFoundError: No module named"),
        ("from gps.costs import NoCost\n", "bad.py:1: ImportError: cannot import name 'NoCost'"),
        ("def f():\n    return 1 / 0\n\nf()\n", "bad.py:2: ZeroDivisionError"),
        ("a\0b", "bad.py: (is not Python source|syntax error)"),
        (
            "from gps.agents.point_mass import PointMassConfig\nPointMassConfig(dampng=1)\n",
            "bad.py:2: TypeError: .*; did you mean 'damping'",
        ),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ExperimentError, match=message) as caught:
        loader.load(path)
    assert "\n" not in str(caught.value)


def test_a_config_error_gets_file_and_line(good):
    good.write_text(GOOD.replace("starts=((1.0, 1.0),)", "dt=-1.0"))
    line = 1 + GOOD[: GOOD.index("agent=Point")].count("\n")
    with pytest.raises(
        ConfigError, match=f"good_one.py:{line}: PointMassConfig.dt must be a number above"
    ):
        loader.load(good)


def test_missing_files_and_names(tmp_path):
    with pytest.raises(ExperimentError, match=r"did you mean 'point_mass'.*known:.*path of a file"):
        loader.load("point_mas")
    with pytest.raises(ExperimentError, match=r"no\.py does not exist"):
        loader.load(tmp_path / "no.py")
    with pytest.raises(ExperimentError, match="is a folder"):
        loader.load(tmp_path)


def test_names_execute_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("raise SystemExit('ran')\nexperiment = E(description='say a')")
    (tmp_path / "b.py").write_text('"""Doc of b.\n\nMore."""\n')
    (tmp_path / "c.py").write_text("def (")
    (tmp_path / "_d.py").write_text("")
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    names = dict(loader.names())
    assert list(names) == ["a", "b", "c"]
    assert names["a"] == "say a"
    assert names["b"] == "Doc of b."
    assert names["c"].startswith("(cannot be loaded")


def test_new_writes_a_file_that_loads_and_never_overwrites(tmp_path):
    path = loader.new("mine", "point_mass", tmp_path)
    assert path == tmp_path / "mine.py"
    assert path.read_text().startswith("# Experiment mine, made from point_mass")
    old = loader.load("point_mass").experiment
    assert loader.load(path).experiment == replace(old, name="mine")
    with pytest.raises(ExperimentError, match="exists already"):
        loader.new("mine", "point_mass", tmp_path)
    with pytest.raises(ExperimentError, match="not a name for an experiment"):
        loader.new("../mine", "point_mass", tmp_path)
    with pytest.raises(ExperimentError, match="cannot write"):
        loader.new("mine", "point_mass", tmp_path / "nowhere")


def test_new_renames_the_experiment(good, tmp_path):
    good.write_text(GOOD.replace("    description=", '    name="good_one",\n    description='))
    assert loader.load(loader.new("two", good, tmp_path)).experiment.name == "two"


# --- overriding


def test_nothing_given_is_the_same_object(experiment):
    assert loader.override(experiment, []) is experiment


def test_options_reach_every_kind_of_field(experiment):
    argv = """
        --samples 7 --agent.dt 0.1 --agent.starts 1 2 3 4 --agent.force-limit 2.5
        --algorithm.step.kl_max=0.5 --algorithm.step.rule mc
        --cost.terms.1.weight 3 --cost.terms.0.cost.weights 1 2
        --cost.terms.1.cost.inner.weights 0.5 --cost.terms.1.cost.weight -2
    """
    changed = loader.override(experiment, argv.split())
    assert (changed.samples, changed.agent.dt, changed.agent.force_limit) == (7, 0.1, 2.5)
    assert changed.agent.starts == ((1.0, 2.0), (3.0, 4.0))
    assert (changed.algorithm.step.kl_max, changed.algorithm.step.rule) == (0.5, "mc")
    assert changed.cost.terms[1].weight == 3.0
    assert changed.cost.terms[0].cost.weights == (1.0, 2.0)
    assert changed.cost.terms[1].cost.inner.weights == 0.5
    assert changed.cost.terms[1].cost.weight == -2.0
    assert type(changed.cost.terms[1].cost) is type(experiment.cost.terms[1].cost)
    assert changed.initial is experiment.initial
    assert experiment.samples == 5


def test_none_can_be_given(experiment):
    limited = replace(experiment, agent=replace(experiment.agent, force_limit=1.0))
    assert loader.override(limited, ["--agent.force-limit", "None"]).agent.force_limit is None


@pytest.mark.parametrize("name", [name for name, _ in loader.names()])
def test_every_option_of_every_experiment_takes_its_own_value(name):
    """Each option that holds one plain value, set to that value, changes nothing."""
    experiment = loader.load(name).experiment
    names = loader.options(experiment)
    assert any(n.startswith("--agent.") for n in names)
    assert any(n.startswith("--cost.") for n in names)
    assert any(n.startswith("--algorithm.") for n in names)
    argv = []
    for option in names:
        value = experiment
        for part in option.removeprefix("--").split("."):
            part = part.replace("-", "_")
            value = value[int(part)] if isinstance(value, tuple) else getattr(value, part)
        if isinstance(value, bool | int | float | str):
            argv += [option, str(value)]
    assert len(argv) > 20
    assert loader.override(experiment, argv) == experiment


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--sampels 3", "unknown option --sampels; did you mean --samples"),
        ("--kl_max 3", "unknown option --kl_max; did you mean --algorithm.step.kl-max"),
        ("--algorithm.step.klmax 3", "did you mean --algorithm.step.kl-max"),
        ("--agent.step 3", "unknown option --agent.step"),
        ("--algorithm.step 3", "is a group; one of its options is --algorithm.step.kl-max"),
        ("--cost.terms.2.weight 3", "did you mean --cost.terms.[01].weight"),
        ("--name x", "unknown option --name"),
        ("--zzz 1", "unknown option --zzz; see gps run --help"),
        ("samples 3", "unexpected 'samples'"),
        (
            "--samples x",
            "^--samples must be a whole number from 1 to 100000, got 'x'; see gps run -",
        ),
        ("--samples=2.5 --seed 3", "^--samples must be a whole number .*, got '2.5'"),
        ("--samples", "^--samples needs a value, a whole number from 1 to 100000; see"),
        ("--samples=", "^--samples must be a whole number from 1 to 100000, got ''; see"),
        ("--agent.dt a --samples 3", "^--agent.dt must be a number.*, got 'a'"),
        ("--cost.terms.0.weight x", "^--cost.terms.0.weight must be a number.*, got 'x'"),
        ("--algorithm.exploration.floor no", "^--algorithm.exploration.floor must be .*got 'no'"),
        ("--samples 3 4", "4"),
        ("--algorithm.step.rule lap", "^--algorithm.step.rule must be 'laplace', .*, got 'lap'"),
        ("--agent.starts 1 2 3", "agent.starts"),
    ],
)
def test_a_wrong_option_is_one_line(experiment, argv, message):
    with pytest.raises(ExperimentError, match=message) as caught:
        loader.override(experiment, argv.split())
    assert "\n" not in str(caught.value)
    assert "│" not in str(caught.value)


def test_a_value_that_cannot_work_keeps_its_own_message(experiment):
    with pytest.raises(ConfigError, match=r"^PointMassConfig.dt must be a number above 0"):
        loader.override(experiment, ["--agent.dt", "-1"])
    with pytest.raises(ConfigError, match=r"^Experiment.samples"):
        loader.override(experiment, ["--samples", "0"])


def test_help_shows_the_texts_under_the_fields(experiment, capsys):
    with pytest.raises(SystemExit) as stop:
        loader.override(experiment, ["--help"], prog="gps run x", skip=("seed", "name"))
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "How much it counts." in text
    assert "--cost.terms.1.cost.inner.weights" in text
    assert "Duration of one step" in text
    assert "--seed" not in text


def test_overridden_own_classes_can_be_stored_and_found_again(experiment, good):
    changed = loader.override(experiment, ["--cost.terms.1.cost.weight", "4"])
    tree = config_io.to_json(changed)
    module = loader.execute(good)
    back = config_io.from_json(tree, lambda: vars(module))
    assert back.cost.terms[1].cost.weight == 4.0
    assert type(back.cost.terms[1].cost) is module.MyCost
