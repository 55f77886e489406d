"""Tracking against dense solves, estimates against dense conditioning, the loop by its moments."""

import pickle

import numpy as np
import pytest
from control_problems import make_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal

from gps.control import lqr, tracking
from gps.control.models import NumpyModel
from gps.control.tracking import LinearSensor, SimulationNoise
from gps.errors import ConfigError, GPSError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gps.types import Gaussian, LinearDynamics, LinearGaussianController


def roll(dynamics, controller, x):
    """The trajectory of the mean action without noise."""
    X, U = [np.asarray(x)], []
    for t in range(dynamics.T):
        U.append(controller.K[t] @ X[t] + controller.k[t])
        if t < dynamics.T - 1:
            X.append(dynamics.F[t] @ np.concatenate((X[t], U[t])) + dynamics.f[t])
    return np.array(X), np.array(U)


def dense(dynamics, x, X_ref, U_ref, Q, R):
    """The same problem as one quadratic programme with equality constraints."""
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    nz = nx + nu
    H, g = np.zeros((T * nz, T * nz)), np.zeros(T * nz)
    E, e = np.zeros((T * nx, T * nz)), np.zeros(T * nx)
    E[:nx, :nx], e[:nx] = np.eye(nx), x
    for t in range(T):
        at = slice(t * nz, (t + 1) * nz)
        H[at, at][:nx, :nx], H[at, at][nx:, nx:] = Q[t], R[t]
        g[at] = H[at, at] @ np.concatenate((X_ref[t], U_ref[t]))
        if t < T - 1:
            rows = slice((t + 1) * nx, (t + 2) * nx)
            E[rows, at], e[rows] = -dynamics.F[t], dynamics.f[t]
            E[rows, (t + 1) * nz : (t + 1) * nz + nx] = np.eye(nx)
    KKT = np.block([[H, E.T], [E, np.zeros((T * nx, T * nx))]])
    z = np.linalg.solve(KKT, np.concatenate((g, e)))[: T * nz].reshape(T, nz)
    return z[:, :nx], z[:, nx:]


def double_integrator(T, dt=0.05, noise=0.0):
    F = np.tile([[1.0, dt, 0.5 * dt**2], [0.0, 1.0, dt]], (T - 1, 1, 1))
    return LinearDynamics(F, np.zeros((T - 1, 2)), np.tile(noise * np.eye(2), (T - 1, 1, 1)))


def weights(rng, T, n, least=0.1):
    root = rng.normal(size=(T, n, n))
    return root @ root.transpose(0, 2, 1) + least * np.eye(n)


# --- tracking


@pytest.mark.parametrize("per_step", [False, True])
def test_tracking_is_the_dense_solution(rng, per_step):
    dynamics, _, start, _ = make_problem(rng)
    T, nx, nu = 12, 4, 2
    X_ref, U_ref = rng.normal(size=(T, nx)), rng.normal(size=(T, nu))  # no trajectory of these
    Q, R, last = weights(rng, T, nx, 0.0), weights(rng, T, nu), 5 * np.eye(nx)
    if not per_step:
        Q, R = np.tile(Q[0], (T, 1, 1)), np.tile(R[0], (T, 1, 1))
    found = tracking.track(
        dynamics, X_ref, U_ref, Q if per_step else Q[0], R if per_step else R[0], last
    )
    Q[-1] = last
    X, U = dense(dynamics, start.mean, X_ref, U_ref, Q, R)
    mine, actions = roll(dynamics, found.controller, start.mean)
    assert_allclose(mine, X, rtol=1e-8, atol=1e-9)
    assert_allclose(actions, U, rtol=1e-8, atol=1e-9)
    assert np.abs(found.defects).min() > 1e-6
    # and its cost is the one it was made for
    d = np.concatenate((X - X_ref, U - U_ref), axis=1)
    C = found.cost.C
    z = np.concatenate((X, U), axis=1)
    value = 0.5 * np.einsum("ti,tij,tj->t", z, C, z) + (found.cost.c * z).sum(1) + found.cost.c0
    assert_allclose(value, 0.5 * np.einsum("ti,tij,tj->t", d, C, d), rtol=1e-8, atol=1e-9)


