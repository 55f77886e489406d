"""Seconds of one MDGPS iteration of peg insertion, stage by stage.

    python tests/benchmarks/bench_iteration.py
    python tests/benchmarks/bench_iteration.py --against ../another/checkout

20 rollouts, 4 conditions, two mixture fits and one dual search each, 4000 SGD steps of batch 25;
serial, one thread, in memory. The public implementation (cbfinn/gps) needs about 10 s: 0.5 for
sampling, 3.6 for dynamics, 1.1 for LQR, 3.5 for SGD.

With `--against` the package of another checkout of this repository, say a worktree of an earlier
commit, makes the same iterations with the same interpreter and libraries. Each checkout has a
process of its own, and they take turns, one iteration at a time, so that whatever else the machine
does slows down both. The ratios are new to old: below 1 this checkout is faster. On a busy machine
the processor's seconds of the whole iteration, and the quickest ones, say most.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
PACKAGES = {"gps": "gps"} | {f"gps.{name}": name for name in ("agents", "hyperparams", "data")}
PROCESSOR = "processor"
Row = dict[str, float]


class Checkout(MetaPathFinder):
    """Finds the packages of gps in a checkout, wherever gps is installed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of one of the packages whose folders setup.cfg names; the rest follows."""
        if name not in PACKAGES:
            return None
        folder = self.root / PACKAGES[name]
        return spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def serve(root: Path, experiment: str) -> None:
    """Make an iteration for each line that comes in; answer with its row of metrics as JSON.

    The first of a run is made and left out: it loads kernels and trains the policy twice. One run
    follows another, each with the next seed.
    """
    sys.meta_path.insert(0, Checkout(root))
    import gps

    assert Path(gps.__file__).is_relative_to(root), gps.__file__
    rows = endless(lambda seed: gps.run(gps.load(experiment), seed=seed))
    print(json.dumps(next(rows)), flush=True)
    for _ in sys.stdin:
        print(json.dumps(next(rows)), flush=True)


def endless(run: Callable[[int], Iterator[Any]]) -> Iterator[Row]:
    """Rows of the metrics of run(0), run(1) and so on, with the processor's seconds besides."""
    for seed in itertools.count():
        reports = run(seed)
        next(reports)
        before = time.process_time()
        for report in reports:
            yield report.row | {PROCESSOR: time.process_time() - before}
            before = time.process_time()


class Server:
    """A process that runs `serve`."""

    def __init__(self, root: Path, experiment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--experiment", experiment, "--serve", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer()

    def answer(self) -> Row:
        """The next row; ends the program where the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a process has ended; its error is above")
        row: Row = json.loads(line)
        return row

    def iteration(self) -> Row:
        """Metrics of one more iteration."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(root: Path, experiment: str, turns: int) -> None:
    """Print seconds per stage of both checkouts, medians and quickest, with their ratios."""
    old, new = Server(root, experiment), Server(HERE, experiment)
    pairs: list[tuple[Row, Row]] = []
    for turn in range(turns):
        if turn % 2:  # neither always comes first
            after = new.iteration()
            pairs.append((old.iteration(), after))
        else:
            pairs.append((old.iteration(), new.iteration()))
    old.close()
    new.close()
    print(f"{turns} iterations of {experiment} each, in turns; seconds")
    print(f"{'':20s} {'median':>25s}   {'quickest':>25s}")
    print(f"{'':20s}" + "   old     new    ratio  " * 2)
    for name in stages([a for a, _ in pairs]):
        a, b = [row[name] for row, _ in pairs], [row[name] for _, row in pairs]
        cells = ""
        for x, y in ((statistics.median(a), statistics.median(b)), (min(a), min(b))):
            cells += f" {x:7.4f} {y:7.4f} {y / x if x else float('nan'):6.2f}  "
        print(f"{label(name):20s}{cells}")
    for name in ("seconds", PROCESSOR):
        ratios = sorted(b[name] / a[name] for a, b in pairs)
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        print(
            f"ratio of a turn, {label(name)}: median {statistics.median(ratios):.3f}, "
            f"half of them in {low:.3f} to {high:.3f}"
        )


def stages(rows: list[Row]) -> list[str]:
    """Names of the stages, longest first, and the whole iteration at the end."""
    names = [name for name in rows[0] if name.startswith("seconds_")]
    names.sort(key=lambda n: -statistics.median(r[n] for r in rows))
    return [*names, *(name for name in ("seconds", PROCESSOR) if name in rows[0])]


def label(name: str) -> str:
    """What a row is called in the table."""
    known = {"seconds": "whole iteration", PROCESSOR: "its processor time"}
    return known.get(name) or name.removeprefix("seconds_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="peg_insertion")
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--turns", type=int, default=33, help="iterations of each, in comparisons")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve.resolve(), args.experiment)
        return
    if args.against is not None:
        compare(args.against.resolve(), args.experiment, args.turns)
        return
    import gps

    rows = [report.row for report in gps.run(gps.load(args.experiment))]
    rows = rows[1:]  # the first loads kernels and trains the policy twice
    for name in stages(rows):
        print(f"{label(name):20s} {statistics.median(r[name] for r in rows):7.3f} s (median)")


if __name__ == "__main__":
    main()
