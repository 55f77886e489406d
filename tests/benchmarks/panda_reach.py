"""robosuite's Panda, torques and gravity, takes its hand to targets that no one has shown it.

    python tests/benchmarks/panda_reach.py ROBOT_XML [--seeds 0 1 2 3 4] [--iterations N]
        [--targets N] [--samples N] [--unseen N]

ROBOT_XML is robots/panda/robot.xml among the assets of robosuite 1.5.2 (`pip download --no-deps`,
unpacked); nothing of it is copied here. A site on the hand, a mocap body `target` and a sensor of
the one relative to the other are added, the start is robosuite's own pose, the initial controllers
are `HoldConfig()`, and the algorithm MDGPS, all with their defaults.

A line for each iteration of each seed: control steps so far, the share of training targets where
the hand of the policy, without noise, ends within 20 mm (the last step), and of the unseen targets;
their mean and largest distance in mm; seconds so far, without the rollouts that tell.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import mujoco
import numpy as np

import gps
from gps.agents import MujocoConfig, sample_conditions
from gps.algorithms import MDGPSConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.errors import GPSError
from gps.pipeline.sampling import evaluate_condition

POSE = (0.0, 0.196, 0.0, -2.618, 0.0, 2.942, 0.785)  # robosuite's own start
TORQUES = np.array([80.0] * 5 + [12.0] * 2)  # largest of each joint, in N m
HAND = "sensor:hand_from_target"
BOX = ("target", (0.35, -0.25, 0.1), (0.65, 0.25, 0.5))


def model() -> mujoco.MjSpec:
    """The Panda with a hand's site, a target and a sensor between them."""
    spec = mujoco.MjSpec.from_file(os.environ["PANDA_XML"])
    spec.body("right_hand").add_site(name="hand", pos=[0, 0, 0.1])
    target = spec.worldbody.add_body(name="target", mocap=True, pos=[0.5, 0, 0.5])
    target.add_site(name="target")
    sensor = spec.add_sensor(
        name="hand_from_target", type=mujoco.mjtSensor.mjSENS_FRAMEPOS, objname="hand"
    )
    sensor.objtype = sensor.reftype = mujoco.mjtObj.mjOBJ_SITE
    sensor.refname = "target"
    return spec


def experiment(targets: int, unseen: int, samples: int, iterations: int) -> gps.Experiment:
    """As a hyperparams file would say it."""
    return gps.Experiment(
        agent=MujocoConfig(
            model=model,
            T=60,
            dt=0.05,
            qpos=POSE,
            state=("joint_pos", "joint_vel", HAND),
            conditions=sample_conditions(
                targets, seed=0, purpose="training conditions", mocap_boxes=(BOX,)
            ),
            test_conditions=sample_conditions(unseen, seed=0, mocap_boxes=(BOX,)),
        ),
        cost=StateCost(entry=HAND, target=0.0, l2=50.0, log_weight=0.1, alpha=1e-4)
        + ActionCost(weights=tuple(0.05 / TORQUES**2))
        + StateCost(entry="joint_vel", target=0.0, l2=0.01),
        initial=HoldConfig(),
        measure=EndpointMeasure(entry=HAND, target=(0.0, 0.0, 0.0), threshold=0.02),
        algorithm=MDGPSConfig(),
        samples=samples,
        iterations=iterations,
    )


def run(chosen: gps.Experiment, seed: int, unseen: int) -> None:
    """The lines of a seed."""
    seconds, begin = 0.0, time.perf_counter()
    for report in gps.run(chosen, seed=seed):
        seconds += time.perf_counter() - begin
        policy = report.state.policy.policy
        ended = [
            evaluate_condition(
                chosen.agent, chosen.cost, chosen.measure, policy, m, 1, 0, test=True
            ).distance[0]
            for m in range(unseen)
        ]
        row, far = report.row, 1e3 * np.array(ended)
        print(
            f"{seed:5} {row['iteration']:10.0f} {row['env_steps']:8}"
            f" {row['policy_success']:9.0%} {(far <= 20).mean():7.0%}"
            f" {far.mean():8.1f} {far.max():8.1f} {seconds:8.0f}",
            flush=True,
        )
        begin = time.perf_counter()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path, help="robots/panda/robot.xml of robosuite")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--targets", type=int, default=20, help="training targets")
    parser.add_argument("--samples", type=int, default=5, help="rollouts of each and iteration")
    parser.add_argument("--unseen", type=int, default=20, help="targets of the test")
    args = parser.parse_args()
    os.environ["PANDA_XML"] = str(args.model.resolve())  # for processes that call `model` too
    chosen = experiment(args.targets, args.unseen, args.samples, args.iterations)
    print(" seed  iteration    steps  training  unseen  mean mm  largest  seconds")
    for seed in args.seeds:
        try:
            run(chosen, seed, args.unseen)
        except GPSError as error:
            print(f"{seed:5}  {error}", flush=True)


if __name__ == "__main__":
    main()
