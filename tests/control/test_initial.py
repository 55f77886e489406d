import numpy as np
import pytest
from numpy.testing import assert_allclose

from gps.control import HoldConfig, OpenLoopConfig, PDConfig, hold_position, lqr, open_loop, pd
from gps.errors import ConfigError, ShapeError
from gps.types import Gaussian, Layout, LinearDynamics

LAYOUT = Layout((("site", 3), ("vel", 3), ("pos", 3)))
NAMES = {"position": "pos", "velocity": "vel"}


def test_hold_position_brings_a_pushed_joint_back():
    """The layout's order is free, and undriven joints are left alone."""
    dt, T, nu = 0.1, 80, 2
    config = HoldConfig(stiffness=5.0, gains=(2.0, 0.5), acceleration=(0.0, 0.0), joints=(2, 0))
    x0 = np.array([1, 2, 3, 0, 0, 0, 0.5, -0.5, 1.0])
    c = hold_position(x0, LAYOUT, nu, T, dt, config, **NAMES)
    F = np.zeros((9, 11))
    F[3:6, 3:6] = F[6:, 6:9] = np.eye(3)
    F[6:, 3:6] = dt * np.eye(3)
    for action, (joint, gain) in enumerate([(2, 2.0), (0, 0.5)]):
        F[3 + joint, 9 + action], F[6 + joint, 9 + action] = dt * gain, dt**2 * gain
    zeros = np.zeros((T - 1, 9))
    model = LinearDynamics(np.tile(F, (T - 1, 1, 1)), zeros, np.zeros((T - 1, 9, 9)))
    pushed = x0 + np.array([0, 0, 0, 0, 0, 0, 0.3, 0.3, 0.3])
    mean = lqr.forward(model, c, Gaussian(pushed, np.zeros((9, 9)))).mean
    assert_allclose(mean[-1, 6:9], [0.5, -0.2, 1.0], atol=0.02)
    assert_allclose(c.K[:, :, :3], 0, atol=0)
    assert_allclose(c.K[:, :, [4, 7]], 0, atol=1e-15)


def test_hold_position_counters_gravity():
    config = HoldConfig(stiffness=1e4, stiffness_vel=0.01, acceleration=(-9.81,))
    c = hold_position([0.2, 0.0], Layout((("joint_pos", 1), ("joint_vel", 1))), 1, 40, 0.05, config)
    assert_allclose(c.mean_action(np.tile([0.2, 0.0], (40, 1)))[:20, 0], 9.81, rtol=0.02)


def test_pd_with_fewer_actions_than_joints():
    x0 = np.arange(9.0)
    c = pd(x0, LAYOUT, 2, 7, PDConfig(position_gain=3.0, velocity_gain=0.5, variance=4.0), **NAMES)
    assert c.K.shape == (7, 2, 9)
    K = np.zeros((2, 9))
    K[[0, 1], [6, 7]], K[[0, 1], [3, 4]] = -3.0, -1.5
    assert_allclose(c.K, np.tile(K, (7, 1, 1)))
    assert_allclose(c.mean_action(np.tile(x0, (7, 1))), 0, atol=1e-12)
    assert_allclose(c.Sigma, np.tile(4.0 * np.eye(2), (7, 1, 1)))


def test_open_loop_is_the_same_noise_at_every_state(rng):
    config = OpenLoopConfig(variance=(4.0, 0.25), mean=(1.0, -2.0))
    c = config.controller(np.ones(5), Layout((("picture", 5),)), 2, 4, 0.1)
    n, S = 20_000, np.diag([4.0, 0.25])
    u = c.act(rng.normal(size=(n, 5)), np.zeros((n, 0)), 2, rng.normal(size=(n, 2)))
    sigma = np.sqrt((S**2 + np.outer(S.diagonal(), S.diagonal())) / (n - 1))
    assert np.all(np.abs(np.cov(u.T) - S) < 5 * sigma)
    assert np.all(np.abs(u.mean(axis=0) - [1.0, -2.0]) < 5 * np.sqrt(S.diagonal() / n))
    assert_allclose(c.K, np.zeros((4, 2, 5)))
    assert_allclose(open_loop(5, 2, 4).Sigma, np.tile(np.eye(2), (4, 1, 1)))
    assert hash(config) == hash(OpenLoopConfig(variance=[4.0, 0.25], mean=[1.0, -2.0]))


def test_wrong_open_loops_are_named():
    for variance in (0.0, (1.0, -1.0), float("nan"), "x"):
        with pytest.raises(ConfigError, match=r"OpenLoopConfig\.variance must be"):
            OpenLoopConfig(variance=variance)
    with pytest.raises(ConfigError, match=r"OpenLoopConfig\.mean must be a tuple"):
        OpenLoopConfig(mean=1.0)
    with pytest.raises(ConfigError, match="mean must have 2 values, one per action, got 3"):
        open_loop(5, 2, 4, OpenLoopConfig(mean=(0.0, 0.0, 0.0)))
    with pytest.raises(ConfigError, match="variance must have 2 values"):
        open_loop(5, 2, 4, OpenLoopConfig(variance=(1.0,)))
    with pytest.raises(ShapeError, match="nx, nu and T must be at least 1"):
        open_loop(5, 0, 4)
    with pytest.raises(ShapeError, match=r"unknown state entry 'joint_pos'.*OpenLoopConfig"):
        HoldConfig().controller(np.zeros(9), LAYOUT, 2, 5, 0.1)


def test_bad_arguments_are_named():
    x0 = np.zeros(9)
    with pytest.raises(ShapeError, match="x0 must have shape"):
        pd(np.zeros(8), LAYOUT, 2, 5, **NAMES)
    with pytest.raises(ShapeError, match="unknown state entry 'joint_pos'"):
        pd(x0, LAYOUT, 2, 5)
    with pytest.raises(ShapeError, match="too few for nu=4"):
        pd(x0, LAYOUT, 4, 5, **NAMES)
    with pytest.raises(ShapeError, match="pair up"):
        pd(np.zeros(3), Layout((("pos", 1), ("vel", 2))), 1, 5, **NAMES)
    with pytest.raises(ShapeError, match="T must be at least 1"):
        hold_position(x0, LAYOUT, 2, 0, 0.1, **NAMES)
    for dt in (0.0, np.nan, -1.0):
        with pytest.raises(ConfigError, match="dt must be"):
            hold_position(x0, LAYOUT, 2, 5, dt, **NAMES)
    with pytest.raises(ConfigError, match=r"HoldConfig\.gains must have 2 values"):
        hold_position(x0, LAYOUT, 2, 5, 0.1, HoldConfig(gains=(1.0,)), **NAMES)
    for joints in ((0,), (0, 0), (0, 3)):
        with pytest.raises(ConfigError, match=r"joints must name 2 different entries of 0\.\.2"):
            pd(x0, LAYOUT, 2, 5, PDConfig(joints=joints), **NAMES)


@pytest.mark.parametrize(
    "options",
    [{"variance": 0.0}, {"stiffness": -1.0}, {"final_weight": np.nan}, {"gains": (np.inf,)}],
)
def test_bad_configurations_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        HoldConfig(**options)


def test_configurations_are_hashable():
    assert hash(HoldConfig(gains=[1.0, 2.0])) == hash(HoldConfig(gains=(1.0, 2.0)))
    assert hash(PDConfig()) == hash(PDConfig())
    with pytest.raises(ConfigError, match="variance"):
        PDConfig(variance=-1.0)
