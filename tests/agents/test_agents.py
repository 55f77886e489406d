"""What every agent has to do; a new agent joins AGENTS and is tested."""

from __future__ import annotations

import ast
import inspect
import itertools
import pickle
import textwrap
from dataclasses import FrozenInstanceError, fields, replace

import mujoco
import numpy as np
import pytest

from gps.agents import (
    Condition,
    GymnasiumConfig,
    MujocoConfig,
    PointMassConfig,
    Randomise,
    RealTimeConfig,
    RemoteConfig,
    acrobot,
    arm_reach,
    cartpole,
    peg_insertion,
    pendulum,
    sample_conditions,
)
from gps.control import models
from gps.errors import ConfigError, GPSError, ShapeError, SimulationError
from gps.protocols import Agent, Policy
from gps.rng import stream

# a free body, a ball joint with a hinge after it, and motors on both
FREE = """<mujoco><option gravity="0 0 -1"/><worldbody>
  <body name="box" pos="0.5 0 0.1" quat="0.6 0 0.8 0"><freejoint/>
    <geom type="box" size="0.1 0.15 0.2" mass="1"/><site name="corner" pos="0.1 0.15 0.2"/></body>
  <body name="arm"><joint type="ball" damping="0.1"/><geom size="0.1" pos="0 0 -0.3" mass="1"/>
    <body name="hand" pos="0 0 -0.5"><joint axis="0 1 0" damping="0.1"/>
      <geom size="0.05" pos="0.1 0 0" mass="0.3"/><site name="tip" pos="0.2 0 0"/></body></body>
</worldbody><actuator>
  <motor site="corner" gear="1 0.5 1 0.1 0.2 0" ctrlrange="-5 5"/>
  <motor joint="arm" gear="1 1 0" ctrlrange="-5 5"/>
</actuator></mujoco>""".replace('<joint type="ball"', '<joint name="arm" type="ball"')
# a mocap target, sensors of every stage, and an actuator that remembers
REACH = """<mujoco><option gravity="0 0 0"/><worldbody>
  <body name="upper"><joint name="a" axis="0 0 1" damping="0.1" armature="0.05"/>
    <geom name="bar" type="capsule" size="0.02" fromto="0 0 0 0.3 0 0"/>
    <body name="lower" pos="0.3 0 0"><joint name="b" axis="0 1 1" damping="0.1" armature="0.05"/>
      <geom type="capsule" size="0.02" fromto="0 0 0 0.3 0 0"/><site name="tip" pos="0.3 0 0"/>
    </body></body>
  <body name="target" mocap="true" pos="0.3 0.1 0"><site name="goal"/></body>
</worldbody><actuator>
  <general joint="a" dyntype="filterexact" dynprm="0.1" ctrlrange="-3 3"/>
  <motor joint="b" ctrlrange="-3 3"/>
</actuator><sensor>
  <framepos name="to_goal" objtype="site" objname="tip" reftype="site" refname="goal"/>
  <gyro name="gyro" site="tip"/><accelerometer name="acc" site="tip"/>
</sensor></mujoco>"""
WIDE = REACH.replace("<worldbody>", '<worldbody><body pos="0 0 1"><geom size="0.1"/></body>')


def swing() -> mujoco.MjSpec:
    """A model that is made by code."""
    spec = mujoco.MjSpec()
    body = spec.worldbody.add_body(name="bob")
    body.add_joint(
        name="swing", type=mujoco.mjtJoint.mjJNT_HINGE, axis=[0, 1, 0], damping=[0.1, 0, 0]
    )
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.05, 0, 0], pos=[0, 0, -0.5])
    motor = spec.add_actuator(name="motor", trntype=mujoco.mjtTrn.mjTRN_JOINT, target="swing")
    motor.set_to_motor()
    return spec


