"""Pictures of the peg agent, in milliseconds a frame, against MuJoCo's own renderer.

Run `OMP_NUM_THREADS=1 python tests/benchmarks/bench_rendering.py` on an otherwise idle machine. All
states of `--samples` rollouts of 100 steps are drawn at `--size` pixels, by the Renderer of
`gps.agents.rendering` and by a plain loop with `mujoco.Renderer` (mj_forward, its default quality),
in turn; medians over the repetitions, and processor time, which a busy machine disturbs less.
At 20 samples and 64 pixels a frame has to stay at or below 1.5 ms. Then the parts of a frame.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import mujoco
import numpy as np

from gps.agents import peg_insertion, rendering
from gps.rng import stream
from gps.types import LinearGaussianController

BOUND = 1.5  # ms a frame
PARTS = {
    "positions": (rendering, "_place"),
    "scene": (mujoco, "mjv_updateScene"),
    "draw": (mujoco, "mjr_render"),
    "read": (mujoco, "mjr_readPixels"),
}


def states(samples: int) -> tuple[mujoco.MjModel, np.ndarray]:
    """Model and joint positions (samples * T, nq) of rollouts that swing about."""
    agent = peg_insertion(n_test=0).build()
    T, nx, nu = agent.T, agent.layout.size, agent.nu
    policy = LinearGaussianController(
        K=np.zeros((T, nu, nx)), k=np.zeros((T, nu)), chol=np.tile(np.eye(nu), (T, 1, 1))
    )
    noise = stream(0, "bench noise").normal(size=(samples, T, nu))
    rollouts = agent.rollout(policy, 0, noise)
    return agent.model_of(0), rollouts.entry("joint_pos").reshape(-1, agent.model.nq)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def shares(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of the clock in each part of `call`; the rest is Python and copies."""
    spent = dict.fromkeys(PARTS, 0.0)

    def watched(name: str, function: Any) -> Any:
        @wraps(function)
        def run(*arguments: Any) -> None:
            begin = time.perf_counter()
            function(*arguments)
            spent[name] += time.perf_counter() - begin

        return run

    before = {name: getattr(*where) for name, where in PARTS.items()}
    try:
        for name, (module, attribute) in PARTS.items():
            setattr(module, attribute, watched(name, before[name]))
        whole, _ = timed(call)
    finally:
        for name, (module, attribute) in PARTS.items():
            setattr(module, attribute, before[name])
    return spent | {"rest": whole - sum(spent.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()

    chosen = rendering._platform()
    if chosen is not None and "MUJOCO_GL" not in os.environ:
        # mujoco.Renderer draws nothing where this was not set before mujoco was imported
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"MUJOCO_GL": chosen})
    model, qpos = states(args.samples)
    frames, few = len(qpos), qpos[:: max(1, len(qpos) // 200)]
    ours = rendering.Renderer(model, ("main",), args.size, args.size)
    plain = mujoco.Renderer(model, args.size, args.size)
    data = mujoco.MjData(model)

    def naive() -> None:
        for q in few:
            data.qpos[:] = q
            mujoco.mj_forward(model, data)
            plain.update_scene(data, camera="main")
            plain.render()

    ms: dict[str, list[tuple[float, float]]] = {"gps": [], "mujoco": []}
    for _ in range(args.repetitions):
        for name, call, n in (
            ("gps", lambda: ours.render(model, qpos), frames),
            ("mujoco", naive, len(few)),
        ):
            wall, cpu = timed(call)
            ms[name].append((1e3 * wall / n, 1e3 * cpu / n))
    for name, values in ms.items():
        wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        best = min(w for w, _ in values)
        print(f"{name:>7}: {wall:.3f} ms a frame (quickest {best:.3f}; processor {cpu:.3f})")
    wall = {name: statistics.median(w for w, _ in values) for name, values in ms.items()}
    parts = shares(lambda: ours.render(model, qpos))
    whole = sum(parts.values())
    print("  parts: " + ", ".join(f"{name} {s / whole:.0%}" for name, s in parts.items()))
    print(
        f"{wall['mujoco'] / wall['gps']:.1f} times as fast; {frames} frames of {args.size} x "
        f"{args.size}, {chosen}, bound {BOUND} ms"
    )


if __name__ == "__main__":
    main()
