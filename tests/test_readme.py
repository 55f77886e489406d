"""Every Python code block of README and docs runs as it stands, given the names it leaves open.

A new block runs by itself; one that needs names, or smaller settings than a reader's, gets a
`Setup` here.
"""

import re
import runpy
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from distributed import LocalCluster

import gps
import gps.agents
import gps.parallel
import gps.pipeline
from gps.agents import RobotServer

ROOT = Path(__file__).parent.parent
BLOCKS = [
    pytest.param(match[1], id=f"{path.name}:{text.count(chr(10), 0, match.start()) + 1}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for text in [path.read_text()]
    for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL)
]

ROBOT = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody><body>
    <joint name="slide" type="slide" axis="1 0 0"/><geom type="sphere" size="0.1" mass="1"/>
  </body></worldbody>
  <actuator><motor joint="slide" ctrlrange="-5 5" ctrllimited="true"/></actuator>
</mujoco>
"""


def problem() -> dict[str, Any]:
    """The variables of the blocks on gps.control: two states, one action, 12 steps."""
    from gps.control.tracking import LinearSensor
    from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

    T, nx, nu, N = 12, 2, 1, 6
    rng = np.random.default_rng(0)
    F = np.tile(np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1]]), (T - 1, 1, 1))
    f, W = np.zeros((T - 1, nx)), np.tile(1e-4 * np.eye(nx), (T - 1, 1, 1))
    C, c, c0 = np.tile(np.eye(nx + nu), (T, 1, 1)), np.zeros((T, nx + nu)), np.zeros(T)
    x0, S0 = np.ones(nx), 0.01 * np.eye(nx)
    zero = np.zeros((T, nu, nx)), np.zeros((T, nu)), np.tile(np.eye(nu), (T, 1, 1))
    controller = LinearGaussianController(*zero)
    dynamics, cost = LinearDynamics(F, f, W), QuadraticCost(C, c, c0)
    return {
        **{"np": np, "T": T, "F": F, "f": f, "W": W, "C": C, "c": c, "c0": c0, "x0": x0, "S0": S0},
        **{"A": F[0, :, :nx], "B": F[0, :, nx:], "Q": np.eye(nx), "R": np.eye(nu), "rng": rng},
        **{"previous": controller, "controller": controller, "dynamics": dynamics, "cost": cost},
        **{"start": Gaussian(x0, S0), "X": rng.normal(size=(N, T, nx))},
        **{"U": rng.normal(size=(N, T, nu)), "X_ref": np.zeros((T, nx))},
        **{"U_ref": np.zeros((T, nu)), "models": [dynamics] * 3},
        "sensor": LinearSensor.constant(T, np.eye(nx), 0.01 * np.eye(nx)),
    }


def planned() -> dict[str, Any]:
    import mujoco

    return {**problem(), "mujoco": mujoco, "start": np.ones(2)}


def sampled() -> dict[str, Any]:
    names = problem()
    return {**names, "costs": names["rng"].gamma(1.0, size=names["X"].shape[:2])}


def stacked() -> dict[str, Any]:
    names = problem()
    return {**names, "costs": [names["cost"]] * 3}


def costs_of(cost: Any) -> float:
    """What a cost says of a point mass that stays where it starts."""
    from gps.types import LinearGaussianController

    agent = gps.agents.PointMassConfig(T=5).build()
    zero = np.zeros((5, 2, 4)), np.zeros((5, 2)), np.tile(np.eye(2), (5, 1, 1))
    rollouts = agent.rollout(LinearGaussianController(*zero), 0, np.zeros((1, 5, 2)))
    return cost.evaluate(rollouts).l.sum()


def small(name: str = "point_mass_policy") -> gps.Experiment:
    """In place of every experiment that a block loads."""
    return replace(gps.pipeline.load("point_mass_policy"), iterations=2)


class SLURMCluster(LocalCluster):
    """Threads of this process in place of jobs."""

    def __init__(self, cores: int, processes: int, memory: str, walltime: str) -> None:
        super().__init__(n_workers=1, processes=False, dashboard_address=None)

    def scale(self, n: int = 1, jobs: int = 0) -> None:
        super().scale(n)


@contextmanager
def one_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where a block starts four workers, one is started."""
    known = gps.parallel.Dask
    small = lambda *client, workers=None: known(*client, workers=workers and 1)  # noqa: E731
    monkeypatch.setattr(gps.parallel, "Dask", small)
    yield


