"""Batches beside a Python loop over the single functions, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_batch.py [--rounds 40]

Both sides give the same results, which is checked. The candidates take turns in random order; the
figures are times of the loop over times of the batch, by the quickest turn and by the median.
Threads need as many idle cores, and BLAS one thread each. Stacking the records is timed by itself:
a batch that is made anew for every call pays it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numba
import numpy as np
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parent))
from bench_lqr import problem

from gps.control import DualConfig, batch, dual, kl, lqr, pi2, tracking

SIZES = ((64, 50, 4, 2), (8, 100, 26, 7))  # B, T, nx, nu: small problems; the peg's


def turns(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every turn."""
    for run in candidates.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        # in a new order every time: a scheduler's time slice favours one place in a fixed one
        for name in rng.permutation(list(candidates)):
            start = time.perf_counter()
            candidates[name]()
            times[name].append(time.perf_counter() - start)
    return times


def measure(B: int, T: int, nx: int, nu: int, rounds: int) -> None:
    """One table."""
    singles = [problem(T, nx, nu, seed) for seed in range(B)]
    rng, N = np.random.default_rng(0), 20
    X, U = rng.normal(size=(B, N, T, nx)), rng.normal(size=(B, N, T, nu))
    costs = rng.gamma(1.0, size=(B, N, T))
    kinds = (batch.DynamicsBatch, batch.CostBatch, batch.GaussianBatch, batch.ControllerBatch)
    d, c, s, p = (
        kind.stack(part) for kind, part in zip(kinds, zip(*singles, strict=True), strict=True)
    )
    controllers = [lqr.backward(x[0], x[1]) for x in singles]
    along = [lqr.forward(x[0], u, x[2]) for x, u in zip(singles, controllers, strict=True)]
    previous, entropy = DualConfig(kl_under="previous"), DualConfig(entropy_weight=0.1)
    no = nx // 2
    V = np.eye(no)
    sensor = [tracking.LinearSensor.constant(T, rng.normal(size=(no, nx)), V) for _ in singles]
    Y = rng.normal(size=(B, N, T, no))
    estimates = [
        tracking.kalman_filter(x[0], sensor[b], Y[b], U[b], x[2]) for b, x in enumerate(singles)
    ]
    o, e = batch.SensorBatch.stack(sensor), batch.FilterBatch.stack(estimates)
    u, m = batch.ControllerBatch.stack(controllers), batch.MarginalsBatch.stack(along)
    loops: dict[str, Callable[[], object]] = {
        "backward": lambda: [lqr.backward(x[0], x[1]) for x in singles],
        "forward": lambda: [
            lqr.forward(x[0], v, x[2]) for x, v in zip(singles, controllers, strict=True)
        ],
        "expected_cost": lambda: [
            lqr.expected_cost(x[1], a) for x, a in zip(singles, along, strict=True)
        ],
        "kl_per_step": lambda: [
            kl.kl_per_step(v, x[3], a.mean, a.cov)
            for x, v, a in zip(singles, controllers, along, strict=True)
        ],
        "minimise": lambda: [dual.minimise(*x, 0.1) for x in singles],
        "minimise, previous": lambda: [dual.minimise(*x, 0.1, previous) for x in singles],
        "minimise_per_step": lambda: [dual.minimise_per_step(*x, 0.1) for x in singles],
        "per step, previous": lambda: [dual.minimise_per_step(*x, 0.1, previous) for x in singles],
        "per step, entropy": lambda: [dual.minimise_per_step(*x, 0.1, entropy) for x in singles],
        "backward_per_step": lambda: [
            dual.backward_per_step(x[0], x[1], x[3], 1.0) for x in singles
        ],
        "kalman_filter": lambda: [
            tracking.kalman_filter(x[0], sensor[b], Y[b], U[b], x[2]) for b, x in enumerate(singles)
        ],
        "smooth": lambda: [tracking.smooth(x[0], estimates[b]) for b, x in enumerate(singles)],
        "pi2_update": lambda: [
            pi2.update(x[3], X[b], U[b], costs[b]) for b, x in enumerate(singles)
        ],
    }
    batches: dict[str, Callable[[int], object]] = {
        "backward": lambda n: batch.backward(d, c, threads=n),
        "forward": lambda n: batch.forward(d, u, s, threads=n),
        "expected_cost": lambda n: batch.expected_cost(c, m, threads=n),
        "kl_per_step": lambda n: batch.kl_per_step(u, p, m, threads=n),
        "minimise": lambda n: batch.minimise(d, c, s, p, 0.1, threads=n),
        "minimise, previous": lambda n: batch.minimise(d, c, s, p, 0.1, previous, threads=n),
        "minimise_per_step": lambda n: batch.minimise_per_step(d, c, s, p, 0.1, threads=n),
        "per step, previous": lambda n: batch.minimise_per_step(
            d, c, s, p, 0.1, previous, threads=n
        ),
        "per step, entropy": lambda n: batch.minimise_per_step(d, c, s, p, 0.1, entropy, threads=n),
        "backward_per_step": lambda n: batch.backward_per_step(d, c, p, 1.0, threads=n),
        "kalman_filter": lambda n: batch.kalman_filter(d, o, Y, U, s, threads=n),
        "smooth": lambda n: batch.smooth(d, e, threads=n),
        "pi2_update": lambda n: batch.pi2_update(p, X, U, costs, threads=n),
    }
    searches = [name for name in loops if "minimise" in name or "per step" in name]
    for name in searches:
        together = batches[name](1)
        for b, one in enumerate(loops[name]()):  # type: ignore[arg-type, var-annotated]
            found = together[b].controller  # type: ignore[index]
            np.testing.assert_allclose(found.K, one.controller.K, rtol=1e-8, atol=1e-10)
    assert all((batch.backward(d, c)[b].K == controllers[b].K).all() for b in range(B))
    threads = [n for n in (1, 2) if n <= numba.config.NUMBA_NUM_THREADS]  # type: ignore[attr-defined]
    print(f"\nB={B}, T={T}, nx={nx}, nu={nu}: times faster than the loop, quickest (median)")
    print(f"{'':20}{'loop':>11}" + "".join(f"{f'{n} thread(s)':>18}" for n in threads))
    for name, loop in loops.items():
        candidates: dict[str, Callable[[], object]] = {"loop": loop}
        candidates |= {f"{n}": lambda n=n, name=name: batches[name](n) for n in threads}  # type: ignore[misc]
        times = turns(candidates, max(5, rounds // (8 if name in searches else 1)))
        line = f"{name:20}{1e3 * min(times['loop']):8.2f} ms"
        for n in threads:
            quick = min(times["loop"]) / min(times[f"{n}"])
            usual = median(times["loop"]) / median(times[f"{n}"])
            line += f"{f'{quick:.2f} ({usual:.2f})':>18}"
        print(line)
    stack = min(turns({"": lambda: kinds[0].stack(x[0] for x in singles)}, rounds)[""])
    print(f"{'stacking dynamics':20}{1e3 * stack:8.2f} ms")


def main() -> None:
    """Two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    with threadpool_limits(limits=1):
        for size in SIZES:
            measure(*size, rounds)


if __name__ == "__main__":
    main()
