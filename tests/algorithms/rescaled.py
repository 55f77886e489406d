"""The same problem in other units: an agent, its costs, controllers and results, rescaled."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gps.protocols import acting, control_range_of
from gps.types import LinearGaussianController


@dataclass(frozen=True, eq=False)
class Units:
    """Numbers of the other units in one of ours: x (nx,), u (nu,), obs (no,), and of the cost."""

    x: np.ndarray
    u: np.ndarray
    obs: np.ndarray
    cost: float = 1.0

    def controller(self, c):
        """A controller of ours in the other units."""
        K = self.u[:, None] * c.K / self.x
        return LinearGaussianController(K, self.u * c.k, self.u[:, None] * c.chol)

    def ours(self, c):
        """A controller of the other units in ours."""
        K = c.K * self.x / self.u[:, None]
        return LinearGaussianController(K, c.k / self.u, c.chol / self.u[:, None])

    def rollouts(self, r):
        """Rollouts in the other units; the noise has no unit."""
        J = {
            name: J * self.x[r.layout.slice(name)][:, None] / self.x
            for name, J in r.jacobians.items()
        }
        return replace(r, X=r.X * self.x, U=r.U * self.u, obs=r.obs * self.obs, jacobians=J)


@dataclass(frozen=True, eq=False)
class _Actor:
    """A policy of the other units, as ours see it."""

    policy: Any
    units: Units

    def act(self, x, obs, t, noise):
        units = self.units
        return self.policy.act(x * units.x, obs * units.obs, t, noise) / units.u


class RescaledAgent:
    """An agent whose states, observations and actions count in other units."""

    def __init__(self, agent, units):
        self._agent, self.units = agent, units

    def __getattr__(self, name):
        if name in ("control_range", "known_model") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._agent, name)

    @property
    def control_range(self):
        limits = control_range_of(self._agent)
        return None if limits is None else tuple(v * self.units.u for v in limits)

    def start_state(self, condition, *, test=False):
        return self._agent.start_state(condition, test=test) * self.units.x

    def rollout(self, policy, condition, noise, start_noise=None, *, test=False):
        actor = _Actor(acting(policy), self.units)
        return self.units.rollouts(
            self._agent.rollout(actor, condition, noise, start_noise, test=test)
        )


@dataclass(frozen=True, eq=False)
class RescaledCost:
    """A cost of our states and actions, in the other units."""

    cost: Any
    units: Units

    def check(self, layout, nu, T):
        self.cost.check(layout, nu, T)

    def evaluate(self, rollouts):
        s = self.units
        back = Units(1.0 / s.x, 1.0 / s.u, 1.0 / s.obs)
        c, terms = s.cost, self.cost.evaluate(back.rollouts(rollouts))
        return replace(
            terms,
            l=c * terms.l,
            l_x=c * terms.l_x / s.x,
            l_u=c * terms.l_u / s.u,
            l_xx=c * terms.l_xx / np.outer(s.x, s.x),
            l_ux=c * terms.l_ux / np.outer(s.u, s.x),
            l_uu=c * terms.l_uu / np.outer(s.u, s.u),
        )
