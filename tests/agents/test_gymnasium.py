"""Agents as gymnasium environments: the states and costs of rollouts, step by step."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import gps
from gps.agents import PointMassConfig, RealTimeConfig, as_gymnasium, pendulum
from gps.costs import ActionCost, StateCost, WaypointCost
from gps.errors import ConfigError, GPSError, NonFiniteError, ShapeError, SimulationError
from gps.rng import stream
from gps.types import CostTerms

EXPERIMENTS = {name: gps.load(name) for name in ("point_mass", "arm_reach", "peg_insertion")}
EXPERIMENTS["cartpole"] = gps.load("cartpole_swingup")
for _name, _spread in (("arm_reach", 0.05), ("cartpole", 0.1)):
    _e = EXPERIMENTS[_name]
    EXPERIMENTS[_name] = replace(_e, agent=replace(_e.agent, start_qpos_std=_spread))
EXPERIMENTS["point_mass"] = replace(
    EXPERIMENTS["point_mass"],
    agent=replace(
        EXPERIMENTS["point_mass"].agent, start_position_std=0.1, test_starts=((0.5, 0.2),)
    ),
)


@dataclass
class Replay:
    """The given actions (T, nu), whatever the state."""

    U: Any

    def act(self, x, obs, t, noise):
        return self.U[None, t]


def actions(agent, scale=1.0):
    return scale * stream(1, "actions").normal(size=(agent.T, agent.nu))


def environment(name, **kwargs):
    pytest.importorskip("gymnasium")
    e = EXPERIMENTS[name]
    return as_gymnasium(e.agent, e.cost, measure=e.measure, **kwargs)


def play(env, U):
    """States, rewards, observations and the last step's (terminated, truncated, info)."""
    states, rewards, seen = [], [], []
    for u in U:
        obs, reward, terminated, truncated, info = env.step(u)
        states.append(info["state"])
        rewards.append(reward)
        seen.append(obs)
        if terminated or truncated:
            break
    return np.array(states), np.array(rewards), np.array(seen), (terminated, truncated, info)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("test", [False, True])
def test_an_episode_is_the_rollout_of_the_same_actions(name, test):
    env, e = environment(name), EXPERIMENTS[name]
    agent = e.agent.build()
    m = (agent.n_test_conditions if test else agent.n_conditions) - 1
    U = actions(agent, 3.0)
    start_noise = stream(2, "start").normal(size=agent.n_start)
    shape = (1, agent.T, agent.nu)
    r = agent.rollout(Replay(U), m, np.zeros(shape), start_noise[None], test=test)
    obs, info = env.reset(
        seed=0, options={"condition": m, "test": test, "start_noise": start_noise}
    )
    assert (info["condition"], info["test"]) == (m, test)
    np.testing.assert_allclose(info["state"], r.X[0, 0], atol=1e-9)
    np.testing.assert_allclose(obs, r.obs[0, 0], atol=1e-9)
    states, rewards, seen, (terminated, truncated, info) = play(env, U)
    assert (len(states), terminated, truncated) == (agent.T, False, True)
    np.testing.assert_allclose(states[:-1], r.X[0, 1:], atol=1e-9)
    np.testing.assert_allclose(seen[:-1], r.obs[0, 1:], atol=1e-9)
    l = e.cost.evaluate(r).l[0]  # noqa: E741
    np.testing.assert_allclose(rewards, -l, rtol=1e-9, atol=1e-9)
    assert rewards.sum() == pytest.approx(-l.sum(), rel=1e-9)
    assert np.ptp(l) > 0
    distance, success = e.measure.evaluate(r)
    assert info["distance"] == pytest.approx(distance[0], abs=1e-9)
    assert info["success"] == success[0]


def test_the_state_after_the_last_action_is_the_longer_rollouts():
    env, config = environment("cartpole"), EXPERIMENTS["cartpole"].agent
    T = config.T
    U = actions(env.agent)
    env.reset(options={"condition": 1, "start_noise": np.zeros(4)})
    states, *_ = play(env, U)
    longer = replace(config, T=T + 1).build()
    r = longer.rollout(Replay(np.vstack((U, U[:1]))), 1, np.zeros((1, T + 1, 1)))
    np.testing.assert_allclose(states[-1], r.X[0, T], atol=1e-9)
    assert not np.allclose(states[-1], states[-2])


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gymnasium_accepts_it(name, dtype):
    env = environment(name, dtype=dtype)
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # what it has to say of spaces without bounds and of environments made by hand
        for text in (".*infinity.*", ".*spec.*", ".*normalized.*", ".*render.*"):
            warnings.filterwarnings("ignore", message=text)
        check_env(env)
    obs, _ = env.reset(seed=0)
    assert obs.dtype == dtype
    assert env.action_space.dtype == dtype
    low, high = env.agent.control_range
    limited = np.isfinite(high)
    np.testing.assert_array_equal(env.action_space.high[limited], high[limited].astype(dtype))
    np.testing.assert_array_equal(env.action_space.low[limited], low[limited].astype(dtype))
    assert np.isfinite(env.action_space.high).all()


