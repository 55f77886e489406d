"""The benchmark of long runs: what it calls a run that holds, and the parts that it takes away."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import gps
from gps.errors import NonFiniteError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bench_stability.py"


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_stability", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_stability", module)  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def rows_of(distances, costs=None, success=None, std=0.1):
    """Rows of a run with these results of its policy."""
    costs = distances if costs is None else costs
    success = [1.0] * len(distances) if success is None else success
    return [
        {
            "iteration": n + 1,
            "policy_success": s,
            "policy_cost_mean": c,
            "policy_distance_mean": d,
            "cost_mean": costs[0] + 1.0,
            "exploration_std": std / (n + 1),
        }
        for n, (d, c, s) in enumerate(zip(distances, costs, success, strict=True))
    ]


def test_the_last_iterations_are_compared_with_the_best(bench):
    distances = [0.5, 0.01] + [0.014] * 9 + [0.012]
    found = bench.outcome(rows_of(distances), 3, 2.0)
    assert (found.best, found.distance, found.worst_distance) == (2, 0.01, 0.014)
    assert (found.holds, found.end, found.events) == (1.0, 0.012, 3)
    assert (found.first_std, found.last_std) == (0.1, 0.1 / 12)
    for n in (2, 11):  # the last ten are iterations 3 to 12
        worse = [*distances[:n], 0.016, *distances[n + 1 :]]
        assert bench.outcome(rows_of(worse), 0, 0.0).holds == 0.0
    early = [0.5, 0.5, 0.01] + [0.01] * 10
    assert bench.outcome(rows_of(early), 0, 0.0).holds == 1.0
    assert bench.outcome(rows_of([0.0001] + [0.001] * 10), 0, 0.0).holds == 1.0  # under 1 mm
    failed = [1.0] * 5 + [0.75] + [1.0] * 6
    assert bench.outcome(rows_of(distances, success=failed), 0, 0.0).holds == 0.0
    lost = [*distances[:5], math.nan, *distances[6:]]
    found = bench.outcome(rows_of(distances, costs=lost), 0, 0.0)
    assert (found.holds, found.worst_distance, found.least_success) == (0.0, math.inf, 0.0)


def test_without_a_measure_costs_are_compared(bench):
    nan = [math.nan] * 12
    kept = [-1.0] + [-10.0] * 10 + [-9.2]  # the first rollouts cost 0
    found = bench.outcome(rows_of(nan, kept, nan), 0, 0.0)
    assert found.holds == 1.0
    assert math.isnan(found.end)
    assert bench.outcome(rows_of(nan, [*kept[:-1], -8.8], nan), 0, 0.0).holds == 0.0


def test_every_part_is_one_change_of_the_algorithm(bench):
    experiment = gps.load("arm_reach")
    assert set(bench.PARTS) == {
        "floor",
        "guard",
        "last",
        "trial",
        "growth",
        "restart",
        "decay",
        "replay",
        "jacobian",
        "entropy",
    }
    for name, change in bench.PARTS.items():
        variant = change(experiment)
        variant.validate()
        assert replace(variant, algorithm=experiment.algorithm) == experiment
        assert variant.algorithm != experiment.algorithm, name
        with pytest.raises(bench.DoesNotApply):
            change(change(experiment)) if name != "restart" else change(gps.load("point_mass"))
    off = bench.PARTS["guard"](experiment).algorithm.guard
    assert (off.setback, off.explosion, off.policy_gap, off.disagreement) == (math.inf,) * 4
    assert bench.chosen(None) == []
    assert bench.chosen([]) == list(bench.PARTS)
    with pytest.raises(SystemExit, match="no part 'flor'; there are: floor"):
        bench.chosen(["floor", "guard+flor"])
    assert bench.chosen(["guard+floor"]) == ["guard+floor"]
    both = bench.ablated(experiment, "guard+floor")
    assert both == bench.PARTS["floor"](bench.PARTS["guard"](experiment))
    assert bench.in_words("floor+replay") == (
        "no least noise; the policy is trained at the newest states only"
    )


def test_the_table_of_short_runs(bench, capsys, monkeypatch):
    def fails(experiment, seed):
        if seed == 2:
            raise NonFiniteError("a cost is NaN")
        return run(experiment, seed)

    run = bench.run
    monkeypatch.setattr(bench, "run", fails)
    argv = ["point_mass_policy", "--iterations", "2", "--seeds", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["bench", *argv, "--samples", "2", "--ablate", "floor"])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "point_mass_policy: 2 iterations, 2 samples"
    assert [text.split()[0] for text in lines[1:5]] == ["seed", "1", "2", "mean"]
    assert "a cost is NaN" in lines[3]
    assert lines[5].startswith("point_mass_policy, floor (no least noise)")
    assert {len(text) for text in lines if text.strip().startswith(("seed", "1", "mean"))} == {
        len(lines[1])
    }


def test_the_experiments_of_its_own(bench):
    pytest.importorskip("gymnasium")
    assert set(bench.OWN) <= set(bench.LONG)
    for name in bench.OWN:
        bench.load(name).validate()
    pole = bench.load("pole")
    bench.PARTS["jacobian"](pole).validate()
    assert pole.algorithm.replay == 0  # as it was when docs/stability.md was measured
    with pytest.raises(bench.DoesNotApply, match="replay is 0 already"):
        bench.PARTS["replay"](pole)
