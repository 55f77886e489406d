"""Problems without mercy: tiny, huge, singular, indefinite, not finite, asymmetric, of wrong shape.

Every public function gives an answer that an independent evaluation in extended precision confirms,
or a GPSError with a message; never garbage, another exception or a warning of numpy.
"""

import dataclasses
import logging
import re

import numpy as np
import pytest
from control_problems import make_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from gps.control import (
    DualConfig,
    HoldConfig,
    PDConfig,
    _checks,
    dual,
    hold_position,
    ilqr,
    kl_per_step,
    lqr,
    pd,
    penalised,
    pi2,
)
from gps.control.dual import minimise, minimise_per_step
from gps.control.models import NumpyModel
from gps.errors import (
    DualError,
    GPSError,
    NonFiniteError,
    NotPositiveDefiniteError,
    ShapeError,
)
from gps.types import (
    Gaussian,
    Layout,
    LinearDynamics,
    LinearGaussianController,
    Marginals,
    QuadraticCost,
)

pytestmark = pytest.mark.filterwarnings("error")

wide = settings(max_examples=150, deadline=None, derandomize=True)

Long = np.longdouble
FAULTS = {
    "nan": ["dynamics", "cost", "start", "previous"],
    "inf": ["dynamics", "cost", "start", "previous"],
    "asymmetric": ["dynamics", "cost", "start"],
    "indefinite": ["dynamics", "start", "previous"],
    "shape": ["dynamics", "cost", "start", "previous"],
}
ARRAYS = {
    "dynamics": ("F", "f", "W"),
    "cost": ("C", "c", "c0"),
    "start": ("mean", "cov"),
    "previous": ("K", "k", "chol"),
}
SQUARE = {"dynamics": "W", "cost": "C", "start": "cov", "previous": "chol"}

problems = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "T": st.integers(1, 5),
        "nx": st.integers(1, 4),
        "nu": st.integers(1, 3),
        "cost_scale": st.sampled_from([0.0, 1e-300, 1e-150, 1e-12, 1.0, 1.0, 1e12, 1e150, 1e300]),
        "dynamics_scale": st.sampled_from([0.0, 1e-150, 1e-8, 1.0, 1.0, 1.0, 1e8, 1e150]),
        "state_scale": st.sampled_from([0.0, 1e-150, 1e-8, 1.0, 1.0, 1.0, 1e8, 1e150]),
        "action_scale": st.sampled_from([1e-140, 1e-8, 1.0, 1.0, 1.0, 1e8, 1e150]),
        "spread": st.sampled_from([0.0, 0.0, 4.0, 12.0]),
        "shape_of_cost": st.sampled_from(["good", "good", "singular", "no actions", "concave"]),
    }
)
faults = st.one_of(
    st.none(), st.sampled_from([(kind, name) for kind, names in FAULTS.items() for name in names])
)


def make(spec, fault=None):
    """A problem as a dictionary of records, and which of them must be refused."""
    s = dict(spec)
    rng = np.random.default_rng(s["seed"])
    T, nx, nu = s["T"], s["nx"], s["nu"]
    dynamics, cost, start, previous = make_problem(rng, T, nx, nu)
    units = 10.0 ** rng.uniform(-s["spread"] / 2, s["spread"] / 2, size=nx + nu)
    C = cost.C.copy()
    if s["shape_of_cost"] == "singular":
        root = rng.normal(size=(T, nx + nu, 1))
        C = root @ root.transpose(0, 2, 1)
    elif s["shape_of_cost"] == "no actions":
        C[:, nx:], C[:, :, nx:] = 0.0, 0.0
    elif s["shape_of_cost"] == "concave":
        C[rng.integers(T)] -= 30 * np.eye(nx + nu)
    with np.errstate(all="ignore"):
        records = {
            "dynamics": LinearDynamics(
                s["dynamics_scale"] * dynamics.F,
                s["state_scale"] * dynamics.f,
                s["state_scale"] * dynamics.W * s["state_scale"],
            ),
            "cost": QuadraticCost(
                s["cost_scale"] * units[:, None] * C * units,
                s["cost_scale"] * units * cost.c,
                s["cost_scale"] * cost.c0,
            ),
            "start": Gaussian(
                s["state_scale"] * start.mean, s["state_scale"] * start.cov * s["state_scale"]
            ),
            "previous": LinearGaussianController(
                previous.K, s["action_scale"] * previous.k, s["action_scale"] * previous.chol
            ),
        }
    if fault is None:
        return records, None
    kind, name = fault
    record = records[name]
    field = str(rng.choice(ARRAYS[name])) if kind in ("nan", "inf") else SQUARE[name]
    array = getattr(record, field).copy()
    if not array.size or (kind == "asymmetric" and array.shape[-1] < 2):
        return records, None
    rows = array.reshape(1, *array.shape) if field in ("mean", "cov") else array
    row = rows[rng.integers(len(rows))] if rows.ndim > 1 else rows
    if kind == "nan":
        row.flat[0] = np.nan
    elif kind == "inf":
        row.flat[0] = np.inf
    elif kind == "asymmetric":
        size = np.abs(row).max() or 1.0
        row[0, -1], row[-1, 0] = 0.5 * size, -0.25 * size
        np.fill_diagonal(row, size)
    elif kind == "indefinite":  # a correlation above one, or a variance below zero
        size = np.abs(row).max() or 1.0
        row[:] = size * np.eye(len(row))
        if name == "previous" or len(row) < 2:
            row[0, 0] = -size
        else:
            row[0, -1] = row[-1, 0] = 1.5 * size
    if kind == "shape":
        other, _ = make(dict(spec, **{rng.choice(["nx", "nu"]): 5}))
        if name == "start" and other["start"].mean.shape == record.mean.shape:
            return records, None
        records[name] = other[name]
    else:
        records[name] = dataclasses.replace(record, **{field: array})
    return records, name


