"""A Gymnasium environment as an agent: Reacher-v5 and its own reward, written down and fitted.

You learn: how to write an environment's reward as a cost with derivatives, and what to do when the
reward is only a number that comes with each step. `gps run gymnasium_agent.py` runs the first. It
needs the extra `gym` and Gymnasium's own: pip install 'gymnasium[mujoco]'.
"""

from dataclasses import replace

import numpy as np

import gps
from gps.agents import GymnasiumConfig, random_starts
from gps.algorithms import StepConfig, TrajOptConfig
from gps.control import OpenLoopConfig
from gps.costs import ActionCost, FittedRewardCost, StateCost

# What Reacher-v5 observes: cosines and sines of both joints, the target, the joints' speeds, and
# the way from the target to the finger tip, which is all that its reward needs besides the action.
config = GymnasiumConfig(
    env="Reacher-v5",
    obs_entries=(("direction", 4), ("target", 2), ("speed", 2), ("offset", 2)),
    state=("joint_pos", "joint_vel", "offset", "reward"),
    conditions=random_starts(2, seed=1, purpose="training"),
)
# The reward is -|offset| - |u|^2.
known = (
    StateCost(entry="offset", target=0.0, l1=1.0, alpha=1e-4)
    + ActionCost(weights=2.0)  # 1/2 weight u^2
)
experiment = gps.Experiment(
    agent=replace(config, state=config.state[:-1]),  # this cost does without the reward
    cost=known,
    initial=OpenLoopConfig(variance=0.1),  # noise about no torque
    algorithm=TrajOptConfig(step=StepConfig(kl_max=1.0)),
    samples=10,
    iterations=8,
)
fitted = replace(experiment, agent=config, cost=FittedRewardCost(), samples=20)

if __name__ == "__main__":
    for name, run in (("known", experiment), ("fitted", fitted)):
        agent = replace(config, state=run.agent.state, obs=("reward",)).build()
        silence = np.zeros((1, agent.T, agent.nu))
        for report in gps.run(run):
            if report.iteration in (1, 4, 8):
                cond = report.state.conditions
                rolled = [agent.rollout(c.controller, m, silence) for m, c in enumerate(cond)]
                returns = [r.obs.sum() for r in rolled]
                print(f"{name:6} {report.iteration}: returns", *(f"{v:7.2f}" for v in returns))
