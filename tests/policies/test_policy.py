"""What all policies have in common: everything that follows from one step."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import gps
from gps.agents import PointMassConfig
from gps.errors import ConfigError, ShapeError
from gps.pipeline.experiment import initial_state
from gps.policies import (
    BasePolicy,
    MLPConfig,
    MLPLayout,
    PolicyMetadata,
    Sizes,
    TorchNetwork,
    TrainingConfig,
    TrainingData,
    VisionConfig,
    WindowConfig,
    export_program,
    fit,
    initial_policy,
    load,
)
from gps.protocols import acting, has_memory, needs_images, records_images
from gps.rng import stream
from gps.types import Layout, LinearGaussianController

SHAPE = (2, 3, 1)


class Discounted(BasePolicy):
    """Mean action and memory: the discounted sum of the observations so far; then the mean of the
    images is added to the action."""

    def __init__(self, images=False, memory=True):
        self.no = self.nu = 2
        self.chol = np.array([[2.0, 0.0], [1.0, 3.0]])
        self.image_shape = SHAPE if images else None
        self.memory0 = np.array([10.0, 20.0]) if memory else np.zeros(0)

    image_shape = memory0 = None  # of the instances

    def _rows(self, obs, images, memory):
        assert obs.shape == (len(obs), 2)
        after = obs + 0.5 * memory if self.has_memory else memory
        mean = after if self.has_memory else obs
        return mean if images is None else mean + images.mean(axis=(1, 2, 3))[:, None], after


def some_inputs(*lead):
    rng = stream(0, "inputs")
    return rng.normal(size=(*lead, 2)), rng.integers(0, 256, (*lead, *SHAPE), dtype=np.uint8)


def expected(obs, images, memory=True):
    """Along trajectories (B, T, no), written out."""
    sums, before = np.zeros_like(obs), np.array([10.0, 20.0])
    for t in range(obs.shape[1]):
        before = sums[:, t] = obs[:, t] + 0.5 * before
    out = sums if memory else obs
    return out if images is None else out + images.mean(axis=(2, 3, 4))[..., None]


kinds = pytest.mark.parametrize("images", [False, True])


@kinds
def test_mean_act_and_predict_follow_from_the_step(images):
    policy, (obs, frames) = Discounted(images), some_inputs(4, 6)
    seen = frames if images else None
    want, noise = expected(obs, seen), stream(0, "noise").normal(size=(6, 4, 2))
    np.testing.assert_allclose(policy.mean(obs, frames), want, rtol=1e-13)
    deep = policy.mean(obs[:, None, None], frames[:, None, None])
    np.testing.assert_allclose(deep[:, 0, 0], want, rtol=1e-13)
    actor, given, state = acting(policy), {}, None
    for _ in range(2):  # step 0 begins again
        for t in range(6):
            if images:
                given = {"images": frames[:, t]}
            u = actor.act(np.zeros((4, 3)), obs[:, t], t, noise[t], **given)
            np.testing.assert_allclose(u, want[:, t] + noise[t] @ policy.chol.T, rtol=1e-13)
    for t in range(6):
        action, state = policy.predict(obs[1, t], state, images=frames[1, t])
        np.testing.assert_allclose(action, want[1, t], rtol=1e-13)
    mean, memory = policy.step(obs[:, 0], np.tile(policy.memory0, (4, 1)), frames[:, 0])
    u, after = policy.act(
        obs, obs[:, 0], 0, noise[0], frames[:, 0], memory=np.tile(policy.memory0, (4, 1))
    )
    np.testing.assert_array_equal(after, memory)
    np.testing.assert_array_equal(u, mean + noise[0] @ policy.chol.T)
    with pytest.raises(ShapeError, match=r"through gps\.protocols\.acting"):
        policy.act(obs, obs[:, 0], 0, noise[0], frames[:, 0])


@kinds
def test_without_memory_its_size_is_0(images):
    policy, (obs, frames) = Discounted(images, memory=False), some_inputs(4, 6)
    want = expected(obs, frames if images else None, memory=False)
    np.testing.assert_allclose(policy.mean(obs, frames), want, rtol=1e-13)
    assert not policy.has_memory
    assert not has_memory(policy)
    for memory in (policy.memory0, np.tile(policy.memory0, (4, 1))):
        mean, after = policy.step(obs[:, 0], memory, frames[:, 0])
        np.testing.assert_allclose(mean, want[:, 0], rtol=1e-13)
        assert after.size == 0
    action, state = policy.predict(obs[0, 0], images=frames[0, 0])
    np.testing.assert_allclose(action, want[0, 0], rtol=1e-13)
    assert state is None
    assert policy.mean(obs[:0], frames[:0]).shape == (0, 6, 2)


def test_inputs_of_other_shapes_are_refused():
    policy, (obs, frames) = Discounted(images=True), some_inputs(4, 6)
    memory = np.tile(policy.memory0, (4, 1))
    with pytest.raises(ShapeError, match=r"needs images: .* uint8 \(4, 2, 3, 1\), got none"):
        policy.step(obs[:, 0], memory)
    with pytest.raises(ShapeError, match=r"got uint8 \(3, 2, 3, 1\)"):
        policy.step(obs[:, 0], memory, frames[:3, 0])
    with pytest.raises(ShapeError, match=r"memory \(\.\.\., 2\) of as many rows"):
        policy.step(obs[:, 0], memory[:3], frames[:, 0])
    with pytest.raises(ShapeError, match=r"memory \(\.\.\., 2\) of as many rows"):
        policy.step(obs[:, 0], images=frames[:, 0])
    with pytest.raises(ShapeError, match="2 values"):
        policy.mean(obs[..., :1], frames)
    with pytest.raises(ShapeError, match="whole trajectories"):
        policy.mean(obs[0, 0], frames[0, 0])


# --- policies of the user's, which have `act` only


class Plain:
    def act(self, x, obs, t, noise):
        return obs + noise


class Integrator(Plain):
    """The sum of the observations so far."""

    has_memory, memory0 = True, np.zeros(2)

    def act(self, x, obs, t, noise, memory):
        return memory + obs + noise, memory + obs


class Bright(Plain):
    needs_images = True

    def act(self, x, obs, t, noise, images):
        return images.mean(axis=(1, 2, 3))[:, None] + noise


def test_a_policy_of_the_users_is_given_the_inputs_it_declares():
    obs, frames = some_inputs(4, 6)
    zero = np.zeros((4, 2))
    plain = Plain()
    assert acting(plain) is plain
    actor = acting(Integrator())
    for _ in range(2):
        for t in range(6):
            u = actor.act(zero, obs[:, t], t, zero)
            np.testing.assert_allclose(u, obs[:, : t + 1].sum(axis=1), rtol=1e-12, atol=1e-14)
    assert acting(actor) is actor
    bright = acting(Bright(), records_images=False)
    u = bright.act(zero, obs[:, 0], 0, zero, images=frames[:, 0])
    np.testing.assert_allclose(u[:, 0], frames[:, 0].mean(axis=(1, 2, 3)))
    K = np.zeros((6, 2, 2))
    controller = LinearGaussianController(K, np.zeros((6, 2)), np.tile(np.eye(2), (6, 1, 1)))
    assert acting(controller) is controller


def test_which_images_an_agent_has_to_draw():
    """Those that the policy needs in any case, others unless nothing uses them."""
    assert [needs_images(p) for p in (Plain(), Bright(), Discounted(), Discounted(True))] == [
        *(False, True, False, True)
    ]
    for policy in (Plain(), Integrator(), Discounted()):
        assert records_images(policy)
        assert records_images(acting(policy))
        quiet = acting(policy, records_images=False)
        assert not records_images(quiet)
        assert not records_images(acting(quiet))  # an agent that asks again
        assert not records_images(acting(acting(policy), records_images=False))
    for policy in (Bright(), Discounted(True)):
        assert records_images(acting(policy, records_images=False))
        assert needs_images(acting(policy, records_images=False))


# --- what a policy is made for


def test_sizes_are_those_of_the_agent():
    agent = PointMassConfig(obs=("position",)).build()
    sizes = Sizes.of(agent)
    assert (sizes.no, sizes.nu, sizes.image_shape) == (agent.obs_layout.size, agent.nu, None)
    assert sizes.layout == agent.layout
    for network in (MLPConfig(), WindowConfig()):
        policy = network.initial_policy(sizes, stream(0, "p"))
        assert (policy.no, policy.nu, policy.image_shape) == sizes[:3]
        assert policy.has_memory is network.has_memory
        assert policy.needs_images is network.needs_images
    with pytest.raises(ConfigError, match=r"VisionConfig needs images, .* no cameras"):
        VisionConfig(finetune_steps=1).check(sizes)


class _Both(torch.nn.Module):
    def __init__(self, no, nu):
        super().__init__()
        self.cell = torch.nn.GRUCell(no + 1, 5)
        self.last = torch.nn.Linear(5, nu)
        self.start = torch.nn.Parameter(torch.zeros(5))

    def forward(self, obs, images, memory):
        bright = images.to(obs.dtype).mean(dim=(1, 2, 3))[:, None] / 100.0
        memory = self.cell(torch.cat([obs, bright], dim=1), memory)
        return self.last(memory), memory


@dataclass(frozen=True)
class ImagesAndMemory(TorchNetwork):
    """A network that no configuration of the toolkit makes."""

    needs_images: ClassVar[bool] = True
    has_memory: ClassVar[bool] = True

    def build(self, sizes):
        return _Both(sizes.no, sizes.nu).double()

    def initial_weights(self, sizes, rng):
        shapes = [p.shape for p in self.build(sizes).parameters()]
        return tuple(0.3 * rng.normal(size=shape) for shape in shapes)

    def initial_memory(self, network):
        return network.start


def test_a_network_of_images_and_memory_is_trained_and_exported(tmp_path):
    """The target is the change of brightness from one image to the next."""
    S, T = 12, 7
    rng = stream(0, "data")
    frames = rng.integers(0, 256, (S, T, 1, 1, 1), dtype=np.uint8).repeat(2, 2).repeat(3, 3)
    bright = frames.mean(axis=(2, 3, 4))
    target = np.diff(bright, axis=1, prepend=bright[:, :1]).reshape(-1, 1) / 100
    data = TrainingData(
        obs=rng.normal(size=(S * T, 2)), target=target, precision=np.ones((S * T, 1, 1)),
        weight=np.ones(S * T), images=frames.reshape(S * T, *SHAPE), T=T,
    )  # fmt: skip
    start = initial_policy(ImagesAndMemory(), 2, 1, stream(0, "net"), SHAPE)
    config = TrainingConfig(steps=300, batch_size=4 * T, learning_rate=2e-2)
    result = fit(start, data, config, stream(0, "fit"))
    assert result.loss < 0.2 * result.trace[0]
    policy, obs = result.policy, data.trajectories
    want = policy.mean(obs, frames)
    memory = np.tile(policy.memory0, (S, 1))
    for t in range(T):
        mean, memory = policy.step(obs[:, t], memory, frames[:, t])
        np.testing.assert_allclose(mean, want[:, t], rtol=1e-10, atol=1e-12)
    metadata = PolicyMetadata.of(policy, obs_layout=Layout((("x", 2),)), dt=0.1)
    (tmp_path / "p.pt2").write_bytes(export_program(policy, metadata))
    again = load(tmp_path / "p.pt2")
    assert again.metadata == metadata
    np.testing.assert_allclose(again.mean(obs, frames), want, rtol=1e-9, atol=1e-9)
    with pytest.raises(ConfigError, match="more than one observation"):
        policy.jacobian(obs)
    with pytest.raises(ShapeError, match=r"TrainingData\.images"):
        policy.fit(TrainingData(data.obs, target, data.precision, data.weight, T=T), config, rng)


@dataclass(frozen=True)
class Own(TorchNetwork):
    """A network of the user's, of which a part may be wrong."""

    part: str = ""

    def build(self, sizes):
        if self.part == "build":
            return {}["layers"]
        if self.part == "module":
            return [nn.Linear(sizes.no, sizes.nu)]
        dtype = torch.float32 if self.part == "float32" else torch.float64
        return nn.Linear(sizes.no, sizes.nu + (self.part == "size"), dtype=dtype)

    def initial_weights(self, sizes, rng):
        weights = [rng.normal(size=p.shape) for p in self.build(sizes).parameters()]
        if self.part == "infinite":
            weights[0][:] = np.inf
        if self.part == "dict":
            return dict(enumerate(weights))
        if self.part == "text":
            return "weights", "biases"
        if self.part == "parameters":
            return tuple(self.build(sizes).parameters())
        return tuple(weights[: 1 if self.part == "fewer" else 2])


