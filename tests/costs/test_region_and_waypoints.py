"""BinaryRegionCost and WaypointCost: by hand, against the public reference, and error texts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cost_agent import LAYOUT, NU, kinematics_jacobian, random_samples, rollouts_at

from gps.costs import BinaryRegionCost, StateCost, SumCost, WaypointCost, WeightedCost
from gps.errors import ConfigError
from gps.types import Layout, Rollouts

FIXTURES = Path(__file__).parents[1] / "fixtures"
PARTS = ("l", "l_x", "l_u", "l_xx", "l_ux", "l_uu")


@pytest.fixture(scope="module")
def rollouts():
    return rollouts_at(*random_samples(3, N=5, T=6), chain=True)


def one_sample(X, U, layout):
    none = np.zeros((1, len(X), 0))
    return Rollouts(X=X[None], U=U[None], obs=none, noise=np.zeros_like(U)[None], layout=layout)


# --- region --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def region():
    """The point mass that passes a region, with the reference's costs of it."""
    data = dict(np.load(FIXTURES / "cost_binary_region.npz"))
    layout = Layout((("before", 4), ("end_points", 3), ("after", 3)))
    return data, one_sample(data["X"], data["U"], layout)


def test_region_of_the_reference(region):
    data, sample = region
    cost = BinaryRegionCost(
        entry="end_points", target=(2.5, 0.5, 0.0), radius=0.3, norm="l1", inside=-3.0, outside=0.0
    )
    way = StateCost(entry="end_points", target=(3.0, 0.0, 0.0), l2=1.0)
    for ours, theirs in [(cost, "c1"), (way, "c0")]:
        terms = ours.evaluate(sample)
        for name in PARTS:
            want = data[f"{theirs}_{name.replace('_', '')}"]
            np.testing.assert_allclose(getattr(terms, name)[0], want, rtol=1e-12, atol=1e-13)
    # the recorded sample stays 0.63 away; a larger region takes in as many steps as are nearer
    distance = np.abs(data["X"][:, 4:7] - (2.5, 0.5, 0.0)).sum(axis=1)
    assert distance.min() > 0.6
    for radius in (0.7, 1.0, 1.4):
        inside = replace(cost, radius=radius).evaluate(sample).l[0] == -3.0
        np.testing.assert_array_equal(inside, distance <= radius)
        assert 0 < inside.sum() < 100


def corners(*points):
    X = np.zeros((len(points), 1, 10))
    X[:, 0, :3] = points
    return rollouts_at(X, np.zeros((len(points), 1, NU)))


POINTS = [
    (1, 2, 3),
    (1.5, 2, 3),
    (1.5, 2.25, 4),
    (1.51, 2, 3),
    (1, 2.26, 3),
    (1, 2, 1.9),
    (0.75, 1.75, 3),
]


@pytest.mark.parametrize(
    ("fields", "inside"),
    [
        ({"half_width": (0.5, 0.25, 1.0)}, [1, 1, 1, 0, 0, 0, 1]),
        ({"half_width": 0.5}, [1, 1, 0, 0, 1, 0, 1]),
        ({"radius": 0.5}, [1, 1, 0, 0, 1, 0, 1]),
        ({"radius": 0.5, "norm": "l1"}, [1, 1, 0, 0, 1, 0, 1]),
        ({"radius": 0.375}, [1, 0, 0, 0, 1, 0, 1]),
        ({"radius": 0.375, "norm": "l1"}, [1, 0, 0, 0, 1, 0, 0]),
    ],
)
def test_boxes_and_balls_with_their_borders(fields, inside):
    cost = BinaryRegionCost(entry="joint_pos", target=(1, 2, 3), inside=-1.5, outside=4, **fields)
    terms = cost.evaluate(corners(*POINTS))
    np.testing.assert_array_equal(terms.l[:, 0], np.where(inside, -1.5, 4.0))
    assert not any(getattr(terms, name).any() for name in PARTS[1:])


