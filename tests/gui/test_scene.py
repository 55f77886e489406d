"""Geometry of the scene, playback, and what is sent to viser."""

from dataclasses import replace
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

import gps
from gps.agents import (
    Condition,
    GymnasiumConfig,
    MujocoConfig,
    PointMassConfig,
    RealTimeConfig,
    cartpole,
    peg_insertion,
)
from gps.costs import StateCost, SumCost, WaypointCost, WeightedCost
from gps.errors import GPSError, ShapeError
from gps.gui.geometry import (
    Ball,
    agent_geometry,
    ellipsoids,
    entry_points,
    joint_targets_of,
    marginal_ellipsoids,
    mean_path,
    sample_paths,
    targets_of,
)
from gps.gui.playback import Player
from gps.types import Layout, LinearGaussianController


def still(agent):
    T, nu, nx = agent.T, agent.nu, agent.layout.size
    chol = np.tile(0.3 * np.eye(nu), (T, 1, 1))
    return LinearGaussianController(K=np.zeros((T, nu, nx)), k=np.zeros((T, nu)), chol=chol)


def rolled(agent, condition=0, N=2, *, test=False, seed=0):
    noise = np.random.default_rng(seed).normal(size=(N, agent.T, agent.nu))
    return agent.rollout(still(agent), condition, noise, test=test)


@pytest.fixture(scope="module")
def peg():
    return replace(peg_insertion(n_test=2), T=8).build()


# --- visual models --------------------------------------------------------------------------------


@pytest.mark.parametrize(("condition", "test"), [(0, False), (3, False), (1, True)])
def test_a_visual_model_has_the_end_points_of_the_rollout(peg, condition, test):
    rollouts = rolled(peg, condition, test=test)
    visual = peg.visual_model(condition, test=test)
    data = visual.data()
    sites = [visual.model.site(name).id for name in ("peg_tip", "peg_top")]
    for t in (0, 5):
        visual.set_state(data, rollouts.X[1, t])
        seen = data.site_xpos[sites].ravel()
        np.testing.assert_allclose(seen, rollouts.entry("end_points")[1, t], atol=1e-12)


def test_a_visual_model_has_the_geoms_that_render_draws(peg, monkeypatch):
    drawn = {}

    def render_states(model, qpos, **_):
        drawn.update(model=model, qpos=qpos)

    monkeypatch.setattr("gps.agents.mujoco.render_states", render_states)
    rollouts = rolled(peg, 2)
    peg.render(rollouts, 1)
    other = mujoco.MjData(drawn["model"])
    other.qpos[:] = drawn["qpos"][4]
    mujoco.mj_forward(drawn["model"], other)
    visual = peg.visual_model(2)
    data = visual.data()
    visual.set_state(data, rollouts.X[1, 4])
    np.testing.assert_allclose(data.geom_xpos, other.geom_xpos, atol=1e-12)
    np.testing.assert_allclose(data.geom_xmat, other.geom_xmat, atol=1e-12)


BALL = """<mujoco><worldbody>
  <body name="stand" mocap="true" pos="0 0 1"><geom size=".1"/></body>
  <body name="b" pos="0 0 2"><joint name="j" type="ball"/>
    <geom size=".02" fromto="0 0 0 0 0 .3" type="capsule"/><site name="s" pos="0 .1 .3"/></body>
</worldbody><actuator><motor joint="j" gear="1 0 0"/></actuator></mujoco>"""


def test_quaternions_and_mocap_bodies_are_where_they_are():
    config = MujocoConfig(
        model=BALL,
        T=6,
        sites=("s",),
        state=("joint_pos", "joint_vel", "end_points"),
        conditions=(Condition(), Condition(mocap=(("stand", (1.0, 2.0, 3.0)),))),
    )
    agent = config.build()
    rollouts = rolled(agent, 1)
    visual = agent.visual_model(1)
    data = visual.data()
    visual.set_state(data, rollouts.X[0, 5])
    np.testing.assert_allclose(data.site_xpos[0], rollouts.entry("end_points")[0, 5], atol=1e-9)
    np.testing.assert_allclose(data.xpos[visual.model.body("stand").id], (1, 2, 3))


def test_a_visual_model_is_a_copy_and_checks_the_state(peg):
    visual = peg.visual_model(0)
    visual.model.geom_rgba[:] = 0
    assert peg.visual_model(0).model.geom_rgba.any()
    with pytest.raises(ShapeError, match="26"):
        visual.set_state(visual.data(), np.zeros(3))


