"""Returns of Gymnasium's environments as Gymnasium reports them, from unseen starts.

    pip install -c constraints.txt -e '.[gym]'
    OMP_NUM_THREADS=1 python tests/benchmarks/gymnasium_returns.py NAME [--seeds 0 1]

NAME: pendulum (InvertedPendulum-v5, 1000 steps, bound 1000 within 5,000 steps of interaction),
reacher (Reacher-v5, 50 steps, bound -4.5 at 40,000), pusher (Pusher-v5, 100 steps, bound -26, which
is not reached: -27.7 after 192,000). One policy by MDGPS, `HoldConfig()` of the model to start
from. After every iteration the policy acts without noise from starts that the environment draws by
other seeds; an episode ends where the environment ends it. SAC's published returns: -2.6 for
Reacher-v5 after a million steps, -22.5 for Pusher-v5.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import gps
from gps.agents import GymnasiumConfig, GymnasiumStart, random_starts
from gps.algorithms import ExplorationConfig, MDGPSConfig, StepConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, StateCost, torch_cost
from gps.dynamics import DynamicsConfig
from gps.policies import MLPConfig, TrainingConfig

LEARN = MDGPSConfig(
    network=MLPConfig(hidden=(64, 64), activation="tanh"),
    restart=True,
    training=TrainingConfig(steps=12_000, batch_size=50, weight_decay=3e-4),
    dynamics=DynamicsConfig(ridge=1e-4),
    step=StepConfig(kl_max=6.0, max_mult=1.0),
)
JOINTS = ("joint_pos", "joint_vel")


UPPER, FORE = 0.1, 0.11
"""Lengths of the two links of Reacher's arm, m."""


@torch_cost(entries="joint_pos", action=False, returns="residual", l1=0.1, l2=0.0, alpha=1e-3)
def pose(x, u, t):  # type: ignore[no-untyped-def]
    """The way to the joint angles at which the arm reaches the target, rad.

    The tip gets to every target with the elbow bent to either side, and to one behind the arm by
    a turn to either side. Where each start chooses for itself, a policy between the two stands
    still: the reward alone ends at -5.7. So the elbow bends to the side on which the target is.
    """
    where = x[2:4]
    angle = torch.atan2(where[1], where[0])
    side = torch.where(angle >= 0, 1.0, -1.0)
    cosine = ((where**2).sum() - UPPER**2 - FORE**2) / (2 * UPPER * FORE)
    bend = torch.acos(torch.clamp(cosine, -0.98, 0.999))
    within = torch.atan2(FORE * torch.sin(bend), UPPER + FORE * torch.cos(bend))
    # the target does not move: no action changes what is reached for
    wanted = torch.stack((angle - side * within, side * bend)).detach()
    return x[:2] - wanted


GOAL = torch.tensor([0.45, -0.05, -0.323], dtype=torch.float64)
"""Where Pusher's object has to go, m."""
BEHIND = 0.015
"""Distance from the object's centre at which the tip pushes it, m.

The contact is soft, and the object eight milligrams on a damper: it moves by 0.9 m/s for every
metre that the bar at the tip is inside it, 0.06 m/s at most. Where the bar only touches it, at
0.07 m, it stays where it is.
"""


def to_goal(x, near):  # type: ignore[no-untyped-def]
    """Horizontal direction of the object's way to its goal, shorter than 1 within `near` (m)."""
    way = (GOAL - x["object"]) * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    return way / torch.sqrt((way**2).sum() + near**2)


@torch_cost(entries=("tip", "object"), action=False, returns="residual", l1=1.0, l2=0.0, alpha=3e-4)
def behind(x, u, t):  # type: ignore[no-untyped-def]
    """The way of the tip from where it would push the object to its goal, m.

    The reward has half of the distance of the two, by which a tip that has arrived in front of the
    object stays there.
    """
    return x["tip"] - x["object"] + BEHIND * to_goal(x, BEHIND)


