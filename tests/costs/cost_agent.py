"""A small smooth agent for the cost tests, and the list of all costs.

The state holds three joint angles, their velocities and two points in the plane; the points are a
nonlinear function of angles and, to keep the chain rule honest, of velocities.
"""

from dataclasses import dataclass

import numpy as np
import torch_functions as fn

from gps.costs import (
    ActionCost,
    BinaryRegionCost,
    Cost,
    EndpointCost,
    StateCost,
    SumCost,
    TorchCost,
    WaypointCost,
    WeightedCost,
)
from gps.types import Layout, Rollouts

LAYOUT = Layout((("joint_pos", 3), ("joint_vel", 3), ("end_points", 4)))
NU = 2
_rng = np.random.default_rng(7)
_MIX, _OFFSET = _rng.normal(size=(4, 6)), _rng.normal(size=4)
_MIX[:, 5] = 0.0  # a column of zeros between used ones and the points' own


def kinematics(joints):
    """Points (..., 4) of angles and velocities (..., 6)."""
    return np.sin(joints @ _MIX.T + _OFFSET) + 0.3 * joints[..., :1] ** 2


def kinematics_jacobian(joints):
    """d points / d x, (..., 4, 10); zero on the points' own columns."""
    J = np.zeros((*joints.shape[:-1], 4, 10))
    J[..., :6] = np.cos(joints @ _MIX.T + _OFFSET)[..., None] * _MIX
    J[..., 0] += 0.6 * joints[..., :1]
    return J


def rollouts_at(X, U, *, chain=False):
    """Rollouts through the given states; with `chain` the points follow from the joints."""
    X = np.array(X)
    if chain:
        X[..., 6:] = kinematics(X[..., :6])
    N, T, _ = X.shape
    jacobians = {"end_points": kinematics_jacobian(X[..., :6])}
    return Rollouts(
        X=X, U=U, obs=np.zeros((N, T, 1)), noise=np.zeros((N, T, NU)), layout=LAYOUT,
        jacobians=jacobians,
    )  # fmt: skip


def random_samples(seed, N=3, T=4, scale=0.8):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(N, T, LAYOUT.size)), scale * rng.normal(size=(N, T, NU))


@dataclass(frozen=True)
class Case:
    """A cost, and what its derivatives promise."""

    name: str
    cost: Cost
    chain: bool = False  # derivatives go through the kinematics
    exact: bool = False  # the Hessian is the second derivative
    psd: bool = True  # the Hessian has no negative eigenvalue
    quadratic: bool = False  # the cost is a quadratic function of x and u
    above: bool = True  # a Gauss-Newton model lies on or above the cost everywhere


POINTS = {"target": (0.3, -0.2, 0.1, 0.4), "weights": (2.0, 1.0, 0.5, 3.0), "alpha": 0.02}
ANGLES = {"entry": "joint_pos", "target": (0.5, -1.0, 0.2), "weights": (1.0, 0.0, 2.5)}
SPEED = StateCost(entry="joint_vel", target=0.0, l2=0.3)


PATH = {"steps": (0, 2, 3), "targets": ((0.5, -1.0), (1.0, 0.3), (-0.2, 0.0))}
_mixed = np.random.default_rng(11).normal(size=(3, 2, 12)).round(3)
WHOLE = {"entry": None, **PATH, "matrices": tuple(tuple(map(tuple, A)) for A in _mixed.tolist())}
ROWS = {
    "entry": "end_points",
    **PATH,
    "matrices": ((((1.0, 0.0, 0.5, 0.0), (0.0, -2.0, 0.0, 1.0))),) * 3,
    "weights": (2.0, 0.5),
}
REGION = {"entry": "joint_pos", "target": 0.2, "half_width": 0.9, "inside": -2.0}


def total(*costs):
    return SumCost(terms=tuple(WeightedCost(cost=c, weight=0.5 + j) for j, c in enumerate(costs)))


