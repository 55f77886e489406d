"""Small problems, a judge of optimality and byte-wise comparison for the tests of this folder."""

import hashlib
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import numpy as np

from gps.agents.point_mass import PointMassConfig
from gps.control import lqr
from gps.control.initial import HoldConfig
from gps.costs import ActionCost, StateCost, SumCost, WeightedCost
from gps.costs.base import expand
from gps.rng import stream
from gps.types import CostTerms, LinearGaussianController

FIXTURES = Path(__file__).parent.parent / "fixtures"
AGENT = PointMassConfig(T=25, dt=0.08, starts=((1.0, 1.0), (1.0, -0.5)))
COST = SumCost(
    terms=(
        WeightedCost(weight=1.0, cost=ActionCost(weights=0.01)),
        WeightedCost(weight=1.0, cost=StateCost(entry="position", target=(0.0, 0.0), l2=1.0)),
        WeightedCost(
            weight=1.0,
            cost=StateCost(entry="velocity", target=(0.0, 0.0), weights=0.05, l2=1.0),
        ),
    )
)
HOLD = HoldConfig(position="position", velocity="velocity")


@dataclass(frozen=True)
class Unusable:
    """A cost that is not a number wherever the position's x lies below `edge`."""

    edge: float
    value: bool = True
    """Whether the cost itself is lost, or only its gradient."""

    def evaluate(self, rollouts):
        terms = COST.evaluate(rollouts)
        lost = rollouts.X[:, :, 0] < self.edge
        if self.value:
            return replace(terms, l=np.where(lost, np.nan, terms.l))
        return replace(terms, l_x=np.where(lost[..., None], np.nan, terms.l_x))

    def check(self, layout, nu, T):
        """Fits every point mass."""


@dataclass(frozen=True)
class Reward:
    """A cost that falls without bound with growing actions: Q_uu is indefinite."""

    def evaluate(self, rollouts):
        terms = COST.evaluate(rollouts)
        eye = np.broadcast_to(np.eye(rollouts.nu), terms.l_uu.shape)
        return CostTerms(
            l=terms.l - 500.0 * (rollouts.U**2).sum(axis=-1),
            l_x=terms.l_x,
            l_u=terms.l_u - 1000.0 * rollouts.U,
            l_xx=terms.l_xx,
            l_ux=terms.l_ux,
            l_uu=terms.l_uu - 1000.0 * eye,
        )

    def check(self, layout, nu, T):
        """Fits every point mass."""


def begin(config, agent=AGENT, cost=COST, seed=0):
    """The agent and the first state."""
    agent = agent.build()
    controllers = tuple(
        HOLD.controller(agent.start_state(m), agent.layout, agent.nu, agent.T, agent.dt)
        for m in range(agent.n_conditions)
    )
    return agent, config.start((cost,) * agent.n_conditions, controllers, agent, seed)


def sample(agent, sources, seed, samples=5):
    """Rollouts of every condition; `seed` alone decides the noise."""
    out = []
    for m, source in enumerate(sources):
        noise = stream(seed, "test noise", m).standard_normal((samples, agent.T, agent.nu))
        out.append(agent.rollout(source.actor, m, noise))
    return out


def advance(config, agent, state, iterations, samples=5):
    """Some iterations in the plainest way: a loop with records, and no executor."""
    reports, rollouts = [], None
    for _ in range(iterations):
        rollouts = sample(agent, config.sampling(state), state.iteration, samples)
        state, report = config.iterate(state, rollouts)
        reports.append(report)
    return state, reports, rollouts


def noise_free_cost(agent, policy, condition, cost=COST):
    rollouts = agent.rollout(policy, condition, np.zeros((1, agent.T, agent.nu)))
    return float(cost.evaluate(rollouts).l.sum())


def optimal_costs(agent=AGENT):
    """Cost of the optimal controller of the true dynamics, per condition; not learned."""
    agent = agent.build()
    out = []
    for m in range(agent.n_conditions):
        zero = LinearGaussianController(
            np.zeros((agent.T, 2, 4)), np.zeros((agent.T, 2)), np.tile(np.eye(2), (agent.T, 1, 1))
        )
        rollouts = agent.rollout(zero, m, np.zeros((1, agent.T, 2)))
        quadratic = expand(COST.evaluate(rollouts), rollouts)  # exact: the cost is quadratic
        best = lqr.backward(agent.dynamics(), quadratic)
        out.append(noise_free_cost(agent, best, m))
    return np.array(out)


def unstable(controller, gain=8.0):
    """A controller that pushes the mass away from the origin."""
    K, k = np.zeros_like(controller.K), np.zeros_like(controller.k)
    K[:, :, :2] = gain * np.eye(2)
    return LinearGaussianController(K, k, controller.chol)


def digest(tree):
    """Hash of all that records, containers and arrays hold, bit by bit."""
    out = hashlib.sha256()
    _feed(tree, out)
    return out.hexdigest()


def _feed(tree, out):
    out.update(type(tree).__name__.encode())
    if isinstance(tree, np.ndarray):
        out.update(str((tree.dtype, tree.shape)).encode() + tree.tobytes())
    elif is_dataclass(tree):
        for f in fields(tree):
            out.update(f.name.encode())
            _feed(getattr(tree, f.name), out)
    elif isinstance(tree, tuple | list):
        for item in tree:
            _feed(item, out)
    elif hasattr(tree, "items"):
        for key, item in tree.items():
            out.update(key.encode())
            _feed(item, out)
    else:
        out.update(repr(tree).encode())