MUJOCO = {
    "free_and_ball": MujocoConfig(
        model=FREE,
        T=15,
        sites=("corner", "tip"),
        state=("joint_pos", "joint_vel", "end_points", "end_point_velocities"),
        obs=("qpos", "joint_vel"),
        start_qpos_std=0.1,
        start_qvel_std=0.1,
        test_conditions=(Condition(qpos_offset=(0.1,) * 10),),
    ),
    "mocap_sensors_noise": MujocoConfig(
        model=REACH,
        T=15,
        state=("joint_pos", "joint_vel", "activation", "sensor:to_goal"),
        obs=("joint_pos", "sensor:to_goal", "sensor:gyro", "sensor:acc"),
        obs_noise=(("sensor:to_goal", 0.01), ("sensor:acc", 0.1)),
        start_qpos_std=0.1,
        start_qvel_std=0.1,
        conditions=sample_conditions(
            3, seed=0, mocap_boxes=(("target", (0.1, 0.1, 0.0), (0.4, 0.4, 0.0)),)
        ),
        test_conditions=(
            Condition(mocap=(("target", (0.0, 0.3, 0.1)),)),
            Condition(model=WIDE, qpos_offset=(0.1, 0.0)),
        ),
    ),
    "randomised": replace(
        arm_reach(),
        T=15,
        start_qpos_std=0.05,
        start_qvel_std=0.1,
        randomise=(
            Randomise(what="body_mass", names=("upper", "lower"), std=0.2),
            Randomise(what="body_pos", names=("base",), std=0.02),
            Randomise(what="dof_damping", names=("shoulder",), between=(0.5, 2.0)),
            Randomise(what="actuator_gain", names=("elbow",), between=(0.8, 1.2)),
        ),
    ),
    "made_by_code": MujocoConfig(
        model=swing,
        T=15,
        state=("joint_pos", "joint_vel"),
        conditions=sample_conditions(2, seed=1, qpos_low=(-0.5,), qpos_high=(0.5,)),
        test_conditions=sample_conditions(2, seed=2, qpos_std=(0.3,)),
    ),
}

AGENTS = {
    "point_mass": PointMassConfig(
        T=30, test_starts=((0.5, 0.2),), start_position_std=0.1, start_velocity_std=0.1
    ),
    "point_mass_limited": PointMassConfig(T=30, force_limit=1.0, test_starts=((0.5, 0.2),)),
    "point_mass_partial": PointMassConfig(T=30, obs=("position",), test_starts=((0.5, 0.2),)),
    "arm_reach": replace(arm_reach(), T=20, start_qpos_std=0.05, start_qvel_std=(0.1, 0.2)),
    "arm_joints_only": replace(
        arm_reach(), T=20, state=("joint_vel", "joint_pos"), obs=("end_points", "joint_pos")
    ),
    "peg_insertion": replace(peg_insertion(n_test=3), T=25),
    "peg_smooth_noise": replace(
        peg_insertion(n_test=3), T=25, noise_sigma=2.0, obs=("joint_pos", "joint_vel")
    ),
    "cartpole": replace(cartpole(), T=20, start_qpos_std=(0.02, 0.1), start_qvel_std=0.1),
    "acrobot": replace(
        acrobot(), T=20, state=("joint_vel", "joint_pos"), start_qpos_std=0.1, start_qvel_std=0.1
    ),
    "pendulum": replace(
        pendulum(), T=20, sites=("tip",), state=("joint_pos", "end_points", "joint_vel")
    ),
    "real_time": RealTimeConfig(
        agent=PointMassConfig(
            T=30, test_starts=((0.5, 0.2),), start_position_std=0.1, start_velocity_std=0.1
        ),
        speed=1e6,
    ),
    **MUJOCO,
}


def limited(config, limit):
    """The agent with another bound on its state."""
    if isinstance(config, RealTimeConfig):
        return replace(config, agent=replace(config.agent, limit=limit))
    return replace(config, limit=limit)


class NoisyDamping:
    """Damps the first states and adds noise; element by element, so that rows cannot mix."""

    def __init__(self, scale: float = 0.5) -> None:
        self.scale = scale

    def act(self, x, obs, t, noise):
        return self.scale * noise - 0.3 * x[:, : noise.shape[1]]