def test_a_gymnasium_agent_is_shown():
    pytest.importorskip("gymnasium")
    agent = GymnasiumConfig(env="InvertedPendulum-v5", T=4).build()
    rollouts = rolled(agent)
    geometry = agent_geometry(agent, 0)
    data = geometry.visual.data()
    geometry.visual.set_state(data, rollouts.X[0, 3])
    np.testing.assert_allclose(data.qpos, rollouts.entry("joint_pos")[0, 3])
    assert geometry.points is not None


def test_a_wrapped_agent_is_the_one_inside():
    geometry = agent_geometry(RealTimeConfig(agent=peg_insertion()).build(), 1)
    assert geometry.visual.model.nbody == peg_insertion().build().model.nbody
    assert geometry.note == ""


def test_agents_without_models_show_points_or_say_why_not():
    geometry = agent_geometry(PointMassConfig(starts=((1.0, 2.0),)).build(), 0)
    assert geometry.visual is None
    np.testing.assert_array_equal(geometry.points.of(geometry.start), [[1, 2, 0]])
    assert "no model" in geometry.note
    blind = replace(cartpole(), state=("joint_vel",)).build()
    shown = agent_geometry(blind, 0)
    assert (shown.visual, shown.points) == (None, None)
    assert "joint_pos" in shown.note
    with pytest.raises(GPSError, match="joint_pos"):
        blind.visual_model(0)
    nothing = SimpleNamespace(layout=Layout((("pressure", 2),)))
    assert "nothing to show" in agent_geometry(nothing, 0).note


# --- points, paths, ellipsoids --------------------------------------------------------------------


def test_points_are_entries_of_the_state(peg):
    rollouts = rolled(peg)
    points = entry_points(peg.layout)
    assert points.of(rollouts.X).shape == (2, 8, 2, 3)
    paths = sample_paths(points, rollouts.X)
    np.testing.assert_array_equal(paths[3], rollouts.entry("end_points")[1, :, 3:])
    mean = np.concatenate((rollouts.X[0], rollouts.U[0]), axis=1)
    np.testing.assert_array_equal(
        mean_path(points, mean)[1], rollouts.entry("end_points")[0, :, 3:]
    )


@pytest.mark.parametrize("build", [cartpole, lambda: replace(peg_insertion(), state=BODY)])
def test_the_jacobian_of_points_on_the_body_is_the_simulators(build):
    agent = build().build()
    geometry = agent_geometry(agent, 0)
    x = np.array(geometry.start)
    x[agent.layout.slice("joint_pos")] += 0.1
    J = geometry.points.jacobian(x).reshape(-1, 3, agent.layout.size)
    data, model = geometry.visual.data(), geometry.visual.model
    geometry.visual.set_state(data, x)
    mujoco.mj_forward(model, data)
    exact = np.zeros((3, model.nv))
    for p, label in enumerate(geometry.points.labels):
        site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, label)
        at = geometry.points.of(x)[p]
        body = model.site_bodyid[site] if site >= 0 else model.body(label).id
        mujoco.mj_jac(model, data, exact, None, at, body)
        np.testing.assert_allclose(J[p][:, agent.layout.slice("joint_pos")], exact, atol=1e-7)


BODY = ("joint_pos", "joint_vel")


def test_ellipsoids_have_the_axes_of_the_covariance():
    rng = np.random.default_rng(1)
    A = rng.normal(size=(60, 3, 3))
    covs, centres = A @ A.transpose(0, 2, 1) + 0.1 * np.eye(3), rng.normal(size=(60, 3))
    found = ellipsoids(centres, covs, sigmas=2.0)
    np.testing.assert_array_equal(found.centres, centres)
    for radii, wxyz, cov in zip(found.radii, found.wxyz, covs, strict=True):
        R = np.empty(9)
        mujoco.mju_quat2Mat(R, wxyz)
        R = R.reshape(3, 3)
        np.testing.assert_allclose(R @ np.diag((radii / 2) ** 2) @ R.T, cov, atol=1e-9)


def test_flat_ellipsoids_are_thin_and_impossible_ones_left_out():
    disc, needle = np.diag([1.0, 4.0, 0.0]), np.outer([1, 1, 0], [1, 1, 0]) * 0.5
    nearly = np.diag([1.0, 1.0, -1e-18])
    bad = np.full((3, 3), np.nan), np.zeros((3, 3))
    covs = np.stack([disc, bad[0], needle, bad[1], nearly])
    found = ellipsoids(np.arange(15.0).reshape(5, 3), covs)
    np.testing.assert_array_equal(found.centres[:, 0], [0, 6, 12])
    np.testing.assert_allclose(found.radii[0], [0.004, 2, 4])
    assert (found.radii > 0).all()
    assert np.isfinite(found.wxyz).all()
    assert len(ellipsoids(np.zeros((0, 3)), np.zeros((0, 3, 3))).radii) == 0
    with pytest.raises(ShapeError, match=r"\(n, 3, 3\)"):
        ellipsoids(np.zeros((2, 3)), np.zeros((3, 3)))


