"""Following a reference from noisy measurements: LQR tracking with a Kalman filter in the loop.

You learn: how a reference, weights and a sensor are written down, what the filter knows that single
measurements do not, that a reference which no trajectory can follow is rounded off ahead of its
corners, and what smoothing adds afterwards.
"""

import numpy as np

from gps.control import tracking
from gps.types import Gaussian, LinearDynamics

T, dt = 200, 0.05
time = dt * np.arange(T)

# a cart of 1 kg on a rail, pushed about by 0.2 N of noise; its position is measured to 5 cm
step = np.array([[1.0, dt, 0.5 * dt**2], [0.0, 1.0, dt]])
push = 0.2 * np.array([0.5 * dt**2, dt])
dynamics = LinearDynamics(
    F=np.tile(step, (T - 1, 1, 1)),
    f=np.zeros((T - 1, 2)),
    W=np.tile(np.outer(push, push), (T - 1, 1, 1)),
)
sensor = tracking.LinearSensor.constant(T, H=[[1.0, 0.0]], V=[[0.05**2]])
start = Gaussian(np.zeros(2), np.diag([0.1, 0.1]) ** 2)

# position and velocity to follow, and the force that this takes
wave = np.stack((1 - np.cos(time), np.sin(time)), axis=1), np.cos(time)[:, None]
corner = np.abs((time - 5.0 + 2.5) % 5.0 - 2.5)  # a zigzag: its velocity jumps
slope = np.where((time - 2.5) % 5.0 < 2.5, -1.0, 1.0)
zigzag = np.stack((corner, slope), axis=1), np.zeros((T, 1))
Q, R = np.diag([100.0, 1.0]), np.array([[0.1]])


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x[:, 40:] ** 2)))  # after the first 2 s


print("root mean square errors in cm, 200 runs")
print(f"{'reference':10} {'feedback':10} {'from reference':>15} {'raw':>6} {'filter':>7}", end="")
print(f" {'its own sigma':>14} {'smoother':>9}")
for name, (X_ref, U_ref) in (("wave", wave), ("zigzag", zigzag)):
    controller = tracking.track(dynamics, X_ref, U_ref, Q, R).controller
    for feedback in ("state", "estimate"):
        runs = tracking.simulate(
            dynamics, controller, start, sensor,
            feedback=feedback, N=200, rng=np.random.default_rng(0),
        )  # fmt: skip
        known = tracking.kalman_filter(dynamics, sensor, runs.Y, runs.U, start)
        later = tracking.smooth(dynamics, known)
        x = runs.X[..., 0]
        errors = (x - X_ref[:, 0], runs.Y[..., 0] - x, known.mean[..., 0] - x)
        off, raw, filtered = (100 * rms(e) for e in errors)
        sigma, smoothed = (
            100 * np.sqrt(known.cov[40:, 0, 0].mean()),
            100 * rms(later.mean[..., 0] - x),
        )
        print(f"{name:10} {feedback:10} {off:15.2f} {raw:6.2f} {filtered:7.2f}", end="")
        print(f" {sigma:14.2f} {smoothed:9.2f}")