def test_region_ramp_weight_and_nan(rollouts):
    cost = BinaryRegionCost(entry="joint_vel", target=0.0, radius=1.0, inside=2.0, outside=5.0)
    plain = cost.evaluate(rollouts).l
    assert set(np.unique(plain)) == {2.0, 5.0}
    ramped = replace(cost, ramp="linear", final_multiplier=3.0)
    total = SumCost(terms=(WeightedCost(cost=ramped, weight=2.0),)).evaluate(rollouts).l
    factor = np.arange(1, 7) / 6 * (1, 1, 1, 1, 1, 3)
    np.testing.assert_allclose(total, 2.0 * factor * plain)
    X = np.array(rollouts.X)
    X[1, 2, 4] = np.nan
    broken = cost.evaluate(replace(rollouts, X=X)).l
    assert np.isnan(broken[1, 2])
    assert np.isnan(broken).sum() == 1


# --- way-points ----------------------------------------------------------------------------------
def test_path_goes_straight_from_point_to_point():
    cost = WaypointCost(
        entry="joint_vel", steps=(1, 3, 7), targets=((0, 8, 0), (2, 4, 0), (4, -4, 8)), l2=1.0
    )
    want = [0, 0, 1, 2, 2.5, 3, 3.5, 4, 4, 4]
    np.testing.assert_allclose(cost.path(10)[:, 0], want)
    np.testing.assert_allclose(cost.path(10)[:, 1], [8, 8, 6, 4, 2, 0, -2, -4, -4, -4])
    jumps = replace(cost, between="next").path(10)
    np.testing.assert_array_equal(jumps[:, 0], [0, 0, 2, 2, 4, 4, 4, 4, 4, 4])
    one = WaypointCost(entry="joint_vel", steps=(2,), targets=((1, 2, 3),), l2=1.0)
    for between in ("linear", "next"):
        path = replace(one, between=between).path(4)
        np.testing.assert_array_equal(path, np.tile([1.0, 2.0, 3.0], (4, 1)))


@pytest.mark.parametrize("exact", [False, True])
def test_one_waypoint_is_a_state_cost(exact, rollouts):
    distance = {
        "l1": 0.3, "l2": 0.4, "log_weight": 0.9, "alpha": 0.1, "weights": (1.0, 0.5, 0.0),
        "ramp": "quadratic", "final_multiplier": 4.0, "exact": exact,
    }  # fmt: skip
    state = StateCost(entry="joint_pos", target=(0.1, 0.2, 0.3), **distance)
    path = WaypointCost(entry="joint_pos", steps=(3,), targets=((0.1, 0.2, 0.3),), **distance)
    identity = replace(path, matrices=(np.eye(3).tolist(),))
    for cost in (path, identity):
        a, b = state.evaluate(rollouts), cost.evaluate(rollouts)
        for name in PARTS:
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-14)


def test_every_step_is_the_smooth_distance_of_its_own_matrix_and_target(rollouts):
    rng = np.random.default_rng(2)
    A, y = rng.normal(size=(2, 4, 12)), rng.normal(size=(2, 4))
    cost = WaypointCost(
        entry=None, steps=(1, 4), targets=y.tolist(), matrices=A.tolist(), l2=0.5,
        log_weight=1.0, alpha=0.2, weights=(1.0, 2.0, 0.0, 0.3),
    )  # fmt: skip
    terms = cost.evaluate(rollouts)
    w = np.array([1.0, 2.0, 0.0, 0.3])
    for t, share in enumerate([0, 0, 1 / 3, 2 / 3, 1, 1]):
        At, yt = (1 - share) * A[0] + share * A[1], (1 - share) * y[0] + share * y[1]
        for n in range(rollouts.N):
            z = np.concatenate([rollouts.X[n, t], rollouts.U[n, t]])
            d = At @ z - yt
            s = w @ d**2
            slope = 0.5 + 1.0 / (0.2 + s)
            g, H = slope * At.T @ (w * d), slope * (At.T * w) @ At
            np.testing.assert_allclose(terms.l[n, t], 0.25 * s + 0.5 * np.log(0.2 + s))
            np.testing.assert_allclose(terms.l_x[n, t], g[:10], atol=1e-12)
            np.testing.assert_allclose(terms.l_u[n, t], g[10:], atol=1e-12)
            np.testing.assert_allclose(terms.l_xx[n, t], H[:10, :10], atol=1e-12)
            np.testing.assert_allclose(terms.l_ux[n, t], H[10:, :10], atol=1e-12)
            np.testing.assert_allclose(terms.l_uu[n, t], H[10:, 10:], atol=1e-12)


