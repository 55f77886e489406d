"""Distance, ramps, expansion, sums, measure and error texts of gps.costs."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cost_agent import (
    ALL_CASES,
    LAYOUT,
    NU,
    POINTS,
    kinematics_jacobian,
    random_samples,
    rollouts_at,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gps.costs import (
    ActionCost,
    BaseCost,
    Cost,
    EndpointCost,
    EndpointMeasure,
    StateCost,
    SumCost,
    WeightedCost,
    expand,
    ramp,
    smooth_distance,
)
from gps.errors import ConfigError, ShapeError
from gps.types import CostTerms, Layout, Rollouts


@pytest.fixture(scope="module")
def rollouts():
    return rollouts_at(*random_samples(3, N=5, T=6), chain=True)


def eye_case(name):
    return next(case for case in ALL_CASES if case.name == name)


# --- smooth distance -----------------------------------------------------------------------------
def test_smooth_distance_by_hand():
    # s = 2 * 1 + 3 * 4 = 14, alpha + s = 16
    value, gradient, hessian = smooth_distance(
        np.array([1.0, -2.0]), (2.0, 3.0), l1=8.0, l2=0.5, alpha=2.0, log_weight=16.0, exact=True
    )
    assert value == pytest.approx(0.25 * 14 + 8 * 4 + 8 * np.log(16.0))
    # slope = 0.5 + 8/4 + 16/16 = 3.5; bend = 8/64 + 32/256 = 0.25; W d = (2, -6)
    np.testing.assert_allclose(gradient, [7.0, -21.0])
    np.testing.assert_allclose(hessian, [[7.0 - 1.0, 3.0], [3.0, 10.5 - 9.0]])


weight = st.floats(0.0, 10.0)


@settings(max_examples=60, deadline=None)
@given(l1=weight, l2=weight, log_weight=weight, alpha=st.floats(1e-5, 1.0), seed=st.integers(0, 99))
def test_gauss_newton_bounds_the_exact_hessian_from_above(l1, l2, log_weight, alpha, seed):
    rng = np.random.default_rng(seed)
    d, w = rng.normal(size=(4, 3)), rng.uniform(0.1, 2.0, size=(4, 3))
    kind = {"l1": l1, "l2": l2, "alpha": alpha, "log_weight": log_weight}
    value, gradient, gauss_newton = smooth_distance(d, w, **kind)
    same_value, same_gradient, exact = smooth_distance(d, w, **kind, exact=True)
    np.testing.assert_array_equal(value, same_value)
    np.testing.assert_array_equal(gradient, same_gradient)
    assert np.linalg.eigvalsh(gauss_newton - exact).min() >= -1e-9 * (1 + np.abs(exact).max())
    # the model's minimum is the target
    np.testing.assert_allclose(np.einsum("nij,nj->ni", gauss_newton, d), gradient, atol=1e-9)
    if l1 == log_weight == 0.0:
        np.testing.assert_array_equal(gauss_newton, exact)


def test_l1_alone_is_convex_and_the_log_alone_is_not():
    d = np.full((1, 3), 0.7)
    _, _, l1 = smooth_distance(d, 1.0, l1=1.0, alpha=0.01, exact=True)
    _, _, log = smooth_distance(d, 1.0, log_weight=1.0, alpha=0.01, exact=True)
    assert np.linalg.eigvalsh(l1).min() > 0
    assert np.linalg.eigvalsh(log).min() < 0


# --- ramps ---------------------------------------------------------------------------------------
def test_ramps():
    np.testing.assert_array_equal(ramp("constant", 3, 5.0), [1, 1, 5])
    np.testing.assert_allclose(ramp("linear", 4, 2.0), [0.25, 0.5, 0.75, 2.0])
    np.testing.assert_allclose(ramp("quadratic", 2), [0.25, 1.0])
    np.testing.assert_array_equal(ramp("final", 3, 5.0), [0, 0, 5])
    assert ramp("linear", 3).dtype == np.float64
    with pytest.raises(ConfigError, match=r"unknown ramp 'lin'; .*known: constant, final, linear"):
        ramp("lin", 3)
    with pytest.raises(ConfigError, match="T=0"):
        ramp("constant", 0)


def test_ramp_multiplies_the_cost(rollouts):
    plain = EndpointCost(**POINTS, log_weight=1.0, l1=0.2)
    ramped = replace(plain, ramp="quadratic", final_multiplier=3.0)
    a, b = plain.evaluate(rollouts), ramped.evaluate(rollouts)
    factor = ramp("quadratic", rollouts.T, 3.0)
    np.testing.assert_allclose(b.l, factor * a.l)
    np.testing.assert_allclose(b.l_x, factor[:, None] * a.l_x)
    np.testing.assert_allclose(b.l_xx, factor[:, None, None] * a.l_xx)


# --- end points ----------------------------------------------------------------------------------
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_endpoint_derivatives_are_the_products_with_the_jacobian(rollouts, dense, exact):
    J = kinematics_jacobian(rollouts.X[..., :6])
    if dense:
        J = J + np.random.default_rng(0).normal(size=J.shape)
    data = replace(rollouts, jacobians={"end_points": J})
    terms = EndpointCost(**POINTS, l2=0.7, log_weight=1.0, exact=exact).evaluate(data)
    d = data.entry("end_points") - np.array(POINTS["target"])
    w, alpha = POINTS["weights"], POINTS["alpha"]
    value, g, H = smooth_distance(d, w, l2=0.7, log_weight=1.0, alpha=alpha, exact=exact)
    np.testing.assert_allclose(terms.l, value)
    np.testing.assert_allclose(terms.l_x, np.einsum("ntai,nta->nti", J, g), atol=1e-12)
    l_xx = np.einsum("ntai,ntab,ntbj->ntij", J, H, J)
    np.testing.assert_allclose(terms.l_xx, l_xx, atol=1e-10)


def test_nan_in_a_state_shows_in_the_cost(rollouts):
    X = np.array(rollouts.X)
    X[2, 3, 7] = np.nan
    terms = EndpointCost(**POINTS, l2=1.0, ramp="final").evaluate(replace(rollouts, X=X))
    assert np.isnan(terms.l[2, 3])
    assert np.isnan(terms.l_x[2, 3, 0])
    assert np.isfinite(np.delete(terms.l, 2, axis=0)).all()


# --- expansion -----------------------------------------------------------------------------------
def model_value(quadratic, z):
    value = 0.5 * np.einsum("ti,tij,tj->t", z, quadratic.C, z)
    return value + np.sum(quadratic.c * z, axis=-1) + quadratic.c0


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_expansion_is_the_mean_of_the_models_about_the_samples(case, rollouts):
    terms = case.cost.evaluate(rollouts)
    quadratic = expand(terms, rollouts)
    np.testing.assert_array_equal(quadratic.C, quadratic.C.swapaxes(1, 2))
    rng = np.random.default_rng(4)
    for _ in range(3):
        z = rng.normal(size=(rollouts.T, rollouts.nx + rollouts.nu))
        dx, du = z[:, : rollouts.nx] - rollouts.X, z[:, rollouts.nx :] - rollouts.U
        mean = terms.l + np.sum(terms.l_x * dx, axis=-1) + np.sum(terms.l_u * du, axis=-1)
        mean += 0.5 * np.einsum("nti,ntij,ntj->nt", dx, terms.l_xx, dx)
        mean += 0.5 * np.einsum("nti,ntij,ntj->nt", du, terms.l_uu, du)
        mean += np.einsum("nti,ntij,ntj->nt", du, terms.l_ux, dx)
        np.testing.assert_allclose(model_value(quadratic, z), mean.mean(axis=0), rtol=1e-9)
        if case.quadratic:
            there = rollouts_at(z[None, :, : rollouts.nx], z[None, :, rollouts.nx :])
            value = case.cost.evaluate(there).l[0]
            np.testing.assert_allclose(model_value(quadratic, z), value, rtol=1e-9, atol=1e-12)


def test_expansion_keeps_cross_terms_and_takes_the_symmetric_part():
    rng = np.random.default_rng(5)
    X, U = random_samples(6, N=2, T=3)
    data = rollouts_at(X, U)
    N, T, nx, nu = data.N, data.T, data.nx, data.nu
    terms = CostTerms(
        l=rng.normal(size=(N, T)),
        l_x=rng.normal(size=(N, T, nx)),
        l_u=rng.normal(size=(N, T, nu)),
        l_xx=rng.normal(size=(N, T, nx, nx)),
        l_ux=rng.normal(size=(N, T, nu, nx)),
        l_uu=rng.normal(size=(N, T, nu, nu)),
    )
    H = np.block([[terms.l_xx, terms.l_ux.swapaxes(2, 3)], [terms.l_ux, terms.l_uu]])
    H = (H + H.swapaxes(2, 3)) / 2
    z = np.concatenate([X, U], axis=2)
    g = np.concatenate([terms.l_x, terms.l_u], axis=2)
    Hz = np.einsum("ntij,ntj->nti", H, z)
    quadratic = expand(terms, data)
    np.testing.assert_allclose(quadratic.C, H.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(quadratic.c, (g - Hz).mean(axis=0), atol=1e-13)
    c0 = terms.l - np.sum(g * z, axis=2) + 0.5 * np.sum(z * Hz, axis=2)
    np.testing.assert_allclose(quadratic.c0, c0.mean(axis=0), atol=1e-13)


def test_expansion_refuses_terms_of_other_rollouts(rollouts):
    terms = ActionCost(weights=1.0).evaluate(rollouts)
    other = rollouts_at(*random_samples(3, N=2, T=6))
    with pytest.raises(ShapeError, match=r"\(5, 6, 10\).*\(2, 6, 10\)"):
        expand(terms, other)


# --- sums ----------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class ForeignCost:
    """A user's cost that knows the protocol and nothing else."""

    inner: Cost

    def evaluate(self, rollouts: Rollouts) -> CostTerms:
        return self.inner.evaluate(rollouts)

    def check(self, layout: Layout, nu: int, T: int) -> None:
        self.inner.check(layout, nu, T)


