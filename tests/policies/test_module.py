"""Networks of the user's: any torch module that follows the rules, and refusals of the others."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from policy_networks import some_data
from torch import nn

import gps
from gps import cli
from gps.errors import ConfigError, ExperimentError
from gps.pipeline import config_io
from gps.policies import (
    MLPConfig,
    ModuleConfig,
    PolicyMetadata,
    Sizes,
    TrainingConfig,
    export_program,
    fit,
    initial_policy,
    load,
)
from gps.rng import stream
from gps.types import Layout


class Mine(nn.Module):
    """Layers of torch's own, in its default precision."""

    def __init__(self, no, nu, hidden=16):
        super().__init__()
        self.first, self.norm = nn.Linear(no, hidden), nn.LayerNorm(hidden)
        self.last = nn.Linear(hidden, nu)
        self.register_buffer("scale", torch.randn(hidden))

    def forward(self, obs):
        return self.last(self.scale * torch.tanh(self.norm(self.first(obs))))


def lazy(no, nu):
    return nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(nu))


class Window(nn.Module):
    """A recurrent layer over three observations that the agent gives at once."""

    def __init__(self, no, nu):
        super().__init__()
        self.cell, self.last = nn.GRUCell(no // 3, 8), nn.Linear(8, nu)

    def forward(self, obs):
        state = None
        for part in obs.chunk(3, dim=1):
            state = self.cell(part, state)
        return self.last(state)


SIZES = Sizes(6, 3)
NETWORKS = [
    ModuleConfig(module=Mine, arguments=(("hidden", 9),)),
    ModuleConfig(module=lazy),
    ModuleConfig(module=Window),
]
networks = pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.module.__name__)


