"""README's pieces of Python run as they stand, given the names that they leave open."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"

ROBOT = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody><body>
    <joint name="slide" type="slide" axis="1 0 0"/><geom type="sphere" size="0.1" mass="1"/>
  </body></worldbody>
  <actuator><motor joint="slide" ctrlrange="-5 5" ctrllimited="true"/></actuator>
</mujoco>
"""

OPEN = """
import mujoco
import numpy as np
import torch
from gps.control.tracking import LinearSensor
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

T, nx, nu, N = 12, 2, 1, 6
rng = np.random.default_rng(0)
F = np.tile(np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1]]), (T - 1, 1, 1))
f, W = np.zeros((T - 1, nx)), np.tile(1e-4 * np.eye(nx), (T - 1, 1, 1))
C, c, c0 = np.tile(np.eye(nx + nu), (T, 1, 1)), np.zeros((T, nx + nu)), np.zeros(T)
x0, S0 = np.ones(nx), 0.01 * np.eye(nx)
A, B, Q, R = F[0, :, :nx], F[0, :, nx:], np.eye(nx), np.eye(nu)
zero = np.zeros((T, nu, nx)), np.zeros((T, nu)), np.tile(np.eye(nu), (T, 1, 1))
previous = controller = LinearGaussianController(*zero)
dynamics, cost, start = LinearDynamics(F, f, W), QuadraticCost(C, c, c0), x0
"""
SAMPLES = """
start = Gaussian(x0, S0)
X, U, costs = rng.normal(size=(N, T, nx)), rng.normal(size=(N, T, nu)), rng.gamma(1.0, size=(N, T))
"""
REFERENCE = """
X_ref, U_ref, Q, R = np.zeros((T, nx)), np.zeros((T, nu)), np.eye(nx), np.eye(nu)
sensor = LinearSensor.constant(T, np.eye(nx), 0.01 * np.eye(nx))
models, costs = [dynamics] * 3, [cost] * 3
"""
CHECKS = """
assert result.kl.sum() <= 1.01 * T
assert plain.T == T and not regulator.K[-1].any() and regulator.K[0].any()
assert plan.converged and abs(plan.U).max() <= 5
assert better.K.shape == (T, nu, nx)
assert loop.X.shape == (100, T, nx)
assert gains.K.shape == (3, T, nu, nx)
assert type(keep_right).__name__ == "TorchCost"
"""


def test_the_pieces_of_control_and_costs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    marks = ("import dual, lqr", "import ilqr", "import pi2, pilqr", "import batch", "torch_cost\n")
    pieces = [next(b for b in blocks if mark in b) for mark in marks]
    between = ["", "", SAMPLES, REFERENCE, ""]
    code = OPEN + "".join(a + b for a, b in zip(between, pieces, strict=True)) + CHECKS
    (tmp_path / "pieces.py").write_text(code)
    (tmp_path / "robot.xml").write_text(ROBOT)
    done = subprocess.run(
        [sys.executable, "pieces.py"],
        cwd=tmp_path,
        env={**os.environ, "NUMBA_NUM_THREADS": "2"},  # one piece asks for two
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