def attempt(refused, fn, *args, **named):
    """The answer, or None for a GPSError; bad input must give the error."""
    try:
        found = fn(*args, **named)
    except GPSError as error:
        text = str(error)
    else:
        assert not refused, "bad input was accepted"
        return found
    assert len(text) > 20
    assert "eigenvalue nan" not in text
    return None


# --- the same quantities in extended precision, step by step


def long(*arrays):
    return tuple(np.asarray(a, dtype=Long) for a in arrays)


def product_size(*matrices):
    """The size that rounding of a product is relative to."""
    out = np.abs(matrices[0])
    for m in matrices[1:]:
        out = out @ np.abs(m)
    return out


def reference_forward(dynamics, c, start):
    """Means, covariances, and the sizes of what was added up for them."""
    F, f, W, K, k, L, m, S = long(
        dynamics.F, dynamics.f, dynamics.W, c.K, c.k, c.chol, start.mean, start.cov
    )
    S = (S + S.T) / 2
    a, A = np.abs(m), np.abs(S)
    means, covs, size_m, size_c = [], [], [], []
    for t in range(c.T):
        G = np.vstack((np.eye(c.nx, dtype=Long), K[t]))
        noise = np.zeros((c.nx + c.nu,) * 2, dtype=Long)
        noise[c.nx :, c.nx :] = L[t] @ L[t].T
        mean, cov = G @ m, G @ S @ G.T + noise
        mean[c.nx :] += k[t]
        big = product_size(G, a[:, None])[:, 0]
        big[c.nx :] += np.abs(k[t])
        Big = product_size(G, A, G.T)
        Big[c.nx :, c.nx :] += np.abs(L[t]) @ np.abs(L[t]).T
        means.append(mean), covs.append(cov), size_m.append(big), size_c.append(Big)
        if t + 1 < c.T:
            m, S = F[t] @ mean + f[t], F[t] @ cov @ F[t].T + (W[t] + W[t].T) / 2
            a = product_size(F[t], big[:, None])[:, 0] + np.abs(f[t])
            A = product_size(F[t], Big, F[t].T) + np.abs(W[t])
    return np.array(means), np.array(covs), np.array(size_m), np.array(size_c)


def reference_values(dynamics, cost, c):
    """Q_zz, Q_z of every step under the controller as it is, and the sizes of their terms."""
    F, f, C, l_z, K, k = long(dynamics.F, dynamics.f, cost.C, cost.c, c.K, c.k)
    nx, out = c.nx, []
    V, v = np.zeros((nx, nx), dtype=Long), np.zeros(nx, dtype=Long)
    A, a = V.copy(), v.copy()
    for t in range(c.T - 1, -1, -1):
        Q, q = (C[t] + C[t].T) / 2, l_z[t]
        B, b = np.abs(Q), np.abs(q)
        if t + 1 < c.T:
            Q, q = Q + F[t].T @ V @ F[t], q + F[t].T @ (v + V @ f[t])
            B = B + product_size(F[t].T, A, F[t])
            b = b + np.abs(F[t]).T @ (a + A @ np.abs(f[t]))
        out.append((Q, q, B, b))
        G, g = np.vstack((np.eye(nx, dtype=Long), K[t])), np.append(np.zeros(nx, dtype=Long), k[t])
        V, v = G.T @ Q @ G, G.T @ (q + Q @ g)
        A, a = product_size(G.T, B, G), np.abs(G).T @ (b + B @ np.abs(g))
    return out[::-1]