@networks
def test_weights_come_from_the_given_generator_alone(network):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (
        network.initial_weights(SIZES, stream(seed, "net")) for seed in (0, 0, 1)
    )
    network.build(SIZES)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)  # of no consequence
    for a, b in zip(first, network.initial_weights(SIZES, stream(0, "net")), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.float64
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(np.abs(a - b).max() > 0.01 for a, b in zip(first, other, strict=True))
    shapes = [tuple(p.shape) for p in network.build(SIZES).parameters()]
    assert [w.shape for w in first] == shapes


@networks
def test_training_lowers_the_loss(network):
    policy = initial_policy(network, 6, 3, stream(0, "net"))
    data = some_data()
    result = fit(policy, data, TrainingConfig(steps=200, batch_size=30), stream(0, "fit"))
    assert result.trace[-5:].mean() < 0.5 * result.trace[:5].mean()
    trained = result.policy
    with torch.no_grad():
        want = trained.module()(torch.tensor(data.obs)).numpy()
    np.testing.assert_allclose(trained.mean(data.obs), want, rtol=1e-12)
    assert np.abs(trained.mean(data.obs) - policy.mean(data.obs)).max() > 0.1


def test_buffers_are_the_same_in_every_process():
    """Only parameters are stored: what the constructor draws besides must come back by itself."""
    code = (
        "import sys; sys.path[:0] = {path}\n"
        "from test_module import NETWORKS, SIZES\n"
        "print(NETWORKS[0].build(SIZES).scale.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.format(path=repr(sys.path))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert eval(done.stdout) == NETWORKS[0].build(SIZES).scale.tolist()


@networks
def test_export_and_back(network, tmp_path):
    policy = replace(
        initial_policy(network, 6, 3, stream(0, "net")),
        obs_mean=np.arange(6.0),
        obs_std=np.full(6, 2.0),
    )
    metadata = PolicyMetadata(obs_layout=Layout((("x", 6),)), dt=0.1)
    obs = 3 * stream(0, "obs").normal(size=(7, 6))
    path = tmp_path / "policy.pt2"
    path.write_bytes(export_program(policy, metadata))
    np.testing.assert_allclose(load(path).mean(obs), policy.mean(obs), rtol=1e-9, atol=1e-12)


class Noisy(Mine):
    def forward(self, obs):
        return nn.functional.dropout(super().forward(obs), 0.5, self.training)


class Normed(Mine):
    def __init__(self, no, nu):
        super().__init__(no, nu)
        self.batch = nn.BatchNorm1d(nu)

    def forward(self, obs):
        return self.batch(super().forward(obs))


class Recurrent(nn.GRUCell):
    def __init__(self, no, nu):
        super().__init__(no, nu)

    def forward(self, obs):
        state = super().forward(obs)
        return state, state


class Coupled(Mine):
    def forward(self, obs):
        return torch.softmax(super().forward(obs), dim=0)


class Unused(Mine):
    def __init__(self, no, nu):
        super().__init__(no, nu)
        self.spare = nn.Linear(2, 2)


class Frozen(Mine):
    def __init__(self, no, nu):
        super().__init__(no, nu)
        self.first.requires_grad_(False)


class Single(Mine):
    def forward(self, obs):
        return super().forward(obs).float()


class Constant(Mine):
    def forward(self, obs):
        return torch.ones(len(obs), 3) @ super().forward(obs)


class Infinite(Mine):
    def forward(self, obs):
        return super().forward(obs) / 0.0


class Detached(Mine):
    def forward(self, obs):
        return super().forward(obs).detach()


class NumpyDraws(Mine):
    def __init__(self, no, nu):
        super().__init__(no, nu)
        with torch.no_grad():
            self.last.bias += torch.tensor(np.random.default_rng().normal())


REFUSED = [
    (Recurrent, "returns a tuple and must return actions only; .*hidden state.*RecurrentConfig"),
    (Noisy, r"different actions from one call to the next \(dropout\?\)"),
    (Normed, r"changes the buffer batch\.running_mean.*layer normalisation"),
    (Coupled, "depends on the other rows"),
    (Unused, r"do not depend on spare\.weight, spare\.bias"),
    (Frozen, r"first\.weight has requires_grad=False"),
    (Single, r"must return float64 for float64, got torch\.float32"),
    (Constant, r"raised RuntimeError: .*its inputs are float64"),
    (Infinite, "NaN or infinity"),
    (Detached, "do not depend on first"),
    (NumpyDraws, "two calls with the same seed of torch gave different weights"),
    (lambda no, nu: nn.Linear(no, nu + 1), r"actions of shape \(3, 3\) .* got \(3, 4\)"),
    (lambda no, nu: nn.Linear(no + 1, nu), r"observations \(3, 6\) raised RuntimeError"),
    (lambda no, nu: nn.Tanh(), "no parameters that could be trained"),
    (lambda no, nu: 3.0, r"must return a torch\.nn\.Module .* called with \(6, 3\), got a float"),
    (lambda no: nn.Tanh(), r"the call with \(6, 3\) raised TypeError"),
]


@pytest.mark.parametrize(("module", "message"), REFUSED, ids=lambda v: getattr(v, "__name__", None))
def test_modules_that_cannot_be_trained_are_refused(module, message):
    state = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=message) as caught:
        ModuleConfig(module=module).initial_weights(SIZES, stream(0, "net"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"ModuleConfig.module {module.__qualname__}")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"module": nn.Linear(2, 2)}, "not a module itself.* got a Linear"),
        ({"module": "Mine"}, "got a str"),
        (
            {"module": Mine, "arguments": {"hidden": 3}},
            "a tuple of text, anything",
        ),
        (
            {"module": Mine, "arguments": (("hidden",),)},
            "a tuple of text, anything",
        ),
        ({"module": Mine, "arguments": (("hidden", 3), ("hidden", 4))}, "one argument twice"),
        ({"module": Mine, "arguments": (("hidden", [3]),)}, "hidden must be a number.*list"),
    ],
)
def test_configurations_that_cannot_be_right(fields, message):
    with pytest.raises(ConfigError, match=message):
        ModuleConfig(**fields)