@pytest.mark.parametrize("exact", [False, True])
def test_waypoints_of_points_through_the_jacobian(exact, rollouts):
    E = kinematics_jacobian(rollouts.X[..., :6])
    cost = WaypointCost(
        entry="end_points", steps=(0, 5), targets=((0.0, 1.0), (1.0, -1.0)), l2=0.5,
        log_weight=1.0, alpha=0.2, exact=exact,
        matrices=(((1, 0, 1, 0), (0, 1, 0, 0)), ((2, 0, 0, 0), (0, 0, 0, 1))),
    )  # fmt: skip
    own, got = cost.evaluate(rollouts), replace(cost, through="jacobian").evaluate(rollouts)
    g, H = own.l_x[..., 6:], own.l_xx[..., 6:, 6:]
    assert not own.l_x[..., :6].any()
    np.testing.assert_allclose(got.l, own.l)
    np.testing.assert_allclose(got.l_x, np.einsum("ntai,nta->nti", E, g), atol=1e-12)
    np.testing.assert_allclose(got.l_xx, E.swapaxes(2, 3) @ H @ E, atol=1e-11)
    with pytest.raises(
        ConfigError, match=r"no Jacobian of 'end_points' \(it reports: none\); through='s"
    ):
        replace(cost, through="jacobian").evaluate(replace(rollouts, jacobians={}))


def test_waypoints_of_the_reference():
    """Value and gradient; see README_costs.md for its Hessian."""
    data = {k[6:]: v for k, v in np.load(FIXTURES / "cost_terms.npz").items() if k[:5] == "linwp"}
    T = len(data["X"])
    path = WaypointCost(
        entry=None,
        steps=np.ceil(T * data["waypoint_time"]).astype(int) - 1,
        targets=-data["b"],
        matrices=data["A"],
        between="next",
        l1=0.1,
        l2=1.0,
        alpha=1e-5,
    )
    assert path.steps == (4, 19)
    log = replace(path, l1=0.0, l2=0.0, log_weight=0.2, alpha=1e-3)
    cost = SumCost(terms=(WeightedCost(cost=path), WeightedCost(cost=log)))
    terms = cost.evaluate(one_sample(data["X"], data["U"], Layout((("x", 5),))))
    for name in ("l", "l_x", "l_u"):
        want = data[name.replace("_", "")]
        np.testing.assert_allclose(getattr(terms, name)[0], want, rtol=1e-9, atol=1e-9)
    # one distance of states and actions together mixes them, which the reference leaves out
    assert np.abs(terms.l_ux).max() == 0.0  # Gauss-Newton with a block-diagonal A
    exact = [replace(term, cost=replace(term.cost, exact=True)) for term in cost.terms]
    terms = replace(cost, terms=exact).evaluate(
        one_sample(data["X"], data["U"], Layout((("x", 5),)))
    )
    assert np.abs(terms.l_ux).max() > 0.05
    assert not data["lux"].any()


