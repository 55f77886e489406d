"""Swing-ups with unknown dynamics: seconds of interaction until the pole stands, and stays.

    OMP_NUM_THREADS=1 python tests/benchmarks/swing_up.py cartpole_unknown [--seeds 0 1] [--time]

NAME: cartpole_unknown (PILCO's), pendulum_unknown_model, acrobot_unknown, or pendulum_unknown for
comparison. After every iteration the controller of the first condition is rolled out without noise;
it succeeds where the pole ends within 0.1 rad of upright and at less than 1 rad/s, and so it has
to after all later iterations. Interaction counts what was rolled out until then. --time: seconds of
every iteration, of which the last ones are refits and plans with the most data.
"""

from __future__ import annotations

import argparse
from math import pi

import numpy as np

import gps

UPRIGHT = {"acrobot_unknown": (pi, 0.0), "cartpole_unknown": (np.nan, pi)}
"""Joint angles, rad; NaN for a joint that may be anywhere."""


def stands(agent: gps.protocols.Agent, controller: object, target: np.ndarray) -> bool:
    """Whether a rollout without noise ends upright and at rest."""
    still = np.zeros((1, agent.T, agent.nu)), np.zeros((1, agent.n_start))
    rollout = agent.rollout(controller, 0, *still)
    off = (rollout.entry("joint_pos")[0, -1] - target + pi) % (2 * pi) - pi
    matters = np.isfinite(off)
    speed = rollout.entry("joint_vel")[0, -1][matters]
    return bool((np.abs(off[matters]) < 0.1).all() and (np.abs(speed) < 1.0).all())


def main() -> None:
    """Print a line for each seed, and the median."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, help="as the experiment says, unless given")
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    experiment = gps.load(args.name)
    agent = experiment.validate()
    target = np.array(UPRIGHT.get(args.name, (pi,)))
    found = []
    for seed in args.seeds:
        since, seconds = np.inf, []
        for report in gps.run(experiment, seed=seed, iterations=args.iterations):
            so_far = report.iteration * experiment.samples * agent.n_conditions * agent.T * agent.dt
            good = stands(agent, report.state.conditions[0].controller, target)
            since = min(since, so_far) if good else np.inf
            seconds.append(report.seconds)
        found.append(since)
        print(f"{args.name} seed {seed}: stands from {since:g} s on, of {so_far:g} s", flush=True)
        if args.time:
            print("  seconds of the iterations: " + " ".join(f"{s:.1f}" for s in seconds))
    print(f"median {np.median(found):g} s, {np.isfinite(found).sum()} of {len(found)} stand")


if __name__ == "__main__":
    main()