def test_marginals_give_the_spread_of_the_points(peg):
    T, nx, nz = 5, peg.layout.size, peg.layout.size + peg.nu
    rng = np.random.default_rng(2)
    A = rng.normal(size=(T, nz, nz))
    mean, cov = rng.normal(size=(T, nz)), A @ A.transpose(0, 2, 1)
    points, where = entry_points(peg.layout), peg.layout.slice("end_points")
    found = marginal_ellipsoids(points, mean, cov, [1, 4, 99], sigmas=1.0)
    assert found.centres.shape == (4, 3)
    np.testing.assert_array_equal(found.centres[3], mean[4, where][3:])
    own = ellipsoids(mean[4, where][None, 3:], cov[4, where, where][None, 3:, 3:], 1.0)
    np.testing.assert_allclose(found.radii[3], own.radii[0])
    mean[1, 0] = np.nan
    assert len(marginal_ellipsoids(points, mean, cov, [1, 4]).centres) == 2
    assert len(marginal_ellipsoids(points, mean[:, :nx], cov[:, :nx, :nx], [4]).centres) == 2


def test_targets_are_found_in_sums():
    experiment = gps.load("peg_insertion")
    layout = experiment.agent.build().layout
    balls = targets_of((experiment.cost, experiment.measure), layout)
    assert balls == (Ball((0.6, 0.0, -0.55)), Ball((0.6, 0.0, -0.25)))
    mass = gps.load("point_mass")
    assert targets_of((mass.cost,), mass.agent.build().layout) == (Ball((0.0, 0.0, 0.0)),)
    assert targets_of((experiment.cost,), Layout((("joint_vel", 7),))) == ()
    avoided = replace(mass.measure, avoid=((1.0, 2.0, 0.3),))
    assert Ball((1.0, 2.0, 0.0), 0.3) in targets_of((avoided,), mass.agent.build().layout)
    assert targets_of((None, object()), layout) == ()


def test_waypoints_are_targets_unless_they_are_of_something_else():
    layout = Layout((("position", 2), ("velocity", 2)))
    rows = ((1.0, 2.0), (3.0, 4.0))
    path = WaypointCost(entry="position", steps=(2, 5), targets=rows, l2=1.0)
    cost = SumCost(terms=(WeightedCost(cost=path),))
    assert targets_of((cost,), layout) == (Ball((1.0, 2.0, 0.0)), Ball((3.0, 4.0, 0.0)))
    turned = replace(path, matrices=(((0.0, 1.0), (1.0, 0.0)),) * 2)  # no positions any more
    assert targets_of((turned, replace(path, entry="velocity")), layout) == ()
    assert targets_of((replace(path, entry=None, targets=((0.0,) * 6,) * 2),), layout) == ()


def test_joint_targets_are_where_the_model_would_be():
    def found(name):
        e = gps.load(name)
        agent = e.agent.build()
        return joint_targets_of((e.cost, e.measure), agent_geometry(agent, 0), agent.layout)

    assert found("acrobot") == (Ball((0.0, 0.0, 1.0)),)  # both links upright, 0.5 m each
    assert found("cartpole_swingup") == (Ball((0.0, 0.0, 0.6)),)
    assert found("point_mass") == ()  # no model, and no joints
    agent = gps.load("acrobot").agent.build()
    geometry, whole = agent_geometry(agent, 0), StateCost(entry="joint_pos", target=0.0, l2=1.0)
    assert len(joint_targets_of((whole,), geometry, agent.layout)) == 1
    half = replace(whole, weights=(1.0, 0.0))  # the second joint is anywhere
    assert joint_targets_of((half,), geometry, agent.layout) == ()


# --- playback -------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_the_player_follows_the_clock():
    clock = Clock()
    player = Player(10, 0.1, clock=clock)
    clock.now += 5
    assert (player.step, player.playing) == (0, False)
    player.play()
    clock.now += 0.25
    assert player.step == 2
    player.speed = 2.0
    clock.now += 0.1
    assert player.step == 4
    player.pause()
    clock.now += 7
    assert player.step == 4
    player.play()
    player.seek(8)
    player.speed = 1.0
    clock.now += 0.35
    assert player.step == 1  # 8 + 3.5 steps, round the end
    assert player.playing


