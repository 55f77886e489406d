"""Smoothed noise and the analytic agent against independent answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from gps.agents import PointMassConfig, smooth_noise
from gps.agents.base import Failures
from gps.errors import SimulationError
from gps.rng import stream

FIXTURE = Path(__file__).parents[1] / "fixtures" / "smooth_noise.npz"


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("sigma", [2, 3])
def test_smooth_noise_is_the_references(sigma, renormalise):
    with np.load(FIXTURE) as data:
        raw, want = data["raw"], data[f"out_var{sigma}_renorm{int(renormalise)}"]
    got = smooth_noise(np.stack([raw, -raw]), sigma, renormalise=renormalise)
    np.testing.assert_allclose(got[0], want, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got[1], -want, rtol=1e-12, atol=1e-14)


def test_smooth_noise_leaves_white_and_zero_noise_alone():
    noise = stream(0, "noise").normal(size=(2, 10, 3))
    assert smooth_noise(noise, 0.0) is noise
    noise[1] = 0.0
    smooth = smooth_noise(noise, 2.0)
    assert np.isfinite(smooth).all()
    assert not smooth[1].any()


def test_only_the_first_failure_of_a_sample_counts():
    failures = Failures(3)
    failures.raise_if_any()
    failures.add(5, 7, "late")
    failures.add(2, 8, "first")
    failures.add(2, 9, "second")
    assert len(failures) == 2
    assert 2 in failures
    with pytest.raises(SimulationError, match=r"condition 3.*sample 2, t=8: first; sample 5"):
        failures.raise_if_any()


@pytest.mark.parametrize("damping", [0.0, 1e-5, 1e-3, 0.5, 40.0])
def test_a_step_solves_the_equation_of_motion(damping):
    agent = PointMassConfig(damping=damping, mass=1.7, dt=0.1).build()
    x, u = np.array([0.3, -0.2, 1.0, 2.0]), np.array([-4.0, 0.5])

    def motion(_, s):
        return np.concatenate((s[2:], (u - damping * s[2:]) / 1.7))

    want = solve_ivp(motion, (0, 0.1), x, rtol=1e-11, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(agent.step(x, u), want, rtol=1e-8)


def test_dynamics_are_the_steps_taken():
    agent = PointMassConfig(T=20).build()
    model = agent.dynamics()
    assert model.T == agent.T

    class Noise:
        def act(self, x, obs, t, noise):
            return noise

    r = agent.rollout(Noise(), 1, stream(0, "noise").normal(size=(3, 20, 2)))
    z = np.concatenate((r.X, r.U), axis=2)[:, :-1]
    np.testing.assert_allclose(np.einsum("tij,ntj->nti", model.F, z), r.X[:, 1:], atol=1e-12)
