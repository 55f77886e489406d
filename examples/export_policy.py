"""The policy of a stored run as one file, and a process that uses it with torch alone.

You learn: how to export what a run has learned, how a program on a robot uses the file, and that
`gps.policies.load` makes it a policy for rollouts again.
"""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import gps
from gps import policies

# What a robot would run; here its sensors are a line of text.
ROBOT = """
import json, sys, torch
extra = {"gps_policy.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
metadata = json.loads(extra["gps_policy.json"])
print("learned in {experiment} iteration {iteration} seed {seed}".format(**metadata))
print("observation:", metadata["obs_layout"], "every", metadata["dt"], "s")
obs = torch.tensor([[float(x) for x in sys.argv[2].split()]])  # (batch, entries), float32
mean, covariance = program(obs)
print("force:", *mean[0].tolist())
print("standard deviation:", *covariance.diagonal().sqrt().tolist())
print("gps imported:", "gps" in sys.modules)
"""

experiment = gps.load("point_mass_policy")
training = replace(experiment.algorithm.training, steps=1000)
experiment = replace(
    experiment, algorithm=replace(experiment.algorithm, training=training), iterations=4
)

with tempfile.TemporaryDirectory() as folder:
    for _ in gps.run(experiment, seed=3, out=f"{folder}/run"):
        pass
    path = gps.export_policy(f"{folder}/run", f"{folder}/policy.pt2")  # or: gps export RUN FILE
    print(f"wrote {path.name}, {path.stat().st_size / 1024:.0f} KiB")
    command = [sys.executable, "-c", ROBOT, str(path), "0.6 -0.8 0 0"]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    stored = gps.load_policy(Path(folder) / "run")  # the run itself, without a file in between
    policy = policies.load(path)

obs = np.array([0.6, -0.8, 0.0, 0.0])
print("force here:", *policy.predict(obs)[0])
print(f"file and run differ by {abs(policy.mean(obs) - stored.mean(obs)).max():.1e} N")

agent = experiment.agent.build()
rollouts = agent.rollout(policy, 0, np.zeros((1, agent.T, agent.nu)))  # it acts in rollouts too
print(f"rollout from {rollouts.X[0, 0, :2]} ends {np.linalg.norm(rollouts.X[0, -1, :2]):.4f} m off")