def test_sum_adds_weighted_terms_of_known_and_foreign_costs(rollouts):
    action, points = ActionCost(weights=0.3), EndpointCost(**POINTS, l2=2.0, l1=0.4)
    state = StateCost(entry="joint_pos", target=0.1, l2=1.0)
    cost = SumCost(
        terms=(
            WeightedCost(cost=action, weight=2.0),
            WeightedCost(cost=ForeignCost(inner=points), weight=0.5),
            WeightedCost(cost=ForeignCost(inner=action), weight=0.0),
            WeightedCost(cost=replace(points, through="state"), weight=4.0),
            WeightedCost(cost=SumCost(terms=(WeightedCost(cost=state, weight=3.0),)), weight=7.0),
        )
    )
    got = cost.evaluate(rollouts)
    for name in ("l", "l_x", "l_u", "l_xx", "l_ux", "l_uu"):
        own = replace(points, through="state")
        parts = [getattr(c.evaluate(rollouts), name) for c in (action, points, state, own)]
        want = sum(w * part for w, part in zip((2, 0.5, 21, 4), parts, strict=True))
        np.testing.assert_allclose(getattr(got, name), want, atol=1e-12)
        assert not getattr(got, name).flags.writeable


def test_sum_is_edited_with_replace():
    cost = eye_case("sum").cost
    first = replace(cost.terms[0], cost=replace(cost.terms[0].cost, weights=[1, 2]))
    edited = replace(cost, terms=[first, *cost.terms[1:]])
    assert edited.terms[0].cost.weights == (1.0, 2.0)
    assert edited.terms[1:] == cost.terms[1:]
    assert hash(edited) != hash(cost)


