"""Seconds of one MDGPS iteration of peg insertion, stage by stage.

    python tests/benchmarks/bench_iteration.py

20 rollouts, 4 conditions, two mixture fits and one dual search each, 4000 SGD steps of batch 25;
serial, one thread, in memory. The public implementation (cbfinn/gps) needs about 10 s: 0.5 for
sampling, 3.6 for dynamics, 1.1 for LQR, 3.5 for SGD.
"""

from __future__ import annotations

import numpy as np

import gps


def main() -> None:
    rows = [report.row for report in gps.run(gps.load("peg_insertion"))]
    rows = rows[1:]  # the first loads kernels and trains the policy twice
    names = [name for name in rows[0] if name.startswith("seconds_")]
    for name in sorted(names, key=lambda n: -np.median([r[n] for r in rows])):
        print(f"{name[8:]:20s} {np.median([r[name] for r in rows]):7.3f} s")
    print(f"{'whole iteration':20s} {np.median([r['seconds'] for r in rows]):7.3f} s (median)")


if __name__ == "__main__":
    main()
