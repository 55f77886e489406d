"""Batches against the single functions, with one problem that fails among them, and in threads."""

import dataclasses
import logging
import os
import pickle

import numpy as np
import pytest
from control_problems import make_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from gps.control import DualConfig, PI2Config, batch, dual, kl, lqr, pi2, tracking
from gps.control.tracking import LinearSensor
from gps.errors import (
    ConfigError,
    GPSError,
    NonFiniteError,
    NotPositiveDefiniteError,
    ShapeError,
)
from gps.types import Gaussian, LinearDynamics, QuadraticCost

B, T, NX, NU, N = 5, 12, 4, 2, 9
STEPS = np.arange(T) / T
CORES = len(os.sched_getaffinity(0))
THREADS = [1, pytest.param(2, marks=pytest.mark.skipif(CORES < 2, reason="one core"))]
STACKS = (batch.DynamicsBatch, batch.CostBatch, batch.GaussianBatch, batch.ControllerBatch)


def problems(seed=3, count=B):
    rng = np.random.default_rng(seed)
    return [make_problem(rng) for _ in range(count)]


def stacked(singles):
    return tuple(kind.stack(p[i] for p in singles) for i, kind in enumerate(STACKS))


def samples(seed=4, count=B):
    rng = np.random.default_rng(seed)
    X, U = rng.normal(size=(count, N, T, NX)), rng.normal(size=(count, N, T, NU))
    return X, U, rng.gamma(1.0, size=(count, N, T))


def sensors(singles, seed=5):
    """Two measurements, with the deviations of the controllers' actions for variances."""
    H = np.random.default_rng(seed).normal(size=(len(singles), T, NU, NX))
    diagonals = [np.where(np.eye(NU), p[3].chol, 0.0) for p in singles]
    return [LinearSensor(H[b], 0.1 * H[b, :, :, 0], V) for b, V in enumerate(diagonals)]


def measured(count=B):
    """Y (count, N, T, no) and U (count, N, T, nu)."""
    _, U, _ = samples(count=count)
    return np.random.default_rng(6).normal(size=U.shape), U


def filtered():
    """Estimates of the problems that are not broken."""
    Y, U = measured()
    return [
        tracking.kalman_filter(q[0], o, Y[b], U[b], q[2])
        for b, (q, o) in enumerate(zip(problems(), sensors(problems()), strict=True))
    ]


SEARCHES = {  # the function, its config, its weight of entropy
    "minimise": ("minimise", {}, None),
    "minimise, previous": ("minimise", {"kl_under": "previous"}, 0.4 * STEPS),
    "per step": ("minimise_per_step", {}, None),
    "per step, previous": ("minimise_per_step", {"kl_under": "previous"}, None),
    "per step, weights": ("minimise_per_step", {"entropy_weight": 9.0}, 0.4 * STEPS),
    "per step, both": ("minimise_per_step", {"kl_under": "previous", "entropy_weight": 0.3}, None),
}


def run(name, singles, *, shared=(), **options):
    """One of the functions on a list of (dynamics, cost, start, previous)."""
    d, c, s, p = (singles[0][i] if i in shared else part for i, part in enumerate(stacked(singles)))
    if name == "backward":
        return batch.backward(d, c, **options)
    if name == "forward":
        return batch.forward(d, p, s, **options)
    if name in SEARCHES:
        search, config, weight = SEARCHES[name]
        config = DualConfig(**config)
        return getattr(batch, search)(d, c, s, p, 0.3, config, 1.0, weight, **options)
    if name == "backward_per_step":
        return batch.backward_per_step(d, c, p, 1.0 + STEPS, STEPS, **options)
    if name == "kalman_filter":
        noise = [singles[0] if 3 in shared else q for q in singles]
        o = batch.SensorBatch.stack(sensors(noise))
        return batch.kalman_filter(d, o, *measured(len(singles)), s, **options)
    if name == "smooth":
        return batch.smooth(d, batch.FilterBatch.stack(filtered()), **options)
    if name == "pi2_update":
        return batch.pi2_update(p, *samples(count=len(singles)), **options)
    along = batch.MarginalsBatch.stack(lqr.forward(q[0], q[3], q[2]) for q in problems())
    if name == "expected_cost":
        return batch.expected_cost(c, along, **options)
    q = batch.ControllerBatch.stack(x[3] for x in problems(8))
    return batch.kl_per_step(q, p, along, **options)


