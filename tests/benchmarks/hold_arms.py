"""`HoldConfig()` on every fixed-base arm of other packages: how far it strays in 4 s.

    python tests/benchmarks/hold_arms.py FOLDER [--only TEXT] [--samples N] [--dt SECONDS]

FOLDER holds the unpacked wheels (`pip download --no-deps`) of dm_control, gymnasium-robotics,
metaworld, myosuite, robosuite; nothing of them is copied here. All MJCF files below it are loaded
that MuJoCo can load. An arm has DRIVEN directions of motion or more that actuators move, none of
them behind a joint that no actuator moves. The start is robosuite's own pose of its robots, the
first keyframe, or the model's reference pose moved into the joints' ranges.

A line for each arm: the largest |joint - start| of the driven directions over 4 s without noise
(bound 0.05 rad or m) and over N samples with the initial controller's noise (bound 0.5), the spread
of the joints under it (median and largest standard deviation over the second half), the largest
share of clipped actions, and seconds that the controller took to make. An arm that
no control within its limits holds at its start is named so: a servo whose range ends there, a motor
that is too weak, links that penetrate each other.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import mujoco
import numpy as np

from gps.agents import MujocoConfig
from gps.control import HoldConfig
from gps.errors import GPSError
from gps.pipeline.experiment import initial_controller

DRIVEN = 3
SECONDS, NOISE_FREE, NOISY = 4.0, 0.05, 0.5


def driven(model: mujoco.MjModel) -> np.ndarray:
    """Which directions of motion the actuators move, (nv,), through equalities of joints too."""
    data = mujoco.MjData(model)
    data.qpos[:] = start(model)
    mujoco.mj_forward(model, data)
    moment = np.zeros((model.nactuator, model.nv))
    sparse = data.actuator_moment, data.moment_rownnz, data.moment_rowadr, data.moment_colind
    mujoco.mju_sparse2dense(moment, *sparse)
    return (np.abs(moment) > 0).any(axis=0)


def is_arm(model: mujoco.MjModel) -> bool:
    """Whether no driven direction lies behind an undriven joint; see the head of the file."""
    moved = driven(model) if model.nu else np.zeros(model.nv, dtype=bool)
    if moved.sum() < DRIVEN:
        return False
    for i in np.flatnonzero(moved):
        if model.jnt_type[model.dof_jntid[i]] == mujoco.mjtJoint.mjJNT_FREE:
            return False
        parent = model.dof_parentid[i]
        while parent >= 0:
            if not moved[parent]:
                return False
            parent = model.dof_parentid[parent]
    return True


def start(model: mujoco.MjModel) -> np.ndarray:
    """The first keyframe's positions, or the reference pose moved into the joints' ranges."""
    if model.nkey:
        return model.key_qpos[0].copy()
    qpos = model.qpos0.copy()
    for j in np.flatnonzero(model.jnt_limited):
        if int(model.jnt_type[j]) in (2, 3):  # slides and hinges
            low, high = model.jnt_range[j]
            margin = 0.05 * (high - low)
            at = model.jnt_qposadr[j]
            qpos[at] = np.clip(qpos[at], low + margin, high - margin)
    return qpos


def own_pose(path: Path, nq: int) -> np.ndarray | None:
    """The pose that robosuite starts its robot in, read from the robot's source."""
    robot = path.parent.name
    for source in path.parents[3].glob(f"robots/manipulators/{robot}*.py"):
        for numbers in re.findall(r"return np\.array\(\[([^\]]+)\]", source.read_text()):
            pose = np.array([eval(v, {"np": np}) for v in numbers.split(",") if v.strip()])
            if len(pose) == nq:
                return pose
    return None


def measure(path: Path, model: mujoco.MjModel, samples: int, dt: float) -> str:
    """The line of an arm."""
    substeps = max(1, round(dt / model.opt.timestep))
    dt = substeps * model.opt.timestep
    pose = own_pose(path, model.nq) if "robosuite" in path.parts else None
    qpos = start(model) if pose is None else pose
    state = ("joint_pos", "joint_vel", *(("activation",) if model.na else ()))
    config = MujocoConfig(
        model=str(path),
        T=round(SECONDS / dt),
        dt=dt,
        substeps=substeps,
        qpos=tuple(qpos),
        state=state,
    )
    agent = config.build()
    begin = time.perf_counter()
    controller, _ = initial_controller(HoldConfig(model=True), agent, 0)
    begin = time.perf_counter() - begin
    which = np.flatnonzero(driven(model))
    rest = agent.start_state(0)[which]
    noise = np.random.default_rng(0).normal(size=(samples, agent.T, agent.nu))
    still = agent.rollout(controller, 0, np.zeros((1, agent.T, agent.nu)))
    noisy = agent.rollout(controller, 0, noise)
    off = np.abs(still.X[:, :, which] - rest).max()
    far = np.abs(noisy.X[:, :, which] - rest).max()
    std = noisy.X[:, agent.T // 2 :, which].std(axis=(0, 1))
    low, high = agent.control_range
    clipped = (np.minimum(noisy.U - low, high - noisy.U) <= 0).mean(axis=(0, 1)).max()
    lin = agent.linearise(0)
    after = lin.F @ np.concatenate((lin.x, lin.u)) + lin.f
    moving = np.abs(after[model.nv : 2 * model.nv][which]).max() > 1e-3
    held = off <= NOISE_FREE and far <= NOISY
    return (
        f"{off:9.4f} {far:9.3f} {np.median(std):9.3f} {std.max():9.3f} {clipped:8.0%} {begin:8.2f}"
        f"  "
        f"{'holds' if held else 'no control within limits holds it' if moving else 'strays'}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where the packages are unpacked")
    parser.add_argument("--only", default="", help="text that the path contains")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--dt", type=float, default=0.04, help="control step in seconds, about")
    args = parser.parse_args()
    print(
        f"{'arm':58} {'still':>9} {'noisy':>9} {'std med.':>9} {'largest':>9} {'clipped':>8}"
        f" {'s':>8}"
    )
    held = total = 0
    for path in sorted(args.folder.rglob("*.xml")):
        if args.only not in str(path):
            continue
        try:
            model = mujoco.MjModel.from_xml_path(str(path))
        except (ValueError, mujoco.FatalError):
            continue
        if not is_arm(model):
            continue
        name = str(path.relative_to(args.folder)).replace("assets/", "")[-58:]
        try:
            line = measure(path, model, args.samples, args.dt)
        except GPSError as error:
            line = f"{type(error).__name__}: {str(error)[:150]}"
        held, total = held + line.endswith("holds"), total + 1
        print(f"{name:58} {line}", flush=True)
    print(f"{held} of {total} hold")


if __name__ == "__main__":
    main()
