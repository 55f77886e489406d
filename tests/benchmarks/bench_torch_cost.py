"""A cost written in torch beside the same cost written by hand, on the peg's sizes.

    python tests/benchmarks/bench_torch_cost.py [--rounds 100]

Six coordinates of end points, squared distance and logarithm, derivatives through the points'
Jacobian: `EndpointCost` and `TorchCost`, both by their `evaluate`, once with Gauss-Newton and once
with exact Hessians. That the two agree is checked. One torch thread; the two take turns. Times are
those of the processor, which other work on the machine disturbs less; the ratio is that of the
medians, and of the quickest turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from gps.costs import Cost, EndpointCost, TorchCost
from gps.types import Layout, Rollouts

LAYOUT = Layout((("joint_pos", 7), ("joint_vel", 7), ("end_points", 6), ("end_point_vel", 6)))
TARGET = (0.1, 0.2, -0.3, 0.4, 0.5, -0.6)
ALPHA = 1e-2
_target = torch.tensor(TARGET, dtype=torch.float64)


def offset(x: torch.Tensor, u: object, t: torch.Tensor) -> torch.Tensor:
    """Residuals."""
    return x - _target


def distance(x: torch.Tensor, u: object, t: torch.Tensor) -> torch.Tensor:
    """The whole cost."""
    d = x - _target
    s = (d * d).sum()
    return 0.5 * s + 0.5 * torch.log(ALPHA + s)


def peg_like(N: int, T: int = 100) -> Rollouts:
    """Random states and Jacobians of the peg's sizes."""
    rng = np.random.default_rng(N)
    E = np.zeros((N, T, 6, 26))
    E[..., :7] = rng.normal(size=(N, T, 6, 7))
    U = rng.normal(size=(N, T, 7))
    return Rollouts(
        X=rng.normal(size=(N, T, 26)), U=U, obs=np.zeros((N, T, 1)), noise=np.zeros_like(U),
        layout=LAYOUT, jacobians={"end_points": E},
    )  # fmt: skip


def turns(costs: list[Cost], rollouts: Rollouts, rounds: int) -> list[list[float]]:
    """Processor seconds of every turn of every cost."""
    seconds: list[list[float]] = [[] for _ in costs]
    for i in range(rounds + 5):
        for cost, taken in zip(costs, seconds, strict=True):
            start = time.process_time()
            cost.evaluate(rollouts)
            if i >= 5:
                taken.append(time.process_time() - start)
    return seconds


def main() -> None:
    """One line for each number of samples and kind of Hessian."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    common: dict[str, Any] = {"entries": "end_points", "action": False, "through": "jacobian"}
    for exact in (False, True):
        hand = EndpointCost(target=TARGET, l2=1.0, log_weight=1.0, alpha=ALPHA, exact=exact)
        if exact:
            ours = TorchCost(function=distance, **common)
        else:
            ours = TorchCost(
                function=offset, returns="residual", log_weight=1.0, alpha=ALPHA, **common
            )
        for N in (5, 20):
            rollouts = peg_like(N)
            a, b = hand.evaluate(rollouts), ours.evaluate(rollouts)
            for name in ("l", "l_x", "l_xx", "l_u", "l_ux", "l_uu"):
                scale = 1e-12 * (1.0 + np.abs(getattr(a, name)).max())
                assert np.abs(getattr(a, name) - getattr(b, name)).max() < scale
            with threadpool_limits(limits=1):
                seconds = turns([hand, ours], rollouts, rounds)
            (m0, m1), (q0, q1) = map(statistics.median, seconds), map(min, seconds)
            print(
                f"{'exact' if exact else 'Gauss-Newton':12} N={N:2} T=100 nx=26: by hand "
                f"{1e3 * m0:.2f} ms, torch {1e3 * m1:.2f} ms, ratio {m1 / m0:.2f} "
                f"(quickest {q1 / q0:.2f})"
            )


if __name__ == "__main__":
    main()
