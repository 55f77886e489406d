"""MuJoCo agents: in step with the simulator, exact Jacobians, failures, the peg fits its hole."""

from __future__ import annotations

import itertools
from dataclasses import replace

import mujoco
import numpy as np
import pytest
from scipy.optimize import least_squares

from gps.agents import (
    Condition,
    acrobot,
    arm_reach,
    cartpole,
    peg_insertion,
    pendulum,
    random_conditions,
)
from gps.agents._run import warnings_to_log
from gps.agents.mujoco import MujocoConfig
from gps.control import models
from gps.data import model_names, model_path
from gps.errors import ConfigError, GPSError, SimulationError
from gps.rng import stream
from gps.types import LinearGaussianController

PEG = replace(peg_insertion(n_test=2), T=25)
SLIDES = """<mujoco>
  <option gravity="0 0 0"/>
  <worldbody>
    <body name="cart"><joint name="x" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/>
      <body name="pole" pos="0 0 0.1">
        <joint name="swing" axis="0.6 0.8 0"/><joint name="lift" type="slide" axis="0 0.6 0.8"/>
        <geom size="0.05" pos="0 0 0.5" mass="0.2"/><site name="end" pos="0.1 0 0.6"/>
        <body pos="0 0.1 0.3"><joint name="last" axis="0 1 0.3"/><geom size="0.05" mass="0.1"/>
          <site name="branch" pos="0.2 0 0.1"/></body>
      </body></body>
    <body name="other"><joint name="alone" axis="0 0 1"/><geom size="0.1" pos="1 0 0" mass="1"/>
      <site name="far" pos="1 0 0"/></body>
  </worldbody>
  <actuator>
    <motor joint="x"/><motor joint="swing"/><motor joint="last"/><motor joint="alone"/>
  </actuator>
</mujoco>"""


class Noise:
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def act(self, x, obs, t, noise):
        return self.scale * noise


@pytest.fixture
def slides(tmp_path) -> MujocoConfig:
    """Slide and hinge joints, a branch, and a second tree; motors without limits."""
    path = tmp_path / "slides.xml"
    path.write_text(SLIDES)
    state = ("end_points", "joint_vel", "joint_pos", "end_point_velocities")
    return MujocoConfig(model=str(path), T=15, sites=("branch", "end", "far"), state=state)


def run(config: MujocoConfig, N: int = 3, scale: float = 1.0, condition: int = 0):
    agent = config.build()
    noise = stream(1, "noise").normal(size=(N, agent.T, agent.nu))
    return agent, agent.rollout(Noise(scale), condition, noise)


def points(model, data, sites, q):
    data.qpos[:] = q
    mujoco.mj_kinematics(model, data)
    return np.concatenate([data.site(s).xpos for s in sites])


def velocities(model, data, sites, q, v):
    data.qpos[:], data.qvel[:] = q, v
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    J = np.zeros((3, model.nv))
    out = []
    for s in sites:
        mujoco.mj_jacSite(model, data, J, None, model.site(s).id)
        out.append(J @ v)
    return np.concatenate(out)


@pytest.fixture(params=["peg", "arm", "slides"])
def agent_config(request, slides):
    config = {"peg": PEG, "arm": replace(arm_reach(), T=20), "slides": slides}[request.param]
    return (*run(config, condition=len(config.conditions) - 1), config)


def test_end_points_are_in_step_with_the_joints(agent_config):
    agent, r, config = agent_config
    model = agent.model_of(r.condition)
    data = mujoco.MjData(model)
    for i, t in itertools.product(range(r.N), range(r.T)):
        q, v = r.entry("joint_pos")[i, t], r.entry("joint_vel")[i, t]
        here = points(model, data, config.sites, q)
        np.testing.assert_allclose(r.entry("end_points")[i, t], here, atol=1e-12)
        speed = velocities(model, data, config.sites, q, v)
        np.testing.assert_allclose(r.entry("end_point_velocities")[i, t], speed, atol=1e-10)
    moved = np.abs(np.diff(r.entry("end_points"), axis=1)).max()
    assert moved > 1e-3  # one step of lag would be seen


