"""Reaching, posts in the way, the blind peg: what the agents are, and that a short run learns."""

from dataclasses import replace

import numpy as np
import pytest

import gps
from gps.agents.presets import (
    door,
    gripper_pusher,
    obstacle_nav,
    peg_insertion,
    peg_insertion_blind,
    reacher,
)
from gps.pipeline.sampling import agent_of, evaluate_condition
from gps.types import LinearGaussianController

TIP = "sensor:target_to_tip"


def still(agent, action=0.0):
    """A controller that gives the same action at every step."""
    T, nu, nx = agent.T, agent.nu, agent.layout.size
    k = np.tile(np.broadcast_to(action, nu), (T, 1))
    return LinearGaussianController(np.zeros((T, nu, nx)), k, np.tile(np.eye(nu), (T, 1, 1)))


def rolled(agent, condition, action=0.0, *, test=False):
    noise, start = np.zeros((1, agent.T, agent.nu)), np.zeros((1, agent.n_start))
    return agent.rollout(still(agent, action), condition, noise, start, test=test)


def targets(conditions):
    return np.array([c.body_offsets[0][1][:2] for c in conditions])


@pytest.mark.parametrize("make", [reacher, obstacle_nav, peg_insertion_blind, gripper_pusher, door])
def test_test_conditions_are_drawn_by_their_seed(make):
    few, many = make(n_test=3), make(n_test=7)
    assert len(many.test_conditions) == 7
    assert many.test_conditions[:3] == few.test_conditions
    assert make(n_test=3) == few
    other = make(n_test=3, test_seed=1).test_conditions
    assert not set(other) & set(few.test_conditions)
    assert not set(many.test_conditions) & set(many.conditions)


def test_reaching_targets_lie_where_they_are_said_to():
    config = reacher(n_test=2000)
    trained, drawn = targets(config.conditions), targets(config.test_conditions)
    radius = np.hypot(*drawn.T)
    assert radius.min() >= 0.08
    assert radius.max() <= 0.18
    assert np.all(drawn[:, 0] >= 0)
    # uniform in area: as many on either side of the radius that halves it, and of the middle line
    for share in (np.mean(radius**2 < (0.08**2 + 0.18**2) / 2), np.mean(drawn[:, 1] > 0)):
        assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(2000)
    np.testing.assert_allclose(np.hypot(*trained.T), np.repeat([0.08, 0.18], 4))


def test_the_arm_is_shown_the_way_to_its_own_target():
    config = reacher(n_test=2)
    agent = agent_of(config)
    for m, test in ((0, False), (5, False), (1, True)):
        data = rolled(agent, m, (0.3, -0.2), test=test)
        q = data.entry("joint_pos")[0]
        assert np.ptp(q, axis=0).min() > 0.3  # it moves
        # forward kinematics, written out: two links of 0.1 m
        bend = q.sum(axis=1)
        tip = 0.1 * np.stack(
            (np.cos(q[:, 0]) + np.cos(bend), np.sin(q[:, 0]) + np.sin(bend)), axis=-1
        )
        target = targets(config.test_conditions if test else config.conditions)[m]
        np.testing.assert_allclose(data.entry(TIP)[0, :, :2], tip - target, atol=1e-12)
        np.testing.assert_array_equal(data.entry(TIP)[0, :, 2], 0.0)
        view = data.obs[0, :, agent.obs_layout.slice(TIP)]
        np.testing.assert_array_equal(view, data.entry(TIP)[0])  # the policy sees it too


