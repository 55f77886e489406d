"""Times the LQR passes against plain numpy in one run, on one thread.

    python tests/benchmarks/bench_lqr.py

The first call of a kernel compiles it (cached on disk) and is not timed. Each figure is the median
over rounds in which the candidates take turns, so that a busy machine disturbs all alike.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parent))
import numpy_lqr as plain

from gps.control import _kernels, dual, kl, lqr
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost


def problem(T, nx, nu, seed=0):
    rng = np.random.default_rng(seed)
    nz = nx + nu
    F = np.concatenate([np.tile(np.eye(nx), (T - 1, 1, 1)), np.zeros((T - 1, nx, nu))], axis=2)
    F += 0.02 * rng.normal(size=(T - 1, nx, nz))
    root = rng.normal(size=(T, nz, nz)) / np.sqrt(nz)
    C = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(nz)
    C = 0.5 * (C + C.transpose(0, 2, 1))
    dynamics = LinearDynamics(
        F, 0.01 * rng.normal(size=(T - 1, nx)), np.tile(1e-4 * np.eye(nx), (T - 1, 1, 1))
    )
    cost = QuadraticCost(C, rng.normal(size=(T, nz)), np.zeros(T))
    previous = LinearGaussianController(
        0.1 * rng.normal(size=(T, nu, nx)), np.zeros((T, nu)), np.tile(np.eye(nu), (T, 1, 1))
    )
    return dynamics, cost, Gaussian(rng.normal(size=nx), 1e-2 * np.eye(nx)), previous


def race(candidates, rounds):
    """Median seconds of each callable, taken in turns."""
    for run in candidates.values():
        run()
    times = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(T, nx, nu, rounds=60):
    dynamics, cost, start, previous = problem(T, nx, nu)
    F, f, W, C, c = dynamics.F, dynamics.f, dynamics.W, cost.C, cost.c
    p = dual._Problem(dynamics, cost, start, previous)
    R, r = kl.penalty(previous, p.inv)
    ones, eta, own = np.ones(T), 1.0, p.spare[3:5]

    def kernel_backward():
        _kernels.backward(C, c, C, c, 0.0, ones, F, f, *p.spare[:3], p.Q_uu)

    def kernel_trial():
        _kernels.trial(C, c, R, r, eta, ones, None, *p.model, *p.reference, *p.spare, p.Q_uu, *own)

    def kernel_passes():
        _kernels.trial(C, c, C, c, 0.0, ones, None, *p.model, *p.reference, *p.spare, p.Q_uu, *own)

    def plain_trial():
        C_new, c_new = plain.penalised(C, c, previous.K, previous.k, previous.chol, eta)
        K, k, chol = plain.backward(F, f, C_new, c_new)
        mean, cov = plain.forward(F, f, W, K, k, chol, start.mean, start.cov)
        plain.kl_per_step(K, k, chol, previous.K, previous.k, previous.chol, mean, cov)

    seconds = race(
        {
            "backward, numpy": lambda: plain.backward(F, f, C, c),
            "backward, kernel": kernel_backward,
            "backward, public function": lambda: lqr.backward(dynamics, cost),
            "trial, numpy": plain_trial,
            "trial, kernel": kernel_trial,
            "backward + forward + KL": kernel_passes,
            "minimise, whole search": lambda: dual.minimise(dynamics, cost, start, previous, 0.5),
        },
        rounds,
    )
    trials = len(dual.minimise(dynamics, cost, start, previous, 0.5).trace)
    print(f"\nT={T} nx={nx} nu={nu}  (trial = penalised cost + backward + forward + KL)")
    for name, s in seconds.items():
        base = seconds.get(name.split(",")[0] + ", numpy")
        ratio = f"{base / s:6.1f} x" if base and base != s else ""
        print(f"  {name:28s} {1e3 * s:8.3f} ms  {ratio}")
    print(f"  the whole search took {trials} trials")


def main():
    with threadpool_limits(1):
        measure(100, 26, 7)
        measure(100, 10, 2)


if __name__ == "__main__":
    main()