ALL_CASES = [
    Case("action", ActionCost(weights=(0.7, 0.2)), exact=True, quadratic=True),
    Case("action-one-weight", ActionCost(weights=0.3), exact=True, quadratic=True),
    Case("state-l2", StateCost(**ANGLES, l2=1.3), exact=True, quadratic=True),
    Case(
        "state-l2-exact-ramp",
        StateCost(**ANGLES, l2=1.3, exact=True, ramp="linear", final_multiplier=4.0),
        exact=True,
        quadratic=True,
    ),
    Case("state-l1", StateCost(**ANGLES, l1=0.9, alpha=0.1)),
    Case("state-l1-exact", StateCost(**ANGLES, l1=0.9, alpha=0.1, exact=True), exact=True),
    Case("state-log", StateCost(**ANGLES, log_weight=0.8, alpha=0.1, ramp="quadratic")),
    Case(
        "state-all-exact",
        StateCost(**ANGLES, l1=0.9, l2=0.4, log_weight=0.8, alpha=0.1, exact=True),
        exact=True,
        psd=False,
    ),
    Case("points-state-gn", EndpointCost(**POINTS, l2=0.5, log_weight=1.0, through="state")),
    Case(
        "points-state-exact",
        EndpointCost(**POINTS, l1=0.3, log_weight=1.0, through="state", exact=True),
        exact=True,
        psd=False,
    ),
    Case("points-l2", EndpointCost(**POINTS, l2=2.0), chain=True),
    Case("points-gn", EndpointCost(**POINTS, l2=2.0, l1=0.4, log_weight=0.7), chain=True),
    Case(
        "points-final",
        EndpointCost(**POINTS, log_weight=0.7, ramp="final", final_multiplier=10.0),
        chain=True,
    ),
    Case(
        "points-exact",
        EndpointCost(**POINTS, l2=0.1, log_weight=0.7, exact=True),
        chain=True,
        psd=False,
    ),
    Case(
        "sum",
        total(ActionCost(weights=0.3), EndpointCost(**POINTS, l2=2.0, l1=0.4), SPEED),
        chain=True,
    ),
    Case(
        "sum-of-sums",
        total(total(ActionCost(weights=0.3), SPEED), StateCost(**ANGLES, l2=0.2)),
        exact=True,
        quadratic=True,
    ),
    Case("waypoints-l2", WaypointCost(**WHOLE, l2=0.7), exact=True, quadratic=True),
    Case(
        "waypoints-next-gn",
        WaypointCost(**WHOLE, l1=0.3, log_weight=0.8, alpha=0.1, between="next", ramp="linear"),
    ),
    Case(
        "waypoints-exact",
        WaypointCost(**WHOLE, log_weight=0.8, alpha=0.1, exact=True, final_multiplier=3.0),
        exact=True,
        psd=False,
    ),
    Case(
        "waypoints-entry-exact",
        WaypointCost(
            entry="joint_vel",
            steps=(1, 3),
            targets=((0.1, 0.2, 0.3), (-1.0, 0.0, 1.0)),
            weights=(1.0, 0.0, 2.0),
            l1=0.4,
            log_weight=0.9,
            alpha=0.1,
            exact=True,
        ),
        exact=True,
        psd=False,
    ),
    Case("waypoints-points-state", WaypointCost(**ROWS, l2=0.4, log_weight=0.6)),
    Case("waypoints-points", WaypointCost(**ROWS, l2=0.4, l1=0.6, through="jacobian"), chain=True),
    Case(
        "region-in-a-sum",
        total(ActionCost(weights=0.3), BinaryRegionCost(**REGION), SPEED),
        exact=True,
    ),
    Case("torch-whole", TorchCost(function=fn.everything), exact=True, psd=False),
    Case("torch-positive", TorchCost(function=fn.everything, hessian="positive"), above=False),
    Case(
        "torch-dict",
        TorchCost(
            function=fn.of_dict,
            entries=("end_points", "joint_pos"),
            ramp="quadratic",
            final_multiplier=2.0,
        ),
        exact=True,
        psd=False,
    ),
    Case(
        "torch-entry",
        TorchCost(function=fn.smooth_norm, entries="joint_pos", action=False, ramp="final"),
        exact=True,
    ),
    Case(
        "torch-points",
        TorchCost(function=fn.distance, entries="end_points", action=False, through="jacobian"),
        chain=True,
        psd=False,
    ),
    Case(
        "torch-points-mixed",
        TorchCost(function=fn.of_dict, entries=("joint_pos", "end_points"), through="jacobian"),
        chain=True,
        psd=False,
    ),
    Case(
        "torch-whole-jacobian",
        TorchCost(function=fn.everything, through="jacobian", hessian="positive"),
        chain=True,
    ),
    Case(
        "torch-residual",
        TorchCost(function=fn.bent, returns="residual", l1=0.4, log_weight=0.6, alpha=0.1),
        above=False,
    ),
    Case(
        "torch-residual-linear",
        TorchCost(
            function=fn.linear,
            entries=("joint_vel", "joint_pos"),
            returns="residual",
            weights=(2.0, 0.5),
            l1=0.4,
            alpha=0.1,
        ),
    ),
    Case(
        "torch-residual-l2",
        TorchCost(function=fn.linear, entries=("joint_vel", "joint_pos"), returns="residual"),
        exact=True,
        quadratic=True,
    ),
    Case(
        "torch-residual-exact",
        TorchCost(
            function=fn.bent,
            returns="residual",
            hessian="exact",
            weights=(1.0, 2.0, 0.5),
            l1=0.4,
            log_weight=0.6,
            alpha=0.1,
        ),
        exact=True,
        psd=False,
    ),
    Case(
        "torch-residual-points",
        TorchCost(
            function=fn.offset,
            entries="end_points",
            action=False,
            returns="residual",
            log_weight=0.7,
            alpha=0.02,
            weights=(2.0, 1.0, 0.5, 3.0),
            through="jacobian",
        ),
        chain=True,
    ),
]