@pytest.mark.parametrize("name", ["point_mass", "peg_insertion"])
def test_rollouts_of_the_agent_leave_an_episode_alone(name):
    pytest.importorskip("gymnasium")
    e = EXPERIMENTS[name]
    agent = e.agent.build()
    U, zero = actions(agent), np.zeros((1, agent.T, agent.nu))
    one, two = as_gymnasium(agent, e.cost, 0), as_gymnasium(agent, e.cost, 1)
    expected = agent.rollout(Replay(U), 0, zero).X[0]
    one.reset(options={"start_noise": np.zeros(agent.n_start)})
    two.reset(seed=1)
    for t in range(10):
        info = one.step(U[t])[-1]
        two.step(U[t + 1])
        agent.rollout(Replay(-U), 1, zero)
        agent.start_state(1)
        np.testing.assert_allclose(info["state"], expected[t + 1], atol=1e-12)


def test_costs_that_know_the_time_and_those_that_look_back():
    pytest.importorskip("gymnasium")

    class Jerk:
        """Squared change of the action: step t depends on step t-1 too."""

        def check(self, layout, nu, T):
            pass

        def evaluate(self, r):
            N, T, nx, nu = r.N, r.T, r.nx, r.nu
            l = (np.diff(r.U, axis=1, prepend=0.0) ** 2).sum(axis=2)  # noqa: E741
            z = np.zeros
            return CostTerms(
                l=l,
                l_x=z((N, T, nx)),
                l_u=z((N, T, nu)),
                l_xx=z((N, T, nx, nx)),
                l_ux=z((N, T, nu, nx)),
                l_uu=z((N, T, nu, nu)),
            )

    agent = PointMassConfig(T=12).build()
    U = actions(agent)
    r = agent.rollout(Replay(U), 0, np.zeros((1, 12, 2)))
    path = WaypointCost(
        entry="position", steps=(3, 9), targets=((0.0, 1.0), (2.0, 0.0)), l2=1.0, ramp="quadratic"
    )
    for cost in (Jerk(), path):
        env = as_gymnasium(agent, cost, 0)
        for _ in range(2):  # nothing is left of the first episode in the second
            env.reset()
            np.testing.assert_allclose(play(env, U)[1], -cost.evaluate(r).l[0], rtol=1e-12)


def test_a_seed_draws_condition_and_start():
    env = environment("arm_reach")

    def begin(**options):
        _, info = env.reset(seed=begin.seed, options=options)
        return info["condition"], info["state"]

    seen, shifts = set(), []
    for begin.seed in range(40):
        m, x = begin()
        again = begin()
        assert (again[0], again[1].tolist()) == (m, x.tolist())
        seen.add(m)
        shifts.append((x - env.agent.start_state(m))[:2])
        # the same disturbance wherever it starts
        _, other = begin(condition=3)
        np.testing.assert_allclose((other - env.agent.start_state(3))[:2], shifts[-1], atol=1e-12)
        m, x = begin(test=True, start_noise=np.zeros(4))
        np.testing.assert_array_equal(x, env.agent.start_state(m, test=True))
    assert seen == set(range(env.agent.n_conditions))
    # 80 draws with deviation 0.05: five standard errors
    assert np.std(shifts) == pytest.approx(0.05, abs=5 * 0.05 / np.sqrt(160))
    a, b = env.reset()[1], env.reset()[1]  # without a seed the draws go on
    assert a["state"].tolist() != b["state"].tolist()


def test_a_fixed_condition_stays_unless_options_say_otherwise():
    env = environment("arm_reach", condition=1, test=True)
    assert [env.reset()[1]["condition"] for _ in range(10)] == [1] * 10
    info = env.reset(options={"condition": 2})[1]
    assert (info["condition"], info["test"]) == (2, True)
    others = [env.reset(options={"test": False})[1] for _ in range(30)]
    assert {i["condition"] for i in others} == {0, 1, 2, 3}
    assert not any(i["test"] for i in others)


