"""Environments of Gymnasium as agents: the shared suite of all agents, and gymnasium as judge."""

import ast
import inspect
import itertools
import sys
import textwrap
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("gymnasium.envs.mujoco.mujoco_env")
pytest.importorskip("imageio")  # gymnasium's MuJoCo environments load it

import mujoco  # noqa: E402
from gymnasium import spaces  # noqa: E402
from gymnasium.envs.mujoco import MujocoEnv  # noqa: E402
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv  # noqa: E402
from test_agents import (  # noqa: E402, F401
    NoisyDamping,
    assert_same_bytes,
    draw,
    test_a_policy_cannot_change_the_record,
    test_a_sample_alone_is_the_sample_in_the_batch,
    test_a_simulation_stepped_from_outside_is_the_rollout,
    test_configuration_is_frozen_hashable_and_travels,
    test_every_failed_sample_is_named,
    test_follows_the_protocol,
    test_named_entries_cover_the_state_and_the_observation,
    test_samples_differ_by_their_noise_and_share_no_memory,
    test_shapes_and_finite_values,
    test_starts_are_exact,
    test_the_same_draws_give_the_same_bytes_whatever_came_before,
    test_wrong_inputs_are_named,
)

import gps  # noqa: E402
from gps.agents import as_gymnasium  # noqa: E402
from gps.agents._run import warnings_to_log  # noqa: E402
from gps.agents.gymnasium_agent import (  # noqa: E402
    GymnasiumConfig,
    GymnasiumStart,
    random_starts,
)
from gps.algorithms import StepConfig, TrajOptConfig  # noqa: E402
from gps.control import HoldConfig, PDConfig  # noqa: E402
from gps.costs import ActionCost, StateCost, SumCost, WeightedCost  # noqa: E402
from gps.costs.fitted import FittedRewardCost  # noqa: E402
from gps.errors import ConfigError, GPSError, ShapeError, SimulationError  # noqa: E402
from gps.pipeline.experiment import initial_controller  # noqa: E402

STARTS = {
    "T": 15,
    "conditions": random_starts(2, seed=0, purpose="training"),
    "test_conditions": random_starts(2, seed=0),
}
JOINTS = ("joint_pos", "joint_vel")
ALL = (*JOINTS, "obs", "reward", "terminated")
PARTS = (("direction", 4), ("target", 2), ("speed", 2), ("offset", 2))
AGENTS = {
    "reacher": GymnasiumConfig(
        env="Reacher-v5", **STARTS, obs_entries=PARTS, state=(*JOINTS, "offset", "reward")
    ),
    "pusher": GymnasiumConfig(env="Pusher-v5", **STARTS, state=ALL),
    "half_cheetah": GymnasiumConfig(env="HalfCheetah-v5", **STARTS, state=(*JOINTS, "reward")),
    "half_cheetah_disturbed": GymnasiumConfig(
        env="HalfCheetah-v5", **STARTS, start_qpos_std=0.1, start_qvel_std=(0.1,) * 9
    ),
    "swimmer": GymnasiumConfig(env="Swimmer-v5", **STARTS, noise_sigma=1.0),
    "double_pendulum": GymnasiumConfig(env="InvertedDoublePendulum-v5", **STARTS, state=ALL),
    "hopper": GymnasiumConfig(env="Hopper-v5", **STARTS),
    "ant": GymnasiumConfig(env="Ant-v5", **STARTS, state=(*JOINTS, "reward")),
    "pendulum": GymnasiumConfig(
        env="Pendulum-v1", **STARTS, obs_entries=(("direction", 2), ("velocity", 1))
    ),
    "pendulum_reward": GymnasiumConfig(env="Pendulum-v1", **STARTS, state=("obs", "reward")),
}


@pytest.fixture(params=AGENTS, scope="module")
def agent(request):
    return AGENTS[request.param].build()


def plain(env_id):
    """The environment without the toolkit; MuJoCo's warnings would make a file here."""
    with warnings_to_log():
        return gymnasium.make(env_id)


def plain_steps(env, obs, U):
    """What gymnasium gives along the actions of one sample: observations, rewards, terminated."""
    dtype, found = env.action_space.dtype, [(obs, 0.0, False)]
    for u in U[:-1]:
        obs, reward, terminated, _, _ = env.step(u.astype(dtype))
        found.append((obs, reward, terminated))
    return tuple(np.array(column, dtype=np.float64) for column in zip(*found, strict=True))


def recorded(rollouts, name, sample=0):
    return rollouts.entry(name)[sample]