def reference_kl(new, old, mean, cov):
    """KL per step and the size of its terms."""
    nx, nu = new.nx, new.nu
    K, k, L, K0, k0, L0, m, S = long(
        new.K, new.k, new.chol, old.K, old.k, old.chol, mean[:, :nx], cov[:, :nx, :nx]
    )
    kl, size = [], []
    for t in range(new.T):
        inv = np.zeros((nu, nu), dtype=Long)  # numpy has no solver in this precision
        for j in range(nu):
            inv[j, j] = 1 / L0[t, j, j]
            for i in range(j + 1, nu):
                inv[i, j] = -(L0[t, i, j:i] @ inv[j:i, j]) / L0[t, i, i]
        dK, dk = inv @ (K0[t] - K[t]), inv @ (k0[t] - k[t])
        logs = np.log(np.diag(L0[t])) - np.log(np.diag(L[t]))
        w = inv @ L[t]
        moved = dK @ m[t] + dk
        terms = [logs.sum(), -nu / 2, (w**2).sum() / 2, moved @ moved / 2]
        terms.append(np.einsum("ij,jk,ik->", dK, S[t], dK) / 2)
        kl.append(sum(terms))
        wide = product_size(inv, np.abs(K0[t]) + np.abs(K[t]))
        far = wide @ np.abs(m[t]) + np.abs(inv) @ (np.abs(k0[t]) + np.abs(k[t]))
        size.append(
            nu + np.abs(logs).sum() + ((np.abs(inv) @ np.abs(L[t])) ** 2).sum() + far @ far
            + np.einsum("ij,jk,ik->", wide, np.abs(S[t]), wide)
        )  # fmt: skip
    return np.array(kl), np.array(size)


def near(found, wanted, size, rtol=1e-9):
    """Within rounding of what was added up; 1e-290 is where numbers lose digits."""
    assert np.isfinite(found).all()
    assert (np.abs(long(found)[0] - wanted) <= rtol * size + Long(1e-290)).all()


def semidefinite(stack, sizes):
    """To rounding of the terms: a closed loop may be the small difference of large ones."""
    for S, size in zip(stack, sizes, strict=True):
        scale = float(size.max())
        if scale > 1e-290:
            assert np.linalg.eigvalsh(S / scale)[0] >= -1e-9


# --- linear-quadratic problems


@wide
@given(problems, faults, st.sampled_from([1e-300, 1e-8, 1.0, 1e8, 1e300]))
def test_backward(spec, fault, heat):
    """The gradient of the cost-to-go with respect to the action vanishes, at any state."""
    r, bad = make(spec, fault)
    dynamics, cost = r["dynamics"], r["cost"]
    nx = dynamics.nx
    refused = bad in ("dynamics", "cost") and not (bad == "dynamics" and fault[0] in UNUSED)
    c = attempt(refused, lqr.backward, dynamics, cost, heat)
    if c is None:
        return
    assert np.isfinite(c.k).all()
    for t, (Q, q, B, b) in enumerate(reference_values(dynamics, cost, c)):
        K, k, L = long(c.K[t], c.k[t], c.chol[t])
        Q_uu, Q_ux = Q[nx:, nx:], Q[nx:, :nx]
        # the recursion's own rounding is amplified by each step's condition
        slack = 1e-7 * float(np.linalg.cond(np.float64(scaled(Q_uu))))
        if slack < 1e-2:
            near_zero(Q_uu @ K + Q_ux, np.abs(B[nx:, nx:]) @ np.abs(K) + B[nx:, :nx], slack)
            near_zero(Q_uu @ k + q[nx:], B[nx:, nx:] @ np.abs(k) + b[nx:], slack)
            eye = L @ L.T @ Q_uu / Long(heat) - np.eye(len(k))
            near_zero(eye, product_size(L, L.T, B[nx:, nx:]) / Long(heat) + 1, slack)
        assert (np.diag(c.chol[t]) > 0).all()


