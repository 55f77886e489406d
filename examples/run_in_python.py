"""A run without the command line: change an experiment, follow it, use the policy it learned.

You learn: that an experiment is a value which `dataclasses.replace` changes, that `gps.run` yields
a report after every iteration with all records in it, and how the policy acts outside of a run.
"""

from dataclasses import replace

import numpy as np

import gps

experiment = gps.load("point_mass_policy")
# A shorter run; what is nested is replaced from the inside out.
training = replace(experiment.algorithm.training, steps=1000)
experiment = replace(
    experiment, algorithm=replace(experiment.algorithm, training=training), iterations=4
)

for report in gps.run(experiment, seed=3):  # out="folder" would store it
    row = report.row  # one line of metrics.csv
    print(
        f"iteration {report.iteration}: sampled cost {row['cost_mean']:7.2f}, "
        f"policy ends {row['policy_distance_mean']:.3f} m from the target"
    )

state = report.state
controller, policy = state.conditions[0].controller, state.policy.policy
print(f"\ncontroller of condition 0 at the start, u = K x + k:\n{controller.K[0].round(2)} x")
print(f"its exploration: {np.sqrt(np.diag(controller.Sigma[0])).round(3)} N")
print(f"rollouts of condition 0: states {report.rollouts[0].X.shape} (sample, time, entry)")

# The policy is a function of the observation: here position and velocity.
obs = np.array([0.6, -0.8, 0.0, 0.0])
force, _ = policy.predict(obs)
print(f"\npolicy at rest in {obs[:2]}: force {force.round(2)} N")

# A start that no rollout has seen, by hand in the agent's own dynamics.
agent, x = experiment.agent.build(), obs
for _ in range(agent.T):
    x = agent.step(x, policy.predict(x)[0])
print(f"closed loop from there ends {np.linalg.norm(x[:2]):.4f} m from the target")