class Break(NoisyDamping):
    """Returns NaN for some samples at some step."""

    def __init__(self, when: dict[int, int]) -> None:
        super().__init__()
        self.when = when

    def act(self, x, obs, t, noise):
        u = super().act(x, obs, t, noise)
        assert np.isfinite(x).all()
        assert np.isfinite(obs).all()
        for sample, step in self.when.items():
            if t >= step:
                u[sample, 0] = np.nan
        return u


@pytest.fixture(params=AGENTS, scope="module")
def agent(request):
    return AGENTS[request.param].build()


@pytest.fixture(params=AGENTS, scope="module")
def known(request):
    return AGENTS[request.param].build()


def draw(agent: Agent, N: int = 4, seed: int = 0):
    noise = stream(seed, "noise").normal(size=(N, agent.T, agent.nu))
    return noise, stream(seed, "start").normal(size=(N, agent.n_start))


def arrays(rollouts):
    found = {n: getattr(rollouts, n) for n in ("X", "U", "obs", "noise")}
    return found | {f"d {n}": J for n, J in rollouts.jacobians.items()}


def assert_same_bytes(a, b):
    a, b = arrays(a), arrays(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


def test_follows_the_protocol(agent):
    assert isinstance(agent, Agent)
    assert isinstance(NoisyDamping(), Policy)
    assert agent.dt > 0
    assert agent.n_conditions >= 1
    assert agent.n_test_conditions >= 1


def test_configuration_is_frozen_hashable_and_travels(agent):
    cfg = agent.config
    assert hash(cfg) == hash(replace(cfg))
    assert pickle.loads(pickle.dumps(cfg)) == cfg
    with pytest.raises(FrozenInstanceError):
        cfg.T = 3
    with pytest.raises(TypeError, match="dtt"):
        replace(cfg, dtt=0.1)


@pytest.mark.parametrize("config", [MujocoConfig, PointMassConfig, RealTimeConfig])
def test_every_field_of_a_configuration_is_described(config):
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0].body
    for here, after in itertools.pairwise(body):
        if isinstance(here, ast.AnnAssign):
            described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert described, here.target.id
    assert len(fields(config)) >= 5


def test_shapes_and_finite_values(agent):
    noise, start = draw(agent)
    r = agent.rollout(NoisyDamping(), 0, noise, start)
    assert r.X.shape == (4, agent.T, agent.layout.size)
    assert r.U.shape == (4, agent.T, agent.nu)
    assert r.obs.shape == (4, agent.T, agent.obs_layout.size)
    assert r.layout == agent.layout
    for name, value in arrays(r).items():
        assert np.isfinite(value).all(), name
        assert not value.flags.writeable, name
    assert np.abs(np.diff(r.X, axis=1)).max() > 1e-4  # something moves


def test_named_entries_cover_the_state_and_the_observation(agent):
    r = agent.rollout(NoisyDamping(), 0, *draw(agent))
    parts = [r.entry(name) for name in agent.layout.names]
    np.testing.assert_array_equal(np.concatenate(parts, axis=2), r.X)
    noisy = dict(getattr(agent.config, "obs_noise", ()))
    for name in agent.obs_layout.names:
        if name in agent.layout.names and name not in noisy:
            np.testing.assert_array_equal(r.obs[:, :, agent.obs_layout.slice(name)], r.entry(name))


def test_the_same_draws_give_the_same_bytes_whatever_came_before(agent):
    noise, start = draw(agent)
    first = agent.rollout(NoisyDamping(), 0, noise, start)
    assert_same_bytes(first, agent.rollout(NoisyDamping(), 0, noise, start))
    agent.rollout(NoisyDamping(30.0), agent.n_conditions - 1, *draw(agent, seed=1))
    agent.rollout(NoisyDamping(), 0, *draw(agent, N=4, seed=2), test=True)
    agent.rollout(NoisyDamping(), 0, *draw(agent, N=2, seed=3))
    with pytest.raises(SimulationError):
        agent.rollout(Break({1: 3}), 0, noise, start)
    assert_same_bytes(first, agent.rollout(NoisyDamping(), 0, noise, start))
    assert_same_bytes(first, agent.config.build().rollout(NoisyDamping(), 0, noise, start))
    assert_same_bytes(first, agent.config.build(2).rollout(NoisyDamping(), 0, noise, start))


