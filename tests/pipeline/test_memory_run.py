"""Runs whose policy remembers: trained, stored, resumed, evaluated and exported; the same bytes."""

from dataclasses import replace

import numpy as np
import pytest

import gps
from gps import cli
from gps.agents import as_gymnasium
from gps.errors import ConfigError
from gps.parallel import Dask
from gps.pipeline import loader
from gps.pipeline.store import RunFolder
from gps.policies import SGDConfig

FILE = '''
"""A point mass that does not see its velocity."""
from dataclasses import replace

import torch

import gps
from gps.policies import MLPConfig, RecurrentConfig, TrainingConfig, WindowConfig


class Cell(torch.nn.Module):
    def __init__(self, no, nu):
        super().__init__()
        self.cell, self.last = torch.nn.GRUCell(no, 6), torch.nn.Linear(6, nu)
        self.hidden0 = torch.nn.Parameter(torch.zeros(6))

    def forward(self, obs, hidden):
        hidden = self.cell(obs, hidden)
        return self.last(hidden), hidden


start = gps.load("point_mass_policy")
NETWORK = {network}
experiment = replace(
    start,
    name="blind",
    agent=replace(start.agent, obs=("position",), T=20, dt=0.2, start_position_std=0.05),
    algorithm=replace(
        start.algorithm, network=NETWORK, training=TrainingConfig(steps={steps}, learning_rate=1e-2)
    ),
    iterations=2,
)
'''


KINDS = {
    "recurrent": ("RecurrentConfig(module=Cell)", 8),
    "window": ("WindowConfig(network=MLPConfig(hidden=(16, 16), activation='tanh'), steps=3)", 800),
    "memoryless": ("MLPConfig(hidden=(16, 16), activation='tanh')", 800),
}


def written(folder, kind):
    network, steps = KINDS[kind]
    path = folder / f"{kind}.py"
    path.write_text(FILE.replace("{network}", network).replace("{steps}", str(steps)))
    return path


def iterations(run):
    return {p.name: p.read_bytes() for p in sorted((run / "iterations").iterdir())}


@pytest.mark.slow
def test_stored_resumed_and_shared_the_same_bytes(tmp_path):
    runs = {}
    for kind in ("recurrent", "window"):
        loaded = loader.load(written(tmp_path, kind))
        serial, parts = tmp_path / f"{kind}_serial", tmp_path / f"{kind}_parts"
        for _ in gps.run(loaded.experiment, source=loaded.source, out=serial):
            pass
        assert len(iterations(serial)) == 3
        for _ in gps.run(loaded.experiment, source=loaded.source, iterations=1, out=parts):
            pass
        for _ in gps.resume(parts, iterations=2):
            pass
        assert iterations(parts) == iterations(serial)
        runs[kind] = loaded, serial
    executor = Dask(workers=2)
    try:
        for kind, (loaded, serial) in runs.items():
            dask = tmp_path / f"{kind}_dask"
            for _ in gps.run(loaded.experiment, executor=executor, source=loaded.source, out=dask):
                pass
            assert iterations(dask) == iterations(serial)
    finally:
        executor.close()


@pytest.mark.parametrize("kind", ["recurrent", "window"])
def test_what_was_stored_acts_and_is_evaluated(kind, tmp_path, capsys):
    loaded, run = loader.load(written(tmp_path, kind)), tmp_path / "run"
    for _ in gps.run(loaded.experiment, source=loaded.source, iterations=1, out=run):
        pass
    policy, again = RunFolder.open(run).read_state(1).policy.policy, gps.load_policy(run)
    obs = np.random.default_rng(0).normal(size=(3, 7, 2))
    np.testing.assert_allclose(again.mean(obs), policy.mean(obs), rtol=1e-9, atol=1e-12)
    agent = loaded.experiment.agent.build()
    noise = np.zeros((1, agent.T, agent.nu))
    a, b = (agent.rollout(p, 1, noise, np.zeros((1, 4)), test=True) for p in (policy, again))
    np.testing.assert_allclose(a.X, b.X, rtol=1e-9, atol=1e-12)
    assert cli.main(["evaluate", str(run), "--conditions", "test"]) == 0
    assert "iteration 1" in capsys.readouterr().out


def test_a_window_stops_the_mass_and_an_environment_is_driven_with_a_state(tmp_path):
    """The network without memory does not see how fast it moves."""
    ends = {}
    for kind in ("window", "memoryless"):
        experiment = loader.load(written(tmp_path, kind)).experiment
        *_, report = gps.run(experiment, iterations=6)
        ends[kind] = report.row["policy_distance_mean"]
    assert ends["window"] < 0.05
    assert ends["memoryless"] > 5 * ends["window"]

    pytest.importorskip("gymnasium")
    experiment = loader.load(written(tmp_path, "window")).experiment
    *_, report = gps.run(experiment)
    policy, agent = report.state.policy.policy, experiment.agent.build()
    rollouts = agent.rollout(policy, 2, np.zeros((1, agent.T, 2)), np.zeros((1, 4)))
    env = as_gymnasium(experiment.agent, experiment.cost)
    obs, _ = env.reset(options={"condition": 2, "start_noise": np.zeros(4)})
    state, done, seen = None, False, []
    while not done:
        action, state = policy.predict(obs, state)
        obs, _, _, done, _ = env.step(action)
        seen.append(obs)
    np.testing.assert_allclose(seen[:-1], rollouts.obs[0, 1:], rtol=1e-12, atol=1e-14)


def test_an_agent_that_knows_nothing_of_memory_is_given_an_actor(tmp_path, monkeypatch):
    """The pipeline carries the memory for it."""
    monkeypatch.setattr("gps.agents.base.acting", lambda policy: policy)
    experiment = loader.load(written(tmp_path, "window")).experiment
    *_, report = gps.run(experiment, iterations=1)
    assert np.isfinite(report.row["policy_cost_mean"])


def test_memory_is_refused_where_training_is_divided(tmp_path):
    experiment = loader.load(written(tmp_path, "window")).experiment
    algorithm = replace(experiment.algorithm, sgd=SGDConfig(mode="local"))
    with pytest.raises(ConfigError, match=r"sgd\.mode must be 'serial' for a WindowConfig"):
        replace(experiment, algorithm=algorithm).validate()


def test_files_without_memory_do_not_know_of_it(tmp_path):
    """A field that is not used is not stored: files stay as they were before there was one."""
    file = str(written(tmp_path, "memoryless"))
    run = tmp_path / "run"
    options = ["--executor", "serial", "--asynchronous", "--iterations", "1", "--out", str(run)]
    assert cli.main(["run", file, *options]) == 0
    with RunFolder.open(run)._opened(1) as h5:
        memory = h5["state/asynchronous/replay_buffer/0/0"]
        assert set(memory.attrs) == {"@type", "images", "state", "layout"}
    state = RunFolder.open(run).read_state(1)
    assert state.asynchronous.replay_buffer[0][0].T is None