def test_last_action_is_charged(rollouts):
    terms = ActionCost(weights=(0.5, 2.0)).evaluate(rollouts)
    np.testing.assert_allclose(terms.l_uu[:, -1], np.broadcast_to(np.diag([0.5, 2.0]), (5, 2, 2)))
    np.testing.assert_allclose(terms.l, 0.25 * rollouts.U[..., 0] ** 2 + rollouts.U[..., 1] ** 2)


# --- measure -------------------------------------------------------------------------------------
def points_at_the_end(*ends):
    """Rollouts whose last end points are given, far away before."""
    X = np.full((len(ends), 3, LAYOUT.size), 9.0)
    X[:, -1, 6:] = ends
    return rollouts_at(X, np.zeros((len(ends), 3, NU)))


def test_measure_takes_the_farthest_point_and_the_success_point_at_the_last_step():
    data = points_at_the_end([1.03, 0.04, 0, 0], [1, 0, 3, 4], [1.06, 0, 0, 0], [1, 0.07, 0, 0])
    measure = EndpointMeasure(target=(1, 0, 0, 0), point_size=2)
    distance, success = measure.evaluate(data)
    np.testing.assert_allclose(distance, [0.05, 5.0, 0.06, 0.07])
    np.testing.assert_array_equal(success[[0, 1, 3]], [True, True, False])
    assert success.dtype == bool
    at_the_bound = points_at_the_end([0.5, 0, 0, 0], [0.501, 0, 0, 0])
    nearby = EndpointMeasure(target=(0,) * 4, point_size=2, threshold=0.5)
    np.testing.assert_array_equal(nearby.evaluate(at_the_bound)[1], [True, False])
    _, second = replace(measure, success_point=1, threshold=1.0).evaluate(data)
    np.testing.assert_array_equal(second, [True, False, True, True])
    one_point = EndpointMeasure(target=(0.0,) * 3, entry="joint_pos")
    np.testing.assert_allclose(one_point.evaluate(data)[0], 9 * np.sqrt(3))