# --- errors --------------------------------------------------------------------------------------
BOX = {"entry": "joint_pos", "target": 0.0, "half_width": 1.0}
WAY = {"entry": "joint_pos", "steps": (0, 2), "targets": ((0, 0, 0), (1, 1, 1)), "l2": 1.0}
THREE = (((1, 0, 0),) * 3,) * 2


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (BinaryRegionCost, {"entry": 3}, r"BinaryRegionCost\.entry must be text, got 3"),
        (BinaryRegionCost, {"half_width": None}, r"give half_width for a box or radius for a ball"),
        (BinaryRegionCost, {"radius": 1.0}, r"one of the two; got half_width=1\.0 and radius=1\.0"),
        (BinaryRegionCost, {"half_width": (1.0, 0.0, 1.0)}, r"half_width must be a number above 0"),
        (BinaryRegionCost, {"half_width": None, "radius": -1}, r"radius must be .*, got -1"),
        (BinaryRegionCost, {"half_width": None, "radius": (1, 2)}, r"radius must be a number"),
        (BinaryRegionCost, {"norm": "max"}, r"norm must be 'l1' or 'l2', got 'max'"),
        (BinaryRegionCost, {"inside": 1.0}, r"inside and \.outside are both 1"),
        (BinaryRegionCost, {"outside": float("inf")}, r"outside must be a finite number, got inf"),
        (BinaryRegionCost, {"ramp": "finally"}, r"ramp .* got 'finally'; did you mean 'final'"),
        (BinaryRegionCost, {"final_multiplier": -1.0}, r"final_multiplier must be .* 0, got -1"),
        (WaypointCost, {"entry": 3}, r"WaypointCost\.entry must be text or None, got 3"),
        (WaypointCost, {"steps": ()}, r"steps must be a non-empty tuple, each a whole number"),
        (WaypointCost, {"steps": (0.0, 2.5)}, r"steps must be .*, each a whole number"),
        (WaypointCost, {"steps": 3}, r"steps must be .*, each a whole number .*, got 3"),
        (WaypointCost, {"steps": (2, 2)}, r"steps must rise from 0 or later, got \(2, 2\)"),
        (WaypointCost, {"steps": (-1, 2)}, r"steps must be .* whole number of at least 0"),
        (WaypointCost, {"steps": (0, 1, 2)}, r"targets has 2 way-points, steps has 3"),
        (WaypointCost, {"targets": (0, 1)}, r"targets must be a non-empty tuple, each a non-empty"),
        (WaypointCost, {"targets": ((0, 1), (1,))}, r"all of one size"),
        (WaypointCost, {"targets": (("a",), ("b",))}, r"targets must be a non-empty tuple"),
        (WaypointCost, {"targets": ((0,), (float("nan"),))}, r"targets .* a finite number, got"),
        (WaypointCost, {"matrices": THREE[0]}, r"matrices must be a tuple, each a non-empty"),
        (WaypointCost, {"matrices": THREE[:1]}, r"has 1 matrices of 3 rows; targets asks for 2 of"),
        (WaypointCost, {"between": "jump"}, r"between must be 'linear' or 'next', got 'jump'"),
        (WaypointCost, {"weights": (1.0, 2.0)}, r"weights has 2 values, a way-point has 3"),
        (WaypointCost, {"l2": 0.0}, r"WaypointCost: one of l1, l2 and log_weight"),
        (WaypointCost, {"l1": -1.0}, r"WaypointCost\.l1 must be a number of at least 0"),
        (WaypointCost, {"exact": 1}, r"WaypointCost\.exact must be True or False"),
        (WaypointCost, {"through": "fd"}, r"through must be 'jacobian' or 'state', got 'fd'"),
        (WaypointCost, {"entry": None, "through": "jacobian"}, r"needs an entry"),
    ],
)  # fmt: skip
def test_impossible_configuration_is_refused(cls, fields, message):
    with pytest.raises(ConfigError, match=message):
        cls(**{**(BOX if cls is BinaryRegionCost else WAY), **fields})


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (
            BinaryRegionCost(**{**BOX, "half_width": (1.0, 2.0)}),
            "BinaryRegionCost.half_width has 2 values, state entry 'joint_pos' has 3",
        ),
        (
            BinaryRegionCost(**{**BOX, "target": (1.0, 2.0)}),
            "BinaryRegionCost.target has 2 values, state entry 'joint_pos' has 3",
        ),
        (
            WaypointCost(**{**WAY, "entry": "joint_velo"}),
            "WaypointCost.entry: unknown state entry 'joint_velo'; did you mean 'joint_vel'? "
            "known: end_points, joint_pos, joint_vel",
        ),
        (
            WaypointCost(**{**WAY, "entry": "end_points"}),
            "WaypointCost.targets has 3 values a row, state entry 'end_points' has 4",
        ),
        (
            WaypointCost(**{**WAY, "entry": None, "matrices": THREE}),
            "WaypointCost.matrices has 3 values a row, [x; u] has 12",
        ),
        (
            WaypointCost(**{**WAY, "steps": (0, 9)}),
            "WaypointCost.steps ends at step 9, the last of this agent is 5",
        ),
    ],
)
def test_cost_that_does_not_fit_the_agent_is_refused(cost, message, rollouts):
    with pytest.raises(ConfigError) as by_check:
        cost.check(LAYOUT, NU, 6)
    with pytest.raises(ConfigError) as by_evaluate:
        cost.evaluate(rollouts)
    assert str(by_check.value) == str(by_evaluate.value) == message


def test_lists_and_arrays_become_tuples_that_hash():
    a = WaypointCost(**WAY, matrices=THREE)
    b = WaypointCost(
        **{**WAY, "steps": [0, 2], "targets": np.array(WAY["targets"])}, matrices=np.array(THREE)
    )
    assert a == b
    assert hash(a) == hash(b)
    assert isinstance(b.steps[0], int)
    assert isinstance(b.matrices[1][2][0], float)