def test_jacobians_are_the_central_differences(agent_config):
    agent, r, config = agent_config
    model = agent.model_of(r.condition)
    data = mujoco.MjData(model)
    pos, vel, h = r.layout.slice("joint_pos"), r.layout.slice("joint_vel"), 1e-6
    for i, t in itertools.product(range(r.N), range(0, r.T, 6)):
        q, v = r.entry("joint_pos")[i, t], r.entry("joint_vel")[i, t]
        J = np.zeros((3 * len(config.sites), r.nx))
        V = np.zeros_like(J)
        for j, e in enumerate(h * np.eye(model.nv)):
            ahead, behind = (points(model, data, config.sites, q + s * e) for s in (1, -1))
            J[:, pos.start + j] = (ahead - behind) / (2 * h)
            a, b = (velocities(model, data, config.sites, q + s * e, v) for s in (1, -1))
            V[:, pos.start + j] = (a - b) / (2 * h)
            a, b = (velocities(model, data, config.sites, q, v + s * e) for s in (1, -1))
            V[:, vel.start + j] = (a - b) / (2 * h)
        np.testing.assert_allclose(r.jacobians["end_points"][i, t], J, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(
            r.jacobians["end_point_velocities"][i, t], V, rtol=1e-5, atol=1e-6
        )
    assert np.abs(r.jacobians["end_point_velocities"][:, -1, :, pos]).max() > 1e-4


def test_jacobians_need_the_joints_in_the_state():
    _, r = run(replace(PEG, state=("end_points", "joint_pos", "end_point_velocities")))
    assert set(r.jacobians) == {"end_points"}


def test_a_rollout_is_the_simulators_own(agent_config):
    """One MjData, stepped by mj_step under the recorded controls, gives the same bytes."""
    agent, r, _ = agent_config
    model = agent.model_of(r.condition)
    data = mujoco.MjData(model)
    for i in range(r.N):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = r.entry("joint_pos")[i, 0], r.entry("joint_vel")[i, 0]
        for t in range(r.T - 1):
            data.ctrl[:] = r.U[i, t]
            for _ in range(agent.substeps):
                mujoco.mj_step(model, data)
            assert data.qpos.tobytes() == r.entry("joint_pos")[i, t + 1].tobytes()
    assert data.time == pytest.approx(agent.dt * (r.T - 1))


def test_body_offsets_do_not_drift():
    agent = PEG.build()
    original = agent.model.body_pos.copy()
    noise = np.zeros((2, PEG.T, 7))
    for _ in range(3):
        for m, condition in enumerate(PEG.conditions):
            agent.rollout(Noise(), m, noise)
            ((_, offset),) = condition.body_offsets
            shift = agent.model_of(m).body_pos - original
            np.testing.assert_allclose(shift[agent.model.body("base").id], offset, atol=1e-15)
            assert np.count_nonzero(shift) == 2
    np.testing.assert_array_equal(agent.model.body_pos, original)
    tips = [agent.start_state(m)[agent.layout.slice("end_points")][:2] for m in range(4)]
    np.testing.assert_allclose(tips[3] - tips[0], (0.16, 0.16), atol=1e-12)


def test_random_conditions_stay_in_the_square_and_keep_their_order():
    few, many = (random_conditions(n, body="base", half_width=0.08, seed=3) for n in (5, 200))
    assert many[:5] == few
    xy = np.array([c.body_offsets[0][1] for c in many])
    assert np.abs(xy[:, :2]).max() <= 0.08
    assert (np.abs(xy[:, :2]).max(axis=0) > 0.07).all()
    assert not xy[:, 2].any()
    assert random_conditions(5, body="base", half_width=0.08, seed=4) != few


@pytest.mark.parametrize(
    ("condition", "match"),
    [
        (lambda: Condition(body_offsets=(("bse", (0.1, 0.0, 0.0)),)), "did you mean 'base'"),
        (lambda: Condition(body_offsets=(("base", (0.1, 0.0)),)), "body_offsets"),
        (lambda: Condition(qpos=(0.0,) * 7, qpos_offset=(0.0,) * 7), "qpos_offset"),
        (lambda: Condition(qpos_offset=(0.0,)), "must have 7 values"),
    ],
)
def test_condition_errors(condition, match):
    with pytest.raises(ConfigError, match=match):
        replace(PEG, conditions=(condition(),)).build()


@pytest.mark.parametrize("threads", [1, 2])
def test_simulator_warnings_name_the_sample(slides, threads, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("DEBUG", logger="gps.agents")
    handler = mujoco.get_mju_user_warning()  # dm_control has one of its own
    agent = slides.build(threads)
    noise = 0.01 * stream(1, "noise").normal(size=(4, agent.T, agent.nu))
    good = agent.rollout(Noise(), 0, noise)
    noise[1, 5] = 9e9
    with pytest.raises(SimulationError, match="MuJoCo warning: bad number in q") as caught:
        agent.rollout(Noise(), 0, noise)
    assert [(f.sample, f.t) for f in caught.value.failures] == [(1, 6)]
    noise[3, 9, 3] = 4e5  # too fast, without a warning
    with pytest.raises(SimulationError) as caught:
        agent.rollout(Noise(), 0, noise)
    assert [f.sample for f in caught.value.failures] == [1, 3]
    assert "left" in caught.value.failures[1].reason
    noise[[1, 3]] = 0.01 * stream(1, "noise").normal(size=(4, agent.T, agent.nu))[[1, 3]]
    assert agent.rollout(Noise(), 0, noise).X.tobytes() == good.X.tobytes()
    # MuJoCo's own habit is a line on stderr and a file MUJOCO_LOG.TXT where the user stands
    assert "QACC" in caplog.text
    assert capfd.readouterr().err == ""
    assert [f.name for f in tmp_path.iterdir()] == ["slides.xml"]
    assert mujoco.get_mju_user_warning() == handler


def test_threads_share_the_handler_of_warnings():
    """Whoever leaves first must not take it from the others, nor put theirs back for good."""
    inside = [warnings_to_log() for _ in range(2)]
    before = mujoco.get_mju_user_warning()
    inside[0].__enter__()
    inside[1].__enter__()
    inside[0].__exit__(None, None, None)
    assert mujoco.get_mju_user_warning() != before
    inside[1].__exit__(None, None, None)
    assert mujoco.get_mju_user_warning() == before


def test_a_start_beyond_the_limit_fails_at_once(slides):
    agent = replace(slides, start_qpos_std=1.0).build()
    start = np.zeros((3, agent.n_start))
    start[1, 0] = 1e9
    with pytest.raises(SimulationError) as caught:
        agent.rollout(Noise(), 0, np.zeros((3, agent.T, agent.nu)), start)
    assert [(f.sample, f.t) for f in caught.value.failures] == [(1, 0)]


def test_a_broken_model_is_named(tmp_path):
    path = tmp_path / "free.xml"
    path.write_text("<mujoco><worldbod/></mujoco>")
    with pytest.raises(ConfigError, match="MuJoCo cannot load"):
        MujocoConfig(model=str(path)).build()
    with pytest.raises(ConfigError, match="the MJCF text: MuJoCo cannot load"):
        MujocoConfig(model=path.read_text()).build()


@pytest.mark.parametrize("name", model_names())
def test_models_are_described_and_load(name):
    assert model_path(name).read_text().lstrip().startswith("<!--")
    model = mujoco.MjModel.from_xml_path(str(model_path(name)))
    assert (model.actuator_ctrllimited == 1).all()
    assert not model.geom_margin.any()  # MuJoCo adds the margins of two geoms


class Constant:
    def __init__(self, action: float) -> None:
        self.action = action

    def act(self, x, obs, t, noise):
        return np.full(noise.shape, self.action)


@pytest.mark.parametrize(
    ("config", "joint"),
    [(cartpole(), 1), (acrobot(), 0), (pendulum(), 0)],
    ids=lambda v: str(v)[:30],
)
def test_one_push_does_not_swing_it_up(config, joint):
    """Hanging is a rest, upright is one that does not last, and force alone does not lead there."""
    up = np.zeros(config.build().model.nv)
    up[joint] = np.pi
    still = replace(config, conditions=(Condition(qpos=tuple(up)),)).build()
    noise = np.zeros((1, config.T, 1))
    r = still.rollout(Constant(0.0), 0, noise)
    assert np.abs(r.entry("joint_pos")[0, 3] - up).max() < 1e-6
    r = still.rollout(Constant(0.1), 0, noise)
    assert np.abs(r.entry("joint_pos")[0, -1] - up).max() > 0.5
    agent = config.build()
    assert np.abs(agent.rollout(Constant(0.0), 0, noise).X).max() < 1e-9
    (high,) = agent.control_range[1]
    for force in np.linspace(-high, high, 9):
        angle = agent.rollout(Constant(force), 0, noise).entry("joint_pos")[0, :, joint]
        assert np.abs(angle).max() < 2.5


def test_the_cart_stays_on_its_rail():
    agent = cartpole().build()
    x = agent.rollout(Constant(8.0), 0, np.zeros((1, agent.T, 1))).entry("joint_pos")[0, :, 0]
    assert 0.9 < x.max() < 1.05


def test_a_known_model_fails_where_a_rollout_does(slides, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    agent = slides.build()
    T, nu, nx = agent.T, agent.nu, 2 * agent.model.nv
    X, U, K, inf = (np.zeros(s) for s in ((T, nx), (T, nu), (T, nu, nx), (T, nu)))
    inf += np.inf
    model = agent.known_model(0, models)
    for k, first in ((1e-3, None), (3.0, 5), (1e9, 1), (9e10, 1)):
        # the second is too fast after some steps, the third unstable, the fourth is no control
        states, _ = model.rollout(X, U, np.full((T, nu), k), K, np.array([1.0, 0.0]), -inf, inf)
        lost = np.isnan(states).any(axis=2)
        assert not lost[1].any()
        assert lost[0].any() == (first is not None)
        if first is not None:
            assert lost[0, lost[0].argmax() :].all()
            assert lost[0].argmax() == first or k == 3.0
            with pytest.raises(SimulationError) as caught:
                agent.rollout(Constant(k), 0, np.zeros((1, T, nu)))
            assert caught.value.failures[0].t == lost[0].argmax()
    model.jacobians(np.full((T, nx), 1e200), U)
    assert capfd.readouterr().err == ""
    assert [f.name for f in tmp_path.iterdir()] == ["slides.xml"]


def goal_of(model) -> tuple[mujoco.MjData, np.ndarray]:
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    return data, np.concatenate((data.site("hole_bottom").xpos, data.site("hole_top").xpos))


def solve(model, data, goal, reference):
    """Joint positions inside their ranges that bring tip and top of the peg to `goal`."""
    low, high = model.jnt_range.T

    def residual(q):
        return np.r_[points(model, data, PEG.sites, q) - goal, 1e-4 * (q - reference)]

    return least_squares(residual, reference, bounds=(low, high), xtol=1e-14, ftol=1e-14).x


CORNERS = (*itertools.product((-0.08, 0.08), repeat=2), (0.0, 0.0))


@pytest.mark.parametrize("corner", CORNERS, ids=str)
def test_the_peg_reaches_the_bottom_inside_the_joint_ranges(corner):
    config = replace(PEG, conditions=(Condition(body_offsets=(("base", (*corner, 0.0)),)),))
    model = config.build().model_of(0)
    data, goal = goal_of(model)
    q = solve(model, data, goal, np.array(config.qpos))
    assert np.abs(points(model, data, PEG.sites, q) - goal).max() < 1e-3
    low, high = model.jnt_range.T
    assert np.minimum(q - low, high - q).min() > 0.3
    J = np.zeros((6, model.nv))
    mujoco.mj_comPos(model, data)
    for k, site in enumerate(PEG.sites):
        mujoco.mj_jacSite(model, data, J[3 * k : 3 * k + 3], None, model.site(site).id)
    assert np.linalg.svd(J)[1][4] > 0.1  # five directions: the peg may turn about itself


class Waypoints:
    """Joint PD control along a table of joint positions."""

    Kp, Kd = np.array([60, 60, 30, 30, 8, 8, 4.0]), np.array([8, 8, 4, 4, 1, 1, 0.5])

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def act(self, x, obs, t, noise):
        return self.Kp * (self.table[t] - x[:, :7]) - self.Kd * x[:, 7:14] + noise


@pytest.mark.parametrize("condition", range(4))
def test_a_scripted_controller_inserts_the_peg(condition):
    agent = peg_insertion(n_test=0).build()
    model = agent.model_of(condition)
    data, goal = goal_of(model)
    up, start = np.array([0, 0, 0.14, 0, 0, 0.14]), np.array(agent.config.qpos)
    q = solve(model, data, goal, start)
    table = []
    for height in np.linspace(1, 0, 9):
        q = solve(model, data, goal + height * up, q)
        table.append(q)
    over = [start + s * (table[0] - start) for s in np.linspace(0, 1, 35)]
    table = np.array([*over, *np.repeat(table, 5, axis=0), *[table[-1]] * 20])
    noise = stream(0, "noise").normal(size=(3, agent.T, 7)) * [1, 1, 0.5, 0.5, 0.2, 0.2, 0.1]
    r = agent.rollout(Waypoints(table), condition, noise)
    # 4 mm of play, friction, noise, and a soft contact
    assert np.abs(r.entry("end_points")[:, -1] - goal).max() < 0.01
    assert (r.entry("end_points")[:, 0, 2] > goal[2] + 0.15).all()
    touched = 0
    for i, t in itertools.product(range(r.N), range(0, r.T, 2)):
        data.qpos[:] = r.entry("joint_pos")[i, t]
        mujoco.mj_forward(model, data)
        touched += data.ncon
        if data.ncon:
            assert data.contact.dist.min() > -0.003  # walls are not passed through
    assert touched > 5


def test_contacts_at_the_start_leave_nothing_to_the_next_rollout():
    model = PEG.build().model_of(0)
    data, goal = goal_of(model)
    below = goal - [0.0, 0.0, 5e-4, 0.0, 0.0, 5e-4]
    q = solve(model, data, below, np.array(PEG.qpos))
    agent = replace(PEG, qpos=tuple(q)).build()
    data.qpos[:] = q
    mujoco.mj_forward(model, data)
    assert data.ncon > 0  # the solver's warm start counts from the first step on
    noise = stream(1, "noise").normal(size=(3, agent.T, 7))
    first = agent.rollout(Noise(), 0, noise)
    assert first.X.tobytes() == agent.rollout(Noise(), 0, noise).X.tobytes()


def test_images_show_the_shifted_arm():
    agent = replace(PEG, T=10).build()
    noise = np.zeros((1, 10, 7))
    try:
        first, other = (
            agent.render(
                agent.rollout(Noise(), m, noise), width=64, height=48, camera="main", every=4
            )
            for m in (0, 3)
        )
    except GPSError as error:
        if "OpenGL" not in str(error):
            raise
        pytest.skip(str(error))
    assert first.shape == (3, 48, 64, 3)
    assert first.dtype == np.uint8
    assert first[0].std() > 5
    assert np.abs(first[0].astype(int) - other[0]).max() > 50
    np.testing.assert_array_equal(
        first,
        agent.render(agent.rollout(Noise(), 0, noise), width=64, height=48, camera="main", every=4),
    )
    with pytest.raises(ConfigError, match="did you mean 'main'"):
        agent.render(agent.rollout(Noise(), 0, noise), camera="mian")


def test_missing_opengl_is_said(monkeypatch):
    from gps.agents import rendering

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_loads", lambda *names: False)
    monkeypatch.setattr(rendering.platform, "system", lambda: "Linux")
    agent = replace(arm_reach(), T=3).build()
    r = agent.rollout(Noise(), 0, np.zeros((1, 3, 2)))
    with pytest.raises(GPSError, match="apt-get install libegl1 libosmesa6 libgl1-mesa-dri"):
        agent.render(r)


def test_warming_up_leaves_nothing_behind():
    agent_config = replace(arm_reach(), T=5)
    agent, fresh = agent_config.build(), agent_config.build()
    agent.warm_up()
    noise = np.ones((2, 5, agent.nu))
    controller = LinearGaussianController(
        K=np.zeros((5, agent.nu, agent.layout.size)),
        k=np.full((5, agent.nu), 0.1),
        chol=np.tile(np.eye(agent.nu), (5, 1, 1)),
    )
    X = [a.rollout(controller, 0, noise, None).X for a in (agent, fresh)]
    np.testing.assert_array_equal(*X)