def test_actions_beyond_the_range_are_clipped_and_charged_as_applied():
    env = as_env(ActionCost(weights=1.0), force_limit=1.0)
    np.testing.assert_array_equal(env.action_space.high, [1.0, 1.0])
    env.reset()
    assert env.step(np.array([5.0, -0.5]))[1] == pytest.approx(-0.5 * (1.0 + 0.25))
    free = as_env(ActionCost(weights=1.0), action_bound=3.0)
    np.testing.assert_array_equal(free.action_space.low, [-3.0, -3.0])
    free.reset()
    assert free.step(np.array([5.0, -0.5]))[1] == pytest.approx(-0.5 * (25.0 + 0.25))


def as_env(cost=None, *, condition=None, agent=None, **kwargs):
    pytest.importorskip("gymnasium")
    own = {k: kwargs.pop(k) for k in ("force_limit", "limit", "test_starts") if k in kwargs}
    cost = StateCost(entry="position", target=0.0, l2=1.0) if cost is None else cost
    return as_gymnasium(agent or PointMassConfig(T=8, **own), cost, condition, **kwargs)


def test_a_failed_simulation_ends_the_episode_with_its_reason():
    env = as_env(condition=0, limit=1.05, failure_cost=7.0)
    first, _ = env.reset()
    obs, reward, terminated, truncated, info = env.step(np.array([100.0, 0.0]))
    assert (terminated, truncated) == (True, False)
    assert info["failure"] == "the state is NaN or left +-1.05"
    assert reward == pytest.approx(-1.0 - 7.0)  # the cost at (1, 1), and the failure
    np.testing.assert_array_equal(obs, first)
    with pytest.raises(GPSError, match="call reset first"):
        env.step(np.zeros(2))
    env.reset()
    *_, terminated, truncated, info = env.step(np.array([np.nan, 0.0]))
    assert terminated
    assert "action is NaN" in info["failure"]
    env.reset()
    assert not env.step(np.zeros(2))[2]  # and goes on after a reset


def test_a_failure_in_mujoco_is_told_and_does_not_stay():
    pytest.importorskip("gymnasium")
    tight = replace(EXPERIMENTS["cartpole"].agent, limit=2.0)
    env = as_gymnasium(tight, EXPERIMENTS["cartpole"].cost, 0)
    U = np.full((tight.T, 1), 8.0)
    for _ in range(2):
        env.reset(options={"start_noise": np.zeros(4)})
        states, rewards, _, (terminated, truncated, info) = play(env, U)
        assert (terminated, truncated) == (True, False)
        assert "left +-2" in info["failure"]
        with pytest.raises(SimulationError) as caught:
            tight.build().rollout(Replay(U), 0, np.zeros((1, tight.T, 1)))
        assert caught.value.failures[0].t == len(rewards)
        assert np.isfinite(states).all()


def test_wrong_arguments_are_named():
    cases = [
        ({"action_bound": 0.0}, "action_bound must be a number above 0, got 0.0"),
        ({"action_bound": "1"}, "action_bound must be a number above 0, got '1'"),
        ({"failure_cost": -1.0}, "failure_cost must be a number of at least 0, got -1.0"),
        ({"failure_cost": np.inf}, "failure_cost must be a number of at least 0, got inf"),
        ({"dtype": np.int64}, "dtype"),
        ({"test": True}, "no test conditions"),
        ({"cost": StateCost(entry="positon", target=0.0, l2=1.0)}, "did you mean 'position'"),
        ({"render_mode": "rgb_array"}, "render_mode"),
    ]
    for kwargs, match in cases:
        with pytest.raises(ConfigError, match=match):
            as_env(**kwargs)
    with pytest.raises(ConfigError, match=r"cost must be one of gps\.costs or alike, got None"):
        as_gymnasium(gps.load("point_mass").agent, None)
    with pytest.raises(ShapeError, match="condition 9 does not exist"):
        as_env(condition=9)
    env = as_env()
    with pytest.raises(GPSError, match="call reset first"):
        env.step(np.zeros(2))
    assert env.render() is None
    with pytest.raises(ConfigError, match="did you mean 'condition'"):
        env.reset(options={"conditon": 1})
    with pytest.raises(ConfigError, match="no test conditions"):
        env.reset(options={"test": True})
    with pytest.raises(ShapeError, match="condition 4"):
        env.reset(options={"condition": 4})
    env.reset()
    with pytest.raises(ShapeError, match="actions must have shape"):
        env.step(np.zeros(3))


