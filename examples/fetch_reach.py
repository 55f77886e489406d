"""gymnasium-robotics' FetchReach: an arm that is led by its gripper, one policy for goals anywhere.

You learn: how an environment with goals is an agent: its dictionary's parts are entries, and
`goal_offset` is the way from the goal. `gps run fetch_reach.py` runs it. It needs Gymnasium and its
robots: pip install 'gymnasium[mujoco]' gymnasium-robotics==1.4.2.
"""

from dataclasses import replace

import numpy as np

import gps
from gps.agents import GymnasiumConfig, random_starts
from gps.algorithms import MDGPSConfig, StepConfig
from gps.control import OpenLoopConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.policies import MLPConfig, TrainingConfig

# The actions displace the gripper, by 5 cm a step at most. What it does next depends on where it
# is and how it moves, which the first 10 values of the observation tell.
config = GymnasiumConfig(
    env="gymnasium_robotics:FetchReachDense-v4",
    T=15,
    state=("observation", "goal_offset"),
    obs=("observation", "goal_offset"),
    conditions=random_starts(12, seed=1, purpose="training"),
    test_conditions=random_starts(20, seed=1),
)
experiment = gps.Experiment(
    agent=config,
    cost=ActionCost(weights=0.002) + StateCost(entry="goal_offset", target=0.0, l1=1.0, alpha=1e-4),
    initial=OpenLoopConfig(variance=0.1),
    measure=EndpointMeasure(entry="goal_offset", target=(0.0, 0.0, 0.0), threshold=0.05, unit="m"),
    algorithm=MDGPSConfig(
        network=MLPConfig(hidden=(40, 40)),
        restart=True,
        training=TrainingConfig(steps=3000),
        step=StepConfig(kl_max=2.0),
    ),
    samples=8,
    iterations=6,
)


def returns(policy, env, seeds=range(1000, 1020)):
    """Sum of the rewards of whole episodes of 50 steps, as the environment reports them."""
    starts = tuple(gps.agents.GymnasiumStart(seed=s) for s in seeds)
    agent = replace(
        config, env=env, T=51, state=(*config.state, "reward"), conditions=starts
    ).build()
    silence = np.zeros((1, agent.T, agent.nu))
    return [agent.rollout(policy, m, silence).entry("reward").sum() for m in range(len(starts))]


if __name__ == "__main__":
    for report in gps.run(experiment):
        policy = report.state.policy.policy
        for env in (config.env, config.env.replace("Dense", "")):
            found = returns(policy, env)
            print(f"{report.iteration}: {env}: mean {np.mean(found):.2f}, worst {min(found):.2f}")
