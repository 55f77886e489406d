"""Time of one policy training, ours against a plain torch loop, and the losses both reach.

On an idle machine, with OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1:
python tests/benchmarks/bench_policy.py
"""

from __future__ import annotations

import time

import numpy as np
import torch

from gps.policies import (
    MLPConfig,
    TrainingConfig,
    TrainingData,
    fit,
    initial_policy,
    minibatches,
    prepare,
)
from gps.rng import stream

NO, NU, N = 26, 7, 2000


def problem_data() -> TrainingData:
    """Actions of a smooth nonlinear law, with precisions of four orders of magnitude."""
    rng = stream(0, "bench_policy")
    obs = rng.normal(size=(N, NO)) * np.geomspace(0.1, 10, NO)
    z = obs / np.geomspace(0.1, 10, NO)
    A, B = rng.normal(size=(2, NO, NU)) / np.sqrt(NO)
    target = 2.0 * np.tanh(z @ A) + z @ B
    half = rng.normal(size=(N, NU, NU))
    precision = half @ half.transpose(0, 2, 1) + np.eye(NU)
    precision *= 10.0 ** rng.uniform(-1, 3, size=(N, 1, 1))
    return TrainingData(obs=obs, target=target, precision=precision, weight=np.ones(N))


def torch_loop(policy, data, config, rng) -> float:
    """What one would write with torch and nothing else; returns the loss over all samples."""
    policy, problem = prepare(policy, data, config)
    obs, target, precision = (
        torch.tensor(a) for a in (problem.obs, problem.target, problem.precision)
    )
    network = policy.module().network
    optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    for batch in minibatches(data.n, config.steps, config.batch_size, rng):
        rows = torch.from_numpy(batch)
        d = network(obs[rows]) - target[rows]
        loss = 0.5 * torch.einsum("ni,nij,nj->", d, precision[rows], d) / len(rows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return problem.loss(network(obs).numpy())


def main() -> None:
    torch.set_num_threads(1)
    data, config = problem_data(), TrainingConfig(learning_rate=1e-3, final_rate=1.0)
    policy = initial_policy(MLPConfig(), NO, NU, stream(0, "policy"))

    start = time.perf_counter()
    fit(policy, data, TrainingConfig(steps=1), stream(0, "batches"))
    print(f"first call (compiles, or loads from the cache): {time.perf_counter() - start:.2f} s")

    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        result = fit(policy, data, config, stream(0, "batches"))
        seconds.append(time.perf_counter() - start)
    text = f"{min(seconds):.3f} s (best of 5; median {np.median(seconds):.3f})"
    print(f"ours, {config.steps} steps of {config.batch_size}: {text}, loss {result.loss:.9g} nats")

    start = time.perf_counter()
    loss = torch_loop(policy, data, config, stream(0, "batches"))
    print(f"plain torch loop:        {time.perf_counter() - start:.3f} s, loss {loss:.9g} nats")

    obs = stream(0, "obs").normal(size=(20, NO))
    start = time.perf_counter()
    for _ in range(1000):
        policy.mean(obs)
    print(f"policy.mean of (20, {NO}): {(time.perf_counter() - start) * 1e3:.1f} us")


if __name__ == "__main__":
    main()