def turned(axis, angle, v):  # type: ignore[no-untyped-def]
    """The vector v (3,) turned by `angle` about axis 0, 1 or 2."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    c, s, out = torch.cos(angle), torch.sin(angle), [v[0], v[1], v[2]]
    out[i], out[j] = c * v[i] - s * v[j], s * v[i] + c * v[j]
    return torch.stack(out)


@torch_cost(entries=("joint_pos", "object"), action=False, returns="residual", l1=0.0, l2=1.0)
def across(x, u, t):  # type: ignore[no-untyped-def]
    """How far the bar at the tip is from level and across the object's way to its goal.

    The contact has no friction: the bar pushes at a right angle to itself, and where it lies along
    the way the object goes aside.
    """
    bar = torch.zeros_like(x["joint_pos"][:3])
    bar = bar + torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    for joint, axis in reversed(tuple(enumerate((2, 1, 0, 1, 0, 1, 0)))):
        bar = turned(axis, x["joint_pos"][joint], bar)
    return torch.stack(((bar * to_goal(x, 0.02).detach()).sum(), bar[2]))


EXPERIMENTS = {
    "pendulum": (
        1000,
        gps.Experiment(
            agent=GymnasiumConfig(
                env="InvertedPendulum-v5",
                T=100,
                conditions=random_starts(3, seed=1, purpose="training"),
                # pushed about, the policy sees what it does not meet where it holds well
                start_qpos_std=(0.2, 0.05),
                start_qvel_std=0.2,
            ),
            cost=StateCost(entry="joint_pos", target=0.0, weights=(1.0, 10.0), l2=1.0)
            + 0.05 * StateCost(entry="joint_vel", target=0.0, l2=1.0)
            + ActionCost(weights=1e-2),
            initial=HoldConfig(),
            algorithm=MDGPSConfig(),
            samples=4,
            iterations=16,
        ),
    ),
    "reacher": (
        50,
        gps.Experiment(
            agent=GymnasiumConfig(
                env="Reacher-v5",
                T=50,
                obs_entries=(("direction", 4), ("target", 2), ("speed", 2), ("offset", 2)),
                state=(*JOINTS, "offset"),
                conditions=random_starts(100, seed=1, purpose="training"),
            ),
            # the environment's own reward, with the signs changed, and one pose for each target
            cost=StateCost(entry="offset", target=0.0, l1=1.0, alpha=1e-4)
            + pose
            + ActionCost(weights=2.0),
            initial=HoldConfig(),
            algorithm=replace(LEARN, step=StepConfig(kl_max=10.0, max_mult=1.0)),
            samples=2,
            iterations=4,
        ),
    ),
    "pusher": (
        100,
        gps.Experiment(
            agent=GymnasiumConfig(
                env="Pusher-v5",
                T=100,
                obs_entries=(("arm", 14), ("tip", 3), ("object", 3), ("goal", 3)),
                state=(*JOINTS, "tip", "object"),
                conditions=random_starts(20, seed=1, purpose="training"),
                noise_sigma=2.0,
            ),
            cost=3.0 * StateCost(entry="object", target=tuple(GOAL.tolist()), l1=1.0, alpha=1e-3)
            + 4.0 * behind
            + 0.6 * across
            + ActionCost(weights=0.8),
            initial=HoldConfig(),
            algorithm=replace(
                LEARN,
                training=replace(LEARN.training, steps=8000),
                step=StepConfig(kl_max=10.0, min_mult=0.02, max_mult=1.0),
                exploration=ExplorationConfig(floor=0.1),
            ),
            samples=6,
            iterations=16,
        ),
    ),
}


def returns(config: Any, policy: Any, steps: int, episodes: int) -> np.ndarray:
    """Sum of the rewards of each episode, until the environment ends it."""
    starts = tuple(GymnasiumStart(seed=10_000 + i) for i in range(episodes))
    seen = (*(config.state or JOINTS), "reward", "terminated")
    agent = replace(config, T=steps + 1, conditions=starts, state=seen, obs=config.obs).build()
    silence, out = np.zeros((1, agent.T, agent.nu)), []
    for m in range(episodes):
        r = agent.rollout(policy, m, silence)
        ended = np.flatnonzero(r.entry("terminated")[0, :, 0])
        last = ended[0] + 1 if len(ended) else agent.T
        out.append(r.entry("reward")[0, :last, 0].sum())
    return np.array(out)


def main() -> None:
    """Learn with every seed, and print what the policy gets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--iterations", type=int)
    args = parser.parse_args()
    steps, experiment = EXPERIMENTS[args.name]
    iterations = args.iterations or experiment.iterations
    for seed in args.seeds:
        for report in gps.run(experiment, seed=seed, iterations=iterations):
            assert report.state.policy is not None
            policy = report.state.policy.policy
            found = returns(experiment.agent, policy, steps, args.episodes)
            print(
                f"{args.name} seed {seed} iteration {report.iteration:2}: "
                f"{report.row['env_steps']:7.0f} steps  return mean {found.mean():8.2f}  "
                f"worst {found.min():8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