def test_steps_that_are_not_there_yet_break_no_cost():
    class Inverse(StateCost):
        """One over the squared distance, refused as a whole if it is infinite anywhere."""

        def evaluate(self, rollouts):
            terms = super().evaluate(rollouts)
            if (terms.l == 0).any():
                raise NonFiniteError("a state lies in the origin")
            return replace(terms, l=1 / terms.l)

    env = as_env(Inverse(entry="position", target=0.0, l2=1.0), condition=0)
    env.reset()
    rewards = play(env, np.zeros((8, 2)))[1]  # the mass rests at (1, 1)
    np.testing.assert_allclose(rewards, -1.0)
    with pytest.raises(GPSError, match="call reset first"):  # T steps are all
        env.step(np.zeros(2))


def test_a_start_that_has_failed_is_told_by_reset():
    config = PointMassConfig(T=8, limit=2.0, start_position_std=1.0)
    env = as_env(agent=config, condition=0)
    env.reset(options={"start_noise": np.zeros(4)})
    with pytest.raises(SimulationError, match="left"):
        env.reset(options={"start_noise": np.full(4, 3.0)})
    with pytest.raises(GPSError, match="call reset first"):
        env.step(np.zeros(2))


def test_environments_in_a_vector_are_those_alone():
    gymnasium = pytest.importorskip("gymnasium")
    together = gymnasium.vector.SyncVectorEnv([as_env] * 2)
    alone = [as_env() for _ in range(2)]
    first, _ = together.reset(seed=[5, 6])
    for i, env in enumerate(alone):
        np.testing.assert_array_equal(env.reset(seed=5 + i)[0], first[i])
    U = stream(4, "actions").normal(size=(8, 2, 2))
    for t in range(8):
        obs, reward, _, truncated, _ = together.step(U[t])
        for i, env in enumerate(alone):
            own = env.step(U[t, i])
            np.testing.assert_array_equal(obs[i], own[0])
            assert reward[i] == own[1]
        assert truncated.tolist() == [t == 7] * 2
    together.step(U[0])  # begins the next episode
    assert np.abs(together.step(U[1])[0][:, 2:]).max() > 0


def test_a_cost_that_is_not_finite_is_no_reward():
    class Broken(StateCost):
        def evaluate(self, rollouts):
            terms = super().evaluate(rollouts)
            return replace(terms, l=np.full_like(terms.l, np.nan))

    env = as_env(Broken(entry="position", target=0.0, l2=1.0))
    env.reset()
    with pytest.raises(NonFiniteError, match="step 0"):
        env.step(np.zeros(2))


def test_an_agent_without_simulation_is_refused():
    class Whole:
        """Offers whole rollouts only."""

    with pytest.raises(ConfigError, match=r"Whole runs whole rollouts only.*simulation\(\)"):
        as_env(agent=Whole())


def test_a_slowed_agent_steps_as_fast_as_the_one_inside():
    env = as_env(agent=RealTimeConfig(agent=PointMassConfig(T=8)))
    env.reset(seed=0)
    assert play(env, np.zeros((8, 2)))[-1][1]


def test_images_show_the_present_state():
    pytest.importorskip("gymnasium")
    cost = StateCost(entry="joint_pos", target=0.0, l2=1.0)
    env = as_gymnasium(pendulum(), cost, 0, render_mode="rgb_array", width=64, height=48)
    assert env.metadata["render_modes"] == ["rgb_array"]
    env.reset()
    try:
        before = env.render()
    except GPSError as error:
        pytest.skip(str(error))
    assert (before.shape, before.dtype) == ((48, 64, 3), np.uint8)
    for _ in range(20):
        env.step(env.action_space.high)
    assert np.abs(before.astype(int) - env.render()).max() > 20


def test_without_gymnasium_the_extra_is_named():
    code = (
        "import sys; sys.modules['gymnasium'] = None\n"
        "import gps.agents as a\n"
        "from gps.errors import ConfigError\n"
        "try: a.as_gymnasium(a.PointMassConfig(), None)\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert "guided-policy-search[gym]" in done.stdout


def test_gymnasium_is_imported_on_demand():
    code = "import sys, gps.agents; print('gymnasium' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"