UNUSED = ("asymmetric", "indefinite")  # a backward pass does not read W beyond its finiteness


def scaled(Q):
    """With a unit diagonal, in the range of float64."""
    d = np.sqrt(np.abs(np.diag(Q)))
    d[d == 0] = 1
    return np.nan_to_num(Q / d[:, None] / d)


def near_zero(residual, size, rtol):
    assert (np.abs(residual) <= rtol * size + Long(1e-290)).all()


@wide
@given(problems, faults)
def test_forward_and_expected_cost(spec, fault):
    r, bad = make(spec, fault)
    dynamics, cost, start, c = (r[n] for n in ("dynamics", "cost", "start", "previous"))
    m = attempt(bad in ("dynamics", "start", "previous"), lqr.forward, dynamics, c, start)
    if m is None:
        return
    mean, cov, size_m, size_c = reference_forward(dynamics, c, start)
    near(m.mean, mean, size_m)
    near(m.cov, cov, size_c)
    semidefinite(m.cov, size_c)
    np.testing.assert_array_equal(m.cov, m.cov.transpose(0, 2, 1))
    value = attempt(bad == "cost", lqr.expected_cost, cost, m)
    if value is None:
        return
    C, l_z, c0, z, S = long(cost.C, cost.c, cost.c0, m.mean, m.cov)
    moment = S + z[:, :, None] * z[:, None]
    wanted = 0.5 * (C * moment).sum(axis=(1, 2)) + (l_z * z).sum(axis=1) + c0
    size = (np.abs(C) * (np.abs(S) + np.abs(z[:, :, None] * z[:, None]))).sum(axis=(1, 2))
    near(value, wanted, size + (np.abs(l_z * z)).sum(axis=1) + np.abs(c0))


@wide
@given(problems, faults, st.integers(0, 100))
def test_kl_and_penalised(spec, fault, seed):
    r, bad = make(spec, fault)
    rng = np.random.default_rng(seed)
    old, cost = r["previous"], r["cost"]
    T, nu, nx = old.K.shape
    factor = 10.0 ** rng.choice([-8, 0, 0, 8])
    new = dataclasses.replace(
        make_problem(rng, T, nx, nu)[3], chol=factor * make_problem(rng, T, nx, nu)[3].chol
    )
    size = 10.0 ** rng.choice([-150, 0, 0, 150])
    root = rng.normal(size=(T, nx, nx)) * np.sqrt(size)
    mean, cov = size * rng.normal(size=(T, nx)), root @ root.transpose(0, 2, 1)
    kl = attempt(bad == "previous" and fault[0] != "shape", kl_per_step, new, old, mean, cov)
    if kl is not None:
        wanted, terms = reference_kl(new, old, mean, cov)
        near(kl, wanted, terms)
        assert (kl >= -1e-9 * terms).all()
    eta = 10.0 ** rng.choice([-300, -8, 0, 8, 300])
    mixed = attempt(bad in ("previous", "cost"), penalised, cost, old, eta, rng.choice([0.0, 1e8]))
    if mixed is not None:
        for array in (mixed.C, mixed.c, mixed.c0):
            assert np.isfinite(array).all()
        c = attempt(False, lqr.backward, r["dynamics"], mixed) if bad is None else None
        assert c is None or np.isfinite(c.K).all()


@settings(wide, max_examples=250)
@given(
    problems,
    faults,
    st.sampled_from(["new", "previous"]),
    st.sampled_from([0.0, 0.0, 1e-8, 1.0, 1e150]),
    st.sampled_from([1e-320, 1e-8, 0.1, 50.0, 1e308]),
    st.sampled_from([1e-300, 1e-8, 1.0, 1e12, 1e300]),
    st.sampled_from([3, 60, 100]),
)
def test_the_bound_holds(spec, fault, under, weight, kl_max, eta, trials):
    """By forward pass and KL in extended precision, whatever the search says."""
    r, bad = make(spec, fault)
    args = (r["dynamics"], r["cost"], r["start"], r["previous"])
    config = DualConfig(kl_under=under, max_trials=trials)
    for search in (minimise, minimise_per_step):
        found = attempt(bad, search, *args, kl_max, config, eta, weight)
        if found is None:
            continue
        c = found.controller
        for array in (c.K, c.k, c.chol, found.marginals.mean, found.marginals.cov, found.eta):
            assert np.isfinite(array).all()
        mean, cov, size_m, size_c = reference_forward(args[0], c, args[2])
        semidefinite(found.marginals.cov, size_c)
        near(found.marginals.mean, mean, size_m)
        near(found.marginals.cov, cov, size_c)
        if under == "previous":
            mean, cov, size_m, size_c = reference_forward(args[0], args[3], args[2])
        kl, _ = reference_kl(c, args[3], mean, cov)
        _, size = reference_kl(c, args[3], size_m, size_c)  # with the rounding of the marginals
        near(found.kl, kl, size)
        limit, total = (kl_max * len(kl), kl.sum()) if search is minimise else (kl_max, kl.max())
        assert total <= 1.0101 * Long(limit) + 1e-9 * size.sum()
        if found.converged and np.all(found.active) and 1e-6 < kl_max < 1e300:
            assert total >= 0.9899 * Long(limit) - 1e-9 * size.sum()