def single(name, singles, b):
    """What the single function gives for problem b."""
    d, c, s, p = singles[b]
    if name == "backward":
        return lqr.backward(d, c)
    if name == "forward":
        return lqr.forward(d, p, s)
    if name in SEARCHES:
        search, config, weight = SEARCHES[name]
        return getattr(dual, search)(d, c, s, p, 0.3, DualConfig(**config), 1.0, weight)
    if name == "backward_per_step":
        return dual.backward_per_step(d, c, p, 1.0 + STEPS, STEPS)
    if name == "kalman_filter":
        return tracking.kalman_filter(d, sensors(singles)[b], *(a[b] for a in measured()), s)
    if name == "smooth":
        return tracking.smooth(d, filtered()[b])
    if name == "pi2_update":
        return pi2.update(p, *(a[b] for a in samples()))
    q = problems()[b]
    along = lqr.forward(q[0], q[3], q[2])
    if name == "expected_cost":
        return lqr.expected_cost(c, along)
    return kl.kl_per_step(problems(8)[b][3], p, along.mean, along.cov)


def arrays(record):
    """All arrays in a result, by name."""
    if isinstance(record, np.ndarray):
        return {"": record}
    out = {}
    for f in dataclasses.fields(record):
        value = getattr(record, f.name)
        if dataclasses.is_dataclass(value):
            out.update({f"{f.name}.{k}": a for k, a in arrays(value).items()})
        elif f.name not in ("errors", "reason"):  # a batch gives no reasons
            out[f.name] = np.asarray(value)
    return out


def assert_same(a, b):
    a, b = arrays(a), arrays(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].shape == b[name].shape, name
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name


EXACT = {  # and where the single functions live
    "backward": lqr,
    "forward": lqr,
    "expected_cost": lqr,
    "kl_per_step": kl,
    "backward_per_step": dual,
    "kalman_filter": tracking,
    "smooth": tracking,
    "pi2_update": pi2,
}
ALL = [*EXACT, *SEARCHES]
GROWS = (0, "F", lambda F: F * 1e60, "overflows? at t=|positive definite at t=")
BREAKS = {  # which record, its field, the value, the words of the error
    "backward": (1, "C", lambda C: C - 300 * np.eye(6), r"Q_uu .* at t=11 \(smallest eig.*-2"),
    "forward": (0, "F", lambda F: F * np.nan, r"dynamics.F is not finite at t=0"),
    "expected_cost": (1, "c", lambda c: c + np.inf, r"cost.c is not finite at t=0"),
    "kl_per_step": (3, "chol", lambda L: 0 * L, r"old.Sigma is not positive definite at t=0"),
    "pi2_update": (3, "k", lambda k: k * np.nan, r"controller.k is not finite at t=0"),
    "backward_per_step": (1, "C", lambda C: C - 300 * np.eye(6), r"Q_uu / eta \+ P .* at t=11 \("),
    "kalman_filter": (3, "chol", lambda L: -L, r"sensor.V is not positive definite at t=0"),
    "smooth": (0, "W", lambda W: W - 3 * np.eye(4), r"dynamics.W is not positive definite at t=7"),
    **dict.fromkeys(SEARCHES, GROWS),
}


def broken(name, at=2):
    """Problems of which one cannot be solved."""
    which, field, change, _ = BREAKS[name]
    out = [list(p) for p in problems()]
    record = out[at][which]
    out[at][which] = dataclasses.replace(record, **{field: change(getattr(record, field))})
    return out


# --- the same as one by one


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", EXACT)
def test_batches_have_the_bytes_of_the_single_functions(name, threads):
    found = run(name, problems(), threads=threads)
    assert len(found) == B
    assert found.ok.all()
    for b in range(B):
        assert_same(found[b], single(name, problems(), b))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", SEARCHES)