@pytest.mark.parametrize("name", [n for n in AGENTS if n != "half_cheetah_disturbed"])
@pytest.mark.parametrize("test", [False, True])
def test_a_rollout_is_what_gymnasium_does_to_the_bit(name, test):
    config = AGENTS[name]
    agent = config.build()
    r = agent.rollout(NoisyDamping(), 1, draw(agent)[0], test=test)
    starts = config.test_conditions if test else config.conditions
    env = plain(config.env)  # with a time limit, which 15 steps do not reach
    for i in range(r.N):
        obs, _ = env.reset(seed=starts[1].seed)
        if hasattr(env.unwrapped, "data"):
            qpos, qvel = agent.start_joints(1, test=test)
            assert qpos.tobytes() == env.unwrapped.data.qpos.tobytes()
            assert qvel.tobytes() == env.unwrapped.data.qvel.tobytes()
        obs, reward, terminated = plain_steps(env, obs, r.U[i])
        assert r.obs[i].tobytes() == obs.tobytes()
        if "reward" in r.layout.names:
            assert recorded(r, "reward", i).tobytes() == reward.tobytes()
            assert np.abs(reward[1:]).min() > 0
        if "terminated" in r.layout.names:
            assert recorded(r, "terminated", i).tobytes() == terminated.tobytes()
        if hasattr(env.unwrapped, "data") and env.unwrapped.model.nq == env.unwrapped.model.nv:
            last = np.concatenate((env.unwrapped.data.qpos, env.unwrapped.data.qvel))
            seen = [recorded(r, entry, i)[-1] for entry in JOINTS]
            assert np.concatenate(seen).tobytes() == last.tobytes()
    assert agent.dt == getattr(env.unwrapped, "dt")  # noqa: B009


@pytest.mark.parametrize(
    ("env_id", "shift"),
    [
        ("Reacher-v5", 0.02),
        ("Pusher-v5", 0.02),
        ("HalfCheetah-v5", -0.02),
        ("Hopper-v5", -0.02),  # the foot is in the ground
        ("Ant-v5", 0.02),
    ],
)
def test_starts_by_joints_are_those_of_set_state(env_id, shift):
    env = plain(env_id).unwrapped
    nominal = env.init_qpos.copy(), env.init_qvel.copy()
    qpos, qvel = nominal[0] + shift, nominal[1] + 0.3
    agent = GymnasiumConfig(
        env=env_id,
        T=10,
        conditions=(GymnasiumStart(), GymnasiumStart(qpos=tuple(qpos), qvel=tuple(qvel))),
        test_conditions=(GymnasiumStart(seed=3, qvel=tuple(qvel)),),
    ).build()
    agent.rollout(NoisyDamping(), 0, draw(agent, N=1)[0], test=True)  # draws into init_qpos
    for m, (p, v) in enumerate((nominal, (qpos, qvel))):
        for a, b in zip(agent.start_joints(m), (p, v), strict=True):
            np.testing.assert_array_equal(a, b)
        r = agent.rollout(NoisyDamping(), m, draw(agent, N=1)[0])
        env.reset(seed=0)
        mujoco.mj_resetData(env.model, env.data)
        env.set_state(p, v)
        assert r.obs[0].tobytes() == plain_steps(env, env._get_obs(), r.U[0])[0].tobytes()
    env.reset(seed=3)
    p, v = agent.start_joints(0, test=True)
    np.testing.assert_array_equal(p, env.data.qpos)
    np.testing.assert_array_equal(v, qvel)


def test_free_joints_are_rotation_vectors_from_the_nominal_pose():
    config = replace(AGENTS["ant"], start_qpos_std=0.3)
    agent = config.build()
    env = plain("Ant-v5").unwrapped
    nominal = Rotation.from_quat(env.init_qpos[[4, 5, 6, 3]])
    noise, start = draw(agent, N=3)
    r = agent.rollout(NoisyDamping(), 0, noise, start)
    qpos, qvel = agent.start_joints(0)
    x0 = agent.start_state(0)
    turned = nominal.inv() * Rotation.from_quat(qpos[[4, 5, 6, 3]])
    np.testing.assert_allclose(x0[3:6], turned.as_rotvec(), atol=1e-12)
    np.testing.assert_array_equal(np.delete(x0[:14], [3, 4, 5]), np.delete(qpos, [3, 4, 5, 6]))
    np.testing.assert_array_equal(x0[14:28], qvel)
    for i in range(3):  # disturbed in the body's frame
        moved = turned * Rotation.from_rotvec(0.3 * start[i, 3:6])
        np.testing.assert_allclose(r.X[i, 0, 3:6], moved.as_rotvec(), atol=1e-12)
    # the positions move by the velocities, as linear dynamics expect
    step = np.diff(r.X[0, :3, :14], axis=0) / agent.dt
    assert np.abs(step - r.X[0, 1:3, 14:28]).max() < 0.5 * np.abs(step).max()


def test_ball_joints_and_turned_bodies_have_rotation_vectors_too():
    turn, pose = Rotation.from_rotvec([0.4, -0.2, 0.7]), Rotation.from_rotvec([0.1, 0.9, 0.3])
    qpos = (0.1, 0.2, 0.3, *turn.as_quat(scalar_first=True), *pose.as_quat(scalar_first=True), 0.5)
    agent = GymnasiumConfig(
        env="gps-test/Joints-v0", T=5, conditions=(GymnasiumStart(), GymnasiumStart(qpos=qpos))
    ).build()
    assert agent.layout.entries == (("joint_pos", 10), ("joint_vel", 10))
    np.testing.assert_allclose(agent.start_state(0), np.r_[0, 0, 1.0, np.zeros(17)], atol=1e-12)
    x = agent.start_state(1)
    free, ball = Rotation.from_quat(QUATERNION, scalar_first=True), Rotation.identity()
    np.testing.assert_allclose(x[3:6], (free.inv() * turn).as_rotvec(), atol=1e-12)
    np.testing.assert_allclose(x[6:9], (ball.inv() * pose).as_rotvec(), atol=1e-12)
    np.testing.assert_array_equal(x[[0, 1, 2, 9]], [0.1, 0.2, 0.3, 0.5])
    time = agent.rollout(NoisyDamping(), 1, draw(agent)[0]).obs[0, :, -1]
    np.testing.assert_allclose(time, agent.dt * np.arange(5), atol=1e-12)


