"""Values and derivatives against the public reference; tests/fixtures/README_costs.md says how."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gps.costs import (
    ActionCost,
    EndpointCost,
    StateCost,
    SumCost,
    WeightedCost,
    expand,
    ramp,
    smooth_distance,
)
from gps.types import Layout, Rollouts

FIXTURES = Path(__file__).parents[1] / "fixtures"
LAYOUT = Layout((("joint_pos", 7), ("joint_vel", 7), ("end_points", 6), ("end_point_vel", 6)))
PARTS = ("l", "l_x", "l_u", "l_xx", "l_ux", "l_uu")


@pytest.fixture(scope="module")
def terms():
    return dict(np.load(FIXTURES / "cost_terms.npz"))


@pytest.fixture(scope="module")
def peg():
    return dict(np.load(FIXTURES / "cost_endpoint_action_state_sum.npz"))


def as_rollouts(X, U, joint_jacobian):
    N, T, _ = X.shape
    J = np.zeros((N, T, 6, 26))
    J[..., :7] = joint_jacobian
    none = np.zeros((N, T, 1))
    return Rollouts(
        X=X, U=U, obs=none, noise=np.zeros_like(U), layout=LAYOUT, jacobians={"end_points": J}
    )


@pytest.fixture(scope="module")
def sample(peg):
    return as_rollouts(peg["X"][None], peg["U"][None], peg["ee_jac"][None])


def total(*costs):
    return SumCost(terms=tuple(WeightedCost(cost=c) for c in costs))


def with_exact(cost, exact):
    """The same cost with the switch set in all its terms."""
    if isinstance(cost, SumCost):
        parts = [replace(t, cost=with_exact(t.cost, exact)) for t in cost.terms]
        return replace(cost, terms=parts)
    return cost if isinstance(cost, ActionCost) else replace(cost, exact=exact)


def numbers(*values):
    return tuple(float(v) for v in np.ravel(values))


def half_way(cost, rollouts):
    """Terms of sample 0, with the mean of Gauss-Newton and exact Hessian."""
    a, b = (with_exact(cost, exact).evaluate(rollouts) for exact in (False, True))
    return {name: (getattr(a, name)[0] + getattr(b, name)[0]) / 2 for name in PARTS}


def compare(got, peg, prefix, offset=0.0):
    for name in PARTS:
        want = peg[f"{prefix}_{name.replace('_', '')}"]
        mine = got[name] + offset if name == "l" else got[name]
        np.testing.assert_allclose(mine, want, rtol=1e-8, atol=1e-8 * np.abs(want).max())


# --- the two distances, term by term ----------------------------------------------------------
@pytest.mark.parametrize("kind", ["l1l2", "logl2"])
def test_distance_terms(terms, kind):
    d, wp, Jd, Jdd = (terms[name] for name in ("d", "wp", "Jd", "Jdd"))
    alpha, second = float(terms["alpha"]), "l1" if kind == "l1l2" else "log_weight"

    def ours(exact):
        a = smooth_distance(d, wp, l2=float(terms["l2"]), exact=exact)
        rest = {second: float(terms["l1"]), "alpha": alpha}
        b = smooth_distance(d, wp**2, **rest, exact=exact)
        return [x + y for x, y in zip(a, b, strict=True)]

    value, gradient, gauss_newton = ours(False)
    exact = ours(True)[2]
    H = exact if kind == "l1l2" else (exact + gauss_newton) / 2
    kinematic = np.einsum("nk,nkij->nij", gradient, Jdd)
    l_xx = np.einsum("nai,nab,nbj->nij", Jd, H, Jd) + (kinematic + kinematic.swapaxes(1, 2)) / 2
    np.testing.assert_allclose(value, terms[f"{kind}_l"], rtol=1e-10)
    np.testing.assert_allclose(
        np.einsum("nki,nk->ni", Jd, gradient), terms[f"{kind}_lx"], rtol=1e-8, atol=1e-10
    )
    np.testing.assert_allclose(l_xx, terms[f"{kind}_lxx"], rtol=1e-8, atol=1e-9)


def test_ramps(terms):
    for mine, name, rtol in [
        ("constant", "const", 1e-14),
        ("final", "final", 1e-14),
        ("linear", "linear", 1e-6),  # float32 in the reference
        ("quadratic", "quad", 1e-6),
    ]:
        np.testing.assert_allclose(ramp(mine, 40, 2.5), terms[f"ramp_{name}"], rtol=rtol)


# --- the peg task's costs ---------------------------------------------------------------------
def peg_costs(peg):
    """The task's three costs: action, end points at all steps, end points at the last step."""
    wp = peg["c1_wp"].astype(float)
    c0 = ActionCost(weights=numbers(peg["c0_wu"]))
    points = EndpointCost(target=numbers(peg["c1_target_end_effector"]), weights=numbers(wp), l2=1)
    c1 = total(
        replace(points, l2=peg["c1_l2"]),
        replace(
            points, l2=0, log_weight=peg["c1_l1"], alpha=peg["c1_alpha"], weights=numbers(wp**2)
        ),
    )
    strong = (float(peg["c2_wp_final_multiplier"]) * peg["c2_wp"]) ** 2
    c2 = EndpointCost(
        target=numbers(peg["c2_target_end_effector"]),
        weights=numbers(strong),
        log_weight=peg["c2_l1"],
        alpha=peg["c2_alpha"],
        ramp="final",
    )
    # log(alpha)/2 before the last step, where the reference's weights are zero
    offset = np.full(100, 0.5 * peg["c2_l1"] * np.log(peg["c2_alpha"]))
    offset[-1] = 0.0
    return c0, c1, c2, offset


