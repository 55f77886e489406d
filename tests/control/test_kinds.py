"""What is no record of the right kind is named, with what to give instead."""

import numpy as np
import pytest

from gps.control import dual, kl, lqr, minimise_per_step, pi2, pilqr, tracking
from gps.errors import ShapeError
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

T, nx, nu = 6, 2, 1
DYNAMICS = LinearDynamics.from_matrices(np.eye(2), np.ones((2, 1)), T=T)
COST = QuadraticCost.from_matrices(np.eye(2), np.eye(1), T=T)
START = Gaussian(np.ones(nx), np.eye(nx))
CONTROLLER = LinearGaussianController(
    np.zeros((T, nu, nx)), np.zeros((T, nu)), np.ones((T, nu, nu))
)
MARGINALS = lqr.forward(DYNAMICS, CONTROLLER, START)
X, U, L = np.ones((3, T, nx)), np.ones((3, T, nu)), np.ones((3, T))
SENSOR = tracking.LinearSensor.constant(T, np.eye(nx), np.eye(nx))
CALLS = {
    "backward": (lqr.backward, [DYNAMICS, COST]),
    "forward": (lqr.forward, [DYNAMICS, CONTROLLER, START]),
    "expected_cost": (lqr.expected_cost, [COST, MARGINALS]),
    "minimise": (dual.minimise, [DYNAMICS, COST, START, CONTROLLER, 1.0]),
    "minimise_per_step": (minimise_per_step, [DYNAMICS, COST, START, CONTROLLER, 1.0]),
    "kl_per_step": (kl.kl_per_step, [CONTROLLER, CONTROLLER, MARGINALS.mean, MARGINALS.cov]),
    "pi2": (pi2.update, [CONTROLLER, X, U, L]),
    "pilqr": (pilqr.update, [DYNAMICS, COST, START, CONTROLLER, X, U, L, 1.0]),
    "explain": (pilqr.explain, [DYNAMICS, COST, CONTROLLER, X, U, L]),
    "replay": (pilqr.replay, [DYNAMICS, COST, CONTROLLER, np.ones((3, nx)), U]),
    "kalman_filter": (tracking.kalman_filter, [DYNAMICS, SENSOR, np.ones((T, nx)), U[0], START]),
}
RECORDS = {
    "LinearDynamics": DYNAMICS,
    "QuadraticCost": COST,
    "Gaussian": START,
    "LinearGaussianController": CONTROLLER,
    "Marginals": MARGINALS,
}


def cases():
    for name, (_, args) in CALLS.items():
        for i, arg in enumerate(args):
            if type(arg).__name__ in RECORDS:
                yield pytest.param(name, i, id=f"{name}-{i}")


@pytest.mark.parametrize(("name", "i"), list(cases()))
def test_a_wrong_argument_is_named(name, i):
    function, args = CALLS[name]
    function(*args)  # all is well
    kind = type(args[i]).__name__
    for wrong in (np.ones(nx), None, COST if kind == "Gaussian" else START):
        given = [*args[:i], wrong, *args[i + 1 :]]
        with pytest.raises(ShapeError, match=f"must be a {kind}, got {type(wrong).__name__}: "):
            function(*given)


def test_the_message_says_what_to_give():
    with pytest.raises(ShapeError, match=r"a known state x0 is Gaussian\(x0, np\.zeros"):
        dual.minimise(DYNAMICS, COST, np.ones(nx), CONTROLLER, 1.0)