def test_searches_find_what_the_single_searches_find(name, threads):
    found = run(name, problems(), threads=threads)
    for b in range(B):
        mine, want = arrays(found[b]), arrays(single(name, problems(), b))
        assert mine.keys() == want.keys()
        for field in mine:
            assert mine[field].shape == want[field].shape, field  # the trace too: trial for trial
            assert_allclose(mine[field], want[field], rtol=1e-9, atol=1e-12, err_msg=field)
    assert found.converged.all()
    if name in ("per step, previous", "per step, both"):
        assert (found.trials == 1).all()  # one pass is exact
        return
    assert found.trials.min() > 2  # real searches, of which each problem has its own
    assert len(np.unique(found.trace[:, 2])) >= B


@pytest.mark.parametrize("name", ALL)
def test_problems_that_can_be_solved_are_not_solved_one_by_one(name, monkeypatch):
    function, where = (SEARCHES[name][0], dual) if name in SEARCHES else (name, EXACT[name])
    estimates = filtered()
    monkeypatch.setitem(globals(), "filtered", lambda: estimates)
    function = "update" if name == "pi2_update" else function
    assert hasattr(where, function)
    monkeypatch.setattr(where, function, lambda *_: pytest.fail("a single function was called"))
    assert run(name, problems()).ok.all()


def test_the_kl_under_the_previous_marginals_meets_its_bound():
    """By their definition: the previous controller's states, for the controller that was found."""
    for name in SEARCHES:
        found = run(name, problems())
        for b, (d, _, s, p) in enumerate(problems()):
            under = p if "previous" in name or "both" in name else found[b].controller
            along = lqr.forward(d, under, s)
            values = kl.kl_per_step(found[b].controller, p, along.mean, along.cov)
            assert_allclose(found.kl[b], values, rtol=1e-7, atol=1e-10, err_msg=name)
            if "per step" in name:
                assert_allclose(values[found.active[b]], 0.3, rtol=0.011)
                assert (values <= 0.3 * 1.011).all()
            else:
                assert_allclose(values.sum(), 0.3 * T, rtol=0.011)


@pytest.mark.parametrize("sizes", [(1, 2, 1, 1, 1), (6, 3, 1, 0, 2), (8, 14, 7, 9, 3)])
def test_bytes_are_the_same_at_every_size(sizes):
    """One step, no measurement, products large enough for BLAS."""
    steps, nx, nu, no, n = sizes
    rng = np.random.default_rng(8)
    singles = [make_problem(rng, steps, nx, nu) for _ in range(3)]
    d, c, s, p = stacked(singles)
    V = 0.3 * rng.normal(size=(3, steps, no, no + 1))
    V, h = V @ V.swapaxes(-1, -2), rng.normal(size=(3, steps, no))
    o = batch.SensorBatch(rng.normal(size=(3, steps, no, nx)), h, V)
    Y, U = rng.normal(size=(3, n, steps, no)), rng.normal(size=(3, n, steps, nu))
    eta, weight = rng.gamma(2.0, size=(3, steps)), rng.gamma(2.0, size=(3, steps))
    gains = batch.backward_per_step(d, c, p, eta, weight)
    estimates = batch.kalman_filter(d, o, Y, U, s)
    smoothed = batch.smooth(d, estimates)
    for b in range(3):
        want = dual.backward_per_step(d[b], c[b], p[b], eta[b], weight[b])
        assert_same(gains[b], want)
        assert_same(estimates[b], tracking.kalman_filter(d[b], o[b], Y[b], U[b], s[b]))
        assert_same(smoothed[b], tracking.smooth(d[b], estimates[b]))


@pytest.mark.skipif(CORES < 2, reason="one core")
@pytest.mark.parametrize("name", ALL)
def test_threads_change_no_byte(name):
    for singles in (problems(), broken(name)):
        one, two = (run(name, singles, threads=n, on_error="mask") for n in (1, 2))
        assert_same(one, two)
        assert one.errors.keys() == two.errors.keys()


@pytest.mark.parametrize("name", ALL)
def test_a_bad_problem_is_named_and_spoils_no_other(name):
    singles, words = broken(name), BREAKS[name][3]
    with pytest.raises(GPSError, match=rf"^problem 2: .*({words})"):
        run(name, singles)
    good, found = run(name, problems()), run(name, singles, on_error="mask")
    assert_array_equal(found.ok, [True, True, False, True, True])
    for b in (0, 1, 3, 4):
        assert_same(found[b], good[b])
    with pytest.raises(GPSError, match=r"^problem 2: "):
        found[2]
    with pytest.raises(GPSError, match=r"^problem 2: "):
        list(found)
    numbers = [a for a in arrays(found).values() if a.dtype == np.float64 and len(a) == B]
    assert sum(np.isnan(a[2]).any() for a in numbers) >= 1
    # the error is the one of the single function, with its type
    with pytest.raises(GPSError) as alone:
        single(name, singles, 2)
    assert type(found.errors[2]) is type(alone.value)
    assert str(found.errors[2]) == f"problem 2: {alone.value}"
    again = pickle.loads(pickle.dumps(found))
    assert str(again.errors[2]) == str(found.errors[2])


