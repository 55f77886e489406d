"""Closed-loop rollouts of the peg agent against MuJoCo's own open-loop ones, in steps per second.

Run `OMP_NUM_THREADS=1 python tests/benchmarks/bench_rollouts.py` on an otherwise idle machine. Both
sides step the same samples of the same model from the same start under the same controls, on the
same number of threads, in turn; the medians over the repetitions and their ratio are printed.
The ratio has to stay at or above 0.85. A step is one simulator step of one sample.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from mujoco.batch import Batch

from gps.agents import peg_insertion
from gps.rng import stream
from gps.types import LinearGaussianController

BOUND = 0.85


def controller(T: int, nx: int, nu: int) -> LinearGaussianController:
    """A time-varying controller that damps the joints and follows the noise."""
    rng = stream(0, "bench controller")
    K = 0.01 * rng.normal(size=(T, nu, nx))
    K[:, :, nu : 2 * nu] -= 0.5 * np.eye(nu)
    return LinearGaussianController(K=K, k=np.zeros((T, nu)), chol=np.tile(np.eye(nu), (T, 1, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=15)
    args = parser.parse_args()

    config = peg_insertion(n_test=0)
    agent = config.build(args.threads)
    N, T, S = args.samples, agent.T, config.substeps
    policy = controller(T, agent.layout.size, agent.nu)
    noise = stream(0, "bench noise").normal(size=(N, T, agent.nu))
    rollouts = agent.rollout(policy, 0, noise)

    # the last action is recorded only, so that both sides take (T - 1) S steps
    controls = np.ascontiguousarray(np.repeat(rollouts.U[:, :-1], S, axis=1))
    model = agent.model_of(0)
    batch = Batch(model, N, args.threads)
    record = ("qpos", "qvel")

    def closed_loop() -> np.ndarray:
        return agent.rollout(policy, 0, noise).X[:, -1, : agent.nu]

    def open_loop() -> np.ndarray:
        batch.reset(stage=0)
        batch.qpos[:] = config.qpos
        return batch.rollout((T - 1) * S, controls, record=record)["qpos"][:, -1]

    np.testing.assert_array_equal(closed_loop(), open_loop())  # the same work on both sides
    seconds: dict[str, list[float]] = {"closed": [], "open": []}
    for _ in range(args.repetitions):
        for name, run in (("closed", closed_loop), ("open", open_loop)):
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    steps = N * (T - 1) * S
    speed = {name: steps / statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        spread = f"{steps / max(values):,.0f} to {steps / min(values):,.0f}"
        print(f"{name:>6} loop: {speed[name]:>10,.0f} steps/s (median; {spread})")
    ratio = speed["closed"] / speed["open"]
    print(f"ratio {ratio:.3f} (bound {BOUND}), {N} samples, {args.threads} thread(s)")


if __name__ == "__main__":
    main()
