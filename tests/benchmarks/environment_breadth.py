"""Environments that nobody here wrote, with the defaults: does each build, roll out and learn once?

    pip install -c constraints.txt -e '.[gym,dm]' 'gymnasium[box2d]' gymnasium-robotics==1.4.2
    OMP_NUM_THREADS=1 python tests/benchmarks/environment_breadth.py [NAME ...] [--all] [--steps 50]

For every environment of Gymnasium (classic control, Box2D, MuJoCo, of gymnasium-robotics those
named below) and every task of dm_control's suite: `GymnasiumConfig(env=NAME)` or
`DMControlConfig(domain=..., task=...)` with T=50 and nothing else is built, makes three rollouts
with the default initial controller and its noise (`OpenLoopConfig` where the state has no joint
positions), and one iteration of `TrajOptConfig` with five samples and the fitted reward as cost. A
refusal is printed with its reason, which has to be one line. Exit code 1 if anything but a refusal
(a ConfigError) stops one of them. NAME: `Reacher-v5`, `cartpole:swingup`; --all adds the tasks of
dm_control whose building takes long (dog, humanoids).
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

import numpy as np

import gps
from gps.agents import DMControlConfig, GymnasiumConfig
from gps.algorithms import TrajOptConfig
from gps.control import HoldConfig, OpenLoopConfig
from gps.costs import FittedRewardCost
from gps.errors import ConfigError, GPSError
from gps.pipeline.experiment import initial_controller

CLASSIC = ("Pendulum-v1", "MountainCarContinuous-v0", "CartPole-v1", "Acrobot-v1")
BOX2D = ("LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3", "CarRacing-v3")
MUJOCO = tuple(
    f"{name}-v5"
    for name in (
        *("InvertedPendulum", "InvertedDoublePendulum", "Reacher", "Pusher", "Swimmer"),
        *("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "HumanoidStandup"),
    )
)
ROBOTICS = tuple(
    f"gymnasium_robotics:{name}"
    for name in (
        *("FetchReach-v4", "FetchReachDense-v4", "FetchPush-v4", "HandReach-v3"),
        *("AdroitHandPen-v1", "PointMaze_UMaze-v3", "FrankaKitchen-v1"),
    )
)
SLOW = ("dog", "humanoid", "humanoid_CMU")
EPISODE = 3  # rollouts of the first look


def names(everything: bool) -> tuple[str, ...]:
    """All of them; tasks of dm_control as `domain:task`."""
    try:
        from dm_control import suite
    except ModuleNotFoundError:
        tasks: list[str] = []
    else:
        tasks = [f"{d}:{t}" for d, t in suite.ALL_TASKS if everything or d not in SLOW]
    return (*CLASSIC, *BOX2D, *MUJOCO, *ROBOTICS, *tasks)


def configured(name: str, T: int) -> Any:
    """The agent with its defaults."""
    domain, _, task = name.partition(":")
    if name in ROBOTICS or not task or task[:1].isupper():
        return GymnasiumConfig(env=name, T=T)
    return DMControlConfig(domain=domain, task=task, T=T)


def tried(name: str, T: int) -> str:
    """What the rollouts and the iteration say, in a few words."""
    config = configured(name, T)
    agent = config.build()
    initial: Any = HoldConfig()
    if "joint_pos" not in agent.layout.names:
        low, high = agent.control_range
        half = np.where(np.isfinite(high - low), (high - low) / 2, 1.0)
        initial = OpenLoopConfig(variance=tuple(float(v) for v in (0.3 * half) ** 2))
    controller, how = initial_controller(initial, agent, 0)
    noise = np.random.default_rng(0).normal(size=(EPISODE, T, agent.nu))
    rollouts = agent.rollout(controller, 0, noise)
    U, (low, high) = rollouts.U, agent.control_range
    clipped = float(np.mean((low >= U) | (high <= U)))
    experiment = gps.Experiment(
        agent=replace(config, state=(*agent.layout.names, "reward")),
        cost=FittedRewardCost(),
        initial=initial,
        algorithm=TrajOptConfig(),
        samples=5,
        iterations=1,
    )
    (report,) = gps.run(experiment, seed=0)
    change = report.row["local_cost_mean"] - report.row["cost_mean"]
    return (
        f"nx {agent.layout.size:3} nu {agent.nu:2}  clipped {100 * clipped:3.0f} %  cost "
        f"{report.row['cost_mean']:10.4g} {change:+10.3g}  {how}"
    )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    counts = {"works": 0, "refused": 0, "FAILS": 0}
    for name in args.names or names(args.all):
        start, result = time.perf_counter(), "works"
        try:
            said = tried(name, args.steps)
        except ConfigError as error:
            result, said = "refused", str(error)
        except GPSError as error:
            result, said = "FAILS", f"{type(error).__name__}: {error}"
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            result, said = "FAILS", f"{type(error).__name__}: {error}"
        if "\n" in said:
            result = "FAILS"
        counts[result] += 1
        print(f"{name:36} {result:8} {time.perf_counter() - start:5.1f} s  {said}", flush=True)
    print(", ".join(f"{n} {what}" for what, n in counts.items()))
    return 1 if counts["FAILS"] else 0


if __name__ == "__main__":
    sys.exit(main())
