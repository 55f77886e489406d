"""One PILQR update, and one BADMM iteration of the peg agent, in milliseconds and seconds.

    python tests/benchmarks/bench_pilqr.py [--skip-badmm]

The update: 20 recorded samples, T=100, nx=10, nu=2, one dual variable per step; the public
implementation (cbfinn/gps, 2016) took 13 s for it on another machine of this kind, most of them in
a search that does not end where the constraint is inactive. Beside it the same search with every
backward, forward and KL pass in numpy, in the same run. The BADMM iteration: 4 conditions, 4 inner
iterations, each with 4000 SGD steps; the public implementation took 29 s.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import gps
from gps.control import lqr, pilqr
from gps.threads import one_thread
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

FIXTURE = Path(__file__).parent.parent / "fixtures" / "pilqr_update.npz"


def numpy_trial(dynamics, cost, start, previous, eta):  # type: ignore[no-untyped-def]
    """Backward pass with one eta per step, forward pass and KL, step by step in numpy."""
    T, nx = dynamics.T, dynamics.nx
    P = previous.precision
    V, v = np.zeros((nx, nx)), np.zeros(nx)
    K, k, Sigma = np.empty_like(previous.K), np.empty_like(previous.k), np.empty_like(P)
    for t in range(T - 1, -1, -1):
        Q, q = cost.C[t].copy(), cost.c[t].copy()
        if t < T - 1:
            F = dynamics.F[t]
            Q += F.T @ V @ F
            q += F.T @ (v + V @ dynamics.f[t])
        A = np.linalg.cholesky(Q[nx:, nx:] / eta[t] + P[t])
        Sigma[t] = np.linalg.inv(A @ A.T)
        K[t] = -Sigma[t] @ (Q[nx:, :nx] / eta[t] - P[t] @ previous.K[t])
        k[t] = -Sigma[t] @ (q[nx:] / eta[t] - P[t] @ previous.k[t])
        V = Q[:nx, :nx] + K[t].T @ Q[nx:, nx:] @ K[t] + Q[:nx, nx:] @ K[t] + K[t].T @ Q[nx:, :nx]
        v = q[:nx] + K[t].T @ q[nx:] + K[t].T @ Q[nx:, nx:] @ k[t] + Q[:nx, nx:] @ k[t]
        dK, dk = K[t] - previous.K[t], k[t] - previous.k[t]
        V, v = V + eta[t] * dK.T @ P[t] @ dK, v + eta[t] * dK.T @ P[t] @ dk
        V = 0.5 * (V + V.T)
    m, S, kl = start.mean, start.cov, np.empty(T)
    old_logdet, new_logdet = np.linalg.slogdet(previous.Sigma)[1], np.linalg.slogdet(Sigma)[1]
    for t in range(T):
        dK = previous.K[t] - K[t]
        gap = dK @ m + previous.k[t] - k[t]
        trace = np.trace(P[t] @ Sigma[t]) + np.trace(dK.T @ P[t] @ dK @ S)
        kl[t] = 0.5 * (old_logdet[t] - new_logdet[t] - len(gap) + trace + gap @ P[t] @ gap)
        if t < T - 1:
            z = np.concatenate([m, K[t] @ m + k[t]])
            cov = np.block([[S, S @ K[t].T], [K[t] @ S, K[t] @ S @ K[t].T + Sigma[t]]])
            m = dynamics.F[t] @ z + dynamics.f[t]
            S = dynamics.F[t] @ cov @ dynamics.F[t].T + dynamics.W[t]
    return LinearGaussianController(K, k, np.linalg.cholesky(Sigma)), kl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip-badmm", action="store_true")
    args = parser.parse_args()
    d = dict(np.load(FIXTURE))
    previous = LinearGaussianController(
        d["prev_K"], d["prev_k"], d["prev_chol_pol_covar"].transpose(0, 2, 1)
    )
    model = (
        LinearDynamics(d["Fm"][:-1], d["fv"][:-1], d["dyn_covar"][:-1]),
        QuadraticCost(d["Cm"], d["cv"], d["cc"]),
        Gaussian(d["x0mu"], d["x0sigma"]),
        previous,
    )
    kl_max = d["base_kl_step"] * d["step_mult"]
    samples = (d["X"], d["U"], d["cs"])
    with one_thread():
        found = pilqr.update(*model, *samples, kl_max)
        trials = len(found.lqr.trace)
        _, kl = numpy_trial(*model, found.lqr.eta)
        off = np.abs(kl - found.lqr.kl).max()
        expected = lqr.expected_cost(model[1], found.lqr.marginals).sum()
        ours, theirs = [], []
        for _ in range(7):
            begin = time.perf_counter()
            pilqr.update(*model, *samples, kl_max)
            ours.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            for _ in range(trials):
                numpy_trial(*model, found.lqr.eta)
            theirs.append(time.perf_counter() - begin)
    a, b = 1e3 * np.median(ours), 1e3 * np.median(theirs)
    print("PILQR update, 20 samples, T=100, nx=10, nu=2, cold start")
    print(f"  whole update             {a:8.2f} ms, {trials} sweeps, expected cost {expected:.2f}")
    print(f"  as many passes in numpy  {b:8.2f} ms ({b / a:.0f}x), KL equal to {off:.0e} nats")
    if args.skip_badmm:
        return
    rows = [report.row for report in gps.run(gps.load("peg_insertion_badmm"), iterations=6)][1:]
    print("BADMM iteration of peg_insertion_badmm, 4 inner iterations, serial, in memory")
    for name in sorted(rows[0], key=lambda n: -np.median([r[n] for r in rows])):
        if name.startswith("seconds_") and np.median([r[name] for r in rows]) > 0.01:
            print(f"  {name[8:]:24s} {np.median([r[name] for r in rows]):8.2f} s")
    print(f"  {'whole iteration':24s} {np.median([r['seconds'] for r in rows]):8.2f} s (median)")


if __name__ == "__main__":
    main()
