"""Experiments in which contacts do the work: they learn, and their models are what they claim."""

from dataclasses import replace

import mujoco
import numpy as np
import pytest

import gps
from gps.data import model_path
from gps.hyperparams import door, gripper_pusher, half_cheetah


def small(name, condition, iterations, samples):
    """The experiment with one condition and a short run."""
    experiment = gps.load(name)
    config = replace(experiment.agent, conditions=(experiment.agent.conditions[condition],))
    return replace(experiment, agent=config, samples=samples, iterations=iterations)


def learn(experiment):
    """Joint positions (T, nv) of noise-free rollouts: the first controller's, the last one's."""
    *_, last = gps.run(experiment, seed=0)
    agent = experiment.agent.build()
    first = experiment.initial.controller(
        agent.start_state(0), agent.layout, agent.nu, agent.T, agent.dt
    )
    noise = np.zeros((1, agent.T, agent.nu))
    return [
        agent.rollout(controller, 0, noise).entry("joint_pos")[0]
        for controller in (first, last.state.conditions[0].controller)
    ], last


def test_the_gripper_learns_to_push_the_block():
    (before, after), _ = learn(small("gripper_pusher", 0, iterations=8, samples=10))
    goal = np.array(gripper_pusher.GOAL[:2]) - gripper_pusher.BLOCK
    off = [np.linalg.norm(q[-1, 5:7] - goal) for q in (before, after)]
    assert off[0] > 0.2
    assert off[1] < 0.5 * off[0]


def test_the_hook_learns_to_open_the_door():
    (before, after), _ = learn(small("door", 0, iterations=6, samples=10))
    assert np.abs(before[:, 3]).max() < 0.01  # by itself the door stays closed
    assert after[-1, 3] > 0.5 * door.OPEN


def test_the_cheetah_learns_to_run():
    experiment = small("half_cheetah", 0, iterations=12, samples=12)
    (before, after), last = learn(experiment)
    assert abs(before[-1, 0]) < 0.1
    assert after[-1, 0] > 2.0
    assert np.abs(after[:, 2]).max() < 0.6  # on its feet
    # the column of the run that README's distance comes from
    assert last.row["local_distance_mean"] == pytest.approx(half_cheetah.MARK - after[-1, 0])


@pytest.mark.parametrize("name", ["gripper_pusher", "door"])
def test_the_policys_agent_is_that_of_the_local_controllers(name):
    local, policy = gps.load(name), gps.load(f"{name}_policy")
    assert replace(policy.agent, test_conditions=()) == local.agent
    assert (policy.measure, policy.initial) == (local.measure, local.initial)
    assert len(policy.cost.terms) == len(local.cost.terms)
    corners, drawn = (
        np.array([c.qpos_offset[5:7] if c.qpos_offset else c.body_offsets[0][1][:2] for c in some])
        for some in (policy.agent.conditions, policy.agent.test_conditions)
    )
    assert np.all(np.abs(drawn) <= corners.max(axis=0))
    assert np.all(np.ptp(drawn, axis=0) > corners.max(axis=0))


def test_one_policy_learns_to_push_blocks_that_it_was_not_trained_from():
    experiment = replace(gps.load("gripper_pusher_policy"), samples=10, iterations=4)
    *_, last = gps.run(experiment, seed=0)
    agent = experiment.agent.build()
    noise, goal = np.zeros((1, agent.T, agent.nu)), np.array(gripper_pusher.GOAL[:2])
    off = []
    for m in range(5):
        end = agent.rollout(last.state.policy.policy, m, noise, test=True).entry("end_points")
        off.append(np.linalg.norm(end[0, -1, 3:5] - goal))
    assert np.mean(off) < 0.06  # from 0.18 m


@pytest.mark.parametrize("name", ["gripper_pusher", "door", "half_cheetah"])
def test_without_motors_nothing_goes_anywhere(name):
    model = mujoco.MjModel.from_xml_path(str(model_path(name)))
    data = mujoco.MjData(model)
    start = gps.load(name).agent.qpos or data.qpos.copy()
    data.qpos[:] = start
    for _ in range(round(5.0 / model.opt.timestep)):
        mujoco.mj_step(model, data)
    assert np.abs(data.qpos - start).max() < 0.2  # the cheetah settles into its springs


def test_the_cheetah_stands_on_both_feet():
    model = mujoco.MjModel.from_xml_path(str(model_path("half_cheetah")))
    data = mujoco.MjData(model)
    force, lift = np.zeros(6), {}
    for _ in range(300):
        mujoco.mj_step(model, data)
    for i in range(data.ncon):
        mujoco.mj_contactForce(model, data, i, force)
        names = {model.geom(int(g)).name for g in data.contact[i].geom}
        lift[frozenset(names - {"ground"})] = force[0]
    assert set(lift) == {frozenset({"hind_foot"}), frozenset({"fore_foot"})}
    weight = 9.81 * model.body_mass.sum()
    assert sum(lift.values()) == pytest.approx(weight, rel=0.05)


def test_the_open_doors_handle_is_where_the_measure_looks_for_it():
    model = mujoco.MjModel.from_xml_path(str(model_path("door")))
    data = mujoco.MjData(model)
    data.joint("hinge").qpos[:] = door.OPEN
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(data.site("handle").xpos, door.HANDLE, atol=1e-12)


def test_the_goal_is_where_the_blocks_cost_leads():
    model = mujoco.MjModel.from_xml_path(str(model_path("gripper_pusher")))
    data = mujoco.MjData(model)
    waypoint = gripper_pusher.cost.terms[1].cost
    data.qpos[5:7] = waypoint.targets[-1]
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(data.site("block").xpos, gripper_pusher.GOAL, atol=1e-12)
    np.testing.assert_allclose(data.body("goal").xpos[:2], gripper_pusher.GOAL[:2], atol=1e-12)
