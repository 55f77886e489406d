"""Four slow robots that do not wait for each other, and a policy that learns from all of them.

You learn: how `RealTimeConfig` makes a simulated agent as slow as a robot, how an asynchronous run
is started from Python on worker processes, and what its reports say: how old the policy was that
the updates used, and how much of their time the robots spent moving.
"""

from dataclasses import replace

import gps
from gps.agents import RealTimeConfig
from gps.parallel import Dask

# Dask's workers import this file again: what starts them must not run there.
if __name__ == "__main__":
    experiment = gps.load("point_mass_policy")
    # A batch is five rollouts of several seconds each, here at forty times the speed of a robot.
    slow = RealTimeConfig(agent=experiment.agent, factor_std=0.4, speed=40.0)
    experiment = replace(experiment, agent=slow, iterations=3)

    # One worker for each of the four conditions, and one that trains.
    executor = Dask(workers=5, reserve=1)
    config = gps.AsynchronousConfig(replay_batches=2)  # of each condition, to train on
    for report in gps.run_asynchronous(experiment, config=config, executor=executor):
        row = report.row
        print(
            f"after {row['local_updates']:3.0f} updates by the robots and "
            f"{row['policy_updates']:3.0f} of the policy: cost {row['policy_cost_mean']:7.2f}, "
            f"age {row['age_mean']:.2f}, robots busy {100 * row['utilisation']:.0f} %"
        )
    executor.close()
    print(f"rollouts in all: {row['env_steps'] / report.rollouts[0].T:.0f}")
