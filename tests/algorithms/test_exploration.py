"""The noise that controllers keep, and what becomes of long runs with it and without it."""

from dataclasses import replace

import numpy as np
import pytest
from algorithm_problems import AGENT, advance, begin
from test_learning import ALL

import gps
from gps.algorithms import ExplorationConfig, TrajOptConfig
from gps.algorithms.exploration import UNLIMITED, action_scale, exploration_std
from gps.errors import ConfigError
from gps.types import LinearGaussianController

LIMITED = replace(AGENT, force_limit=20.0)


def least_share(controller, scale):
    """Least eigenvalue of Sigma over all steps, as a standard deviation in units of `scale`."""
    return np.sqrt(np.linalg.eigvalsh(controller.Sigma / np.outer(scale, scale)).min())


@pytest.mark.parametrize("name", ALL)
def test_no_controller_has_less_noise_than_the_floor(name):
    config = replace(ALL[name], exploration=ExplorationConfig(floor=0.04))
    agent, state = begin(config, agent=LIMITED)
    scale = np.full(2, 20.0)
    lowest = np.inf
    for _ in range(4):
        state, reports, _ = advance(config, agent, state, 1, samples=8)
        for m, c in enumerate(state.conditions):
            share = least_share(c.controller, scale)
            lowest = min(lowest, share)
            assert share >= 0.04 * (1 - 1e-9)
            told = reports[0].conditions[m].exploration_std
            var = np.einsum("tii->ti", c.controller.Sigma) / scale**2
            assert told == pytest.approx(np.sqrt(var.mean()), rel=1e-12)
        if state.policy is not None:
            assert np.sqrt(np.diag(state.policy.policy.Sigma)).min() >= 0.04 * 20 * (1 - 1e-9)
    assert lowest < 0.05  # the floor has something to do


@pytest.mark.parametrize("name", ["trajopt", "mdgps on-policy", "pilqr", "badmm"])
def test_without_a_floor_the_noise_goes_on_falling(name):
    config = replace(ALL[name], exploration=ExplorationConfig(floor=0))
    agent, state = begin(config, agent=LIMITED)
    state, _, _ = advance(config, agent, state, 6, samples=8)
    assert max(least_share(c.controller, np.full(2, 20.0)) for c in state.conditions) < 0.03


def test_initial_controllers_are_raised_too():
    config = TrajOptConfig(exploration=ExplorationConfig(floor=0.5))
    _, state = begin(config, agent=LIMITED)
    for c in state.conditions:
        assert least_share(c.controller, np.full(2, 20.0)) == pytest.approx(0.5)
        assert c.previous is c.controller


def test_the_scale_is_half_the_range_or_the_initial_noise():
    agent, _ = begin(TrajOptConfig(), agent=AGENT)
    chol = np.zeros((3, 2, 2))
    chol[:, 0, 0], chol[:, 1, 0], chol[:, 1, 1] = [1.0, 2.0, 0.5], 3.0, [4.0, 4.0, 1.0]
    initial = LinearGaussianController(np.zeros((3, 2, 4)), np.zeros((3, 2)), chol)

    class Some:
        """An agent whose first actuator alone has limits."""

        nu, control_range = 2, (np.array([-1.0, -np.inf]), np.array([5.0, 2.0]))

    np.testing.assert_allclose(action_scale(Some(), initial), [3.0, UNLIMITED * 5.0])

    class Silent:
        nu = 2

    np.testing.assert_allclose(action_scale(Silent(), initial), [UNLIMITED * 2.0, UNLIMITED * 5.0])
    assert agent.control_range[1][0] == np.inf
    assert np.isnan(exploration_std(initial, None))


def test_generous_limits_do_not_make_a_run_noisier_than_its_first_controller():
    agent = replace(AGENT, force_limit=1e4).build()
    K, k = np.zeros((3, 2, 4)), np.zeros((3, 2))
    initial = LinearGaussianController(K, k, np.tile(np.diag([1.5, 0.2]), (3, 1, 1)))
    scale = action_scale(agent, initial)
    np.testing.assert_allclose(ExplorationConfig().std_floor(scale), [1.5, 0.2])


@pytest.mark.parametrize("floor", [-0.1, 1.0, np.nan, True, "5 %"])
def test_floors_are_checked(floor):
    with pytest.raises(
        ConfigError, match=r"ExplorationConfig.floor must be a number of at least 0 and below 1"
    ):
        ExplorationConfig(floor=floor)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "iterations"), [("arm_reach", 150), ("peg_insertion", 60)])
def test_long_runs_do_not_get_worse(name, iterations):
    """The last ten iterations are as good as the best one."""
    rows = [report.row for report in gps.run(gps.load(name), seed=7, iterations=iterations)]
    distance = np.array([row["policy_distance_mean"] for row in rows])
    success = np.array([row["policy_success"] for row in rows])
    assert (success[-10:] == 1.0).all()
    best = distance[np.argmin([row["policy_cost_mean"] for row in rows])]
    assert (distance[-10:] <= np.maximum(1.5 * best, best + 1e-3)).all()