def test_disturbed_starts_are_added_to_the_drawn_ones():
    agent = AGENTS["half_cheetah_disturbed"].build()
    noise, start = draw(agent)
    r = agent.rollout(NoisyDamping(), 1, noise, start)
    shift = r.X[:, 0] - agent.start_state(1)
    np.testing.assert_allclose(shift, 0.1 * start, atol=1e-12)
    np.testing.assert_array_equal(agent.start_state(1), np.concatenate(agent.start_joints(1)))


def test_a_termination_is_recorded_or_fails_the_sample():
    config = replace(AGENTS["double_pendulum"], T=40)
    agent = config.build()
    noise, _ = draw(agent)
    ended = agent.rollout(NoisyDamping(2.0), 0, noise).entry("terminated")[..., 0]
    assert set(np.unique(ended)) == {0.0, 1.0}
    first = {i: int(np.argmax(e)) for i, e in enumerate(ended) if e.any()}
    assert ended[:, 0].max() == 0
    with pytest.raises(SimulationError, match="terminated") as caught:
        replace(config, termination="failure").build().rollout(NoisyDamping(2.0), 0, noise)
    assert {f.sample: f.t for f in caught.value.failures} == first


def test_after_the_end_of_an_episode_there_is_no_reward():
    config = replace(AGENTS["double_pendulum"], T=40)
    config = replace(config, state=("joint_pos", "reward", "terminated"), termination="ignore")
    noise, _ = draw(config.build())
    goes_on = config.build().rollout(NoisyDamping(2.0), 0, noise)
    ends = replace(config, termination="end").build().rollout(NoisyDamping(2.0), 0, noise)
    np.testing.assert_array_equal(ends.U, goes_on.U)
    np.testing.assert_array_equal(ends.entry("joint_pos"), goes_on.entry("joint_pos"))
    before = np.cumsum(goes_on.entry("terminated"), axis=1) - goes_on.entry("terminated") == 0
    assert not before.all()
    assert np.abs(goes_on.entry("reward")[~before]).min() > 0
    want = np.where(before, goes_on.entry("reward"), 0.0)
    np.testing.assert_array_equal(ends.entry("reward"), want)
    np.testing.assert_array_equal(ends.entry("terminated")[~before], 1.0)


def test_an_unstable_simulation_is_a_failure_and_leaves_nothing_behind():
    wild = GymnasiumStart(qvel=(1e9,) * 9)
    config = GymnasiumConfig(env="HalfCheetah-v5", T=8, conditions=(GymnasiumStart(), wild))
    agent = replace(config, limit=float("inf")).build()
    noise, _ = draw(agent, N=2)
    before = agent.rollout(NoisyDamping(), 0, noise)
    with pytest.raises(SimulationError, match=r"t=1: MuJoCo warning: bad number") as caught:
        agent.rollout(NoisyDamping(), 1, noise)
    assert [f.sample for f in caught.value.failures] == [0, 1]
    assert_same_bytes(before, agent.rollout(NoisyDamping(), 0, noise))
    with pytest.raises(SimulationError, match=r"sample 0, t=0: the state is NaN or left \+-10000"):
        config.build().start_state(1)
    tight = replace(config, limit=float(np.abs(before.obs).max() * 0.9)).build()
    with pytest.raises(SimulationError, match="left"):
        tight.rollout(NoisyDamping(), 0, noise)


def test_actions_have_the_names_of_their_actuators():
    assert GymnasiumConfig(env="InvertedPendulum-v5", T=5).build().action_names == ("slide",)
    assert AGENTS["pendulum"].build().action_names == ("action 0",)  # without a model


def test_actions_are_recorded_as_applied():
    agent = AGENTS["pendulum"].build()
    r = agent.rollout(NoisyDamping(1e3), 0, draw(agent)[0])
    low, high = agent.control_range
    assert (low, high) == (-2.0, 2.0)
    assert np.abs(r.U).max() == 2.0
    small = agent.rollout(NoisyDamping(0.1), 0, draw(agent)[0]).U
    assert np.array_equal(small, small.astype(np.float32))
    assert np.unique(small).size > 20


def test_a_simulation_goes_on_while_rollouts_run():
    agent = AGENTS["half_cheetah"].build()
    noise, _ = draw(agent, N=1)
    r = agent.rollout(NoisyDamping(), 1, noise)
    one, two = agent.simulation(), agent.simulation()
    one.reset(1)
    for t in range(agent.T):
        assert one.x.tobytes() == r.X[0, t].tobytes()
        agent.rollout(NoisyDamping(), 0, noise)
        agent.start_state(0, test=True)
        two.reset(0)
        two.step(-r.U[0, t])
        one.step(r.U[0, t])