def test_a_sample_alone_is_the_sample_in_the_batch(agent):
    noise, start = draw(agent)
    together = arrays(agent.rollout(NoisyDamping(), 0, noise, start))
    alone = arrays(agent.rollout(NoisyDamping(), 0, noise[2:3], start[2:3]))
    for name, value in together.items():
        assert value[2:3].tobytes() == alone[name].tobytes(), name


def test_a_simulation_stepped_from_outside_is_the_rollout(agent):
    noise, start = draw(agent, N=1)
    for test in (False, True):
        r = agent.rollout(NoisyDamping(), 0, noise, start, test=test)
        simulation = agent.simulation()
        for _ in range(2):  # a reset leaves nothing behind
            simulation.reset(0, start[0], test=test)
            for t in range(agent.T):
                assert simulation.t == t
                assert simulation.x.tobytes() == r.X[0, t].tobytes()
                assert simulation.obs.tobytes() == r.obs[0, t].tobytes()
                jacobians = {name: J[0, t].tobytes() for name, J in r.jacobians.items()}
                assert {n: J.tobytes() for n, J in simulation.jacobians.items()} == jacobians
                simulation.step(r.U[0, t])
                assert simulation.u.tobytes() == r.U[0, t].tobytes()
    with pytest.raises(ShapeError, match="condition 99"):
        simulation.reset(99)
    with pytest.raises(GPSError, match="call reset first"):
        simulation.step(r.U[0, 0])


def test_samples_differ_by_their_noise_and_share_no_memory(agent):
    noise, start = draw(agent)
    r = agent.rollout(NoisyDamping(), 0, noise, start)
    assert not np.allclose(r.X[0, -1], r.X[1, -1])
    again = agent.rollout(NoisyDamping(), 0, *draw(agent, seed=5))
    for name, value in arrays(r).items():
        assert not np.shares_memory(value, arrays(again)[name]), name
    kept = r.X.copy()
    noise[:] = 7.0
    np.testing.assert_array_equal(r.X, kept)
    assert np.abs(r.noise).max() < 7.0


def test_a_policy_cannot_change_the_record(agent):
    class Meddler(NoisyDamping):
        def act(self, x, obs, t, noise):
            u = super().act(x, obs, t, noise)
            for value in (x, obs, noise):
                if value.flags.writeable:
                    value[:] = 1e3
            return u

    noise, start = draw(agent)
    expected = agent.rollout(NoisyDamping(), 0, noise.copy(), start)
    assert_same_bytes(expected, agent.rollout(Meddler(), 0, noise.copy(), start))


def test_starts_are_exact(agent):
    noise, start = draw(agent)
    for test, count in ((False, agent.n_conditions), (True, agent.n_test_conditions)):
        for m in range(count):
            x0 = agent.start_state(m, test=test)
            r = agent.rollout(NoisyDamping(), m, noise, test=test)
            for i in range(r.N):
                np.testing.assert_array_equal(r.X[i, 0], x0)
    if agent.n_start:
        r = agent.rollout(NoisyDamping(), 0, noise, start)
        shift = r.X[:, 0] - agent.start_state(0)
        doubled = agent.rollout(NoisyDamping(), 0, noise, 2 * start).X[:, 0] - agent.start_state(0)
        free = [n for n in agent.layout.names if n not in ("end_points", "activation")]
        free = [n for n in free if not n.startswith(("end_point_", "sensor:"))]
        for name in free:
            where = agent.layout.slice(name)
            np.testing.assert_allclose(doubled[:, where], 2 * shift[:, where], atol=1e-12)
            assert np.abs(shift[:, where]).min() > 0


