"""Processor seconds that first calls spend on compiling, in a cache of their own.

    python tests/benchmarks/bench_compile.py
    python tests/benchmarks/bench_compile.py --against ../another/checkout

`dual.minimise` of one problem, `batch.minimise` of four with one and with two threads, each in a
new process with an empty NUMBA_CACHE_DIR; imports are left out. With `--against` the other checkout
of this repository takes turns with this one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_iteration import HERE, Checkout

CALLS = ("dual", "batch 1", "batch 2")


def first_call(root: Path, name: str) -> float:
    """Processor seconds of the first call of a process."""
    sys.meta_path.insert(0, Checkout(root))
    import numpy as np

    from gps.control import batch, dual
    from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

    T, nx, nu = 20, 4, 2
    F = np.tile(np.hstack([np.eye(nx), 0.1 * np.ones((nx, nu))]), (T - 1, 1, 1))
    dynamics = LinearDynamics(F, np.zeros((T - 1, nx)), np.tile(1e-4 * np.eye(nx), (T - 1, 1, 1)))
    nz = nx + nu
    cost = QuadraticCost(np.tile(np.eye(nz), (T, 1, 1)), np.zeros((T, nz)), np.zeros(T))
    start, unit = Gaussian(np.ones(nx), 0.01 * np.eye(nx)), np.tile(np.eye(nu), (T, 1, 1))
    previous = LinearGaussianController(np.zeros((T, nu, nx)), np.zeros((T, nu)), unit)
    began = time.process_time()
    if name == "dual":
        dual.minimise(dynamics, cost, start, previous, 0.5)
    else:
        models = batch.DynamicsBatch.stack([dynamics] * 4)
        costs = batch.CostBatch.stack([cost] * 4)
        batch.minimise(models, costs, start, previous, 0.5, threads=int(name.split()[1]))
    return time.process_time() - began


def seconds(root: Path, name: str) -> float:
    """`first_call` in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        argv = [sys.executable, __file__, "--call", name, "--root", str(root)]
        env = os.environ | {"NUMBA_CACHE_DIR": cache}
        return float(
            subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
        )


def label(name: str) -> str:
    """What a row is called in the table."""
    kind, _, threads = name.partition(" ")
    return f"{kind}.minimise" + (f", {threads} thread(s)" if threads else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--call", choices=CALLS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, default=HERE, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call is not None:
        print(first_call(args.root, args.call))
        return
    roots = [HERE] if args.against is None else [args.against.resolve(), HERE]
    for name in CALLS:
        times = [[seconds(root, name) for root in roots] for _ in range(args.turns)]
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        text = " against ".join(f"{m:.1f} s" for m in reversed(medians))
        print(f"{label(name):28s} {text}")


if __name__ == "__main__":
    main()