def test_a_reset_that_changes_the_nominal_start_in_place_changes_nothing():
    start = GymnasiumStart(seed=1)
    agent = GymnasiumConfig(env="gps-test/Joints-v0", T=5, conditions=(start, start)).build()
    first, _ = agent.start_joints(0)
    np.testing.assert_array_equal(agent.start_joints(1)[0], first)


def test_drawn_starts_are_stable_and_apart():
    few, more = random_starts(3, seed=1), random_starts(8, seed=1)
    assert more[:3] == few
    others = random_starts(8, seed=1, purpose="training") + random_starts(8, seed=2)
    assert len({s.seed for s in more + others}) == 24


def test_options_of_reset_choose_where_to_start():
    def narrow(x):
        return GymnasiumStart(seed=4, options=(("x_init", x), ("y_init", 0.0)))

    agent = GymnasiumConfig(env="Pendulum-v1", T=5, conditions=(narrow(1e-6), narrow(1.0))).build()
    np.testing.assert_allclose(agent.start_state(0), [1.0, 0.0, 0.0], atol=1e-5)
    assert agent.start_state(1)[0] < 0.999


def test_the_way_back_gives_the_same_environment():
    agent_config = replace(AGENTS["half_cheetah"], state=JOINTS)
    env, own = as_gymnasium(agent_config, ActionCost(weights=0.2)), plain("HalfCheetah-v5")
    obs, _ = env.reset(seed=0, options={"condition": 1})
    expected, _ = own.reset(seed=agent_config.conditions[1].seed)
    np.testing.assert_array_equal(obs, expected)
    u = np.linspace(-1, 1, 6).astype(np.float32)
    obs, reward, *_ = env.step(u.astype(np.float64))
    np.testing.assert_array_equal(obs, own.step(u)[0])
    assert reward == pytest.approx(-0.1 * np.square(u).sum())


OTHER_SPACES = {
    "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "plane": spaces.Box(0.0, 1.0, (8, 8), np.float32),
    "whole": spaces.Box(0, 9, (2,), np.int64),
    "dict": spaces.Dict({"p": spaces.Box(0.0, 1.0, (2,), np.float64), "n": spaces.Discrete(3)}),
    "bits": spaces.MultiBinary(2),
}


class Toy(gymnasium.Env):
    """A point that moves by its action; what is wrong with it is chosen by name."""

    metadata = {"render_modes": [], "render_fps": 20}  # noqa: RUF012
    made = itertools.count()

    def __init__(self, fault="", space="", actions=""):
        assert fault != "constructor"
        self.fault, self.number = fault, next(self.made)
        self.observation_space = OTHER_SPACES.get(space) or spaces.Box(
            -np.inf, np.inf, (2,), np.float64
        )
        self.action_space = OTHER_SPACES.get(actions) or spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=2)
        if self.fault == "instance":
            self.x += self.number
        if self.fault == "unseeded":
            self.x += next(self.made)
        return self.x.copy(), {}

    def step(self, u):
        self.steps += 1
        self.x = self.x + u
        if self.fault == "noise":
            self.x = self.x + self.np_random.normal(size=2)
        if self.fault == "size":
            return np.zeros(3), 0.0, False, False, {}
        if self.fault == "history":
            self.x = self.x + self.steps
        if self.fault == "raises" and self.steps > 20:
            raise RuntimeError("no more")
        return self.x.copy(), float(-self.x @ self.x), False, False, {}


QUATERNION = (0.5, 0.5, 0.5, 0.5)
JOINTS_XML = """<mujoco><worldbody><body pos="0 0 1" quat="0.5 0.5 0.5 0.5"><freejoint/>
<geom size="0.1"/><body pos="0.3 0 0"><joint type="ball"/><geom size="0.1"/><body pos="0 0.3 0">
<joint name="last" type="hinge" axis="0 1 0"/><geom size="0.05"/></body></body></body></worldbody>
<actuator><motor joint="last" ctrlrange="-1 1"/></actuator></mujoco>"""


class Joints(MujocoEnv):
    """A free joint whose body is turned, a ball joint and a hinge."""

    path = ""

    metadata = {  # noqa: RUF012
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 250,
    }

    def __init__(self):
        space = spaces.Box(-np.inf, np.inf, (23,), np.float64)
        super().__init__(self.path, 2, observation_space=space)

    def step(self, u):
        self.do_simulation(u, self.frame_skip)
        return self._get_obs(), 0.0, False, False, {}

    def _get_obs(self):
        return np.append(self.state_vector(), self.data.time)

    def reset_model(self):
        self.do_simulation(np.ones(1), 3)  # lets things fall into place
        # in place, as some do: nothing of it may be left for the next reset
        self.init_qpos += self.np_random.uniform(-0.1, 0.1, self.model.nq)
        self.set_state(self.init_qpos, self.init_qvel)
        return self._get_obs()


class Silent(Toy):
    metadata = {"render_modes": []}  # noqa: RUF012


class Doubled(gymnasium.ObservationWrapper):
    def observation(self, observation):
        return 2.0 * observation