def test_a_wrong_argument_is_named():
    with pytest.raises(ConfigError, match=r"call with \(6, 3, hiden=4\) raised TypeError.*hiden"):
        ModuleConfig(module=Mine, arguments=(("hiden", 4),)).build(SIZES)


def test_configurations_are_compared_by_value():
    a, b = (ModuleConfig(module=Mine, arguments=(("hidden", n),)) for n in (4, 4))
    assert a == b
    assert hash(a) == hash(b)
    assert a != NETWORKS[0]


def test_a_module_that_no_import_finds_cannot_be_stored():
    class Inside(Mine):
        pass

    assert config_io.to_json(ModuleConfig(module=Mine))
    with pytest.raises(ExperimentError, match=r"Inside cannot be stored: it is .*; define it"):
        config_io.to_json(ModuleConfig(module=Inside))


def test_another_network_than_the_kernels():
    assert NETWORKS[0].mlp_layout(SIZES) is None
    assert MLPConfig().mlp_layout(SIZES) is not None


FILE = '''
"""A network of the file's own."""
from dataclasses import replace

import torch

import gps
from gps.policies.module import ModuleConfig


class Base(torch.nn.Module):
    def __init__(self, no, nu, hidden):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(no, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, nu))


class Mine(Base):
    def forward(self, obs):
        return GAIN * self.layers(obs)


GAIN = 0.5
start = gps.load("point_mass_policy")
algorithm = replace(
    start.algorithm,
    network=ModuleConfig(module=Mine, arguments=(("hidden", 12),)),
    training=replace(start.algorithm.training, steps=60),
)
experiment = replace(start, name="own", algorithm=algorithm, samples=4, iterations=2)
'''


@pytest.mark.slow
def test_a_network_of_the_hyperparams_file_is_trained_by_workers(tmp_path):
    """The same numbers with two processes as with one, and read again by name."""
    file = tmp_path / "own.py"
    file.write_text(FILE)
    gps_command = [sys.executable, "-m", "gps.cli"]
    for kind in ("serial", "dask"):
        out = tmp_path / kind
        command = [*gps_command, "run", file, "--out", out, "--executor", kind]
        command += ["--workers", "2"] if kind == "dask" else []
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    serial, dask = (gps.load_policy(tmp_path / kind, "last") for kind in ("serial", "dask"))
    obs = stream(0, "obs").normal(size=(9, 4))
    np.testing.assert_array_equal(serial.mean(obs), dask.mean(obs))
    untrained = gps.load_policy(tmp_path / "serial", iteration=1)
    assert np.abs(serial.mean(obs) - untrained.mean(obs)).max() > 1e-3
    path = gps.export_policy(tmp_path / "dask", tmp_path / "own.pt2", iteration="last")
    np.testing.assert_allclose(load(path).mean(obs), serial.mean(obs), rtol=1e-9, atol=1e-12)


WRONG = {
    "self.layers(obs)": ("raise ValueError('no idea')", "raised ValueError: no idea"),
    "def forward(self, obs)": ("def forward(self)", "raised TypeError"),
    "hidden, nu))": ("hidden, nu + 1))", "actions of shape (3, 2)"),
    "GAIN * self": ("float('nan') * self", "NaN or infinity"),
}


@pytest.mark.parametrize("part", WRONG, ids=lambda v: WRONG[v][1][:16])
def test_a_wrong_network_is_refused_before_the_first_rollout(part, tmp_path, capsys):
    """In one line that names the class, with exit code 2, and nothing is written."""
    wrong, message = WRONG[part]
    whole = "return GAIN * self.layers(obs)" if part == "self.layers(obs)" else part
    file = tmp_path / "own.py"
    file.write_text(FILE.replace(whole, wrong))
    run = tmp_path / "run"
    assert cli.main(["run", str(file), "--executor", "serial", "--out", str(run)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert "ModuleConfig.module Mine" in line
    assert not run.exists()
