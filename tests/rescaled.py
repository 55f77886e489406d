"""The same problem in other units: agents, models, costs, records and results, rescaled."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gps.protocols import acting, control_range_of
from gps.types import (
    Gaussian,
    LinearDynamics,
    LinearGaussianController,
    QuadraticCost,
)


@dataclass(frozen=True, eq=False)
class Units:
    """Numbers of the other unit in one of ours, each above 0: x (nx,), u (nu,), of the cost."""

    x: np.ndarray
    u: np.ndarray
    cost: float = 1.0

    @classmethod
    def one(cls, nx, nu):
        """Our own."""
        return cls(np.ones(nx), np.ones(nu))

    @classmethod
    def drawn(cls, nx, nu, seed, base=10.0, span=6):
        """Any powers of `base`, from -span to span, for each entry of its own."""
        powers = np.random.default_rng(seed).integers(-span, span + 1, size=nx + nu + 1)
        x, u, cost = np.split(base**powers, [nx, nx + nu])
        return cls(x, u, float(cost[0]))

    def within(self, layout, most=2.0**10):
        """These, with units of one entry's values that differ by no more than the factor `most`
        from its first: what varies by far less than its entry is large counts as rounding."""
        x = self.x.copy()
        for name in layout.names:
            own = x[layout.slice(name)]
            own[:] = own[0] * np.clip(own / own[0], 1 / most, most)
        return replace(self, x=x)

    @cached_property
    def z(self):
        """Of [x; u], (nz,)."""
        return np.concatenate((self.x, self.u))

    @property
    def back(self):
        """From the other units to ours."""
        return Units(1.0 / self.x, 1.0 / self.u, 1.0 / self.cost)

    def controller(self, c):
        """Of ours, in the other units."""
        K = self.u[:, None] * c.K / self.x
        return LinearGaussianController(K, self.u * c.k, self.u[:, None] * c.chol)

    def dynamics(self, d):
        """Of ours, in the other units."""
        F, W = d.F * self.x[:, None] / self.z, d.W * np.outer(self.x, self.x)
        return LinearDynamics(F, d.f * self.x, W)

    def gaussian(self, g):
        """Over our states, over those of the other units."""
        return Gaussian(g.mean * self.x, g.cov * np.outer(self.x, self.x))

    def quadratic(self, q):
        """A cost of ours, in the other units."""
        C = self.cost * q.C / np.outer(self.z, self.z)
        return QuadraticCost(C, self.cost * q.c / self.z, self.cost * q.c0)

    def rollouts(self, r):
        """Of ours, in the other units; observations are the states, the noise has no unit."""
        J = {
            name: J * self.x[r.layout.slice(name)][:, None] / self.x
            for name, J in r.jacobians.items()
        }
        obs = r.obs * self.x if r.obs.size else r.obs  # planners ask for costs without any
        return replace(r, X=r.X * self.x, U=r.U * self.u, obs=obs, jacobians=J)


@dataclass(frozen=True, eq=False)
class _Actor:
    """A policy of the other units, as our agent sees it."""

    policy: Any
    units: Units

    def act(self, x, obs, t, noise):
        units = self.units
        return self.policy.act(x * units.x, obs * units.x, t, noise) / units.u


@dataclass(frozen=True, eq=False)
class Model:
    """A model of `gps.control.models` in other units."""

    model: Any
    units: Units

    nx = property(lambda self: self.model.nx)
    nu = property(lambda self: self.model.nu)

    def rollout(self, X, U, k, K, sizes, low, high):
        x, u = self.units.x, self.units.u
        X, U = self.model.rollout(X / x, U / u, k / u, K * x / u[:, None], sizes, low / u, high / u)
        return X * x, U * u

    def jacobians(self, X, U):
        x, u = self.units.x, self.units.u
        return self.model.jacobians(X / x, U / u) * x[:, None] / self.units.z


@dataclass(frozen=True, eq=False)
class AgentConfig:
    """An agent whose observation is its state, which counts in other units."""

    agent: Any
    units: Units

    def build(self, threads=1):
        return Agent(self.agent.build(threads), self.units)


class Agent:
    """See `AgentConfig`."""

    def __init__(self, agent, units):
        self.agent, self.units = agent, units
        for name in ("layout", "obs_layout", "T", "dt", "nu", "n_start", "n_conditions"):
            setattr(self, name, getattr(agent, name))
        self.n_test_conditions, self.model_entries = 0, agent.layout.names

    @property
    def control_range(self):
        return tuple(v * self.units.u for v in control_range_of(self.agent))

    def start_state(self, condition, *, test=False):
        return self.agent.start_state(condition) * self.units.x

    def known_model(self, condition, models, *, test=False):
        return Model(self.agent.known_model(condition, models), self.units)

    def rollout(self, policy, condition, noise, start_noise=None, *, test=False):
        actor = _Actor(acting(policy), self.units)
        return self.units.rollouts(self.agent.rollout(actor, condition, noise, start_noise))


@dataclass(frozen=True, eq=False)
class Cost:
    """A cost of `gps.costs` of our states and actions, in the other units."""

    cost: Any
    units: Units

    def check(self, layout, nu, T):
        self.cost.check(layout, nu, T)

    def evaluate(self, rollouts):
        c, x, u = self.units.cost, self.units.x, self.units.u
        terms = self.cost.evaluate(self.units.back.rollouts(rollouts))
        return replace(
            terms,
            l=c * terms.l,
            l_x=c * terms.l_x / x,
            l_u=c * terms.l_u / u,
            l_xx=c * terms.l_xx / np.outer(x, x),
            l_ux=c * terms.l_ux / np.outer(u, x),
            l_uu=c * terms.l_uu / np.outer(u, u),
        )


def near(what, one, other, close):
    """Two arrays are alike, by the size of the first; NaN and infinity stand in the same places."""
    one, other = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    finite = np.isfinite(one)
    np.testing.assert_array_equal(finite, np.isfinite(other), err_msg=what)
    size = np.abs(one[finite]).max(initial=0.0)
    np.testing.assert_allclose(other[finite], one[finite], rtol=0, atol=close * size, err_msg=what)


def near_controllers(what, one, other, close):
    """Two controllers in the same units are alike."""
    for part in ("K", "k", "chol"):
        near(f"{what}, {part}", getattr(one, part), getattr(other, part), close)