def test_measure_counts_nan_as_failure():
    distance, success = EndpointMeasure(target=(0,) * 4, point_size=2).evaluate(
        points_at_the_end([np.nan, 0, 0, 0])
    )
    assert np.isnan(distance[0])
    assert not success[0]


# --- errors --------------------------------------------------------------------------------------
GOOD = {"entry": "joint_pos", "target": (0.0, 0.0, 0.0), "l2": 1.0}


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (ActionCost, {"weights": -1.0}, r"ActionCost\.weights must be a number of at least 0"),
        (ActionCost, {"weights": ()}, r"weights must be .* or a non-empty tuple"),
        (ActionCost, {"weights": (1.0, float("nan"))}, r"weights must be .*, got \(1\.0, nan\)"),
        (ActionCost, {"weights": "heavy"}, r"weights must be .*, got 'heavy'"),
        (ActionCost, {"weights": ((1.0,), (1.0, 2.0))}, r"ActionCost\.weights must be"),
        (StateCost, {**GOOD, "entry": 3}, r"StateCost\.entry must be text, got 3"),
        (StateCost, {**GOOD, "l2": 0.0}, r"StateCost: one of l1, l2 and log_weight"),
        (StateCost, {**GOOD, "l1": -0.1}, r"StateCost\.l1 must be .* at least 0, got -0\.1"),
        (StateCost, {**GOOD, "l1": (0.1, 0.2)}, r"StateCost\.l1 must be a number"),
        (StateCost, {**GOOD, "alpha": 0.0}, r"StateCost\.alpha must be a number above 0, got 0"),
        (StateCost, {**GOOD, "ramp": "lineal"}, r"ramp .* got 'lineal'; did you mean 'linear'"),
        (StateCost, {**GOOD, "exact": "no"}, r"StateCost\.exact must be True or False"),
        (EndpointCost, {**GOOD, "through": "fd"}, r"must be 'jacobian' or 'state', got 'fd'"),
        (SumCost, {"terms": ()}, r"SumCost\.terms must be a non-empty tuple, each a Weighted"),
        (SumCost, {"terms": 3}, r"SumCost\.terms must be a non-empty tuple"),
        (SumCost, {"terms": (ActionCost(weights=1.0),)}, r"terms must be .* each a WeightedCost"),
        (WeightedCost, {"cost": ActionCost}, r"WeightedCost\.cost must be a cost"),
        (WeightedCost, {"cost": ActionCost(weights=1.0), "weight": -2}, r"at least 0, got -2"),
        (EndpointMeasure, {"target": (0.0,) * 4}, r"point_size is 3, which does not divide the 4"),
        (EndpointMeasure, {"target": (0.0,) * 3, "point_size": 1.5}, r"must be a whole number"),
        (EndpointMeasure, {"target": 1.0}, r"target must be a non-empty tuple"),
        (EndpointMeasure, {"target": (0.0,) * 6, "success_point": 2}, r"must be in 0\.\.1, got 2"),
        (EndpointMeasure, {"target": (0.0,) * 3, "threshold": 0.0}, r"threshold must be"),
    ],
)  # fmt: skip
def test_impossible_configuration_is_refused(cls, fields, message):
    with pytest.raises(ConfigError, match=message):
        cls(**fields)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (ActionCost(weights=(1.0,) * 3), "ActionCost.weights has 3 values, the action has 2"),
        (
            StateCost(entry="joint_po", target=0.0, l2=1.0),
            "StateCost.entry: unknown state entry 'joint_po'; did you mean 'joint_pos'? "
            "known: end_points, joint_pos, joint_vel",
        ),
        (
            EndpointCost(target=(0.0,) * 6, l2=1.0),
            "EndpointCost.target has 6 values, state entry 'end_points' has 4",
        ),
        (
            EndpointCost(target=0.0, weights=(1.0,), l2=1.0),
            "EndpointCost.weights has 1 values, state entry 'end_points' has 4",
        ),
        (
            SumCost(
                terms=(
                    WeightedCost(cost=ActionCost(weights=1.0)),
                    WeightedCost(cost=ActionCost(weights=(1.0,) * 3)),
                )
            ),
            "SumCost.terms[1]: ActionCost.weights has 3 values, the action has 2",
        ),
    ],
    ids=["action", "entry", "target", "weights", "sum"],
)
def test_cost_that_does_not_fit_the_agent_is_refused(cost, message, rollouts):
    with pytest.raises(ConfigError) as by_check:
        cost.check(LAYOUT, NU, 4)
    with pytest.raises(ConfigError) as by_evaluate:
        cost.evaluate(rollouts)
    assert str(by_check.value) == str(by_evaluate.value) == message


