"""The warm-up loads all kernels of an experiment's algorithm, and none of another one's."""

import subprocess
import sys
from dataclasses import replace

import pytest

import gps
from gps.execution import Serial
from gps.pipeline import loader, warmup
from gps.protocols import WarmsUp

LOADED = """
import sys
from dataclasses import replace
from numba.core.dispatcher import Dispatcher
import gps
from gps.pipeline.warmup import warm_up

def loaded():
    found = set()
    for name, module in list(sys.modules.items()):
        if name.startswith("gps."):
            for item in vars(module).values():
                if isinstance(item, Dispatcher):
                    kernel = f"{item.py_func.__module__}.{item.py_func.__name__}"
                    found |= {(kernel, str(signature)) for signature in item.signatures}
    return found

experiment = gps.load(sys.argv[1])
algorithm = experiment.algorithm
if "training" in vars(algorithm):
    algorithm = replace(algorithm, training=replace(algorithm.training, steps=20))
experiment = replace(experiment, algorithm=algorithm, iterations=2)
warm_up(experiment)
before = loaded()
for report in gps.run(experiment):
    pass
print(sorted({kernel for kernel, _ in before}))
print(sorted(loaded() - before))
"""


@pytest.mark.parametrize(
    ("name", "used", "unused"),
    [
        ("point_mass", "gps.control._kernels", "gps.policies._kernels"),
        pytest.param(
            "point_mass_policy",
            "gps.policies._kernels",
            "gps.control._pi2_kernels",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "point_mass_pi2",
            "gps.control._pi2_kernels",
            "gps.distributions._kernels",
            marks=pytest.mark.slow,
        ),
        ("cartpole_swingup", "gps.control._ilqr_kernels", "gps.distributions._kernels"),
    ],
)
def test_a_run_finds_all_kernels_loaded_after_the_warm_up(name, used, unused):
    out = subprocess.run(
        [sys.executable, "-c", LOADED, name], capture_output=True, text=True, check=True
    ).stdout
    kernels, missing = out.splitlines()
    assert missing == "[]"
    assert used in kernels
    assert unused not in kernels


@pytest.mark.parametrize("name", [name for name, _ in loader.names()])
def test_every_algorithm_works_on_the_tiny_agent(name):
    """An error would be swallowed, and every worker compile on its own."""
    warmup._iterate(warmup._tiny(gps.load(name)))


def test_the_agent_warms_up_too_and_no_error_of_the_algorithm_ends_it(monkeypatch, caplog):
    experiment = gps.load("arm_reach")
    agent, warmed = experiment.agent.build(), []
    assert isinstance(agent, WarmsUp)
    monkeypatch.setattr(type(agent), "warm_up", lambda self: warmed.append(self))

    def fail(*args):
        raise ValueError("not here")

    monkeypatch.setattr(type(experiment.algorithm), "iterate", fail)
    with caplog.at_level("DEBUG", "gps.pipeline.warmup"):
        warmup.warm_up(replace(experiment, samples=7))
    assert len(warmed) == 1
    assert "not here" in caplog.text


class Two(Serial):
    """A serial executor that says it has two workers, and what it was asked to do."""

    workers = 2

    def __init__(self):
        super().__init__()
        self.asked = []

    def call(self, *args, condition=-1):
        self.asked.append(condition)
        return super().call(*args, condition=condition)

    def prepare(self, fn):
        self.asked.append("all")
        fn()


def test_two_workers_compile_at_once_and_then_all_load(monkeypatch):
    made = []
    monkeypatch.setattr(warmup, "_iterate", lambda tiny: made.append(tiny.algorithm))
    ex = Two()
    warmup.prepare(ex, gps.load("point_mass"))
    assert ex.asked == [0, 1, "all"]
    assert [a.dynamics.prior is None for a in made] == [False, True, False]
    ex = Two()
    warmup.prepare(ex, gps.load("point_mass_pi2"))  # fits no dynamics
    assert ex.asked == ["all"]
