"""Plots of your own, in the page and in files, beside those of the toolkit.

You learn: what a function that makes plots takes and gives, and how a file with such functions is
used: `gps gui RUN --plots own_plot.py`, `gps plot RUN --out figures --plots own_plot.py`.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import gps
from gps.gui import Line, LinePlot, Plot, PlotContext, RunReader, plot_run


def lowest_cost(runs: Sequence[RunReader]) -> Iterator[Plot]:
    """Training progress: of the run that is shown, and of those that it is compared with."""
    lines = []
    for run in runs:
        iteration = np.array([row["iteration"] for row in run.rows])
        cost = np.array([row["cost_mean"] for row in run.rows])
        lines.append(Line(f"seed {run.seed}", iteration, np.minimum.accumulate(cost)))
    yield LinePlot("lowest_cost", "Lowest cost so far", "iteration", "cost", tuple(lines))


def speed(context: PlotContext) -> Iterator[Plot]:
    """One condition of one iteration; what the run does not hold is not shown."""
    r = context.rollouts
    if r is None or "velocity" not in r.layout.names:
        return
    v = np.linalg.norm(r.entry("velocity"), axis=-1)  # (N, T)
    labels = [f"sample {i}" for i in range(len(v))]
    yield context.columns("speed", "Speed of every sample", "speed (m/s)", v.T, labels)


progress_plots = [lowest_cost]
condition_plots = [speed]

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder) / "run", Path(folder) / "figures"
        for _ in gps.run(gps.load("point_mass"), iterations=3, out=run):
            pass
        for path in plot_run(run, out, iteration="last", plots=[__file__]):
            if path.stem in ("lowest_cost", "custom_speed"):
                rows = path.with_suffix(".csv").read_text().splitlines()
                print(f"{path.relative_to(out)}: {len(rows) - 1} points, the first {rows[1]}")