def test_a_sine_with_a_double_integrator():
    T, dt = 120, 0.05
    dynamics, t = double_integrator(T, dt), np.arange(T) * 0.05
    X_ref = np.stack((np.sin(2 * t), 2 * np.cos(2 * t)), axis=1)
    U_ref = -4 * np.sin(2 * t)[:, None]
    Q, R = np.diag([10.0, 0.1]), np.array([[1e-2]])
    found = tracking.track(dynamics, X_ref, U_ref, Q, R)
    x = np.array([0.5, 0.0])
    X, _ = roll(dynamics, found.controller, x)
    best, _ = dense(dynamics, x, X_ref, U_ref, np.tile(Q, (T, 1, 1)), np.tile(R, (T, 1, 1)))
    error, least = np.abs(X - X_ref)[40:], np.abs(best - X_ref)[40:]
    assert_allclose(error, least, atol=1e-9)
    assert error[:, 0].max() < 5e-3  # only what dt leaves: the reference is that of dt = 0
    blind = tracking.track(dynamics, X_ref, 0 * U_ref, Q, np.array([[1.0]]))
    assert np.abs(roll(dynamics, blind.controller, x)[0] - X_ref)[40:, 0].max() > 0.1


def test_a_feasible_reference_is_followed_exactly(rng):
    dynamics, _, start, previous = make_problem(rng)
    X_ref, U_ref = roll(dynamics, previous, start.mean)
    found = tracking.track(dynamics, X_ref, U_ref, np.eye(4), np.eye(2))
    assert np.abs(found.defects).max() < 1e-12
    X, U = roll(dynamics, found.controller, start.mean)
    assert_allclose(X, X_ref, atol=1e-9)
    assert_allclose(U, U_ref, atol=1e-9)


def pendulum(x, u, t):
    """Angle (0 hangs) and velocity, 20 ms a step, one after another or as a batch."""
    v = x[..., 1] + 0.02 * (u[..., 0] - 9.81 * np.sin(x[..., 0]))
    return np.stack((x[..., 0] + 0.02 * v, v), axis=-1)


def test_an_affine_model_gives_what_its_dynamics_give(rng):
    """Whatever the reference: the defects are in the affine term."""
    A, B, f = rng.normal(size=(3, 3)), rng.normal(size=(3, 2)), rng.normal(size=3)
    model = NumpyModel(lambda x, u, t: x @ A.T + u @ B.T + f, 3, 2)
    T = 9
    X_ref, U_ref = rng.normal(size=(T, 3)), rng.normal(size=(T, 2))
    F = np.tile(np.concatenate((A, B), axis=1), (T - 1, 1, 1))
    given_ = LinearDynamics(F, np.tile(f, (T - 1, 1)), np.tile(0.1 * np.eye(3), (T - 1, 1, 1)))
    want = tracking.track(given_, X_ref, U_ref, np.eye(3), np.eye(2))
    got = tracking.track_model(model, X_ref, U_ref, np.eye(3), np.eye(2), W=0.1 * np.eye(3))
    for name in ("K", "k", "chol"):
        assert_allclose(
            getattr(got.controller, name), getattr(want.controller, name), rtol=1e-6, atol=1e-7
        )
    assert_allclose(got.defects, want.defects, atol=1e-7)
    assert_array_equal(got.dynamics.W, given_.W)


def test_the_linearisation_touches_the_model(rng):
    """A straight line from hanging to upright: no trajectory, but the best there is to ask for."""
    model, T = NumpyModel(pendulum, 2, 1), 100
    X_ref = np.stack((np.linspace(0, np.pi, T), np.full(T, np.pi / (0.02 * T))), axis=1)
    U_ref = np.zeros((T, 1))
    found = tracking.track_model(model, X_ref, U_ref, np.diag([200.0, 1.0]), [[1e-2]])
    assert np.abs(found.defects).max() > 0.1
    z = np.concatenate((X_ref, U_ref), axis=1)[:-1]
    ahead = pendulum(X_ref[:-1], U_ref[:-1], 0)
    assert_allclose(np.einsum("tij,tj->ti", found.dynamics.F, z) + found.dynamics.f, ahead)
    assert_allclose(ahead - X_ref[1:], found.defects, atol=1e-12)

    def off(controller):
        x, worst = X_ref[0], 0.0
        for t in range(T - 1):
            x = pendulum(x, controller.K[t] @ x + controller.k[t], t)
            worst = max(worst, abs(x[0] - X_ref[t + 1, 0]))
        return worst

    # without the defects in f the same gains do not know of gravity
    plain = LinearDynamics(found.dynamics.F, found.dynamics.f - found.defects, found.dynamics.W)
    ignorant = tracking.track(plain, X_ref, U_ref, np.diag([200.0, 1.0]), [[1e-2]])
    assert off(found.controller) < 0.1
    assert off(ignorant.controller) > 3 * off(found.controller)