@pytest.fixture(scope="module", autouse=True)
def _registered(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "joints.xml"
    path.write_text(JOINTS_XML)
    Joints.path = str(path)
    made = {
        "Toy": Toy,
        "Silent": Silent,
        "Joints": Joints,
        "Wrapped": lambda: Doubled(gymnasium.make("Reacher-v5")),
    }
    for name, entry_point in made.items():
        gymnasium.register(id=f"gps-test/{name}-v0", entry_point=entry_point)
    yield
    for name in made:
        del gymnasium.registry[f"gps-test/{name}-v0"]


def toy(**make):
    return GymnasiumConfig(env="gps-test/Toy-v0", T=6, make=tuple(make.items()))


def test_an_environments_own_noise_is_the_same_in_every_sample():
    agent = toy(fault="noise").build()
    noise = np.zeros((3, 6, 2))
    noise[2, 0] = 1.0

    class Replay:
        def act(self, x, obs, t, noise):
            return 0.5 * noise

    r = agent.rollout(Replay(), 0, noise)
    assert r.X[0].tobytes() == r.X[1].tobytes()
    np.testing.assert_allclose(r.X[2, 1:], r.X[0, 1:] + 0.5, atol=1e-12)
    assert np.abs(np.diff(r.X[0], axis=0)).min() > 0
    assert_same_bytes(r, agent.rollout(Replay(), 0, noise))
    assert agent.dt == 0.05


@pytest.mark.parametrize(
    ("env_id", "more"),
    [("InvertedPendulum-v5", ()), ("Reacher-v5", ("offset",)), ("HalfCheetah-v5", ("reward",))],
)
def test_the_linearisation_of_a_mujoco_environment_tells_its_next_step(env_id, more):
    parts = PARTS if env_id == "Reacher-v5" else ()
    config = GymnasiumConfig(
        env=env_id,
        T=2,
        obs_entries=parts,
        state=(*more, *JOINTS),
        conditions=random_starts(1, seed=3),
    )
    agent = config.build()
    found = agent.linearise(0)
    qpos, qvel = agent.start_joints(0)
    nv, rng = len(qvel), np.random.default_rng(0)
    shifts = 1e-4 * rng.normal(size=(6, 2 * nv))
    near = replace(
        config,
        conditions=tuple(
            GymnasiumStart(qpos=tuple(qpos + s[:nv]), qvel=tuple(s[nv:])) for s in shifts
        ),
    ).build()
    for m in range(6):
        u = found.u + 1e-3 * rng.normal(size=near.nu)
        r = near.rollout(Constant(u), m, np.zeros((1, 2, near.nu)))
        z = np.concatenate((r.X[0, 0], r.U[0, 0]))
        pos = near.layout.slice("joint_pos").start
        expected = (found.F @ z + found.f)[pos:]
        moved = np.abs(r.X[0, 1, pos:] - r.X[0, 0, pos:]).max()
        np.testing.assert_allclose(r.X[0, 1, pos:], expected, rtol=0, atol=0.02 * moved)
    assert np.isfinite(found.x_scale[pos:]).all()
    assert np.isinf(found.x_scale[:pos]).all()


class Gears(InvertedPendulumEnv):
    """Its reset draws how strong its motor is."""

    def reset_model(self):
        self.model.actuator_gear[0, 0] = self.np_random.uniform(50.0, 200.0)
        return super().reset_model()


gymnasium.register("gps-test/Gears-v0", Gears)


def test_each_condition_is_linearised_once_and_on_the_model_that_its_reset_makes():
    config = GymnasiumConfig(env="gps-test/Gears-v0", T=5, conditions=random_starts(2, seed=0))
    agent, noise = config.build(), np.zeros((1, 5, 1))
    agent.start_state(0)
    agent.rollout(Constant(np.zeros(1)), 1, noise)  # leaves the other model behind
    for m in (0, 1):
        found = agent.linearise(m)
        alone = replace(config, conditions=config.conditions[m : m + 1]).build().linearise(0)
        assert found.F.tobytes() == alone.F.tobytes()
        assert agent.linearise(m) is found
    assert not np.allclose(agent.linearise(0).F, agent.linearise(1).F)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (AGENTS["pendulum"], "Pendulum-v1 is not one of Gymnasium's MuJoCo environments"),
        (replace(AGENTS["hopper"], state=("obs",)), "joint_pos, joint_vel not in"),
    ],
)
def test_what_cannot_be_linearised_says_why(config, why):
    with pytest.raises(GPSError, match=why):
        config.build().linearise(0)


def test_the_default_initial_controller_holds_an_inverted_pendulum():
    agent = GymnasiumConfig(
        env="InvertedPendulum-v5", T=200, conditions=random_starts(3, seed=0)
    ).build()
    rng = np.random.default_rng(0)
    for m in range(3):
        held, _ = initial_controller(HoldConfig(), agent, m)
        for noise, bound in ((0.0, 0.03), (1.0, 0.5)):
            r = agent.rollout(held, m, noise * rng.normal(size=(4, 200, 1)))
            assert np.abs(r.entry("joint_pos")[:, :, 1]).max() < bound


class Constant:
    """One action for all."""

    def __init__(self, u):
        self.u = u

    def act(self, x, obs, t, noise):
        return np.tile(self.u, (len(x), 1))


