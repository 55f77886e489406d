"""What a run leaves on disk, read back with h5py alone.

You learn: that there is one HDF5 file per iteration, where gains, rollouts and numbers are in it,
and that no part of this toolkit is needed to read them. The layout is described in
`gps.pipeline.snapshot`.
"""

import csv
import tempfile
from pathlib import Path

import h5py
import numpy as np

import gps

with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "run"
    for _ in gps.run(gps.load("point_mass"), iterations=2, out=out):
        pass

    print("files:", ", ".join(sorted(p.relative_to(out).as_posix() for p in out.rglob("*.h5"))))
    with h5py.File(out / "iterations" / "0002.h5") as file:
        print("attributes:", ", ".join(f"{k} {v}" for k, v in file.attrs.items()))
        print("groups:", ", ".join(file))
        X, U, noise = (file["rollouts/0"][name][:] for name in ("X", "U", "noise"))
        print("rollouts of condition 0 (sample, time, entry): X", X.shape, "U", U.shape)
        cost = file["models/cost/0/l"][:].sum(axis=1)  # (sample, time) -> per rollout
        print("their costs:", cost.round(2), "mean over all:", file["metrics"].attrs["cost_mean"])

    # The state of iteration 1 holds the controller that was sampled in iteration 2:
    # its gains and the stored noise must give the stored actions.
    with h5py.File(out / "iterations" / "0001.h5") as file:
        stored = file["state/conditions/0/controller"]
        K, k, chol = (stored[name][:] for name in ("K", "k", "chol"))
    again = np.einsum("tux,ntx->ntu", K, X) + k + np.einsum("tuv,ntv->ntu", chol, noise)
    again = again.clip(-10.0, 10.0)  # the agent's force limit, in N
    print("gains:", K.shape, "(time, action, state); K[0] =", K[0].round(2).tolist())
    print(f"K x + k + noise against the stored actions: within {abs(again - U).max():.1e} N")

    with open(out / "metrics.csv", newline="") as text:
        for row in csv.DictReader(text):
            print("metrics.csv:", {n: row[n] for n in ("iteration", "cost_mean", "kl_mean")})