def test_a_failure_is_handed_on():
    """From the controller to its marginals and their cost, under its first name."""
    d, c, s, p = stacked(broken("backward"))
    controllers = batch.backward(d, c, on_error="mask")
    marginals = batch.forward(d, controllers, s, on_error="mask")
    costs = batch.expected_cost(c, marginals, on_error="mask")
    divergence = batch.kl_per_step(controllers, p, marginals, on_error="mask")
    for result in (marginals, costs, divergence):
        assert list(result.errors) == [2]
        assert str(result.errors[2]) == str(controllers.errors[2])
    want = lqr.forward(*(problems()[4][i] for i in (0,)), controllers[4], problems()[4][2])
    assert_same(marginals[4], want)
    with pytest.raises(NotPositiveDefiniteError, match=r"^problem 2: Q_uu"):
        batch.forward(d, controllers, s)
    # whoever finds fault with a problem by other means can say so
    judged = dataclasses.replace(p, errors={1: NonFiniteError("problem 1: the robot is off")})
    along = batch.forward(d, judged, s, on_error="mask")
    assert str(along.errors[1]) == "problem 1: the robot is off"
    assert np.isnan(along.mean[1]).all()
    assert along.ok.sum() == B - 1


def test_an_estimate_that_failed_is_not_smoothed():
    singles = broken("kalman_filter")
    found = run("kalman_filter", singles, on_error="mask")
    smoothed = batch.smooth(stacked(singles)[0], found, on_error="mask")
    assert list(smoothed.errors) == [2]
    assert str(smoothed.errors[2]) == str(found.errors[2])
    assert_same(smoothed[3], single("smooth", problems(), 3))
    with pytest.raises(NotPositiveDefiniteError, match=r"^problem 2: sensor.V"):
        batch.smooth(stacked(singles)[0], found)


def _changed(matrix, what):
    out = matrix.copy()
    if what == "indefinite":
        out[4, 0, 1] = out[4, 1, 0] = 50.0
    elif what == "asymmetric":
        out[4, 0, 1] += 1.0
    elif what == "rounding":
        out[4, 0, 1] += 1e-14 * np.abs(out).max()
    elif what == "certain":  # no variance, but a covariance
        out[4, 0, 0], out[4, 0, 1], out[4, 1, 0] = 0.0, 1e-12, 1e-12
    elif what == "infinite":
        out[4, 1, 1] = np.inf
    return out


@pytest.mark.parametrize("where", ["W", "V", "start", "Y", "cov", "pred_cov"])
@pytest.mark.parametrize("what", ["indefinite", "asymmetric", "rounding", "certain", "infinite"])
def test_estimates_judge_covariances_as_the_single_functions_do(where, what):
    """Of inputs between good and bad too; the other systems keep their bytes."""
    singles, o, (Y, U) = problems(), sensors(problems()), measured()
    estimates = filtered()
    d, c, s, p = singles[3]
    if where == "W":
        singles[3] = LinearDynamics(d.F, d.f, _changed(d.W, what)), c, s, p
    elif where == "V":
        o[3] = LinearSensor(o[3].H, o[3].h, _changed(o[3].V, what))
    elif where == "start":
        singles[3] = d, c, Gaussian(s.mean, _changed(np.tile(s.cov, (5, 1, 1)), what)[4]), p
    elif where == "Y":
        Y[3] = _changed(Y[3], what)
    else:
        changed = _changed(getattr(estimates[3], where), what)
        estimates[3] = dataclasses.replace(estimates[3], **{where: changed})
    d, _, s, _ = stacked(singles)
    sensor, along = batch.SensorBatch.stack(o), batch.FilterBatch.stack(estimates)
    alone = (
        (batch.kalman_filter(d, sensor, Y, U, s, on_error="mask"),
         lambda b: tracking.kalman_filter(d[b], o[b], Y[b], U[b], s[b])),
        (batch.smooth(d, along, on_error="mask"), lambda b: tracking.smooth(d[b], estimates[b])),
    )  # fmt: skip
    for found, want in alone:
        assert set(found.errors) <= {3}
        for b in range(B):
            try:
                assert_same(found[b], want(b))
            except GPSError as error:
                with pytest.raises(type(error)) as other:
                    want(b)
                assert str(error) == f"problem {b}: {other.value}"  # noqa: PT017