def test_conditions_differ(agent):
    noise, _ = draw(agent, N=1)
    obs = [agent.rollout(NoisyDamping(), m, noise).obs[0, 0] for m in range(agent.n_conditions)]
    X = [agent.start_state(m) for m in range(agent.n_conditions)]
    for a in range(len(X)):
        for b in range(a):
            differ = not np.allclose(X[a], X[b]) or not np.allclose(obs[a], obs[b])
            assert differ or agent.config is AGENTS["arm_joints_only"]


def test_every_failed_sample_is_named(agent):
    noise, start = draw(agent, N=5)
    with pytest.raises(SimulationError, match="condition 0") as caught:
        agent.rollout(Break({1: 3, 4: 6}), 0, noise, start)
    assert [(f.sample, f.t) for f in caught.value.failures] == [(1, 3), (4, 6)]
    assert all("action is NaN" in f.reason for f in caught.value.failures)
    with pytest.raises(SimulationError) as caught:
        agent.rollout(Break(dict.fromkeys(range(5), 0)), 0, noise, start)
    assert len(caught.value.failures) == 5


def test_a_state_beyond_the_limit_is_a_failure(agent):
    noise, _ = draw(agent)
    first = agent.rollout(NoisyDamping(), 0, noise)
    reach = max(np.abs(first.X[:, 0]).max(), np.abs(first.obs[:, 0]).max())
    tight = limited(agent.config, float(reach) + 0.6).build()
    noise[2] = 60.0
    with pytest.raises(SimulationError, match="left") as caught:
        tight.rollout(NoisyDamping(0.5), 0, noise)
    failed = {f.sample: f.t for f in caught.value.failures}
    assert failed[2] > 0


def test_wrong_inputs_are_named(agent):
    noise, _ = draw(agent)
    with pytest.raises(ShapeError, match="noise must have shape"):
        agent.rollout(NoisyDamping(), 0, noise[:, :-1])
    with pytest.raises(ShapeError, match="finite"):
        agent.rollout(NoisyDamping(), 0, np.full_like(noise, np.nan))
    with pytest.raises(ShapeError, match="condition 99 does not exist"):
        agent.rollout(NoisyDamping(), 99, noise)
    for wrong in (0.0, "0", None):
        with pytest.raises(ShapeError, match="condition must be a whole number, got"):
            agent.start_state(wrong)
    np.testing.assert_array_equal(agent.start_state(np.int64(0)), agent.start_state(0))
    with pytest.raises(ShapeError, match="test condition -1"):
        agent.start_state(-1, test=True)
    if agent.n_start:
        with pytest.raises(ShapeError, match="start_noise"):
            agent.rollout(NoisyDamping(), 0, noise, np.zeros((1, agent.n_start)))

    class Flat:
        def act(self, x, obs, t, noise):
            return np.zeros(agent.nu)

    with pytest.raises(ShapeError, match="actions must have shape"):
        agent.rollout(Flat(), 0, noise)


def planned(agent):
    """Where the state of the known model lies in the agent's."""
    names = agent.model_entries
    return np.concatenate([np.r_[agent.layout.slice(name)] for name in names])