@dataclass(frozen=True)
class OwnMemory(Own):
    has_memory: ClassVar[bool] = True

    def initial_memory(self, network):
        return super().initial_memory(network) if self.part == "none" else torch.zeros(1, 3)


class _Wider(nn.Linear):
    def forward(self, obs, memory):
        return super().forward(obs), memory.repeat(1, 2)


@dataclass(frozen=True)
class OwnRecurrent(OwnMemory):
    def build(self, sizes):
        if self.part == "one value":
            return nn.Bilinear(sizes.no, 3, sizes.nu, dtype=torch.float64)
        return _Wider(sizes.no, sizes.nu, dtype=torch.float64)

    def initial_memory(self, network):
        return torch.zeros(3, dtype=torch.float64)


class OwnLinear(Own):
    def initial_weights(self, sizes, rng):
        return rng.normal(size=(sizes.nu, sizes.no)), rng.normal(size=sizes.nu)


class OwnLayout(Own):
    def mlp_layout(self, sizes):
        return MLPLayout((sizes.no, sizes.nu), 0)


WRONG = [
    (Own("size"), r"forward must return actions of shape \(2, 2\) .*, got \(2, 3\)"),
    (Own("float32"), r"forward of observations \(2, 4\) raised RuntimeError.* inputs are float64"),
    (Own("dict"), "initial_weights must return a tuple of arrays .*, got a dict"),
    (Own("text"), "an array of initial_weights raised TypeError"),
    (Own("parameters"), "an array of initial_weights raised RuntimeError: .*requires grad"),
    (Own("fewer"), r"parameters, \[\(2, 4\), \(2,\)\], got \[\(2, 4\)\]"),
    (Own("infinite"), "forward returns NaN or infinity"),
    (OwnLinear("module"), r"build must return a torch\.nn\.Module, got a list"),
    (OwnLinear("build"), "build raised KeyError: 'layers'"),
    (Own("build"), "initial_weights raised KeyError: 'layers'"),
    (OwnMemory("none"), "initial_memory raised NotImplementedError"),
    (OwnMemory(), r"initial_memory must return a tensor \(size,\).* got shape \(1, 3\)"),
    (OwnRecurrent("one value"), "must return two tensors, actions and memory, got Tensor"),
    (OwnRecurrent(), r"forward must return memory of shape \(2, 3\) .*, got \(2, 6\)"),
    (OwnLayout("dict"), "initial_weights must return a tuple of arrays .*, got a dict"),
]