@wide
@given(
    problems,
    faults,
    st.sampled_from([1e-300, 1e-8, 1.0, 1e12, 1e300]),
    st.sampled_from([0.0, 1.0, 1e300]),
)
def test_backward_per_step(spec, fault, eta, weight):
    """(Q_uu / eta + P) K = P K_prev - Q_ux / eta, with Q of the cost alone."""
    r, bad = make(spec, fault)
    dynamics, cost, old = r["dynamics"], r["cost"], r["previous"]
    refused = bad in ("cost", "previous") or (bad == "dynamics" and fault[0] not in UNUSED)
    c = attempt(refused, dual.backward_per_step, dynamics, cost, old, eta, weight)
    if c is None:
        return
    assert np.isfinite(c.k).all()
    assert np.isfinite(c.chol).all()
    nx = dynamics.nx
    for t, (Q, q, B, b) in enumerate(reference_values(dynamics, cost, c)):
        K, k, K0, k0, L0 = long(c.K[t], c.k[t], old.K[t], old.k[t], old.chol[t])
        inv = long(np.linalg.inv(old.chol[t] / np.abs(old.chol[t]).max()))[0]
        P = inv.T @ inv / Long(np.abs(L0).max()) ** 2
        M = Q[nx:, nx:] / Long(eta) + P
        slack = 1e-7 * float(np.linalg.cond(np.float64(scaled(M))))
        if slack < 1e-2:
            size = B[nx:, nx:] / Long(eta) + np.abs(P)
            rest = B[nx:, :nx] / Long(eta) + np.abs(P) @ np.abs(K0)
            near_zero(M @ K + Q[nx:, :nx] / Long(eta) - P @ K0, size @ np.abs(K) + rest, slack)
            rest = b[nx:] / Long(eta) + np.abs(P) @ np.abs(k0)
            near_zero(M @ k + q[nx:] / Long(eta) - P @ k0, size @ np.abs(k) + rest, slack)


# --- covariances


@wide
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 9),
    rank=st.integers(0, 9),
    scale=st.sampled_from([1e-150, 1e-30, 1.0, 1e30, 1e150]),
    below=st.sampled_from([0.0, 1e-12, 1e-5, 0.3]),
    T=st.integers(2, 5),
)
def test_covariances_by_their_eigenvalues(seed, n, rank, scale, below, T):
    """Singular ones and rounding pass; indefinite ones are refused at their own step."""
    rng = np.random.default_rng(seed)
    W = np.empty((T - 1, n, n))
    for t in range(T - 1):
        root = rng.normal(size=(n, min(rank, n)))
        W[t] = root @ root.T
    t = int(rng.integers(T - 1))
    v = rng.normal(size=n)
    v /= np.linalg.norm(v)
    W[t] -= below * (np.abs(W[t]).max() + 1.0) * np.outer(v, v)
    W = scale * (W + W.transpose(0, 2, 1)) / 2
    dynamics = LinearDynamics(np.zeros((T - 1, n, n + 1)), np.zeros((T - 1, n)), W)
    c = LinearGaussianController(np.zeros((T, 1, n)), np.zeros((T, 1)), np.ones((T, 1, 1)))
    start = Gaussian(np.zeros(n), np.zeros((n, n)))
    size = W[t].diagonal().max()
    worst = float(np.linalg.eigvalsh(W[t] / scale)[0] * scale)
    if worst >= -1e-10 * size and W[t].diagonal().min() >= 0:
        m = lqr.forward(dynamics, c, start)
        np.testing.assert_array_equal(m.cov[1:, :n, :n], W)
    elif worst < -2e-8 * size or W[t].diagonal().min() < 0:
        for text, call in (
            (rf"dynamics\.W .* t={t} ", lambda: lqr.forward(dynamics, c, start)),
            (
                r"x0\.cov .* t=0 ",
                lambda: lqr.forward(
                    dataclasses.replace(dynamics, W=0 * W), c, Gaussian(np.zeros(n), W[t])
                ),
            ),
        ):
            with pytest.raises(NotPositiveDefiniteError, match=text) as error:
                call()
            assert error.value.smallest == pytest.approx(worst, rel=1e-6, abs=1e-12 * abs(size))


