"""One PI2 update beside the same in numpy and scipy, on one thread.

    python tests/benchmarks/bench_pi2.py [--rounds 20]

The other side goes through the steps in Python, finds each temperature with scipy's scalar root
finder (quicker than minimising the dual, as the public code does) and takes weighted sums with
numpy. Both give the same controller, which is checked. Medians; the two take turns.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parent))
from bench_lqr import race

from gps.control import pi2
from gps.types import Array, LinearGaussianController


def plain(
    controller: LinearGaussianController, X: Array, U: Array, costs: Array, kl_max: float
) -> tuple[Array, Array]:
    """Offsets and covariances."""
    N, T, nu = U.shape
    k, Sigma = np.empty((T, nu)), np.empty((T, nu, nu))
    for t in range(T):
        S = costs[:, t:].sum(axis=1)
        s = S - S.min()

        def excess(x: float, s: Array = s) -> float:
            p = np.exp(-s / np.exp(x))
            p /= p.sum()
            return float(p @ np.log(N * p + 1e-300)) - kl_max

        p = np.exp(-s / np.exp(brentq(excess, np.log(1e-3), np.log(10 * s.max()))))
        p /= p.sum()
        rest = U[:, t] - X[:, t] @ controller.K[t].T
        k[t] = p @ rest
        C = (p[:, None] * (rest - k[t])).T @ (rest - k[t])
        old = controller.chol[t] @ controller.chol[t].T
        Sigma[t] = old * np.sqrt(np.trace(np.linalg.solve(old, C)) / nu)
    return k, Sigma


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    N, T, nx, nu = 20, 100, 26, 7
    rng = np.random.default_rng(0)
    controller = LinearGaussianController(
        0.1 * rng.normal(size=(T, nu, nx)), np.zeros((T, nu)), np.tile(np.eye(nu), (T, 1, 1))
    )
    X = rng.normal(size=(N, T, nx))
    U = controller.mean_action(X) + rng.normal(size=(N, T, nu))
    costs = rng.gamma(1.0, size=(N, T))
    with threadpool_limits(limits=1):
        found = pi2.update(controller, X, U, costs)
        k, Sigma = plain(controller, X, U, costs, 1.0)
        assert np.abs(found.controller.k - k).max() < 1e-9
        assert np.abs(found.controller.Sigma - Sigma).max() < 1e-9
        seconds = race(
            {
                "gps": lambda: pi2.update(controller, X, U, costs),
                "numpy": lambda: plain(controller, X, U, costs, 1.0),
            },
            rounds,
        )
    ratio = seconds["numpy"] / seconds["gps"]
    print(
        f"PI2 update, {N} samples, T={T}, nx={nx}, nu={nu}: {1e3 * seconds['gps']:.2f} ms; numpy "
        f"and scipy {1e3 * seconds['numpy']:.1f} ms ({ratio:.0f}x)"
    )


if __name__ == "__main__":
    main()