def test_measure_that_does_not_fit_the_agent_is_refused():
    with pytest.raises(ConfigError, match="known: end_points, joint_pos, joint_vel"):
        EndpointMeasure(entry="position", target=(0.0, 0.0), point_size=2).check(LAYOUT)
    with pytest.raises(ConfigError, match="target has 6 values, state entry 'end_points' has 4"):
        EndpointMeasure(target=(0.0,) * 6).check(LAYOUT)


def test_missing_jacobian_is_named(rollouts):
    cost = EndpointCost(entry="joint_pos", target=0.0, l2=1.0)
    with pytest.raises(ConfigError, match=r"no Jacobian of 'joint_pos' \(it reports: end_points\)"):
        cost.evaluate(rollouts)


@dataclass(frozen=True, kw_only=True)
class Dearer(ActionCost):
    """A cost that changes what another one's evaluation gives."""

    def evaluate(self, rollouts: Rollouts) -> CostTerms:
        terms = super().evaluate(rollouts)
        return replace(terms, l=terms.l + 5.0)


def test_sum_uses_the_evaluation_of_a_derived_cost(rollouts):
    own = Dearer(weights=0.3)
    cost = SumCost(terms=(WeightedCost(cost=own, weight=2.0),))
    plain = SumCost(terms=(WeightedCost(cost=ActionCost(weights=0.3), weight=2.0),))
    np.testing.assert_allclose(cost.evaluate(rollouts).l, plain.evaluate(rollouts).l + 10.0)


# --- sums ----------------------------------------------------------------------------------------
NEAR = StateCost(entry="joint_pos", target=0.0, l2=1.0)
CALM = ActionCost(weights=0.3)
FAST = StateCost(entry="joint_vel", target=0.0, l1=1.0)


class Plain:
    """A cost with nothing but the protocol's methods."""

    def check(self, layout, nu, T):
        CALM.check(layout, nu, T)

    def evaluate(self, rollouts):
        return CALM.evaluate(rollouts)