def test_a_model_that_depends_on_time_needs_its_step(rng):
    T, gains = 8, np.linspace(0.5, 1.5, 8)
    model = NumpyModel(lambda x, u, t: gains[t] * x + u, 2, 2)
    X_ref, U_ref = 1 + rng.random((T, 2)), rng.random((T, 2))
    with pytest.raises(ConfigError, match=r"step at t=1 differs.*pass step\(x, u, t\)"):
        tracking.track_model(model, X_ref, U_ref, np.eye(2), np.eye(2))
    found = tracking.track_model(
        model, X_ref, U_ref, np.eye(2), np.eye(2), step=lambda x, u, t: gains[t] * x + u
    )
    assert_allclose(found.dynamics.f, 0, atol=1e-8)
    assert_allclose(found.defects, gains[:-1, None] * X_ref[:-1] + U_ref[:-1] - X_ref[1:])


def test_a_model_that_leaves_the_numbers_is_named(rng):
    model = NumpyModel(
        lambda x, u, t: np.where(x < 0, np.nan, x) + u,
        2,
        2,
        lambda x, u, t: np.ones((len(x), 2, 4)),
    )
    X_ref = np.ones((5, 2))
    X_ref[3] = -1
    with pytest.raises(NonFiniteError, match="next state along the reference is not finite at t=3"):
        tracking.track_model(model, X_ref, np.zeros((5, 2)), np.eye(2), np.eye(2))


# --- estimation


def estimation(seed=0, T=6, nx=3, nu=2, no=2, N=2):
    rng = np.random.default_rng(seed)
    dynamics, _, start, _ = make_problem(rng, T, nx, nu)
    sensor = LinearSensor(
        rng.normal(size=(T, no, nx)), rng.normal(size=(T, no)), weights(rng, T, no, 0.05)
    )
    U = rng.normal(size=(N, T, nu))
    Y = rng.normal(size=(N, T, no)) * 2
    return dynamics, sensor, Y, U, start


def joint(dynamics, sensor, U, start):
    """Mean and covariance of all states, stacked, and of all measurements given the states."""
    T, nx, no = dynamics.T, dynamics.nx, sensor.no
    mean, G = np.zeros((T, nx)), np.zeros((T * nx, T * nx))  # x = mean + G [x0; w]
    mean[0], G[:nx, :nx] = start.mean, np.eye(nx)
    cov = np.zeros((T * nx, T * nx))
    cov[:nx, :nx] = start.cov
    for t in range(T - 1):
        rows, after = slice(t * nx, (t + 1) * nx), slice((t + 1) * nx, (t + 2) * nx)
        mean[t + 1] = dynamics.F[t] @ np.concatenate((mean[t], U[t])) + dynamics.f[t]
        G[after] = dynamics.A[t] @ G[rows]
        G[after, after] += np.eye(nx)
        cov[after, after] = dynamics.W[t]
    H, V = np.zeros((T * no, T * nx)), np.zeros((T * no, T * no))
    for t in range(T):
        H[t * no : (t + 1) * no, t * nx : (t + 1) * nx] = sensor.H[t]
        V[t * no : (t + 1) * no, t * no : (t + 1) * no] = sensor.V[t]
    return mean.ravel(), G @ cov @ G.T, H, sensor.h.ravel(), V


def condition(parts, y, n):
    """Mean and covariance of the states given the first n measurements, and those' log density."""
    m, P, H, h, V = parts
    H, h, V, y = H[:n], h[:n], V[:n, :n], y[:n]
    S = H @ P @ H.T + V
    gain = np.linalg.solve(S, H @ P).T
    density = multivariate_normal(H @ m + h, S).logpdf(y) if n else 0.0
    return m + gain @ (y - H @ m - h), P - gain @ H @ P, density


