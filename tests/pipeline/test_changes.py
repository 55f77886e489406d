"""Options that change during a run."""

import json

import pytest

import gps
from gps.errors import ConfigError, ExperimentError, StoreError
from gps.pipeline import changes
from gps.pipeline.changes import Change, Changes

HEAD = {"schema": "gps changes", "schema_version": 1}


@pytest.fixture(scope="module")
def experiment():
    return gps.load("point_mass_policy")


def test_a_change_holds_from_its_iteration_on(experiment):
    made = Changes().with_change(3, Change({"samples": "4", "algorithm.step.kl-max": "0.25"}))
    made = made.with_change(5, Change({"samples": "6"}))
    sizes = [made.apply(experiment, n).samples for n in range(1, 7)]
    assert sizes == [experiment.samples] * 2 + [4, 4, 6, 6]
    assert made.apply(experiment, 6).algorithm.step.kl_max == 0.25
    assert made.apply(experiment, 2) is experiment


def test_of_two_changes_in_one_iteration_the_later_holds(experiment):
    made = Changes().with_change(2, Change({"samples": "4"}, seed=7))
    made = made.with_change(2, Change({"samples": "5", "max_resamples": "1"}))
    assert made.options(2) == {"samples": "5", "max_resamples": "1"}
    assert (made.seed(1), made.seed(2), made.seed(3)) == (None, 7, None)


def test_live_options_are_samples_iterations_and_the_algorithm(experiment):
    found = changes.live_options(experiment)
    for name in ("samples", "iterations", "algorithm.step.kl-max", "algorithm.training.steps"):
        assert name in found
    assert found["samples"].value == experiment.samples
    assert "Rollouts per condition" in found["samples"].help
    assert not [n for n in found if n.startswith(("agent", "cost", "algorithm.network"))]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"algorithm.step.kl-mx": "1"}, ConfigError, "did you mean algorithm.step.kl-max"),
        ({"agent.T": "3"}, ConfigError, "cannot change between iterations"),
        ({"algorithm.network.hidden": "3"}, ConfigError, "cannot change between iterations"),
        (
            {"cost.terms.0.cost.weights": "3"},
            ConfigError,
            "iterations: the iterations of a run are",
        ),
        (
            {"cost.terms.0.weights": "3"},
            ConfigError,
            r"weights' \(there is cost.terms.0.cost.weights\) cannot change .*: the iterations of",
        ),
        ({"measure.treshold": "3"}, ConfigError, r"there is measure.threshold\).*: the iterations"),
        ({"agent.friction": "3"}, ConfigError, "'agent.friction' cannot change .* of this agent"),
        ({"samples": "two"}, ExperimentError, "samples"),
        ({"samples": "0"}, ConfigError, "Experiment.samples must be"),
        ({"algorithm.step.kl-max": "-1"}, ConfigError, "kl_max must be a number above 0"),
    ],
)
def test_what_cannot_be_set_is_refused_in_one_line(experiment, options, error, text):
    with pytest.raises(error, match=text) as caught:
        changes.changed(experiment, options)
    assert "\n" not in str(caught.value)


def test_underscores_and_several_values_are_understood(experiment):
    changed = changes.changed(experiment, {"algorithm.step.kl_max": "0.5"})
    assert changed.algorithm.step.kl_max == 0.5


def test_the_file_gives_back_what_was_written(tmp_path):
    made = Changes().with_change(4, Change({"samples": "3"})).with_change(2, Change(seed=9))
    path = tmp_path / "changes.json"
    path.write_bytes(changes.encode(made))
    assert changes.read(path) == made
    assert [n for n, _ in made.at] == [2, 4]
    assert changes.read(tmp_path / "none.json") == Changes()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps({"schema": "gps changes", "schema_version": 2, "changes": []}),
        json.dumps({"schema": "gps changes", "schema_version": 1, "changes": [{"iteration": 0}]}),
        json.dumps(
            {
                "schema": "gps changes",
                "schema_version": 1,
                "changes": [{"iteration": 1, "seed": -1}],
            }
        ),
    ],
)
def test_a_file_that_holds_no_changes_is_named(tmp_path, text):
    path = tmp_path / "changes.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"changes\.json holds no changes"):
        changes.read(path)
