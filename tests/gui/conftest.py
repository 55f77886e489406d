"""Stored runs that the tests of the GUI read; made once per session."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import gps
from gps.pipeline.store import RunFolder

ITERATIONS = 3


def stored(path: Path, seed: int = 0, iterations: int = ITERATIONS) -> Path:
    experiment = replace(gps.load("point_mass_policy"), seed=seed)
    for _ in gps.run(experiment, iterations=iterations, out=path):
        pass
    return path


@pytest.fixture(scope="session")
def run_path(tmp_path_factory) -> Path:
    """Point mass with a policy: 3 iterations, 4 conditions, 5 samples, 80 steps. Only to read."""
    return stored(tmp_path_factory.mktemp("gui") / "seed0")


@pytest.fixture(scope="session")
def other_path(tmp_path_factory) -> Path:
    """The same experiment with another seed and 2 iterations. Only to read."""
    return stored(tmp_path_factory.mktemp("gui") / "seed1", seed=1, iterations=2)


@pytest.fixture
def own_run(run_path, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    return shutil.copytree(run_path, tmp_path / "run")


@pytest.fixture
def best_run(own_run) -> Path:
    """A run whose best iteration is the second of three."""
    with h5py.File(RunFolder.open(own_run).iteration_path(2), "r+") as file:
        file["metrics"].attrs["policy_success"] = 2.0
    return own_run


@pytest.fixture
def image_run(own_run) -> Path:
    """A run whose iteration 1 has images of 4 x 5 pixels, in every condition others."""
    with RunFolder.open(own_run) as folder:
        snapshot = folder.read(1)
        rng = np.random.default_rng(0)
        with_images = tuple(
            replace(r, images=rng.integers(0, 256, (r.N, r.T, 4, 5, 3), dtype=np.uint8))
            for r in snapshot.rollouts
        )
        folder.write(replace(snapshot, rollouts=with_images))
    return own_run