@pytest.mark.parametrize("case", ["full", "V singular", "V zero", "W singular", "W zero", "start"])
def test_filter_and_smoother_are_dense_conditioning(case):
    dynamics, sensor, Y, U, start = estimation()
    T, nx, no = 6, 3, 2
    V, W, S0 = sensor.V.copy(), dynamics.W.copy(), start.cov
    if case == "V singular":
        V = np.tile([[0.4, 0.0], [0.0, 0.0]], (T, 1, 1))
    if case == "V zero":
        V[:] = 0
    if case in ("W singular", "W zero"):
        W[:] = np.diag([0.0, 0.3, 0.0]) if case == "W singular" else 0
    if case == "start":
        S0 = np.zeros((3, 3))
    dynamics = LinearDynamics(dynamics.F, dynamics.f, W)
    sensor, start = LinearSensor(sensor.H, sensor.h, V), Gaussian(start.mean, S0)
    found = tracking.kalman_filter(dynamics, sensor, Y, U, start)
    smoothed = tracking.smooth(dynamics, found)
    for n in range(len(Y)):
        parts, y = joint(dynamics, sensor, U[n], start), Y[n].ravel()
        before = 0.0
        for t in range(T):
            at = slice(t * nx, (t + 1) * nx)
            m, P, _ = condition(parts, y, t * no)
            assert_allclose(found.pred_mean[n, t], m[at], rtol=1e-6, atol=1e-7)
            assert_allclose(found.pred_cov[t], P[at, at], rtol=1e-6, atol=1e-7)
            m, P, density = condition(parts, y, (t + 1) * no)
            assert_allclose(found.mean[n, t], m[at], rtol=1e-6, atol=1e-7)
            assert_allclose(found.cov[t], P[at, at], rtol=1e-6, atol=1e-7)
            assert_allclose(found.log_likelihood[n, t], density - before, rtol=1e-6, atol=1e-7)
            before = density
        for t in range(T):
            at, after = slice(t * nx, (t + 1) * nx), slice((t + 1) * nx, (t + 2) * nx)
            assert_allclose(smoothed.mean[n, t], m[at], rtol=1e-6, atol=1e-6)
            assert_allclose(smoothed.cov[t], P[at, at], rtol=1e-6, atol=1e-7)
            if t < T - 1:
                assert_allclose(smoothed.cross[t], P[at, after], rtol=1e-6, atol=1e-7)
    single = tracking.kalman_filter(dynamics, sensor, Y[1], U[1], start)
    assert_array_equal(single.mean[0], found.mean[1])


def test_covariances_stay_positive_over_a_long_time():
    """A million-fold sharper sensor than the start, and almost no process noise."""
    T = 2000
    dynamics = double_integrator(T, 1e-2, 1e-14)
    sensor = LinearSensor.constant(T, [[1.0, 0.0]], [[1e-12]])
    start = Gaussian(np.zeros(2), 1e6 * np.eye(2))
    found = tracking.kalman_filter(dynamics, sensor, np.zeros((T, 1)), np.zeros((T, 1)), start)
    smoothed = tracking.smooth(dynamics, found)
    for stack in (found.cov, found.pred_cov, smoothed.cov):
        assert_array_equal(stack, stack.transpose(0, 2, 1))
        eig = np.linalg.eigvalsh(stack)
        assert (eig[:, 0] >= -1e-13 * eig[:, 1]).all()
    assert (smoothed.cov.diagonal(0, 1, 2) <= found.cov.diagonal(0, 1, 2) * (1 + 1e-6)).all()


def test_an_exact_measurement_made_twice_is_named():
    dynamics = double_integrator(4)
    sensor = LinearSensor.constant(4, np.eye(2), np.zeros((2, 2)))
    start = Gaussian(np.zeros(2), np.eye(2))
    with pytest.raises(
        NotPositiveDefiniteError, match="innovation is not positive definite at t=1"
    ):
        tracking.kalman_filter(dynamics, sensor, np.zeros((4, 2)), np.zeros((4, 1)), start)
    twins = LinearSensor.constant(4, [[1.0, 0.0], [1.0, 0.0]], np.zeros((2, 2)))
    with pytest.raises(NotPositiveDefiniteError, match=r"at t=0 .*add noise"):
        tracking.kalman_filter(dynamics, twins, np.zeros((4, 2)), np.zeros((4, 1)), start)


