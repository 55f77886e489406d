"""Dynamics from a handful of rollouts: what a mixture prior adds to regression.

You learn: how to roll out a controller in an agent, how to fit x[t+1] = F [x; u] + f to the
samples, and that a prior fitted to the transitions of all steps makes five rollouts enough for a
10-dimensional state, where regression step by step has fewer samples than unknowns.
"""

import numpy as np

from gps.agents import arm_reach
from gps.control import HoldConfig
from gps.distributions import MixturePriorConfig, update_prior
from gps.dynamics import DynamicsConfig, fit, points, prediction_error
from gps.rng import stream
from gps.types import Rollouts

agent = arm_reach().build()  # a two-link arm in MuJoCo
initial = HoldConfig(gains=(4.5, 31.0))
controller = initial.controller(agent.start_state(0), agent.layout, agent.nu, agent.T, agent.dt)


def sample(n: int, purpose: str) -> Rollouts:
    """n noisy rollouts of the same controller from the first start pose."""
    noise = stream(0, purpose).standard_normal((n, agent.T, agent.nu))
    return agent.rollout(controller, 0, noise)


unseen = sample(50, "unseen rollouts")
still = np.sqrt(np.diff(unseen.X, axis=1).var(axis=(0, 1)))  # error of "x stays the same"
which = agent.layout.slice("joint_vel")
print("root mean square error of the joint velocities one step ahead, on 50 unseen rollouts")
print(f"{'':>16} {'ridge only':>11} {'with prior':>11}   in rad/s")
for n in (3, 5, 10, 20):
    seen = sample(n, "seen rollouts")
    prior = update_prior(
        None, points(seen.X, seen.U), MixturePriorConfig(), stream(0, "mixture start")
    )
    errors = []
    for p in (None, prior):
        model = fit(seen, p, DynamicsConfig())
        errors.append(np.sqrt((prediction_error(model.dynamics, unseen)[:, which] ** 2).mean()))
    print(f"{n:>3} rollouts     {errors[0]:11.4f} {errors[1]:11.4f}")
print(f"{'no model':>16} {np.sqrt((still[which] ** 2).mean()):11.4f}")