class Goal(Toy):
    """A point that shall go to a goal, seen as a dictionary; it ends an episode after 6 steps."""

    def __init__(self):
        super().__init__()
        box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = spaces.Dict(
            observation=spaces.Dict(velocity=box, position=box), desired_goal=box, achieved_goal=box
        )

    def _seen(self):
        inner = {"velocity": self.now - self.before, "position": self.now}
        return {"achieved_goal": self.now, "desired_goal": self.goal, "observation": inner}

    def reset(self, *, seed=None, options=None):
        gymnasium.Env.reset(self, seed=seed)
        self.now, self.goal = self.np_random.normal(size=(2, 2))
        self.before, self.steps = self.now, 0
        return self._seen(), {}

    def step(self, action):
        self.before, self.now, self.steps = self.now, self.now + action, self.steps + 1
        return self._seen(), 0.0, self.steps >= 6, False, {}


gymnasium.register("gps-test/Goal-v0", Goal)


def test_a_dictionary_is_a_vector_of_its_parts_and_a_goal_has_an_offset():
    parts = ("achieved_goal", "desired_goal", "observation.position", "observation.velocity")
    config = GymnasiumConfig(env="gps-test/Goal-v0", T=5, state=("goal_offset", *parts))
    agent = config.build()
    assert set(agent.obs_layout.names) == set(parts)
    r = agent.rollout(NoisyDamping(), 0, np.random.default_rng(0).normal(size=(3, 5, 2)))
    now, goal = r.entry("observation.position"), r.entry("desired_goal")
    assert r.entry("achieved_goal").tobytes() == now.tobytes()
    assert r.entry("goal_offset").tobytes() == (now - goal).tobytes()
    assert np.abs(r.entry("goal_offset")).min() > 0
    np.testing.assert_allclose(now[:, 1:], now[:, :-1] + r.U[:, :-1], atol=1e-12)
    with pytest.raises(ConfigError, match=r"unknown entry 'observation'; .*observation\.position"):
        replace(config, state=("observation",)).build()


