"""What is no record of the right kind is named, with what to give instead."""

import dataclasses

import numpy as np
import pytest

from gps.control import dual, ilqr, kl, lqr, models, pi2, pilqr, tracking
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
    "minimise_per_step": (dual.minimise_per_step, [DYNAMICS, COST, START, CONTROLLER, 1.0]),
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
    for wrong in (None, COST) if kind == "Gaussian" else (np.ones(nx), None, START):
        given = [*args[:i], wrong, *args[i + 1 :]]
        with pytest.raises(ShapeError, match=rf"must be a {kind}\b.*got {type(wrong).__name__}"):
            function(*given)


def test_the_message_says_what_to_give():
    with pytest.raises(ShapeError, match=r"LinearDynamics\.from_matrices\(A, B, T=T\) makes one"):
        dual.minimise(np.eye(2), COST, START, CONTROLLER, 1.0)


@pytest.mark.parametrize(
    "name", [n for n, (_, args) in CALLS.items() if any(a is START for a in args)]
)
def test_a_known_state_is_a_gaussian_without_variance(name):
    function, args = CALLS[name]
    i, state = next(i for i, a in enumerate(args) if a is START), np.array([0.3, -1.2])
    a = function(*args[:i], state, *args[i + 1 :])
    b = function(*args[:i], Gaussian(state, np.zeros((nx, nx))), *args[i + 1 :])
    known = function(*args[:i], list(state), *args[i + 1 :])
    other = function(*args)
    for x in (b, known, other):
        same = all(p.tobytes() == q.tobytes() for p, q in zip(arrays(a), arrays(x), strict=True))
        assert same == (x is not other)
    with pytest.raises(ShapeError, match=r"x0 must be a Gaussian or a state of shape \(2,\)"):
        function(*args[:i], np.ones(3), *args[i + 1 :])


@pytest.mark.parametrize(
    "result",
    [
        dual.minimise(DYNAMICS, COST, START, CONTROLLER, 1.0),
        dual.minimise_per_step(DYNAMICS, COST, START, CONTROLLER, 1.0),
        pi2.update(CONTROLLER, X, U, L),
    ],
    ids=lambda result: type(result).__name__,
)
def test_a_result_has_the_steps_of_its_controller(result):
    shorter = LinearGaussianController(*(a[:-1] for a in arrays(result.controller)))
    with pytest.raises(ShapeError, match=r"\.kl has 6 steps, its controller has 5"):
        dataclasses.replace(result, controller=shorter)


def test_ilqr_plans_from_the_mean_of_a_gaussian():
    model = models.NumpyModel(lambda x, u, t: x + 0.1 * u, nx, nu)
    a = ilqr.minimise(model, COST, START, np.zeros((T, nu)))
    b = ilqr.minimise(model, COST, START.mean, np.zeros((T, nu)))
    assert a.X.tobytes() == b.X.tobytes()
    assert a.X[0].tobytes() == START.mean.tobytes()


def arrays(record):
    """All arrays of a record, and of those inside."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            yield value
        elif dataclasses.is_dataclass(value):
            yield from arrays(value)