@pytest.mark.parametrize(("network", "message"), WRONG, ids=lambda v: getattr(v, "part", None))
def test_a_network_of_the_users_is_tried_before_the_first_rollout(network, message):
    algorithm = replace(gps.load("point_mass_policy").algorithm, network=network)
    experiment = replace(gps.load("point_mass_policy"), algorithm=algorithm)
    with pytest.raises(ConfigError, match=message) as caught:
        initial_state(experiment, experiment.agent.build())
    assert str(caught.value).startswith(f"{type(network).__name__}: ")
    assert "\n" not in str(caught.value)


class Dropping(OwnLinear):
    """Draws in `build` and in `forward`."""

    def build(self, sizes):
        return nn.Sequential(super().build(sizes), nn.Dropout(0.5))


@pytest.mark.parametrize("network", [Dropping(), ImagesAndMemory()], ids=lambda n: type(n).__name__)
def test_the_trial_of_a_network_leaves_all_generators_alone(network):
    rng, again = stream(0, "net"), stream(0, "net")
    torch.manual_seed(3)
    weights = network.initial_weights(Sizes(2, 1, SHAPE), again)
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    policy = initial_policy(network, 2, 1, rng, SHAPE)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert rng.normal() == again.normal()
    assert len(weights) == len(policy.weights)
    for a, b in zip(policy.weights, weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_network_that_is_not_a_configuration_is_refused():
    algorithm = gps.load("point_mass_policy").algorithm
    for wrong in (MLPConfig, "mlp"):
        with pytest.raises(ConfigError, match="network must be"):
            type(algorithm)(network=wrong)


def test_sizes_that_would_fill_the_memory_are_refused():
    with pytest.raises(ConfigError, match=r"steps times batch_size must be at most 1e\+09"):
        TrainingConfig(steps=10**7, batch_size=1000)
    with pytest.raises(ConfigError, match=r"MLPConfig\.hidden must be"):
        MLPConfig(hidden=(10**6,))
