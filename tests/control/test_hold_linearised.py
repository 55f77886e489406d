"""`hold_linearised`: units, options, exploration, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import solve_discrete_are

from gps.control import HoldConfig, PDConfig, hold_linearised, pd
from gps.control.initial import EXPLORATION, FIRMNESS, MAX_DEVIATION
from gps.errors import ConfigError, NonFiniteError, ShapeError, SimulationError
from gps.types import Layout, Linearisation

DT, T = 0.05, 80
LAYOUT = Layout((("joint_pos", 2), ("tip", 1), ("joint_vel", 2)))
POS, VEL = [0, 1], [3, 4]


def linearisation(**changes):
    """Two coupled joints, one of which falls, and an entry that follows from them."""
    A, B = np.zeros((5, 5)), np.zeros((5, 2))
    A[POS, POS] = A[VEL, VEL] = 1.0
    A[POS, VEL] = DT
    A[3, 0], A[4, 0] = 0.4, 0.05
    B[VEL] = DT * np.array([[3.0, 0.5], [0.5, 40.0]])
    A[2] = A[0] + 0.5 * A[1]
    x, u = np.array([0.3, -0.2, 0.0, 0.0, 0.0]), np.array([0.5, -1.0])
    F = np.concatenate((A, B), axis=1)
    given = {
        "x": x, "u": u, "F": F, "f": x - F @ np.concatenate((x, u)),
        "x_scale": np.array([1.0, 1.0, np.inf, 5.0, 5.0]),
        "u_scale": np.array([8.0, 0.7]), "u_range": np.array([40.0, np.inf]),
        "layout": LAYOUT, "dt": DT, "response_time": 0.2,
    }  # fmt: skip
    return Linearisation(**(given | changes))


def test_the_gain_is_that_of_the_algebraic_riccati_equation():
    lin = linearisation()
    own = [*POS, *VEL]
    A, B = lin.F[np.ix_(own, own)], lin.F[own, 5:]
    Q = np.diag(lin.x_scale[own] ** -2.0)
    R = np.diag(np.minimum(lin.u_range, FIRMNESS * lin.u_scale) ** -2.0)
    V = solve_discrete_are(A, B, Q, R)
    K = -np.linalg.solve(R + B.T @ V @ B, B.T @ V @ A)
    c = hold_linearised(lin, T)
    np.testing.assert_allclose(c.K[:, :, own], np.tile(K, (T, 1, 1)), rtol=1e-6)
    np.testing.assert_array_equal(c.K[:, :, 2], 0.0)
    np.testing.assert_allclose(c.K[3] @ lin.x + c.k[3], lin.u)


def test_an_entry_that_adds_up_and_may_deviate_as_it_likes_is_no_obstacle():
    """As the place of a free base: solve_discrete_are fails, since no gain brings it back."""
    lin = linearisation(x_scale=np.array([1.0, np.inf, np.inf, 5.0, 5.0]))
    K = hold_linearised(lin, T).K[0]
    assert np.abs(K[:, [0, 3, 4]]).min() > 1e-3
    np.testing.assert_allclose(K[:, 1], 0.0, atol=1e-9)


def test_positions_under_the_noise_deviate_as_promised():
    lin, n = linearisation(), 4000
    c, rng = hold_linearised(lin, T), np.random.default_rng(0)
    x = np.tile(lin.x, (n, 1))
    squares = np.zeros((T, 5))
    for t in range(T):
        squares[t] = ((x - lin.x) ** 2).mean(axis=0)
        u = c.act(x, x, t, rng.normal(size=(n, 2)))
        x = np.concatenate((x, u), axis=1) @ lin.F.T + lin.f
    std = np.sqrt(squares[-1])
    assert std[POS].max() == pytest.approx(EXPLORATION, rel=0.05)
    assert std[POS].min() > 0.3 * EXPLORATION  # the other joint is explored as well


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_units_do_not_matter(factor):
    """Every entry and action in another unit: the same controller in those units."""
    plain = linearisation()
    x, u = factor ** np.array([1.0, -1.0, 1.0, 0.5, -0.5]), factor ** np.array([1.0, -1.0])
    scale = np.concatenate((x, u))
    lin = linearisation(
        x=plain.x * x, u=plain.u * u, F=plain.F * x[:, None] / scale, f=plain.f * x,
        x_scale=plain.x_scale * x, u_scale=plain.u_scale * u, u_range=plain.u_range * u,
    )  # fmt: skip
    a, b = hold_linearised(plain, T), hold_linearised(lin, T)
    np.testing.assert_allclose(b.K * x / u[:, None], a.K, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(b.k / u, a.k, rtol=1e-6)
    np.testing.assert_allclose(b.chol / u[:, None], a.chol, rtol=1e-6)


def test_an_action_of_unknown_effect_is_scaled_by_its_response():
    lin = linearisation(u_scale=np.full(2, np.inf))
    known = linearisation(u_scale=np.array([5 / (3.0 * 0.2), 5 / (40.0 * 0.2)]))
    a, b = hold_linearised(lin, T), hold_linearised(known, T)
    np.testing.assert_allclose(a.K, b.K, rtol=0.5)
    idle = linearisation(F=np.where(np.arange(7) == 6, 0.0, lin.F), u_scale=np.full(2, np.inf))
    c = hold_linearised(idle, T)
    np.testing.assert_array_equal(c.K[:, 1], 0.0)
    assert (c.chol[:, 1, 1] > 0).all()


def test_options_keep_their_meaning():
    lin = linearisation()
    np.testing.assert_allclose(
        hold_linearised(lin, T, HoldConfig(variance=4.0)).Sigma, np.tile(4 * np.eye(2), (T, 1, 1))
    )
    plain = hold_linearised(lin, T).K
    own = [*POS, *VEL]
    A, B = lin.F[np.ix_(own, own)], lin.F[own, 5:]
    V = solve_discrete_are(A, B, np.diag([9.0, 9.0, 2.7, 2.7]), np.eye(2))
    K = hold_linearised(lin, T, HoldConfig(stiffness=9.0, stiffness_vel=0.3)).K[0][:, own]
    np.testing.assert_allclose(K, -np.linalg.solve(np.eye(2) + B.T @ V @ B, B.T @ V @ A), rtol=1e-6)
    fading = hold_linearised(lin, T, HoldConfig(final_weight=1.0)).K
    np.testing.assert_allclose(fading[0], plain[0], rtol=1e-3)
    np.testing.assert_array_equal(fading[-1], 0.0)
    Q = np.diag(3.0 * lin.x_scale[own] ** -2.0)  # of the last state
    R = np.diag(np.minimum(lin.u_range, FIRMNESS * lin.u_scale) ** -2.0)
    K = hold_linearised(lin, T, HoldConfig(final_weight=3.0)).K[-2][:, own]
    np.testing.assert_allclose(K, -np.linalg.solve(R + B.T @ Q @ B, B.T @ Q @ A), rtol=1e-9)
    assert np.isfinite(hold_linearised(lin, 1, HoldConfig(final_weight=3.0)).K).all()
    lively = hold_linearised(lin, T, HoldConfig(stiffness_vel=1e-6)).K
    assert np.abs(lively[0][:, VEL]).sum() < np.abs(plain[0][:, VEL]).sum()


def test_what_hold_linearised_refuses():
    lin = linearisation()
    with pytest.raises(ShapeError, match=r"must be a Linearisation, got ndarray"):
        hold_linearised(np.eye(2), T)
    with pytest.raises(ConfigError, match="T must be a whole number"):
        hold_linearised(lin, 0)
    with pytest.raises(NonFiniteError, match=r"Linearisation\.F is not finite"):
        hold_linearised(replace(lin, F=np.full((5, 7), np.nan)), T)
    named = replace(lin, layout=Layout((("angle", 2), ("tip", 1), ("speed", 2))))
    with pytest.raises(ShapeError, match=r"HoldConfig\.stiffness needs 'joint_pos'"):
        hold_linearised(named, T, HoldConfig(stiffness=1.0))
    assert hold_linearised(named, T).K.any()  # without stiffness no name is needed
    with pytest.raises(ConfigError, match=r"HoldConfig\.model must be False or None"):
        HoldConfig(model=True, gains=(1.0,))


@pytest.mark.parametrize(
    ("options", "wants"),
    [
        ({}, None),
        ({"variance": 2.0, "stiffness": 3.0}, None),
        ({"gains": (1.0,)}, False),
        ({"acceleration": (1.0,)}, False),
        ({"joints": (1,)}, False),
        ({"position": "angle"}, False),
        ({"model": True, "position": "angle"}, True),
        ({"model": False}, False),
    ],
)
def test_what_is_said_of_the_joints_decides_whether_the_model_is_asked(options, wants):
    assert HoldConfig(**options).wants_linearisation is wants


def test_pd_takes_a_gain_for_each_joint():
    layout = Layout((("joint_pos", 2), ("joint_vel", 2)))
    config = PDConfig(position_gain=(10.0, 200.0), velocity_gain=(0.1, 0.05), joints=(1, 0))
    c = pd(np.array([0.1, 0.2, 0.0, 0.0]), layout, 2, 3, config)
    K = np.array([[0, -10.0, 0, -1.0], [-200.0, 0, -10.0, 0]])
    np.testing.assert_allclose(c.K, np.tile(K, (3, 1, 1)))
    with pytest.raises(ConfigError, match=r"PDConfig\.position_gain must have 2 values"):
        pd(np.zeros(4), layout, 2, 3, PDConfig(position_gain=(1.0, 2.0, 3.0)))
    with pytest.raises(ConfigError, match=r"PDConfig\.position_gain must be .*non-empty"):
        PDConfig(position_gain=())


def model_of(lin, further=lambda off: off):
    """Rollouts of the linear model, whose deviations from the start `further` may change."""

    def predict(controller, noise):
        x = np.tile(lin.x, (len(noise), 1))
        states = [x]
        for t in range(len(controller.k) - 1):
            u = controller.act(x, x, t, noise[:, t])
            x = np.concatenate((x, u), axis=1) @ lin.F.T + lin.f
            states.append(x)
        return lin.x + further(np.stack(states, axis=1) - lin.x)

    return predict


def bursts(off):
    """A velocity that grows thrice as large once a position leaves what is linear."""
    grown = off.copy()
    grown[:, :, VEL] *= np.where(np.abs(off[:, :, POS]).max(axis=(1, 2)) > 0.2, 3.0, 1.0)[
        :, None, None
    ]
    return grown


def flies(off):
    """A position that goes further than its linear model says."""
    return np.where(np.abs(off) > 0.2, 3.0 * off, off)


def fails(off):
    """A simulation that bears small deviations only."""
    if np.abs(off[:, :, POS]).max() > 0.2:
        raise SimulationError(0, [])
    return off


def test_a_model_that_is_what_its_linearisation_says_keeps_all_the_noise():
    lin = linearisation()
    plain = hold_linearised(lin, T)
    tried = hold_linearised(lin, T, None, model_of(lin))
    np.testing.assert_array_equal(tried.chol, plain.chol)
    np.testing.assert_array_equal(tried.K, plain.K)


@pytest.mark.parametrize("further", [bursts, flies, fails])
def test_noise_is_lowered_to_what_the_model_bears(further):
    lin = linearisation()
    plain, noise = hold_linearised(lin, T), np.random.default_rng(3).normal(size=(10, T, 2))
    tried = hold_linearised(lin, T, None, model_of(lin, further))
    share = tried.chol / np.where(plain.chol > 0, plain.chol, 1.0)
    assert share[0, 0, 0] in (0.5, 0.25)
    np.testing.assert_allclose(share[:, [0, 1], [0, 1]], share[0, 0, 0])
    np.testing.assert_array_equal(tried.K, plain.K)
    off = model_of(lin, further)(tried, 0.9 * noise) - lin.x
    assert np.abs(off[:, :, POS]).max() <= MAX_DEVIATION


def test_less_noise_does_not_help_what_falls_without_it_or_is_asked_for():
    lin = linearisation()
    plain = hold_linearised(lin, T)
    falls = model_of(lin, lambda off: off + np.linspace(0.0, 5.0, T)[None, :, None])
    np.testing.assert_array_equal(hold_linearised(lin, T, None, falls).chol, plain.chol)

    def never(controller, noise):
        raise SimulationError(0, [])

    np.testing.assert_array_equal(hold_linearised(lin, T, None, never).chol, plain.chol)
    asked = HoldConfig(variance=4.0)
    np.testing.assert_array_equal(
        asked.linearised(lin, T, model_of(lin, flies)).chol, asked.linearised(lin, T).chol
    )


def test_deviations_that_noise_does_not_cause_lower_it_no_further_than_needed():
    lin = linearisation()
    twice, asked = model_of(lin, lambda off: 1.2 * off), []

    def counted(controller, noise):
        asked.append(len(noise))
        return twice(controller, noise)

    share = hold_linearised(lin, T, None, counted).chol / hold_linearised(lin, T).chol.clip(1e-300)
    assert share[0, 0, 0] == 1.0
    assert len(asked) == 4  # without noise, with it, and twice with less: a rollout has its price