@contextmanager
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = types.ModuleType("dask_jobqueue")
    module.SLURMCluster = SLURMCluster
    monkeypatch.setitem(sys.modules, "dask_jobqueue", module)
    yield


@contextmanager
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A robot, at a port that is free."""
    with RobotServer(gps.agents.PointMassConfig().build()) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        config = partial(gps.agents.RemoteConfig, port=server.port)
        elsewhere = lambda port, **more: config(**more)  # noqa: E731
        monkeypatch.setattr(gps.agents, "RemoteConfig", elsewhere, raising=False)
        yield
        server.close()
        thread.join()


@dataclass(frozen=True)
class Setup:
    """What a code block needs, and what must hold after it."""

    mark: str
    """Text of this block only."""
    names: Callable[[], dict[str, Any]] = dict
    """The variables that it leaves undefined."""
    change: Callable[[pytest.MonkeyPatch], AbstractContextManager[None]] = nullcontext
    """Replaces hardware and large settings."""
    check: Callable[[SimpleNamespace], Any] = lambda end: True
    """Whether its variables in the end are right."""


SETUPS = (
    Setup(
        "import Command, Steering",
        lambda: {"gps": gps, "experiment": small()},
        check=lambda end: end.report.iteration <= 6,
    ),
    Setup("SLURMCluster", change=slurm, check=lambda end: end.report.iteration == 2),
    Setup("policy.module() is torch", check=lambda end: end.action.shape == (2,)),
    Setup(
        "Dask(workers=4)",
        lambda: {"gps": gps, "experiment": small()},
        change=one_worker,
        check=lambda end: end.report.iteration == 2,
    ),
    Setup(
        "import dual, lqr",
        problem,
        check=lambda end: (
            end.result.kl.sum() <= 1.01 * end.T
            and end.plain.T == end.T
            and not end.regulator.K[-1].any()
            and end.regulator.K[0].any()
        ),
    ),
    Setup("import ilqr", planned, check=lambda e: e.plan.converged and abs(e.plan.U).max() <= 5),
    Setup("import pi2, pilqr", sampled, check=lambda end: end.better.K.shape == (end.T, 1, 2)),
    Setup(
        "import batch",
        stacked,
        check=lambda e: e.loop.X.shape == (100, e.T, 2) and e.gains.K.shape == (3, e.T, 1, 2),
    ),
    Setup("torch_cost", lambda: {"torch": torch}, check=lambda e: costs_of(e.keep_right) > 0),
    Setup(
        "import as_gymnasium",
        lambda: {"experiment": small()},
        check=lambda end: len(end.env.step(end.env.reset(seed=1)[0][:2])) == 5,
    ),
    Setup("RemoteConfig", change=remote, check=lambda end: end.report.iteration == 2),
)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_code_block_runs(block, monkeypatch, tmp_path):
    (setup,) = [s for s in SETUPS if s.mark in block] or [Setup("")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gps, "load", small, raising=False)
    Path("robot.xml").write_text(ROBOT)
    path = tmp_path / "block.py"  # absolute: worker processes read it again
    path.write_text(block)
    with setup.change(monkeypatch):
        names = runpy.run_path(str(path), setup.names(), run_name="__main__")
    assert setup.check(SimpleNamespace(**names))


def test_every_setup_has_one_block():
    for setup in SETUPS:
        assert sum(setup.mark in block.values[0] for block in BLOCKS) == 1, setup.mark
