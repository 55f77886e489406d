import math
from dataclasses import fields, replace

import numpy as np
import pytest
from algorithm_problems import FIXTURES
from numpy.testing import assert_allclose

from gps.algorithms import GuardConfig, StepConfig
from gps.algorithms.state import Assessment
from gps.algorithms.step_size import adjust_steps, improvement_ratio, new_multiplier
from gps.errors import ConfigError


def multiplier(mult, predicted, actual, config):
    return new_multiplier(mult, improvement_ratio(predicted, actual), config)


def test_the_rule_of_the_reference():
    d = np.load(FIXTURES / "step_multiplier.npz")
    config = StepConfig(
        min_mult=float(d["min_step_mult"]), max_mult=float(d["max_step_mult"]), growth=5.0
    )
    inputs = (d["step_mult_in"], d["predicted_impr"], d["actual_impr"])
    new = [multiplier(*map(float, row), config) for row in zip(*inputs, strict=True)]
    assert_allclose(new, d["step_mult_out"], rtol=1e-12)
    inside = (d["step_mult_out"] > 0.5) & (d["step_mult_out"] < 3.0)
    assert inside.sum() >= 5  # the fixture sees more than the bounds


@pytest.mark.parametrize("before", [1.383, 2.4, 3.0])
def test_the_rule_over_conditions(before):
    d = np.load(FIXTURES / "step_rule_mdgps.npz")
    config = StepConfig(min_mult=0.5, max_mult=3.0, growth=5.0)
    last = d["prev_laplace"].mean()
    predicted, actual = last - d["prev_predicted"].mean(), last - d["cur_laplace"].mean()
    new = multiplier(before, float(predicted), float(actual), config)
    assert_allclose(new, d["step_mult_after"], rtol=1e-12)


def test_the_best_step_of_a_quadratic_improvement():
    """improvement(s) = a s - b s^2 has its maximum at a / 2b, whatever step was tried."""
    a, b, wide = 3.0, 0.7, StepConfig(min_mult=1e-6, max_mult=1e6, growth=5.0)
    for s in (0.6, 1.0, 2.0, 4.0):
        assert_allclose(multiplier(s, a * s, a * s - b * s * s, wide), a / (2 * b), rtol=1e-12)


def test_the_factor_and_the_multiplier_are_clipped():
    wide = StepConfig(min_mult=1e-6, max_mult=1e6)
    assert multiplier(2.0, 10.0, 10.0, wide) == 4.0  # twice, no more
    assert multiplier(2.0, 10.0, 10.0, replace(wide, growth=7.0)) == pytest.approx(10.0)
    assert multiplier(2.0, 10.0, 10.0, replace(wide, growth=1.0)) == 2.0
    assert multiplier(2.0, 10.0, -1e9, wide) == pytest.approx(0.2)  # a tenth, no less
    assert multiplier(2.0, -10.0, 5.0, wide) == pytest.approx(0.2)
    assert multiplier(2.9, 10.0, 10.0, StepConfig()) == 3.0
    assert multiplier(0.02, 10.0, -1e9, StepConfig()) == 0.01


@pytest.mark.parametrize("predicted", [math.nan, math.inf, -math.inf, 1.0])
@pytest.mark.parametrize("actual", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_progress(predicted, actual):
    config = StepConfig()
    assert multiplier(1.0, predicted, actual, config) == pytest.approx(0.1)
    assert multiplier(1.0, actual, predicted, config) == pytest.approx(0.1)
    assert multiplier(0.05, predicted, actual, config) == config.min_mult


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (StepConfig, {"kl_max": 0.0}, "kl_max must be a number above 0 nats, got 0"),
        (StepConfig, {"kl_max": math.nan}, "kl_max must be a number above 0 nats"),
        (StepConfig, {"rule": "exact"}, "rule must be 'laplace', 'mc' or 'classic', got 'exact'"),
        (StepConfig, {"min_mult": 0.0}, "min_mult must be a number above 0"),
        (StepConfig, {"initial_mult": 11.0}, "needs min_mult <= initial_mult <= max_mult"),
        (StepConfig, {"initial_mult": math.nan}, "initial_mult must be a number above 0"),
        (StepConfig, {"growth": 0.9}, "growth must be a number of at least 1, got 0.9"),
        (StepConfig, {"growth": math.inf}, "growth must be a number of at least 1, got inf"),
        (
            GuardConfig,
            {"policy_trial": 0},
            "policy_trial must be a whole number .*1, got 0",
        ),
        (
            GuardConfig,
            {"policy_trial": 2.5},
            "policy_trial must be a whole number .*1, got 2.5",
        ),
        (GuardConfig, {"explosion": 0.0}, "explosion must be a number above 0"),
        (GuardConfig, {"disagreement": math.nan}, "disagreement must be a number above 0"),
        (GuardConfig, {"policy_gap": -1.0}, "policy_gap must be a number above 0"),
        (GuardConfig, {"against": "first"}, "against must be 'best' or 'last', got 'first'"),
        (GuardConfig, {"shrink": 1.0}, "shrink must be a number above 0 and below 1"),
    ],
)
def test_configurations_are_checked(config, values, message):
    with pytest.raises(ConfigError, match=message):
        config(**values)


def assessment(**values):
    """That of an update that can be judged and kept all it had predicted."""
    plain = {f.name: 0.0 for f in fields(Assessment)}
    flags = {"rejected": False, "sampled_best": True, "policy_worse": False}
    good = {"step_mult": 1.0, "updated": True, "predicts_improvement": True, "trusted": True}
    return Assessment(**{**plain, **flags, **good, "improvement_ratio": 0.9, **values})


def test_one_rule_for_steps_of_one_condition_and_of_all():
    step, guard = StepConfig(min_mult=1e-3), GuardConfig()
    good, bad = assessment(step_mult=0.5), assessment(improvement_ratio=0.0)
    far = assessment(policy_worse=True, improvement_ratio=-4.0)
    back = assessment(rejected=True, improvement_ratio=-4.0)
    none = assessment(predicts_improvement=False, improvement_ratio=-4.0)
    untrusted = assessment(trusted=False)
    rules = (step, guard)
    assert adjust_steps([good, bad, far, back, none], *rules) == pytest.approx(
        [1, 0.5, 1, 0.5, 0.1]
    )
    assert adjust_steps([none, bad], *rules, if_predicted=True) == pytest.approx([1, 0.5])
    assert adjust_steps([untrusted], *rules) == pytest.approx([0.5])  # it does not grow first
    unjudged = assessment(updated=False, improvement_ratio=-4.0)
    assert adjust_steps([unjudged], *rules) == [1.0]
    low = assessment(rejected=True, step_mult=1.5 * step.min_mult)
    assert adjust_steps([low], *rules) == [step.min_mult]
    # jointly: the mean multiplier, by the mean ratio of those that count
    joint = adjust_steps([good, bad, far, back], *rules, jointly=True)
    mean = (0.5 + 1 + 1 + 1) / 4
    new = mean * 0.5 / (1 - 0.45)
    assert joint == pytest.approx([new, new, new, 0.5 * min(new, mean)])
    for check in (good, bad, far, back, none, untrusted):  # alone, both are the same
        assert adjust_steps([check], *rules) == adjust_steps([check], *rules, jointly=True)
    assert adjust_steps([good, bad], *rules) == [adjust_steps([c], *rules)[0] for c in (good, bad)]