def test_what_is_known_exactly_but_for_rounding_is_no_news():
    """The covariance left by an exact measurement is rounding, and so are multiples of a sensor."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        dynamics = make_problem(rng, 4, 3, 1)[0]
        still = LinearDynamics(dynamics.F, dynamics.f, 0 * dynamics.W)
        start = Gaussian(np.zeros(3), weights(rng, 1, 3)[0])
        exact = LinearSensor.constant(4, rng.normal(size=(3, 3)), np.zeros((3, 3)))
        with pytest.raises(NotPositiveDefiniteError, match="at t=1"):
            tracking.kalman_filter(still, exact, np.zeros((4, 3)), np.zeros((4, 1)), start)
        row = rng.normal(size=3)
        twins = LinearSensor.constant(4, [row, rng.normal() * row], np.zeros((2, 2)))
        with pytest.raises(NotPositiveDefiniteError, match="at t=0"):
            tracking.kalman_filter(dynamics, twins, np.zeros((4, 2)), np.zeros((4, 1)), start)


# --- the closed loop


def loop(N=20_000, T=8, seed=1, **options):
    rng = np.random.default_rng(seed)
    dynamics, cost, start, _ = make_problem(rng, T, 3, 2)
    sensor = LinearSensor(
        rng.normal(size=(T, 2, 3)), rng.normal(size=(T, 2)), weights(rng, T, 2, 0.05)
    )
    controller = lqr.backward(dynamics, cost)
    runs = tracking.simulate(
        dynamics, controller, start, sensor, N=N, rng=np.random.default_rng(5), **options
    )
    return dynamics, controller, start, sensor, runs


def within_five_sigma(samples, mean, cov):
    """Of each entry of the sample mean and covariance of (N, n) samples."""
    N = len(samples)
    S = np.cov(samples.T)
    off = np.abs(samples.mean(0) - mean)
    assert (off <= 5 * np.sqrt(cov.diagonal() / N) + 1e-9).all()
    sigma = np.sqrt((cov**2 + np.outer(cov.diagonal(), cov.diagonal())) / (N - 1))
    assert (np.abs(S - cov) <= 5 * sigma + 1e-9).all()


def test_state_feedback_has_the_marginals_of_lqr():
    dynamics, controller, start, _, runs = loop(feedback="state", explore=True)
    want = lqr.forward(dynamics, controller, start)
    for t in range(8):
        z = np.concatenate((runs.X[:, t], runs.U[:, t]), axis=1)
        within_five_sigma(z, want.mean[t], want.cov[t])


def test_estimate_feedback_has_the_moments_of_the_augmented_system():
    """The pair of state and prediction is linear in white noise, whatever the filter calls it."""
    dynamics, controller, start, sensor, runs = loop()
    gain = tracking.kalman_filter(dynamics, sensor, np.zeros((8, 2)), np.zeros((8, 2)), start).gain
    mean = np.concatenate((start.mean, start.mean))
    cov = np.zeros((6, 6))
    cov[:3, :3] = start.cov
    for t in range(8):
        # (x, prediction) -> (x, estimate)
        J = np.eye(3) - gain[t] @ sensor.H[t]
        up = np.block([[np.eye(3), np.zeros((3, 3))], [gain[t] @ sensor.H[t], J]])
        cov = up @ cov @ up.T
        cov[3:, 3:] += gain[t] @ sensor.V[t] @ gain[t].T
        mean = up @ mean
        both = np.concatenate((runs.X[:, t], runs.estimates[:, t]), axis=1)
        within_five_sigma(both, mean, cov)
        within_five_sigma(runs.X[:, t] - runs.estimates[:, t], np.zeros(3), runs.cov[t])
        assert_allclose(runs.U[:, t], runs.estimates[:, t] @ controller.K[t].T + controller.k[t])
        # the estimate and its error are uncorrelated
        pick = np.concatenate((np.eye(3), -np.eye(3)), axis=1)
        assert_allclose(pick @ cov @ np.eye(6)[:, 3:], 0, atol=1e-9)
        if t < 7:
            A, B = dynamics.A[t], dynamics.B[t]
            K, k = controller.K[t], controller.k[t]
            on = np.block([[A, B @ K], [np.zeros((3, 3)), A + B @ K]])
            mean = on @ mean + np.tile(B @ k + dynamics.f[t], 2)
            cov = on @ cov @ on.T
            cov[:3, :3] += dynamics.W[t]


def test_without_sensor_noise_the_estimate_is_the_state():
    dynamics, _, start, _, _ = loop(N=1)
    controller = lqr.backward(*make_problem(np.random.default_rng(1), 8, 3, 2)[:2])
    noise = SimulationNoise.draw(np.random.default_rng(2), 5, 8, 3, 2, 3)
    runs = {}
    for scale in (0.0, 1e-18):
        sensor = LinearSensor.constant(8, np.eye(3), scale * np.eye(3))
        for feedback in ("estimate", "state"):
            runs[feedback] = tracking.simulate(
                dynamics, controller, start, sensor, feedback=feedback, noise=noise
            )
        assert_allclose(runs["estimate"].estimates, runs["estimate"].X, atol=1e-7)
        assert_allclose(runs["estimate"].X, runs["state"].X, atol=1e-6)
        assert_allclose(runs["estimate"].U, runs["state"].U, atol=1e-6)


def test_the_simulated_estimate_is_the_filters():
    dynamics, _, start, sensor, runs = loop(N=4)
    found = tracking.kalman_filter(dynamics, sensor, runs.Y, runs.U, start)
    assert_allclose(runs.estimates, found.mean, rtol=1e-9, atol=1e-10)
    assert_array_equal(runs.cov, found.cov)
    smoothed = tracking.smooth(dynamics, found)
    many = loop(N=2000)[4]
    found = tracking.kalman_filter(dynamics, sensor, many.Y, many.U, start)
    smoothed = tracking.smooth(dynamics, found)
    assert ((smoothed.mean - many.X) ** 2).sum() < 0.95 * ((found.mean - many.X) ** 2).sum()


def test_samples_do_not_depend_on_each_other_and_repeat():
    *_, sensor, runs = loop(N=6)
    again = loop(N=6)[-1]
    for name in ("X", "U", "Y", "estimates"):
        assert_array_equal(getattr(runs, name), getattr(again, name))
    rng = np.random.default_rng(9)
    dynamics, controller, start = loop(N=1)[:3]
    noise = SimulationNoise.draw(rng, 6, 8, 3, 2, 2, explore=True)
    many = tracking.simulate(dynamics, controller, start, sensor, noise=noise)
    one = SimulationNoise(
        *(getattr(noise, n)[3:4] for n in ("start", "process", "sensor", "action"))
    )
    single = tracking.simulate(dynamics, controller, start, sensor, noise=one)
    assert_array_equal(many.X[3], single.X[0])
    assert pickle.loads(pickle.dumps(single)).X.tobytes() == single.X.tobytes()


def test_without_a_sensor_the_controller_sees_the_state():
    dynamics, controller, start, _, _ = loop(N=1)
    noise = SimulationNoise.draw(np.random.default_rng(3), 3, 8, 3, 2)
    alone = tracking.simulate(dynamics, controller, start, noise=noise)
    assert alone.Y.shape == (3, 8, 0)
    assert_allclose(alone.U, controller.mean_action(alone.X), rtol=1e-9, atol=1e-12)
    assert not np.allclose(alone.estimates, alone.X)


# --- what is refused

BAD = np.array([[1.0, 0.0], [0.0, -1.0]])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"X_ref": np.zeros((4, 2))}, ShapeError, r"X_ref and U_ref must have shapes"),
        ({"X_ref": np.zeros((5, 3))}, ShapeError, r"X_ref must have shape \(5, 2\)"),
        ({"X_ref": np.full((5, 2), np.nan)}, NonFiniteError, "X_ref is not finite at t=0"),
        ({"Q": np.eye(3)}, ShapeError, r"Q must have shape \(2, 2\) or \(5, 2, 2\)"),
        ({"Q": BAD}, NotPositiveDefiniteError, r"Q is not positive definite at t=0 .*-1"),
        ({"Q": [[0.0, 1.0], [0.0, 0.0]]}, ShapeError, "Q is not symmetric at t=0"),
        ({"Q_final": BAD}, NotPositiveDefiniteError, "Q_final"),
        ({"Q_final": np.eye(3)}, ShapeError, "Q_final must have shape"),
        ({"R": [[0.0]]}, NotPositiveDefiniteError, "R is not positive definite at t=0"),
        ({"R": np.full((5, 1, 1), np.inf)}, NonFiniteError, "R is not finite"),
        ({"X_ref": np.full((5, 2), 1e300), "Q": 1e300 * np.eye(2)}, NonFiniteError, "cost's c is"),
        ({"temperature": -1.0}, ConfigError, "temperature"),
    ],
)
def test_bad_references_and_weights_are_named(change, error, words):
    args = {"X_ref": np.zeros((5, 2)), "U_ref": np.zeros((5, 1)), "Q": np.eye(2), "R": [[1.0]]}
    with pytest.raises(error, match=words):
        tracking.track(double_integrator(5), **{**args, **change})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"Y": np.zeros((2, 6, 3))}, ShapeError, r"Y must have shape \(N, 6, 2\)"),
        ({"U": np.zeros((3, 6, 2))}, ShapeError, "Y has 2 samples, U has 3"),
        ({"Y": np.zeros((0, 6, 2))}, ShapeError, "Y must have"),
        ({"V": np.tile(BAD, (6, 1, 1))}, NotPositiveDefiniteError, "sensor.V .*t=0"),
        ({"V": np.tile([[1.0, 2.0], [2.0, 1.0]], (6, 1, 1))}, NotPositiveDefiniteError, "sensor.V"),
        ({"H": np.full((6, 2, 3), np.nan)}, NonFiniteError, "sensor.H is not finite at t=0"),
        ({"H": np.zeros((6, 2, 4))}, ShapeError, r"sensor.H must have shape \(6, 2, 3\)"),
        ({"cov": np.ones((3, 3)) - 2 * np.eye(3)}, NotPositiveDefiniteError, "x0.cov"),
        ({"W": 3 * np.tile(np.ones((3, 3)) - 0.5 * np.eye(3), (5, 1, 1))}, GPSError, "W .*t=0"),
    ],
)
def test_bad_estimation_problems_are_named(change, error, words):
    dynamics, sensor, Y, U, start = estimation()
    Y, U = change.get("Y", Y), change.get("U", U)
    sensor = LinearSensor(change.get("H", sensor.H), sensor.h, change.get("V", sensor.V))
    dynamics = LinearDynamics(dynamics.F, dynamics.f, change.get("W", dynamics.W))
    start = Gaussian(start.mean, change.get("cov", start.cov))
    with pytest.raises(error, match=words):
        tracking.kalman_filter(dynamics, sensor, Y, U, start)


def test_measurements_that_are_no_numbers_are_named():
    dynamics, sensor, Y, U, start = estimation()
    Y[1, 4, 0] = np.inf
    with pytest.raises(NonFiniteError, match="Y is not finite in sample 1 at t=4"):
        tracking.kalman_filter(dynamics, sensor, Y, U, start)


def test_arguments_of_another_kind_are_named():
    dynamics, controller, start, sensor, _ = loop(N=1)
    found = tracking.kalman_filter(dynamics, sensor, np.zeros((8, 2)), np.zeros((8, 2)), start)
    reference = np.zeros((8, 3)), np.zeros((8, 2)), np.eye(3), np.eye(2)
    for function, args, words in (
        (tracking.kalman_filter, (dynamics, 3, found.mean, found.mean, start), "a LinearSensor, "),
        (tracking.kalman_filter, (dynamics, sensor, "Y", "U", start), "Y must be an array of num"),
        (tracking.simulate, (dynamics, controller, start, found), "be a LinearSensor, got Filter"),
        (tracking.smooth, (dynamics, sensor), "filtered must be a FilterResult, got LinearSensor"),
        (LinearSensor.constant, (8, "H", np.eye(2)), "H must be an array of numbers"),
        (tracking.track, (dynamics, *reference[:2], "Q", np.eye(2)), "Q must be an array of num"),
        (tracking.track_model, (dynamics, *reference), "model must be a NumbaModel, .*Dynamics"),
    ):
        options = {"rng": np.random.default_rng(0)} if function is tracking.simulate else {}
        with pytest.raises(ShapeError, match=words):
            function(*args, **options)


def test_simulate_refuses_what_it_cannot_do():
    dynamics, controller, start, sensor, _ = loop(N=1)
    rng = np.random.default_rng(0)
    noise = SimulationNoise.draw(rng, 2, 8, 3, 2, 1)
    for options, error, words in (
        ({}, ConfigError, "either rng or noise"),
        ({"rng": rng, "noise": noise}, ConfigError, "not both"),
        ({"rng": rng, "N": 0}, ConfigError, "N must be"),
        ({"rng": rng, "feedback": "output"}, ConfigError, "'estimate' or 'state'"),
        ({"noise": noise}, ShapeError, "noise.sensor must have shape"),
        ({"noise": 3}, ShapeError, "noise must be a SimulationNoise, got int"),
        ({"rng": 3}, ConfigError, r"rng must be a numpy.random.Generator, got 3: .*default_rng"),
    ):
        with pytest.raises(error, match=words):
            tracking.simulate(dynamics, controller, start, sensor, **options)
    wild = LinearDynamics(1e80 * dynamics.F, dynamics.f, dynamics.W)
    with pytest.raises(NonFiniteError, match="overflows at t="):
        tracking.simulate(wild, controller, start, rng=rng)
    with pytest.raises(ShapeError, match="h must have shape"):
        LinearSensor.constant(3, np.eye(2), np.eye(2), np.zeros(3))
    with pytest.raises(ConfigError, match="T must be"):
        LinearSensor.constant(0, np.eye(2), np.eye(2))


# --- anything at all

SIZES = st.sampled_from([0.0, 1e-160, 1e-12, 1.0, 1e6, 1e100, 1e300, np.nan, np.inf])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), SIZES, SIZES, SIZES, SIZES)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_estimates_are_finite_and_covariances_or_a_named_error(seed, x, w, v, s):
    dynamics, sensor, Y, U, start = estimation(seed, T=4)
    with np.errstate(all="ignore"):
        dynamics = LinearDynamics(dynamics.F, x * dynamics.f, w * dynamics.W)
        sensor = LinearSensor(sensor.H, sensor.h, v * sensor.V)
        start = Gaussian(start.mean, s * start.cov)
    controller = LinearGaussianController(
        np.zeros((4, 2, 3)), np.zeros((4, 2)), np.tile(np.eye(2), (4, 1, 1))
    )
    try:
        found = tracking.kalman_filter(dynamics, sensor, Y, U, start)
        smoothed = tracking.smooth(dynamics, found)
        noise = SimulationNoise.draw(np.random.default_rng(seed), 2, 4, 3, 2, 2)
        runs = tracking.simulate(dynamics, controller, start, sensor, noise=noise)
    except GPSError:
        return
    for record, names in (
        (found, ("mean", "cov", "pred_cov", "log_likelihood")),
        (smoothed, ("mean", "cov", "cross")),
        (runs, ("X", "U", "Y", "estimates")),
    ):
        for name in names:
            assert np.isfinite(getattr(record, name)).all(), name
    before = np.abs(found.pred_cov).max(axis=(1, 2))  # what rounding is relative to
    for stack in (found.cov, found.pred_cov, smoothed.cov):
        size = np.abs(stack).max(axis=(1, 2))
        assert (np.linalg.eigvalsh(stack)[:, 0] >= -1e-13 * (size + before)).all()
    with np.errstate(all="ignore"):
        parts = joint(dynamics, sensor, U[0], start)
        S = parts[2] @ parts[1] @ parts[2].T + parts[4]
    if np.isfinite(S).all() and np.linalg.cond(S) < 1e6:
        m, P, density = condition(parts, Y[0].ravel(), 8)
        size = np.abs(parts[1]).max()
        assert_allclose(smoothed.cov[0], P[:3, :3], rtol=1e-4, atol=1e-8 * size)
        assert_allclose(found.log_likelihood[0].sum(), density, rtol=1e-5, atol=1e-5)
        assert_allclose(smoothed.mean[0, 0], m[:3], rtol=1e-4, atol=1e-6 * (1 + np.abs(m).max()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), SIZES, SIZES, SIZES, SIZES)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_tracking_is_finite_and_optimal_or_a_named_error(seed, f, x, q, r):
    rng = np.random.default_rng(seed)
    dynamics = make_problem(rng, 5, 3, 2)[0]
    Q, R = weights(rng, 5, 3, 0.0), weights(rng, 5, 2)
    X_ref, U_ref = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    with np.errstate(all="ignore"):
        dynamics = LinearDynamics(dynamics.F, f * dynamics.f, dynamics.W)
        Q, R, X_ref = q * Q, r * R, x * X_ref
    try:
        found = tracking.track(dynamics, X_ref, U_ref, Q, R)
    except GPSError:
        return
    for name in ("K", "k", "chol"):
        assert np.isfinite(getattr(found.controller, name)).all()
    if max(f, x) < 1e3 and q > 0 and r > 0 and 1e-7 < q / r < 1e7:
        X, U = roll(dynamics, found.controller, np.ones(3))
        s = max(q, r)
        best = dense(dynamics, np.ones(3), X_ref, U_ref, Q / s, R / s)
        assert_allclose(X, best[0], rtol=1e-5, atol=1e-5)
        assert_allclose(U, best[1], rtol=1e-5, atol=1e-5)