@pytest.mark.parametrize("termination", ["ignore", "failure"])
def test_episodes_that_end_early_are_mentioned_once_with_a_horizon(termination, caplog):
    config = GymnasiumConfig(env="gps-test/Goal-v0", T=13, termination=termination)
    agent, noise = config.build(), np.zeros((3, 13, 2))
    for _ in range(2):
        try:
            agent.rollout(NoisyDamping(), 0, noise)
        except SimulationError:
            assert termination == "failure"
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "gps-test/Goal-v0 ends 3 of 3 samples before half of T=13; T=6 would do" in said
    assert ("goes on from there" in said) == (termination == "ignore")
    caplog.clear()
    replace(config, T=6).build().rollout(NoisyDamping(), 0, noise[:, :6])
    replace(config, T=12, termination="ignore").build().rollout(NoisyDamping(), 0, noise[:, :12])
    replace(config, termination="end").build().rollout(NoisyDamping(), 0, noise)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GymnasiumConfig(env="CartPole-v1"), "takes actions Discrete"),
        (lambda: GymnasiumConfig(env="FrozenLake-v1"), "observes Discrete"),
        (lambda: toy(space="image"), "observes Box.*images"),
        (lambda: toy(space="plane"), "one axis"),
        (lambda: toy(space="whole"), "a vector of floats"),
        (lambda: toy(space="dict"), "observes Dict.*discrete"),
        (lambda: toy(actions="whole"), "takes actions Box"),
        (lambda: toy(actions="bits"), "takes actions MultiBinary"),
        (lambda: toy(fault="size"), r"gives an observation of shape \(3,\).*has \(2,\)"),
        (lambda: toy(fault="unseeded"), "starts elsewhere"),
        (lambda: toy(fault="instance"), "starts elsewhere when another instance"),
        (lambda: toy(fault="history"), "goes elsewhere when the same instance"),
        (lambda: toy(wind=2.0), "cannot make 'gps-test/Toy-v0': .*wind"),
        (lambda: GymnasiumConfig(env="gps-test/Silent-v0"), r"\.dt must be given"),
        (lambda: GymnasiumConfig(env="Recher-v5"), "cannot make 'Recher-v5'.*exist"),
        (lambda: GymnasiumConfig(env="nowhere:Reacher-v5"), "nowhere"),
        (lambda: GymnasiumConfig(env="Recher-v5"), "^((?!Did you).)*; did you mean Reacher-v5"),
        (lambda: GymnasiumConfig(env="Reacher-v2"), "have been moved.*; there is Reacher-v5"),
        (lambda: GymnasiumConfig(env="Reacher-v9"), "versioned.*; there is Reacher-v5"),
        (lambda: GymnasiumConfig(env="ArmReach-v1"), "'module:ArmReach-v1'"),
        (lambda: toy(wind=2.0), "it takes fault, space, actions"),
        (lambda: toy(fault="constructor"), r"AssertionError.* in .*agent.py, line \d"),
        (lambda: GymnasiumConfig(env=""), r"\.env must be a name"),
        (lambda: replace(AGENTS["reacher"], T=1), r"\.T must be a whole number from 2"),
        (lambda: replace(AGENTS["reacher"], dt=0.0), r"\.dt must be a number above 0 s"),
        (lambda: replace(AGENTS["reacher"], make=(("render_mode", "human"),)), "render_mode"),
        (lambda: replace(AGENTS["reacher"], make="x"), r"\.make must be \(name, value\)"),
        (lambda: replace(AGENTS["reacher"], state="joint_pos"), "a non-empty tuple"),
        (lambda: replace(AGENTS["reacher"], state=("ofset",)), "did you mean 'offset'"),
        (lambda: replace(AGENTS["reacher"], state=("obs",)), "unknown entry 'obs'"),
        (lambda: replace(AGENTS["reacher"], state=("offset",) * 2), "without repetition"),
        (lambda: replace(AGENTS["reacher"], obs=()), "obs must be a non-empty tuple"),
        (lambda: replace(AGENTS["swimmer"], obs_entries=(("a", 3),)), "3 values, .* observes 8"),
        (lambda: replace(AGENTS["swimmer"], obs_entries=(("a", 0),)), "tuple of text, a whole"),
        (lambda: replace(AGENTS["swimmer"], obs_entries=(("reward", 8),)), "new names"),
        (lambda: replace(AGENTS["swimmer"], conditions=()), "a non-empty tuple"),
        (lambda: replace(AGENTS["swimmer"], conditions=(3,)), "GymnasiumStart"),
        (lambda: replace(AGENTS["swimmer"], start_qpos_std=-1.0), "number of at least 0"),
        (lambda: replace(AGENTS["swimmer"], start_qvel_std=(0.1,)), "must have 5 values"),
        (lambda: replace(AGENTS["swimmer"], termination="stop"), "be 'ignore', 'end' or 'failure'"),
        (lambda: replace(AGENTS["swimmer"], noise_sigma=-1.0), "noise_sigma"),
        (lambda: replace(AGENTS["swimmer"], limit=0.0), "limit"),
        (lambda: replace(AGENTS["pendulum"], state=JOINTS), "not a MuJoCo environment"),
        (lambda: replace(AGENTS["pendulum"], start_qpos_std=0.1), "only be drawn by seed"),
        (
            lambda: replace(AGENTS["pendulum"], conditions=(GymnasiumStart(qpos=(0.0,)),)),
            r"GymnasiumStart\.qpos must be None",
        ),
        (
            lambda: replace(AGENTS["swimmer"], conditions=(GymnasiumStart(qvel=(0.0,)),)),
            r"GymnasiumStart\.qvel must have 5 values",
        ),
        (
            lambda: GymnasiumConfig(env="gps-test/Wrapped-v0", start_qvel_std=0.1),
            "registered with Doubled",
        ),
        (lambda: GymnasiumStart(seed=-1), r"GymnasiumStart\.seed"),
        (lambda: GymnasiumStart(qpos=(float("nan"),)), r"\.qpos must be .* finite number"),
        (lambda: GymnasiumStart(options=((1, 2),)), r"\.options must be"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_agent_is_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make().build()


def test_a_wrapped_mujoco_environment_starts_by_its_seeds():
    config = GymnasiumConfig(env="gps-test/Wrapped-v0", T=6, conditions=random_starts(2, seed=0))
    r = config.build().rollout(NoisyDamping(), 0, np.ones((1, 6, 2)))
    bare = replace(config, env="Reacher-v5").build().rollout(NoisyDamping(), 0, np.ones((1, 6, 2)))
    np.testing.assert_array_equal(r.X, bare.X)
    np.testing.assert_array_equal(r.obs, 2.0 * bare.obs)


def test_an_error_of_the_environment_keeps_its_traceback():
    agent = toy(fault="raises").build()
    for _ in range(2):  # three steps were tried in the beginning, and again
        agent.rollout(NoisyDamping(), 0, np.zeros((1, 6, 2)))
    with pytest.raises(RuntimeError, match="no more"):
        agent.rollout(NoisyDamping(), 0, np.zeros((1, 6, 2)))


def test_what_only_mujoco_environments_have_is_told():
    agent = AGENTS["pendulum"].build()
    r = agent.rollout(NoisyDamping(), 0, draw(agent)[0])
    with pytest.raises(GPSError, match="no qpos"):
        agent.start_joints(0)
    with pytest.raises(GPSError, match="cannot be drawn"):
        agent.render(r)
    with pytest.raises(GPSError, match="cannot be drawn"):
        agent.check_render(width=64, height=48)
    agent = AGENTS["swimmer"].build()
    r = agent.rollout(NoisyDamping(), 0, draw(agent)[0])
    with pytest.raises(ShapeError, match="sample 9"):
        agent.render(r, 9)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"pip install 'guided-policy-search\[gym\]'"):
        AGENTS["reacher"].build()


def test_what_the_environment_misses_is_named(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "imageio", None)
    with pytest.raises(ConfigError, match=r"'imageio'.*gymnasium\[mujoco\]"):
        AGENTS["reacher"].build()


