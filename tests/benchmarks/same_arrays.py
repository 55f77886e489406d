"""Whether another checkout of this repository computes the same, to the last bit.

    python tests/benchmarks/same_arrays.py --against ../another/checkout
    python tests/benchmarks/same_arrays.py --against ../another/checkout --only badmm pilqr

Every algorithm makes a few short iterations, serially, with seeds 7 and 11; of each iteration the
states, actions and observations of all rollouts are compared, and of the last one the controllers.
What an iteration computes decides what the next one rolls out, so that nothing can differ unseen
for long. For whoever puts the code in order and means to change no number: run it against the
commit before. A difference is printed with its size, and the exit code is then 1.

The runs know neither checkout's names but `gps.load`, `gps.run` and the fields `iterations`,
`samples`, `algorithm` and `training`: renamed files and records do not disturb the comparison.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}

import numpy as np
from bench_iteration import HERE, Checkout

SEEDS = (7, 11)


def short(
    experiment: Any, iterations: int = 3, samples: int | None = None, **algorithm: Any
) -> Any:
    """The experiment with few iterations, little training, and settings of its algorithm."""
    config = experiment.algorithm
    if any(f.name == "training" for f in fields(config)):
        config = replace(config, training=replace(config.training, steps=200))
    experiment = replace(experiment, iterations=iterations, algorithm=replace(config, **algorithm))
    return experiment if samples is None else replace(experiment, samples=samples)


def settings(gps: Any) -> dict[str, Callable[[], Any]]:
    """The runs, by name."""
    from gps.algorithms import MDGPSConfig, PILQRTrajOptConfig, StepConfig, TrajOptConfig

    load = gps.load

    def plain(name: str, **options: Any) -> Callable[[], Any]:
        return lambda: short(load(name), **options)

    def other(name: str, algorithm: Any, **options: Any) -> Callable[[], Any]:
        return lambda: short(replace(load(name), algorithm=algorithm()), **options)

    return {
        "mdgps": plain("peg_insertion", iterations=4, samples=3),
        "mdgps_policy": plain("point_mass_policy", iterations=4),
        "mdgps_on_policy": other(
            "arm_reach", lambda: MDGPSConfig(sample_from="policy", step=StepConfig(rule="mc"))
        ),
        "mdgps_classic": other("arm_reach", lambda: MDGPSConfig(step=StepConfig(rule="classic"))),
        "mdgps_replay": other("arm_reach", lambda: MDGPSConfig(replay=8, restart=True)),
        "badmm": plain("peg_insertion_badmm"),
        "trajopt": plain("point_mass", iterations=5),
        "trajopt_local": plain("peg_insertion_local"),
        "trajopt_reacher": other("reacher", TrajOptConfig),
        "pi2": plain("point_mass_pi2"),
        "pilqr": plain("peg_insertion_pilqr", samples=6),
        "pilqr_point_mass": other("point_mass", PILQRTrajOptConfig, samples=10),
        "pigps": plain("point_mass_pigps"),
        "planning": plain("cartpole_swingup", iterations=2),
        "planning_acrobot": plain("acrobot", iterations=2),
        "blind": plain("peg_insertion_blind", iterations=2),
        "obstacle_nav": plain("obstacle_nav", iterations=2),
        "disc_cost": plain("disc_cost", iterations=2),
        "door_policy": plain("door_policy", iterations=2),
        "gripper_pusher_policy": plain("gripper_pusher_policy", iterations=2, samples=4),
        "pendulum_unknown": plain("pendulum_unknown", iterations=2),
    }


def arrays(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays and numbers of nested tuples and records, in the order in which they stand there."""
    if isinstance(tree, np.ndarray):
        yield name, tree
    elif isinstance(tree, tuple):
        for i, item in enumerate(tree):
            yield from arrays(item, f"{name}.{i}")
    elif is_dataclass(tree):
        for f in fields(tree):
            yield from arrays(getattr(tree, f.name), f"{name}.{f.name}")


def compute(root: Path, only: list[str], out: Path) -> None:
    """Write the arrays of all runs of a checkout into a file; says which ones failed."""
    sys.meta_path.insert(0, Checkout(root))
    import gps

    assert Path(gps.__file__).is_relative_to(root), gps.__file__
    found: dict[str, Any] = {}
    for name, make in settings(gps).items():
        if only and name not in only:
            continue
        for seed in SEEDS:
            run = f"{name} seed {seed}"
            report: Any = None
            try:
                for report in gps.run(make(), seed=seed):
                    for m, rollouts in enumerate(report.rollouts):
                        for what in ("X", "U", "obs"):
                            key = f"{run} iteration {report.iteration} condition {m} {what}"
                            found[key] = getattr(rollouts, what)
                for m, condition in enumerate(report.state.conditions):
                    for path, array in arrays(condition.controller):
                        found[f"{run} controller {m} {path}"] = array
            except Exception as error:
                print(f"{root}: {run}: {type(error).__name__}: {error}", file=sys.stderr)
                found[f"{run} failed"] = np.array(str(error))
    np.savez(out, **{key: np.asarray(value) for key, value in found.items()})


def compare(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Print a line for each run; whether all are equal."""
    equal = True
    for run in dict.fromkeys(" ".join(key.split()[:3]) for key in old | new):
        keys = [key for key in old | new if key.startswith(run + " ")]
        missing = [k for k in keys if k not in old or k not in new or old[k].shape != new[k].shape]
        different = [k for k in keys if k not in missing and not same(old[k], new[k])]
        verdict = "equal" if not missing and not different else "DIFFERENT"
        if missing:
            verdict += f"; not in both, or of another shape: {missing[0]}"
        if different:
            first = different[0]
            verdict += f"; first {first}"
            if old[first].dtype.kind == "f":
                verdict += f", by {np.max(np.abs(old[first] - new[first])):.3g}"
        equal &= verdict == "equal"
        print(f"{run:32s} {len(keys):4d} arrays {verdict}")
    return equal


def same(a: Any, b: Any) -> bool:
    """Whether two arrays are equal to the last bit, NaN included."""
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, required=True, help="another checkout")
    parser.add_argument("--only", nargs="*", default=[], help="names of runs")
    parser.add_argument("--keep", type=Path, help="folder that keeps the other checkout's arrays")
    parser.add_argument("--compute", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compute is not None:
        compute(args.compute.resolve(), args.only, args.against)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(args.keep or folder) / "old.npz", Path(folder) / "new.npz"]
        only = ["--only", *args.only] if args.only else []
        processes = [
            subprocess.Popen([sys.executable, __file__, "--compute", root, "--against", out, *only])
            for root, out in zip((args.against, HERE), files, strict=True)
            if not (args.keep and out.exists())
        ]
        if any([process.wait() for process in processes]):
            return 2
        old, new = (dict(np.load(file)) for file in files)
    return 0 if compare(old, new) else 1


if __name__ == "__main__":
    sys.exit(main())
