"""How many MuJoCo models that no one here wrote an agent is made of, with its defaults.

    pip install --no-deps --target .breadth -r tests/breadth.txt
    python tests/benchmarks/model_breadth.py
    python tests/benchmarks/model_breadth.py robot.xml other.xml --initial hold

The packages are looked for in --folder, then among the installed ones. tests/test_breadth.py runs
this. For every MJCF file of dm_control, gymnasium, gymnasium-robotics, robosuite, metaworld and
myosuite (myo_sim has its models):
does plain MuJoCo compile it and step it, 3 samples of 50 control steps from its reference pose with
random controls, without a warning? Then `MujocoConfig(model=file)` has to do the same, through the
same positions, and an iteration of trajectory optimisation has to end. Files that MuJoCo does not
compile (parts that others include), and those with neither actuators nor a mocap body that is
welded to another body, do not count.

The table has a line for each file that counts, or with --refused only for those that fail, with
seconds of one core and the one line that says why; the last line is the count. Exit code 1 where
one fails that plain MuJoCo can step. A file that takes longer than --timeout seconds, or ends its
process, fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}

import mujoco
import numpy as np

import gps
from gps.agents import MujocoConfig
from gps.agents._run import warnings_to_log
from gps.agents.actions import welded_mocap
from gps.algorithms import TrajOptConfig
from gps.control import HoldConfig, OpenLoopConfig
from gps.costs import ActionCost, StateCost, SumCost, WeightedCost

PACKAGES = (
    "dm_control",
    "gymnasium",
    "gymnasium_robotics",
    "metaworld",
    "myo_sim",
    "myosuite",
    "robosuite",
)
FOLDER = Path(__file__).parents[2] / ".breadth"
N, T, SAMPLES = 3, 50, 5


@dataclass(frozen=True)
class Verdict:
    """What came of a model."""

    kind: str  # skipped, plain, built, stepped, iterated
    reason: str = ""
    seconds: float = 0.0  # of the process


@dataclass(frozen=True)
class Recorded:
    """A policy that plays actions (N, T, nu) back."""

    U: np.ndarray

    def act(self, x, obs, t, noise):
        """The actions of step t."""
        return self.U[:, t]


def controls(model: mujoco.MjModel) -> np.ndarray:
    """Random controls (N, T, nu), a tenth of the range about what is nearest to zero."""
    limited = model.actuator_ctrllimited.astype(bool)
    low, high = model.actuator_ctrlrange.T
    centre = np.where(limited, np.clip(0.0, low, high), 0.0)
    scale = np.where(limited, 0.1 * (high - low), 0.1)
    noise = np.random.default_rng(0).normal(size=(N, T, model.nu))
    U = centre + scale * noise
    return np.where(limited, np.clip(U, low, high), U)


def plain(model: mujoco.MjModel, U: np.ndarray, substeps: int) -> tuple[np.ndarray, str]:
    """Positions (N, T, nq) by mj_step, and the warning that ended it, if any."""
    out = np.zeros((N, T, model.nq))
    for i in range(N):
        data = mujoco.MjData(model)
        for t in range(T):
            out[i, t] = data.qpos
            data.ctrl[:] = U[i, t]
            for _ in range(substeps if t + 1 < T else 0):
                mujoco.mj_step(model, data)
            seen = [mujoco.mjtWarning(k).name for k, w in enumerate(data.warning) if w.number]
            if seen or not np.isfinite(data.qpos).all():
                return out, f"sample {i}, t={t}: {', '.join(seen) or 'NaN'}"
    return out, ""


def verdict(path: str, initial: str = "open") -> Verdict:
    """All of it for one file."""
    try:
        if path.lower().endswith(".xml"):
            model = mujoco.MjModel.from_xml_path(path)
        else:
            model = mujoco.MjModel.from_binary_path(path)
    except Exception as error:
        return Verdict("skipped", f"MuJoCo: {' '.join(str(error).split())}")
    if not model.nu and not welded_mocap(model):
        return Verdict("skipped", "no actuators")
    U = controls(model)
    substeps = max(1, round(0.05 / model.opt.timestep))
    with warnings_to_log():
        qpos, warning = plain(model, U, substeps)
    config = MujocoConfig(model=path, T=T)
    try:
        agent = config.build()
    except gps.GPSError as error:
        return Verdict("plain", str(error))
    try:
        actions = U if model.nu else np.zeros((N, T, agent.nu))
        r = agent.rollout(Recorded(actions), 0, np.zeros((N, T, agent.nu)))
    except gps.GPSError as error:
        return Verdict("skipped" if warning else "built", f"{error} (plain: {warning or 'good'})")
    if warning:
        return Verdict("built", f"no word of plain MuJoCo's {warning}")
    if model.nq == model.nv and model.nu:
        off = np.abs(r.entry("joint_pos") - qpos).max()
        if off:
            return Verdict("built", f"positions differ from plain MuJoCo's by {off:.1g}")
    low, high = agent.control_range
    scale = np.where(np.isfinite(high - low), 0.05 * (high - low), 0.1)
    first = OpenLoopConfig(
        mean=tuple(np.clip(0.0, low, high)), variance=tuple(np.maximum(scale, 1e-6) ** 2)
    )
    cost = SumCost(
        terms=(
            WeightedCost(cost=StateCost(entry="joint_vel", target=0.0, l2=1.0)),
            WeightedCost(cost=ActionCost(weights=0.01)),
        )
    )
    experiment = gps.Experiment(
        agent=config,
        cost=cost,
        initial=HoldConfig() if initial == "hold" else first,
        algorithm=TrajOptConfig(),
        samples=SAMPLES,
        iterations=1,
    )
    try:
        for report in gps.run(experiment):
            if not np.isfinite(float(report.row["cost_mean"])):
                return Verdict("stepped", "the mean cost is not finite")
    except gps.GPSError as error:
        return Verdict("stepped", str(error))
    return Verdict("iterated")


def serve(pipe: Connection, initial: str) -> None:
    """Verdicts of the paths that come, in a process that a model may end."""
    warnings.simplefilter("ignore")
    while (path := pipe.recv()) is not None:
        begin = time.process_time()
        try:
            found = verdict(path, initial)
        except Exception as error:
            found = Verdict("bug", f"{type(error).__name__}: {' '.join(str(error).split())}")
        pipe.send(replace(found, seconds=time.process_time() - begin))


def verdicts(paths: list[Path], initial: str, timeout: float):
    """Of all files, one after the other."""
    context = multiprocessing.get_context("spawn")
    process, pipe = None, None
    for path in paths:
        if process is None or pipe is None:
            pipe, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, initial), daemon=True)
            process.start()
            theirs.close()
        try:
            pipe.send(str(path))
            if pipe.poll(timeout):
                yield path, pipe.recv()
                continue
            found = Verdict("bug", "takes too long")
            process.kill()
            process.join()
        except (EOFError, ConnectionError):
            process.join()
            found = Verdict("bug", f"ended its process ({process.exitcode})")
        process = None
        yield path, found


def files(folder: Path, packages: Sequence[str] = PACKAGES) -> list[Path]:
    """All MJCF files of the packages."""
    found = []
    for name in packages:
        home = folder / name
        if not home.is_dir():
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:
                print(f"{name} is neither in {folder} nor installed", file=sys.stderr)
                continue
            home = Path(spec.origin).parent
        found += sorted(p for p in home.rglob("*") if p.suffix.lower() in (".xml", ".mjb"))
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="models, in place of the packages'")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they were installed")
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=PACKAGES)
    parser.add_argument("--initial", choices=("open", "hold"), default="open")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds for a file")
    parser.add_argument("--refused", action="store_true", help="only what fails")
    parser.add_argument("--skipped", action="store_true", help="also what does not count, and why")
    args = parser.parse_args()
    good = tried = 0
    seconds, begin = 0.0, time.monotonic()
    paths = args.files or files(args.folder, args.packages)
    for path, found in verdicts(paths, args.initial, args.timeout):
        counts, fine = found.kind != "skipped", found.kind == "iterated"
        tried, good, seconds = tried + counts, good + fine, seconds + found.seconds
        if (counts and not (fine and args.refused)) or args.skipped:
            print(f"{found.kind:9} {found.seconds:6.1f} s {path} {found.reason[:300]}", flush=True)
    print(
        f"{good} of {tried} models that MuJoCo compiles and steps; {len(paths)} files, "
        f"{time.monotonic() - begin:.0f} s, {seconds:.0f} s of one core"
    )
    return int(good < tried)


if __name__ == "__main__":
    sys.exit(main())
