"""An agent as a gymnasium environment: random search over linear policies, beside our controller.

You learn: that `as_gymnasium` gives any library of reinforcement learning the same agent and cost,
so that returns and costs compare directly. It needs the extra `gym`.
"""

import numpy as np

import gps
from gps.agents import as_gymnasium
from gps.rng import stream

experiment = gps.load("point_mass")
env = as_gymnasium(experiment.agent, experiment.cost, condition=0, measure=experiment.measure)


def episode(act):
    """Cost of one episode under actions act(obs, t), and the info of its last step."""
    obs, info = env.reset(seed=0)
    cost, done, t = 0.0, False, 0
    while not done:
        obs, reward, terminated, truncated, info = env.step(act(obs, t))
        cost, done, t = cost - reward, terminated or truncated, t + 1
    return cost, info


def linear(W):
    return lambda obs, t: W @ np.append(obs, 1.0)


# Random search: try changed weights, keep them if they are better, and change less and less.
rng, W = stream(0, "random search"), np.zeros((2, 5))
best, info = episode(linear(W))
print(f"no force:                        cost {best:7.2f}")
for tried in range(1, 201):
    change = rng.normal(size=W.shape) * 0.99**tried
    cost, seen = episode(linear(W + change))
    if cost < best:
        best, info, W = cost, seen, W + change
    if tried in (80, 200):
        print(f"random search, {tried:3} episodes:     cost {best:7.2f}, success {info['success']}")

*_, last = gps.run(experiment)
controller = last.state.conditions[0].controller
cost, info = episode(lambda obs, t: controller.K[t] @ obs + controller.k[t])
count = experiment.samples * experiment.iterations  # from this condition
print(f"trajectory optimisation, {count:2} ep.:   cost {cost:7.2f}, success {info['success']}")

rollout = env.agent.rollout(controller, 0, np.zeros((1, env.agent.T, env.agent.nu)))
print(f"the same controller in a rollout: cost {experiment.cost.evaluate(rollout).l.sum():6.2f}")