def test_the_player_stops_at_the_end_without_a_loop():
    clock = Clock()
    player = Player(10, 0.1, clock=clock)
    player.loop = False
    player.play()
    clock.now += 0.95
    assert (player.step, player.playing) == (9, True)
    clock.now += 3
    assert (player.step, player.playing) == (9, False)
    player.play()
    assert (player.step, player.playing) == (0, True)
    player.seek(99)
    assert player.step == 9
    player.load(4, 0.1)
    assert player.step == 3
    player.seek(-1)
    assert player.step == 0
    player.speed = 0.0
    clock.now += 50
    assert player.step == 0


# --- what is sent to viser ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("viser")
    pytest.importorskip("mjviser")
    from gps.gui.server import SecureServer

    server = SecureServer(port=0)
    yield server
    server.stop()


@pytest.fixture
def view(server):
    from gps.gui.scene import SceneView

    view = SceneView(server)
    yield view
    view.clear()


def nodes(server):
    return {name for name in server.scene._handle_from_node_name if name.startswith("/slot")}


def poses(server, name):
    handles = server.scene._handle_from_node_name
    return handles[name].batched_positions[0]


def test_two_conditions_stand_side_by_side(server, view, peg):
    for m in (0, 1):
        assert view.show_agent(agent_geometry(peg, m), m, offset=1.5 * m) == ""
    names = nodes(server)
    assert {n.replace("/slot_0", "") for n in names if "/slot_0" in n} == {
        n.replace("/slot_1", "") for n in names if "/slot_1" in n
    }
    assert server.scene._handle_from_node_name["/slot_1"].position[1] == 1.5
    rollouts = rolled(peg, 0)
    view.set_state(rollouts.X[0, 7], 0)
    visual = peg.visual_model(0)
    data = visual.data()
    (name,) = [n for n in names if n.startswith("/slot_0/bodies/peg/group")]
    at = {}
    for t in (0, 7):
        visual.set_state(data, rollouts.X[0, t])
        at[t] = data.xpos[visual.model.body("peg").id].copy()
    np.testing.assert_allclose(poses(server, name), at[7], atol=1e-6)
    other = poses(server, name.replace("slot_0", "slot_1"))
    assert np.abs(other - at[7]).max() > 0.01  # of its own condition, at its start
    view.clear(0)
    assert not any("/slot_0" in n for n in nodes(server))
    assert any("/slot_1" in n for n in nodes(server))


def test_what_has_not_changed_is_not_sent_again(server, view, monkeypatch):
    agent = PointMassConfig(starts=((1.0, 2.0),)).build()
    geometry = agent_geometry(agent, 0)
    view.show_agent(geometry)
    paths = np.random.default_rng(0).normal(size=(3, 10, 3))
    paths[0, 4] = np.nan
    some = ellipsoids(np.zeros((2, 3)), np.tile(np.eye(3), (2, 1, 1)))
    balls = (Ball((0.0, 0.0, 0.0)), Ball((1.0, 0.0, 0.0), 0.2))

    def show():
        view.show_agent(geometry)
        view.show_paths(paths.copy())
        view.show_ellipsoids(some)
        view.show_targets(balls)

    show()
    before = nodes(server)
    want = {"paths", "ellipsoids", "targets/0", "targets/1", "point_0"}
    assert {f"/slot_0/{n}" for n in want} <= before
    assert server.scene._handle_from_node_name["/slot_0/paths"].points.shape == (25, 2, 3)
    sent = []
    queue = server._websock_server.queue_message
    monkeypatch.setattr(
        server._websock_server, "queue_message", lambda m: (sent.append(type(m)), queue(m))
    )
    show()
    assert {t.__name__ for t in sent} <= {"SetPositionMessage"}
    view.set_state(np.array([3.0, 4.0, 0.0, 0.0]))
    sphere = server.scene._handle_from_node_name["/slot_0/point_0"]
    np.testing.assert_allclose(sphere.position, (3, 4, 0))
    view.hide("paths")
    assert "/slot_0/paths" not in nodes(server)
    view.show_paths(np.zeros((0, 5, 3)))
    assert "/slot_0/paths" not in nodes(server)
    with pytest.raises(ShapeError, match="paths"):
        view.show_paths(np.zeros((5, 3)))
    view.aim_cameras()
    assert np.isfinite(server.initial_camera.position).all()