def test_the_known_model_goes_where_a_rollout_goes(known):
    agent = known
    own, T, nu = planned(agent), agent.T, agent.nu
    rng = stream(3, "gains")
    K, k = 0.2 * rng.normal(size=(T, nu, len(own))), rng.normal(size=(T, nu))
    K[0] = 0.0  # the model's feedback begins at its start
    X, U = np.zeros((T, len(own))), np.zeros((T, nu))

    class Feedback:
        def act(self, x, obs, t, noise):
            return x[:, own] @ K[t].T + k[t]

    for test, count in ((False, agent.n_conditions), (True, agent.n_test_conditions)):
        for m in {0, count - 1}:
            r = agent.rollout(Feedback(), m, np.zeros((1, T, nu)), test=test)
            model = agent.known_model(m, models, test=test)
            assert (model.nx, model.nu) == (len(own), nu)
            X[0] = agent.start_state(m, test=test)[own]
            limits = [np.broadcast_to(limit, (T, nu)) for limit in agent.control_range]
            states, actions = model.rollout(X, U, k, K, np.array([0.5, 1.0]), *limits)
            # the simulator's solver begins anew in every step of the model
            np.testing.assert_allclose(states[1], r.X[0][:, own], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(actions[1], r.U[0], rtol=1e-6, atol=1e-6)
            assert not np.allclose(states[0], states[1], atol=1e-3)


def test_the_known_jacobians_are_the_central_differences(known):
    agent = known
    own, nu = planned(agent), agent.nu
    model = agent.known_model(0, models)
    r = agent.rollout(NoisyDamping(), 0, *draw(agent, N=1))
    X, U = r.X[0][:, own], 0.5 * r.U[0]  # away from the limits, where the derivative jumps
    F = model.jacobians(X, U)
    assert F.shape == (agent.T - 1, len(own), len(own) + nu)
    zero, inf = np.zeros((2, nu)), np.full((2, nu), np.inf)

    def ahead(z):
        x, u = np.tile(z[: len(own)], (2, 1)), np.tile(z[len(own) :], (2, 1))
        none = np.zeros((2, nu, len(own)))
        return model.rollout(x, u, zero, none, np.ones(1), -inf, inf)[0][0, 1]

    z = np.concatenate((X[3], U[3]))
    fd = [(ahead(z + e) - ahead(z - e)) / 2e-5 for e in 1e-5 * np.eye(len(z))]
    np.testing.assert_allclose(F[3], np.array(fd).T, rtol=1e-4, atol=1e-5)


def test_the_known_model_knows_the_conditions(known):
    agent = known
    with pytest.raises(ShapeError, match="condition 99 does not exist"):
        agent.known_model(99, models)


@pytest.mark.parametrize(
    "name",
    ["arm_reach", "peg_insertion", "pendulum", "acrobot", "free_and_ball", "mocap_sensors_noise"],
)
def test_whole_states_are_those_of_a_rollout(name):
    agent = AGENTS[name].build()
    last = agent.n_conditions - 1
    r = agent.rollout(NoisyDamping(), last, *draw(agent, N=2))
    agent.rollout(NoisyDamping(), 0, *draw(agent, N=1))  # another condition in between
    X, jacobians = agent.whole_states(last, r.X[1][:, planned(agent)])
    np.testing.assert_allclose(X, r.X[1], atol=1e-12)
    sensors = {name for name in agent.layout.names if name.startswith("sensor:")}
    assert jacobians.keys() == r.jacobians.keys() | sensors
    for entry, J in r.jacobians.items():
        np.testing.assert_allclose(jacobians[entry], J[1], atol=1e-10)
    with pytest.raises(ShapeError, match="states must have shape"):
        agent.whole_states(0, r.X[1][:, :1])
    with pytest.raises(ShapeError, match="condition 99"):
        agent.whole_states(99, r.X[1][:, planned(agent)])


@pytest.mark.parametrize(
    "name", ["point_mass_limited", "arm_reach", "peg_insertion", "cartpole", "acrobot", "pendulum"]
)
def test_recorded_actions_are_clipped(name):
    agent = AGENTS[name].build()
    noise, _ = draw(agent)
    high = np.full(2, 1.0) if name == "point_mass_limited" else agent.control_range[1]
    bang = replace(AGENTS[name], limit=1e6).build()
    r = bang.rollout(NoisyDamping(1e3), 0, noise)
    assert (np.abs(r.U) <= high).all()
    assert (np.abs(r.U).max(axis=(0, 1)) == high).all()

    class Replay:
        def act(self, x, obs, t, noise):
            return r.U[:, t]

    np.testing.assert_array_equal(bang.rollout(Replay(), 0, noise).X, r.X)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PointMassConfig(T=1), r"PointMassConfig\.T must be a whole number from 2 to"),
        (lambda: PointMassConfig(dt=0.0), r"\.dt must be a number above 0 s"),
        (lambda: PointMassConfig(mass=float("nan")), r"\.mass"),
        (lambda: PointMassConfig(damping=-1.0), r"\.damping"),
        (lambda: PointMassConfig(force_limit=0.0), r"\.force_limit"),
        (lambda: PointMassConfig(starts=()), r"\.starts"),
        (lambda: PointMassConfig(starts=((1.0, 2.0, 3.0),)), r"\.starts"),
        (lambda: PointMassConfig(obs=("positon",)), "did you mean 'position'"),
        (lambda: replace(peg_insertion(), T=0), r"MujocoConfig\.T"),
        (lambda: replace(peg_insertion(), substeps=0), r"\.substeps"),
        (lambda: replace(peg_insertion(), state=("joint_poss",)), "did you mean 'joint_pos'"),
        (lambda: replace(peg_insertion(), obs=("camera",)), "unknown entry 'camera'"),
        (lambda: replace(peg_insertion(), sites=()), r"\.sites"),
        (lambda: replace(peg_insertion(), sites="peg_tip"), "sites must be a tuple, each text"),
        (lambda: replace(peg_insertion(), conditions=()), r"\.conditions"),
        (lambda: replace(peg_insertion(), start_qpos_std=-1.0), r"\.start_qpos_std"),
        (lambda: replace(peg_insertion(), qpos=(float("inf"),) * 7), r"\.qpos"),
        (lambda: replace(peg_insertion(), model="peg").build(), "unknown model 'peg'"),
        (lambda: replace(peg_insertion(), model="none.xml").build(), "does not exist"),
        (lambda: replace(peg_insertion(), sites=("tip",)).build(), "unknown site 'tip'"),
        (lambda: replace(peg_insertion(), qpos=(0.0,)).build(), "must have 7 values"),
        (lambda: replace(peg_insertion(), start_qpos_std=(0.1,)).build(), "must have 7 values"),
        (lambda: peg_insertion().build(0), "threads"),
    ],
)
def test_configuration_errors_say_what_would_help(make, match):
    with pytest.raises(GPSError, match=match) as caught:
        make()
    assert isinstance(caught.value, ConfigError)