class Own(Plain, BaseCost):
    """One of the user's that takes part in sums."""


def sum_of(*terms):
    return SumCost(terms=tuple(WeightedCost(weight=w, cost=c) for w, c in terms))


PLAIN, OWN = Plain(), Own()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (0.1 * NEAR + CALM, sum_of((0.1, NEAR), (1.0, CALM))),
        (NEAR + CALM, sum_of((1.0, NEAR), (1.0, CALM))),
        (CALM + 0.1 * NEAR, sum_of((1.0, CALM), (0.1, NEAR))),
        (NEAR * 2, sum_of((2, NEAR))),
        (sum([NEAR, 0.5 * CALM, FAST]), sum_of((1.0, NEAR), (0.5, CALM), (1.0, FAST))),
        (sum([CALM]), CALM),
        (3.0 * (0.1 * NEAR + CALM), sum_of((3.0 * 0.1, NEAR), (3.0, CALM))),
        ((NEAR + CALM) + (FAST + NEAR), sum_of((1, NEAR), (1, CALM), (1, FAST), (1, NEAR))),
        (2.0 * (3.0 * NEAR), sum_of((6.0, NEAR))),
        (0 * NEAR + CALM, sum_of((0, NEAR), (1, CALM))),
        (np.float64(0.1) * NEAR, sum_of((0.1, NEAR))),
        (np.int32(2) * NEAR + CALM, sum_of((2.0, NEAR), (1.0, CALM))),
        (OWN + 0.5 * OWN, sum_of((1.0, OWN), (0.5, OWN))),
        (PLAIN + NEAR, sum_of((1.0, PLAIN), (1.0, NEAR))),
        (NEAR + PLAIN, sum_of((1.0, NEAR), (1.0, PLAIN))),
        (WeightedCost(weight=0.2, cost=PLAIN) + NEAR, sum_of((0.2, PLAIN), (1.0, NEAR))),
        (2.0 * WeightedCost(weight=0.2, cost=NEAR), sum_of((0.4, NEAR))),
    ],
)  # fmt: skip
def test_sums_and_multiples_are_the_records_that_they_stand_for(written, meant):
    assert written == meant
    assert hash(written) == hash(meant)
    assert type(written) is type(meant)


def test_a_class_derived_from_a_sum_stays_one_term():
    @dataclass(frozen=True, kw_only=True)
    class Doubled(SumCost):
        def evaluate(self, rollouts):
            return super().evaluate(rollouts)

    own = Doubled(terms=(NEAR + CALM).terms)
    assert 0.5 * own + FAST == sum_of((0.5, own), (1.0, FAST))


def test_a_written_sum_has_the_numbers_of_its_terms(rollouts):
    found = (0.1 * NEAR + 3.0 * (OWN + FAST)).evaluate(rollouts)
    parts = [(0.1, NEAR), (3.0, CALM), (3.0, FAST)]
    for name in ("l", "l_x", "l_u", "l_xx", "l_ux", "l_uu"):
        want = sum(w * getattr(cost.evaluate(rollouts), name) for w, cost in parts)
        np.testing.assert_allclose(getattr(found, name), want, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "make",
    [lambda: NEAR - CALM, lambda: 1 - NEAR, lambda: -NEAR, lambda: (NEAR + CALM) - CALM],
)
def test_costs_are_not_subtracted(make):
    with pytest.raises(ConfigError, match="costs are minimised and cannot be subtracted"):
        make()


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, True, np.array([1.0, 2.0]), "2"])
def test_a_factor_is_a_weight(weight):
    with pytest.raises(ConfigError, match=r"WeightedCost\.weight must be a number of at least 0"):
        NEAR * weight
    with pytest.raises(ConfigError, match=r"WeightedCost\.weight must be a number of at least 0"):
        weight * NEAR


@pytest.mark.parametrize(
    "make",
    [lambda: NEAR * CALM, lambda: NEAR + 1, lambda: 2.0 + NEAR, lambda: False + NEAR],
)
def test_what_is_no_cost_is_no_summand(make):
    with pytest.raises(TypeError, match="unsupported operand"):
        make()
