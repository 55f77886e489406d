"""What the experiments reach from their files, as README's table says; seconds each."""

from dataclasses import replace

import pytest

import gps
from gps.algorithms import PI2TrajOptConfig, TrajOptConfig


def last(experiment, seed=0):
    """Metrics of the last iteration, and all events."""
    events = []
    for report in gps.run(experiment, seed=seed):
        events += report.events
    return report.row, events


@pytest.mark.parametrize(
    ("name", "kind", "distance"),
    [
        ("point_mass", "local", 0.02),
        ("point_mass_pi2", "local", 0.05),
        ("point_mass_pigps", "policy", 0.03),
    ],
)
def test_the_point_masses_arrive(name, kind, distance):
    row, _ = last(gps.load(name))
    assert row[f"{kind}_success"] == 1.0
    assert row[f"{kind}_distance_mean"] < distance


@pytest.mark.parametrize("seed", [0, 1])
def test_pilqr_finds_the_region(seed):
    """-303 is what the public implementation reaches with as many samples."""
    experiment = gps.load("disc_cost")
    row, _ = last(experiment, seed)
    assert row["local_cost_mean"] < -1500
    assert row["local_success"] == 1.0
    # neither of its halves does as well
    lqr, _ = last(replace(experiment, algorithm=TrajOptConfig()), seed)
    assert lqr["local_cost_mean"] > 0
    pi2, _ = last(replace(experiment, algorithm=PI2TrajOptConfig()), seed)
    assert pi2["local_cost_mean"] > 0.8 * row["local_cost_mean"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("peg_insertion_badmm", "policy"), ("peg_insertion_pilqr", "local")]
)
def test_the_peg_goes_in(name, kind):
    row, events = last(gps.load(name))
    assert row[f"{kind}_success"] == 1.0
    assert row[f"{kind}_distance_max"] < 0.01
    assert len(events) < 10
