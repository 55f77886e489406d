"""Time one MDGPS iteration's mixture fits and regressions.

Run: OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/bench_dynamics.py

A simulated 7-joint arm (nx=26: joints, velocities, two end points and their velocities; T=100; 5
rollouts a condition and iteration; 20 remembered) gives the points: nearly collinear, like those
of real arms. Prints medians over iterations 5 to 8 for 4 conditions, and the time of one EM
iteration against scikit-learn's GaussianMixture on the same points in the same run.
"""

from __future__ import annotations

import time
import warnings

import numpy as np

from gps import dynamics
from gps.distributions import GMMConfig, MixturePriorConfig, fit_linear_gaussian, update_prior
from gps.distributions.gmm import fit
from gps.types import Layout, Rollouts

M, N, T, DT, JOINTS = 4, 5, 100, 0.05, 7


def arm_rollouts(
    rng: np.random.Generator, gains: np.ndarray, start: np.ndarray, n: int = N
) -> Rollouts:
    """n rollouts of a damped arm under noisy PD control; smooth, without contacts."""
    lengths = np.linspace(0.4, 0.1, JOINTS)

    def points(q: np.ndarray) -> np.ndarray:
        angle = np.cumsum(q, axis=1)
        link = np.stack([np.cos(angle), np.sin(angle), 0.3 * np.sin(2 * q)], axis=-1)
        tips = np.cumsum(lengths[:, None] * link, axis=1)
        return np.concatenate([tips[:, -1], tips[:, 3]], axis=1)

    q, v = np.tile(start, (n, 1)), np.zeros((n, JOINTS))
    X, U = np.empty((n, T, 26)), rng.normal(size=(n, T, JOINTS))
    smooth = np.array(U)
    for t in range(1, T):
        smooth[:, t] = 0.8 * smooth[:, t - 1] + 0.6 * U[:, t]
    coupling = 0.3 * np.cos(np.subtract.outer(np.arange(JOINTS), np.arange(JOINTS)))
    for t in range(T):
        ee = points(q)
        step = 1e-5
        eev = (points(q + step * v) - points(q - step * v)) / (2 * step)
        X[:, t] = np.concatenate([q, v, ee, eev], axis=1)
        u = gains * (0.5 - q) - 0.4 * v + 0.3 * smooth[:, t]
        U[:, t] = u
        gravity = np.sin(np.cumsum(q, axis=1)) * lengths
        v = v + DT * (u + u @ coupling.T - 0.5 * v - gravity - 0.2 * np.tanh(5 * v))
        q = q + DT * v
    layout = Layout((("joint_pos", 7), ("joint_vel", 7), ("ee", 6), ("ee_vel", 6)))
    return Rollouts(X, U, X, np.zeros((n, T, JOINTS)), layout)


def em_iterations(points: np.ndarray, J: int, iterations: int) -> tuple[float, float]:
    """Seconds per EM iteration: ours, scikit-learn's, both cold, tolerance out of reach."""
    from sklearn.mixture import GaussianMixture

    flat = points.reshape(-1, points.shape[2])
    config = GMMConfig(max_iterations=iterations, tol=0, dead_mass=0)
    start = time.perf_counter()
    ours = len(fit(flat, J, config, np.random.default_rng(0)).log_likelihood)
    mine = (time.perf_counter() - start) / ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = GaussianMixture(
            J, max_iter=iterations, tol=0, init_params="random_from_data", random_state=0
        )
        start = time.perf_counter()
        peer.fit(flat)
    return mine, (time.perf_counter() - start) / peer.n_iter_


def main() -> None:
    config = MixturePriorConfig()
    rng = np.random.default_rng(0)
    starts = 0.5 * rng.normal(size=(M, JOINTS))
    dyn, pol = [None] * M, [None] * M
    rows = []
    for iteration in range(9):
        times = np.zeros(4)
        gains = 1.0 + 0.3 * iteration * np.ones(JOINTS)
        for m in range(M):
            r = arm_rollouts(rng, gains, starts[m])
            action = r.U + 0.01 * np.sin(r.X[..., :7])
            joint = np.concatenate([r.X, action], axis=2)
            marks = [time.perf_counter()]
            dyn[m] = update_prior(dyn[m], dynamics.points(r.X, r.U), config, rng)
            marks.append(time.perf_counter())
            dynamics.fit(r, dyn[m], dynamics.DynamicsConfig())
            marks.append(time.perf_counter())
            pol[m] = update_prior(pol[m], joint, config, rng)
            marks.append(time.perf_counter())
            fit_linear_gaussian(r.X, action, pol[m])
            marks.append(time.perf_counter())
            times += np.diff(marks)
        rows.append(times)
        print(f"iteration {iteration}: {times.sum():.3f} s", np.round(times, 4))
    median = np.median(rows[5:], axis=0)
    names = ("mixture D=59", "dynamics", "mixture D=33", "linearisation")
    for name, seconds in zip(names, median, strict=True):
        print(f"{name:15s} {1e3 * seconds:8.1f} ms for {M} conditions")
    print(f"{'all':15s} {1e3 * np.median(np.sum(rows[5:], axis=1)):8.1f} ms")
    assert dyn[0] is not None
    ratios = [em_iterations(dyn[m].history, 20, 15) for m in range(M)]
    mine, peer = np.median(ratios, axis=0)
    print(f"EM iteration, D=59, J=20: {1e3 * mine:.2f} ms, scikit-learn {1e3 * peer:.2f} ms,")
    print(f"ratio {np.median([p / o for o, p in ratios]):.1f}")


if __name__ == "__main__":
    main()