@pytest.mark.parametrize("config", [GymnasiumConfig, GymnasiumStart])
def test_every_field_is_described(config):
    """By a docstring below it."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0].body
    named = [k for k, node in enumerate(body) if isinstance(node, ast.AnnAssign)]
    assert len(named) == len(fields(config))
    assert all(isinstance(body[k + 1].value, ast.Constant) for k in named)


def test_arguments_of_the_environment_reach_it():
    config = replace(AGENTS["half_cheetah"], make={"frame_skip": 1, "ctrl_cost_weight": 7.0})
    assert hash(config) == hash(replace(config))
    agent, other = config.build(), AGENTS["half_cheetah"].build()
    assert agent.dt == pytest.approx(other.dt / 5)
    noise, _ = draw(agent)
    a, b = (w.rollout(NoisyDamping(), 0, noise) for w in (agent, other))
    np.testing.assert_array_equal(a.X[:, 0], b.X[:, 0])
    assert np.abs(a.X[:, 1] - b.X[:, 1]).min() > 0
    assert config.build().rollout(NoisyDamping(), 0, noise).X.tobytes() == a.X.tobytes()
    assert replace(config, dt=agent.dt).build().dt == agent.dt
    with pytest.raises(ConfigError, match=r"dt must be None or the 0.01 s of HalfCheetah-v5"):
        replace(config, dt=0.5).build()


@pytest.mark.parametrize("name", ["reacher", "ant"])
def test_images_show_the_joints(name):
    agent = replace(AGENTS[name], T=4).build()
    r = agent.rollout(NoisyDamping(), 1, draw(agent)[0])
    try:
        frames = agent.render(r, 2, width=64, height=48, every=3)
    except GPSError as error:
        pytest.skip(str(error))
    assert frames.shape == (2, 48, 64, 3)
    assert frames.std() > 1
    agent.check_render(width=64, height=48)
    with pytest.raises(ConfigError, match="unknown camera 'moon'"):
        agent.check_render(width=64, height=48, camera="moon")
    elsewhere = replace(r, X=r.X + 0.3)
    assert (agent.render(elsewhere, 2, width=64, height=48, every=3) != frames).any()


def test_drawn_joints_are_those_of_the_rollout(monkeypatch):
    """Rotation vectors become quaternions again on the way to the image."""
    shown = []
    module = sys.modules["gps.agents.gymnasium_agent"]
    monkeypatch.setattr(module, "render_states", lambda model, qpos, **_: shown.append(qpos))
    agent = AGENTS["ant"].build()
    r = agent.rollout(NoisyDamping(), 1, draw(agent)[0])
    agent.render(r, 0)
    qpos = agent.start_joints(1)[0].copy()
    qpos[3:7] /= np.linalg.norm(qpos[3:7])  # Ant draws all four numbers
    np.testing.assert_allclose(shown[0][0], qpos, atol=1e-12)
    np.testing.assert_array_equal(shown[0][:, 7:], r.entry("joint_pos")[0, :, 6:])


def mean_return(agent_config, controllers):
    """Return of each condition's controller without noise, over T-1 steps."""
    judge = replace(agent_config, obs=("reward",)).build()
    none = np.zeros((1, judge.T, judge.nu))
    return np.array([judge.rollout(c, m, none).obs.sum() for m, c in enumerate(controllers)])


def reacher(*extra):
    state = (*JOINTS, "offset", *extra)
    return replace(AGENTS["reacher"], T=50, state=state, test_conditions=())


REACHERS_REWARD = SumCost(  # -|offset| - |u|^2
    terms=(
        WeightedCost(cost=StateCost(entry="offset", target=0.0, l1=1.0, alpha=1e-4)),
        WeightedCost(cost=ActionCost(weights=2.0)),
    )
)


@pytest.mark.parametrize(
    ("agent_config", "cost", "samples"),
    [(reacher(), REACHERS_REWARD, 8), (reacher("reward"), FittedRewardCost(), 20)],
    ids=["known", "fitted"],
)
def test_a_few_iterations_raise_reachers_return(agent_config, cost, samples):
    experiment = gps.Experiment(
        agent=agent_config,
        cost=cost,
        initial=PDConfig(variance=0.1, position_gain=0.0),
        algorithm=TrajOptConfig(step=StepConfig(kl_max=1.0)),
        samples=samples,
        iterations=5,
    )
    *_, last = gps.run(experiment)
    idle = mean_return(agent_config, [Silence()] * 2)
    learned = mean_return(agent_config, [c.controller for c in last.state.conditions])
    assert (idle < -5).all()
    assert learned.sum() > 0.6 * idle.sum()  # returns are below zero


class Silence:
    def act(self, x, obs, t, noise):
        return 0.0 * noise


def test_reachers_reward_as_a_cost_is_the_recorded_reward():
    agent = reacher("reward").build()
    r = agent.rollout(NoisyDamping(), 0, draw(agent)[0])
    l = REACHERS_REWARD.evaluate(r).l  # noqa: E741
    distance = np.sqrt(1e-4 + np.square(r.entry("offset")).sum(axis=2))
    squares = np.square(r.U).sum(axis=2)
    np.testing.assert_allclose(l, distance + squares, atol=1e-12)
    # a reward looks one step ahead, the cost of a state at where it is
    rewards = r.entry("reward")[:, 1:, 0]
    np.testing.assert_allclose(-rewards, distance[:, 1:] + squares[:, :-1], atol=1e-2)
    total = FittedRewardCost().evaluate(r).l.sum(axis=1)
    assert (total == -rewards.sum(axis=1)).all()


def test_names_out_of_date_are_refused_without_a_warning_of_their_own(recwarn):
    with pytest.raises(ConfigError, match="there is Reacher-v5"):
        GymnasiumConfig(env="Reacher-v2").build()
    assert not [w for w in recwarn if "out of date" in str(w.message)]
