"""Tasks of dm_control's suite as agents: dm_control's own environment is the judge.

It needs the extra `dm`: pip install -c constraints.txt -e '.[all,dm,test]'.
"""

from dataclasses import replace

import mujoco
import numpy as np
import pytest

from gps.agents import DMControlConfig, DMControlStart, random_episodes
from gps.agents._run import warnings_to_log
from gps.errors import ConfigError, GPSError
from gps.extras import EXTRAS, MissingPackageError
from gps.protocols import Linearises
from gps.types import LinearGaussianController

try:
    from gps.agents import dm_control
    from gps.agents.dm_control import loaded

    loaded("cartpole", "swingup")
except MissingPackageError as missing:
    pytest.skip(str(missing), allow_module_level=True)

from test_agents import (  # noqa: F401
    NoisyDamping,
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

STARTS = {
    "T": 15,
    "conditions": random_episodes(2, seed=0, purpose="training"),
    "test_conditions": random_episodes(2, seed=0),
}
JOINTS = ("joint_pos", "joint_vel")
AGENTS = {
    "cartpole": DMControlConfig(
        domain="cartpole", task="swingup", **STARTS, state=(*JOINTS, "position", "reward")
    ),
    "observed": DMControlConfig(
        domain="reacher", task="easy", **STARTS, state=("position", "to_target", "velocity")
    ),
    "repeated": DMControlConfig(
        **{
            "domain": "finger",
            "task": "spin",
            **STARTS,
            "repeat": 2,
            "start_qpos_std": 0.1,
            "start_qvel_std": 0.2,
        }
    ),
    "activations": DMControlConfig(domain="quadruped", task="walk", **STARTS),
    "free": DMControlConfig(
        domain="fish",
        task="swim",
        **STARTS,
        sites=(),
        state=(*JOINTS, "target", "sensor:velocimeter"),
    ),
}


@pytest.fixture(params=AGENTS, scope="module")
def agent(request):
    return AGENTS[request.param].build()


class Fixed:
    """Actions (N, T, nu) that are given."""

    def __init__(self, U):
        self.U = U

    def act(self, x, obs, t, noise):
        return self.U[:, t]


def flat(observation):
    return np.concatenate([np.ravel(value) for value in observation.values()])


def judged(config, start, U):
    """What dm_control gives along the actions of one sample, one step for each of its own."""
    env, rows = loaded(config.domain, config.task, start.seed), []
    with warnings_to_log():
        step = env.reset()
        for u in U:
            data, reward = env.physics.data, step.reward or 0.0
            rows.append((flat(step.observation), reward, data.qpos.copy(), data.qvel.copy()))
            for _ in range(config.repeat):
                step = env.step(u)
    return tuple(np.array(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize(
    ("domain", "task"),
    [
        ("cartpole", "swingup"),  # Runge-Kutta
        ("reacher", "hard"),  # a target for each episode
        ("finger", "turn_easy"),  # contacts and touch
        ("quadruped", "walk"),  # activations, forces, a free body
        ("ball_in_cup", "catch"),  # a tendon
        ("walker", "run"),
        ("manipulator", "bring_ball"),
        pytest.param("dog", "walk", marks=pytest.mark.slow),  # drawn activations
    ],
)
def test_a_rollout_is_what_dm_control_does_to_the_bit(domain, task):
    config = DMControlConfig(domain=domain, task=task, **{**STARTS, "T": 40})
    config = replace(config, state=(*config.build().layout.names, "reward"))
    agent, rng = config.build(), np.random.default_rng(0)
    low, high = agent.control_range
    model = agent.model_of(0)
    assert agent.action_names == tuple(model.actuator(i).name for i in range(model.nu))
    U = rng.uniform(low, high, (3, agent.T, agent.nu))
    for test, starts in ((False, config.conditions), (True, config.test_conditions)):
        r = agent.rollout(Fixed(U), 1, np.zeros_like(U), test=test)
        for i in (0, 2):
            obs, reward, qpos, qvel = judged(config, starts[1], U[i])
            assert r.obs[i].tobytes() == obs.tobytes()
            assert r.entry("reward")[i, :, 0].tobytes() == reward.tobytes()
            assert r.entry("joint_vel")[i].tobytes() == qvel.tobytes()
            start = agent.start_joints(1, test=test)
            assert (start[0].tobytes(), start[1].tobytes()) == (
                qpos[0].tobytes(),
                qvel[0].tobytes(),
            )
        assert np.abs(r.entry("joint_vel")).max() > 1e-3
    assert agent.dt == loaded(domain, task).control_timestep()


@pytest.mark.parametrize(
    ("domain", "task", "loads"),
    [("reacher", "easy", 2), ("lqr", "lqr_2_1", 4)],  # lqr draws its springs
)
def test_a_model_is_compiled_for_each_start_only_where_random_numbers_are_in_it(
    domain, task, loads, monkeypatch
):
    seen = []
    monkeypatch.setattr(dm_control, "loaded", lambda *args: seen.append(args) or loaded(*args))
    starts = random_episodes(4, seed=0)
    agent = DMControlConfig(domain=domain, task=task, conditions=starts).build()
    assert len(seen) == loads
    for m, start in enumerate(starts):
        env = loaded(domain, task, start.seed)
        env.reset()
        model, mine = env.physics.model.ptr, agent.model_of(m)
        assert agent.start_joints(m)[0].tobytes() == env.physics.data.qpos.tobytes()
        for field in ("geom_pos", "jnt_stiffness"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(model, field))


def test_a_repeated_action_is_that_of_several_steps():
    config = replace(AGENTS["repeated"], start_qpos_std=0.0, start_qvel_std=0.0, repeat=3)
    agent, rng = config.build(), np.random.default_rng(1)
    U = rng.uniform(-1, 1, (1, agent.T, agent.nu))
    r = agent.rollout(Fixed(U), 0, np.zeros_like(U))
    obs, _, qpos, _ = judged(config, config.conditions[0], U[0])
    assert agent.dt == pytest.approx(3 * 0.02)
    np.testing.assert_allclose(r.obs[0], obs, rtol=0, atol=1e-9)
    np.testing.assert_allclose(r.entry("joint_pos")[0], qpos, rtol=0, atol=1e-9)


@pytest.mark.parametrize("repeat", [1, 4])
def test_returns_are_those_of_the_whole_episode(repeat):
    config = replace(AGENTS["cartpole"], repeat=repeat, obs=("velocity", "position"), T=100)
    agent = config.build()
    K = np.zeros((100, 1, agent.layout.size))
    K[:, 0, 1] = 0.3  # about the hanging pole
    policy = LinearGaussianController(
        K=K, k=np.linspace(-1.2, 0.5, 100)[:, None], chol=np.ones((100, 1, 1))
    )
    start = DMControlStart(seed=5)
    (found,) = agent.episode_returns(policy, [start])
    env, total, t = loaded("cartpole", "swingup", 5), 0.0, 0
    step, silence = env.reset(), np.zeros((1, 1))
    while not step.last():
        if t % repeat == 0:
            data = env.physics.data
            x = np.concatenate((data.qpos, data.qvel, step.observation["position"], [0.0]))[None]
            u = policy.act(x, x, min(t // repeat, 99), silence)[0]
        step, t = env.step(np.clip(u, -1, 1)), t + 1
        total += step.reward
    assert t == 1000
    assert total > 10
    assert found == pytest.approx(total, rel=1e-9)
    assert agent.episode_returns(policy, [start], steps=10) < found / 10


def test_disturbed_starts_are_the_drawn_ones_shifted():
    config = replace(AGENTS["cartpole"], start_qpos_std=(0.1, 0.2), start_qvel_std=0.5)
    agent = config.build()
    noise = np.random.default_rng(0).normal(size=(3, agent.n_start))
    r = agent.rollout(Fixed(np.zeros((3, 15, 1))), 1, np.zeros((3, 15, 1)), noise)
    qpos, qvel = agent.start_joints(1)
    np.testing.assert_allclose(r.X[:, 0, :2], qpos + noise[:, :2] * [0.1, 0.2], atol=1e-15)
    np.testing.assert_allclose(r.X[:, 0, 2:4], qvel + noise[:, 2:] * 0.5, atol=1e-15)
    assert not np.allclose(qvel, agent.start_joints(0)[1])


def test_states_of_the_known_model_are_whole_with_their_derivatives():
    agent = DMControlConfig(
        domain="reacher", task="easy", state=(*JOINTS, "to_target", "sensor:missing")
    )
    with pytest.raises(ConfigError, match="sensor 'missing'"):
        agent.build()
    agent = DMControlConfig(domain="reacher", task="easy", state=("to_target", *JOINTS)).build()
    states = np.random.default_rng(0).normal(size=(4, 4))
    X, J = agent.whole_states(0, states)
    np.testing.assert_array_equal(X[:, 2:], states)
    model = agent.model_of(0)
    data = mujoco.MjData(model)
    for x, slope in zip(X, J["to_target"], strict=True):
        data.qpos[:] = x[2:4]
        mujoco.mj_forward(model, data)
        tip, target = (data.geom(n).xpos[:2] for n in ("finger", "target"))
        np.testing.assert_allclose(x[:2], target - tip, atol=1e-12)
        jac = np.zeros((3, 2))
        mujoco.mj_jacGeom(model, data, jac, None, model.geom("finger").id)
        np.testing.assert_allclose(slope[:, 2:4], -jac[:2], atol=1e-8)
        assert not slope[:, [0, 1, 4, 5]].any()


@pytest.mark.parametrize(
    ("domain", "task", "more"),
    [
        ("reacher", "easy", ("to_target", "joint_directions")),
        ("cartpole", "balance", ("position",)),
    ],
)
def test_the_linearisation_tells_the_next_step(domain, task, more):
    agent = DMControlConfig(domain=domain, task=task, T=2, state=(*more, *JOINTS)).build()
    assert isinstance(agent, Linearises)
    found, nv = agent.linearise(0), agent.model.nv
    assert found.layout == agent.layout
    rest = DMControlConfig(
        domain=domain,
        task=task,
        T=2,
        start_qpos_std=1.0,
        start_qvel_std=1.0,
        state=agent.layout.names,
    ).build()
    shifts = 1e-4 * np.random.default_rng(0).normal(size=(6, 2 * nv))
    start = shifts.copy()
    start[:, nv:] -= rest.start_joints(0)[1]  # from rest
    U = found.u + 1e-3 * np.random.default_rng(1).normal(size=(6, 2, agent.nu))
    r = rest.rollout(Fixed(U), 0, np.zeros_like(U), start)
    z = np.concatenate((r.X[:, 0], r.U[:, 0]), axis=1)
    expected = z @ found.F.T + found.f
    moved = np.abs(r.X[:, 1] - r.X[:, 0]).max()
    np.testing.assert_allclose(r.X[:, 1], expected, rtol=0, atol=2e-3 * moved)
    np.testing.assert_array_equal(
        np.isfinite(found.x_scale), [False] * (len(found.x) - 2 * nv) + [True] * 2 * nv
    )
    with pytest.raises(GPSError, match=r"joint_vel not in DMControlConfig.state"):
        DMControlConfig(domain=domain, task=task, state=(*more, "joint_pos")).build().linearise(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": "cartpool"}, "unknown domain 'cartpool'; .*cartpole"),
        ({"task": "swing"}, "unknown cartpole task 'swing'; .*swingup"),
        ({"options": (("speed", 1),)}, "cartpole:swingup: .*'speed'"),
        ({"options": (("random", 1),)}, "options must be without random"),
        ({"state": ("angle",)}, "unknown entry 'angle'; .*position"),
        ({"conditions": (DMControlStart(qpos=(1.0,)),)}, "qpos must have 2 values for cartpole"),
        ({"conditions": (DMControlStart(qvel=(1.0,)),)}, "qvel must have 2 values for cartpole"),
        ({"start_qvel_std": (1.0,) * 3}, "start_qvel_std must have 2 values"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        DMControlConfig(**{"domain": "cartpole", "task": "swingup", **change}).build()
    assert "\n" not in str(error.value)


def test_a_reward_cannot_be_planned_with():
    from gps.control import models

    with pytest.raises(ConfigError, match="reward cannot be planned with"):
        AGENTS["cartpole"].build().known_model(0, models)
    assert "dm" in EXTRAS
