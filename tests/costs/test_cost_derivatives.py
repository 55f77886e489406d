"""Every cost of the list against finite differences. A new cost joins `ALL_CASES`."""

import pickle

import numpy as np
import pytest
import torch_functions
from cost_agent import ALL_CASES, LAYOUT, NU, Case, random_samples, rollouts_at

import gps.costs

NX = LAYOUT.size
NZ = NX + NU


def cost_at(case, Z):
    return case.cost.evaluate(rollouts_at(Z[..., :NX], Z[..., NX:], chain=case.chain))


def gradient(terms):
    return np.concatenate([terms.l_x, terms.l_u], axis=-1)


def hessian(terms):
    top = np.concatenate([terms.l_xx, terms.l_ux.swapaxes(-1, -2)], axis=-1)
    return np.concatenate([top, np.concatenate([terms.l_ux, terms.l_uu], axis=-1)], axis=-2)


def central_difference(fn, Z, h=1e-5):
    """d fn / d z_j on a new last axis, at all samples and steps at once."""
    steps = h * np.eye(NZ)
    return np.stack([(fn(Z + e) - fn(Z - e)) / (2 * h) for e in steps], axis=-1)


@pytest.fixture(scope="module")
def samples():
    X, U = random_samples(1)
    return np.concatenate([X, U], axis=-1)


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_derivatives_are_the_finite_differences(case: Case, samples):
    terms = cost_at(case, samples)
    fd = central_difference(lambda Z: cost_at(case, Z).l, samples)
    assert np.max(np.abs(fd)) > 0.05  # a cost that is flat here would test nothing
    np.testing.assert_allclose(gradient(terms), fd, rtol=1e-6, atol=1e-7)

    H = hessian(terms)
    np.testing.assert_array_equal(H, H.swapaxes(-1, -2))
    if case.exact:
        fd = central_difference(lambda Z: gradient(cost_at(case, Z)), samples)
        np.testing.assert_allclose(H, fd, rtol=1e-6, atol=1e-7)
    smallest = np.linalg.eigvalsh(H).min()
    if case.psd:
        assert smallest > -1e-12 * np.abs(H).max()
    else:
        assert smallest < -1e-3


@pytest.mark.parametrize(
    "case",
    [c for c in ALL_CASES if not c.exact and not c.chain and c.above],
    ids=lambda case: case.name,
)
def test_gauss_newton_model_lies_on_or_above_the_cost(case: Case, samples):
    terms = cost_at(case, samples)
    rng = np.random.default_rng(2)
    for scale in (1e-3, 0.1, 1.0, 10.0):
        step = scale * rng.normal(size=samples.shape)
        model = terms.l + np.sum(gradient(terms) * step, axis=-1)
        model += 0.5 * np.einsum("nti,ntij,ntj->nt", step, hessian(terms), step)
        assert np.all(model >= cost_at(case, samples + step).l - 1e-12)


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_cost_is_hashable_configuration_that_fits_its_agent(case: Case):
    copy = pickle.loads(pickle.dumps(case.cost))
    assert copy == case.cost
    assert hash(copy) == hash(case.cost)
    names = {**vars(gps.costs), "torch_functions": torch_functions}
    assert eval(repr(case.cost), names) == case.cost
    case.cost.check(LAYOUT, NU, 4)