def test_covariances_seen_before_are_forgotten_with_their_arrays():
    dynamics, _, start, c = make_problem(np.random.default_rng(0))
    before = len(_checks._good)
    first = lqr.forward(dynamics, c, start)
    assert len(_checks._good) == before + 1  # dynamics.W; one x0.cov is checked at once
    np.testing.assert_array_equal(lqr.forward(dynamics, c, start).cov, first.cov)
    # another array is looked at, wherever the memory of the first one went
    bad = dataclasses.replace(dynamics, W=dynamics.W - 10 * np.eye(4))
    for _ in range(2):
        with pytest.raises(NotPositiveDefiniteError, match=r"dynamics\.W"):
            lqr.forward(bad, c, start)
    del dynamics, start
    assert len(_checks._good) == before


# --- path integrals


@wide
@given(
    seed=st.integers(0, 10_000),
    N=st.integers(2, 6),
    T=st.integers(1, 4),
    nx=st.integers(1, 3),
    nu=st.integers(1, 3),
    costs=st.sampled_from([0.0, 1e-300, 1e-12, 1.0, 1e12, 1e150, 1e307, 1e308]),
    states=st.sampled_from([0.0, 1e-150, 1.0, 1e150, 1e300]),
    noise=st.sampled_from([1e-160, 1e-8, 1.0, 1e150]),
    fault=st.sampled_from([None, None, None, "nan", "inf", "shape", "ragged", "controller"]),
    kind=st.sampled_from(["scaled", "weighted"]),
    kl_max=st.sampled_from([1e-300, 1e-9, 1.0, 50.0]),
    floor=st.sampled_from([1e-300, 1e-8, 1.0]),
    temperature=st.sampled_from([None, None, 1e-300, 1.0, 1e300]),
)
def test_pi2(seed, N, T, nx, nu, costs, states, noise, fault, kind, kl_max, floor, temperature):
    rng = np.random.default_rng(seed)
    c = make_problem(rng, T, nx, nu)[3]
    c = dataclasses.replace(c, chol=noise * c.chol)
    X, U = states * rng.normal(size=(N, T, nx)), noise * rng.normal(size=(N, T, nu))
    values = costs * np.clip(rng.normal(size=(N, T)), -1.0, 1.0)
    if fault in ("nan", "inf"):
        some = [X, U, values][rng.integers(3)]
        some[rng.integers(N), rng.integers(T)] = np.nan if fault == "nan" else -np.inf
    elif fault == "shape":
        X = X[:, :, :-1]
    elif fault == "ragged":
        X = [[[0.0]], [[1.0, 2.0]]]
    elif fault == "controller":
        c = dataclasses.replace(c, chol=-c.chol)
    config = pi2.PI2Config(kl_max=kl_max, covariance=kind, floor=floor)
    found = attempt(fault is not None, pi2.update, c, X, U, values, config, temperature)
    if found is None:
        return
    assert (found.weights >= 0).all()
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0, rtol=1e-9)
    p = np.maximum(found.weights, 1e-300)
    np.testing.assert_allclose(found.kl, (found.weights * np.log(N * p)).sum(axis=1), atol=1e-7)
    if temperature is None:
        free = found.temperature > config.temperature_min
        assert (found.kl[free] <= kl_max * (1 + 1e-6) + 1e-9).all()
    S = np.cumsum(values[:, ::-1], axis=1)[:, ::-1]
    for t in range(T):  # cheaper samples weigh no less
        order = np.argsort(S[:, t])
        assert (np.diff(found.weights[t][order]) <= 1e-9).all()
    rest = U - np.einsum("tux,ntx->ntu", c.K, X)
    slack = 1e-9 * (np.abs(rest).max() + np.abs(X).max() * np.abs(c.K).max())
    assert (found.controller.k <= rest.max(axis=0) + slack).all()
    assert (found.controller.k >= rest.min(axis=0) - slack).all()
    assert np.isfinite(found.controller.chol).all()
    assert (found.controller.chol.diagonal(axis1=1, axis2=2) > 0).all()


