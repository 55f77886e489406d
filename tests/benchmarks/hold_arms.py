"""`HoldConfig()` on every fixed-base arm of other packages: how far it strays in 4 s.

    pip install --no-deps --target .breadth -r tests/breadth.txt
    python tests/benchmarks/hold_arms.py [FOLDER] [--only TEXT] [--samples N] [--dt SECONDS]

All MJCF files below the folder are loaded that MuJoCo can load; nothing of them is copied here.
tests/test_breadth.py holds some of them. An arm has DRIVEN directions of motion or more that
actuators move, none of them behind a joint that no actuator moves. The start is robosuite's own
pose of its robots, the first keyframe, or the model's reference pose moved into the joints' ranges.

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
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from gps.agents import MujocoAgent, MujocoConfig
from gps.control import HoldConfig
from gps.errors import GPSError
from gps.pipeline.experiment import initial_controller

FOLDER = Path(__file__).parents[2] / ".breadth"
DRIVEN, DT = 3, 0.04
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


@dataclass(frozen=True)
class Held:
    """How far an arm strays, in rad or m, and why."""

    still: float
    """Without noise."""
    noisy: float
    """With the initial controller's noise."""
    std: np.ndarray
    """Of each driven direction under it."""
    clipped: float
    """The largest share of clipped actions."""
    seconds: float
    """That the controller took to make."""
    moving: bool
    """Whether its controls leave an acceleration at the start."""

    @property
    def holds(self) -> bool:
        """Whether it stays within the bounds."""
        return self.still <= NOISE_FREE and self.noisy <= NOISY

    def __str__(self) -> str:
        why = "no control within limits holds it" if self.moving else "strays"
        return (
            f"{self.still:9.4f} {self.noisy:9.3f} {np.median(self.std):9.3f} {self.std.max():9.3f} "
            f"{self.clipped:8.0%} {self.seconds:8.2f}  {'holds' if self.holds else why}"
        )


def agent_of(path: Path, model: mujoco.MjModel, dt: float = DT) -> MujocoAgent:
    """The arm as an agent that begins at its own pose."""
    substeps = max(1, round(dt / model.opt.timestep))
    dt = substeps * model.opt.timestep
    pose = own_pose(path, model.nq) if "robosuite" in path.parts else None
    return MujocoConfig(
        model=str(path),
        T=round(SECONDS / dt),
        dt=dt,
        substeps=substeps,
        qpos=tuple(start(model) if pose is None else pose),
        state=("joint_pos", "joint_vel", *(("activation",) if model.na else ())),
    ).build()


def measure(agent: MujocoAgent, samples: int, which: np.ndarray) -> Held:
    """How `HoldConfig()` holds an agent's start; which: values of the state that are to stay."""
    begin = time.perf_counter()
    controller, _ = initial_controller(HoldConfig(model=True), agent, 0)
    begin = time.perf_counter() - begin
    rest = agent.start_state(0)[which]
    noise = np.random.default_rng(0).normal(size=(samples, agent.T, agent.nu))
    still = agent.rollout(controller, 0, np.zeros((1, agent.T, agent.nu)))
    noisy = agent.rollout(controller, 0, noise)
    low, high = agent.control_range
    lin, nv = agent.linearise(0), agent.model.nv
    after = lin.F @ np.concatenate((lin.x, lin.u)) + lin.f
    return Held(
        still=np.abs(still.X[:, :, which] - rest).max(),
        noisy=np.abs(noisy.X[:, :, which] - rest).max(),
        std=noisy.X[:, agent.T // 2 :, which].std(axis=(0, 1)),
        clipped=(np.minimum(noisy.U - low, high - noisy.U) <= 0).mean(axis=(0, 1)).max(),
        seconds=begin,
        moving=bool((np.abs(after[nv : 2 * nv][which[which < nv]]) > 1e-3).any()),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=FOLDER, help="where the packages were installed"
    )
    parser.add_argument("--only", default="", help="text that the path contains")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--dt", type=float, default=DT, help="control step in seconds, about")
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
            which = np.flatnonzero(driven(model))
            line = str(measure(agent_of(path, model, args.dt), args.samples, which))
        except GPSError as error:
            line = f"{type(error).__name__}: {str(error)[:150]}"
        held, total = held + line.endswith("holds"), total + 1
        print(f"{name:58} {line}", flush=True)
    print(f"{held} of {total} hold")


if __name__ == "__main__":
    main()