@pytest.mark.parametrize("what", ["indefinite", "asymmetric", "negative start"])
def test_covariances_that_are_none_are_found_in_a_batch(what):
    """Each problem is judged as the single function judges it."""
    singles = [list(p) for p in problems()]
    d, _, s, _ = singles[3]
    if what == "indefinite":
        W = d.W.copy()
        W[4, 0, 1] = W[4, 1, 0] = 50.0
        singles[3][0] = LinearDynamics(d.F, d.f, W)
    elif what == "asymmetric":
        W = d.W.copy()
        W[4, 0, 1] += 1.0
        singles[3][0] = LinearDynamics(d.F, d.f, W)
    else:
        singles[3][2] = Gaussian(s.mean, -s.cov)
    try:
        want = single("forward", singles, 3)
    except GPSError as error:
        with pytest.raises(type(error), match=r"^problem 3: "):
            run("forward", singles)
    else:
        assert_same(run("forward", singles)[3], want)
    assert_same(run("forward", singles, on_error="mask")[2], single("forward", singles, 2))


def test_rounding_in_a_hessian_is_symmetrised():
    singles = [list(p) for p in problems()]
    C = singles[1][1].C.copy()
    C[3, 0, 1] *= 1 + 1e-12
    singles[1][1] = dataclasses.replace(singles[1][1], C=C)
    found = run("backward", singles)
    for b in range(B):
        assert_same(found[b], single("backward", singles, b))


# --- what is shared, and what has a value per problem