# --- known dynamics


@settings(wide, max_examples=60)
@given(
    problems,
    st.sampled_from([None, None, "nan", "start", "asymmetric", "cost shape", "step", "limits"]),
    st.sampled_from([None, None, 1e-150, 1.0, 1e308]),
    st.sampled_from([1.0, 1e-300, 1e300]),
)
def test_ilqr_on_linear_quadratic_problems(spec, fault, limit, heat):
    """What it returns is a trajectory of the model, within its limits, no worse than the start."""
    r, _ = make(spec)
    dynamics, cost, start = r["dynamics"], r["cost"], r["start"].mean.copy()
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    F, f = dynamics.F, dynamics.f
    broken = fault == "step"

    def step(x, u, t):
        if t >= T - 1:
            return x
        out = np.concatenate((x, u), axis=1) @ F[t].T + f[t]
        return np.where(broken and t == 0, np.nan, out)

    with np.errstate(all="ignore"):  # the model is the user's
        model = NumpyModel(step, nx, nu)
    actions, low = np.zeros((T, nu)), -1.0 if limit is None else -limit
    limits = None if limit is None else (low, limit)
    if fault == "nan":
        actions[-1, 0] = np.nan
    elif fault == "start":
        start = np.append(start, 0.0)
    elif fault == "asymmetric":
        C = np.tile(np.eye(nx + nu), (T, 1, 1))
        C[0, 0, -1] = 0.5
        cost = dataclasses.replace(cost, C=C)
    elif fault == "cost shape":
        cost = QuadraticCost(cost.C[:, 1:, 1:], cost.c[:, 1:], cost.c0)
    elif fault == "limits":
        limits = (1.0, "far")
    refused = fault is not None and not (fault == "step" and T == 1)
    config = ilqr.ILQRConfig(iterations=20)
    found = attempt(
        refused, ilqr.minimise, model, cost, start, actions,
        limits=limits, temperature=heat, config=config,
    )  # fmt: skip
    if found is None:
        return
    assert (np.diff(found.costs) <= 0).all()
    X, U, C, c, c0 = long(found.X, found.U, cost.C, cost.c, cost.c0)
    z = np.concatenate((X, U), axis=1)
    terms = [0.5 * np.einsum("ti,tij,tj->t", z, C, z), (c * z).sum(axis=1), c0]
    size = np.einsum("ti,tij,tj->", np.abs(z), np.abs(C), np.abs(z)) + np.abs(c * z).sum()
    near(np.array(found.cost), sum(t.sum() for t in terms), size + np.abs(c0).sum())
    for t in range(T - 1):
        near(found.X[t + 1], F[t] @ z[t] + f[t], np.abs(F[t]) @ np.abs(z[t]) + np.abs(f[t]))
    if limits is not None:
        assert np.abs(found.U).max() <= limit
    k = found.controller
    assert np.isfinite(k.K).all()
    assert np.isfinite(k.chol).all()
    size = np.abs(U) + np.einsum("tux,tx->tu", np.abs(k.K), np.abs(X))
    near(k.k, U - np.einsum("tux,tx->tu", long(k.K)[0], X), size)


# --- controllers to start from

numbers = st.sampled_from([0.0, 1e-300, 1e-150, 1e-8, 0.05, 1.0, 1e8, 1e150, 1e308, np.nan, -1.0])
LAYOUT = Layout((("joint_pos", 2), ("joint_vel", 2), ("rest", 1)))