def test_peg_costs(peg, sample):
    c0, c1, c2, offset = peg_costs(peg)
    np.testing.assert_array_equal(sample.entry("end_points")[0], peg["ee_points"])
    np.testing.assert_array_equal(peg["sum_weights"], 1.0)
    compare(half_way(c0, sample), peg, "c0")
    compare(half_way(c1, sample), peg, "c1")
    compare(half_way(c2, sample), peg, "c2", offset)
    compare(half_way(total(c0, c1, c2), sample), peg, "sum", offset)


def test_mean_expansion_of_the_peg_cost(peg):
    c0, c1, c2, offset = peg_costs(peg)
    data = as_rollouts(peg["all_X"], peg["all_U"], peg["all_jac"])
    a, b = (with_exact(total(c0, c1, c2), exact).evaluate(data) for exact in (False, True))
    np.testing.assert_allclose(a.l + offset, peg["all_cs"], rtol=1e-8)
    a, b = expand(a, data), expand(b, data)
    for mine, want in [
        ((a.C + b.C) / 2, peg["eval_Cm"]),
        ((a.c + b.c) / 2, peg["eval_cv"]),
        ((a.c0 + b.c0) / 2 + offset, peg["eval_cc"]),
    ]:
        np.testing.assert_allclose(mine, want, rtol=1e-8, atol=1e-8 * np.abs(want).max())


def step_by_step(cost_of_step, rollouts):
    """Terms of sample 0 where every step has a cost of its own (exact Hessians)."""
    steps = []
    for t in range(rollouts.T):
        one = as_rollouts(
            rollouts.X[:, t : t + 1],
            rollouts.U[:, t : t + 1],
            rollouts.jacobians["end_points"][:, t : t + 1, :, :7],
        )
        steps.append(with_exact(cost_of_step(t), True).evaluate(one))
    return {name: np.stack([getattr(s, name)[0, 0] for s in steps]) for name in PARTS}


def test_end_points_with_l1_and_quadratic_ramp(peg, sample):
    factor = ((np.arange(100, dtype=np.float32) + 1) / 100) ** 2  # rounded as in the reference
    factor[-1] *= 4.0
    wp = np.array([2, 2, 1, 2, 2, 1.0])
    target = numbers(peg["c1_target_end_effector"])

    def cost(t):
        w = wp * factor[t]
        return total(
            EndpointCost(target=target, weights=numbers(w), l2=3.0),
            EndpointCost(target=target, weights=numbers(w**2), l1=0.7, alpha=1e-3),
        )

    compare(step_by_step(cost, sample), peg, "fkl1")


def test_state_cost_with_linear_ramp(peg, sample):
    factor = (np.arange(100, dtype=np.float32) + 1) / 100
    factor[-1] *= 3.0

    def cost(t):
        parts = []
        for entry, wp, target in [
            ("joint_pos", peg["state_wp_q"], numbers(peg["state_tgt_q"])),
            ("joint_vel", np.ones(7), 0.0),
        ]:
            w = wp * factor[t]
            parts += [
                StateCost(entry=entry, target=target, weights=numbers(w), l2=2.0),
                StateCost(entry=entry, target=target, weights=numbers(w**2), l1=0.5, alpha=1e-2),
            ]
        return total(*parts)

    compare(step_by_step(cost, sample), peg, "state")


def test_l2_with_our_own_ramp_differs_by_rounding_only(peg, sample):
    """The l2 part of the state cost, where the ramp on weights is the ramp on the cost."""
    cost = StateCost(
        entry="joint_pos", target=numbers(peg["state_tgt_q"]), weights=numbers(peg["state_wp_q"]),
        l2=2.0, ramp="linear", final_multiplier=3.0,
    )  # fmt: skip
    got = cost.evaluate(sample).l_xx[0, :, :7, :7]
    # the reference's l1 part adds its own curvature: subtract it
    factor = (np.arange(100) + 1) / 100
    factor[-1] *= 3.0
    w = (peg["state_wp_q"] * factor[:, None]) ** 2
    d = peg["X"][:, :7] - peg["state_tgt_q"]
    l1 = smooth_distance(d, w, l1=0.5, alpha=1e-2, exact=True)[2]
    np.testing.assert_allclose(got + l1, peg["state_lxx"][:, :7, :7], rtol=1e-6, atol=1e-6)