def test_one_problem_with_many_bounds():
    one = problems()[0]
    bounds = np.geomspace(0.01, 3.0, 6)
    found = batch.minimise(*one, bounds, eta=np.geomspace(0.1, 10, 6))
    assert found.B == 6
    for b, bound in enumerate(bounds):
        want = dual.minimise(*one, bound, eta=np.geomspace(0.1, 10, 6)[b])
        assert_allclose(found[b].controller.K, want.controller.K, rtol=1e-9, atol=1e-12)
        assert found[b].kl_max == bound
    assert (np.diff(found.eta) < 0).all()
    steps = batch.minimise_per_step(*one, bounds[:, None] * np.linspace(0.5, 1, T))
    want = dual.minimise_per_step(*one, bounds[4] * np.linspace(0.5, 1, T))
    assert_allclose(steps[4].controller.K, want.controller.K, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shared", [(0,), (1,), (2,), (3,), (0, 1, 2), (0, 2, 3)])
@pytest.mark.parametrize(
    "name", ["backward", "forward", "backward_per_step", "kalman_filter", "smooth", *SEARCHES]
)
def test_a_single_record_stands_for_all(name, shared):
    singles = problems()
    same = [[singles[0][i] if i in shared else p[i] for i in range(4)] for p in singles]
    found = run(name, singles, shared=shared)
    assert_same(found, run(name, same)) if len(found) == B else assert_same(
        found[0], run(name, same)[0]
    )


def test_a_shared_record_that_fails_fails_all():
    singles = problems()
    d, c, s, p = stacked(singles)
    bad = dataclasses.replace(singles[0][0], f=np.nan * singles[0][0].f)
    found = batch.minimise(bad, c, s, p, 0.3, on_error="mask")
    assert not found.ok.any()
    assert str(found.errors[4]).startswith("problem 4: dynamics.f is not finite")
    with pytest.raises(NonFiniteError, match=r"^problem 0: dynamics.f"):
        batch.forward(bad, p, s)
    assert np.isnan(found.controller.K).all()
    assert d.ok.all()
    # and so do marginals of the previous controller that all problems share
    wild = dataclasses.replace(singles[0][0], F=1e60 * singles[0][0].F)
    config = DualConfig(kl_under="previous")
    for search in (batch.minimise, batch.minimise_per_step):
        found = search(wild, c, *singles[0][2:], 0.3, config, on_error="mask")
        assert sorted(found.errors) == list(range(B))
        assert "problem 4: the marginals of `previous` overflow at t=" in str(found.errors[4])


def test_temperatures_and_entropy_weights_per_problem():
    singles = problems()
    d, c, s, p = stacked(singles)
    heat = np.linspace(0.5, 2, B)[:, None]
    found = batch.backward(d, c, heat)
    assert_same(found[3], lqr.backward(*singles[3][:2], float(heat[3, 0])))
    weight = np.linspace(0, 1, B)[:, None] * np.ones(T)
    each = batch.minimise(d, c, s, p, 0.3, entropy_weight=weight)
    want = dual.minimise(*singles[4], 0.3, entropy_weight=weight[4])
    assert_allclose(each[4].controller.chol, want.controller.chol, rtol=1e-9)
    assert_allclose(each[4].eta, want.eta, rtol=1e-9)
    for config in (DualConfig(), DualConfig(kl_under="previous")):
        steps = batch.minimise_per_step(d, c, s, p, 0.3, config, entropy_weight=weight)
        want = dual.minimise_per_step(*singles[4], 0.3, config, entropy_weight=weight[4])
        assert_allclose(steps[4].controller.chol, want.controller.chol, rtol=1e-9, atol=1e-12)
        assert_allclose(steps[4].eta, want.eta, rtol=1e-9)
    X, U, costs = samples()
    bounds = np.linspace(0.2, 1.5, B)
    some = batch.pi2_update(p, X, U, costs, kl_max=bounds)
    assert_allclose(some.kl, np.tile(bounds[:, None], T), atol=1e-9)
    for config in (PI2Config(covariance="weighted"), PI2Config(damping=4.0)):
        fixed = batch.pi2_update(p, X, U, costs, config, temperature=heat)
        alone = pi2.update(p[2], X[2], U[2], costs[2], config, temperature=float(heat[2, 0]))
        assert_same(fixed[2], alone)


def test_one_problem_with_many_dual_variables_and_one_system_with_many_samples():
    d, c, s, p = problems()[0]
    eta = np.geomspace(0.1, 10, 6)
    found = batch.backward_per_step(d, c, p, eta[:, None], 0.2)
    assert found.B == 6
    for b in range(6):
        assert_same(found[b], dual.backward_per_step(d, c, p, eta[b], 0.2))
    sensor, (Y, U) = sensors(problems())[0], measured()
    estimates = batch.kalman_filter(d, sensor, Y, U[:1], s)
    assert estimates.B == B
    for b in range(B):
        assert_same(estimates[b], tracking.kalman_filter(d, sensor, Y[b], U[0], s))
    alone = tracking.kalman_filter(d, sensor, Y[0], U[0], s)
    assert_same(batch.smooth(d, alone)[0], tracking.smooth(d, alone))
    # one estimate under many dynamics
    many = batch.smooth(stacked(problems())[0], alone, on_error="mask")
    for b in many.ok.nonzero()[0]:
        assert_same(many[b], tracking.smooth(problems()[b][0], alone))


def test_bounds_that_are_not_met_are_logged_by_number(caplog):
    config = DualConfig(max_trials=2, tol=1e-9)
    d, c, s, p = stacked(problems())
    with caplog.at_level(logging.INFO, "gps.control.batch"):
        found = batch.minimise(d, c, s, p, 0.05, config, eta=1e4)
    assert not found.converged.any()
    assert (found.kl.sum(axis=1) <= 0.05 * T).all()
    assert "in 5 problems: [0, 1, 2, 3, 4]" in caplog.text
    stays = batch.minimise(d, c, s, p, 1e-9, DualConfig(max_trials=1), eta=1e-3)
    assert not stays.converged.any()
    np.testing.assert_array_equal(stays.controller.K, p.K)


# --- stacks


def test_stacks_give_their_records_back():
    for kind, records in zip(STACKS, zip(*problems(), strict=True), strict=True):
        whole = kind.stack(records)
        assert len(whole) == B
        for a, b in zip(whole, records, strict=True):
            assert_same(a, b)
        assert_same(whole[-1], records[-1])
        with pytest.raises(IndexError, match="has 5 problems"):
            whole[B]
        with pytest.raises(ShapeError, match="at least one record"):
            kind.stack([])
        with pytest.raises(ValueError, match="read-only"):
            whole[0].__dict__[next(iter(kind.shapes()))][...] = 0


def test_numbers_of_every_problem_are_a_stack_too():
    rows = [np.arange(3.0), np.ones(3)]
    for a, b in zip(batch.StepValues.stack(rows), rows, strict=True):
        assert_array_equal(a, b)


def test_records_of_another_kind_are_named():
    d, c, *_ = problems()[0]
    for records, words in (
        ([c, d], r"CostBatch.stack: problem 1 must be a QuadraticCost, got LinearDynamics"),
        ([None], r"problem 0 must be a QuadraticCost, got NoneType"),
        (None, r"CostBatch.stack needs a list of QuadraticCost, got NoneType"),
        (c, r"CostBatch.stack needs a list of QuadraticCost, got QuadraticCost"),
    ):
        with pytest.raises(ShapeError, match=words):
            batch.CostBatch.stack(records)
    with pytest.raises(ShapeError, match="kl_max must be an array of numbers"):
        batch.minimise(*stacked(problems()), "1")


def test_wrong_sizes_are_named():
    singles = problems()
    d, c, s, p = stacked(singles)
    longer = make_problem(np.random.default_rng(0), T=13)
    with pytest.raises(ShapeError, match=r"stack: F of problem 1 has shape \(12, 4, 6\)"):
        batch.DynamicsBatch.stack([singles[0][0], longer[0]])
    with pytest.raises(ShapeError, match=r"cost.C must have shape \(B, 12, 6, 6\)"):
        batch.backward(d, longer[1])
    with pytest.raises(ShapeError, match=r"controller.K must have shape \(B, 12, 2, 4\)"):
        batch.forward(d, longer[3], s)
    with pytest.raises(ShapeError, match="cost has 4 problems where others have 5"):
        batch.backward(d, batch.CostBatch(c.C[:4], c.c[:4], c.c0[:4]))
    with pytest.raises(ShapeError, match=r"kl_max has 3 problems"):
        batch.minimise(d, c, s, p, np.ones(3))
    with pytest.raises(ShapeError, match="kl_max must have at most 1 axes"):
        batch.minimise(d, c, s, p, np.ones((5, 12)))
    with pytest.raises(ShapeError, match=r"temperature must broadcast to shape \(5, 12\)"):
        batch.backward(d, c, np.ones(5))
    with pytest.raises(ShapeError, match="at least one problem"):
        batch.DynamicsBatch(np.zeros((0, 3, 2, 3)), np.zeros((0, 3, 2)), np.zeros((0, 3, 2, 2)))
    with pytest.raises(ShapeError, match=r"CostBatch.c must have shape \(5, 12, 6\)"):
        batch.CostBatch(c.C, c.c[:, :5], c.c0)
    along = batch.forward(d, p, s)
    with pytest.raises(ShapeError, match=r"old.K must have shape"):
        batch.kl_per_step(p, longer[3], along)
    with pytest.raises(ShapeError, match=r"marginals.mean must have shape"):
        batch.kl_per_step(p, p, lqr.forward(longer[0], longer[3], longer[2]))
    with pytest.raises(ShapeError, match=r"cost.C must have shape"):
        batch.expected_cost(longer[1], along)
    X, U, costs = samples()
    with pytest.raises(ShapeError, match=r"X must have shape \(5, 9, 12, 4\)"):
        batch.pi2_update(p, X[:, :8], U, costs)
    with pytest.raises(ShapeError, match=r"costs must have shape \(B, N, T\)"):
        batch.pi2_update(p, X[0], U[0], costs[0])
    with pytest.raises(ShapeError, match="controller has 5 problems"):
        batch.pi2_update(p, X[:3], U[:3], costs[:3])
    Y, U = measured()
    o = batch.SensorBatch.stack(sensors(singles))
    with pytest.raises(ShapeError, match=r"Y must have shape \(B, N, 12, 2\), got \(9, 12, 2\)"):
        batch.kalman_filter(d, o, Y[0], U, s)
    with pytest.raises(ShapeError, match=r"U must have shape \(B, N, 12, 2\)"):
        batch.kalman_filter(d, o, Y, U[..., :1], s)
    with pytest.raises(ShapeError, match="Y has 9 samples per system, U has 8"):
        batch.kalman_filter(d, o, Y, U[:, :8], s)
    with pytest.raises(ShapeError, match="Y has 4 problems where others have 5"):
        batch.kalman_filter(d, o, Y[:4], U, s)
    with pytest.raises(ShapeError, match=r"sensor.H must have shape \(B, 13, no, 4\)"):
        batch.kalman_filter(longer[0], o, Y, U, s)
    with pytest.raises(ShapeError, match=r"filtered.mean must have shape \(B, N, 13, 4\)"):
        batch.smooth(longer[0], filtered()[0])
    with pytest.raises(ShapeError, match=r"previous.K must have shape \(B, 12, 2, 4\)"):
        batch.backward_per_step(d, c, longer[3], 1.0)
    with pytest.raises(ShapeError, match="eta has 3 problems where others have 5"):
        batch.backward_per_step(d, c, p, np.ones((3, 12)))
    with pytest.raises(ShapeError, match="dynamics must be a record"):
        batch.backward(singles, c)


def test_options_that_cannot_work_are_named():
    d, c, s, p = stacked(problems())
    for threads in (0, 1025, True, 1.0):
        with pytest.raises(ConfigError, match=r"threads must be .* from 1 to 1024"):
            batch.backward(d, c, threads=threads)
    with pytest.raises(ConfigError, match="on_error must be 'raise' or 'mask'"):
        batch.backward(d, c, on_error="skip")
    with pytest.raises(ConfigError, match=r"kl_max must be .* got -1.0 for problem 2"):
        batch.minimise(d, c, s, p, np.array([1, 1, -1, 1, 1.0]))
    with pytest.raises(ConfigError, match=r"temperature must be .* got nan for problem 0"):
        batch.backward(d, c, np.nan)
    with pytest.raises(ConfigError, match=r"eta must be .* above 0, got 0.0 for problem 0"):
        batch.backward_per_step(d, c, p, 0.0)


# --- anything at all

SIZES = st.sampled_from([0.0, -1.0, 1e-160, 1e-12, 1.0, 1e8, 1e100, 1e300, np.nan, np.inf])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), SIZES, SIZES, SIZES, SIZES, st.sampled_from(ALL))
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_whatever_a_problem_is_the_batch_does_what_the_single_function_does(
    seed, dynamics, cost, noise, controller, name
):
    singles = [list(p) for p in problems(seed)]
    d, c, s, p = singles[1]
    with np.errstate(all="ignore"):
        singles[1] = [
            LinearDynamics(dynamics * d.F, d.f, noise * d.W),
            QuadraticCost(cost * c.C, cost * c.c, c.c0),
            Gaussian(s.mean, noise * s.cov),
            dataclasses.replace(p, chol=controller * p.chol),
        ]
    found = run(name, singles, on_error="mask")
    assert set(found.errors) <= {1}
    for b in (0, 2, 3, 4):
        for key, value in arrays(found[b]).items():
            assert_allclose(value, arrays(single(name, singles, b))[key], rtol=1e-9, atol=1e-12)
    try:
        want = arrays(single(name, singles, 1))
    except GPSError as error:
        assert str(found.errors[1]) == f"problem 1: {error}"  # noqa: PT017
        return
    if 1 in found.errors:  # the single function returned what is not finite
        assert "overflows" in str(found.errors[1])
        assert any(not np.isfinite(v).all() for v in want.values())
        return
    for key, value in arrays(found[1]).items():
        assert_allclose(value, want[key], rtol=1e-9, err_msg=key)


def test_known_states_are_starts_without_variance():
    d, _, _, p = stacked(problems())
    states = np.random.default_rng(2).normal(size=(B, NX))
    exact = batch.GaussianBatch(states, np.zeros((B, NX, NX)))
    assert_same(batch.forward(d, p, states), batch.forward(d, p, exact))
    one = batch.forward(d, p, states[2])
    assert_same(one[2], batch.forward(d, p, states)[2])
    with pytest.raises(ShapeError, match=r"x0 must be Gaussians, or states of shape"):
        batch.forward(d, p, np.zeros((1, B, NX)))