SIZES = [
    (PointMassConfig(), "T", 100_000),
    (MujocoConfig(model="arm_reach"), "T", 100_000),
    (MujocoConfig(model="arm_reach"), "substeps", 10_000),
    (GymnasiumConfig(env="Reacher-v5"), "T", 100_000),
    (RemoteConfig(port=7000), "port", 65535),
]


@pytest.mark.parametrize(("config", "name", "most"), SIZES)
def test_sizes_are_whole_numbers_that_fit_into_memory(config, name, most):
    for kind in (np.int64, np.int32, np.uint16):
        new = getattr(replace(config, **{name: kind(30)}), name)
        assert new == 30
        assert type(new) is int
    for wrong in (2.5, 30.0, "30", True, np.float64(30.0), most + 1, -1, 10**15):
        with pytest.raises(ConfigError, match=rf"{type(config).__name__}\.{name} must be a whole"):
            replace(config, **{name: wrong})
    assert getattr(replace(config, **{name: most}), name) == most


def test_lists_and_arrays_in_a_configuration_become_tuples_that_hash():
    config = MujocoConfig(
        model="arm_reach",
        qpos=np.array([0.1, 0.2]),
        sites=["tip"],
        conditions=[Condition(qpos_offset=[0, 1])],
        image_size=np.array([32, 24]),
        start_qpos_std=[0.1, np.float32(0.5)],
    )
    assert hash(config) == hash(replace(config))
    assert config.qpos == (0.1, 0.2)
    assert config.image_size == (32, 24)
    assert config.start_qpos_std == (0.1, 0.5)
    assert config.conditions[0].qpos_offset == (0, 1)
    with pytest.raises(ConfigError, match=r"image_size must be a tuple of 2, each a whole number"):
        replace(config, image_size=(9000, 9000))
