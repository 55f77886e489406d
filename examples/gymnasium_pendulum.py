"""Pendulum-v1 from its observation alone: an agent of which nothing is known at the beginning.

You learn: how to start where the state has no joint positions, so that no first controller could
hold them: with plain noise about constant actions (`OpenLoopConfig`). `gps run
gymnasium_pendulum.py` runs it. It needs the extra `gym`.
"""

import math

import numpy as np

import gps
from gps.agents import GymnasiumConfig, GymnasiumStart
from gps.algorithms import StepConfig, TrajOptConfig
from gps.control import OpenLoopConfig
from gps.costs import ActionCost, StateCost

# The observation is (cos, sin) of the angle from upright, and the angular velocity. The motor gives
# 2 N m, which does not lift the pendulum. A start is drawn by its seed from upright, up to x_init
# rad and y_init rad/s off.
experiment = gps.Experiment(
    agent=GymnasiumConfig(
        env="Pendulum-v1",
        T=80,
        obs_entries=(("direction", 2), ("speed", 1)),
        conditions=tuple(
            GymnasiumStart(seed=0, options=(("x_init", x), ("y_init", 0.1))) for x in (0.5, 1.0)
        ),
    ),
    cost=(
        StateCost(entry="direction", target=(1.0, 0.0), l2=2.0, final_multiplier=5.0)
        + StateCost(entry="speed", target=0.0, l2=0.02)
        + ActionCost(weights=0.02)
    ),
    initial=OpenLoopConfig(variance=1.0),  # N^2 m^2
    algorithm=TrajOptConfig(step=StepConfig(kl_max=1.0)),
    samples=15,
    iterations=15,
)

if __name__ == "__main__":
    agent = experiment.agent.build()
    silence = np.zeros((1, agent.T, agent.nu))
    for report in gps.run(experiment):
        if report.iteration % 5 == 0:
            ends = [
                agent.rollout(c.controller, m, silence).entry("direction")[0, -1]
                for m, c in enumerate(report.state.conditions)
            ]
            off = [math.atan2(sine, cosine) for cosine, sine in ends]
            print(f"{report.iteration:2}: ends", *(f"{abs(a):.3f} rad" for a in off), "off")
