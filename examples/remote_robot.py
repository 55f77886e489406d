"""A robot in another process: the same rollouts over TCP, and what happens when it dies.

You learn: how `python -m gps.agents` serves a simulator in a robot's place, how `RemoteConfig`
stands for it in an experiment, and that the loss of the robot is one clear error. Your own robot
needs an agent with `gps.agents.serve`, or docs/remote.md for another language.
"""

import subprocess
import sys
import time

import numpy as np

from gps.agents import PointMassConfig
from gps.agents.remote import RemoteConfig, RemoteError
from gps.types import LinearGaussianController

command = [sys.executable, "-m", "gps.agents", "point_mass"]
robot = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
try:
    _, port = robot.stdout.readline().rsplit(":", 1)  # serving point_mass at 127.0.0.1:PORT
    agent = RemoteConfig(port=int(port), nu=2, dt=0.05).build()
    print(f"state {agent.layout.names}, {agent.T} steps, {agent.n_conditions} conditions")

    # A spring to the origin, as the gains of a linear-Gaussian controller: runs beside the robot.
    K = np.tile(np.hstack([-2.0 * np.eye(2), -1.5 * np.eye(2)]), (agent.T, 1, 1))
    chol = np.tile(0.5 * np.eye(2), (agent.T, 1, 1))
    spring = LinearGaussianController(K=K, k=np.zeros((agent.T, 2)), chol=chol)
    noise = np.random.default_rng(0).standard_normal((5, agent.T, agent.nu))

    class Neural:  # or anything else with act: asked over the wire in every step
        def act(self, x, obs, t, noise):
            return -2.0 * np.tanh(obs[:, :2]) - 1.5 * obs[:, 2:] + 0.5 * noise

    here = PointMassConfig().build()
    for name, policy in (("gains", spring), ("steps", Neural())):
        begin = time.perf_counter()
        far = agent.rollout(policy, 0, noise)
        ms = 1000 * (time.perf_counter() - begin)
        same = far.X.tobytes() == here.rollout(policy, 0, noise).X.tobytes()
        end = np.linalg.norm(far.X[:, -1, :2], axis=1).mean()
        print(f"{name}: {ms:.1f} ms, ends {end:.2f} m off, the bytes of a local rollout: {same}")
finally:
    robot.kill()
    robot.wait()
    robot.stdout.close()

try:
    agent.rollout(spring, 0, noise)
except RemoteError as error:
    print(f"without it: {error}")