def test_the_posts_of_the_model_are_those_of_cost_and_measure():
    experiment = gps.load("obstacle_nav")
    model = agent_of(experiment.agent).model_of(0)
    puck = model.geom("puck").size[0]
    posts = [model.geom(n) for n in ("post_left", "post_high", "post_low")]
    in_model = [(*p.pos[:2], p.size[0] + puck) for p in posts]
    np.testing.assert_allclose(experiment.measure.avoid, in_model)
    place = model.site("goal").pos[:2]
    np.testing.assert_allclose(experiment.measure.target, place)
    # the cost of the posts is felt at their border, in each one's direction, and not at the goal
    hill = experiment.cost.terms[-1]
    data = rolled(agent_of(experiment.agent), 0)
    X = np.zeros((1, 80, 4))
    for i, (x, y, reach) in enumerate(in_model):
        X[0, i, :2] = x - reach, y
    X[0, 3, :2] = place
    terms = hill.cost.evaluate(replace(data, X=X))
    assert np.all(hill.weight * terms.l[0, :3] > 0.5)
    assert np.all(terms.l_x[0, :3, 0] > 0)
    assert hill.weight * terms.l[0, 3] < 1e-3


def test_posts_stop_the_puck_and_the_measure_sees_the_touch():
    """Pushed straight at the first post, it stays outside; pushed past it, it meets none."""
    experiment = gps.load("obstacle_nav")
    config = replace(experiment.agent, conditions=(gps.agents.Condition(qpos=(-1.0, 0.0)),))
    agent = config.build()
    x, _, reach = experiment.measure.avoid[0]
    ahead = rolled(agent, 0, (2.0, 0.0))
    assert ahead.X[0, :, 0].max() == pytest.approx(x - reach, abs=0.01)
    free = replace(experiment.measure, target=tuple(ahead.X[0, -1, :2]))
    assert not free.evaluate(ahead)[1][0]
    assert replace(free, avoid=()).evaluate(ahead)[1][0]
    past = rolled(agent, 0, (0.0, 1.0))
    free = replace(experiment.measure, target=tuple(past.X[0, -1, :2]))
    assert free.evaluate(past)[1][0]


def test_the_blind_policy_cannot_know_where_the_base_stands():
    agent, seeing = agent_of(peg_insertion_blind()), agent_of(peg_insertion())
    assert agent.obs_layout.names == ("joint_pos", "joint_vel")
    assert agent.layout.names == seeing.layout.names
    first, last = (rolled(agent, m) for m in (0, 3))
    np.testing.assert_array_equal(first.obs[0, 0], last.obs[0, 0])
    shift = last.entry("end_points")[0, 0] - first.entry("end_points")[0, 0]
    np.testing.assert_allclose(shift, np.tile((0.016, 0.016, 0.0), 2), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "trained", "iterations", "seed", "nearer"),
    [
        ("reacher", (0, 3, 4, 7), 5, 3, 0.4),
        ("obstacle_nav", (0, 5), 6, 1, 0.1),
        ("peg_insertion_blind", (0, 3), 4, 1, 0.2),
    ],
)
def test_a_short_run_learns(name, trained, iterations, seed, nearer):
    """Fewer starts than the experiment has: cost and distance of the policy fall on them, and for
    targets and places of the base, which are drawn between them, on unseen ones as well."""
    experiment = gps.load(name)
    config = experiment.agent
    few = replace(
        config,
        conditions=tuple(config.conditions[m] for m in trained),
        test_conditions=config.test_conditions[:6],
    )
    reports = list(gps.run(replace(experiment, agent=few), seed=seed, iterations=iterations))
    first, last = reports[0].row, reports[-1].row
    assert last["policy_cost_mean"] < first["policy_cost_mean"]
    assert last["policy_distance_mean"] < nearer * first["policy_distance_mean"]
    if name == "obstacle_nav":  # starts between the outer ones have the post before them
        assert last["policy_success"] == 1.0
        return
    before, after = (
        [
            evaluate_condition(
                few, experiment.cost, experiment.measure, r.state.policy.policy, m, 1, 0, test=True
            ).distance[0]
            for m in range(6)
        ]
        for r in (reports[0], reports[-1])
    )
    assert np.mean(after) < nearer * np.mean(before)