@wide
@given(
    x0=st.lists(st.sampled_from([0.0, 1.0, -1e8, 1e150, 1e308, np.nan, np.inf]), min_size=5,
                max_size=6),
    T=st.sampled_from([1, 4, 0, 2.5]),
    dt=numbers,
    variance=numbers,
    gain=numbers,
    damping=numbers,
    final=numbers,
    joints=st.sampled_from([(), (0, 1), (1, 0), (0, 0), (0.5, 1), (0, 7)]),
)  # fmt: skip
def test_controllers_to_start_from(x0, T, dt, variance, gain, damping, final, joints):
    def hold():
        config = HoldConfig(
            variance=variance, stiffness=gain, stiffness_vel=damping, final_weight=final,
            joints=joints,
        )  # fmt: skip
        return hold_position(x0, LAYOUT, 2, T, dt, config)

    def direct():
        config = PDConfig(
            variance=variance, position_gain=gain, velocity_gain=damping, joints=joints
        )
        return pd(x0, LAYOUT, 2, T, config)

    values = [*x0, variance, gain, damping]
    refused = (
        not np.isfinite(values).all() or len(x0) != 5 or T not in (1, 4) or min(values[5:]) < 0
    )
    refused = bool(refused or joints in ((0, 0), (0.5, 1), (0, 7)) or variance <= 0)
    for make_one, wrong in ((hold, not (dt > 0 and final > 0)), (direct, False)):
        c = attempt(refused or wrong, make_one)
        if c is None:
            continue
        K, k, L, x = long(c.K, c.k, c.chol, x0)
        assert all(np.isfinite(a).all() for a in (K, k, L))
        assert (c.chol.diagonal(axis1=1, axis2=2) > 0).all()
        # at the start state nothing pushes
        near_zero(K @ x + k, np.abs(K) @ np.abs(x) + np.abs(k).max(initial=0.0), 1e-6)


# --- messages


def test_messages_name_step_dual_variable_and_eigenvalue(caplog):
    dynamics, cost, start, previous = make_problem(np.random.default_rng(0), 6, 3, 2)
    C = cost.C.copy()
    C[4, 3:, 3:] -= 1e5 * np.eye(2)
    bad = dataclasses.replace(cost, C=C)
    config = DualConfig(eta_min=1e-3, eta_max=1e-2)
    with caplog.at_level(logging.DEBUG, "gps.control.dual"):
        minimise(dynamics, bad, start, previous, 0.1, config)
    assert re.search(r"t=4 \(smallest eigenvalue -(9\.|1e\+05)", caplog.text)
    with pytest.raises(NotPositiveDefiniteError, match=r"t=4 \(smallest.*raise eta, which is 0\.5"):
        dual.backward_per_step(dynamics, bad, previous, 0.5)
    with caplog.at_level(logging.DEBUG, "gps.control.dual"):
        minimise(dynamics, cost, start, previous, 1e-10, DualConfig(max_trials=1))
    assert "rounding error of the KL" in caplog.text
    F = dynamics.F.copy()
    F[2] *= 1e200
    with pytest.raises(DualError, match=r"overflows at t=") as error:
        minimise(dataclasses.replace(dynamics, F=F), cost, start, previous, 0.1)
    assert error.value.eta > 0
    with pytest.raises(NonFiniteError, match=r"overflow at t=3; .* shorten the horizon"):
        lqr.forward(dataclasses.replace(dynamics, F=F), previous, start)
    with pytest.raises(DualError, match=r"`previous` overflows at t=3, and so") as error:
        minimise_per_step(dataclasses.replace(dynamics, F=F), cost, start, previous, 0.1)
    assert error.value.t == 3
    m = lqr.forward(dynamics, previous, start)
    huge = QuadraticCost(1e308 * np.ones_like(C), cost.c, cost.c0)
    far = Marginals(1e3 * np.ones_like(m.mean), m.cov)
    with pytest.raises(NonFiniteError, match="expected cost overflows at t=0"):
        lqr.expected_cost(huge, far)
    thin = dataclasses.replace(
        previous, chol=previous.chol * np.array([1, 1, 1e-200, 1, 1, 1])[:, None, None]
    )
    for call in (
        lambda: minimise(dynamics, cost, start, thin, 0.1),
        lambda: minimise_per_step(dynamics, cost, start, thin, 0.1),
        lambda: penalised(cost, thin, 1.0),
    ):
        with pytest.raises(NonFiniteError, match="precision of previous overflows at t=2"):
            call()
    with pytest.raises(ShapeError, match="must not be empty"):
        kl_per_step(
            *[LinearGaussianController(np.zeros((3, 0, 2)), np.zeros((3, 0)), np.zeros((3, 0, 0)))]
            * 2,
            np.zeros((3, 2)),
            np.zeros((3, 2, 2)),
        )
    with pytest.raises(ShapeError, match="mean must be an array of numbers"):
        kl_per_step(previous, previous, [[1.0], [1.0, 2.0]], m.cov)
    with pytest.raises(ShapeError, match="mean and cov must have shapes"):
        kl_per_step(previous, previous, 1.0, m.cov)
