import numpy as np
import pytest
from control_problems import load, make_problem


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def problem(rng):
    return make_problem(rng)


@pytest.fixture(params=["lqr_badmm", "lqr_per_step_pilqr"])
def recorded(request):
    return load(request.param)


@pytest.fixture
def recorded_per_step():
    return load("lqr_per_step_pilqr")
